"""Hypothesis strategies for hostile inputs: damaged copies of valid files, and files that are built to be wrong."""

import contextlib
import functools
import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

# numbers at which something may overflow, or ask for more memory than there is
EXTREME = sorted({0, 1, 10**12, *(2**n + d for n in (7, 8, 15, 16, 24, 31, 32, 40, 62, 63, 64) for d in (-1, 0))})
FORMATS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
Bytes = st.SearchStrategy[bytes]


@st.composite
def places(draw, content: bytes) -> int:
    """A place in a file: anywhere, near its ends, or near a part of a zip file."""
    kind = draw(st.integers(0, 5))
    starts = [
        0,
        max(len(content) - 400, 0),
        content.rfind(b"PK\x01\x02"),
        content.rfind(b"\x93NUMPY"),
        content.find(b"PK\x05"),
    ]
    first = max(starts[kind], 0) if kind < len(starts) and kind else 0
    last = len(content) if kind in (0, 5) else min(first + 400, len(content))
    return draw(st.integers(first, max(last, first)))


@st.composite
def mutated(draw, originals: list[bytes]) -> bytes:
    """A copy of one of the files with one to four faults."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 4)))):
        kind, place = draw(st.integers(0, 8)), draw(places(bytes(content)))
        stop = min(place + draw(st.sampled_from((1, 2, 4, 16, 100, 1000))), len(content))
        if kind == 0 and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1 and place < len(content):
            content[place] = draw(st.integers(0, 255))
        elif kind == 2:
            form = draw(st.sampled_from(FORMATS))
            number = draw(st.sampled_from(EXTREME)) % 2 ** (8 * struct.calcsize(form))
            content[place : place + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            del content[place:]
        elif kind == 4:
            del content[place:stop]
        elif kind == 5:
            content[place:place] = draw(st.binary(min_size=1, max_size=24))
        elif kind == 6:
            content[place:place] = content[place:stop] * draw(st.sampled_from((1, 2, 50)))
        elif kind == 7:
            other = draw(st.sampled_from(originals))
            start = draw(places(other))
            content[place:stop] = other[start : start + draw(st.sampled_from((8, 64, 10**6)))]
        else:
            content[place:stop] = bytes(stop - place)
    return bytes(content)


DESCRIPTIONS = ["|u1", "<f4", "<f8", ">f8", "<f2", "|O", "<U4", "|S0", "|V0", "|V16", "<M8[ns]", "<M8", "<c16", "|b1"]
DESCRIPTIONS += [
    "<i8",
    "|S99999999999",
    "<f16",
    "x",
    "",
    "<U1073741823",
    [("a", "<f8")],
    [("a", "|O", (9, 9))],
    None,
    3,
]
SIZES = st.one_of(st.integers(0, 40), st.sampled_from(EXTREME), st.integers(-3, -1))
shapes = st.one_of(
    st.lists(SIZES, max_size=5).map(tuple),
    st.sampled_from(["(3", "3", "((((1,))))", "(10**12,)", "(True,)", "(1.0,)", "[3]", "()" * 2000, "(" * 5000]),
)


@st.composite
def npy(draw) -> bytes:
    """A file of NumPy with any header, and data that need not fit it."""
    descr, order = draw(st.sampled_from(DESCRIPTIONS)), draw(st.sampled_from((False, False, True, 3)))
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {draw(shapes)}, }}"
    if draw(st.integers(0, 9)) == 0:
        header = draw(
            st.sampled_from(["", "{", "{}", "0", "'", "[" * 3000, "__import__('os').abort()", header * 2, "é"])
        )
    version, encoded = draw(st.sampled_from((1, 1, 1, 2, 3, 0, 9, 255))), header.encode()
    length = draw(st.sampled_from((len(encoded), len(encoded), len(encoded), 0, 9, 2**16 - 1)))
    data = draw(st.one_of(st.binary(max_size=64), st.sampled_from((0, 64, 768, 10**5)).map(bytes)))
    size = struct.pack("<H", length) if version == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + encoded + data


def npy_of(array: np.ndarray) -> bytes:
    """The file of an array."""
    np.lib.format.write_array(stream := io.BytesIO(), np.asarray(array), allow_pickle=False)
    return stream.getvalue()


# signature, and the places of numbers of two and of four bytes: directory, header of an entry, end
ZIP_FIELDS = [(b"PK\1\2", (6, 8, 10, 28, 30, 32), (16, 20, 24, 42)), (b"PK\3\4", (4, 6, 8, 26, 28), (14, 18, 22))]
ZIP_FIELDS += [(b"PK\5\6", (8, 10, 20), (12, 16))]


@st.composite
def npz(draw, arrays: dict[str, np.ndarray]) -> bytes:
    """A zip file with right checksums whose entries are not those of the arrays, or with fields that lie."""
    names, stream = [*arrays, "other", "../../x", "", "a\0b"], io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in draw(st.lists(st.sampled_from(names), max_size=5)):
            original = npy_of(arrays.get(name, np.zeros(3)))
            content = draw(st.one_of(st.just(original), npy(), mutated([original])))
            suffix = draw(st.sampled_from((".npy", ".npy", ".npy", "", ".npy.npy")))
            kind = draw(
                st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            )
            with contextlib.suppress(UserWarning):
                archive.writestr(zipfile.ZipInfo(name + suffix), content, kind)
    return draw(lying_fields(stream.getvalue()))


@st.composite
def lying_fields(draw, archive: bytes) -> bytes:
    """A zip file in which up to two fields of the directory, an entry's header or the end are others."""
    content = bytearray(archive)
    for _ in range(draw(st.integers(0, 2))):
        mark, shorts, longs = draw(st.sampled_from(ZIP_FIELDS))
        offset, at = draw(st.sampled_from(shorts + longs)), content.find(mark)
        form = "<H" if offset in shorts else "<I"
        if at >= 0:
            number = draw(st.sampled_from((*EXTREME, 8, 9, 12, 14, 99))) % 2 ** (8 * struct.calcsize(form))
            content[at + offset : at + offset + struct.calcsize(form)] = struct.pack(form, number)
    return bytes(content)


