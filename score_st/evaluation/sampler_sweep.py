"""Sample quality: the Fréchet distance to the training images, by sampler and evaluations or by the weights."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.diffusion import samplers
from score_st.evaluation import distances, generation, provenance, sample_quality
from score_st.evaluation.extractors import Features
from score_st.model import DiffusionModel
from score_st.runtime import progress
from score_st.runtime.resumable import JsonLines

PICTURES = 4  # images of a point that are kept

Points = dict[str, list[dict[str, Any]]]


def with_evaluations(config: ConfigDict, name: str, nfe: float, networks: int = 1) -> ConfigDict:
    """Returns a copy of the configuration for a sampler with about `nfe` network evaluations.

    Args:
      config: all settings.
      name: a sampler as --sampler has it, and perhaps @ and a grid.
      nfe: the evaluations, or for the ODE the tolerance.
      networks: evaluations for one of the score.
    """
    sampler, _, grid = name.partition("@")
    config = copy.deepcopy(config)
    with config.unlocked():
        if grid:
            config.sampling.grid = grid
        if sampler == "ode":
            config.sampling.update(rtol=nfe, atol=nfe)
    steps = samplers.from_config(generation.with_sampler(config, sampler, None))  # raises for an unknown name
    if isinstance(steps, samplers.PredictorCorrector):
        generation.with_sampler(config, None, max(round(nfe / max(steps.evaluations_per_step * networks, 1)), 1))
    return config


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep over samplers.

    Attributes:
      model: the diffusion model.
      params: its weights.
      num: images of a point.
      seed: image i is a function of the seed and i.
      distance: from uint8 images [N, H, W, C] to a number.
      mesh: the devices.
    """

    model: DiffusionModel
    params: Any
    num: int
    seed: int
    distance: Callable[[UInt8[np.ndarray, "N H W C"]], float]
    mesh: Mesh

    def point(self, config: ConfigDict, generate: Callable | None = None) -> dict[str, Any]:
        """Returns evaluations and distance (NaN if the sampler diverged), and the first images."""
        try:
            images, nfe = generation.draw(config, self.model, self.params, self.num, self.seed, self.mesh, generate)
        except ConfigError:
            blank = np.zeros((PICTURES, *self.model.image_shape), np.uint8)
            return {"nfe": np.nan, "distance": np.nan, "images": blank}
        return {"nfe": nfe, "distance": self.distance(images), "images": images[:PICTURES]}

    def __call__(self, variants: dict[tuple[str, float], ConfigDict], results: JsonLines, figure: str) -> Points:
        """Returns the points of each sampler, computed or stored.

        Args:
          variants: configurations by sampler and evaluations.
          results: where the points are stored.
          figure: the distance's name, for the progress.
        """
        points: Points = {}
        loop = progress.Loop("points", 0, len(variants), "points")
        for done, ((name, nfe), config) in enumerate(variants.items(), 1):
            point = results((name, nfe), functools.partial(self.point, config))
            points.setdefault(name, []).append(point)
            loop(done, f"{name}, {point['nfe']:.0f} evaluations: {figure} {point['distance']:.2f}")
        return points


def by_weights(
    weights: Iterable[Any], sweep: Sweep, config: ConfigDict, results: JsonLines, figure: str
) -> list[dict[str, Any]]:
    """Returns the distance of one sampler for several weights, computed or stored.

    Args:
      weights: with `params`, `step`, `name` and `width`, read one after the other.
      sweep: without parameters.
      config: of the sampler.
      results: where the points are stored.
      figure: the distance's name, for the progress.

    Returns:
      For each of the weights what they are, and the distance (NaN if the sampler diverged).
    """
    points = []
    generate = generation.generator(config, sweep.model, sweep.seed)  # one program for all
    for chosen in weights:
        about = {"weights": chosen.name, "step": chosen.step, "weights_crc32": provenance.checksum(chosen.params)}
        point = functools.partial(dataclasses.replace(sweep, params=chosen.params).point, config, generate)
        compute = lambda point=point: {key: value for key, value in point().items() if key != "images"}
        figures = {key: float(value) for key, value in results(tuple(about.values()), compute).items()}
        points.append(about | {"width": chosen.width} | figures)
        if results.writes and not progress.quiet:
            print(f"{chosen.name}: {figure} {figures['distance']:.2f}", flush=True)
    return points


def variants(
    config: ConfigDict,
    names: Iterable[str],
    counts: Iterable[int],
    tolerances: Iterable[float],
    networks: int = 1,
) -> dict[tuple[str, float], ConfigDict]:
    """Returns the configurations of a sweep by sampler and evaluations.

    For the adaptive solver, whose evaluations can't be chosen, they are by sampler and tolerance.
    """
    values = {name: tolerances if name == "ode" else counts for name in names}
    return {(name, nfe): with_evaluations(config, name, nfe, networks) for name in values for nfe in values[name]}


def distance_to_data(
    config: ConfigDict, features: Features, count: int | None
) -> Callable[[UInt8[np.ndarray, "N H W C"]], float]:
    """Returns a function from images to their Fréchet distance from the training images.

    Args:
      config: of the data.
      features: of images.
      count: how many training images, a fixed draw; None for all.
    """

    def moments(images: Any, label: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = sample_quality.to_bytes(images, config.data.num_levels, config.data.dataset)
        with jax.default_matmul_precision("highest"):
            result = features(pixels, label)
        return result["mean"], result["covariance"]

    @functools.cache
    def reference() -> tuple[np.ndarray, np.ndarray]:
        images = pipeline.load(config, "train")
        if count:
            images = images[np.sort(np.random.RandomState(0).permutation(len(images))[:count])]
        return moments(images, "features of the training images")

    return lambda images: distances.frechet(*moments(images, "features of samples"), *reference())
