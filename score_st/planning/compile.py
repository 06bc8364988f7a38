"""Programs compiled for TPUs that need not be present, and what the compiler says about them."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from score_st.config import flatten, load
from score_st.evaluation import bits_per_dim, generation
from score_st.model import DiffusionModel
from score_st.planning import hlo, tpu
from score_st.runtime import sharding
from score_st.runtime.workdir import write_text
from score_st.training import step

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


def forward_flops(made: DiffusionModel, images: int) -> float:
    x, label = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((images, *made.image_shape), (images,)))
    network = jax.jit(lambda params, x, label: made.apply(params)(x, label, None))
    return network.lower(made.abstract_params, x, label).cost_analysis()["flops"]


def size(tree) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def on(sharding, tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def train_job(config, devices) -> Job:
    """One step; training.n_jitted_steps is how many of them a program has."""
    mesh = sharding.mesh(config.training.fsdp, devices)
    setup = step.from_config(config, mesh)
    made, batch, micro = setup.model, config.training.batch_size, config.optim.num_micro_batch
    images = jax.ShapeDtypeStruct((batch, *made.image_shape), jnp.uint8)
    lowered = step.jitted(setup).lower(setup.abstract_state, images, jax.eval_shape(lambda: jax.random.key(0)))
    shares = zip(jax.tree.leaves(setup.abstract_state), jax.tree.leaves(setup.state_shardings), strict=True)
    held = sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in shares)
    share = batch // len(devices)
    return Job(lowered, held, share, forward_flops(made, share), micro)


def eval_job(config, devices) -> Job:
    """The likelihood of one group of images; each device has its own."""
    made = DiffusionModel.from_config(config)
    group = config.eval.group or config.eval.batch_size // len(devices)
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, len(devices) * group, "the number of devices")
    one = sharding.replicated(sharding.mesh(devices=devices[:1]))
    images = jax.ShapeDtypeStruct((group, *made.image_shape), jnp.uint8)
    indices, key = jax.ShapeDtypeStruct((group,), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    arguments = made.abstract_params, images, indices, key, jax.ShapeDtypeStruct((), bool)
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(bits_per_dim.from_config(config, made).nll).lower(*on(one, arguments))
    return Job(lowered, size(made.abstract_params), group, forward_flops(made, group), passes=6)


def sample_job(config, devices) -> Job:
    """One group of images; each device has its own."""
    generation.check(config)
    made, group = DiffusionModel.from_config(config), config.sampling.group
    one = sharding.replicated(sharding.mesh(devices=devices[:1]))
    indices = jax.ShapeDtypeStruct((group,), jnp.int32)
    lowered = generation.generator(config, made, 0).lower(*on(one, (made.abstract_params, indices)))
    return Job(lowered, size(made.abstract_params), group, forward_flops(made, group))


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
        write_text(file, json.dumps(made, indent=1))
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
