"""data.prepared: a copy of a data set's images, decoded once, in files that are mapped into memory when read."""

import functools
import io
import json
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.data.images import LazyImages
from score_st.runtime import endings, local_cache, progress, storage
from score_st.runtime.resumable import Chunks
from score_st.runtime.workdir import allocate

CHUNK = 256  # images written between two entries of the progress file
MEANING = ("dataset", "dir", "category", "tfrecords_path", "image_size", "num_channels")  # keys the copy depends on


def copy_path(config: ConfigDict, split: str) -> Path:
    """Returns the path of the copy without its suffixes, .npy and .json."""
    data = config.data
    name = "_".join(filter(None, (data.dataset, data.category, split, f"{data.image_size}x{data.num_channels}")))
    return Path(data.prepared) / name


def open_copy(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N H W C"] | None:
    """Returns the finished copy, mapped into memory, or None.

    Raises:
      ConfigError: the copy is damaged, or of other settings.
    """
    path = copy_path(config, split)
    if storage.scheme(config.data.prepared):
        url, cache = storage.join(config.data.prepared, path.name), config.data.local_cache
        try:
            copies = [local_cache.copied(url + suffix, cache, config.storage.patience) for suffix in (".npy", ".json")]
        except FileNotFoundError:
            return None
        path = copies[0].with_suffix("")
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        images = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the prepared copy is damaged ({error}); delete it to have it made again"
        ) from error
    settings = {key: config.data[key] for key in MEANING}
    if about["settings"] != settings or list(images.shape) != about["shape"]:
        raise ConfigError(
            f"{path}: was prepared with {about['settings']}, {about['shape']}; name another data.prepared"
        )
    return images


def write_copy(
    config: ConfigDict, split: str, images: LazyImages, chunk_size: int = CHUNK
) -> UInt8[np.ndarray, "N H W C"]:
    """Writes the copy, resuming one that was interrupted, and returns it mapped into memory.

    Args:
      config: its data.prepared is the folder.
      split: the name of the split.
      images: all images of the split.
      chunk_size: after how many images the progress is recorded.

    Raises:
      ConfigError: an image is broken, or the files can't be written.
    """
    path, settings = copy_path(config, split), {key: config.data[key] for key in MEANING}
    part, note = path.with_suffix(".part"), path.with_suffix(".part.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            note.unlink(missing_ok=True)
        chunks = Chunks(note, {"settings": settings, "shape": list(images.shape)}, {"done": 0, "crc32": 0})
        start = chunks.state["done"]
        if not start:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, dict(shape=images.shape, fortran_order=False, descr="|u1"))
            allocate(part, len(header.getvalue()) + math.prod(images.shape))
            with part.open("r+b") as file:
                file.write(header.getvalue())
        copy = np.lib.format.open_memmap(part, "r+")
        loop = progress.Loop(f"preparing {split}", start, len(images), "images", seconds=2)
        with ThreadPoolExecutor(max(config.data.num_threads, 1)) as pool:

            def write_chunk(first: int) -> dict[str, int]:
                stop = min(first + chunk_size, len(images))
                copy[first:stop] = chunk = np.stack(list(pool.map(images.image, range(first, stop))))
                copy.flush()
                return {"done": stop, "crc32": zlib.crc32(chunk.data, chunks.state["crc32"])}

            for first in range(start, len(images), chunk_size):
                loop(chunks((first,), functools.partial(write_chunk, first))["done"])
        part.replace(path.with_suffix(".npy"))
        note.replace(path.with_suffix(".json"))
    except OSError as error:
        if endings.storage_failure(error):
            raise
        raise ConfigError(f"config.data.prepared={config.data.prepared!r}: can't be written ({error})") from error
    return np.load(path.with_suffix(".npy"), mmap_mode="r")
