"""From a data set to the batches of each step, as functions of the step.

Images are uint8 [N, H, W, C] with values 0 ... num_levels - 1 until they are on the device, see `preprocessing`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import Array, Bool, Int, Shaped, UInt8
from score_st.config import ConfigError, choose
from score_st.data import datasets, decoded_cache, download, preprocessing
from score_st.data.files import MissingFiles
from score_st.data.images import Images, LazyImages, Stack, without_unreadable
from score_st.data.labels import labels_of


def load(config: ConfigDict, split: str, strict: bool = True) -> Images:
    """Returns the images of `split`, "train" or "test": their prepared copy if there is one, or else the data set's.

    Missing files are downloaded first if data.download is set. Images that can't be read are left out if
    data.skip_unreadable is set, and otherwise are an error when they are read.

    Args:
      config: the whole configuration.
      split: "train" or "test".
      strict: whether the first image is decoded now, so that it is an error now if it can't be read.

    Raises:
      ConfigError: an unknown data set or dequantization, files that are missing or damaged, or images that are not as
        config.data says.
    """
    data = config.data
    choose(preprocessing.DEQUANTIZATIONS, data.dequantization, "data.dequantization")
    strict = strict and not data.skip_unreadable

    def read() -> Images:
        try:
            return datasets.read(config, split, strict)
        except MissingFiles:
            if not data.download:
                raise
            download.fetch(config)
            return datasets.read(config, split, strict)

    copy = decoded_cache.open_copy(config, split, read) if data.prepared else None
    images = read() if copy is None else copy
    _, height, width, channels = images.shape
    if height != width:
        short, long = sorted((height, width))
        raise ConfigError(
            f"config.data.image_size: {data.dataset} has images of {height}x{width}, and networks take squares; "
            f"cropping them to {short}x{short} or framing them to {long}x{long} would do"
        )
    for key, size in (("image_size", height), ("num_channels", channels)):
        if data[key] != size:
            raise ConfigError(f"config.data.{key}: {data.dataset} has {size}, not {data[key]}")
    _check_classes(config, images)
    if images.max() >= data.num_levels:
        raise ConfigError(
            f"config.data.num_levels: {data.dataset} has values up to {images.max()}; should be one more"
        )
    if data.skip_unreadable and isinstance(images, LazyImages):
        images = without_unreadable(images, f"{data.dataset} {split}", data.num_threads)
    return images


def _check_classes(config: ConfigDict, images: Images) -> None:
    """Raises ConfigError if the images have a class that the network does not have."""
    count, labels = config.model.num_classes, labels_of(images)
    if count and labels is not None and labels.max() >= count:
        raise ConfigError(
            f"config.model.num_classes={count}: {config.data.dataset} has a class {labels.max()}; "
            f"should be {labels.max() + 1}"
        )


def require_classes(config: ConfigDict, images: Images) -> None:
    """Raises ConfigError if a network is to learn classes from images that have none."""
    if config.model.num_classes and labels_of(images) is None:
        raise ConfigError(
            f"config.model.num_classes={config.model.num_classes}: {config.data.dataset} has no classes; should be 0"
        )


# images, or images and their labels
Batch = UInt8[np.ndarray, "B H W C"] | tuple[UInt8[np.ndarray, "B H W C"], Int[np.ndarray, " B"]]


@dataclasses.dataclass(frozen=True)
class Stream:
    """An endless stream of shuffled batches, in which batch i depends on (seed, i) only.

    Every epoch has each image once, in an order of its own.

    Attributes:
      images: those of a split.
      batch_size: over all processes.
      seed: of the order.
      part: the number of this process; it gets a contiguous part of every batch.
      parts: how many processes there are.
      threads: how many threads read ahead.
      labeled: whether `inputs` have the labels, for networks that are told the classes.
    """

    images: Images
    batch_size: int
    seed: int
    part: int = 0
    parts: int = 1
    threads: int = 2
    labeled: bool = False

    @functools.cached_property
    def _order(self) -> Any:
        import grain

        return grain.MapDataset.range(len(self.images)).seed(self.seed).shuffle().repeat()

    def _numbers(self, step: int) -> list[int]:
        """Returns the numbers of the images in this process's part of the batch of a step."""
        size = self.batch_size // self.parts
        first = step * self.batch_size + self.part * size
        return [self._order[first + i] for i in range(size)]

    def batch(self, step: int) -> UInt8[np.ndarray, "B H W C"]:
        """Returns this process's part of the batch of a step, B = batch_size / parts images."""
        try:
            return self.images[self._numbers(step)]
        except ConfigError as error:
            raise ConfigError(f"{error}{datasets.hint(self.images)}") from error

    def labels(self, step: int) -> Int[np.ndarray, " B"] | None:
        """Returns the classes of the images of `batch`, see `labels.labels_of`; None if no image has one."""
        labels = labels_of(self.images)
        return None if labels is None else labels[self._numbers(step)]

    def inputs(self, step: int) -> Batch:
        """Returns what the train step of that number is given: the images of `batch`, or (images, labels)."""
        images, labels = self.batch(step), self.labels(step) if self.labeled else None
        return images if labels is None else (images, labels)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Returns the `inputs` of steps start ... stop - 1, read ahead by threads."""
        import grain

        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=8)
        return iter(grain.MapDataset.range(start, stop).map(self.inputs).to_iter_dataset(options))


def padded(
    images: Shaped[Array, "N ..."] | Stack, batch_size: int
) -> Iterator[tuple[Shaped[np.ndarray, "B ..."], Bool[np.ndarray, " B"]]]:
    """Yields all images once and in order, in batches of exactly `batch_size`.

    The last one is filled up with its last image. A mask says which images of a batch count.
    """
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        mask = np.arange(batch_size) < len(batch)
        yield np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)]), mask
