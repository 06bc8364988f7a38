"""data.prepared: images of a data set decoded once, in files that are mapped into memory when they are read."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from score_st.config import ConfigError
from score_st.data import images as pictures
from score_st.runtime import progress
from score_st.runtime.workdir import write_text

CHUNK = 256  # images between two entries of how far it is
MEANING = ("dataset", "dir", "category", "tfrecords_path", "image_size", "num_channels")


def place(config, split: str) -> Path:
    """Of the copy, without .npy and .json."""
    data = config.data
    name = "_".join(filter(None, (data.dataset, data.category, split, f"{data.image_size}x{data.num_channels}")))
    return Path(data.prepared) / name


def opened(config, split: str) -> np.ndarray | None:
    """The finished copy uint8 [N, H, W, C], or None; raises ConfigError where it is of other settings or damaged."""
    path = place(config, split)
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        images = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the prepared copy is damaged ({error}); delete it to make it again") from error
    asked = {key: config.data[key] for key in MEANING}
    if about["settings"] != asked or list(images.shape) != about["shape"]:
        raise ConfigError(f"{path}: is of {about['settings']}, {about['shape']}; name another data.prepared")
    return images


def make(config, split: str, images: pictures.Encoded):
    """Writes the copy; one that was broken off is gone on with from where it was.

    Raises:
      ConfigError: an image is broken, or the files can't be written.
    """
    path, settings = place(config, split), {key: config.data[key] for key in MEANING}
    part, note = path.with_suffix(".part"), path.with_suffix(".part.json")
    about = {"settings": settings, "shape": list(images.shape), "done": 0, "crc32": 0}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and note.exists():
            found = json.loads(note.read_text())
            about = found if {**found, "done": 0, "crc32": 0} == about else about
        mode = "r+" if about["done"] else "w+"
        copy = np.lib.format.open_memmap(part, mode, None if about["done"] else np.uint8, images.shape)
        loop = progress.Loop(f"preparing {split}", about["done"], len(images), "images", seconds=2)
        with ThreadPoolExecutor(max(config.data.num_threads, 1)) as pool:
            while (first := about["done"]) < len(images):
                chunk = np.stack(list(pool.map(images.image, range(first, min(first + CHUNK, len(images))))))
                copy[first : first + len(chunk)] = chunk
                copy.flush()
                about |= {"done": first + len(chunk), "crc32": zlib.crc32(chunk, about["crc32"])}
                write_text(note, json.dumps(about))
                loop(about["done"])
        part.replace(path.with_suffix(".npy"))
        note.replace(path.with_suffix(".json"))
    except OSError as error:
        raise ConfigError(f"config.data.prepared={config.data.prepared!r}: can't be written ({error})") from error
