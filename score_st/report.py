"""`python -m score_st.report`: report.html of a run, or of several side by side: one file that needs nothing else."""

import argparse
from pathlib import Path

import numpy as np

from score_st import strict_json
from score_st.config import ConfigError
from score_st.reporting import figures, page
from score_st.runtime import cli, mirror, places
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.report --workdir runs/digits
  python -m score_st.report --workdir runs/digits runs/no_st --out runs/side_by_side.html
  python -m score_st.report --workdir runs/digits runs/no_st --out runs/loss_by_time.png"""


def parser() -> cli.Parser:
    """Returns the parser of the command."""
    about = "Writes a page about a run, or about several side by side: curves, samples, figures, settings."
    parser = cli.documented("report", about, EXAMPLES)
    option = parser.add_argument_group("page").add_argument
    about = "runs; the others are compared with the first"
    option("--workdir", nargs="+", type=places.folder, required=True, metavar="DIR", help=about)
    about = "FILE.html (default DIR/report.html), or FILE.png with only the loss over t"
    option("--out", type=places.file, metavar="FILE", help=about)
    return parser


@cli.command(parser)
def main(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    workdirs, out = arguments.workdir, arguments.out or arguments.workdir[0] / "report.html"
    for workdir in workdirs:
        if not ((workdir / "config.json").is_file() or (workdir / "metrics.jsonl").is_file()):
            raise ConfigError(
                f"--workdir {workdir}: no run there (no config.json); `python -m score_st.train` starts one"
            )
    curves = {} if out.suffix == ".html" else {str(workdir): _loss_by_time(workdir) for workdir in workdirs}
    try:
        if curves:
            figures.loss_by_time(curves, out)
        else:
            write_text(out, page.render(workdirs))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out {out}: can't be written ({error}); name a .html or .png file") from error
    print(f"wrote {mirror.shown(out)}")


def _loss_by_time(workdir: Path) -> dict:
    try:
        curve = strict_json.loads((workdir / "eval/loss_by_time.json").read_bytes())
        columns = [np.asarray(curve[key], float) for key in ("t", "loss", "std")]
        if any(column.shape != (len(columns[0]),) for column in columns):
            raise ValueError("columns of several lengths")
        return curve
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        message = f"--workdir {workdir}: no eval/loss_by_time.json; `python -m score_st.eval` writes it"
        raise ConfigError(message) from error


if __name__ == "__main__":
    cli.run(main)
