"""Images: uint8 [N, H, W, C] from a source, batches as a function of the step, scaling on the device.

Pixels hold whole numbers 0 ... num_levels - 1 until they are on the device, where they are dequantised and scaled to
[0, 1] or (data.centered) [-1, 1].
"""

import dataclasses
import functools

import numpy as np

from score_st.config import ConfigError, choose
from score_st.data import datasets, decoded_cache, download, preprocessing
from score_st.data import images as pictures


def load(config, split: str) -> np.ndarray | pictures.Encoded:
    """Images uint8 [N, image_size, image_size, num_channels] of `split`, "train" or "test".

    Raises:
      ConfigError: an unknown data set or dequantisation, or images that are not as config.data says.
    """
    data = config.data
    choose(preprocessing.DEQUANTIZATIONS, data.dequantization, "data.dequantization")
    if data.num_threads < 0:
        raise ConfigError(f"config.data.num_threads={data.num_threads}: should be 0 or more")
    images = decoded_cache.opened(config, split) if data.prepared else None
    if images is not None:
        return images
    try:
        images = datasets.read(config, split)
    except datasets.Missing:
        if not data.download:
            raise
        download.fetch(config)
        images = datasets.read(config, split)
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
      threads: that read ahead.
    """

    images: np.ndarray | pictures.Encoded
    batch_size: int
    seed: int
    part: int = 0
    parts: int = 1
    threads: int = 2

    @functools.cached_property
    def _order(self):
        import grain

        return grain.MapDataset.range(len(self.images)).seed(self.seed).shuffle().repeat()

    def batch(self, step: int):
        """uint8 [batch_size / parts, H, W, C]."""
        share = self.batch_size // self.parts
        first = step * self.batch_size + self.part * share
        return self.images[[self._order[first + i] for i in range(share)]]

    def batches(self, start: int, stop: int):
        """The batches of steps start ... stop - 1, read ahead by threads."""
        import grain

        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=8)
        return iter(grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options))


def padded(images: np.ndarray, batch_size: int):
    """All images once in order: batches of exactly `batch_size`, with a mask [batch_size] of those that count."""
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        mask = np.arange(batch_size) < len(batch)
        yield np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)]), mask
