"""What is measured: a configuration with its model, weights and images, all of which may be made up."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.array_types import UInt8
from score_st.data import pipeline
from score_st.data.files import MissingFiles
from score_st.data.images import Images
from score_st.evaluation import provenance
from score_st.model import DiffusionModel
from score_st.planning import utilization
from score_st.runtime import sharding
from score_st.training import stored_weights

MOST_BYTES = 2**27  # of synthetic images of a split
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What the parts of the benchmark measure.

    Attributes:
      config: all settings.
      mesh: the devices.
      model: of `config`.
      read_params: returns its weights.
      images: by split.
      count: images of an evaluation and of a batch of samples, over all devices.
      seconds: for each part.
      chips: peaks, see `utilization.peak`.
      about: where weights and images come from.
    """

    config: ConfigDict
    mesh: Mesh
    model: DiffusionModel
    read_params: Callable[[], Any]
    images: dict[str, Images]
    count: int
    seconds: float
    chips: Mapping[str, utilization.Peaks]
    about: dict[str, Any]

    @functools.cached_property
    def params(self) -> Any:
        """The weights, replicated; random ones are drawn when they are first needed."""
        return self.read_params()

    @property
    def device(self) -> jax.Device:
        """The first device."""
        return self.mesh.devices.flat[0]


def synthetic(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N H W C"]:
    """Returns made-up images in the shape of the data set: blocks of 4x4 with noise, at most 8,192."""
    data = config.data
    shape = (data.image_size, data.image_size, data.num_channels)
    count = max(2 * config.training.batch_size, min(8192, MOST_BYTES // int(np.prod(shape))))
    draw = np.random.default_rng(SPLITS.index(split))
    coarse = draw.integers(0, data.num_levels, (count, *(-(-size // 4) for size in shape[:2]), shape[2]), np.uint8)
    images = coarse.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]]
    flips = draw.integers(0, max(data.num_levels // 16, 2), images.shape, np.uint8)
    return np.minimum(images ^ flips, data.num_levels - 1).astype(np.uint8)


def read_images(config: ConfigDict) -> tuple[dict[str, Images], str]:
    """Returns the images of both splits, synthetic ones if the data set's files are missing, and what they are."""
    try:
        return {split: pipeline.load(config, split) for split in SPLITS}, config.data.dataset
    except MissingFiles:
        return {split: synthetic(config, split) for split in SPLITS}, f"synthetic ({config.data.dataset} is not here)"


def prepare(
    config: ConfigDict,
    mesh: Mesh,
    count: int,
    seconds: float,
    workdir: str | Path | None = None,
    step: int | None = None,
    chips: Mapping[str, utilization.Peaks] = utilization.CHIPS,
) -> Subject:
    """Reads images, and the EMA weights of a run or draws random ones.

    Args:
      config: all settings.
      mesh: the devices.
      count: images of an evaluation and of a batch of samples; 0: 4 a device on CPUs, otherwise eval.batch_size.
      seconds: for each part.
      workdir: of a run; None for random weights.
      step: of its checkpoint, the newest by default.
      chips: peaks, see `utilization.peak`.

    Raises:
      ConfigError: the configuration makes no sense, or there is no such checkpoint.
    """
    model = DiffusionModel.from_config(config)
    count = count or (4 * mesh.size if sharding.platform(mesh) == "cpu" else config.eval.batch_size)
    sharding.check_divisible("eval.batch_size", count, mesh.size, "the number of devices; so should --images be")
    images, source = read_images(config)
    if workdir is None:
        init = jax.jit(model.init, out_shardings=sharding.replicated(mesh))
        params = lambda: init(jax.random.key(config.seed))
        weights: dict[str, Any] = {"weights": "random"}
    else:
        read = stored_weights.read(workdir, config, model, mesh, step)
        params, weights = lambda: read.params, {"weights": read.name, "step": read.step}
    return Subject(config, mesh, model, params, images, count, seconds, chips, {"images": source} | weights)


def machine(subject: Subject) -> dict[str, Any]:
    """Returns what the numbers are from: devices, processor, arithmetic and versions."""
    platform, device = sharding.platform(subject.mesh), subject.device
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    trained = utilization.arithmetic(subject.config.training.dtype, platform, precision)
    return {
        "platform": platform,
        "device_kind": device.device_kind,
        "devices": subject.mesh.size,
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "arithmetic": {
            "step": trained,
            "nll": utilization.arithmetic("float32", platform, "highest"),
            "samples": utilization.arithmetic("float32", platform, precision),
        },
        "peak_flops_per_s": utilization.peak(device.device_kind, trained, subject.chips),
        **provenance.software(),
    }


def processor() -> str:
    """Returns the model of the CPU, where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
