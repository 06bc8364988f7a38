"""What is measured of a trained network: rows (the weights, mostly) of figures."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.config import ConfigError
from score_st.data.images import Images
from score_st.evaluation import bits_per_dim, distances, generation, image_terms, loss_by_time, runner
from score_st.evaluation.extractors import EXTRACTORS, Extractor, Features
from score_st.evaluation.sample_quality import to_bytes
from score_st.model import DiffusionModel
from score_st.runtime import lease, resumable
from score_st.training.state import TrainState

Rows = Mapping[str, Mapping[str, float]]  # figures by row
WEIGHTS: dict[str, Callable[[TrainState], Any]] = {"ema": lambda state: state.ema, "raw": lambda state: state.params}
LEASE_SECONDS = 60.0  # without a sign of life after which what a process has claimed is free again
SEED = 0  # of all noise of the measures, the same for every cell and seed


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What a cell's seeds share.

    Attributes:
      config: of the cell.
      model: the diffusion model.
      images: by split.
      mesh: the devices.
      cache: a folder for what all cells share, such as features of the data.
    """

    config: ConfigDict
    model: DiffusionModel
    images: Mapping[str, Images]
    mesh: Mesh
    cache: Path

    @functools.cached_property
    def samples(self) -> "SharedSamples":
        """Samples of the model, drawn once for all measures."""
        return SharedSamples(self)


class SharedSamples:
    """Samples of one state's weights, kept until those of another state are drawn."""

    def __init__(self, setting: Setting) -> None:
        """Draws nothing yet."""
        self._setting = setting
        self._generate = generation.generator(setting.config, setting.model, SEED)
        self._state: TrainState | None = None
        self._drawn: dict[tuple[str, int], Images] = {}

    def __call__(self, weights: str, state: TrainState, num: int) -> Images:
        """Returns `num` samples of a state's weights, drawn with the noise of all cells.

        Raises:
          ConfigError: the sampler diverged.
        """
        if state is not self._state:
            self._state, self._drawn = state, {}
        if (weights, num) not in self._drawn:
            config, model, mesh = self._setting.config, self._setting.model, self._setting.mesh
            params = WEIGHTS[weights](state)
            self._drawn[weights, num], _ = generation.draw(config, model, params, num, SEED, mesh, self._generate)
        return self._drawn[weights, num]


@runtime_checkable
class Measure(Protocol):
    """A frozen dataclass, whose fields are stored beside its results."""

    @property
    def name(self) -> str:
        """What results are stored under; the measures of a part have different ones."""

    def prepare(self, setting: Setting) -> Callable[[TrainState], Rows]:
        """Returns the function of a state that measures; its programs are compiled once for all seeds."""

    def smaller(self, setting: Setting) -> tuple["Measure", float]:
        """Returns a measure that takes a part of the time, and how many times as long this one takes."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process has a folder, and keeps it from them meanwhile."""
    while True:
        claim = lease.Lease(folder, LEASE_SECONDS)
        with contextlib.suppress(lease.Taken):
            claim.acquire()
            break
    try:
        yield
    finally:
        claim.release()


def in_memory() -> resumable.JsonLines:
    """Returns results that are kept nowhere: the study stores the figures that follow from them."""
    return resumable.JsonLines(Path(os.devnull) / "none", {}, writes=False)


def image_runner(setting: Setting, params: Any, images: Images) -> runner.ImageRunner:
    """Returns the runner of weights over images, with the same noise for all weights."""
    section = setting.config.eval
    return runner.ImageRunner(params, images, section.batch_size, SEED, in_memory(), setting.mesh, section.group)


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """NLL and NELBO in bits/dim on test images.

    Attributes:
      images: how many, the first ones; 0 is all.
      eps: other smallest times at which the networks are evaluated, too.
      weights: whose figures there are.
    """

    images: int = 0
    eps: tuple[float, ...] = ()
    weights: tuple[str, ...] = ("ema", "raw")

    name = "bits_per_dim"

    def prepare(self, setting: Setting) -> Callable[[TrainState], Rows]:
        """See `Measure`: rows ema and raw, and "ema, ε = 0.01" for each of `eps`."""
        images = setting.images["test"][: self.images or None]
        own = image_terms.from_config(setting.config, setting.model)  # each compiles its own programs
        rows = {name: (name, own) for name in self.weights}
        for eps in self.eps:
            model = dataclasses.replace(setting.model, sde=setting.model.sde.with_smallest_time(eps))
            rows[f"ema, ε = {eps:g}"] = "ema", image_terms.from_config(setting.config, model)

        def measure(state: TrainState) -> Rows:
            figures: dict[str, dict[str, float]] = {}
            for row, (weights, evaluation) in rows.items():
                run = image_runner(setting, WEIGHTS[weights](state), images)
                with jax.default_matmul_precision("highest"):
                    result = bits_per_dim.compute(evaluation, run, setting.config.eval)
                figures[row] = {str(name): result[name] for name in ("nll", "nelbo") if name in result}
            return figures

        return measure

    def smaller(self, setting: Setting) -> tuple[Measure, float]:
        """See `Measure`."""
        return with_images(self, setting)


