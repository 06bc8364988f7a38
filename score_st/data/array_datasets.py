"""Readers of data sets that fit in memory: `(config, split) -> uint8 [N, H, W, C]`, see `datasets.Dataset`."""

import gzip
import io
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import Shaped, UInt8
from score_st.config import ConfigError
from score_st.data.files import SPLIT_NAMES, find, held_out, image_files, read_bytes, reading
from score_st.data.images import decode_image


def check(path: Path, array: np.ndarray, shape: str, fits: bool) -> None:
    """Raises ConfigError for an array that is not uint8 or does not have the `shape`."""
    if array.dtype != np.uint8 or not fits:
        raise ConfigError(f"{path}: is {array.dtype}{list(array.shape)}; should be uint8 {shape}")


def interleave(parts: list[np.ndarray]) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Joins arrays [n, 3072] that hold the red, then the green, then the blue plane; empties the list."""
    images, start = np.empty((sum(map(len, parts)), 32, 32, 3), np.uint8), 0
    while parts:  # one by one, so that at most one part is in memory twice
        part = parts.pop(0).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        images[start : start + len(part)] = part
        start += len(part)
    return images


def read_digits(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N 8 8 1"]:
    """Reads scikit-learn's handwritten digits, values 0 to 16: a fixed draw of 1,500 to train, 297 to test."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)[..., None]
    order = np.random.RandomState(0).permutation(len(images))
    return images[order[:1500] if split == "train" else order[1500:]]


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Reads a file of MNIST's idx format, compressed by gzip or not.

    Raises:
      ConfigError: it can't be read, or is not a complete idx file of bytes.
    """
    with reading(path):
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    dims = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else -1  # 8 is the code of bytes
    sizes = content[4 : 4 + 4 * max(dims, 0)]
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist()
    if dims < 1 or len(shape) < dims or len(content) != 4 + 4 * dims + math.prod(shape):
        raise ConfigError(f"{path}: not an idx file of bytes, or truncated; should be a file of the original release")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_fashion_mnist(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N H W 1"]:
    """Reads Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 images, 28x28, padded with black to 32x32.

    With data.image_size=16, each 2x2 pixels of these are averaged.
    """
    path = find_fashion_mnist(config, f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte")
    images = read_idx(path)
    check(path, images, "[N, 28, 28]", images.ndim == 3 and images.shape[1:] == (28, 28))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    return halved(images) if config.data.image_size == 16 else images


def find_fashion_mnist(config: ConfigDict, stem: str) -> Path:
    """Returns the path of one of Fashion-MNIST's files, compressed or not."""
    folders = ("",) if config.data.dir else ("", "/usr/share/datasets/fashion-mnist")  # where Debian has it
    return find(config, stem, stem + ".gz", folders=folders)


