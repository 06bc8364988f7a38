"""Images as PNG files, in a folder or a zip file, which every tool of sample quality reads."""

import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.runtime.replacing import replacing

NAME = "{:06d}.png"  # from the number of the image


def to_bytes(images: UInt8[np.ndarray, "..."], num_levels: int) -> UInt8[np.ndarray, "..."]:
    """Returns levels 0 ... num_levels - 1 as 0 ... 255."""
    table = np.round(np.arange(num_levels) * (255 / (num_levels - 1))).astype(np.uint8)
    return images if num_levels == 256 else table[images]


def check(option: str, path: Path, count: int) -> None:
    """Raises ConfigError where `write` could not leave its `count` images alone: a folder has other files."""
    if path.suffix.lower() == ".zip":
        if path.is_dir():
            raise ConfigError(f"{option} {path}: is a folder; name a file that ends in .zip, or another folder")
        return
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path}: should be a folder, or a file that ends in .zip")
    number = lambda name: int(name[:-4]) if re.fullmatch(r"\d{6,}\.png", name) else count
    if path.is_dir() and (others := sorted(name for name in os.listdir(path) if number(name) >= count)):
        raise ConfigError(f"{option} {path}: has other files, such as {others[0]}; name a new folder")


def _encoded(batches: Iterable[UInt8[np.ndarray, "_ H W C"]], num_levels: int) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each image."""
    number = 0
    for batch in batches:
        for image in to_bytes(batch, num_levels):
            stream = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, "PNG")
            yield NAME.format(number), stream.getvalue()
            number += 1


def write(batches: Iterable[UInt8[np.ndarray, "_ H W C"]], num_levels: int, path: Path) -> None:
    """Writes each image as a PNG file, 000000.png and so on, 8 bits a channel, gray or RGB.

    Args:
      batches: of images, values 0 ... num_levels - 1.
      num_levels: the value num_levels - 1 becomes 255.
      path: a folder, or a file that ends in .zip, which appears complete or not at all.
    """
    if path.suffix.lower() != ".zip":
        path.mkdir(parents=True, exist_ok=True)
        for name, content in _encoded(batches, num_levels):
            (path / name).write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _encoded(batches, num_levels):  # PNG is compressed already
            archive.writestr(zipfile.ZipInfo(name), content)  # of 1980, so that equal images are equal files