@dataclasses.dataclass(frozen=True)
class LossByTime:
    """What small and large times add to the NELBO, in bits/dim: ∫ (g²/σ²) ½‖σ s + z‖² dt on either side of a time.

    Attributes:
      images: how many test images, the first ones; 0 is all.
      split: the time.
    """

    images: int = 0
    split: float = 0.1

    name = "loss_by_time"

    def prepare(self, setting: Setting) -> Callable[[TrainState], Rows]:
        """See `Measure`."""
        images = setting.images["test"][: self.images or None]
        evaluation = image_terms.from_config(setting.config, setting.model)

        def measure(state: TrainState) -> Rows:
            rows = {}
            for name, weights in WEIGHTS.items():
                with jax.default_matmul_precision("highest"):
                    curve = loss_by_time.curve(evaluation, image_runner(setting, weights(state), images), 0)
                log_t, bits = np.log(curve["t"]), np.asarray(curve["bits"])
                below, above = integrals(log_t, bits, float(np.log(self.split)))
                rows[name] = {f"bits below t = {self.split:g}": below, f"bits above t = {self.split:g}": above}
            return rows

        return measure

    def smaller(self, setting: Setting) -> tuple[Measure, float]:
        """See `Measure`."""
        return with_images(self, setting)


def with_images(measure: Any, setting: Setting) -> tuple[Measure, float]:
    """Returns a measure on one batch of its test images, and how many batches it takes."""
    batch = setting.config.eval.batch_size
    count = min(measure.images or np.inf, len(setting.images["test"]))
    return dataclasses.replace(measure, images=batch), max(count / batch, 1.0)


def with_samples(measure: Any, setting: Setting) -> tuple[Measure, float]:
    """Returns a measure on one batch of its samples, and how many batches it takes."""
    num = min(setting.config.eval.batch_size, measure.num)
    return dataclasses.replace(measure, num=num), measure.num / num


def integrals(x: np.ndarray, y: np.ndarray, split: float) -> tuple[float, float]:
    """Returns the trapezoidal integrals of y over x below and above a value of x."""
    middle = np.interp(split, x, y)
    below, above = x < split, x > split
    left = np.trapezoid(np.append(y[below], middle), np.append(x[below], split))
    right = np.trapezoid(np.insert(y[above], 0, middle), np.insert(x[above], 0, split))
    return float(left), float(right)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Distances of samples to as many training images, by the features of networks.

    Attributes:
      num: samples, of the configuration's own sampler.
      features: entries of `EXTRACTORS`.
      metrics: of fid, which is the Fréchet distance, and kid.
      weights: whose samples.
    """

    num: int
    features: tuple[str, ...]
    metrics: tuple[str, ...] = ("fid", "kid")
    weights: tuple[str, ...] = ("ema", "raw")

    @property
    def name(self) -> str:
        """Two such measures of a part have different features."""
        return f"samples by {' and '.join(self.features)}"

    def prepare(self, setting: Setting) -> Callable[[TrainState], Rows]:
        """See `Measure`: rows ema and raw, and the floor: as many test images."""
        return self.of(setting, lambda row, state: setting.samples(row, state, self.num))

    def of(self, setting: Setting, draw: Callable[[str, TrainState], Images]) -> Callable[[TrainState], Rows]:
        """Returns the same for other samples, which `draw` returns for a row and a state."""
        compare = {name: self._distance(setting, EXTRACTORS[name]) for name in self.features}
        floor: dict[str, float] = {}
        for distance in compare.values():
            floor |= distance("test images", setting.images["test"][: self.num])

        def measure(state: TrainState) -> Rows:
            rows: dict[str, Mapping[str, float]] = {"test images": floor}
            for row in self.weights:
                try:
                    images = draw(row, state)
                except ConfigError:  # the sampler diverged
                    continue
                figures: dict[str, float] = {}
                for distance in compare.values():
                    figures |= distance("", images)
                rows[row] = figures
            return rows

        return measure

    def smaller(self, setting: Setting) -> tuple[Measure, float]:
        """See `Measure`."""
        return with_samples(self, setting)

    def _distance(self, setting: Setting, extractor: Extractor) -> Callable[[str, Images], dict[str, float]]:
        """Returns a function of a name, under which features are kept unless it is empty, and images."""
        params, digest = extractor.weights(None)
        network = extractor.network(extractor.resizing)
        features = Features.on_devices(network, params, setting.mesh, setting.config.eval.batch_size)
        data, levels = setting.config.data, setting.config.data.num_levels
        names = f"{data.dataset}-{data.image_size}-{self.num}-{extractor.name}-{digest[:8]}-{{}}.npz"
        stored = resumable.JobFiles(setting.cache, names.lower(), resumable.NPZ)

        def outputs(name: str, images: Images) -> Mapping[str, np.ndarray]:
            compute = functools.partial(features, to_bytes(images, levels, name), name or "features", ["features"])
            job = (name.replace(" ", "_"),)
            with contextlib.ExitStack() as stack:
                stack.enter_context(jax.default_matmul_precision("highest"))
                if name and job not in stored:
                    stack.enter_context(alone(setting.cache))
                return stored(job, compute) if name else compute()

        reference = outputs("train images", setting.images["train"][: self.num])

        def distance(name: str, images: Images) -> dict[str, float]:
            found, figures = outputs(name, images), {}
            if "fid" in self.metrics:
                moments = [side[key] for side in (found, reference) for key in ("mean", "covariance")]
                figures[extractor.figure("fid")] = distances.frechet(*moments)
            if "kid" in self.metrics:  # of all features at once, which has less noise than subsets
                both = found["features"], reference["features"]
                figures[extractor.figure("kid")] = distances.kid(*both, subsets=1, size=self.num)[0]
            return figures

        return distance
