"""`python -m score_st.study`: trains, measures and compares the cells of a study, and resumes when started again."""

import argparse
import fnmatch
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from score_st.config import ConfigError
from score_st.runtime import cli
from score_st.runtime.progress import clock

EXAMPLES = """\
  python -m score_st.study --study studies/randomness.py
  python -m score_st.study --study studies/randomness.py --cells 'A1/*' --dry-run
  python -m score_st.study --study studies/weights.py --report-only

killed and started again, or started on another machine that shares the folder, it resumes; several share the cells"""


def parser() -> cli.Parser:
    """Returns the command's parser."""
    about = "Trains, measures and compares the cells of a study: study.json, tables.md, plots and study.html."
    parser = cli.documented("study", about, EXAMPLES)
    option = parser.add_argument_group("study").add_argument
    option("--study", type=Path, required=True, metavar="FILE", help="a Python file that defines STUDY")
    about = "folder of the results, which machines may share (default results/NAME beside FILE)"
    option("--out", type=Path, metavar="DIR", help=about)
    option("--cells", default="*", metavar="PATTERN", help="only cells of these names, such as 'A1/*'")
    option("--dry-run", action="store_true", help="list the cells and what is left of them, with an estimate of time")
    option("--report-only", action="store_true", help="only write the tables, plots and page of what is there")
    return parser


def run(cells: list, out: Path, after) -> None:
    """Runs cells on all devices of this process, each device its own cells.

    Args:
      cells: those to complete.
      out: folder of the results.
      after: called with each cell that is complete.
    """
    import jax

    from score_st.runtime import sharding
    from score_st.studies.cells import work

    stop = threading.Event()
    meshes = [sharding.mesh(devices=[device]) for device in jax.local_devices()]
    if len(meshes) == 1:
        return work(cells, out, meshes[0], after, stop)
    with ThreadPoolExecutor(len(meshes)) as pool:
        try:
            for future in [pool.submit(work, cells, out, mesh, after, stop) for mesh in meshes]:
                future.result()
        finally:
            stop.set()


@cli.command(parser)
def main(arguments: argparse.Namespace) -> None:
    """Runs the command on all devices."""
    import jax

    from score_st.runtime import sharding
    from score_st.runtime.workdir import check_writable
    from score_st.studies import cells as running
    from score_st.studies import definition, estimate, report, summary

    study = definition.read(arguments.study)
    out = arguments.out or arguments.study.parent / "results" / arguments.study.stem
    if ":/" in str(out):
        raise ConfigError(f"--out {out}: should be a folder; machines share it by a network file system")
    cells = [cell for cell in study.cells if fnmatch.fnmatchcase(cell.name, arguments.cells)]
    if not cells:
        names = ", ".join(cell.name for cell in study.cells)
        raise ConfigError(f"--cells {arguments.cells}: no such cell; choose from {names}")
    if arguments.dry_run:
        return estimate.show(cells, out, sharding.mesh(devices=jax.local_devices()[:1]))
    check_writable(out, "name another folder with --out")
    lock = threading.Lock()

    def report_now() -> None:
        with lock:
            report.write(study, out)

    if not arguments.report_only:
        summary.register(study, out)

        def after(cell: definition.Cell) -> None:
            seconds = running.Results(cell, out).seconds()
            print(f"{cell.name}: {len(seconds)} seeds in {clock(sum(seconds))}", flush=True)
            report_now()

        run(cells, out, after)
    report_now()
    print(f"wrote {out / 'study.html'}")


if __name__ == "__main__":
    cli.run(main)
