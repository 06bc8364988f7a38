"""`python -m score_st.plan`: does a program fit on TPUs, what does it move, and how long might a step take.

The program of training, evaluation or sampling is compiled for a topology by the TPU's own compiler, libtpu; no TPU
is needed. Memory, FLOPs and communication are the compiler's figures. Times are roofline estimates, not measurements.
"""

import argparse
import collections
import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from score_st import strict_json
from score_st.config import ConfigError, load
from score_st.planning import planner, tpu
from score_st.runtime import cli, places, storage
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:2x4
  python -m score_st.plan --config configs/ve/celebahq/uncsnpp_st.py --topology v5e:4x4 --search
  python -m score_st.plan --config configs/vp/CIFAR10/*.py --topology v5e:4x4 v4:2x2x2 --search --table plans.md
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:4x4 --what sample

a plan that is in the cache, ~/.cache/score_st/plans, takes seconds"""
HEADER = """\
# Plans for TPUs

Each program was compiled by libtpu, without a TPU. Memory, FLOPs and bytes to and from HBM are those of the compiled
program, per chip and step. (XLA's `bytes accessed` also counts vector memory, and is up to five times as large.) The
time is a roofline estimate, not a measurement. It leaves out overlap, and the time of the vector unit:

    {formula}

The figures of chips and links are in `score_st/planning/tpu.py`. The table was written by this command, which compiles
only the programs that are not in its cache:

    {command}

| config | topology | settings | batch | images/chip | HBM [GiB] | TFLOP | GB | ms | bound by | MFU | steps | days |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def gib(size: float) -> str:
    """Formats bytes as GiB."""
    return f"{size / planner.GIB:.2f}"


def flags(settings: dict[str, Any]) -> str:
    """Formats settings as the command line takes them."""
    return " ".join(f"--config.{key}={value}" for key, value in settings.items())


def show(result: dict[str, Any], topology: tpu.Topology) -> None:
    """Prints a plan."""
    request = " ".join(filter(None, (result["what"], result["config"], flags(result["overrides"]))))
    print(f"{request} on {topology.name}, {math.prod(topology.shape)} chips:")
    print(f"  {result['images']} images per chip; compiled in {result['seconds']:.0f} s; {result['file']}")
    state = f"{gib(result['state'])} GiB do not depend on the batch"
    if not result["fits"]:
        print(f"  does not fit: needs {gib(result['hbm'])} of {gib(result['hbm_limit'])} GiB of HBM; {state}")
        config = load(result["config"], result["overrides"])
        for settings, hbm in planner.options(result, config, topology):
            print(f"  would need roughly {gib(hbm)} GiB: {flags(settings)}")
        return
    sizes: collections.Counter[str] = collections.Counter()
    for collective in result["collectives"]:
        name = f"{collective['kind']} of {collective['types']} over {collective['group']} devices"
        sizes[name] += collective["bytes"] * collective["times"]
    print(f"  fits: {gib(result['hbm'])} of {topology.chip.hbm} GiB of HBM; {state}")
    print(f"  per chip and step: {result['flops'] / 1e12:.3g} TFLOP, {result['bytes'] / 1e9:.3g} GB to and from HBM")
    print(f"    ({result['xla_bytes'] / 1e9:.3g} GB by XLA's count, which includes vector memory)")
    for name, size in sizes.items():
        print(f"    {name}: {size / 1e6:.3g} MB")
    for name, size in list(result["sources"].items())[:8]:
        print(f"    {size / 1e9:6.2f} GB  {name}")
    times = result["estimate"]
    parts = ", ".join(f"{name} {1e3 * times[name]:.3g}" for name in ("arithmetic", "memory", "links"))
    print(f"  estimate, not measured: {1e3 * times['step']:.3g} ms per step ({parts}), bound by {times['bound']}")
    if result["what"] == "train":
        days = times["step"] * result["n_iters"] / 86400
        print(f"  MFU {times['mfu']:.0%}; {days:.2g} days for {result['n_iters']} steps")
    else:
        print("  a step is one of the solver or sampler: loops of unknown length count once")
    print(f"  {tpu.FORMULA}")


def row(path: str, topology: tpu.Topology, result: dict[str, Any] | None) -> str:
    """Returns a row of the table, for a plan of training."""
    cells = [path, topology.name] + [""] * 11
    if result is None:
        cells[2] = "not compiled yet"
    else:
        cells[2] = " ".join(f"{key}={value}" for key, value in result["overrides"].items()) or "none"
        hbm = f"{gib(result['hbm'])} of {topology.chip.hbm}"
        cells[3:6], cells[11] = (result["batch_size"], result["images"], hbm), result["n_iters"]
        if times := result.get("estimate"):
            cells[6:9] = f"{result['flops'] / 1e12:.2f}", f"{result['bytes'] / 1e9:.1f}", f"{1e3 * times['step']:.1f}"
            cells[9:11] = times["bound"], f"{times['mfu']:.0%}"
            cells[12] = f"{times['step'] * result['n_iters'] / 86400:.1f}"
        else:
            cells[5] = f"does not fit: {cells[5]}"
    return f"| {' | '.join(map(str, cells))} |\n"


def run(
    arguments: argparse.Namespace, overrides: dict[str, str], planners: list[planner.Planner], command: str
) -> None:
    """Makes all plans; the files of --out and --table are written again after each of them."""
    results: list[dict[str, Any]] = []
    table = HEADER.format(formula=tpu.FORMULA, command=command.replace(" --cached", ""))
    for path, one_topology in itertools.product(arguments.config, planners):
        result = None
        for result in itertools.islice(one_topology.search(path, overrides), None if arguments.search else 1):
            show(result, one_topology.topology)
            results.append(result)
            if arguments.out:
                write_text(arguments.out, strict_json.dumps(results, indent=1))
        table += row(path, one_topology.topology, result)
        if arguments.table:
            write_text(arguments.table, table)


def parser() -> cli.Parser:
    """Returns the parser of the command."""
    about = "Compiles a program for TPUs, without a TPU: memory, FLOPs, communication, a rough time."
    parser = cli.documented("plan", about, EXAMPLES)
    option = parser.add_argument_group("plan").add_argument
    cli.add_config_options(option, nargs="+", help="configurations, see configs/")
    option("--topology", nargs="+", required=True, metavar="NAME", help="v5e:4x4, v4:2x2x2, ...")
    option("--what", choices=list(planner.JOBS), default="train", help="the program (default train)")
    option("--search", action="store_true", help="change settings until the program fits")
    option(
        "--cache",
        type=Path,
        default=planner.CACHE,
        metavar="DIR",
        help=f"where plans are kept (default {planner.CACHE})",
    )
    option("--cached", action="store_true", help="skip programs that are not in the cache")
    option(
        "--out", type=places.file, metavar="FILE.json", help="a file for the plans; written again after each of them"
    )
    option("--table", type=places.file, metavar="FILE.md", help="a table with the last plan of each; likewise")
    return parser


def main(argv: list[str] | None = None, jobs: Mapping[str, planner.Lower] = planner.JOBS) -> None:
    """Runs the command; `jobs` are the programs of --what."""
    overrides, rest = cli.overrides(argv)
    arguments = parser().parse_args(rest)
    if arguments.table and arguments.what != "train":
        raise ConfigError(f"--table {arguments.table}: only for --what train; --out FILE.json serves all programs")
    jax.config.update("jax_platforms", "cpu")
    topologies = [tpu.topology(name) for name in arguments.topology]
    settings = arguments.what, arguments.cache, arguments.cached, jobs
    planners = [planner.Planner(topology, *settings) for topology in topologies]
    line = " ".join(["python -m score_st.plan", *(argv or sys.argv[1:])])
    try:
        with places.opened(arguments, storage.PATIENCE, []) as paths:
            vars(arguments).update(paths)
            run(arguments, overrides, planners, line)
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be written ({error.strerror}); name a file that can") from error


if __name__ == "__main__":
    cli.run(main)
