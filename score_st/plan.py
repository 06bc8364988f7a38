"""`python -m score_st.plan`: does a program fit on TPUs that are not there, what does it move, how long might it take.

The program of training, evaluation or sampling is compiled by the TPU's own compiler (libtpu) for a topology; no TPU
is needed. Memory, FLOPs and communication are the compiler's. Times are a roofline's and not measured.
"""

import collections
import itertools
import json
import math
import sys
from pathlib import Path

import jax

from score_st.config import ConfigError, load
from score_st.planning import compile as planner
from score_st.planning import tpu
from score_st.runtime import cli
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:2x4
  python -m score_st.plan --config configs/ve/celebahq/uncsnpp_st.py --topology v5e:4x4 --search
  python -m score_st.plan --config configs/vp/CIFAR10/*.py --topology v5e:4x4 v4:2x2x2 --search --table plans.md
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:4x4 --what sample

plans are kept by program and topology in ~/.cache/score_st/plans: the same again takes seconds"""


def gib(size: float) -> str:
    return f"{size / planner.GIB:.2f}"


def show(result: dict, where: tpu.Topology):
    """The plan in words."""
    changed = "".join(f" --config.{key}={value}" for key, value in result["overrides"].items())
    print(f"{result['what']} {result['config']}{changed} on {where.name}, {math.prod(where.shape)} chips:")
    print(f"  {result['images']} images a chip; compiled in {result['seconds']:.0f} s; {result['file']}")
    if not result["fits"]:
        needed, limit = gib(result["hbm"]), gib(result["hbm_limit"])
        print(f"  does not fit: needs {needed} of {limit} GiB of HBM; {gib(result['state'])} whatever the batch")
        for settings, hbm in planner.options(result, load(result["config"], result["overrides"]), where):
            text = " ".join(f"--config.{key}={value}" for key, value in settings.items())
            print(f"  would need roughly {gib(hbm)} GiB: {text}")
        return
    times = result["estimate"]
    each = collections.Counter()
    for c in result["collectives"]:
        each[f"{c['kind']} of {c['types']} over {c['group']}"] += c["bytes"] * c["times"]
    hbm = f"{gib(result['hbm'])} of {where.chip.hbm} GiB of HBM"
    print(f"  fits: {hbm}, of which {gib(result['state'])} whatever the batch")
    print(f"  a chip and step: {result['flops'] / 1e12:.3g} TFLOP, {result['bytes'] / 1e9:.3g} GB to and from HBM,")
    print(f"    {result['xla_bytes'] / 1e9:.3g} GB by XLA's count, which takes in vector memory")
    for name, bytes in each.items():
        print(f"    {name}: {bytes / 1e6:.3g} MB")
    for name, bytes in list(result["sources"].items())[:8]:
        print(f"    {bytes / 1e9:6.2f} GB  {name}")
    shown = ", ".join(f"{name} {1e3 * times[name]:.3g}" for name in ("arithmetic", "memory", "links"))
    print(f"  estimate, not measured: {1e3 * times['step']:.3g} ms a step ({shown}), bound by {times['bound']}")
    if result["what"] == "train":
        days = times["step"] * result["n_iters"] / 86400
        print(f"  MFU {times['mfu']:.0%}; {days:.2g} days for {result['n_iters']} steps")
    else:
        print("  a step is a step of the solver or sampler: loops whose length is not known count once")
    print(f"  {tpu.FORMULA}")


HEADER = """\
# Plans

Compiled for TPUs by libtpu, without a TPU. Memory, FLOPs and bytes to and from HBM are those of the compiled program,
for a chip and step (XLA's `bytes accessed` counts vector memory too, and is up to five times that). The time is a
roofline's, not measured; what overlaps, and the time of the vector unit, are left out:

    {formula}

Chips and links: `score_st/tpu.py`. Made, and gone on with where rows are missing, by

    {command}

| configuration | topology | settings | batch | a chip | HBM [GiB] | TFLOP | GB | ms | bound by | MFU | steps | days |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def row(path: str, where: tpu.Topology, found: list[dict]) -> str:
    """Of the table, for the last plan of training."""
    cells = [path, where.name] + [""] * 11
    if not found:
        cells[2] = "not compiled yet"
    else:
        result = found[-1]
        cells[2] = " ".join(f"{key}={value}" for key, value in result["overrides"].items()) or "none"
        hbm = f"{gib(result['hbm'])} of {where.chip.hbm}"
        cells[3:6], cells[11] = (result["batch_size"], result["images"], hbm), result["n_iters"]
        if times := result.get("estimate"):
            cells[6:9] = f"{result['flops'] / 1e12:.2f}", f"{result['bytes'] / 1e9:.1f}", f"{1e3 * times['step']:.1f}"
            cells[9:11] = times["bound"], f"{times['mfu']:.0%}"
            cells[12] = f"{times['step'] * result['n_iters'] / 86400:.1f}"
        else:
            cells[5] = f"does not fit: {cells[5]}"
    return f"| {' | '.join(map(str, cells))} |\n"


def run(arguments, overrides: dict[str, str], places: list[tpu.Topology], command: str):
    """All plans, with --out and --table rewritten after each."""
    results, rows = [], HEADER.format(formula=tpu.FORMULA, command=command.replace(" --cached", ""))
    for path, where in itertools.product(arguments.config, places):
        found = []
        for result in planner.search(path, overrides, where, arguments):
            show(result, where)
            found.append(result)
            if arguments.out:
                write_text(arguments.out, json.dumps(results + found, indent=1))
        results += found
        rows += row(path, where, found)
        if arguments.table:
            write_text(arguments.table, rows)


def main(argv: list[str] | None = None):
    about = "Compiles a program for TPUs that need not be there: memory, FLOPs, communication, a rough time."
    parser = cli.documented("plan", about, EXAMPLES)
    option = parser.add_argument_group("plan").add_argument
    option("--config", nargs="+", required=True, metavar="FILE", help="configurations, see configs/")
    option("--config.KEY", dest="_", metavar="VALUE", help="another value for a key: --config.training.fsdp=16")
    option("--topology", nargs="+", required=True, metavar="NAME", help="v5e:4x4, v4:2x2x2, ...")
    option("--what", choices=list(planner.JOBS), default="train", help="the program (default train)")
    option("--search", action="store_true", help="change settings until it fits")
    option("--cache", type=Path, default=planner.CACHE, metavar="DIR", help=f"of plans (default {planner.CACHE})")
    option("--cached", action="store_true", help="leave out what is not in the cache")
    option("--out", type=Path, metavar="FILE.json", help="all that is printed, rewritten after each plan")
    option("--table", type=Path, metavar="FILE.md", help="of the last plan of each, rewritten likewise")
    overrides, rest = cli.overrides(argv)
    arguments = parser.parse_args(rest)
    if arguments.table and arguments.what != "train":
        raise ConfigError(f"--table {arguments.table}: is of training; --out FILE.json would do for others")
    jax.config.update("jax_platforms", "cpu")
    places = [tpu.topology(name) for name in arguments.topology]
    try:
        run(arguments, overrides, places, " ".join(["python -m score_st.plan", *(argv or sys.argv[1:])]))
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be written ({error.strerror}); name a file that can") from error


if __name__ == "__main__":
    cli.run(main)
