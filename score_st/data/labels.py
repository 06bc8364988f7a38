"""The classes of images, where a data set has them."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from score_st import strict_json
from score_st.array_types import Int, Shaped, UInt8
from score_st.config import ConfigError

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target", "y")  # of columns, the first that is there


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images uint8 [N, H, W, C] in an array, as the arrays of a data set are used.

    Attributes:
      images: in memory, or mapped into it.
    """

    images: UInt8[np.ndarray, "N H W C"]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.images.shape

    def __len__(self) -> int:
        """Returns N."""
        return len(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledImages(ArrayImages):
    """An array of images with the class of each, see `labeled`; indexed, it gives images alone.

    Attributes:
      labels: the class of each image, see `labels_of`.
    """

    labels: Int[np.ndarray, " N"]

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
    if isinstance(labels, list):  # of a file that may be damaged: lists in lists in lists may take forever
        numeric = all(label is None or isinstance(label, int | float) for label in labels)
        labels = [-1 if label is None else label for label in labels] if numeric else [""]
    whole = np.asarray(labels)
    fits = whole.shape == (count,) and whole.dtype.kind in "biuf"
    if not fits or (whole != np.floor(whole)).any() or (whole >= 2**31).any():
        kind = f"{whole.dtype}{list(whole.shape)}"
        raise ConfigError(f"{name}: its labels are {kind}; should be {count} whole numbers, one for each image")
    numbers = np.where(whole < 0, -1.0, whole).astype(np.int32)  # a float, as uint8 has no -1
    return numbers if (numbers >= 0).any() else None


def labeled(
    images: UInt8[np.ndarray, "N H W C"], labels: Any, name: str
) -> UInt8[np.ndarray, "N H W C"] | LabeledImages:
    """Returns an array of images with its labels, or as it is where there are none; see `class_numbers`."""
    numbers = class_numbers(labels, len(images), name)
    return images if numbers is None else LabeledImages(images, numbers)


def classes_of(folders: Iterable[str]) -> list[str]:
    """Returns the names of folders that are classes, sorted: two or more, and not 00000, 00001, … of tools."""
    names = sorted(set(folders))
    return [] if len(names) < 2 or all(re.fullmatch(r"\d{5}", name) for name in names) else names


def labels_of_files(
    names: list[str], classes: list[str], listed: bytes | None, source: str
) -> Int[np.ndarray, " N"] | None:
    """Returns the labels of image files: those that dataset.json lists, or else the numbers of their folders.

    Args:
      names: of the images, "folder/name.png".
      classes: of all splits, see `classes_of`: a label is the place of an image's first folder there, if all have one.
      listed: the content of dataset.json, which StyleGAN's and EDM's tools write: {"labels": [[name, 3], …]}, or null
        for none. An image that it leaves out has no class.
      source: the path of dataset.json, in errors.

    Raises:
      ConfigError: dataset.json is damaged, or has labels that are not whole numbers.
    """
    if listed is not None:
        try:
            pairs = strict_json.loads(listed).get("labels")
            table = {name.replace("\\", "/"): label for name, label in pairs or []}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f'{source}: should be {{"labels": [["folder/name.png", 3], ...]}} ({error})') from error
        return class_numbers([table.get(name) for name in names], len(names), source) if table else None
    numbers = {name: i for i, name in enumerate(classes)}
    labels = [numbers.get(name.partition("/")[0]) if "/" in name else None for name in names]
    return None if None in labels else class_numbers(labels, len(names), source)


def joined(parts: list[Int[np.ndarray, " _"] | None], counts: list[int]) -> Int[np.ndarray, " N"] | None:
    """Joins the labels of several files, of which some may have none; `counts` are their numbers of images."""
    if all(part is None for part in parts):
        return None
    pairs = zip(parts, counts, strict=True)
    return np.concatenate([np.full(count, -1, np.int32) if part is None else part for part, count in pairs])
