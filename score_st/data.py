"""Images: uint8 [N, H, W, C] from a source, batches as a function of the step, scaling on the device.

Pixels hold whole numbers 0 ... num_levels - 1 until they are on the device, where they are dequantised and scaled to
[0, 1] or (data.centered) [-1, 1].
"""

import dataclasses
import functools
import gzip
import math
import zlib
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from score_st.config import ConfigError, choose


def digits(config, split: str) -> np.ndarray:
    """Scikit-learn's handwritten digits, 8x8x1 with values 0-16: 1,500 to train and 297 to test, a fixed draw."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)[..., None]
    order = np.random.RandomState(0).permutation(len(images))
    return images[order[:1500] if split == "train" else order[1500:]]


def read_idx(path: Path) -> np.ndarray:
    """A file of MNIST's idx format, packed by gzip or not: uint8 of any shape.

    Raises:
      ConfigError: it can't be read, or is no whole idx file of bytes.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: can't be read ({error}); should be a file of the original release") from error
    dims = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else -1  # 8 is the code of bytes
    sizes = content[4 : 4 + 4 * max(dims, 0)]
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist()
    if dims < 1 or len(shape) < dims or len(content) != 4 + 4 * dims + math.prod(shape):
        raise ConfigError(f"{path}: is no idx file of bytes, or cut off; should be a file of the original release")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def fashion_mnist(config, split: str) -> np.ndarray:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 and 10,000 images, 28x28 in a black frame to 32x32."""
    folders = [Path(config.data.dir or "."), Path("/usr/share/datasets/fashion-mnist")]
    stem = f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte"
    files = [folder / (stem + end) for folder in folders for end in ("", ".gz")]
    found = [file for file in files if file.is_file()]
    if not found:
        raise ConfigError(
            f"config.data.dir={config.data.dir!r}: no {stem} or {stem}.gz there or in {folders[1]}; it is in Debian's "
            "dataset-fashion-mnist and at github.com/zalandoresearch/fashion-mnist"
        )
    images = read_idx(found[0])
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ConfigError(f"{found[0]}: has shape {images.shape}; should be [N, 28, 28]")
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]


SOURCES = {"DIGITS": digits, "FASHION_MNIST": fashion_mnist}
DEQUANTIZATIONS = {"none": "x/(L-1)", "uniform": "(x + u)/L", "lossless": "x/(L-1), with a discretised decoder"}


def load(config, split: str) -> np.ndarray:
    """Images uint8 [N, image_size, image_size, num_channels] of `split`, "train" or "test".

    Raises:
      ConfigError: an unknown data set or dequantisation, or images that are not as config.data says.
    """
    data = config.data
    choose(DEQUANTIZATIONS, data.dequantization, "data.dequantization")
    images = choose(SOURCES, data.dataset, "data.dataset")(config, split)
    for key, size in (("image_size", images.shape[1]), ("num_channels", images.shape[3])):
        if data[key] != size:
            raise ConfigError(f"config.data.{key}: {data.dataset} has {size}, not {data[key]}")
    if images.max() >= data.num_levels:
        raise ConfigError(
            f"config.data.num_levels: {data.dataset} has values up to {images.max()}; should be one more"
        )
    return images


@dataclasses.dataclass(frozen=True)
class Stream:
    """An endless stream of shuffled batches; batch i is a function of (seed, i) alone.

    Attributes:
      images: [N, H, W, C].
      batch_size: over all processes.
      part, parts: this process and how many there are; each gets its contiguous share of every batch.
    """

    images: np.ndarray
    batch_size: int
    seed: int
    part: int = 0
    parts: int = 1

    @functools.cached_property
    def _order(self):
        return grain.MapDataset.range(len(self.images)).seed(self.seed).shuffle().repeat()

    def batch(self, step: int):
        """uint8 [batch_size / parts, H, W, C]."""
        share = self.batch_size // self.parts
        first = step * self.batch_size + self.part * share
        return self.images[[self._order[first + i] for i in range(share)]]

    def batches(self, start: int, stop: int):
        """The batches of steps start ... stop - 1, read ahead by threads."""
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return iter(grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options))


def padded(images: np.ndarray, batch_size: int):
    """All images once in order: batches of exactly `batch_size`, with a mask [batch_size] of those that count."""
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        mask = np.arange(batch_size) < len(batch)
        yield np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)]), mask


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Between integer images and what the networks are trained on.

    Attributes:
      num_levels, centered, dequantization: as in config.data.
    """

    num_levels: int
    centered: bool
    dequantization: str

    def forward(self, images, u):
        """Float x from uint8 images; u like x is uniform on [0, 1) and used by uniform dequantisation alone."""
        x = images.astype(u.dtype)
        x = (x + u) / self.num_levels if self.dequantization == "uniform" else x / (self.num_levels - 1)
        return 2 * x - 1 if self.centered else x

    def inverse(self, x):
        """uint8 images from float x, each pixel to the level whose values it lies among."""
        x = (x + 1) / 2 if self.centered else x
        levels = self.num_levels
        x = jnp.floor(x * levels) if self.dequantization == "uniform" else jnp.round(x * (levels - 1))
        return jnp.clip(x, 0, levels - 1).astype(jnp.uint8)


def scaler_from_config(config) -> Scaler:
    return Scaler(config.data.num_levels, config.data.centered, config.data.dequantization)


def random_flip(images, key):
    """Each image [H, W, C] of a batch mirrored left to right with probability ½."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