def halved(images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N h w C"]:
    """Returns images of half the size, whose pixels are the means of 2x2 pixels, rounded half up."""
    count, height, width, channels = images.shape
    sums = images.reshape(count, height // 2, 2, width // 2, 2, channels).sum((2, 4), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and arrays; refuses everything else that a pickle may call."""

    allowed = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
    allowed |= {"numpy ndarray", "numpy dtype", "_codecs encode"}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in self.allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no batch of CIFAR-10 needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_batch(path: Path) -> UInt8[np.ndarray, "N 3072"]:
    """Reads one of CIFAR-10's files, of the Python or the binary version."""
    with reading(path):
        if path.suffix == ".bin":
            return np.fromfile(path, np.uint8).reshape(-1, 3073)[:, 1:]
        rows = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()[b"data"]
        return rows.reshape(-1, 3072).astype(np.uint8, casting="no")


def read_cifar10(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Reads CIFAR-10 (Krizhevsky 2009), the Python or the binary version: 50,000 and 10,000 images."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    folders = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
    return interleave([_cifar_batch(find(config, name, name + ".bin", folders=folders)) for name in names])


def read_svhn(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Reads the cropped digits of SVHN (Netzer et al. 2011): 73,257 and 26,032 images."""
    import scipy.io

    path = find(config, f"{split}_32x32.mat")
    with reading(path):
        images = scipy.io.loadmat(path, variable_names=["X"])["X"]
    check(path, images, "[32, 32, 3, N]", images.ndim == 4 and images.shape[:3] == (32, 32, 3))
    return np.ascontiguousarray(np.moveaxis(images, 3, 0))


def read_numpy(path: Path, keys: list[str]) -> tuple[str, Shaped[np.ndarray, "..."]]:
    """Reads the array of an npy file, or the first of `keys` that an npz file has; refuses pickled objects.

    Returns:
      The key, "" for an npy file, and the array.
    """
    with reading(path):
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        names = getattr(loaded, "files", None)
        if names is None:
            return "", loaded
        key = next((key for key in keys if key in names), None)
        if key is None:
            raise ValueError(f"has {', '.join(names) or 'nothing'}; should have one of {', '.join(keys)}")
        return key, loaded[key]


def read_imagenet32_resized(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Reads ImageNet 32x32 of Chrabaszcz et al. (2017): 1,281,167 and 50,000 images.

    Published figures for ImageNet32 are for IMAGENET32, whose images differ.
    """
    names = [f"train_data_batch_{i}.npz" for i in range(1, 11)] if split == "train" else ["val_data.npz"]
    paths = [find(config, name, folders=("", "Imagenet32_train_npz", "Imagenet32_val_npz")) for name in names]
    parts = [read_numpy(path, ["data"])[1] for path in paths]
    for path, part in zip(paths, parts, strict=True):
        check(path, part, "[N, 3072]", part.shape[1:] == (3072,))
    return interleave(parts)


def read_own_array(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N H W C"]:
    """Reads the user's npy or npz file, or a folder with train.npy (or npz) and test.npy (or npz).

    A file that holds one array for both splits has a fixed random tenth of it held out for testing.
    """
    path, has_split = find(config), False
    if path.is_dir():
        wanted = [name + suffix for name in SPLIT_NAMES[split] for suffix in (".npy", ".npz")]
        names = sorted(os.listdir(path))  # in any case
        path = find(config, *[name for want in wanted for name in names if name.lower() == want] or wanted)
        has_split = True
    split_keys = [key for name in SPLIT_NAMES[split] for key in (name, f"x_{name}")]
    key, images = read_numpy(path, [*split_keys, "images", "samples", "arr_0"])
    images = images[..., None] if images.ndim == 3 else images
    fits = images.ndim == 4 and images.shape[3] in (1, 3) and len(images) > 0
    check(path, images, "[N, H, W] or [N, H, W, C]", fits)
    return images if has_split or key in split_keys else images[held_out(len(images), split)]


def read_photos(config: ConfigDict, split: str) -> UInt8[np.ndarray, "N H W C"]:
    """Reads random crops, always the same, of the photographs in data.dir, or of scikit-learn's two, at full size.

    10,000 to train from the left four fifths of each photograph, 1,000 to test from the rest.
    """
    import sklearn.datasets

    root = find(config) if config.data.dir else Path(sklearn.datasets.__file__).parent / "images"
    size, test = config.data.image_size, split == "test"
    contents = (read_bytes(root / name) for name in image_files(root))
    photos = [np.asarray(decode_image(content, config.data.num_channels)) for content in contents]
    parts = [np.split(a.reshape(*a.shape[:2], -1), [a.shape[1] * 4 // 5], axis=1)[test] for a in photos]
    parts = [part for part in parts if min(part.shape[:2]) >= size]
    if not parts:
        raise ConfigError(f"config.data.dir={str(root)!r}: no photograph there has room for crops of {size} pixels")
    draw, crops = np.random.RandomState(test), []
    for i in range(1_000 if test else 10_000):
        part = parts[i % len(parts)]
        top, left = (draw.randint(length - size + 1) for length in part.shape[:2])
        crops.append(part[top : top + size, left : left + size])
    return np.stack(crops)
