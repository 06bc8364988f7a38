"""Images per second of each kind of file, read in shuffled batches, decoded each time.

In training, decoded images are kept after their first epoch if they fit (data.memory_gb). They are then read like
arrays.
"""

import hashlib
import io
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from score_st.array_types import UInt8
from score_st.benchmarking.parts import Part, reading_speed
from score_st.benchmarking.timing import Numbers
from score_st.config import ConfigError, default
from score_st.data import pipeline, tfrecord
from score_st.runtime import progress

SIZES = {32: 8192, 64: 4096, 256: 1024}  # how many images; with fewer, drawing their order takes longer than reading
BATCH = 64


def crops(count: int, height: int, width: int) -> UInt8[np.ndarray, "N H W 3"]:
    """Returns random parts of scikit-learn's photographs, shrunk by a factor of one to three."""
    from sklearn.datasets import load_sample_images

    photographs, random, images = load_sample_images().images, np.random.default_rng(0), []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        scale = random.uniform(1, min(3, photograph.shape[0] / height, photograph.shape[1] / width))
        box = int(height * scale), int(width * scale)
        top, left = (random.integers(old - new + 1) for old, new in zip(photograph.shape, box, strict=False))
        part = photograph[top : top + box[0], left : left + box[1]]
        images.append(np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BOX)))
    return np.stack(images)


def encode(image: np.ndarray, kind: str = "PNG", quality: int = 75) -> bytes:
    """Returns the content of an image file; the quality is that of JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return stream.getvalue()


def progressive_gan_record(image: np.ndarray) -> bytes:
    """Returns a record as Progressive GAN's dataset_tool.py writes it: a tf.train.Example with `shape` and `data`."""

    def varint(number: int) -> bytes:
        return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)

    field = lambda number, content: bytes([number << 3 | 2]) + varint(len(content)) + content
    planes = image.transpose(2, 0, 1)
    shape = field(3, field(1, b"".join(map(varint, planes.shape))))
    features = {b"shape": shape, b"data": field(1, field(1, planes.tobytes()))}
    pairs = (field(1, field(1, name) + field(2, value)) for name, value in features.items())
    example = field(1, b"".join(pairs))
    length = struct.pack("<Q", len(example))
    return length + tfrecord.masked_crc(length) + example + tfrecord.masked_crc(example)


# Each of these writes the images [N, H, W, C] as files to a folder and returns what config.data needs to read them.


def _folder(folder: Path, images: np.ndarray, kind: str = "PNG") -> dict:
    for i, image in enumerate(images):
        (folder / f"{i:06d}.{kind.lower()}").write_bytes(encode(image, kind))
    return dict(dataset="FOLDER")


def _zip(folder: Path, images: np.ndarray) -> dict:
    """As StyleGAN's and EDM's tools make them: not compressed, as PNG is already."""
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for i, image in enumerate(images):
            archive.writestr(f"{i // 1000:05d}/img{i:08d}.png", encode(image))
    return dict(dataset="ZIP")


def _shards(folder: Path, images: np.ndarray) -> dict:
    """WebDataset's shards of 1,000 images."""
    for first in range(0, len(images), 1000):
        with tarfile.open(folder / f"train-{first // 1000:06d}.tar", "w") as tar:
            for i, image in enumerate(images[first : first + 1000], first):
                for name, content in ((f"{i:07d}.png", encode(image)), (f"{i:07d}.cls", b"0")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return dict(dataset="WEBDATASET")


def _parquet(folder: Path, images: np.ndarray, group: int = 100) -> dict:
    """As the hub's library writes them: row groups of 100 images."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"bytes": encode(image), "path": None} for image in images]
    table = pyarrow.table({"image": rows, "label": [0] * len(rows)})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=group)
    return dict(dataset="PARQUET")


def _array(folder: Path, images: np.ndarray) -> dict:
    np.save(folder / "train.npy", images)
    return dict(dataset="NPY")


def _array_record(folder: Path, images: np.ndarray) -> dict:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for image in images:
        writer.write(encode(image))
    writer.close()
    return dict(dataset="ARRAYRECORD")


def _tfrecord(folder: Path, images: np.ndarray) -> dict:
    (folder / "r.tfrecords").write_bytes(b"".join(map(progressive_gan_record, images)))
    return dict(dataset="FFHQ", tfrecords_path="r.tfrecords")


def _celeba(folder: Path, images: np.ndarray) -> dict:
    """JPEG files of 218x178, as CelebA has them, whatever the size of `images`."""
    (folder / "img_align_celeba").mkdir()
    names = [f"{i:06d}.jpg" for i in range(1, len(images) + 1)]
    for name, image in zip(names, crops(len(images), 218, 178), strict=True):
        (folder / "img_align_celeba" / name).write_bytes(encode(image, "JPEG", quality=90))
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    return dict(dataset="CELEBA")


def _lsun(folder: Path, images: np.ndarray) -> dict:
    """JPEG files of 256 pixels on the shorter side, as LSUN has them."""
    import lmdb

    path = str(folder / "bedroom_train_lmdb")
    with lmdb.open(path, map_size=1 << 30) as database, database.begin(write=True) as transaction:
        for i, image in enumerate(crops(len(images), 256, 341)):
            key = hashlib.sha1(str(i).encode()).hexdigest().encode()
            transaction.put(key, encode(image, "JPEG"))
    return dict(dataset="LSUN", category="bedroom")


WRITERS: dict[str, Callable[[Path, np.ndarray], dict]] = {
    "array (NPY; CIFAR-10 and other arrays)": _array,
    "folder of PNG": _folder,
    "folder of JPEG": lambda folder, images: _folder(folder, images, "JPEG"),
    "zip of PNG (StyleGAN, EDM)": _zip,
    "tar shards of PNG (WebDataset)": _shards,
    "Parquet of PNG (row groups of 100)": _parquet,
    "ArrayRecord of PNG": _array_record,
    "TFRecord (FFHQ, CelebA-HQ)": _tfrecord,
    "CelebA": _celeba,
    "LSUN": _lsun,
}


def stream(write: Callable, folder: str, size: int, count: int, threads: int) -> pipeline.Stream:
    """Writes images to a folder and returns the stream of their batches."""
    data = write(Path(folder), crops(count, size, size))
    config = default()
    config.data.update(dict(dir=folder, image_size=size, memory_gb=0.0) | data)
    return pipeline.Stream(pipeline.load(config, "train"), BATCH, seed=0, threads=threads)


def formats(seconds: float, threads: int, sizes: dict[int, int] = SIZES) -> Part:
    """Measures each kind of file at each size; a kind whose package is not installed is left out, with a note.

    Args:
      seconds: for all of them.
      threads: that read ahead.
      sizes: the number of images by size.
    """

    def part() -> Numbers:
        numbers: Numbers = {}
        for name, write in WRITERS.items():
            for size, count in sizes.items():
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        batches = stream(write, folder, size, count, threads)
                    except (ImportError, ConfigError) as error:
                        if not progress.quiet:
                            print(f"{name} is left out: {error}", flush=True)
                        break
                    label = f"{name}, {size}x{size}"
                    numbers[label] = reading_speed(batches, seconds / len(WRITERS) / len(sizes), label)
        return numbers

    return part
