"""What the readers of data sets share: finding files, naming broken ones, splitting."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_st.array_types import Int
from score_st.config import ConfigError

SPLIT_NAMES = {"train": ("train",), "test": ("test", "valid", "validation", "val")}  # as files and folders have them


class MissingFiles(ConfigError):
    """The files of a data set are not where they are looked for."""


def find(config: ConfigDict, *names: str, folders: tuple[str, ...] = ("",)) -> Path:
    """Returns the first of `names` that exists in data.dir, or in one of its `folders`.

    Args:
      config: its data.dir is searched, the current directory if that is empty.
      names: files or folders, alternatives of each other; without any, data.dir itself.
      folders: relative to data.dir.

    Raises:
      MissingFiles: none of them exists.
    """
    root = Path(config.data.dir or ".")
    places = [root / folder for folder in folders]
    for path in (place / name for place in places for name in names or ("",)):
        if path.exists():
            return path
    where = f"config.data.dir={config.data.dir!r}"
    if not any(names):
        raise MissingFiles(f"{where}: no such file or folder")
    raise MissingFiles(f"{where}: no {' or '.join(names)} in {', '.join(map(str, places))}")


@contextlib.contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Turns any exception of a decoder or reader into a ConfigError that begins with `name`."""
    try:
        yield
    except (ConfigError, ImportError):
        raise
    except Exception as error:
        raise ConfigError(f"{name}: can't be read ({' '.join(str(error).split())})") from error


def held_out(count: int, split: str) -> Int[np.ndarray, " N"]:
    """Returns the indices of the images of `split` in a set without test images, in ascending order.

    A fixed random tenth, at most 10,000 images, is the test set.

    Raises:
      ConfigError: there are fewer than two images.
    """
    if count < 2:
        raise ConfigError(f"too few images to hold out a test set: {count}; should be 2 or more")
    order, test = np.random.RandomState(0).permutation(count), min(10_000, max(count // 10, 1))
    return np.sort(order[:-test] if split == "train" else order[-test:])


def image_files(root: Path) -> list[str]:
    """Returns the sorted names, relative to `root`, of all image files below it, without hidden ones."""
    Image.init()
    paths = (Path(folder, name).relative_to(root) for folder, _, names in os.walk(root) for name in names)
    visible = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(str(path) for path in visible if path.suffix.lower() in Image.EXTENSION)
