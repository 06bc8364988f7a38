"""Arrays of numbers in files of MATLAB 5, such as those of SVHN.

`scipy.io.loadmat` ends the process with a segmentation fault on some damaged files, and does not compare checksums.
"""

import math
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from score_st.array_types import Shaped

MATRIX, COMPRESSED = 14, 15  # types of elements
# NumPy's types, without the byte order, of elements and of the classes of matrices
ELEMENTS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x800  # a flag of a matrix


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields the type and the content of each element; a small one has its content inside its tag of 8 bytes."""
    while len(content):
        if len(content) < 8:
            raise ValueError("truncated")
        kind, size = (int(number) for number in np.frombuffer(content[:8], f"{order}u4"))
        begin = 8
        if kind >> 16:
            kind, size, begin = kind & 0xFFFF, kind >> 16, 4
        if begin + size > (8 if begin == 4 else len(content)):
            raise ValueError("truncated")
        yield kind, content[begin : begin + size]
        end = begin + size
        content = content[end if kind == COMPRESSED else end + -end % 8 :]


def _unpacked(content: memoryview, order: str) -> memoryview:
    """Returns a compressed matrix, at most as long as its tag says; its checksum is compared."""
    stream = zlib.decompressobj()
    matrix = bytearray(stream.decompress(content, 8))
    if len(matrix) < 8:
        raise ValueError("truncated")
    wanted = 8 + int(np.frombuffer(matrix[4:8], f"{order}u4")[0])
    while len(matrix) < wanted and (
        part := stream.decompress(stream.unconsumed_tail, min(wanted - len(matrix), 2**24))
    ):
        matrix += part
    if len(matrix) != wanted or stream.decompress(stream.unconsumed_tail, 1) or not stream.eof:
        raise ValueError("not as long as it says")
    return memoryview(matrix)


def _matrix(content: memoryview, order: str) -> tuple[str, Shaped[np.ndarray, "..."] | None]:
    """Returns the name of a matrix and its numbers; None where they are something else."""
    parts = _elements(content, order)
    flags, shape, name = [next(parts, (0, memoryview(b"")))[1] for _ in range(3)]
    if len(flags) != 8 or len(shape) % 4:
        raise ValueError("not a matrix")
    flag = int(np.frombuffer(flags, f"{order}u4")[0])
    sizes, text = np.frombuffer(shape, f"{order}i4").tolist(), bytes(name).decode("ascii")
    if flag & 0xFF not in CLASSES or flag & COMPLEX:
        return text, None
    kind, numbers = next(parts, (0, memoryview(b"")))
    stored = np.dtype(order + ELEMENTS[kind]) if kind in ELEMENTS else None
    if stored is None or min(sizes, default=-1) < 0 or math.prod(sizes) * stored.itemsize != len(numbers):
        raise ValueError(f"{text!r} has another number of values than {sizes}")
    array = np.frombuffer(numbers, stored).reshape(sizes, order="F")
    return text, array.astype(CLASSES[flag & 0xFF], copy=False)


def read(path: Path, names: Collection[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns those of the arrays `names` that a file has.

    Raises:
      ValueError: it is no complete file of MATLAB 5, or one of them is not an array of real numbers.
      OSError: it can't be read.
      zlib.error: it is damaged.
    """
    content = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        raise ValueError("not a file of MATLAB 5")
    arrays = {}
    for kind, element in _elements(content[128:], order):
        if kind == COMPRESSED:
            kind, element = next(_elements(_unpacked(element, order), order), (0, element))
        if kind == MATRIX:
            name, array = _matrix(element, order)
            if name in names:
                if array is None:
                    raise ValueError(f"{name!r} is not an array of real numbers")
                arrays[name] = array
    return arrays