@functools.cache
def bomb() -> bytes:
    """Half a GiB in half a MB, compressed by gzip."""
    return gzip.compress(bytes(2**29))


@st.composite
def idx(draw) -> bytes:
    """A file of MNIST's format with any header, compressed or not; one in two thousand is a bomb."""
    sizes = draw(st.lists(st.one_of(st.sampled_from((0, 1, 3, 28)), st.sampled_from(EXTREME)), max_size=6))
    dims = draw(st.sampled_from((len(sizes), len(sizes), len(sizes), 3, 0, 255)))
    kind = draw(st.sampled_from((8, 8, 8, 8, 9, 11, 13, 14, 0, 255)))
    content = bytes([0, 0, kind, dims]) + b"".join(struct.pack(">I", size % 2**32) for size in sizes)
    content += bytes(draw(st.sampled_from((0, 1, 784, 3 * 784, 10**5))))
    packing = draw(st.integers(0, 199))
    if packing == 199 and draw(st.integers(0, 9)) == 9:
        return gzip.compress(content) + bomb()
    return (
        content
        if packing < 100
        else draw(mutated([gzip.compress(content)]))
        if packing < 120
        else gzip.compress(content)
    )


@st.composite
def mat(draw, originals: list[bytes]) -> bytes:
    """A MATLAB file whose elements are damaged before they are compressed, so that their checksums are right."""
    content = draw(st.sampled_from(originals))
    head, body = content[:128], content[128:]
    parts = []
    while len(body) >= 8:
        kind, size = struct.unpack("<II", body[:8])
        inner = zlib.decompress(body[8 : 8 + size]) if kind == 15 else body[: 8 + size]
        inner = draw(mutated([inner])) if draw(st.booleans()) else inner
        if draw(st.integers(0, 3)) == 0 and len(inner) > 64:  # a field of four bytes
            at = 4 * draw(st.integers(0, 20))
            inner = inner[:at] + struct.pack("<I", draw(st.sampled_from(EXTREME)) % 2**32) + inner[at + 4 :]
        packed = zlib.compress(inner)
        parts.append(struct.pack("<II", 15, len(packed)) + packed if draw(st.booleans()) else inner)
        body = body[8 + size :]
    return head + b"".join(parts)


