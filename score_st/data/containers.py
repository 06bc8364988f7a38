"""Readers of images in zip files and tar shards: `(config, split) -> LazyImages`."""

import dataclasses
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from score_st import strict_json
from score_st.array_types import Int, UInt8
from score_st.config import ConfigError
from score_st.data.files import (
    LIST,
    SPLIT_NAMES,
    choose_splits,
    container_files,
    held_out,
    image_files,
    is_picture,
    name_of_split,
    note,
    note_ignored,
    read_bytes,
    reading,
)
from score_st.data.images import LazyImages, decode_image, decoder, lazy_images, lazy_parts, resize_square
from score_st.data.labels import LABEL_NAMES, class_numbers, classes_of, joined, labels_of_files

LARGEST = 2**28  # bytes of a picture in a zip file: one that claims more is not unpacked
LARGEST_LABEL = 2**20  # bytes of a file with a label in a tar shard


def hidden(name: str) -> bool:
    """Whether a name in an archive is that of a hidden file, or of what macOS adds."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


@dataclasses.dataclass(frozen=True)
class _Zip:
    """The pictures below a folder of a zip file, which threads may read.

    Attributes:
      path: of the file.
      archive: itself.
      prefix: the folder, with its slash, or "".
      names: of the pictures, sorted, relative to the folder.
    """

    path: Path
    archive: zipfile.ZipFile
    prefix: str
    names: list[str]

    @classmethod
    def open(cls, path: Path) -> "_Zip":
        """Opens a zip file; an outer folder that all other folders, or dataset.json, are in does not count."""
        with reading(path):
            archive = zipfile.ZipFile(path)
        names = sorted({name for name in archive.namelist() if not name.endswith("/") and not hidden(name)})
        pictures = [name for name in names if is_picture(name)]
        if others := [name for name in names if not is_picture(name) and not name.endswith(LIST)]:
            note(f"{path}: {len(pictures)} pictures; ignored: {len(others)} others, such as {others[0]}")
        whole = cls(path, archive, "", pictures)
        (top, *more), inside = whole.folders() or [""], archive.NameToInfo
        is_outer = all(name.count("/") > 1 for name in pictures) or f"{top}/{LIST}" in inside
        is_outer = is_outer and not more and all("/" in name for name in pictures)
        return whole.below(top) if is_outer and LIST not in inside and not choose_splits(path, [top]) else whole

    def folders(self) -> list[str]:
        """Returns the sorted names of the first folders of the pictures that are in one."""
        return sorted({name.partition("/")[0] for name in self.names if "/" in name})

    def below(self, folder: str) -> "_Zip":
        """Returns the pictures below a folder."""
        start = f"{folder}/"
        names = [name.removeprefix(start) for name in self.names if name.startswith(start)]
        return dataclasses.replace(self, prefix=self.prefix + start, names=names)

    def splits(self) -> tuple[dict[str, "_Zip"], bool]:
        """Returns the folders of the splits, if it has them, and whether there is one of each."""
        used = choose_splits(self.path, self.folders())
        if not used:
            return {}, False
        note_ignored(self.path, self.folders(), list(used.values()))
        names = {split: name_of_split(self.path, used, split)[0] for split in SPLIT_NAMES}
        return {split: self.below(name) for split, name in names.items()}, "test" in used

    def labels(self, classes: list[str]) -> Int[np.ndarray, " N"] | None:
        """Returns those of the pictures, see `labels.labels_of_files`."""
        listed, where = None, f"{self.path}/{self.prefix}{LIST}"
        if self.prefix + LIST in self.archive.NameToInfo:
            with reading(where):
                listed = self.archive.read(self.prefix + LIST)
        return labels_of_files(self.names, classes, listed, where)

    def read(self, name: str) -> bytes:
        """Returns the content of a picture, whose CRC-32 is compared."""
        about = self.archive.getinfo(self.prefix + name)
        if about.file_size > LARGEST:
            raise ValueError(f"{about.file_size:,} bytes; should be {LARGEST:,} at most")
        return self.archive.read(about)


def read_zip(config: ConfigDict, split: str) -> LazyImages:
    """Reads zip files of images, as StyleGAN's and EDM's tools make them, like the folders that they would unpack to.

    The splits are the zip files by their names, or the folders in a single one; without them a fixed random tenth is
    the test set. Classes are those of dataset.json, or the folders: see `labels.labels_of_files`.
    """
    by_split = {key: container_files(config, ".zip", key) for key in SPLIT_NAMES}
    opened = {path: _Zip.open(path) for paths, _ in by_split.values() for path in paths}
    zips, own = [opened[path] for path in by_split[split][0]], by_split[split][1]
    folders = [name for part in opened.values() for name in part.folders()]
    splits, both = zips[0].splits() if len(opened) == 1 else ({}, False)
    if splits:
        zips, own, folders = [splits[split]], both, [name for part in splits.values() for name in part.folders()]
    labels = joined([part.labels(classes_of(folders)) for part in zips], [len(part.names) for part in zips])
    entries = [(part, name) for part in zips for name in part.names]
    numbers = np.arange(len(entries)) if own or not entries else held_out(len(entries), split)

    def read(i: int) -> bytes:
        part, name = entries[numbers[i]]
        return part.read(name)

    def name(i: int) -> str:
        part, name = entries[numbers[i]]
        return f"{part.path}/{part.prefix}{name}"

    classes = None if labels is None else labels[numbers]
    return lazy_images(config, len(numbers), read, name, decoder(config, resize_square), labels=classes)


def pictures(path: Path, size: int, channels: int) -> LazyImages:
    """Returns the pictures of a folder or a zip file, in the order of their names, as they are.

    Args:
      path: a folder, or a zip file.
      size: height and width that each has to have.
      channels: 1 or 3; others are converted.

    Raises:
      ConfigError: it can't be read, or has no pictures.
    """
    if path.is_dir():
        names = image_files(path)
        read = lambda name: read_bytes(path / name)
    else:
        opened = _Zip.open(path)
        names, read = opened.names, opened.read
    if not names:
        raise ConfigError(f"{path}: has no pictures")

    def decode(content: bytes) -> UInt8[np.ndarray, "H W C"]:
        image = np.asarray(decode_image(content, channels))
        return image.reshape(*image.shape[:2], channels)

    shape = len(names), size, size, channels
    name, nothing = lambda i: f"{path}/{names[i]}", np.empty((0, *shape[1:]), np.uint8)
    return LazyImages(shape, lambda i: read(names[i]), name, decode, nothing, np.zeros(len(names), bool))


def tar_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yields the name, offset and size of each file of a tar file that is not compressed."""
    with tarfile.open(path, "r:") as tar:
        while member := tar.next():
            if member.isfile():
                yield member.name, member.offset_data, member.size
            tar.members = []  # type: ignore[attr-defined]  # a million of them take gigabytes


