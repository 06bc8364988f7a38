"""TFRecord files of tf.train.Example, without TensorFlow."""

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path


def masked_crc(content: bytes) -> bytes:
    """CRC-32C as TFRecords have it: turned, shifted, four bytes."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def index(path: Path) -> list[tuple[int, int]]:
    """Offset and size of each record with the checksum behind it; raises ValueError for a file that is not whole."""
    parts = []
    with path.open("rb") as file:
        while header := file.read(12):
            at = file.tell()
            if len(header) < 12 or header[8:] != masked_crc(header[:8]):
                raise ValueError(f"no TFRecord, or a broken one, at byte {at - len(header)}")
            parts.append((at, struct.unpack("<Q", header[:8])[0] + 4))
            if file.seek(sum(parts[-1])) > os.path.getsize(path):
                raise ValueError(f"cut off in record {len(parts) - 1}")
    return parts


def checked(content: bytes) -> bytes:
    """A record without its checksum; raises ValueError where that is wrong."""
    if content[-4:] != masked_crc(content[:-4]):
        raise ValueError("its checksum is wrong")
    return content[:-4]


def _varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return value
    raise EOFError("cut off")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer message."""
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        number, wire = divmod(_varint(stream), 8)
        yield number, _varint(stream) if wire == 0 else stream.read({1: 8, 5: 4}.get(wire) or _varint(stream))


def example(content: bytes) -> dict[str, list[int | bytes]]:
    """The features of a tf.train.Example; numbers may stand in one entry of bytes, see `numbers`."""
    entries = [dict(_fields(entry)) for _, features in _fields(content) for _, entry in _fields(features)]
    values = lambda feature: [value for _, found in _fields(feature) for _, value in _fields(found)]
    return {entry[1].decode(): values(entry[2]) for entry in entries}


def numbers(values: list[int | bytes]) -> list[int]:
    """Of a feature of integers, packed or not."""
    if values and isinstance(values[0], int):
        return values
    stream, found = io.BytesIO(b"".join(values)), []
    while stream.tell() < len(stream.getbuffer()):
        found.append(_varint(stream))
    return found
