"""Image files and records as the releases of data sets have them."""

import io
import struct

import numpy as np
from PIL import Image

from score_st import config


def settings(dataset: str, folder, **more):
    made = config.default()
    made.data.update(dict(dataset=dataset, dir=str(folder)) | more)
    return made


def file(image, kind="PNG", **how) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **how)
    return stream.getvalue()


def progressive_gan(image: np.ndarray, packed: bool) -> bytes:
    """A record of dataset_tool.py: an Example with `shape` (C, H, W) and `data`, with length and checksums."""
    planes = image.transpose(2, 0, 1)
    sizes = [varint(n) for n in planes.shape]
    numbers = field(1, b"".join(sizes)) if packed else b"".join(b"\x08" + size for size in sizes)
    entries = {b"shape": field(3, numbers), b"data": field(1, field(1, planes.tobytes()))}
    example = field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in entries.items()))
    length = struct.pack("<Q", len(example))
    return length + struct.pack("<I", crc32c(length)) + example + struct.pack("<I", crc32c(example))


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def crc32c(content: bytes) -> int:
    """Bit by bit, masked as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
