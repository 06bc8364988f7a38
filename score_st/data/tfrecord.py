"""TFRecord files of tf.train.Example, without TensorFlow."""

import io
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Value = int | bytes  # of a field of a protocol buffer


def masked_crc(content: bytes) -> bytes:
    """Returns the CRC-32C as TFRecords store it: rotated, shifted, four bytes."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def index(path: Path) -> list[tuple[int, int]]:
    """Returns the offset and size of each record, including the checksum that follows it.

    Raises:
      ValueError: the file is not a TFRecord file, or truncated.
    """
    parts = []
    with path.open("rb") as file:
        while header := file.read(12):
            offset = file.tell()
            if len(header) < 12 or header[8:] != masked_crc(header[:8]):
                raise ValueError(f"not a TFRecord, or a broken one, at byte {offset - len(header)}")
            parts.append((offset, struct.unpack("<Q", header[:8])[0] + 4))
            if file.seek(sum(parts[-1])) > os.path.getsize(path):
                raise ValueError(f"truncated in record {len(parts) - 1}")
    return parts


def strip_checksum(content: bytes) -> bytes:
    """Returns a record without the checksum at its end.

    Raises:
      ValueError: the checksum is wrong.
    """
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
    raise EOFError("truncated")


def _as_bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("not a tf.train.Example")
    return value


def _fields(value: Value) -> Iterator[tuple[int, Value]]:
    """Yields the number and value of each field of a protocol buffer message."""
    message = _as_bytes(value)
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        number, wire = divmod(_varint(stream), 8)
        yield number, _varint(stream) if wire == 0 else stream.read({1: 8, 5: 4}.get(wire) or _varint(stream))


def _features(content: bytes) -> dict[str, Value]:
    """Returns the message of each feature of a tf.train.Example."""
    entries = [dict(_fields(entry)) for _, features in _fields(content) for _, entry in _fields(features)]
    return {_as_bytes(entry[1]).decode(): entry[2] for entry in entries}


def parse_example(content: bytes) -> dict[str, list[Any]]:
    """Returns the values of each feature of a tf.train.Example; packed integers are bytes, see `integers`."""
    values = lambda feature: [value for _, items in _fields(feature) for _, value in _fields(items)]
    return {name: values(feature) for name, feature in _features(content).items()}


def whole_number(content: bytes, names: Sequence[str]) -> int | None:
    """Returns the value of the first of the features `names` that an Example has; None if it is no whole number."""
    features = _features(content)
    feature = next((features[name] for name in names if name in features), b"")
    lists = dict(_fields(feature))  # by kind: 1 of bytes, 2 of floats, 3 of integers
    numbers = integers([value for _, value in _fields(lists[3])]) if set(lists) == {3} else []
    return (numbers[0] + 2**63) % 2**64 - 2**63 if len(numbers) == 1 else None


def integers(values: list[Value]) -> list[int]:
    """Returns the values of a feature of integers, packed or not."""
    unpacked = []
    for value in values:
        if isinstance(value, int):
            unpacked.append(value)
            continue
        stream = io.BytesIO(value)
        while stream.tell() < len(value):
            unpacked.append(_varint(stream))
    return unpacked
