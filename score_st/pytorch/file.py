"""Files of `torch.save`, read and written without torch: the containers, and the data of the tensors in them.

`unpickler` reads the pickle that is in such a file. Nothing in a file is trusted: every byte has a checksum or must be
what torch.save writes.
"""

import contextlib
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from score_st.config import ConfigError
from score_st.pytorch import unpickler
from score_st.pytorch.unpickler import Damaged, Machine, Storage, Tensor
from score_st.runtime.replacing import replacing

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before PyTorch 1.6
PICKLE_LIMIT = 2**24  # bytes; that of the largest official network has 2^20
VERSIONS = {0, 10, 20, 45, 0x31E, 0x314, 0x32D}  # of the zip format, as torch.save and Python write them
ALIGNMENT = 64  # of tensors in the file, as in torch.save


def read(path: str | Path) -> Any:
    """The content of a file of `torch.save`: dictionaries, lists, tuples, numbers, text and read-only arrays.

    Raises:
      ConfigError: the file can't be read, is not of torch.save, is damaged, or would run code.
    """
    path, content = Path(path), mapped(path)
    with refusing(path):
        return _resolve(_read_zip(content) if content[:4] == b"PK\x03\x04" else read_legacy(content, content))


def mapped(path: str | Path) -> mmap.mmap:
    """The bytes of a file.

    Raises:
      ConfigError: it can't be read, or is empty.
    """
    try:
        with Path(path).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); name a checkpoint .pth of PyTorch") from error
    except ValueError as error:  # mmap refuses an empty file
        raise ConfigError(f"{path}: is empty; name a checkpoint .pth of PyTorch") from error


