"""Images of samples in files, read as they are needed: npz shards, folders and zip files of pictures."""

import dataclasses
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from score_st.array_types import Shaped, UInt8
from score_st.config import ConfigError
from score_st.data.files import is_picture
from score_st.data.images import LazyImages
from score_st.reporting import pictures
from score_st.runtime import numpy_files

KEYS = ("samples", "arr_0")  # of images in an npz: ours and score_sde's, guided-diffusion's


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """The images of npz files, one after the other, as values from 0 to 255; one file is in memory at a time.

    Attributes:
      paths: of the files.
      key: of the array in each.
      ends: how many images there are up to the end of each file.
      shape: (N, H, W, C).
      levels: values in the files are 0 ... levels - 1.
    """

    paths: tuple[Path, ...]
    key: str
    ends: tuple[int, ...]
    shape: tuple[int, ...]
    levels: int
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4
    _latest: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    _lock: Any = dataclasses.field(default_factory=threading.Lock)

    def __len__(self) -> int:
        """Returns N."""
        return self.shape[0]

    def max(self) -> int:
        """Returns the largest value that there may be."""
        return 255

    def _file(self, number: int) -> UInt8[np.ndarray, "B H W C"]:
        """Returns the images of a file, which stay in memory until another is read.

        Raises:
          ConfigError: it is damaged, or has values above levels - 1.
        """
        with self._lock:
            if number not in self._latest:
                self._latest.clear()
                path = self.paths[number]
                try:
                    images = numpy_files.read_npz(path, [self.key])[self.key]
                except (OSError, ValueError, KeyError) as error:  # it may have changed since
                    raise unreadable(path, error) from error
                check_levels(images, self.levels, path)
                self._latest[number] = pictures.to_bytes(images, self.levels)
            return self._latest[number]

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        """Returns one image, or a stack of those that NumPy's indexing of the first axis selects."""
        numbers = np.arange(len(self))[index]
        if numbers.ndim == 0:
            return self[[int(numbers)]][0]
        owners = np.searchsorted(self.ends, numbers, side="right")
        selected = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for owner in np.unique(owners):
            first = self.ends[owner - 1] if owner else 0
            selected[owners == owner] = self._file(int(owner))[numbers[owners == owner] - first]
        return selected

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "N H W C"]:
        """Returns all images, for `np.asarray`."""
        return self[:].astype(dtype or self.dtype, copy=False)


Images = Shards | LazyImages


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some of the images, one after the other.

    Attributes:
      images: all.
      first: the number of the first.
      count: how many there are.
    """

    images: Images
    first: int
    count: int

    def __len__(self) -> int:
        """Returns how many there are."""
        return self.count

    def __getitem__(self, index: slice) -> UInt8[np.ndarray, "B H W C"]:
        """Returns a stack of some."""
        return self.images[np.arange(self.first, self.first + self.count)[index]]


def unreadable(path: Path | str, error: Exception) -> ConfigError:
    """Returns the error to raise for a file that is no npz."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
    return ConfigError(f"{path}: can't be read as an npz ({reason}); name one with an array samples")


def arrays_of(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and type of each array of an npz file, by its name, without reading their numbers.

    Raises:
      ConfigError: it is no npz file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        if not numpy_files.is_npz(path):
            array = numpy_files.map_npy(path)
            raise ValueError(f"it is one array, {array.dtype}{list(array.shape)}")
        return numpy_files.describe(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def check_images(shape: tuple[int, ...], dtype: np.dtype, source: Any) -> None:
    """Raises ConfigError unless an array is uint8 [N, H, W, 1 or 3]."""
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
        raise ConfigError(f"{source}: images are {dtype}{list(shape)}; should be uint8 [N, H, W, 1 or 3]")


def check_levels(images: Any, levels: int, source: Any) -> None:
    """Raises ConfigError unless the values of images are below `levels`."""
    if (largest := images.max()) >= levels:
        limit = f"should be below config.data.num_levels={levels}"
        raise ConfigError(f"{source}: has values up to {largest}; {limit}")


def shards(paths: list[Path], levels: int) -> Shards | None:
    """Returns the images of npz files; None if one has no array of images, or they differ in size."""
    shapes, keys = [], set()
    for path in paths:
        arrays = arrays_of(path)
        key = next((key for key in KEYS if key in arrays), None)
        if key is None:
            return None
        check_images(*arrays[key], path)
        shapes.append(arrays[key][0])
        keys.add(key)
    if len(keys) != 1 or len({shape[1:] for shape in shapes}) > 1:
        return None
    ends = tuple(np.cumsum([shape[0] for shape in shapes]).tolist())
    return Shards(tuple(paths), keys.pop(), ends, (ends[-1], *shapes[0][1:]), levels)


def is_pictures(path: Path) -> bool:
    """Whether a path is a zip file, or a folder that has pictures and no npz files."""
    if path.suffix.lower() == ".zip":
        return True
    if not path.is_dir() or any(path.glob("[!.]*.npz")):
        return False
    return any(is_picture(str(file)) for file in path.rglob("*"))
