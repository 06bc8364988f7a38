"""`python -m score_st.copy`: copies a run between a local folder and a bucket, or between buckets."""

import argparse
import shutil

from score_st.config import ConfigError
from score_st.runtime import cli, mirror, places

EXAMPLES = """\
  python -m score_st.copy --from gs://bucket/run --to runs/run
  python -m score_st.copy --from runs/run --to s3://bucket/run
  python -m score_st.copy --from gs://bucket/run --to gs://other-bucket/run

in a bucket, logs lie in numbered parts; in a folder, each is one file"""


def parser() -> cli.Parser:
    """Returns the parser of the command."""
    parser = cli.documented("copy", "Copies a run, with its checkpoints, into a folder or a bucket.", EXAMPLES)
    option = parser.add_argument_group("places").add_argument
    option("--from", dest="source", type=places.everything, required=True, metavar="DIR", help="a workdir")
    option("--to", type=places.folder, required=True, metavar="DIR", help="a new workdir, or one of the same run")
    return parser


@cli.command(parser)
def main(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      ConfigError: there is no run to copy, or another one where it would go.
    """
    source, target = arguments.source, arguments.to
    if not (source / "config.json").is_file():
        raise ConfigError(f"--from {source}: no run there (no config.json)")
    there = target / "config.json"
    if there.exists() and there.read_bytes() != (source / "config.json").read_bytes():
        raise ConfigError(f"--to {target}: holds a run of another configuration; name another folder")
    try:
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    except OSError as error:
        raise ConfigError(
            f"--to {target}: can't be written ({error.strerror or error}); name another folder"
        ) from error
    print(f"wrote {mirror.shown(target)}")


if __name__ == "__main__":
    cli.run(main)
