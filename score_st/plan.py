"""`python -m score_st.plan`: does a program fit on TPUs that are not there, what does it move, how long might it take.

The program of training, evaluation or sampling is compiled by the TPU's own compiler (libtpu) for a topology; no TPU
is needed. Memory, FLOPs and communication are the compiler's. Times are a roofline's and not measured.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from score_st import cli, experiment, hlo, sample, state, tpu, train
from score_st import eval as evaluation
from score_st.config import ConfigError, flatten, load

EXAMPLES = """\
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:2x4 \\
      --config.model.dtype=bfloat16
  python -m score_st.plan --config configs/ve/celebahq/uncsnpp_st.py --topology v5e:4x4 --search
  python -m score_st.plan --config configs/vp/CIFAR10/*.py --topology v5e:4x4 v4:2x2x2 --search --table plans.md
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:4x4 --what sample

plans are kept by program and topology in ~/.cache/score_st/plans: the same again takes seconds"""
CACHE = Path("~/.cache/score_st/plans")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to compile.

    Attributes:
      lowered: for the topology.
      images: that a chip works on at a time.
      forward: FLOPs of the network on them, counted before compilation.
      loops: how often the part that counts runs in a step; XLA counts FLOPs of a loop once.
      passes: of the matrix unit for a product.
      state: bytes a chip whatever the number of images.
    """

    lowered: jax.stages.Lowered
    state: int
    images: int
    forward: float
    loops: int = 1
    passes: int = 1


def forward_flops(made: experiment.Experiment, images: int) -> float:
    x, label = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((images, *made.image_shape), (images,)))
    network = jax.jit(lambda params, x, label: made.apply(params)(x, label, None))
    return network.lower(made.abstract_state.params, x, label).cost_analysis()["flops"]


def size(tree) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def on(sharding, tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def train_job(config, devices) -> Job:
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    recipe = train.recipe_from_config(config, len(devices))
    made, whole = recipe.experiment, state.replicated(mesh)
    images = jax.ShapeDtypeStruct((config.training.batch_size, *made.image_shape), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(functools.partial(train.train_step, recipe=recipe), donate_argnums=0, out_shardings=(whole, whole))
    lowered = step.lower(on(whole, made.abstract_state), on(state.sharded(mesh), images), on(whole, key))
    share, micro = config.training.batch_size // len(devices), config.optim.num_micro_batch
    return Job(lowered, size(made.abstract_state), share, forward_flops(made, share), micro)


def eval_job(config, devices) -> Job:
    """The likelihood of one group of images; each device has its own."""
    made = experiment.from_config(config)
    group = config.eval.group or config.eval.batch_size // len(devices)
    state.check_divisible("eval.batch_size", config.eval.batch_size, len(devices) * group, "the number of devices")
    one = state.replicated(Mesh(np.array(devices[:1]), ("data",), axis_types=(AxisType.Auto,)))
    images = jax.ShapeDtypeStruct((group, *made.image_shape), jnp.uint8)
    indices, key = jax.ShapeDtypeStruct((group,), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    arguments = made.abstract_state.ema, images, indices, key, jax.ShapeDtypeStruct((), bool)
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(evaluation.from_config(config, made).nll).lower(*on(one, arguments))
    passes = 1 if config.model.dtype == "bfloat16" else 6
    return Job(lowered, size(made.abstract_state.ema), group, forward_flops(made, group), passes=passes)


def sample_job(config, devices) -> Job:
    """One group of images; each device has its own."""
    sample.check(config)
    made, group = experiment.from_config(config), config.sampling.group
    one = state.replicated(Mesh(np.array(devices[:1]), ("data",), axis_types=(AxisType.Auto,)))
    indices = jax.ShapeDtypeStruct((group,), jnp.int32)
    lowered = sample.generator(config, made, 0).lower(*on(one, (made.abstract_state.ema, indices)))
    return Job(lowered, size(made.abstract_state.ema), group, forward_flops(made, group))


def compile(job: Job) -> dict:
    """What the compiler says: HBM in bytes, and of a step FLOPs, bytes of HBM, their sources and collectives."""
    began = time.perf_counter()
    try:
        compiled = job.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        units = {"K": 2**10, "M": 2**20, "G": GIB}
        used = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        needed, limit = (float(used[i]) * units[used[i + 1]] for i in (1, 3))
        return {"fits": False, "hbm": needed, "hbm_limit": limit, "seconds": time.perf_counter() - began}
    memory, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
    parts = ("argument", "output", "temp", "generated_code")
    traffic = program.traffic()
    return {
        "fits": True,
        "hbm": sum(getattr(memory, f"{part}_size_in_bytes") for part in parts) - memory.alias_size_in_bytes,
        "flops": compiled.cost_analysis()["flops"] * job.loops,
        "bytes": sum(traffic.values()),
        "xla_bytes": compiled.cost_analysis()["bytes accessed"],
        "sources": dict(sources(traffic).most_common(12)),
        "collectives": [dataclasses.asdict(c) for c in program.collectives()],
        "seconds": time.perf_counter() - began,
    }


def sources(traffic: collections.Counter) -> collections.Counter:
    """By direction and the last names of the scope, without the numbers of modules: "backward GroupNorm_0/mul"."""
    found = collections.Counter()
    for name, size in traffic.items():
        way = "backward " if "transpose(" in name else "forward " if "jvp(" in name else ""
        found[way + "/".join(name.split("/")[-2:]) if name else "other"] += size
    return found


def ladder(config, what: str, chips: int) -> Iterator[tuple[dict, float, int]]:
    """Settings that take less memory, each with those before, dearer from step to step.

    Yields:
      The settings; roughly what is left of the memory that is not state; devices that share the state.
    """
    if what != "train":
        key = {"eval": "eval.group", "sample": "sampling.group"}[what]
        group = flatten(config)[key] or config.eval.batch_size // chips
        for by in (n for n in range(2, group + 1) if group % n == 0):
            yield {key: group // by}, 1 / by, 1
        return
    settings, left, share = {}, 1.0, config.training.batch_size // chips // config.optim.num_micro_batch
    share //= 1 + config.training.mixed  # whose halves are not split
    if config.model.dtype != "bfloat16":
        settings, left = settings | {"model.dtype": "bfloat16"}, left / 2
        yield settings, left, 1
    if config.training.remat == "none":
        settings, left = settings | {"training.remat": "blocks"}, left / 2
        yield settings, left, 1
    for by in (n for n in range(2, share + 1) if share % n == 0):
        settings = settings | {"optim.num_micro_batch": by * config.optim.num_micro_batch}
        yield settings, left / by, 1
    if config.training.fsdp < chips:
        yield settings | {"training.fsdp": chips}, left / max(share, 1), chips // config.training.fsdp


JOBS: dict[str, Callable] = {"train": train_job, "eval": eval_job, "sample": sample_job}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}


def write(path: Path, text: str):
    try:
        cli.write(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror}); name a file that can") from error


def plan(path: str, overrides: dict[str, str], where: tpu.Topology, what: str, cache: Path) -> dict:
    """The plan of one program, from the cache if it is there; as JSON has it."""
    config = load(path, overrides)
    job = JOBS[what](config, where.devices())
    key = json.dumps([job.lowered.as_text(), where.name, what, versions()])
    file = cache.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if file.exists():
        made = json.loads(file.read_text())
    else:
        made = compile(job) | {"versions": versions()}
        write(file, json.dumps(made, indent=1))
    about = {"config": path, "overrides": overrides, "topology": where.name, "what": what, "file": str(file)}
    numbers = {"state": job.state, "images": job.images, "forward": job.forward, "passes": job.passes}
    if what == "train":
        numbers |= {"batch_size": config.training.batch_size, "n_iters": config.training.n_iters}
    result = about | numbers | made
    if made["fits"]:
        result["estimate"] = tpu.estimate(where, numbers, made)
    return result


def options(result: dict, config, where: tpu.Topology) -> Iterator[tuple[dict, float]]:
    """Settings down the ladder from a plan that does not fit, with the HBM that they would roughly need."""
    rest = result["hbm"] - result["state"]
    for settings, left, sharing in ladder(config, result["what"], math.prod(where.shape)):
        yield settings, result["state"] / sharing + rest * left


def search(path: str, overrides: dict[str, str], where: tpu.Topology, what: str, cache: Path) -> Iterator[dict]:
    """Plans down the ladder, the last of which fits if one does; what clearly can't fit is not compiled."""
    result = plan(path, overrides, where, what, cache)
    yield result
    while not result["fits"]:
        config = load(path, overrides)
        better = (made for made, hbm in options(result, config, where) if hbm < 0.98 * result["hbm_limit"])
        settings = next(better, None)
        if settings is None:
            return
        overrides = overrides | {key: str(value) for key, value in settings.items()}
        result = plan(path, overrides, where, what, cache)
        yield result


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def show(result: dict, where: tpu.Topology):
    """The plan in words."""
    changed = "".join(f" --config.{key}={value}" for key, value in result["overrides"].items())
    print(f"{result['what']} {result['config']}{changed} on {where.name}, {math.prod(where.shape)} chips:")
    print(f"  {result['images']} images a chip; compiled in {result['seconds']:.0f} s; {result['file']}")
    if not result["fits"]:
        needed, limit = gib(result["hbm"]), gib(result["hbm_limit"])
        print(f"  does not fit: needs {needed} of {limit} GiB of HBM; {gib(result['state'])} whatever the batch")
        for settings, hbm in options(result, load(result["config"], result["overrides"]), where):
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
for a chip and step; the time is a roofline's, not measured, and a lower bound:

    {formula}

Chips and links: `score_st/tpu.py`. Made, and gone on with, by

    {command}

| configuration | topology | settings | batch | a chip | HBM [GiB] | TFLOP | GB | ms | bound by | MFU | steps | days |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def row(result: dict, where: tpu.Topology) -> str:
    """Of the table, for a plan of training."""
    settings = " ".join(f"{key}={value}" for key, value in result["overrides"].items()) or "none"
    start = [result["config"], where.name, settings, result["batch_size"], result["images"]]
    if not result["fits"]:
        limit = gib(result["hbm_limit"])
        return _cells(*start, f"{gib(result['hbm'])}, above {limit}", "", "", "", "", "", result["n_iters"], "")
    times = result["estimate"]
    hbm = f"{gib(result['hbm'])} of {where.chip.hbm}"
    numbers = f"{result['flops'] / 1e12:.2f}", f"{result['bytes'] / 1e9:.1f}", f"{1e3 * times['step']:.1f}"
    days = f"{times['step'] * result['n_iters'] / 86400:.1f}"
    return _cells(*start, hbm, *numbers, times["bound"], f"{times['mfu']:.0%}", result["n_iters"], days)


def _cells(*cells) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def main(argv: list[str] | None = None):
    parser = cli.Parser(
        prog="python -m score_st.plan",
        description="Compiles a program for TPUs that need not be there: memory, FLOPs, communication, a rough time.",
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="configurations, see configs/")
    parser.add_argument("--topology", nargs="+", required=True, metavar="NAME", help="v5e:4x4, v4:2x2x2, ...")
    parser.add_argument("--what", choices=list(JOBS), default="train", help="the program (default train)")
    parser.add_argument("--search", action="store_true", help="change settings until it fits")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help=f"of plans (default {CACHE})")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all that is printed, rewritten after each plan")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="of the last plan of each, rewritten likewise")
    parser.add_argument("--config.KEY", dest="_", metavar="VALUE", help="another value for a key")
    overrides, rest = cli.overrides(argv)
    arguments = parser.parse_args(rest)
    if arguments.table and arguments.what != "train":
        raise ConfigError(f"--table {arguments.table}: is of training; --out FILE.json would do for others")
    jax.config.update("jax_platforms", "cpu")
    places = [tpu.topology(name) for name in arguments.topology]
    results, rows = [], []
    command = " ".join(["python -m score_st.plan", *(sys.argv[1:] if argv is None else argv)])
    for path, where in itertools.product(arguments.config, places):
        for result in search(path, overrides, where, arguments.what, arguments.cache):
            show(result, where)
            results.append(result)
            if arguments.out:
                write(arguments.out, json.dumps(results, indent=1))
            if not arguments.search:
                break
        if arguments.table:
            rows.append(row(result, where))
            write(arguments.table, HEADER.format(formula=tpu.FORMULA, command=command) + "".join(rows))


if __name__ == "__main__":
    cli.run(main)
