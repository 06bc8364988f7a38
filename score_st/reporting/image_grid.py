"""Images side by side: PNG grids and GIF animations."""

import math
from pathlib import Path

import numpy as np
from PIL import Image


def sheet(images: np.ndarray, num_levels: int, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images uint8 [N, H, W, C] side by side, by default in a square; small ones enlarged, pixels kept sharp."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    shown = (images.astype(np.float32) * 255 / (num_levels - 1)).round().astype(np.uint8)
    for i, image in enumerate(shown):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        pixels[top : top + height, left : left + width] = image
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = max(1, 512 // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)


def grid(images: np.ndarray, num_levels: int, path: Path, columns: int | None = None):
    """A PNG of images uint8 [N, H, W, C], see `sheet`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(images, num_levels, columns).save(path)


def animation(frames: np.ndarray, num_levels: int, path: Path):
    """A GIF of images uint8 [F, N, H, W, C]; the last frame stays for two seconds."""
    sheets = [sheet(images, num_levels).convert("P") for images in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=[80] * (len(sheets) - 1) + [2000], loop=0)