def _label_in(kind: str, content: bytes) -> int | None:
    """Returns the label in a sample's file X.cls or X.json; None if it is not a whole number there."""
    try:
        label = strict_json.loads(content)
        if kind == "json":
            label = next((label[key] for key in LABEL_NAMES if key in label), None)
        return label if isinstance(label, int) and not isinstance(label, bool) else None
    except (ValueError, TypeError):
        return None


def _shard(path: Path) -> tuple[list[tuple[int, int]], list[int | None]]:
    """Returns offset and size of the picture of each sample of a tar shard, in the order of the file, and its label.

    A sample is the files of one name up to its first dot; of several pictures, the first is taken.
    """
    pictures, labels, others = dict[str, tuple[int, int]](), dict[str, int | None](), 0
    with reading(path), path.open("rb") as file:
        for name, offset, size in tar_members(path):
            folder, slash, last = name.rpartition("/")
            stem, _, kind = last.partition(".")
            key, kind = folder + slash + stem, kind.lower()
            if hidden(name.removeprefix("./")):
                continue
            if kind in ("cls", "json") and size <= LARGEST_LABEL:
                file.seek(offset)
                label = _label_in(kind, file.read(size))
                labels[key] = label if label is not None else labels.get(key)
            elif is_picture(last) and key not in pictures:
                pictures[key] = offset, size
            elif is_picture(last):
                others += 1
    if others:
        note(f"{path}: ignored {others} pictures that are not the first of their sample")
    return list(pictures.values()), [labels.get(key) for key in pictures]


def read_webdataset(config: ConfigDict, split: str) -> LazyImages:
    """Reads tar shards of WebDataset, in the order of their names: X.png (or .jpg, .webp, …) and its class, if any.

    The class is a whole number in X.cls, or in X.json as `label` or another of LABEL_NAMES. The splits are the
    shards by their names; without them a fixed random tenth is the test set.
    """
    paths, own = container_files(config, ".tar", split)
    parts, labels = list[tuple[int, int, int]](), list[int | None]()
    for k, path in enumerate(paths):
        places, numbers = _shard(path)
        parts += [(k, *place) for place in places]
        labels += numbers
    classes = class_numbers(labels, len(parts), config.data.dir)
    if parts and not own:
        part = held_out(len(parts), split)
        parts, classes = [parts[i] for i in part], None if classes is None else classes[part]
    return lazy_parts(config, paths, parts, decoder(config, resize_square), classes)