NAMES = ["numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"]
NAMES += ["_codecs encode", "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"]
NAMES += ["torch._utils _rebuild_tensor", "torch Size", "torch._utils _rebuild_parameter"]
NAMES += ["numpy.core.multiarray scalar", "numpy._core.numeric _frombuffer"]
RUNNING = ["os system", "posix system", "builtins exec", "builtins eval", "subprocess Popen", "os mkdir", "numpy load"]
RUNNING += [
    "builtins getattr",
    "__builtin__ eval",
    "numpy.core.multiarray frombuffer",
    "numpy os.system",
    "pickle loads",
]


def one_line(name: str) -> bytes:
    """The instruction that names a function."""
    return f"c{name.replace(' ', chr(10), 1)}\n".encode()


def small_int(number: int) -> bytes:
    """The instruction that pushes an int."""
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


values = st.one_of(
    st.sampled_from(
        [b"N", b"\x88", b"\x89", b"]", b"}", b")", b"(", b"G" + bytes(8), b"I01\n", b"L5L\n", b"F1e999\n"]
    ),
    st.sampled_from(EXTREME).map(small_int),
    st.sampled_from(("data", "latin1", "storage", "cpu", "0", "rot13", "u1", "f8", "O", "|", "b", "<")).map(
        lambda text: b"X" + struct.pack("<I", len(text)) + text.encode()
    ),
    st.binary(max_size=16).map(lambda raw: b"U" + bytes([len(raw)]) + raw),
    st.sampled_from(NAMES).map(one_line),
    st.sampled_from(RUNNING).map(one_line),
)
ACTIONS = [
    b"R",
    b"b",
    b"t",
    b"l",
    b"d",
    b"a",
    b"e",
    b"s",
    b"u",
    b"0",
    b"1",
    b"2",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x81",
    b"Q",
]
ACTIONS += [
    b"q\x00",
    b"h\x00",
    b"\x94",
    b"o",
    b"inumpy\nload\n",
    b"\x93",
    b"\x82\x01",
    b"(",
    b".",
    b"\x95" + b"\xff" * 8,
]
ACTIONS += [b"r\xff\xff\xff\x7f", b"r\xff\xff\xff\x0f", b"p999999999\n", b"j\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f"]
ACTIONS += [
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"T\xff\xff\xff\x7f",
    b"\x96" + b"\xff" * 7 + b"\x00",
]
DEEP = [b"]" + b"\x85" * 300_000, b")" + b"\x85" * 300_000 + b"R", b"}" + b")" + b"\x85" * 300_000 + b"Ns"]
DEEP += [b"})" + b"q\x01h\x01\x86" * 60 + b"Ns", b")" + b"q\x01h\x01\x86" * 60 + b")R", b"(" * 300_000, b"]" * 300_000]
MANY = b"X\0\0\x08\0" + b"a" * 2**19 + b"q\1("  # half a MiB
DEEP += [MANY + b"c_codecs\nencode\n(h\1X\5\0\0\0asciitR" * 2000 + b"l", MANY + b"ctorch\nSize\n(h\1tR" * 500 + b"l"]
DEEP += [b"]q\x01h\x01a", b"}q\x01Nh\x01s", b"}X\x04\x00\x00\x00datah\x00s"]
program = st.one_of(
    st.lists(st.one_of(values, values, st.sampled_from(ACTIONS)), max_size=30).map(b"".join),
    st.lists(st.one_of(values, values, st.sampled_from(ACTIONS)), max_size=30).map(b"".join),
    st.tuples(st.sampled_from(NAMES), st.lists(values, max_size=6)).map(
        lambda call: one_line(call[0]) + b"(" + b"".join(v for v in call[1] if v != b"(") + b"tR"
    ),
)


