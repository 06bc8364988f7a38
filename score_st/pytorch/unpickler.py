"""Pickles of PyTorch checkpoints, read and written without torch, and without running what is in them.

A pickle is a program. Here it is interpreted by three dozen instructions that make containers, numbers and tensors,
and can call no function but those of `REBUILD`.
"""

import codecs
import math
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
NAMES = {np.dtype(kind): name for name, kind in STORAGES.items()}


class Damaged(ValueError):
    """A file that is no checkpoint, or a broken or hostile one."""


class Global(NamedTuple):
    """A name that a pickle asks for."""

    module: str
    name: str


class Storage:
    """The flat data of one or more tensors; `data` [size] is found once the pickle has been read."""

    def __init__(self, key: str, dtype, size: int):
        self.key, self.dtype, self.size, self.data = key, np.dtype(dtype), size, None


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A view of the storage; raises Damaged where it reaches beyond."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise Damaged("a tensor's size, strides or offset are no whole numbers")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape or len(self.shape) > 8 or last >= self.storage.size:
            raise Damaged(f"a tensor of shape {list(self.shape)[:8]} does not fit its {self.storage.size} numbers")
        strides = [stride * self.storage.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(self.storage.data[self.offset :], self.shape, strides, writeable=False)


def _scalar(dtype, raw):
    if not (isinstance(dtype, np.dtype) and isinstance(raw, bytes) and len(raw) == dtype.itemsize):
        raise Damaged("a number of NumPy that is none")
    return np.frombuffer(raw, dtype)[0].item()


def _dtype(name, *_):
    if name not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
        raise Damaged(f"a number of NumPy's type {str(name)[:20]!r}")
    return np.dtype(name).newbyteorder("<")


def _encode(text, encoding):
    if encoding not in ("latin1", "utf-8", "ascii"):
        raise Damaged(f"text in {str(encoding)[:20]!r}")
    return codecs.encode(text, encoding)


REBUILD = {
    Global("collections", "OrderedDict"): OrderedDict,
    Global("torch._utils", "_rebuild_tensor"): lambda *a: Tensor(*a),
    Global("torch._utils", "_rebuild_tensor_v2"): lambda *a: Tensor(*a[:4]),
    Global("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Global("torch", "Size"): tuple,
    Global("numpy", "dtype"): _dtype,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.multiarray", "scalar"): _scalar,
    Global("_codecs", "encode"): _encode,
}
KINDS = {Global("torch", name): kind for name, kind in STORAGES.items()}


class Machine:
    """Interprets one pickle; `storages` collects the data that its tensors name, by key."""

    def __init__(self, storages: dict[str, Storage]):
        self.stack: list[Any] = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def run(self, file):
        """The object that the pickle at the file's position makes."""
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in CONSTANTS:
                self.stack.append(argument)
            elif opcode.name in ACTIONS:
                ACTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise Damaged(f"its pickle has the instruction {opcode.name}, which no checkpoint needs")
        raise Damaged("its pickle has no end")

    def push(self, value):
        self.stack.append(value)

    def pop(self, count: int) -> list:
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _):
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def make_tuple(self, count):
        self.push(tuple(self.pop_mark() if count is None else self.pop(count)))

    def append(self, items):
        if type(self.stack[-1]) is not list:
            raise Damaged("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items):
        if type(self.stack[-1]) not in (dict, OrderedDict) or len(items) % 2:
            raise Damaged("its pickle sets items of what is no dictionary")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def put(self, index):
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def find(self, name):
        if name is None:
            name = " ".join(self.pop(2))
        found = Global(*name.split(" ", 1))
        if found not in REBUILD and found not in KINDS:
            raise Damaged(f"its pickle asks for {found.module}.{found.name}"[:120] + ", which no checkpoint needs")
        self.push(found)

    def reduce(self, _):
        function, arguments = self.pop(2)
        if function not in REBUILD or type(arguments) is not tuple:
            raise Damaged("its pickle calls what is no function")
        self.push(REBUILD[function](*arguments))

    def build(self, _):
        """Attributes of a dictionary (versions of modules) and the byte order of a dtype; neither matters."""
        state = self.stack.pop()
        if type(self.stack[-1]) is OrderedDict and type(state) is dict:
            return
        if isinstance(self.stack[-1], np.dtype) and type(state) is tuple and state[1:2] in (("<",), ("|",)):
            return
        raise Damaged("its pickle gives attributes to what has none")

    def storage(self, _):
        """('storage', type, key, device, numbers) and in legacy files None or a view (key, offset, size)."""
        kind, storage_type, key, _, size, *view = self.stack.pop()
        if kind != "storage" or storage_type not in KINDS or not isinstance(key, str) or view not in ([], [None]):
            raise Damaged("its pickle names data in an unknown way")
        if type(size) is not int or size < 0:
            raise Damaged(f"its data {key[:20]!r} has no size")
        made = self.storages.setdefault(key, Storage(key, KINDS[storage_type], size))
        if (made.dtype, made.size) != (KINDS[storage_type], size):
            raise Damaged(f"its data {key[:20]!r} has two types or sizes")
        self.push(made)


CONSTANTS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
CONSTANTS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
ACTIONS = {
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": Machine.mark,
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "EMPTY_TUPLE": lambda m, _: m.make_tuple(0),
    "TUPLE1": lambda m, _: m.make_tuple(1),
    "TUPLE2": lambda m, _: m.make_tuple(2),
    "TUPLE3": lambda m, _: m.make_tuple(3),
    "TUPLE": Machine.make_tuple,
    "EMPTY_DICT": lambda m, _: m.push({}),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "PUT": Machine.put,
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "MEMOIZE": Machine.put,
    "GET": lambda m, index: m.push(m.memo[index]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": Machine.find,
    "STACK_GLOBAL": Machine.find,
    "REDUCE": Machine.reduce,
    "BUILD": Machine.build,
    "BINPERSID": Machine.storage,
}


def dump(node, arrays: list[np.ndarray]) -> Iterator[bytes]:
    """The instructions that make `node`, in protocol 2; its arrays are appended to `arrays`, named by place."""
    if node is None or isinstance(node, bool):
        yield {None: b"N", True: b"\x88", False: b"\x89"}[node]
    elif isinstance(node, int):
        yield b"\x8a\x08" + struct.pack("<q", node)
    elif isinstance(node, float):
        yield b"G" + struct.pack(">d", node)
    elif isinstance(node, str):
        yield b"X" + struct.pack("<I", len(node.encode())) + node.encode()
    elif isinstance(node, dict):
        yield b"ccollections\nOrderedDict\n)R(" if isinstance(node, OrderedDict) else b"}("
        for pair in node.items():
            for part in pair:
                yield from dump(part, arrays)
        yield b"u"
    elif isinstance(node, list | tuple):
        yield b"](" if isinstance(node, list) else b"("
        for value in node:
            yield from dump(value, arrays)
        yield b"e" if isinstance(node, list) else b"t"
    else:
        yield from _dump_tensor(np.asarray(node), arrays)


def _dump_tensor(array: np.ndarray, arrays: list[np.ndarray]):
    strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    yield b"ctorch._utils\n_rebuild_tensor_v2\n((" + b"".join(dump("storage", arrays))
    yield f"ctorch\n{NAMES[array.dtype]}\n".encode()
    for part in (str(len(arrays)), "cpu", array.size):
        yield from dump(part, arrays)
    arrays.append(array)
    yield b"tQ"
    for part in (0, tuple(array.shape), tuple(strides), False, OrderedDict()):
        yield from dump(part, arrays)
    yield b"tR"
