"""What the readers of data sets share: finding files, naming broken ones, splitting."""

import collections
import contextlib
import functools
import io
import os
import re
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
LIST = "dataset.json"  # the labels of a folder of images


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


def choose_splits(root: str | Path, folders: list[str]) -> dict[str, str]:
    """Returns the names of the splits among those of folders, by "train" and "test", whatever their case.

    The first of the names in SPLIT_NAMES is taken.

    Raises:
      ConfigError: one name is there in two cases.
    """
    found = {
        split: [key for name in names for key in sorted(folders) if key.lower() == name]
        for split, names in SPLIT_NAMES.items()
    }
    for keys in found.values():
        for first, second in zip(keys, keys[1:], strict=False):
            if first.lower() == second.lower():
                raise ConfigError(f"{root}: has {first} and {second}; should have one of them")
    return {split: keys[0] for split, keys in found.items() if keys}


def note_ignored(root: str | Path, names: list[str], used: list[str]) -> None:
    """Says which of the names that are not hidden are not used."""
    if beside := [name for name in sorted(set(names) - set(used)) if not name.startswith(".")]:
        more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
        note(f"{root}: ignored {', '.join(beside[:3])}{more} beside {' and '.join(used)}")


def name_of_split(root: str | Path, splits: dict[str, str], split: str) -> tuple[str, bool]:
    """Returns the name that a split has among those of `choose_splits`, and whether it is of this split alone.

    If not, the test set is to be held out: the name is "" where there are none, and that of "train" where it is alone.

    Raises:
      MissingFiles: there is only "test".
    """
    if splits and "train" not in splits:
        raise MissingFiles(f"{root}: has {splits['test']}, but no train")
    return splits.get(split, splits.get("train", "")), "test" in splits


def split_folders(root: Path) -> dict[str, str]:
    """Returns the names of the folders of the splits in `root`, see `choose_splits`; says which others are ignored."""
    with os.scandir(root) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    used = choose_splits(root, [name for name in is_folder if is_folder[name]])
    if used:
        note_ignored(root, list(is_folder), list(used.values()))
    return used


def subfolders(root: Path) -> list[str]:
    """Returns the names of the folders in `root`, linked ones too, without hidden ones."""
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def files_of_split(root: str | Path, names: list[str], split: str) -> tuple[list[str], bool]:
    """Returns the files of a split, by a word of their own names or else of their folders, from the inside out.

    Words are separated by anything but letters, in any case: train-00000-of-00002, cifar10_test, default/train/0000.

    Args:
      root: of the names, in notes.
      names: relative to `root`.
      split: "train" or "test".

    Returns:
      Its files, and whether they are those of this split alone, as `name_of_split`; without names of splits, all.

    Raises:
      MissingFiles: there are files of "test", and none of "train".
    """
    words = {word for names in SPLIT_NAMES.values() for word in names}

    def word(name: str) -> str:
        for part in reversed(Path(name.lower()).parts):
            if found := [word for word in re.split("[^a-z]+", part) if word in words]:
                return found[0]
        return ""

    by_word: dict[str, list[str]] = {}
    for name in names:
        by_word.setdefault(word(name), []).append(name)
    used = choose_splits(root, list(by_word))
    chosen, own = name_of_split(root, used, split)
    if not used:
        return names, False
    note_ignored(root, [by_word[key][0] for key in by_word if key not in used.values()], list(used.values()))
    return by_word[chosen], own


def check_numbered(files: list[str]) -> None:
    """Raises ConfigError if files are missing from a numbered set, such as train-00000-of-00002.parquet alone."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)([^/]*)", file):
            numbers.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, total), present in numbers.items():
        if missing := sorted(set(range(total)) - present):
            raise ConfigError(f"{stem}: {len(missing)} of {total} files are missing, the first is number {missing[0]}")


def container_files(config: ConfigDict, ending: str, split: str) -> tuple[list[Path], bool]:
    """Returns the files below data.dir that hold the images of a split, or data.dir itself; see `files_of_split`.

    Args:
      config: the whole configuration.
      ending: of the files' names.
      split: "train" or "test".

    Raises:
      MissingFiles: there are none.
      ConfigError: files are missing from a numbered set.
    """
    root = find(config)
    if root.is_file():
        return [root], False
    paths = (
        path.relative_to(root) for path in root.rglob("*") if path.name.lower().endswith(ending) and path.is_file()
    )
    names = sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise MissingFiles(f"config.data.dir={config.data.dir!r}: no *{ending} there")
    check_numbered([str(root / name) for name in names])
    names, own = files_of_split(root, names, split)
    return [root / name for name in names], own


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
                elif name == LIST:  # is read for the labels
                    continue
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
