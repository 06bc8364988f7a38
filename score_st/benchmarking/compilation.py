"""Compile times: cold, and from JAX's persistent cache."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from score_st.benchmarking import parts
from score_st.benchmarking.subject import Subject
from score_st.benchmarking.timing import Number, Numbers
from score_st.config import ConfigError
from score_st.runtime import progress, sharding
from score_st.training import step as stepping

MOST = 5  # times that a program is compiled cold
SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_enable_compilation_cache": True,
}


@contextlib.contextmanager
def own_cache() -> Iterator[str]:
    """Replaces JAX's persistent compilation cache by an empty one in a temporary folder, which it yields."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *SETTINGS)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in {"jax_compilation_cache_dir": folder, **SETTINGS}.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield folder
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


@dataclasses.dataclass
class Times:
    """Seconds of each time that a program was traced, compiled cold, and loaded from the cache."""

    tracing: list[float] = dataclasses.field(default_factory=list)
    cold: list[float] = dataclasses.field(default_factory=list)
    cached: list[float] = dataclasses.field(default_factory=list)


def compile_twice(lower: Callable[[], Any], times: Times) -> Any:
    """Traces and compiles a program cold, then again from the cache, with JAX's caches in memory cleared before each.

    Args:
      lower: traces the program.
      times: where the seconds are added.

    Returns:
      The compiled program.
    """
    with own_cache():
        for seconds in (times.cold, times.cached):
            jax.clear_caches()
            began = time.perf_counter()
            lowered = lower()
            traced = time.perf_counter()
            compiled = lowered.compile()
            seconds.append(time.perf_counter() - traced)
            times.tracing.append(traced - began)
    return compiled


def programs(subject: Subject) -> dict[str, Callable[[], Any]]:
    """Returns functions that lower the train step and the NLL of a group of images."""
    config, devices = subject.config, list(subject.mesh.devices.flat)
    setup = stepping.from_config(config, sharding.mesh(config.training.fsdp, devices))
    images = jax.ShapeDtypeStruct((config.training.batch_size, *subject.model.image_shape), np.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def lower_nll() -> Any:
        run, flow, columns, arguments = parts.nll_inputs(subject)
        first = [column[: run.group] for column in columns]
        with jax.default_matmul_precision("highest"):
            return flow.lower(next(iter(run.params.values())), *jax.device_put(first, run.devices[0]), *arguments)

    return {"step": lambda: stepping.jitted(setup).lower(setup.abstract_state, images, key), "nll": lower_nll}


def compilation(subject: Subject) -> parts.Part:
    """Measures compile times of the train step and of the NLL.

    Raises:
      ConfigError: there are several processes, of which only the first writes the cache.
    """
    if jax.process_count() > 1:
        raise ConfigError("--parts compile: only for one process; leave it out")
    lowers = programs(subject)

    def part() -> Numbers:
        numbers: Numbers = {}
        for name, lower in lowers.items():
            times, began = Times(), time.perf_counter()
            show = progress.Loop(f"compile the {name}", 0, MOST, "times", seconds=0)  # a line a round: there are few
            while len(times.cold) < MOST and not (times.cold and _is_over(times, began, subject.seconds)):
                compiled = compile_twice(lower, times)
                show(len(times.cold), f"cold {times.cold[-1]:.2f} s, cached {times.cached[-1]:.2f} s")
            for kind, seconds in dataclasses.asdict(times).items():
                numbers[f"{name} {kind}"] = Number.of(seconds, "s", "lower")
            numbers[f"{name} program memory"] = Number.of([_gib(compiled)], "GiB", "lower")
        return numbers

    return part


def _is_over(times: Times, began: float, seconds: float) -> bool:
    """Whether another round would take longer than the time that a program has, half of `seconds`."""
    spent = time.perf_counter() - began
    return spent * (1 + 1 / len(times.cold)) > seconds / 2


def _gib(compiled: Any) -> float:
    """Returns the memory that the compiler has planned, on a device."""
    memory = compiled.memory_analysis()
    kinds = ("argument", "output", "temp", "generated_code")
    return (sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds) - memory.alias_size_in_bytes) / 2**30
