"""Images side by side: PNG grids and GIF animations."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from score_st.array_types import Array, UInt8
from score_st.config import ConfigError


def check_path(option: str, path: Path, channels: int) -> None:
    """Raises ConfigError unless `grid` can write to a path: it is no folder, and ends as a format of pictures does."""
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file, such as {path / 'picture.png'}")
    try:
        kind = Image.registered_extensions().get(path.suffix.lower(), "")
        Image.new("L" if channels == 1 else "RGB", (2, 2)).save(io.BytesIO(), kind or path.suffix)
    except Exception as error:  # each format has its own
        raise ConfigError(f"{option} {path}: Pillow can't write such files; end it in .png, for example") from error


def sheet(images: UInt8[Array, "N H W C"], num_levels: int, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Returns images side by side, in a square by default; small ones are enlarged without smoothing.

    Args:
      images: pixel values 0 ... num_levels - 1.
      num_levels: the value num_levels - 1 becomes 255.
      columns: images in a row.
      gap: white pixels between images.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    scaled = (images.astype(np.float32) * 255 / (num_levels - 1)).round().astype(np.uint8)
    for i, image in enumerate(scaled):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        pixels[top : top + height, left : left + width] = image
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = max(1, 512 // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def grid(images: UInt8[Array, "N H W C"], num_levels: int, path: Path, columns: int | None = None) -> None:
    """Writes a PNG of images side by side, see `sheet`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(images, num_levels, columns).save(path)


def animation(frames: UInt8[Array, "F N H W C"], num_levels: int, path: Path) -> None:
    """Writes a GIF of sheets of images; the last one stays for two seconds."""
    sheets = [sheet(images, num_levels).convert("P") for images in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=[80] * (len(sheets) - 1) + [2000], loop=0)
