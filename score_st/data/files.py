"""What the readers of data sets share: finding files, naming broken ones, splitting."""

import collections
import contextlib
import functools
import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_st.array_types import Int
from score_st.config import ConfigError

SPLIT_NAMES = {"train": ("train",), "test": ("test", "valid", "validation", "val")}  # as files and folders have them


# of Pillow's formats, those that it finds but can't decode, or hands to another program (Ghostscript) or an open list
REFUSED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


class MissingFiles(ConfigError):
    """The files of a data set are not where they are looked for."""


@functools.cache
def note(message: str) -> None:
    """Says something about a data set on stderr of process 0, once."""
    import jax  # takes seconds, which few readers of files need

    if jax.process_index() == 0:
        print(f"note: {message}", file=sys.stderr)


def find(config: ConfigDict, *names: str, folders: tuple[str, ...] = ("",)) -> Path:
    """Returns the first of `names` that exists in data.dir, or in one of its `folders`.

    Args:
      config: its data.dir is searched, the current directory if that is empty.
      names: files or folders, alternatives of each other; without any, data.dir itself.
      folders: relative to data.dir.

    Raises:
      MissingFiles: none of them exists.
      ConfigError: it is a pipe, a socket or a device.
    """
    root = Path(config.data.dir or ".")
    places = [root / folder for folder in folders]
    for path in (place / name for place in places for name in names or ("",)):
        if path.exists():
            if not path.is_file() and not path.is_dir():
                raise ConfigError(f"{path}: should be a file or a folder, not a pipe, a socket or a device")
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


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file; a pipe or a device, which may never end, is an OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe without a writer would wait
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        return file.read()


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the formats of pictures, in the order in which Pillow tries them."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in REFUSED)


def open_image(content: bytes) -> Image.Image:
    """Opens an image file of one of the `formats`; raises what Pillow raises."""
    return Image.open(io.BytesIO(content), formats=formats())


def is_picture(name: str) -> bool:
    """Whether a file's name ends as those of a format that Pillow can open."""
    known = (*formats(), "MPO")  # which is opened as JPEG
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in known


def split_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of the splits in `root`, by "train" and "test", whatever the case of their names.

    The first of the names in SPLIT_NAMES is taken; others are ignored, and that is said.

    Raises:
      ConfigError: one name is there in two cases.
    """
    with os.scandir(root) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    folders = {name: root / name for name in sorted(is_folder) if is_folder[name]}
    found = {
        split: [folders[key] for name in names for key in folders if key.lower() == name]
        for split, names in SPLIT_NAMES.items()
    }
    for paths in found.values():
        for first, second in zip(paths, paths[1:], strict=False):
            if first.name.lower() == second.name.lower():
                raise ConfigError(f"{root}: has {first.name} and {second.name}; should have one of them")
    used = {split: paths[0] for split, paths in found.items() if paths}
    others = sorted(is_folder.keys() - {path.name for path in used.values()})
    if used and (beside := [name for name in others if not name.startswith(".")]):
        more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
        both = " and ".join(path.name for path in used.values())
        note(f"{root}: ignored {', '.join(beside[:3])}{more} beside {both}")
    return used


def image_files(root: Path) -> list[str]:
    """Returns the sorted names, relative to `root`, of all image files below it, without hidden ones.

    Linked folders are followed, each folder once: by its own name if it is below `root`, or else by that of its first
    link. What is ignored is said: other files, hidden ones, pipes, sockets, devices, and links to folders seen before.
    """
    names, links, ignored = list[str](), list[str](), collections.Counter[str]()
    seen = set[tuple[int, int]]()

    def visit(folder: str) -> None:
        about = os.stat(root / folder)
        if (about.st_dev, about.st_ino) in seen:
            ignored["links to folders that are read already"] += 1
            return
        seen.add((about.st_dev, about.st_ino))
        inside = []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    ignored["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    inside.append(name)
                elif entry.is_dir():
                    links.append(name)
                elif not is_picture(name):
                    ignored[os.path.splitext(name)[1].lower() or "without an ending"] += 1
                elif entry.is_file() or not os.path.exists(entry.path):  # a link to nothing is missing when it is read
                    names.append(name)
                else:
                    ignored["pipes, sockets or devices"] += 1
        for name in sorted(inside):
            visit(name)

    visit("")
    while links:  # after all folders of the tree itself
        links.sort(reverse=True)
        visit(links.pop())
    if ignored:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(ignored.items()))
        note(f"{root}: {len(names)} pictures; ignored: {counts}")
    return sorted(names)
