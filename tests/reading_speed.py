"""Images a second of each kind of source, read in shuffled batches by two threads as training reads them.

  python tests/reading_speed.py

The files are made of crops of scikit-learn's photographs. Encoded images are decoded each time
(config.data.memory_gb=0); where they fit, they are kept after their first epoch and then read like arrays.
"""

import hashlib
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import test_sources
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_sample_images
from support.image_files import file, progressive_gan, settings

from score_st.data import images as pictures
from score_st.data import pipeline, tfrecord


def crops(count: int, height: int, width: int) -> np.ndarray:
    """uint8 [count, height, width, 3] of parts of photographs, made smaller by up to three."""
    photographs, random, found = load_sample_images().images, np.random.default_rng(0), []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        scale = random.uniform(1, min(3, photograph.shape[0] / height, photograph.shape[1] / width))
        box = int(height * scale), int(width * scale)
        top, left = (random.integers(have - need + 1) for have, need in zip(photograph.shape, box, strict=False))
        part = photograph[top : top + box[0], left : left + box[1]]
        found.append(np.asarray(Image.fromarray(part).resize((width, height), Image.BOX)))
    return np.stack(found)


def folder(path, images, kind="PNG"):
    for i, image in enumerate(images):
        (path / f"{i:06d}.{kind.lower()}").write_bytes(file(image, kind))
    return dict(dataset="FOLDER")


def array(path, images):
    np.save(path / "train.npy", images)
    np.save(path / "test.npy", images[:1])
    return dict(dataset="NPY")


def array_record(path, images):
    writer = ArrayRecordWriter(str(path / "a.array_record"), "group_size:1")
    for image in images:
        writer.write(file(image))
    writer.close()
    return dict(dataset="ARRAYRECORD")


def tfrecord_file(path, images):
    (path / "r.tfrecords").write_bytes(b"".join(progressive_gan(image, True) for image in images))
    return dict(dataset="FFHQ", tfrecords_path="r.tfrecords")


def celeba(path, images):
    """The official 218x178 JPEG files, whatever the size that is asked for."""
    (path / "img_align_celeba").mkdir()
    names = [f"{i:06d}.jpg" for i in range(1, len(images) + 1)]
    for name, image in zip(names, crops(len(images), 218, 178), strict=True):
        (path / "img_align_celeba" / name).write_bytes(file(image, "JPEG", quality=90))
    (path / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    return dict(dataset="CELEBA")


def lsun(path, images):
    """JPEG files of 256 pixels on the shorter side, as LSUN has them."""
    with lmdb.open(str(path / "bedroom_train_lmdb"), map_size=1 << 30) as base, base.begin(write=True) as entries:
        for i, image in enumerate(crops(len(images), 256, 341)):
            entries.put(hashlib.sha1(str(i).encode()).hexdigest().encode(), file(image, "JPEG", quality=75))
    return dict(dataset="LSUN", category="bedroom")


SOURCES = {
    "array (NPY; CIFAR-10 and other arrays)": array,
    "folder of PNG": folder,
    "folder of JPEG": lambda path, images: folder(path, images, "JPEG"),
    "ArrayRecord of PNG": array_record,
    "TFRecord (FFHQ, CelebA-HQ)": tfrecord,
    "CelebA": celeba,
    "LSUN": lsun,
}


def rate(make, size: int, count: int, seconds: float = 3.0) -> float:
    with tempfile.TemporaryDirectory() as name:
        made = make(Path(name), crops(count, size, size))
        config = settings(made.pop("dataset"), name, image_size=size, memory_gb=0.0, **made)
        images = pipeline.load(config, "train")
        assert make is array or isinstance(images, pictures.Encoded)
        batches, read = pipeline.Stream(images, 64, seed=0).batches(0, 10**9), 0
        for _ in range(4):
            next(batches)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            read += len(next(batches))
        return read / (time.perf_counter() - began)


def main():
    # the tests' own goes bit by bit
    test_sources.crc32c = lambda content: int.from_bytes(tfrecord.masked_crc(content), "little")
    sizes = {32: 8192, 64: 4096, 256: 1024}  # images; in small sets the shuffled order itself takes longer
    print(f"| images/s, 2 threads | {' | '.join(f'{size}x{size}' for size in sizes)} |\n|{'---|' * 4}")
    for label, make in SOURCES.items():
        print(f"| {label} | {' | '.join(f'{rate(make, *each):,.0f}' for each in sizes.items())} |", flush=True)


if __name__ == "__main__":
    main()
