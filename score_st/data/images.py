"""Pictures from their files: decoded and resized as the official code does, when they are read; and to files.

`resize` takes the steps of TensorFlow's `tf.image.resize(antialias=True)` in their order and precision, so that its
results are the same bits; Pillow's own resizing is what torchvision calls.
"""

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from score_st.config import ConfigError

MODES = {1: "L", 3: "RGB"}  # by number of channels


def _keys_cubic(x):
    """Keys 1981 with a = -1/2, of distances x >= 0, in their precision."""
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {"bilinear": (1, lambda x: np.maximum(1 - x, 0)), "bicubic": (2, _keys_cubic)}  # radius, function


@contextlib.contextmanager
def reading(name):
    """Turns whatever decoders and readers raise, which is anything, into a ConfigError that begins with `name`."""
    try:
        yield
    except (ConfigError, ImportError):
        raise
    except Exception as error:
        raise ConfigError(f"{name}: can't be read ({' '.join(str(error).split())})") from error


@functools.cache
def _spans(kernel: str, before: int, after: int):
    """Of each output pixel: the first input pixel [after] and the weights float32 [after, taps] from there on."""
    radius, function = KERNELS[kernel]
    inverse = 1 / (np.float32(after) / np.float32(before))
    widened = np.maximum(inverse, np.float32(1))
    centre = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * inverse
    reach, half = radius * widened, np.float32(0.5)
    first = np.clip(np.ceil(centre - reach - half).astype(int), 0, before - 1)
    last = np.clip(np.floor(centre + reach - half).astype(int), 0, before - 1)
    index = first[:, None] + np.arange((last - first).max() + 1)
    distance = np.abs((index.astype(np.float32) + half - centre[:, None]) * (1 / widened))
    weights = np.where(index <= last[:, None], function(distance), np.float32(0))
    total = np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]  # one by one, unlike sum
    return first, weights * (1 / total)


