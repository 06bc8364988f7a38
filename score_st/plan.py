"""`python -m score_st.plan`: does a program fit on TPUs that are not there, what does it move, how long might it take.

The program of training, evaluation or sampling is compiled by the TPU's own compiler (libtpu) for a topology; no TPU
is needed. Memory, FLOPs and communication are the compiler's. Times are a roofline's and not measured.
"""

import collections
import dataclasses
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

from score_st import cli, experiment, hlo, sample, state, step, tpu
from score_st import eval as evaluation
from score_st.config import ConfigError, flatten, load

EXAMPLES = """\
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:2x4
  python -m score_st.plan --config configs/ve/celebahq/uncsnpp_st.py --topology v5e:4x4 --search
  python -m score_st.plan --config configs/vp/CIFAR10/*.py --topology v5e:4x4 v4:2x2x2 --search --table plans.md
  python -m score_st.plan --config configs/vp/CIFAR10/ddpmpp_nll_st.py --topology v5e:4x4 --what sample

plans are kept by program and topology in ~/.cache/score_st/plans: the same again takes seconds"""
CACHE = Path("~/.cache/score_st/plans")
GIB = 2**30
UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# the compiler gives up early (a lower bound of what is needed), or when it has placed every buffer
FULL = re.compile(r"HLO temporaries \(\S+\) exceeds available HBM \(\S+\)|Used \S+ of \S+ hbm")


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
    """One step; training.n_jitted_steps is how many of them a program has."""
    mesh = state.mesh(config.training.fsdp, devices)
    recipe = step.from_config(config, mesh)
    made, batch, micro = recipe.experiment, config.training.batch_size, config.optim.num_micro_batch
    images = jax.ShapeDtypeStruct((batch, *made.image_shape), jnp.uint8)
    lowered = step.jitted(recipe).lower(made.abstract_state, images, jax.eval_shape(lambda: jax.random.key(0)))
    shares = zip(jax.tree.leaves(made.abstract_state), jax.tree.leaves(recipe.state_shardings), strict=True)
    held = sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in shares)
    share = batch // len(devices)
    return Job(lowered, held, share, forward_flops(made, share), micro)


def eval_job(config, devices) -> Job:
    """The likelihood of one group of images; each device has its own."""
    made = experiment.from_config(config)
    group = config.eval.group or config.eval.batch_size // len(devices)
    state.check_divisible("eval.batch_size", config.eval.batch_size, len(devices) * group, "the number of devices")
    one = state.replicated(state.mesh(devices=devices[:1]))
    images = jax.ShapeDtypeStruct((group, *made.image_shape), jnp.uint8)
    indices, key = jax.ShapeDtypeStruct((group,), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    arguments = made.abstract_state.ema, images, indices, key, jax.ShapeDtypeStruct((), bool)
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(evaluation.from_config(config, made).nll).lower(*on(one, arguments))
    return Job(lowered, size(made.abstract_state.ema), group, forward_flops(made, group), passes=6)


def sample_job(config, devices) -> Job:
    """One group of images; each device has its own."""
    sample.check(config)
    made, group = experiment.from_config(config), config.sampling.group
    one = state.replicated(state.mesh(devices=devices[:1]))
    indices = jax.ShapeDtypeStruct((group,), jnp.int32)
    lowered = sample.generator(config, made, 0).lower(*on(one, (made.abstract_state.ema, indices)))
    return Job(lowered, size(made.abstract_state.ema), group, forward_flops(made, group))


def compile(job: Job) -> dict:
    """What the compiler says: HBM in bytes, and of a step FLOPs, bytes of HBM, their sources and collectives."""
    began = time.perf_counter()
    try:
        compiled = job.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = FULL.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        needed, limit = (float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([KMGT])", used[0]))
        return {"fits": False, "hbm": needed, "hbm_limit": limit, "seconds": time.perf_counter() - began}
    memory, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
    parts = ("argument", "output", "temp", "generated_code")
    traffic, cost = program.traffic(), compiled.cost_analysis()
    return {
        "fits": True,
        "hbm": sum(getattr(memory, f"{part}_size_in_bytes") for part in parts) - memory.alias_size_in_bytes,
        "flops": cost["flops"] * job.loops,
        "bytes": sum(traffic.values()),
        "xla_bytes": cost["bytes accessed"],
        "sources": dict(hlo.sources(traffic).most_common(12)),
        "collectives": [dataclasses.asdict(c) for c in program.collectives()],
        "seconds": time.perf_counter() - began,
    }


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
    halves = 1 + config.training.mixed  # which are not split
    settings, left, share = {}, 1.0, config.training.batch_size // chips // config.optim.num_micro_batch // halves
    for key, value in (("dtype", "bfloat16"), ("remat", "blocks")):
        if config.training[key] != value:
            settings, left = settings | {f"training.{key}": value}, left / 2
            yield settings, left, 1
    for by in (n for n in range(2, share + 1) if share % n == 0):
        settings = settings | {"optim.num_micro_batch": by * config.optim.num_micro_batch}
        yield settings, left / by, 1
    if config.training.fsdp < chips:
        yield settings | {"training.fsdp": chips}, left / max(share, 1), chips // config.training.fsdp


JOBS: dict[str, Callable] = {"train": train_job, "eval": eval_job, "sample": sample_job}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}


def plan(path: str, overrides: dict[str, str], where: tpu.Topology, what: str, cache: Path, cached=False):
    """The plan of one program, from the cache if it is there (or None with `cached`); as JSON has it."""
    config = load(path, overrides)
    job = JOBS[what](config, where.devices())
    key = json.dumps([job.lowered.as_text(), where.name, what, versions(), step.TPU_OPTIONS])
    file = cache.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if file.exists():
        made = json.loads(file.read_text())
    elif cached:
        return None
    else:
        made = compile(job) | {"versions": versions()}
        cli.write(file, json.dumps(made, indent=1))
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


def search(path: str, overrides: dict[str, str], where: tpu.Topology, arguments) -> Iterator[dict]:
    """A plan, and with --search more of them, until one fits; what clearly can't is not compiled."""
    how = where, arguments.what, arguments.cache, arguments.cached
    while result := plan(path, overrides, *how):
        yield result
        if result["fits"] or not arguments.search:
            return
        possible = options(result, load(path, overrides), where)
        settings = next((made for made, hbm in possible if hbm < 0.98 * result["hbm_limit"]), None)
        if settings is None:
            return
        overrides = overrides | {key: str(value) for key, value in settings.items()}


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
        for result in search(path, overrides, where, arguments):
            show(result, where)
            found.append(result)
            if arguments.out:
                cli.write(arguments.out, json.dumps(results + found, indent=1))
        results += found
        rows += row(path, where, found)
        if arguments.table:
            cli.write(arguments.table, rows)


def main(argv: list[str] | None = None):
    about = "Compiles a program for TPUs that need not be there: memory, FLOPs, communication, a rough time."
    parser = cli.documented("plan", about, EXAMPLES)
    option = parser.add_argument_group("plan").add_argument
    option("--config", nargs="+", required=True, metavar="FILE", help="configurations, see configs/")
    option("--config.KEY", dest="_", metavar="VALUE", help="another value for a key: --config.training.fsdp=16")
    option("--topology", nargs="+", required=True, metavar="NAME", help="v5e:4x4, v4:2x2x2, ...")
    option("--what", choices=list(JOBS), default="train", help="the program (default train)")
    option("--search", action="store_true", help="change settings until it fits")
    option("--cache", type=Path, default=CACHE, metavar="DIR", help=f"of plans (default {CACHE})")
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
