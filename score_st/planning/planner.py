"""Compiles programs for TPUs that need not be present, and searches for settings that fit their memory."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_st.config import flatten, load
from score_st.diffusion import losses, sde
from score_st.evaluation import generation, image_terms
from score_st.model import DiffusionModel
from score_st.planning import hlo, tpu
from score_st.planning.utilization import forward_flops
from score_st.runtime import resumable, sharding
from score_st.training import step

CACHE = Path("~/.cache/score_st/plans")
GIB = 2**30
UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# the compiler gives up early, with a lower bound of the memory needed, or after placing every buffer
OUT_OF_MEMORY = re.compile(r"HLO temporaries \(\S+\) exceeds available HBM \(\S+\)|Used \S+ of \S+ hbm")


@runtime_checkable
class Lowered(Protocol):
    """A lowered program, as `jax.stages.Lowered`."""

    def as_text(self) -> str:
        """Returns the program before optimization."""
        ...

    def compile(self) -> Any:
        """Returns the program as `jax.stages.Compiled`."""
        ...


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to compile for the chips of a topology.

    Attributes:
      lowered: the program.
      state: bytes per chip that do not depend on the number of images.
      images: images that a chip processes at a time.
      forward: FLOPs of a forward pass of the network for them, counted before compilation.
      loops: how often a step runs the loop that has most of its FLOPs; XLA counts the body of a loop once.
      passes: passes of the matrix unit per product.
    """

    lowered: Lowered
    state: int
    images: int
    forward: float
    loops: int = 1
    passes: int = 1


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _on_first(devices: list, *trees: Any) -> Any:
    """Places abstract arrays on the first device: in evaluation and sampling, each has images of its own."""
    first = sharding.replicated(sharding.mesh(devices=devices[:1]))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first), trees)


def _abstract_key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def train_job(config: ConfigDict, topology: tpu.Topology) -> Job:
    """Lowers one train step; a program of training has training.n_jitted_steps of them."""
    devices = topology.devices()
    setup = step.from_config(config, sharding.mesh(config.training.fsdp, devices))
    model, batch = setup.model, config.training.batch_size
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    lowered = step.jitted(setup).lower(setup.abstract_state, images, _abstract_key())
    leaves = zip(jax.tree.leaves(setup.abstract_state), jax.tree.leaves(setup.state_shardings), strict=True)
    state = sum(math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, layout in leaves)
    per_chip = batch // len(devices)
    return Job(lowered, state, per_chip, forward_flops(model, per_chip), config.optim.num_micro_batch)


def eval_job(config: ConfigDict, topology: tpu.Topology) -> Job:
    """Lowers the likelihood of one group of images."""
    devices = topology.devices()
    model = DiffusionModel.from_config(config)
    group = config.eval.group or config.eval.batch_size // len(devices)
    reason = f"{len(devices)} devices times groups of {group}"
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, len(devices) * group, reason)
    images = jax.ShapeDtypeStruct((group, *model.image_shape), jnp.uint8)
    indices, repeated = jax.ShapeDtypeStruct((group,), jnp.int32), jax.ShapeDtypeStruct((), bool)
    arguments = _on_first(devices, model.abstract_params, images, indices, _abstract_key(), repeated)
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(image_terms.from_config(config, model).nll).lower(*arguments)
    return Job(lowered, _bytes(model.abstract_params), group, forward_flops(model, group), passes=6)


def sample_job(config: ConfigDict, topology: tpu.Topology) -> Job:
    """Lowers the sampling of one group of images."""
    model, group = DiffusionModel.from_config(config), config.sampling.group
    indices = jax.ShapeDtypeStruct((group,), jnp.int32)
    arguments = _on_first(topology.devices(), model.abstract_params, indices)
    lowered = generation.generator(config, model, 0).lower(*arguments)
    return Job(lowered, _bytes(model.abstract_params), group, forward_flops(model, group))


Lower = Callable[[ConfigDict, tpu.Topology], Job]
JOBS: dict[str, Lower] = {"train": train_job, "eval": eval_job, "sample": sample_job}