def resize(image: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Float32 [size, size, C] of an image [H, W, C], with antialiasing; bicubic overshoots."""
    for _ in range(2):  # rows, then columns
        first, weights = _spans(kernel, len(image), size)
        out = np.zeros((size, *image.shape[1:]), np.float32)
        for tap, weight in enumerate(weights.T):
            out += weight[:, None, None] * image[np.minimum(first + tap, len(image) - 1)]
        image = out.swapaxes(0, 1)
    return np.ascontiguousarray(image)


def picture(content: bytes, channels: int) -> Image.Image:
    """The image in an encoded file, upright, grey or RGB; on white where it is transparent, 16 bits cut to 8.

    Raises:
      Exception: what Pillow raises for a broken file, and ValueError for more than 16 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise ValueError("no picture of a format that Pillow knows") from error
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, 32 bits a channel; should be 8 or 16")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(MODES[channels])


def as_tensorflow(content: bytes, channels: int) -> Image.Image:
    """The image as the official code decodes it: JPEG by the fast DCT, up to 7 levels off, and not turned by EXIF."""
    if content[:2] != b"\xff\xd8":
        return picture(content, channels)
    import simplejpeg

    return Image.fromarray(simplejpeg.decode_jpeg(content, "RGB", fastdct=True)).convert(MODES[channels])


def remarks(content: bytes, size: int) -> list[str]:
    """What is uncommon in an encoded file, from its header; nothing for what is no picture by itself."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = {
                f"of mode {image.mode}": image.mode != "RGB",
                "turned by EXIF": image.getexif().get(0x0112, 1) != 1,
                f"smaller than {size} pixels": min(image.size) < size,
                "of several frames": getattr(image, "n_frames", 1) > 1,
            }
    except Exception:  # decoding says what is wrong
        return []
    return [remark for remark, holds in found.items() if holds]


def square(image: Image.Image) -> tuple[int, int, int, int]:
    """The box of the largest central square."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return left, top, left + side, top + side


def fit(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, C]: the central square, by Lanczos's filter; an image of that size as it is."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.LANCZOS, box=square(image))
    return np.asarray(image).reshape(size, size, -1)


def celeba(image: Image.Image, size: int) -> np.ndarray:
    """The official crop of 140 and bilinear resize, rounded to uint8 [size, size, C], which it officially is not."""
    left, top = ((length - 140) // 2 for length in image.size)
    if min(left, top) < 0:
        raise ValueError(f"{image.width}x{image.height}; should be 140 or more")
    unit = np.asarray(image)[top : top + 140, left : left + 140] * np.float32(1 / 255)
    return np.rint(resize(unit.reshape(140, 140, -1), size, "bilinear") * 255).astype(np.uint8)


def lsun(image: Image.Image, size: int) -> np.ndarray:
    """The official central square and bicubic resize, cut to uint8 [size, size, C]; overshoots end at 0 and 255."""
    pixels = np.asarray(image.crop(square(image)))
    return np.clip(resize(pixels.reshape(*pixels.shape[:2], -1), size, "bicubic"), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Images like an array uint8 [N, H, W, C], decoded when they are read, and kept where there is room.

    Attributes:
      read, name: from an image's number to its bytes, and to what errors call it; any thread may call them.
      decode: from bytes to uint8 [H, W, C].
      kept, done: room for all images, or for none, and whether each is there.
    """

    shape: tuple[int, ...]
    read: Callable[[int], bytes]
    name: Callable[[int], str]
    decode: Callable[[bytes], np.ndarray]
    kept: np.ndarray
    done: np.ndarray
    dtype = np.dtype(np.uint8)
    ndim = 4

    def __len__(self):
        return self.shape[0]

    def max(self) -> int:
        """The largest value that encoded images may have."""
        return 255

    def image(self, number: int) -> np.ndarray:
        """uint8 [H, W, C]; raises ConfigError with the file's name where it is broken, gone or of another size."""
        if self.done[number]:
            return self.kept[number]
        with reading(repr(self.name(number))):
            image = self.decode(self.read(number))
            if image.shape != self.shape[1:]:
                raise ValueError(f"is {list(image.shape)}; should be {list(self.shape[1:])} as config.data says")
        if len(self.kept):
            self.kept[number] = image
            self.done[number] = True
        return image

    def __getitem__(self, index):
        numbers = np.arange(len(self))[index]
        if numbers.ndim == 0:
            return self.image(int(numbers))
        return np.stack([self.image(i) for i in numbers.tolist()]) if len(numbers) else self.kept[:0]

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)


def encoded(config, count: int, read: Callable, name: Callable, decode: Callable) -> Encoded:
    """Images with the size of config.data; they are kept if all of them take no more than data.memory_gb."""
    size, channels = config.data.image_size, config.data.num_channels
    if channels not in MODES:
        raise ConfigError(f"config.data.num_channels={channels}: should be 1 or 3")
    if not count:
        raise ConfigError(f"config.data.dir={config.data.dir!r}: no images there")
    shape = count, size, size, channels
    kept = np.empty(shape if math.prod(shape) <= config.data.memory_gb * 1e9 else (0, *shape[1:]), np.uint8)
    return Encoded(shape, read, name, decode, kept, np.zeros(count, bool))


def decoder(config, arrange: Callable, opened: Callable = picture) -> Callable:
    """From an encoded file to `arrange(opened(file, num_channels), image_size)`."""
    size, channels = config.data.image_size, config.data.num_channels
    return lambda content: arrange(opened(content, channels), size)


def of_files(config, root: Path, names: list[str], decode: Callable) -> Encoded:
    """Images of encoded files."""
    read = lambda i: (root / names[i]).read_bytes()
    return encoded(config, len(names), read, lambda i: str(root / names[i]), decode)


def of_parts(config, paths: list[Path], parts: list[tuple], decode: Callable) -> Encoded:
    """Images of parts (number of the path, offset, size) of files."""
    parts = np.array(parts, np.int64).reshape(-1, 3)

    def read(i):
        path, offset, size = parts[i].tolist()
        with paths[path].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return encoded(config, len(parts), read, lambda i: f"{paths[parts[i, 0]]}, image {i}", decode)
