"""Readers of data sets of encoded images: `(config, split) -> LazyImages`, see `datasets.Dataset`."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_st.array_types import UInt8
from score_st.data import tfrecord
from score_st.data.containers import tar_members
from score_st.data.files import (
    LIST,
    check_numbered,
    files_of_split,
    find,
    held_out,
    image_files,
    name_of_split,
    read_bytes,
    reading,
    split_folders,
    subfolders,
)
from score_st.data.images import (
    LazyImages,
    decode_as_tensorflow,
    decoder,
    lazy_files,
    lazy_images,
    lazy_parts,
    resize_celeba,
    resize_lsun,
    resize_square,
)
from score_st.data.labels import LABEL_NAMES, class_numbers, classes_of, joined, labels_of_files
from score_st.runtime import storage

READ_TOGETHER = 1024  # records, for their classes


def read_folder(config: ConfigDict, split: str) -> LazyImages:
    """Reads the user's folder of images, with or without subfolders: central squares, resized by Lanczos's filter.

    Subfolders train and test (or valid, validation, val), in any case, are the splits; without them, or with train
    alone, a fixed random tenth is the test set. See `files.image_files` for what is read, and
    `labels.labels_of_files` for the classes.
    """
    top = find(config)
    splits = split_folders(top)
    name, own = name_of_split(top, splits, split)
    root = top / name
    names = image_files(root)
    folders = [name for part in splits.values() or ("",) for name in subfolders(top / part)]
    listed = read_bytes(root / LIST) if (root / LIST).is_file() else None
    labels = labels_of_files(names, classes_of(folders), listed, str(root / LIST))
    if names and not own:
        part = held_out(len(names), split)
        names, labels = [names[i] for i in part], None if labels is None else labels[part]
    return lazy_files(config, root, names, decoder(config, resize_square), labels)


def read_celeba(config: ConfigDict, split: str) -> LazyImages:
    """Reads CelebA (Liu et al. 2015), aligned: 162,770 and 19,962 images, cropped to 140x140 and resized."""
    partition = find(config, "list_eval_partition.txt", folders=("", "Eval", "celeba"))
    root = find(config, "img_align_celeba", folders=("", "Img", "celeba"))
    with reading(partition):
        rows = [line.split() for line in partition.read_text().splitlines() if line.strip()]
        names = [name for name, part in rows if part == ("0" if split == "train" else "2")]
    return lazy_files(config, root, names, decoder(config, resize_celeba, decode_as_tensorflow))


def read_imagenet32(config: ConfigDict, split: str) -> LazyImages:
    """Reads ImageNet 32x32 of van den Oord et al. (2016), the official one: 1,281,149 and 49,999 PNG files.

    The files are in a folder, or in the tar file of the release, which is read where it is.
    """
    stem = "train_32x32" if split == "train" else "valid_32x32"
    path = find(config, stem, stem + ".tar", folders=("", "small", "IMAGENET32/small"))
    decode = decoder(config, resize_square)
    if path.is_dir():
        return lazy_files(config, path, image_files(path), decode)
    with reading(path):
        parts = [(0, offset, size) for _, offset, size in tar_members(path)]
    return lazy_parts(config, [path], parts, decode)


def read_stl10(config: ConfigDict, split: str) -> LazyImages:
    """Reads STL-10 (Coates et al. 2011): 105,000 images, labeled and unlabeled, and 8,000 to test.

    They are 96x96 and resized by Pillow's bilinear filter.
    """
    names = ("train_X.bin", "unlabeled_X.bin") if split == "train" else ("test_X.bin",)
    paths = [find(config, name, folders=("", "stl10_binary")) for name in names]
    length, size = 3 * 96 * 96, config.data.image_size
    parts = [(k, i, length) for k, path in enumerate(paths) for i in range(0, path.stat().st_size, length)]

    def decode(content: bytes) -> UInt8[np.ndarray, "H W C"]:
        pixels = np.frombuffer(content, np.uint8).reshape(3, 96, 96).transpose(2, 1, 0)  # stored column by column
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))

    counts, labels = [-(-path.stat().st_size // length) for path in paths], list[np.ndarray | None]()
    for path, count in zip(paths, counts, strict=True):
        classes = path.with_name(path.name.replace("_X", "_y"))  # of labeled images, 1 ... 10
        with reading(classes):
            numbers = np.fromfile(classes, np.uint8).astype(np.int32) - 1 if classes.is_file() else None
        labels.append(class_numbers(numbers, count, str(classes)))
    return lazy_parts(config, paths, parts, decode, joined(labels, counts))


@functools.cache  # a process may not open one twice
def _lmdb(path: Path) -> Any:
    import lmdb

    return lmdb.open(str(path), readonly=True, lock=False, readahead=False)


def read_lsun(config: ConfigDict, split: str) -> LazyImages:
    """Reads data.category of LSUN (Yu et al. 2015): central squares, resized by the official bicubic filter."""
    path = find(config, f"{config.data.category}_{'train' if split == 'train' else 'val'}_lmdb", folders=("", "lsun"))
    with reading(path):
        database = _lmdb(path.resolve())
        with database.begin() as transaction:
            keys = np.array(list(transaction.cursor().iternext(keys=True, values=False)))

    def read(i: int) -> bytes:
        with database.begin() as transaction:
            return transaction.get(bytes(keys[i]))

    name = lambda i: f"{path}, {bytes(keys[i]).decode()}"
    return lazy_images(config, len(keys), read, name, decoder(config, resize_lsun, decode_as_tensorflow))


def read_tfrecords(config: ConfigDict, split: str) -> LazyImages:
    """Reads CelebA-HQ or FFHQ from Progressive GAN's TFRecords, data.tfrecords_path; both splits are all images.

    Testing on the training images is what the official code does.
    """
    path = find(config, config.data.tfrecords_path)
    with reading(path):
        parts = [(0, offset, size) for offset, size in tfrecord.index(path)]

    def decode(content: bytes) -> UInt8[np.ndarray, "H W C"]:
        features = tfrecord.parse_example(tfrecord.strip_checksum(content))
        planes = np.frombuffer(features["data"][0], np.uint8).reshape(tfrecord.integers(features["shape"]))
        return planes.transpose(1, 2, 0)

    return lazy_parts(config, [path], parts, decode)


def read_array_record(config: ConfigDict, split: str) -> LazyImages:
    """Reads the user's ArrayRecord files of encoded images, or of TensorFlow Datasets' examples with an `image`.

    The split is in the names of the files, see `files.files_of_split`. The class is the example's feature `label`, or
    another of LABEL_NAMES. For it every record has to be read, so it is read where it is needed: with
    model.num_classes or data.prepared.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    root, files, own = _array_record_files(config, split)
    with reading(root):
        counts = _array_record_counts(files)
        source = ArrayRecordDataSource(files)
        if len(source) != sum(counts):
            raise ValueError(f"{len(source)} records are found, but its files have {sum(counts)}")
        numbers = np.arange(len(source)) if own else held_out(len(source), split)
        classes = None
        if config.model.num_classes or config.data.prepared:
            chunks = np.split(numbers, range(READ_TOGETHER, len(numbers), READ_TOGETHER))
            records = (record for chunk in chunks for record in source.__getitems__(chunk.tolist()))
            found = [tfrecord.whole_number(x, LABEL_NAMES) if _is_example(x) else None for x in records]
            classes = class_numbers(found, len(numbers), root)

    image = lambda record: tfrecord.parse_example(record)["image"][0] if _is_example(record) else record
    read = lambda i: image(source[int(numbers[i])])
    read_many = lambda indices: list(map(image, source.__getitems__(numbers[indices].tolist())))
    name = lambda i: f"{root}, record {numbers[i]}"
    batches = read_many if storage.scheme(root) else None  # one request at a time is slow
    return lazy_images(config, len(numbers), read, name, decoder(config, resize_square), batches, classes)


