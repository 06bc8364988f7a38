"""The classes of images, where a data set has them."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from score_st.array_types import Int, Shaped, UInt8
from score_st.config import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledImages:
    """An array of images with the class of each, see `labeled`; indexed, it gives images alone.

    Attributes:
      images: in memory, or mapped into it.
      labels: the class of each image, see `labels_of`.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int[np.ndarray, " N"]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.images.shape

    def __len__(self) -> int:
        """Returns N."""
        return len(self.images)

    def max(self) -> int:
        """Returns the largest value."""
        return int(self.images.max())

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        """Returns what NumPy's indexing of the images selects."""
        return self.images[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "N H W C"]:
        """Returns all images, for `np.asarray`."""
        return np.array(self.images, dtype or self.dtype, copy=copy)


def labels_of(images: Any) -> Int[np.ndarray, " N"] | None:
    """Returns the class of each image, int32: 0 ... K - 1, or -1 for none; None where no image has a class.

    Images of any kind carry their labels through `pipeline.load`: prepared copies have them, and images that can't be
    read are left out together with theirs. `Stream.labels` has those of a batch.
    """
    return getattr(images, "labels", None)


def class_numbers(labels: Any, count: int, name: str) -> Int[np.ndarray, " N"] | None:
    """Returns the labels of a data set as `labels_of` has them; None where no image has a class.

    Args:
      labels: whole numbers, where None or a negative number stands for no class; None if there are none.
      count: of images.
      name: of what the labels were read from, in errors.

    Raises:
      ConfigError: they are not `count` whole numbers.
    """
    if labels is None:
        return None
    whole = np.asarray([-1 if label is None else label for label in labels] if isinstance(labels, list) else labels)
    if whole.shape != (count,) or not (whole.dtype.kind in "iu" or np.array_equal(whole, np.round(whole))):
        kind = f"{whole.dtype}{list(whole.shape)}"
        raise ConfigError(f"{name}: its labels are {kind}; should be {count} whole numbers, one for each image")
    numbers = np.where(whole < 0, -1, whole).astype(np.int32)
    return numbers if (numbers >= 0).any() else None


def labeled(
    images: UInt8[np.ndarray, "N H W C"], labels: Any, name: str
) -> UInt8[np.ndarray, "N H W C"] | LabeledImages:
    """Returns an array of images with its labels, or as it is where there are none; see `class_numbers`."""
    numbers = class_numbers(labels, len(images), name)
    return images if numbers is None else LabeledImages(images, numbers)
