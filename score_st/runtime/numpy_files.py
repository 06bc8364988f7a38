"""Files of NumPy that need not be what they seem: everything that is wrong with one is a ValueError of one line.

`numpy.load` raises a dozen types of exception for damaged files. It reads no further than the header of an array in an
npz says, so that a damaged header passes for fewer numbers and the checksum is never compared.
"""

import contextlib
import errno
import io
import math
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from score_st.array_types import Shaped


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Turns what readers raise for damaged files into a ValueError of one line; faults of the disk stay OSErrors."""
    try:
        yield
    except Exception as error:  # of zipfile, zlib, tokenize, NumPy
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(text) from error


def is_npz(path: str | Path) -> bool:
    """Whether a file begins as an archive of arrays."""
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns the arrays of an npz, each of which has its checksum and the length that its header says.

    Args:
      path: the file.
      names: of the arrays to read, where it has them; by default all.

    Raises:
      ValueError: it is no npz, is damaged, or has pickled objects.
      OSError: it can't be read.
    """
    arrays: dict[str, np.ndarray] = {}
    with one_error():
        if not is_npz(path):
            raise ValueError("not an npz file")
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"{name[:40]!r} occurs twice")
                if names is None or name in names:
                    arrays[name] = _read_entry(archive, info)
    return arrays


def names(path: str | Path) -> list[str]:
    """Returns the names of the arrays in an npz; raises what `read_npz` does."""
    with one_error(), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def describe(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and type of each array in an npz, without reading its numbers; raises what `read_npz` does."""
    with one_error():
        if not is_npz(path):
            raise ValueError("not an npz file")
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): _header(archive, info) for info in archive.infolist()}


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and type of an array of an npz."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename[:40]!r} is compressed in a way that NumPy has not")
    with archive.open(info) as file:
        return _described(file, info.file_size, repr(info.filename[:40]))


def _described(file: Any, length: int, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and type of an array, whose binary file has the length in bytes that they ask for."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} has the format {version[0]}.{version[1]}, which no numbers need")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} has objects of Python, which are not read")
    if file.tell() + math.prod(shape) * dtype.itemsize != length:
        raise ValueError(f"{name} is not as long as its header says")
    return shape, dtype


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    _header(archive, info)
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
    return array


def parse_npy(content: bytes) -> Shaped[np.ndarray, "..."]:
    """Returns the array of an npy file's content; raises ValueError as `map_npy` does."""
    with one_error():
        _described(io.BytesIO(content), len(content), "it")
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def map_npy(path: str | Path) -> Shaped[np.ndarray, "..."]:
    """Returns the array of an npy file, mapped into memory.

    Raises:
      ValueError: it is no npy file, is damaged, or has pickled objects.
      OSError: it can't be read.
    """
    with one_error():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap) or array.offset + array.nbytes != Path(path).stat().st_size:
            raise ValueError("not an npy file, or not as long as its header says")
        return array