def compile_job(job: Job) -> dict[str, Any]:
    """Compiles a program and returns what the compiler says about it, as JSON has it.

    If it fits: HBM in bytes, and for each step FLOPs, bytes to and from HBM, their sources, and collectives.
    """
    began = time.perf_counter()
    try:
        compiled = job.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = OUT_OF_MEMORY.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        needed, limit = (float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([KMGT])", used[0]))
        return {"fits": False, "hbm": needed, "hbm_limit": limit, "seconds": time.perf_counter() - began}
    memory, cost, program = compiled.memory_analysis(), compiled.cost_analysis(), hlo.Program(compiled.as_text())
    traffic = program.traffic()
    parts = ("argument", "output", "temp", "generated_code")
    return {
        "fits": True,
        "hbm": sum(getattr(memory, f"{part}_size_in_bytes") for part in parts) - memory.alias_size_in_bytes,
        "flops": cost["flops"] * job.loops,
        "bytes": sum(traffic.values()),
        "xla_bytes": cost["bytes accessed"],
        "sources": dict(hlo.by_scope(traffic).most_common(12)),
        "collectives": [dataclasses.asdict(collective) for collective in program.collectives()],
        "seconds": time.perf_counter() - began,
    }


def smaller_settings(config: ConfigDict, program: str, chips: int) -> Iterator[tuple[dict[str, Any], float, int]]:
    """Finds settings that need less and less memory, and more and more time.

    Yields:
      All changed settings; roughly the fraction left of the memory besides the state; devices that share the state.
    """
    if program != "train":
        key = {"eval": "eval.group", "sample": "sampling.group"}[program]
        group = flatten(config)[key] or config.eval.batch_size // chips
        for divisor in _divisors(group):
            yield {key: group // divisor}, 1 / divisor, 1
        return
    settings: dict[str, Any] = {}
    fraction, micro = 1.0, config.optim.num_micro_batch
    for name, value in (("dtype", "bfloat16"), ("remat", "blocks")):
        if config.training[name] != value:
            settings, fraction = settings | {f"training.{name}": value}, fraction / 2
            yield settings, fraction, 1
    together = losses.from_config(config, sde.from_config(config), groups=1).images_per_value  # are never split
    images = config.training.batch_size // chips // micro // together
    for divisor in _divisors(images):
        settings = settings | {"optim.num_micro_batch": divisor * micro}
        yield settings, fraction / divisor, 1
    if config.training.fsdp < chips:
        yield settings | {"training.fsdp": chips}, fraction / max(images, 1), chips // config.training.fsdp


def _divisors(number: int) -> Iterator[int]:
    return (divisor for divisor in range(2, number + 1) if number % divisor == 0)


def options(result: dict[str, Any], config: ConfigDict, topology: tpu.Topology) -> Iterator[tuple[dict, float]]:
    """Yields smaller settings than those of a plan that does not fit, and the HBM that they would roughly need."""
    rest = result["hbm"] - result["state"]
    for settings, fraction, sharing in smaller_settings(config, result["what"], math.prod(topology.shape)):
        yield settings, result["state"] / sharing + rest * fraction


def versions() -> dict[str, str]:
    """Returns the versions of the packages that a plan depends on."""
    packages = (name for name in ("jax", "jaxlib", "libtpu") if importlib.util.find_spec(name))
    return {name: importlib.metadata.version(name) for name in packages}


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans one kind of program for one topology.

    Attributes:
      topology: the chips.
      program: a key of `jobs`.
      cache: the folder of plans, one JSON file each.
      only_cached: leave out programs that are not in the cache.
      jobs: the functions that lower programs, by name.
    """

    topology: tpu.Topology
    program: str = "train"
    cache: Path = CACHE
    only_cached: bool = False
    jobs: Mapping[str, Lower] = dataclasses.field(default_factory=lambda: JOBS)

    def plan(self, path: str, overrides: dict[str, str]) -> dict[str, Any] | None:
        """Returns the plan of a configuration as JSON has it, or None if it should be in the cache and is not."""
        config = load(path, overrides)
        job = self.jobs[self.program](config, self.topology)
        identity = [job.lowered.as_text(), self.topology.name, self.program, versions(), step.TPU_OPTIONS]
        key = (hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],)
        results = resumable.JobFiles(self.cache.expanduser(), "{}.json", resumable.JSON)
        if self.only_cached and key not in results:
            return None
        compute = lambda: compile_job(job) | {"versions": versions()}
        analysis = results(key, compute, valid=lambda stored: isinstance(stored["fits"], bool))
        request = {"config": path, "overrides": overrides, "topology": self.topology.name, "what": self.program}
        numbers = {"state": job.state, "images": job.images, "forward": job.forward, "passes": job.passes}
        if self.program == "train":
            numbers |= {"batch_size": config.training.batch_size, "n_iters": config.training.n_iters}
        result = request | {"file": str(results.path(key))} | numbers | dict(analysis)
        if result["fits"]:
            result["estimate"] = tpu.estimate(self.topology, result)
        return result

    def search(self, path: str, overrides: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Yields plans with smaller and smaller settings until one fits; what clearly can't fit is not compiled."""
        while result := self.plan(path, overrides):
            yield result
            if result["fits"]:
                return
            possible = options(result, load(path, overrides), self.topology)
            settings = next((settings for settings, hbm in possible if hbm < 0.98 * result["hbm_limit"]), None)
            if settings is None:
                return
            overrides = overrides | {key: str(value) for key, value in settings.items()}
