"""The parts of the benchmark: each checks a subject, and returns a function that measures it."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_st.benchmarking.subject import Subject
from score_st.benchmarking.timing import Number, Numbers, measure
from score_st.config import ConfigError
from score_st.diffusion import samplers
from score_st.evaluation import generation, image_terms
from score_st.evaluation.runner import BatchRunner
from score_st.planning import utilization
from score_st.runtime import sharding
from score_st.training import loop
from score_st.training import step as stepping

Part = Callable[[], Numbers]
READ_AHEAD = 16  # batches before the reading is timed, twice as many as are buffered


def train_step(subject: Subject) -> Part:
    """Measures the train step as training does it: with random weights, images from the host, training.n_jitted_steps.

    TFLOP/s are those of a device, and count 3 forward passes of the network a step, as MFU does.
    """
    config, devices = subject.config, list(subject.mesh.devices.flat)
    setup = stepping.from_config(config, sharding.mesh(config.training.fsdp, devices))
    size, several = config.training.batch_size, config.training.n_jitted_steps

    def part() -> Numbers:
        stream = loop.stream(config, subject.images["train"])
        batches = [stream.inputs(i) for i in range(several)]
        steps, key = loop.compiled_steps(setup), jax.random.key(config.seed)
        create = jax.jit(setup.create, out_shardings=setup.state_shardings)
        state = [create(key)]

        def run(calls: int) -> None:
            for _ in range(calls):
                state[0], metrics = steps(state[0], batches, key)
            jax.block_until_ready(metrics)

        seconds = measure(run, subject.seconds, "train step").times(1 / several, "s", "lower")
        flops = 3 * utilization.forward_flops(setup.model, size // len(devices))
        numbers = {"seconds": seconds, "images_per_s": seconds.rate(size, "images/s")}
        numbers["tflops_per_s"] = seconds.rate(flops / 1e12, "TFLOP/s")
        if peak := utilization.peak(subject.device.device_kind, _arithmetic(subject), subject.chips):
            numbers["mfu"] = seconds.rate(flops / peak, "")
        if peak_bytes := (subject.device.memory_stats() or {}).get("peak_bytes_in_use"):
            numbers["memory"] = Number.of([peak_bytes / 2**30], "GiB", "lower")
        return numbers

    return part


def _arithmetic(subject: Subject) -> str:
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return utilization.arithmetic(subject.config.training.dtype, sharding.platform(subject.mesh), precision)


def _group(size: int, subject: Subject) -> int:
    """Returns how many images are computed together: as configured, where that divides a device's share."""
    share = subject.count // subject.mesh.size
    return size if size and share % size == 0 else share


def _counts(seconds: Number, nfe: np.ndarray) -> Numbers:
    """Returns the numbers of a batch of images with their network evaluations [B]."""
    return {
        "seconds_per_image": seconds.times(1 / len(nfe), "s", "lower"),
        "images_per_s": seconds.rate(len(nfe), "images/s"),
        "evaluations_per_s": seconds.rate(float(nfe.sum()), "NFE/s"),
        "nfe": Number.of(nfe.tolist(), "NFE", "lower"),
        "nfe_mean": Number.of([float(nfe.mean())], "NFE", "lower"),
    }


def nll_inputs(subject: Subject) -> tuple[BatchRunner, jax.stages.Wrapped, list[np.ndarray], tuple]:
    """Returns the runner, the jitted NLL, its columns and further arguments: those of `score_st.eval`."""
    config = subject.config
    evaluation = image_terms.from_config(config, subject.model)
    indices = np.arange(subject.count)
    test = subject.images["test"]
    images = np.asarray(test[indices % len(test)])
    run = BatchRunner(subject.params, subject.count, subject.mesh, _group(config.eval.group, subject))
    flow = jax.jit(lambda params, images, indices, from_x0, key: evaluation.nll(params, images, indices, key, from_x0))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    return run, flow, [images, indices], (not config.eval.residual, key)


def nll(subject: Subject) -> Part:
    """Measures the NLL of the first test images, with the noise and the precision that `score_st.eval` has."""
    image_terms.from_config(subject.config, subject.model)

    def part() -> Numbers:
        run, flow, columns, arguments = nll_inputs(subject)
        result: dict[str, Any] = {}

        def calls(count: int) -> None:
            for _ in range(count):
                result.update(run.batch(flow, columns, *arguments))

        with jax.default_matmul_precision("highest"):
            seconds = measure(calls, subject.seconds, "NLL")
        return _counts(seconds, np.asarray(result["nfe"]))

    return part


def with_sampler(config: ConfigDict, text: str) -> ConfigDict:
    """Returns a copy of the configuration with a sampler: ode, dpm_solver_2m@20 or ddim@quadratic@50 (steps, grid).

    Raises:
      ConfigError: there is no such sampler or grid.
    """
    name, *rest = text.split("@")
    changed = copy.deepcopy(config)
    steps = [word for word in rest if word.isdecimal()]
    grids = [word for word in rest if not word.isdecimal()]
    if not name or len(steps) > 1 or len(grids) > 1:
        raise ConfigError(f"--samplers {text}: should be a sampler, as in ode, dpm_solver_2m@20, ddim@quadratic@50")
    with changed.unlocked():
        if grids:
            changed.sampling.grid = grids[0]
        generation.with_sampler(changed, name, int(steps[0]) if steps else None)
    samplers.from_config(changed)
    return changed


def samples(subject: Subject, names: list[str]) -> Part:
    """Measures each of the samplers, by their names as `with_sampler` has them."""
    configs = {name: with_sampler(subject.config, name) for name in names}

    def part() -> Numbers:
        numbers: Numbers = {}
        for name, config in configs.items():
            group = _group(config.sampling.group, subject)
            run = BatchRunner(subject.params, subject.count, subject.mesh, group)
            generate = generation.generator(config, subject.model, config.seed)
            result: dict[str, Any] = {}

            def calls(count: int, run: Any = run, generate: Any = generate, result: dict = result) -> None:
                for _ in range(count):
                    result.update(run.batch(generate, [np.arange(subject.count)]))

            seconds = measure(calls, subject.seconds / len(configs), f"samples by {name}")
            numbers |= {f"{name} {key}": number for key, number in _counts(seconds, result["nfe"]).items()}
        return numbers

    return part


def reading(subject: Subject) -> Part:
    """Measures how fast batches are read: shuffled, by data.num_threads threads, as in training."""

    def part() -> Numbers:
        stream = loop.stream(subject.config, subject.images["train"])
        return {"images_per_s": reading_speed(stream, subject.seconds, "reading")}

    return part


def reading_speed(stream: Any, seconds: float, label: str) -> Number:
    """Returns the images per second of a `pipeline.Stream`."""
    batches = stream.batches(0, 10**9)
    for _ in range(READ_AHEAD):
        size = len(jax.tree.leaves(next(batches))[0])  # images, or with labels

    def run(calls: int) -> None:
        for _ in range(calls):
            next(batches)

    return measure(run, seconds, label).rate(size, "images/s")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A part by the name of --parts: what it measures in a few words, and the numbers that its bar charts show."""

    about: str
    charts: tuple[str, ...]


CHOICES = {
    "step": Choice("the train step", ("images_per_s",)),
    "nll": Choice("the likelihood of test images", ("seconds_per_image",)),
    "samples": Choice("images of each sampler", ("images_per_s",)),
    "reading": Choice("batches of training data", ("images_per_s",)),
    "formats": Choice("files of each kind, decoded each time", ("",)),
    "compile": Choice("compilation, cold and from the cache", ("",)),
}
DEFAULT = ("step", "nll", "samples", "reading", "compile")