class Runs:
    """What runs a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@st.composite
def pickles(draw, canary: str) -> bytes:
    """A pickle that is a random program, nests deeply, or creates the folder `canary`."""
    import os

    kind, protocol = draw(st.integers(0, 99)), draw(st.sampled_from((0, 1, 2, 3, 4, 5)))
    if kind < 3:
        deep = draw(st.sampled_from(DEEP))
        return (
            b"\x80\x02"
            + draw(st.sampled_from((b"", b"}q\x00X\x04\x00\x00\x00data")))
            + deep
            + b"s."[draw(st.integers(0, 1)) :]
        )
    if kind < 24:
        runs = [Runs(os.mkdir, canary), Runs(eval, f"__import__('os').mkdir({canary!r})")]
        runs += [Runs(os.system, f"mkdir {canary}"), Runs(exec, f"import os; os.mkdir({canary!r})")]
        return pickle.dumps({b"data": draw(st.sampled_from(runs)), "model": 0}, protocol)
    body, wrap = draw(program), draw(st.booleans())
    key = draw(st.sampled_from((b"U\x04data", b"X\x04\x00\x00\x00data", b"C\x04data", b"U\x05model")))
    return b"\x80" + bytes([draw(st.sampled_from((2, 2, 4)))]) + (b"}" + key + body + b"s" if wrap else body) + b"."


def torch_zip(data_pkl: bytes, storages: dict[str, bytes]) -> bytes:
    """A file of torch.save with right checksums around a pickle."""
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        for name, content in {"data.pkl": data_pkl, "byteorder": b"little", **storages, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return stream.getvalue()


texts = st.one_of(st.text(max_size=6), st.sampled_from(["\ud800", "\0", "a\nb", "<b>", "é", "%s{0}", "nan", "1e999"]))
numbers = st.one_of(
    st.sampled_from([0, -1, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf"), True, False, 0.5]),
    st.sampled_from(EXTREME),
    st.integers(-(10**40), 10**40),
    st.floats(),
)
leaves = st.one_of(st.none(), numbers, texts)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
ODD = [
    b"",
    b"\0",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'""',
    b"[" * 10**5,
    b'{"a":' * 10**5,
    b"1" * 5000,
    b"[" + b"1," * 10**5,
]
ODD += [
    b'{"step": ' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf{}",
    '{"a": 1}'.encode("utf-16"),
    b"\xff\xfe",
    b'"\\ud800"',
    b"NaN",
]
ODD += [b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900, b"[" * 90000 + b"]" * 90000]


@st.composite
def changed(draw, tree: Any, more: st.SearchStrategy = trees) -> Any:
    """A copy of a tree of JSON in which something somewhere is another."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)):
        key, action = draw(st.sampled_from(sorted(tree, key=str))), draw(st.integers(0, 11))
        if action == 0:
            return {name: value for name, value in tree.items() if name != key}
        if action == 1:
            return tree | {draw(texts): draw(more)}
        if action == 2:
            return {draw(texts) if name == key else name: value for name, value in tree.items()}
        return tree | {key: draw(changed(tree[key], more))}
    if isinstance(tree, list) and tree and draw(st.integers(0, 9)):
        place, action = draw(st.integers(0, len(tree) - 1)), draw(st.integers(0, 7))
        if action == 0:
            return tree[:place] + tree[place + 1 :]
        if action == 1:
            return tree[:place] + [draw(more)] + tree[place:]
        return [*tree[:place], draw(changed(tree[place], more)), *tree[place + 1 :]]
    return draw(more)


@st.composite
def json_texts(draw, original: bytes, lines: bool = False) -> bytes:
    """A damaged copy of a JSON file, or of a file of lines of JSON, that mostly still is JSON."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.sampled_from(ODD))
    if not lines:
        return json.dumps(draw(changed(json.loads(original)))).encode()
    rows = original.split(b"\n")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(rows) - 1))
        if rows[place][:1] == b"{" and (kind := draw(st.integers(0, 9))) > 2:
            with contextlib.suppress(ValueError):
                rows[place] = json.dumps(draw(changed(json.loads(rows[place])))).encode()
        elif kind == 1:
            rows[place : place + 1] = [draw(st.sampled_from(ODD))]
        else:
            rows[place : place + 2] = [b"".join(rows[place : place + 2])]
    return b"\n".join(rows)
