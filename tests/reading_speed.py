"""Images per second of each kind of data set, read in shuffled batches by two threads, as in training.

  python tests/reading_speed.py

The files contain crops of scikit-learn's photographs. Encoded images are decoded each time (config.data.memory_gb=0);
in training they are kept after their first epoch if they fit, and are then read like arrays.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_sample_images
from support.image_files import encode, progressive_gan, settings

from score_st.data import pipeline, tfrecord

SIZES = {32: 8192, 64: 4096, 256: 1024}  # how many images; with fewer, drawing their order takes longer than reading


def crops(count: int, height: int, width: int) -> np.ndarray:
    """uint8 [count, height, width, 3]: random parts of photographs, shrunk by a factor of one to three."""
    photographs, random, images = load_sample_images().images, np.random.default_rng(0), []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        scale = random.uniform(1, min(3, photograph.shape[0] / height, photograph.shape[1] / width))
        box = int(height * scale), int(width * scale)
        top, left = (random.integers(old - new + 1) for old, new in zip(photograph.shape, box, strict=False))
        part = photograph[top : top + box[0], left : left + box[1]]
        images.append(np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BOX)))
    return np.stack(images)


# Each of these writes the images [N, H, W, C] as files to a folder and returns what config.data needs to read them.


def write_folder(folder: Path, images: np.ndarray, kind: str = "PNG") -> dict:
    for i, image in enumerate(images):
        (folder / f"{i:06d}.{kind.lower()}").write_bytes(encode(image, kind))
    return dict(dataset="FOLDER")


def write_array(folder: Path, images: np.ndarray) -> dict:
    np.save(folder / "train.npy", images)
    return dict(dataset="NPY")


def write_array_record(folder: Path, images: np.ndarray) -> dict:
    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for image in images:
        writer.write(encode(image))
    writer.close()
    return dict(dataset="ARRAYRECORD")


def write_tfrecord(folder: Path, images: np.ndarray) -> dict:
    records = [progressive_gan(image, True, tfrecord.masked_crc) for image in images]
    (folder / "r.tfrecords").write_bytes(b"".join(records))
    return dict(dataset="FFHQ", tfrecords_path="r.tfrecords")


def write_celeba(folder: Path, images: np.ndarray) -> dict:
    """JPEG files of 218x178, as CelebA has them, whatever the size of `images`."""
    (folder / "img_align_celeba").mkdir()
    names = [f"{i:06d}.jpg" for i in range(1, len(images) + 1)]
    for name, image in zip(names, crops(len(images), 218, 178), strict=True):
        (folder / "img_align_celeba" / name).write_bytes(encode(image, "JPEG", quality=90))
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    return dict(dataset="CELEBA")


def write_lsun(folder: Path, images: np.ndarray) -> dict:
    """JPEG files of 256 pixels on the shorter side, as LSUN has them."""
    path = str(folder / "bedroom_train_lmdb")
    with lmdb.open(path, map_size=1 << 30) as database, database.begin(write=True) as transaction:
        for i, image in enumerate(crops(len(images), 256, 341)):
            key = hashlib.sha1(str(i).encode()).hexdigest().encode()
            transaction.put(key, encode(image, "JPEG", quality=75))
    return dict(dataset="LSUN", category="bedroom")


WRITERS: dict[str, Callable[[Path, np.ndarray], dict]] = {
    "array (NPY; CIFAR-10 and other arrays)": write_array,
    "folder of PNG": write_folder,
    "folder of JPEG": lambda folder, images: write_folder(folder, images, "JPEG"),
    "ArrayRecord of PNG": write_array_record,
    "TFRecord (FFHQ, CelebA-HQ)": write_tfrecord,
    "CelebA": write_celeba,
    "LSUN": write_lsun,
}


def images_per_second(write: Callable, size: int, count: int, seconds: float) -> float:
    """The speed of the stream over this many images, measured for `seconds` after four batches."""
    with tempfile.TemporaryDirectory() as name:
        data = write(Path(name), crops(count, size, size))
        config = settings(data.pop("dataset"), name, image_size=size, memory_gb=0.0, **data)
        batches = pipeline.Stream(pipeline.load(config, "train"), 64, seed=0).batches(0, 10**9)
        for _ in range(4):
            next(batches)
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            images += len(next(batches))
        return images / (time.perf_counter() - start)


def main(sizes: dict[int, int] = SIZES, seconds: float = 3.0) -> None:
    """Prints the table.

    Args:
      sizes: the number of images by size.
      seconds: how long each speed is measured.
    """
    print(f"| images/s, 2 threads | {' | '.join(f'{size}x{size}' for size in sizes)} |\n|{'---|' * (len(sizes) + 1)}")
    for label, write in WRITERS.items():
        speeds = [images_per_second(write, *item, seconds) for item in sizes.items()]
        print(f"| {label} | {' | '.join(f'{speed:,.0f}' for speed in speeds)} |", flush=True)


if __name__ == "__main__":
    main()
