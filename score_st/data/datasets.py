"""Data sets: each a function of (config, split) to images uint8 [N, H, W, C], read from the files of its release.

`split` is "train" or "test". What is large stays in its files and is decoded where it is read (`pictures.Encoded`).
Every function raises ConfigError where its files are missing or are not what they should be.
"""

import functools
import gzip
import io
import math
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from score_st.config import ConfigError, choose
from score_st.data import images as pictures
from score_st.data import tfrecord
from score_st.data.images import reading

ALIASES = {"train": ("train",), "test": ("test", "valid", "validation", "val")}


class Missing(ConfigError):
    """The files of a data set are not where they are looked for."""


def find(config, *names: str, folders: tuple[str, ...] = ("",)) -> Path:
    """The first of `names` that is in data.dir, or in one of its `folders`; otherwise says where it is to be had."""
    places = [Path(config.data.dir or ".") / folder for folder in folders]
    for path in (place / name for place in places for name in names):
        if path.exists():
            return path
    raise Missing(
        f"config.data.dir={config.data.dir!r}: no {' or '.join(filter(None, names)) or 'file'} there (looked in "
        f"{', '.join(map(str, places))}); {SOURCES[config.data.dataset][1]}"
    )


def check(path: Path, array: np.ndarray, shape: str, fits: bool):
    """Raises ConfigError for an array that is not uint8, or does not fit."""
    if array.dtype != np.uint8 or not fits:
        raise ConfigError(f"{path}: is {array.dtype}{list(array.shape)}; should be uint8 {shape}")