@contextlib.contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """Turns whatever a damaged or hostile file raises into a ConfigError with its name."""
    try:
        yield
    except ConfigError:  # what is wrong is said already
        raise
    except Damaged as error:
        raise ConfigError(f"{path}: {error}; nothing was read from it") from error
    except (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    except (RecursionError, TypeError, ValueError, struct.error, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> ConfigError:
    detail = " ".join(str(error).split())[:160]
    return ConfigError(f"{path}: not a file of torch.save, or a damaged one ({type(error).__name__}: {detail})")


def _resolve(tree: Any) -> Any:
    """The tree with arrays instead of tensors; an object that occurs twice is converted once."""
    converted: dict[int, Any] = {}

    def resolve(node: Any, depth: int) -> Any:
        result: Any
        if id(node) in converted:
            return converted[id(node)]
        if isinstance(node, Tensor):
            result = node.array()
        elif depth > 8:
            raise Damaged("its containers nest deeper than those of a checkpoint")
        elif isinstance(node, dict):
            result = {key: resolve(value, depth + 1) for key, value in node.items()}
        elif type(node) in (list, tuple):
            result = type(node)(resolve(value, depth + 1) for value in node)
        elif node is None or isinstance(node, bool | int | float | str | bytes):
            return node
        else:
            raise Damaged(f"it holds a {type(node).__name__}, which no checkpoint does")
        converted[id(node)] = result
        return result

    return resolve(tree, 0)


def _read_zip(content: mmap.mmap) -> Any:
    """Reads the format since PyTorch 1.6: <name>/data.pkl, and <name>/data/<key> for each storage."""
    entries = _entries(content)
    by_name = {name.partition("/")[2]: span for name, span in entries.items()}
    if "data.pkl" not in by_name:
        raise Damaged("a zip file without data.pkl, so not a file of torch.save")
    start, size = by_name.pop("data.pkl")
    if size > PICKLE_LIMIT:
        raise Damaged(f"its pickle has {size} bytes, more than any checkpoint needs")
    storages: dict[str, Storage] = {}
    tree = Machine(storages).run(content[start : start + size])
    big = "byteorder" in by_name and content[by_name["byteorder"][0]] == ord("b")
    for key, storage in storages.items():
        start, size = by_name.pop(f"data/{key}", (0, -1))
        if size != storage.size * storage.dtype.itemsize:
            actual = f"has {size} bytes" if size >= 0 else "is missing"
            raise Damaged(f"data/{key[:20]} should have {storage.size} numbers of {storage.dtype}, and {actual}")
        dtype = storage.dtype.newbyteorder(">" if big else "<")
        storage.data = np.frombuffer(content, dtype, storage.size, start)
    unused = [name for name in by_name if name.startswith("data/")]
    if unused:
        raise Damaged(f"{unused[0][:40]} belongs to no tensor")
    return tree


def _entries(content: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Start and size of each entry of a zip file, every byte of which is checked."""
    with zipfile.ZipFile(cast(IO[bytes], content)) as archive:
        infos, start = sorted(archive.infolist(), key=lambda i: i.header_offset), archive.start_dir
    _check_end(content, start, len(infos))
    attributes = {(i.create_system, i.flag_bits, i.external_attr, i.internal_attr, i.volume) for i in infos}
    entries: dict[str, tuple[int, int]] = {}
    end = 0
    for info in infos:
        name = repr(info.filename[:40])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Damaged(f"{name} is compressed, which torch.save never does")
        if (
            info.header_offset != end
            or info.filename in entries
            or len(attributes) > 1
            or info.comment
            or info.reserved
        ):
            raise Damaged(f"{name} has the wrong place or attributes in the zip file")
        first = _after_header(content, info)
        end = first + info.file_size
        if end > start or zlib.crc32(memoryview(content)[first:end]) != info.CRC:
            raise Damaged(f"{name} has a wrong checksum")
        if info.flag_bits & 8:
            end = _after_descriptor(content, info, end)
        entries[info.filename] = (first, info.file_size)
    if end != start:
        raise Damaged("its zip file has gaps")
    return entries


def _check_end(content: mmap.mmap, start: int, count: int) -> None:
    """Checks the end of a zip file, in the usual form or that for large files, with nothing after it.

    Args:
      content: the file.
      start: where the directory starts.
      count: its number of entries.
    """
    size = int.from_bytes(content[len(content) - 10 : len(content) - 6], "little")
    large = content[len(content) - 42 : len(content) - 38] == b"PK\x06\x07"
    if large:
        size = len(content) - 98 - start
        versions = struct.unpack("<HH", content[start + size + 12 : start + size + 16])
        record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, *versions, 0, 0, count, count, size, start)
        record += struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    numbers = min(count, 2**16 - 1), min(count, 2**16 - 1), min(size, 2**32 - 1), min(start, 2**32 - 1)
    end = (record if large else b"") + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, *numbers, 0)
    if content[start + size :] != end or (large and not set(versions) <= VERSIONS):
        raise Damaged("the end of its zip file is damaged, or something follows it")


def _after_header(content: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Where the data of an entry start: after its own header, which must agree with the directory."""
    header = struct.unpack("<4sHHHHHIIIHH", content[info.header_offset : info.header_offset + 30])
    signature, version, flags, method, time, date, crc, packed, size, name_length, extra_length = header
    name_start = info.header_offset + 30
    name = content[name_start : name_start + name_length]
    extra = content[name_start + name_length : name_start + name_length + extra_length]
    year, month, day, hour, minute, second = info.date_time
    stamp = ((year - 1980) << 9 | month << 5 | day, hour << 11 | minute << 5 | second // 2)
    known = {(info.CRC, info.file_size, info.file_size)}
    if info.flag_bits & 8:
        known.add((0, 0, 0))
    fields = {}
    while len(extra) >= 4:
        kind, length = struct.unpack("<2sH", extra[:4])
        if 4 + length > len(extra):
            break
        fields[kind], extra = extra[4 : 4 + length], extra[4 + length :]
    if b"\x01\x00" in fields:  # the sizes are there, in 64 bits
        known |= {(c, 2**32 - 1, 2**32 - 1) for c, _, _ in known}
    wrong = signature != b"PK\x03\x04" or flags != info.flag_bits or method or (date, time) != stamp
    wrong |= not {version, info.extract_version, info.create_version} <= VERSIONS
    if wrong or name != info.filename.encode() or (crc, packed, size) not in known:
        raise Damaged(f"{info.filename[:40]!r} differs between the zip file's directory and its own header")
    if extra or set(fields) - {b"FB", b"\x01\x00"} or fields.get(b"FB", b"").strip(b"Z"):
        raise Damaged(f"{info.filename[:40]!r} has a damaged header")
    return name_start + name_length + extra_length


def _after_descriptor(content: mmap.mmap, info: zipfile.ZipInfo, end: int) -> int:
    """Where the next entry starts: after the checksum and sizes that follow the data of this one."""
    for form in ("<4sIQQ", "<4sIII"):
        descriptor = content[end : end + struct.calcsize(form)]
        if struct.unpack(form, descriptor) == (b"PK\x07\x08", info.CRC, info.file_size, info.file_size):
            return end + len(descriptor)
    raise Damaged(f"{info.filename[:40]!r} is followed by a wrong size")


def read_legacy(content: Any, file: Any) -> Any:
    """Reads the format before PyTorch 1.6: the object, with tensors or storages, as it was pickled.

    It has pickles of a magic number, the version, the machine, the object and the keys of its storages; data follow.

    Args:
      content: the bytes.
      file: the same to read from, at its start. A mapped file is both.

    Raises:
      Damaged: it is no such file, or a damaged one; what is damaged further raises what `refusing` knows.
    """
    storages: dict[str, Storage] = {}
    if content[:1] != b"\x80" or Machine({}).run(file) != LEGACY_MAGIC:
        raise Damaged("not a file of torch.save, neither since PyTorch 1.6 nor before")
    version, machine, tree, keys = (Machine(storages).run(file) for _ in range(4))
    if version != 1001 or type(machine) is not dict or type(keys) is not list:
        raise Damaged("a legacy file of torch.save whose parts do not fit together")
    if not all(isinstance(key, str) for key in keys) or set(keys) != set(storages) or len(keys) != len(storages):
        raise Damaged("a legacy file of torch.save whose parts do not fit together")
    order = "<" if machine.get("little_endian", True) else ">"
    for key in keys:
        storage, start = storages[key], file.tell() + 8
        size = storage.size * storage.dtype.itemsize
        if struct.unpack(f"{order}q", content[start - 8 : start]) != (storage.size,) or start + size > len(content):
            raise Damaged(f"its data {key[:20]!r} should have {storage.size} numbers of {storage.dtype}, and does not")
        storage.data = np.frombuffer(content, storage.dtype.newbyteorder(order), storage.size, start)
        file.seek(start + size)
    if file.tell() != len(content):
        raise Damaged("a legacy file of torch.save with something after its end")
    return tree


def write(path: str | Path, tree: Any) -> None:
    """Writes a file that `torch.load` reads, with tensors for arrays; it appears complete or not at all.

    Args:
      path: of the file.
      tree: dictionaries, lists, tuples, numbers, text and arrays.
    """
    path = Path(path)
    arrays: list[np.ndarray] = []
    pickle = b"\x80\x02" + b"".join(unpickler.dump(tree, arrays)) + b"."
    with replacing(path, ".part") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        add = lambda name, data: archive.writestr(_aligned(archive, f"archive/{name}"), data)
        add("data.pkl", pickle)
        add("byteorder", b"little")
        for key, array in enumerate(arrays):
            add(f"data/{key}", array.tobytes())
        add("version", b"3\n")


def _aligned(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An entry whose data start at a multiple of ALIGNMENT, with the padding of torch.save."""
    info = zipfile.ZipInfo(name)
    pad = -(cast(IO[bytes], archive.fp).tell() + 30 + len(name) + 4) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", pad) + b"Z" * pad
    return info
