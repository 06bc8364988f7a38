"""Images from encoded files: decoded, cropped and resized as the official code does, at once or when they are read.

`resize` takes the steps of TensorFlow's `tf.image.resize(antialias=True)` in the same order and precision, so that its
results have the same bits. Pillow's resizing is what torchvision calls.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps, UnidentifiedImageError

from score_st.array_types import Bool, Float, Int, Shaped, UInt8
from score_st.config import ConfigError
from score_st.data.files import MissingFiles, note, open_image, read_bytes, reading
from score_st.data.labels import ArrayImages, LabeledImages

MODES = {1: "L", 3: "RGB"}  # Pillow's, by number of channels


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    """Returns the cubic kernel of Keys (1981) with a = -1/2 at distances x >= 0, in the precision of x."""
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {  # radius, function of the distance
    "bilinear": (1, lambda x: np.maximum(1 - x, 0)),
    "bicubic": (2, _keys_cubic),
}


@functools.cache
def _spans(kernel: str, before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each output pixel's first input pixel [after] and the float32 weights [after, taps] from there on."""
    radius, function = KERNELS[kernel]
    inverse = 1 / (np.float32(after) / np.float32(before))
    widened = np.maximum(inverse, np.float32(1))
    center = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * inverse
    reach, half = radius * widened, np.float32(0.5)
    first = np.clip(np.ceil(center - reach - half).astype(int), 0, before - 1)
    last = np.clip(np.floor(center + reach - half).astype(int), 0, before - 1)
    index = first[:, None] + np.arange((last - first).max() + 1)
    distance = np.abs((index.astype(np.float32) + half - center[:, None]) * (1 / widened))
    weights = np.where(index <= last[:, None], function(distance), np.float32(0))
    total = np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]  # one by one, unlike sum
    return first, weights * (1 / total)


def resize(image: Shaped[np.ndarray, "H W C"], size: int, kernel: str) -> Float[np.ndarray, "size size C"]:
    """Resizes an image with antialiasing, to float32; the kernel "bicubic" overshoots the range of the input."""
    for _ in range(2):  # rows, then columns
        first, weights = _spans(kernel, len(image), size)
        out = np.zeros((size, *image.shape[1:]), np.float32)
        for tap, weight in enumerate(weights.T):
            out += weight[:, None, None] * image[np.minimum(first + tap, len(image) - 1)]
        image = out.swapaxes(0, 1)
    return np.ascontiguousarray(image)


def decode_image(content: bytes, channels: int) -> Image.Image:
    """Decodes an image file to 8 bits a channel, gray or RGB, upright by its EXIF, on white where it is transparent.

    Raises:
      Exception: anything that Pillow raises for a broken file; ValueError for more than 16 bits a channel.
    """
    try:
        with open_image(content) as opened:
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise ValueError("not an image of a format that Pillow reads") from error
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, 32 bits a channel; should be 8 or 16")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(MODES[channels])


def decode_as_tensorflow(content: bytes, channels: int) -> Image.Image:
    """Decodes an image file as the official code does: JPEG by the fast DCT, which ignores EXIF.

    The fast DCT is up to 7 levels off the accurate one.
    """
    if content[:2] != b"\xff\xd8":
        return decode_image(content, channels)
    import simplejpeg

    return Image.fromarray(simplejpeg.decode_jpeg(content, "RGB", fastdct=True)).convert(MODES[channels])


def remarks(content: bytes, size: int) -> list[str]:
    """Lists what is unusual about an image file by its header; empty for content that is not an image file."""
    try:
        with open_image(content) as image:
            unusual = {
                f"of mode {image.mode}": image.mode != "RGB",
                "turned by EXIF": image.getexif().get(0x0112, 1) != 1,
                f"smaller than {size} pixels": min(image.size) < size,
                "of several frames": getattr(image, "n_frames", 1) > 1,
            }
    except Exception:  # decoding will say what is wrong
        return []
    return [remark for remark, applies in unusual.items() if applies]


def central_square(image: Image.Image) -> tuple[int, int, int, int]:
    """Returns the box (left, top, right, bottom) of the largest central square."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return left, top, left + side, top + side


def resize_square(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size C"]:
    """Resizes the central square by Lanczos's filter; an image that has the size already stays as it is."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=central_square(image))
    return np.asarray(image).reshape(size, size, -1)