def _is_example(record: bytes) -> bool:
    return record[:1] == b"\n"  # no image format begins so


def _array_record_files(config: ConfigDict, split: str) -> tuple[str, list[str], bool]:
    """Returns data.dir, which may be on gs://, its ArrayRecord files of a split, and whether they are of it alone."""
    if storage.scheme(url := config.data.dir):
        patience = config.storage.patience
        items = [item.path for item in storage.patiently(url, lambda: storage.listing(url), patience)]
        names, own = files_of_split(url, [name for name in items if not name or ".array_record" in name], split)
        return url, [storage.join(url, name) for name in names], own
    root = find(config)
    if root.is_file():
        return str(root), [str(root)], False
    found = sorted(file for file in root.rglob("*.array_record*") if file.is_file())
    names, own = files_of_split(root, [str(file.relative_to(root)) for file in found], split)
    return str(root), [str(root / name) for name in names], own


def _array_record_counts(files: list[str]) -> list[int]:
    """Returns the number of records in each file.

    Raises:
      ConfigError: a file is damaged, or one of a numbered set is missing.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    check_numbered(files)

    def count(file: str) -> int:
        with reading(file):
            reader = ArrayRecordReader(file)
            if not reader.ok() or not (records := reader.num_records()):
                raise ValueError("it is damaged, truncated or empty")
            reader.close()
        return records

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(count, files))
