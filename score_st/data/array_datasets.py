"""Readers of data sets that fit in memory: `(config, split) -> uint8 [N, H, W, C]`, see `datasets.Dataset`."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import Shaped, UInt8
from score_st.config import ConfigError
from score_st.data import matlab
from score_st.data.files import SPLIT_NAMES, find, held_out, image_files, note, read_bytes, reading
from score_st.data.images import Images, decode_image
from score_st.data.labels import LABEL_NAMES, class_numbers, joined, labeled
from score_st.pytorch import unpickler
from score_st.runtime import numpy_files


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


def with_classes(parts: list[np.ndarray], labels: list[Any], paths: list[Path]) -> Images:
    """Returns `interleave` of the parts, which it empties, with their labels: numbers from 0, or None."""
    pairs = zip(labels, parts, paths, strict=True)
    numbers = [class_numbers(label, len(part), str(path)) for label, part, path in pairs]
    classes = joined(numbers, list(map(len, parts)))
    return labeled(interleave(parts), classes, str(paths[0]))


def read_digits(config: ConfigDict, split: str) -> Images:
    """Reads scikit-learn's handwritten digits, values 0 to 16: a fixed draw of 1,500 to train, 297 to test."""
    spec = importlib.util.find_spec("sklearn")  # the file alone: the import takes longer than a short run
    path = Path(str(spec and spec.origin)).parent / "datasets/data/digits.csv.gz"
    with reading(path):
        table = np.loadtxt(path, np.uint8, delimiter=",")
    order = np.random.RandomState(0).permutation(len(table))
    part = table[order[:1500] if split == "train" else order[1500:]]
    images = np.ascontiguousarray(part[:, :-1]).reshape(-1, 8, 8, 1)
    return labeled(images, part[:, -1].astype(int), str(path))


def _cifar_batch(path: Path) -> tuple[UInt8[np.ndarray, "N 3072"], Any]:
    """Reads the images and the labels, or None, of a file of CIFAR-10, of the Python or the binary version."""
    with reading(path):
        if path.suffix == ".bin":
            rows = np.fromfile(path, np.uint8).reshape(-1, 3073)
            return rows[:, 1:], rows[:, 0]
        content = unpickler.ArrayMachine({}).run(path.read_bytes())
        # Python 2 had no other text than bytes
        images, labels = (content.get(key.encode(), content.get(key)) for key in ("data", "labels"))
        if not isinstance(images, unpickler.Array) or images.value is None:
            raise ValueError("has no array data")
        return images.value.reshape(-1, 3072).astype(np.uint8, casting="no"), labels


def read_cifar10(config: ConfigDict, split: str) -> Images:
    """Reads CIFAR-10 (Krizhevsky 2009), the Python or the binary version: 50,000 and 10,000 images."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    folders = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
    paths = [find(config, name, name + ".bin", folders=folders) for name in names]
    parts, labels = map(list, zip(*map(_cifar_batch, paths), strict=True))
    return with_classes(parts, labels, paths)


def read_svhn(config: ConfigDict, split: str) -> Images:
    """Reads the cropped digits of SVHN (Netzer et al. 2011): 73,257 and 26,032 images."""
    path = find(config, f"{split}_32x32.mat")
    with reading(path):
        arrays = matlab.read(path, ("X", "y"))
        if "X" not in arrays:
            raise ValueError("has no array X")
        images, labels = arrays["X"], arrays.get("y")
        labels = None if labels is None else labels.ravel() % 10  # 10 is the digit 0
    check(path, images, "[32, 32, 3, N]", images.ndim == 4 and images.shape[:3] == (32, 32, 3))
    images = np.ascontiguousarray(np.moveaxis(images, 3, 0))
    return labeled(images, labels, str(path))


def read_numpy(path: Path, keys: list[str]) -> tuple[str, Shaped[np.ndarray, "..."]]:
    """Reads the array of an npy file, or the first of `keys` that an npz file has; refuses pickled objects.

    Returns:
      The key, "" for an npy file, and the array.
    """
    with reading(path):
        if not numpy_files.is_npz(path):
            return "", numpy_files.map_npy(path)
        names = numpy_files.names(path)
        key = next((key for key in keys if key in names), None)
        if key is None:
            raise ValueError(f"has {', '.join(names) or 'nothing'}; should have one of {', '.join(keys)}")
        return key, numpy_files.read_npz(path, [key])[key]


def read_imagenet32_resized(config: ConfigDict, split: str) -> Images:
    """Reads ImageNet 32x32 of Chrabaszcz et al. (2017): 1,281,167 and 50,000 images.

    Published figures for ImageNet32 are for IMAGENET32, whose images differ.
    """
    names = [f"train_data_batch_{i}.npz" for i in range(1, 11)] if split == "train" else ["val_data.npz"]
    paths = [find(config, name, folders=("", "Imagenet32_train_npz", "Imagenet32_val_npz")) for name in names]
    parts, labels = [read_numpy(path, ["data"])[1] for path in paths], list[Any]()
    for path, part in zip(paths, parts, strict=True):
        check(path, part, "[N, 3072]", part.shape[1:] == (3072,))
        numbers = class_numbers(_labels(path, ["labels"]), len(part), str(path))  # 1 ... 1000
        labels.append(None if numbers is None else numbers - 1)
    return with_classes(parts, labels, paths)


def _labels(path: Path, keys: list[str]) -> Any:
    """Returns the first of the arrays `keys` of an npz file, or None."""
    with reading(path):
        names = numpy_files.names(path)
        key = next((key for key in keys if key in names), None)
        return None if key is None else numpy_files.read_npz(path, [key])[key]


def read_own_array(config: ConfigDict, split: str) -> Images:
    """Reads the user's npy or npz file, or a folder with train.npy (or npz) and test.npy (or npz).

    A file that holds one array for both splits has a fixed random tenth of it held out for testing. Classes are those
    of an npz file's y_train and y_test, labels, or arr_1 beside arr_0.
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
    of_split = [f"y_{name}" for name in SPLIT_NAMES[split]]
    others = of_split if key in split_keys else [*LABEL_NAMES, *(["arr_1"] if key == "arr_0" else [])]
    try:
        labels = class_numbers(_labels(path, [*others, *LABEL_NAMES]) if key else None, len(images), str(path))
    except ConfigError as error:  # an array of such a name may be anything
        note(f"{error}. They are not read as classes")
        labels = None
    if not has_split and key not in split_keys:
        part = held_out(len(images), split)
        images, labels = images[part], None if labels is None else labels[part]
    return labeled(images, labels, str(path))


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
