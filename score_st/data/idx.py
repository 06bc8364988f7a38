"""MNIST and the sets that come in its idx format, images of 28x28 that are padded with black to 32x32.

With data.image_size=16, each 2x2 pixels of these are averaged.
"""

import functools
import gzip
import hashlib
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.data.files import find, reading
from score_st.data.images import Images
from score_st.data.labels import labeled, labels_of

# MD5 of the releases' images, as files or unpacked, since the files of all have the same names
KNOWN = {
    "6bbc9ace898e44ae57da46a324031adb": "MNIST",
    "2646ac647ad5339dbf082846283269ea": "MNIST",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873": "MNIST",
    "9fb629c4189551a2d022fa330f9573f3": "MNIST",
    "f4a8712d7a061bf5bd6d2ca38dc4d50a": "FASHION_MNIST",
    "8181f5470baa50b63fa0f6fddb340f0a": "FASHION_MNIST",
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d": "FASHION_MNIST",
    "bef4ecab320f06d8554ea6380940ec79": "FASHION_MNIST",
    "bdb82020997e1d708af4cf47b453dcf7": "KMNIST",
    "5c965bf0a639b31b8f53240b1b52f4d7": "KMNIST",
}


def read_idx(path: Path, name: str = "") -> UInt8[np.ndarray, "..."]:
    """Reads a file of MNIST's idx format, compressed by gzip or not.

    Args:
      path: of the file.
      name: of a data set: it is an error if the file is known to be of another one.

    Raises:
      ConfigError: it can't be read, is not a complete idx file of bytes, or is of another data set.
    """
    hint, digest = "should be a file of the original release", functools.partial(hashlib.md5, usedforsecurity=False)
    with reading(path), path.open("rb") as file:
        sums = {hashlib.file_digest(file, digest).hexdigest()}
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.open(file) if packed else file
        head = stream.read(4)
        dims = head[3] if head[:3] == b"\0\0\x08" and len(head) > 3 else -1  # 8 is the code of bytes
        sizes = stream.read(4 * max(dims, 0))
        shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist()
        count, content = math.prod(shape), bytearray()
        if dims < 1 or len(shape) < dims or not count:
            raise ValueError(f"not an idx file of bytes, or empty; {hint}")
        # piece by piece, as a small file may decompress to a large one, and a header may ask for too much
        while len(content) <= count and (part := stream.read(min(2**20, count + 1 - len(content)))):
            content += part
        if len(content) != count:
            raise ValueError(f"truncated, or too long for {shape}; {hint}")
        sums.add(digest(head + sizes + content).hexdigest())
    if name and (others := {KNOWN.get(known, name) for known in sums} - {name}):
        other = others.pop()
        raise ConfigError(f"{path}: is of {other} by its MD5, not of {name}; set data.dataset={other}, or data.dir")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read(config: ConfigDict, name: str, stem: str, folders: tuple[str, ...] = ("",)) -> Images:
    """Reads the images of `stem`-images-idx3-ubyte, compressed or not, and the labels beside them, if any."""
    path = find(config, f"{stem}-images-idx3-ubyte", f"{stem}-images-idx3-ubyte.gz", folders=folders)
    images = read_idx(path, name)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ConfigError(f"{path}: is {images.dtype}{list(images.shape)}; should be uint8 [N, 28, 28]")
    classes = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = read_idx(classes) if classes.exists() else None
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    return labeled(halved(images) if config.data.image_size == 16 else images, labels, str(classes))


def halved(images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N h w C"]:
    """Returns images of half the size, whose pixels are the means of 2x2 pixels, rounded half up."""
    count, height, width, channels = images.shape
    sums = images.reshape(count, height // 2, 2, width // 2, 2, channels).sum((2, 4), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


def _stem(split: str) -> str:
    return "train" if split == "train" else "t10k"


def read_mnist(config: ConfigDict, split: str) -> Images:
    """Reads MNIST (LeCun et al. 1998): 60,000 and 10,000 handwritten digits."""
    return _read(config, "MNIST", _stem(split))


def read_kmnist(config: ConfigDict, split: str) -> Images:
    """Reads Kuzushiji-MNIST (Clanuwat et al. 2018): 60,000 and 10,000 characters of cursive Japanese."""
    return _read(config, "KMNIST", _stem(split))


def read_fashion_mnist(config: ConfigDict, split: str) -> Images:
    """Reads Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 pictures of clothes."""
    folders = ("",) if config.data.dir else ("", "/usr/share/datasets/fashion-mnist")  # where Debian has it
    return _read(config, "FASHION_MNIST", _stem(split), folders)


def read_emnist(config: ConfigDict, split: str) -> Images:
    """Reads EMNIST (Cohen et al. 2017), turned upright: its files hold each image transposed.

    data.category is the split of it: byclass, bymerge, balanced, letters, digits or mnist. Labels begin at 0; the
    files of letters have 1 to 26.
    """
    category = config.data.category
    images = _read(config, "EMNIST", f"emnist-{category}-{split}", ("", "gzip"))
    upright = np.ascontiguousarray(np.asarray(images).swapaxes(1, 2))
    labels = labels_of(images)
    return labeled(upright, labels if labels is None else labels - (category == "letters"), "EMNIST")