def held_out(count: int, split: str) -> np.ndarray:
    """Numbers of the images of `split` where a set has no test images: a fixed draw of a tenth, or of 10,000."""
    if count < 2:
        raise ConfigError(f"only {count} images, none for a test set; should be 2 or more")
    order, test = np.random.RandomState(0).permutation(count), min(10_000, max(count // 10, 1))
    return np.sort(order[:-test] if split == "train" else order[-test:])


def planes(parts: list[np.ndarray]) -> np.ndarray:
    """[N, 32, 32, 3] of arrays [n, 3072] that have red, green and blue one after the other; empties the list."""
    out, at = np.empty((sum(map(len, parts)), 32, 32, 3), np.uint8), 0
    while parts:  # so that no more than one part is there twice
        part = parts.pop(0).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        out[at : at + len(part)] = part
        at += len(part)
    return out


# ---- data sets of arrays


def digits(config, split: str) -> np.ndarray:
    """Scikit-learn's handwritten digits, 8x8x1 with values 0-16: 1,500 to train and 297 to test, a fixed draw."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)[..., None]
    order = np.random.RandomState(0).permutation(len(images))
    return images[order[:1500] if split == "train" else order[1500:]]


def read_idx(path: Path) -> np.ndarray:
    """A file of MNIST's idx format, packed by gzip or not: uint8 of any shape.

    Raises:
      ConfigError: it can't be read, or is no whole idx file of bytes.
    """
    with reading(path):
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    dims = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else -1  # 8 is the code of bytes
    sizes = content[4 : 4 + 4 * max(dims, 0)]
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist()
    if dims < 1 or len(shape) < dims or len(content) != 4 + 4 * dims + math.prod(shape):
        raise ConfigError(f"{path}: is no idx file of bytes, or cut off; should be a file of the original release")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def fashion_mnist(config, split: str) -> np.ndarray:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 and 10,000 images, 28x28 in a black frame to 32x32."""
    stem = f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte"
    folders = ("",) if config.data.dir else ("", "/usr/share/datasets/fashion-mnist")  # where Debian has it
    path = find(config, stem, stem + ".gz", folders=folders)
    images = read_idx(path)
    check(path, images, "[N, 28, 28]", images.ndim == 3 and images.shape[1:] == (28, 28))
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]


class _Arrays(pickle.Unpickler):
    """Makes containers, numbers, strings and arrays, and calls nothing else that a pickle names."""

    arrays = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct", "numpy ndarray"}

    def find_class(self, module, name):
        if f"{module} {name}" not in self.arrays | {"numpy dtype", "_codecs encode"}:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no batch of CIFAR-10 needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_batch(path: Path) -> np.ndarray:
    """Rows [N, 3072] of one of CIFAR-10's files, of the Python or the binary version."""
    with reading(path):
        if path.suffix == ".bin":
            return np.fromfile(path, np.uint8).reshape(-1, 3073)[:, 1:]
        rows = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()[b"data"]
        return rows.reshape(-1, 3072).astype(np.uint8, casting="no")


def cifar10(config, split: str) -> np.ndarray:
    """CIFAR-10 (Krizhevsky 2009), the Python or the binary version: 50,000 and 10,000 images, 32x32x3."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    folders = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
    return planes([_cifar_batch(find(config, name, name + ".bin", folders=folders)) for name in names])


def svhn(config, split: str) -> np.ndarray:
    """SVHN's cropped digits (Netzer et al. 2011): 73,257 and 26,032 images, 32x32x3."""
    import scipy.io

    path = find(config, f"{split}_32x32.mat")
    with reading(path):
        images = scipy.io.loadmat(path, variable_names=["X"])["X"]
    check(path, images, "[32, 32, 3, N]", images.ndim == 4 and images.shape[:3] == (32, 32, 3))
    return np.ascontiguousarray(np.moveaxis(images, 3, 0))


def read_array(path: Path, keys: list[str]) -> tuple[str, np.ndarray]:
    """The first of `keys` that an npz file has, or "" for an npy file, and the array; pickled objects are refused."""
    with reading(path):
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        names = getattr(loaded, "files", None)
        if names is None:
            return "", loaded
        key = next((key for key in keys if key in names), None)
        if key is None:
            raise ValueError(f"has {', '.join(names) or 'nothing'}; should have one of {', '.join(keys)}")
        return key, loaded[key]


def imagenet32_resized(config, split: str) -> np.ndarray:
    """ImageNet 32x32 of Chrabaszcz et al. (2017): 1,281,167 and 50,000 images, not those of IMAGENET32's figures."""
    names = [f"train_data_batch_{i}.npz" for i in range(1, 11)] if split == "train" else ["val_data.npz"]
    paths = [find(config, name, folders=("", "Imagenet32_train_npz", "Imagenet32_val_npz")) for name in names]
    parts = [read_array(path, ["data"])[1] for path in paths]
    for path, part in zip(paths, parts, strict=True):
        check(path, part, "[N, 3072]", part.shape[1:] == (3072,))
    return planes(parts)


def own_array(config, split: str) -> np.ndarray:
    """Anyone's npy or npz file, or a folder with train.npy (or npz) and test.npy (or npz)."""
    path, whole = find(config, ""), False
    if path.is_dir():
        path, whole = find(config, *(alias + end for alias in ALIASES[split] for end in (".npy", ".npz"))), True
    own = [key for alias in ALIASES[split] for key in (alias, f"x_{alias}")]
    key, images = read_array(path, [*own, "images", "samples", "arr_0"])
    images = images[..., None] if images.ndim == 3 else images
    check(path, images, "[N, H, W] or [N, H, W, C]", images.ndim == 4 and images.shape[3] in (1, 3) and len(images))
    return images if whole or key in own else images[held_out(len(images), split)]


def photos(config, split: str) -> np.ndarray:
    """Random crops of photographs, scikit-learn's two or those of data.dir, at full resolution and always the same.

    10,000 to train from the left four fifths of each photograph, 1,000 to test from the rest.
    """
    import sklearn.datasets

    root = Path(config.data.dir or Path(sklearn.datasets.__file__).parent / "images")
    size, test = config.data.image_size, split == "test"
    whole = pictures.decoder(config, lambda image, _: np.asarray(image))
    pixels = [whole((root / name).read_bytes()) for name in image_files(root)]
    parts = [np.split(a.reshape(*a.shape[:2], -1), [a.shape[1] * 4 // 5], axis=1)[test] for a in pixels]
    parts = [part for part in parts if min(part.shape[:2]) >= size]
    if not parts:
        raise ConfigError(f"config.data.dir={str(root)!r}: no photograph with {size} pixels to spare there")
    draw, crops = np.random.RandomState(test), []
    for i in range(1_000 if test else 10_000):
        part = parts[i % len(parts)]
        top, left = (draw.randint(length - size + 1) for length in part.shape[:2])
        crops.append(part[top : top + size, left : left + size])
    return np.stack(crops)


# ---- data sets of encoded images


def image_files(root: Path) -> list[str]:
    """Names below `root` of all files with a picture's ending, in order, hidden ones left out."""
    Image.init()
    paths = (Path(folder, name).relative_to(root) for folder, _, names in os.walk(root) for name in names)
    shown = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(str(path) for path in shown if path.suffix.lower() in Image.EXTENSION)


def folder(config, split: str) -> pictures.Encoded:
    """Anyone's folder of images, in folders of classes or not: central squares, resized by Lanczos's filter.

    With subfolders train and test (or valid, validation, val); or else a fixed draw is the test set.
    """
    root = find(config, "")
    own = (root / "train").is_dir()
    root = find(config, *ALIASES[split]) if own else root
    names = image_files(root)
    chosen = range(len(names)) if own or not names else held_out(len(names), split)
    decode = pictures.decoder(config, pictures.fit)
    return pictures.of_files(config, root, [names[i] for i in chosen], decode)


def celeba(config, split: str) -> pictures.Encoded:
    """CelebA (Liu et al. 2015), aligned: 162,770 and 19,962 images, cropped to 140x140 and resized."""
    lists = find(config, "list_eval_partition.txt", folders=("", "Eval", "celeba"))
    root = find(config, "img_align_celeba", folders=("", "Img", "celeba"))
    with reading(lists):
        rows = [line.split() for line in lists.read_text().splitlines() if line.strip()]
        names = [name for name, part in rows if part == ("0" if split == "train" else "2")]
    decode = pictures.decoder(config, pictures.celeba, pictures.as_tensorflow)
    return pictures.of_files(config, root, names, decode)


def imagenet32(config, split: str) -> pictures.Encoded:
    """ImageNet 32x32 of van den Oord et al. (2016), the official one: 1,281,149 and 49,999 PNG files, or their tar."""
    stem = "train_32x32" if split == "train" else "valid_32x32"
    path, parts = find(config, stem, stem + ".tar", folders=("", "small", "IMAGENET32/small")), []
    decode = pictures.decoder(config, pictures.fit)
    if path.is_dir():
        return pictures.of_files(config, path, image_files(path), decode)
    with reading(path), tarfile.open(path, "r:") as tar:
        while member := tar.next():
            parts += [(0, member.offset_data, member.size)] if member.isfile() else []
            tar.members = []  # a million of them are gigabytes
    return pictures.of_parts(config, [path], parts, decode)


def stl10(config, split: str) -> pictures.Encoded:
    """STL-10 (Coates et al. 2011): 105,000 images, labelled or not, and 8,000; 96x96, resized by Pillow's bilinear."""
    names = ("train_X.bin", "unlabeled_X.bin") if split == "train" else ("test_X.bin",)
    paths = [find(config, name, folders=("", "stl10_binary")) for name in names]
    one, size = 3 * 96 * 96, config.data.image_size
    parts = [(k, i, one) for k, path in enumerate(paths) for i in range(0, path.stat().st_size, one)]

    def decode(content):
        pixels = np.frombuffer(content, np.uint8).reshape(3, 96, 96).transpose(2, 1, 0)  # columns come first
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.BILINEAR))

    return pictures.of_parts(config, paths, parts, decode)


@functools.cache  # a process may not open one twice
def _lmdb(path: Path):
    import lmdb

    return lmdb.open(str(path), readonly=True, lock=False, readahead=False)


def lsun(config, split: str) -> pictures.Encoded:
    """LSUN (Yu et al. 2015), data.category: central squares, resized by the official bicubic filter."""
    path = find(config, f"{config.data.category}_{'train' if split == 'train' else 'val'}_lmdb", folders=("", "lsun"))
    with reading(path):
        base = _lmdb(path.resolve())
        with base.begin() as transaction:
            keys = np.array(list(transaction.cursor().iternext(keys=True, values=False)))

    def read(i):
        with base.begin() as transaction:
            return transaction.get(bytes(keys[i]))

    decode = pictures.decoder(config, pictures.lsun, pictures.as_tensorflow)
    return pictures.encoded(config, len(keys), read, lambda i: f"{path}, {keys[i].decode()}", decode)


def tfrecords(config, split: str) -> pictures.Encoded:
    """CelebA-HQ and FFHQ as Progressive GAN's TFRecords, data.tfrecords_path; both splits are officially all of it."""
    path = find(config, config.data.tfrecords_path)
    with reading(path):
        parts = [(0, offset, size) for offset, size in tfrecord.index(path)]

    def decode(content):
        values = tfrecord.example(tfrecord.checked(content))
        planes = np.frombuffer(values["data"][0], np.uint8).reshape(tfrecord.numbers(values["shape"]))
        return planes.transpose(1, 2, 0)

    return pictures.of_parts(config, [path], parts, decode)


def array_record(config, split: str) -> pictures.Encoded:
    """Anyone's ArrayRecord files of encoded images, or of examples with one as `image`, as TensorFlow Datasets makes.

    The split is in the files' names (train, test, valid, validation, val); or else a fixed draw is the test set.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    root = find(config, "")
    files = sorted(root.rglob("*.array_record*")) if root.is_dir() else [root]
    of = {s: [f for f in files if any(f"-{alias}." in f"-{f.name}" for alias in ALIASES[s])] for s in ALIASES}
    own = bool(of["train"] and of["test"])
    with reading(root):
        source = ArrayRecordDataSource([str(file) for file in (of[split] if own else files)])
        chosen = np.arange(len(source)) if own else held_out(len(source), split)

    def read(i):
        record = source[int(chosen[i])]
        return tfrecord.example(record)["image"][0] if record[:1] == b"\n" else record  # an example's first byte

    name, decode = lambda i: f"{root}, record {chosen[i]}", pictures.decoder(config, pictures.fit)
    return pictures.encoded(config, len(chosen), read, name, decode)


SOURCES = {  # what reads them, and where their files are to be had
    "DIGITS": (digits, "it comes with scikit-learn"),
    "FASHION_MNIST": (
        fashion_mnist,
        "it is in Debian's dataset-fashion-mnist and at github.com/zalandoresearch/fashion-mnist (MD5 of "
        "train-images-idx3-ubyte.gz: 8d4fb7e6c68d591d4c3dfef9ec88bf0d)",
    ),
    "CIFAR10": (cifar10, "unpack cs.toronto.edu/~kriz/cifar-10-python.tar.gz, MD5 c58f30108f718f92721af3b95e74349a"),
    "SVHN": (
        svhn,
        "it is at ufldl.stanford.edu/housenumbers (MD5 of train_32x32.mat: e26dedcc434d2e4c54c9b2d4a06d8373, of "
        "test_32x32.mat: eb5a983be6a315427106f1b164d9cef3)",
    ),
    "CELEBA": (
        celeba,
        "put list_eval_partition.txt (MD5 d32c9cbf5e040fd4025c592c306e6668) and what is in img_align_celeba.zip (MD5 "
        "00d2c5bc6d35e252742224ab0c1e8fcb) there, from mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
    "IMAGENET32": (
        imagenet32,
        "put train_32x32.tar (SHA-256 244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5) and "
        "valid_32x32.tar (862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7) of image-net.org/small "
        "there; those of 2017, which are still there, are IMAGENET32_RESIZED",
    ),
    "IMAGENET32_RESIZED": (
        imagenet32_resized,
        "unpack Imagenet32_train_npz.zip (SHA-256 94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc) "
        "and Imagenet32_val_npz.zip (013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a) of "
        "image-net.org/download-images there",
    ),
    "STL10": (
        stl10,
        "unpack cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz MD5 91f7769df0f17e558f3565bffb0c7dfb",
    ),
    "LSUN": (lsun, "unpack dl.yf.io/lsun/scenes/CATEGORY_train_lmdb.zip and CATEGORY_val_lmdb.zip there"),
    "CelebAHQ": (tfrecords, "dataset_tool.py of github.com/tkarras/progressive_growing_of_gans makes it"),
    "FFHQ": (tfrecords, "it is at github.com/NVlabs/ffhq-dataset, in tfrecords/ffhq"),
    "PHOTOS": (photos, "should be a folder of photographs"),
    "FOLDER": (folder, "should be a folder of images"),
    "NPY": (own_array, "should be an npy or npz file of uint8 [N, H, W, C]"),
    "NPZ": (own_array, "should be an npy or npz file of uint8 [N, H, W, C]"),
    "ARRAYRECORD": (array_record, "should be a folder of ArrayRecord files"),
}


def read(config, split: str) -> np.ndarray | pictures.Encoded:
    """The images of data.dataset; raises ConfigError for an unknown one, or files that are missing or damaged."""
    function, _ = choose(SOURCES, config.data.dataset, "data.dataset")
    try:
        images = function(config, split)
        images[:1]  # an encoded one may be broken or of another size
        return images
    except ImportError as error:
        package = error.name.replace("_", "-")
        raise ConfigError(f"config.data.dataset={config.data.dataset}: needs pip install {package}") from error
    except OSError as error:
        raise ConfigError(f"config.data.dir={config.data.dir!r}: can't be read ({error})") from error
