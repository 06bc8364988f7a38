"""Image files and records like those of the releases of data sets."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_st.config import default
from score_st.data import pipeline

RNG = np.random.default_rng(0)


def settings(dataset: str, folder: str | Path, **data) -> ConfigDict:
    """The default configuration with this data set, data.dir and other keys of config.data."""
    config = default()
    config.data.update(dict(dataset=dataset, dir=str(folder)) | data)
    return config


def load_splits(config: ConfigDict) -> list[np.ndarray]:
    """All images to train, and all images to test."""
    return [np.asarray(pipeline.load(config, split)) for split in ("train", "test")]


def noise(*shape: int) -> np.ndarray:
    """Random uint8."""
    return RNG.integers(0, 256, shape, np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """The content of an image file."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes each content to the file of its name below `folder`."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_records(path: Path, records: list[bytes]) -> None:
    """Writes an ArrayRecord file."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def example(content: bytes, kind: int, label: bytes, name: bytes = b"label") -> bytes:
    """A tf.train.Example of TensorFlow Datasets; the label's kind is 1 (bytes), 2 (floats) or 3 (integers)."""
    image = field(1, b"image") + field(2, field(1, field(1, content)))
    return field(1, field(1, field(1, name) + field(2, field(kind, label))) + field(1, image))


def idx(images: np.ndarray) -> bytes:
    """As on LeCun's page and in Fashion-MNIST's release: 0, 0, the type's code, dimensions, sizes, bytes."""
    return struct.pack(f">BBBB{images.ndim}I", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


def varint(number: int) -> bytes:
    """An integer as protocol buffers have it."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes of a protocol buffer message."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def crc32c(content: bytes) -> bytes:
    """The checksum of TFRecords, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def progressive_gan(image: np.ndarray, packed: bool, checksum: Callable[[bytes], bytes] = crc32c) -> bytes:
    """A record of dataset_tool.py: an Example with `shape` (C, H, W) and `data`, with length and checksums."""
    planes = image.transpose(2, 0, 1)
    sizes = [varint(n) for n in planes.shape]
    shape = field(1, b"".join(sizes)) if packed else b"".join(b"\x08" + size for size in sizes)
    features = {b"shape": field(3, shape), b"data": field(1, field(1, planes.tobytes()))}
    example = field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in features.items()))
    length = struct.pack("<Q", len(example))
    return length + checksum(length) + example + checksum(example)
