"""`python -m score_st.report`: report.html of a run, or of several side by side: one file that needs nothing else."""

from pathlib import Path

from score_st.config import ConfigError
from score_st.reporting import page
from score_st.runtime import cli
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.report --workdir runs/digits
  python -m score_st.report --workdir runs/digits runs/no_st --out runs/side_by_side.html
  python -m score_st.report --workdir runs/digits runs/no_st --out runs/loss_by_time.png"""


def main(argv: list[str] | None = None):
    what = "A page of a run, or of several side by side: curves, samples, figures, settings."
    parser = cli.documented("report", what, EXAMPLES)
    option = parser.add_argument_group("page").add_argument
    option(
        "--workdir",
        nargs="+",
        type=Path,
        required=True,
        metavar="DIR",
        help="runs; the first is the base of the others",
    )
    what = "FILE.html (default DIR/report.html), or FILE.png of the loss over t alone"
    option("--out", type=Path, metavar="FILE", help=what)
    arguments = parser.parse_args(argv)
    workdirs, out = arguments.workdir, arguments.out or arguments.workdir[0] / "report.html"
    for workdir in workdirs:
        if not ((workdir / "config.json").is_file() or (workdir / "metrics.jsonl").is_file()):
            raise ConfigError(
                f"--workdir {workdir}: no run there (no config.json); `python -m score_st.train` makes one"
            )
    try:
        if out.suffix == ".html":
            write_text(out, page.render(workdirs))
        else:
            page.loss_by_time(workdirs, out)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out {out}: can't be written ({error}); a .html or .png would do") from error
    print(f"wrote {out}")


if __name__ == "__main__":
    cli.run(main)