def resize_celeba(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size C"]:
    """Crops to the central 140x140 and resizes bilinearly as the official code does, then rounds, which it does not.

    Raises:
      ValueError: the image is smaller than 140 pixels.
    """
    left, top = ((length - 140) // 2 for length in image.size)
    if min(left, top) < 0:
        raise ValueError(f"{image.width}x{image.height}; should be 140 or more")
    unit = np.asarray(image)[top : top + 140, left : left + 140] * np.float32(1 / 255)
    return np.rint(resize(unit.reshape(140, 140, -1), size, "bilinear") * 255).astype(np.uint8)


def resize_lsun(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size C"]:
    """Resizes the central square bicubically as the official code does: clipped to 0 ... 255, then truncated."""
    pixels = np.asarray(image.crop(central_square(image)))
    return np.clip(resize(pixels.reshape(*pixels.shape[:2], -1), size, "bicubic"), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """Encoded images that are indexed like an array uint8 [N, H, W, C] and decoded when they are read.

    Any thread may read them. Once decoded, they are kept if there is room for all of them.

    Attributes:
      shape: (N, H, W, C).
      read: from the number of an image to its encoded bytes.
      name: from the number of an image to its name in errors.
      decode: from encoded bytes to uint8 [H, W, C].
      kept: room for all decoded images, or for none.
      is_kept: whether image i is in `kept`.
      read_many: from the numbers of images to their encoded bytes, where that is faster than one by one.
      labels: the class of each image, see `labels.labels_of`.
    """

    shape: tuple[int, ...]
    read: Callable[[int], bytes]
    name: Callable[[int], str]
    decode: Callable[[bytes], np.ndarray]
    kept: UInt8[np.ndarray, "K H W C"]
    is_kept: Bool[np.ndarray, " N"]
    read_many: Callable[[list[int]], list[bytes]] | None = None
    labels: Int[np.ndarray, " N"] | None = None
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    def __len__(self) -> int:
        """Returns N."""
        return self.shape[0]

    def max(self) -> int:
        """Returns the largest value that an encoded image can have."""
        return 255

    def image(self, number: int, content: bytes | None = None) -> UInt8[np.ndarray, "H W C"]:
        """Returns one decoded image, read now unless its encoded bytes are given.

        Raises:
          ConfigError: with the file's name, where it is broken, missing or of another size.
        """
        if self.is_kept[number]:
            return self.kept[number]
        with reading(repr(self.name(number))):
            image = self.decode(self.read(number) if content is None else content)
            if image.shape != self.shape[1:]:
                raise ValueError(f"is {list(image.shape)}; should be {list(self.shape[1:])} as config.data says")
        if len(self.kept):
            self.kept[number] = image
            self.is_kept[number] = True
        return image

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        """Returns one image, or a stack of those that NumPy's indexing of the first axis selects."""
        numbers = np.arange(len(self))[index]
        if numbers.ndim == 0:
            return self.image(int(numbers))
        if not len(numbers):
            return self.kept[:0]
        contents: dict[int, bytes] = {}
        if self.read_many and (missing := [i for i in numbers.tolist() if not self.is_kept[i]]):
            contents = dict(zip(missing, self.read_many(missing), strict=True))
        return np.stack([self.image(i, contents.get(i)) for i in numbers.tolist()])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "N H W C"]:
        """Decodes all images, for `np.asarray`."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def select(self, numbers: Int[np.ndarray, " K"]) -> "LazyImages":
        """Returns the images of these numbers; those that are decoded stay so."""
        read_many = self.read_many
        return LazyImages(
            (len(numbers), *self.shape[1:]),
            lambda i: self.read(int(numbers[i])),
            lambda i: self.name(int(numbers[i])),
            self.decode,
            self.kept[numbers] if len(self.kept) else self.kept,
            self.is_kept[numbers],
            read_many and (lambda indices: read_many(numbers[indices].tolist())),
            None if self.labels is None else self.labels[numbers],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedImages(ArrayImages):
    """Images mapped into memory, uint8 [N, H, W, C], whose checksums are compared when they are first read.

    Any thread may read them. A process reads every image once to compare it, and later only those that are asked for.

    Attributes:
      name: of the file, in errors.
      checksums: the CRC-32 of each `chunk` images.
      chunk: how many images have a checksum together; the last may have fewer.
      is_checked: whether a checksum has been compared.
      labels: the class of each image, see `labels.labels_of`.
    """

    name: str
    checksums: list[int]
    chunk: int
    is_checked: Bool[np.ndarray, " M"]
    labels: Int[np.ndarray, " N"] | None = None

    def max(self) -> int:
        """Returns the largest value that a byte can have, as these images came from encoded ones."""
        return 255

    def check(self, number: int) -> None:
        """Raises ConfigError if the images of a checksum have another one."""
        first = number * self.chunk
        part = self.images[first : first + self.chunk]
        if zlib.crc32(np.ascontiguousarray(part).data) != self.checksums[number]:
            last = first + len(part) - 1
            raise ConfigError(
                f"{self.name}: images {first} to {last} are damaged (their CRC-32 is another one); "
                "delete the copy to have it made again"
            )
        self.is_checked[number] = True

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        """Returns what NumPy's indexing of the first axis selects.

        Raises:
          ConfigError: it is damaged.
        """
        for number in np.unique(np.arange(len(self))[index] // self.chunk):
            if not self.is_checked[number]:
                self.check(int(number))
        return self.images[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "N H W C"]:
        """Returns all images, for `np.asarray`."""
        return self[:].astype(dtype or self.dtype, copy=False)


# of a split: in memory, mapped into it, or decoded when read
Images = UInt8[np.ndarray, "N H W C"] | LabeledImages | LazyImages | CheckedImages


@runtime_checkable
class Stack(Protocol):
    """What is read in batches: `len(images)`, and `images[first:stop]` is an array."""

    def __len__(self) -> int:
        """Returns N."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Returns what NumPy's indexing of the first axis selects."""
        ...


def without_unreadable(images: LazyImages, what: str, threads: int) -> LazyImages:
    """Reads all images once and returns those that can be read; says how many are left out.

    Args:
      images: those of a split.
      what: names them.
      threads: how many threads read.

    Raises:
      ConfigError: none can be read.
    """

    def error(number: int) -> str:
        try:
            images.image(number)
        except ConfigError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        errors = list(pool.map(error, range(len(images))))
    wrong = [message for message in errors if message]
    if not wrong:
        return images
    if len(wrong) == len(images):
        raise ConfigError(f"{what}: none of {len(images)} images can be read: {wrong[0]}")
    note(f"{what}: {len(wrong)} of {len(images)} images can't be read and are left out: {'; '.join(wrong[:3])}")
    return images.select(np.array([i for i, message in enumerate(errors) if not message]))


def lazy_images(
    config: ConfigDict,
    count: int,
    read: Callable[[int], bytes],
    name: Callable[[int], str],
    decode: Callable[[bytes], np.ndarray],
    read_many: Callable[[list[int]], list[bytes]] | None = None,
    labels: Int[np.ndarray, " N"] | None = None,
) -> LazyImages:
    """Returns lazy images of the size of config.data, kept if all of them take no more than data.memory_gb.

    Args:
      config: the whole configuration.
      count: number of images.
      read: from the number of an image to its encoded bytes.
      name: from the number of an image to its name in errors.
      decode: from encoded bytes to uint8 [H, W, C].
      read_many: see `LazyImages`.
      labels: see `labels.labels_of`.

    Raises:
      MissingFiles: there are no images.
    """
    size, channels = config.data.image_size, config.data.num_channels
    if not count:
        raise MissingFiles(f"config.data.dir={config.data.dir!r}: no images there")
    shape = count, size, size, channels
    has_room = math.prod(shape) <= config.data.memory_gb * 1e9
    kept = np.empty(shape if has_room else (0, *shape[1:]), np.uint8)
    return LazyImages(shape, read, name, decode, kept, np.zeros(count, bool), read_many, labels)


def decoder(
    config: ConfigDict,
    arrange: Callable[[Image.Image, int], np.ndarray],
    decode: Callable[[bytes, int], Image.Image] = decode_image,
) -> Callable[[bytes], np.ndarray]:
    """Returns the function from encoded bytes to `arrange(decode(bytes, num_channels), image_size)`."""
    size, channels = config.data.image_size, config.data.num_channels
    return lambda content: arrange(decode(content, channels), size)


def lazy_files(
    config: ConfigDict,
    root: Path,
    names: list[str],
    decode: Callable[[bytes], np.ndarray],
    labels: Int[np.ndarray, " N"] | None = None,
) -> LazyImages:
    """Returns the images of encoded files below `root`."""
    read = lambda i: read_bytes(root / names[i])
    return lazy_images(config, len(names), read, lambda i: str(root / names[i]), decode, labels=labels)


def lazy_parts(
    config: ConfigDict,
    paths: list[Path],
    parts: list[tuple[int, int, int]],
    decode: Callable[[bytes], np.ndarray],
    labels: Int[np.ndarray, " N"] | None = None,
) -> LazyImages:
    """Returns the images that are parts of files, each given by (number of its path, offset, size)."""
    table = np.array(parts, np.int64).reshape(-1, 3)

    def read(i: int) -> bytes:
        path, offset, size = table[i].tolist()
        with paths[path].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    name = lambda i: f"{paths[table[i, 0]]}, image {i}"
    return lazy_images(config, len(table), read, name, decode, labels=labels)
