"""data.prepared: a copy of a data set's images, decoded once, in files that are mapped into memory when read."""

import functools
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_st import strict_json
from score_st.config import ConfigError
from score_st.data import identity
from score_st.data.files import note
from score_st.data.images import CheckedImages, Images, LazyImages
from score_st.runtime import endings, local_cache, numpy_files, progress, storage
from score_st.runtime.resumable import Chunks
from score_st.runtime.workdir import write_text

CHUNK = 256  # images that have a checksum together, and are written between two entries of the progress file
LABELS = ".labels.npy"  # of the classes, beside the copy
MEANING = ("dataset", "dir", "category", "tfrecords_path", "image_size", "num_channels")  # keys the copy depends on


def copy_path(config: ConfigDict, split: str) -> Path:
    """Returns the path of the copy without its suffixes, .npy and .json."""
    data = config.data
    name = "_".join(filter(None, (data.dataset, data.category, split, f"{data.image_size}x{data.num_channels}")))
    return Path(data.prepared) / name


def open_copy(config: ConfigDict, split: str, original: Callable[[], Images]) -> CheckedImages | None:
    """Returns the finished copy, mapped into memory, or None.

    Args:
      config: its data.prepared is the folder.
      split: the name of the split.
      original: reads the data set itself, to tell whether it is the same in another data.dir.

    Raises:
      ConfigError: the copy is damaged, or of other settings or images. Damaged images are found when they are read.
    """
    path, url = copy_path(config, split), ""
    fetch = lambda suffix: local_cache.copied(url + suffix, config.data.local_cache, config.storage.patience)
    if storage.scheme(config.data.prepared):
        url = storage.join(config.data.prepared, path.name)
        try:
            path = [fetch(suffix) for suffix in (".npy", ".json")][0].with_suffix("")
        except FileNotFoundError:
            return None
    try:
        about = strict_json.loads(path.with_suffix(".json").read_bytes())
        if url and "labels" in about:
            fetch(LABELS)
        images = numpy_files.map_npy(path.with_suffix(".npy"))
        settings, shape, done = dict(about["settings"]), about["shape"], about["done"]
        if list(images.shape) != shape or images.dtype != np.uint8 or done != shape[0]:
            raise ValueError(f"it has {images.dtype}{list(images.shape)}, and should have uint8{shape}")
        copy = _checked(path, images, about)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ConfigError(
            f"{path}: the prepared copy is damaged ({error}); delete it to have it made again"
        ) from error
    wanted = {key: config.data[key] for key in MEANING}
    if settings != wanted and not (settings | {"dir": wanted["dir"]} == wanted and _is_copy(copy, original)):
        raise ConfigError(f"{path}: was prepared with {settings}, {shape}; name another data.prepared")
    return copy


def _checked(path: Path, images: np.ndarray, about: dict[str, Any]) -> CheckedImages:
    """Returns the images with the checksums of the JSON file beside them; copies of earlier versions have none."""
    if "checksums" not in about:
        note(f"{path}: was prepared by an earlier version, without checksums; delete it to have it made with them")
        return CheckedImages(images, str(path), [], len(images), np.ones(1, bool))
    checksums, chunk = [int(value) for value in about["checksums"]], int(about["chunk"])
    if chunk < 1 or len(checksums) != -(-len(images) // chunk):
        raise ValueError(f"it has {len(checksums)} checksums for {len(images)} images")
    labels = None
    if "labels" in about:
        labels = np.array(numpy_files.map_npy(path.with_suffix(LABELS)))
        fits = labels.shape == (len(images),) and labels.dtype == np.int32
        if not fits or zlib.crc32(labels.data) != about["labels"]:
            raise ValueError("its labels are damaged")
    return CheckedImages(images, str(path), checksums, chunk, np.zeros(len(checksums), bool), labels)


def _is_copy(copy: CheckedImages, original: Callable[[], Images]) -> bool:
    """Whether the data set, where it is now, is that of the copy, as far as `identity.of` tells."""
    try:
        return identity.of(original()) == identity.of(copy)
    except ConfigError:
        return False


def write_copy(config: ConfigDict, split: str, images: LazyImages, chunk_size: int = CHUNK) -> Images:
    """Writes the copy, resuming one that was interrupted, and returns it mapped into memory.

    Args:
      config: its data.prepared is the folder.
      split: the name of the split.
      images: all images of the split.
      chunk_size: how many images have a checksum together; the progress is recorded after as many.

    Raises:
      ConfigError: an image is broken, or the files can't be written.
      OSError: the disk is full, or has another fault.
    """
    path, settings = copy_path(config, split), {key: config.data[key] for key in MEANING}
    part, entries = path.with_suffix(".part"), path.with_suffix(".part.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            entries.unlink(missing_ok=True)
        nothing = {"chunk": chunk_size, "done": 0, "crc32": 0, "checksums": []}
        chunks = Chunks(entries, {"settings": settings, "shape": list(images.shape)}, nothing)
        if not _is_intact(part, images.shape, chunks.state):
            chunks.state = nothing
        start, chunk_size = chunks.state["done"], chunks.state["chunk"]
        copy = np.lib.format.open_memmap(part, "r+" if start else "w+", None if start else np.uint8, images.shape)
        with part.open("r+b") as file:  # room for all now: a full disk later would kill the process
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        loop = progress.Loop(f"preparing {split}", start, len(images), "images", seconds=2)
        with ThreadPoolExecutor(max(config.data.num_threads, 1)) as pool:

            def write_chunk(first: int) -> dict[str, Any]:
                stop = min(first + chunk_size, len(images))
                copy[first:stop] = chunk = np.stack(list(pool.map(images.image, range(first, stop))))
                copy.flush()
                checksums = [*chunks.state["checksums"], zlib.crc32(chunk.data)]
                return {
                    "chunk": chunk_size,
                    "done": stop,
                    "crc32": zlib.crc32(chunk.data, chunks.state["crc32"]),
                    "checksums": checksums,
                }

            for first in range(start, len(images), chunk_size):
                loop(chunks((first,), functools.partial(write_chunk, first))["done"])
        if images.labels is not None:
            np.save(path.with_suffix(LABELS), images.labels)
            about = strict_json.loads(entries.read_bytes()) | {"labels": zlib.crc32(images.labels.data)}
            write_text(entries, strict_json.dumps(about))
        part.replace(path.with_suffix(".npy"))
        entries.replace(path.with_suffix(".json"))
    except OSError as error:
        if endings.storage_failure(error):
            raise
        raise ConfigError(f"config.data.prepared={config.data.prepared!r}: can't be written ({error})") from error
    copied = open_copy(config, split, lambda: images)
    assert copied is not None
    return copied


def _is_intact(part: Path, shape: tuple[int, ...], state: dict[str, Any]) -> bool:
    """Whether what is done of an unfinished copy has its checksums: a part may not have reached the disk."""
    done, chunk = state["done"], state["chunk"]
    if not done or not chunk:
        return not done and bool(chunk)
    try:
        images = numpy_files.map_npy(part)
    except (OSError, ValueError):
        return False
    firsts = range(0, done, chunk)
    crc = lambda first: zlib.crc32(np.ascontiguousarray(images[first : min(first + chunk, done)]).data)
    return images.shape == tuple(shape) and list(map(crc, firsts)) == state["checksums"]
