"""Pickles of PyTorch checkpoints, read and written without torch, and without running code from the file.

A pickle is a program for a stack machine. This interpreter knows three dozen instructions, which build containers,
numbers and tensors, and calls no functions but those in `REBUILD`.
"""

import codecs
import math
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, cast, no_type_check

import ml_dtypes
import numpy as np

from score_st.array_types import Shaped

STORAGES: dict[str, Any] = {
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
INSTRUCTION_LIMIT = 2**20  # some seconds; the pickle of the largest official network has as many bytes
GIVEN_LIMIT = 2**26  # the largest pickle, of 10,000 images of CIFAR-10, gives less than half of it
STORAGE_NAMES = {np.dtype(kind): name for name, kind in STORAGES.items()}


class Damaged(ValueError):
    """The file is no checkpoint of PyTorch, is damaged, or would run code."""


class Global(NamedTuple):
    """A function or class that a pickle names."""

    module: str
    name: str


class Storage:
    """The flat data of one or more tensors.

    Args:
      key: its name in the file.
      dtype: the type of its numbers.
      size: how many there are. `data` [size] is set once the pickle has been read.
    """

    def __init__(self, key: str, dtype: Any, size: int) -> None:
        """Describes data that has not been read yet."""
        self.key, self.dtype, self.size = key, np.dtype(dtype), size
        self.data: np.ndarray | None = None


class Tensor(NamedTuple):
    """A view of a storage; offset and strides are counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> Shaped[np.ndarray, "..."]:
        """The tensor as a read-only array.

        Raises:
          Damaged: it reaches beyond its storage.
        """
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise Damaged("a tensor's shape, strides or offset are not whole numbers")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        data = self.storage.data
        if data is None or 0 in self.shape or len(self.shape) > 8 or last >= self.storage.size:
            raise Damaged(
                f"a tensor of shape {list(self.shape)[:8]} does not fit into its {self.storage.size} numbers"
            )
        strides = [stride * self.storage.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides, writeable=False)


def _scalar(dtype: Any, raw: Any) -> Any:
    if not (isinstance(dtype, np.dtype) and isinstance(raw, bytes) and len(raw) == dtype.itemsize):
        raise Damaged("a NumPy scalar has the wrong number of bytes")
    return np.frombuffer(raw, dtype)[0].item()


def _dtype(name: Any, *_: Any) -> np.dtype:
    if name not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
        raise Damaged(f"a NumPy scalar has the type {_shown(name)}, which no checkpoint needs")
    return np.dtype(name).newbyteorder("<")


def _encode(text: Any, encoding: Any) -> Any:
    if encoding not in ("latin1", "utf-8", "ascii"):
        raise Damaged(f"text has the encoding {_shown(encoding)}, which no checkpoint needs")
    return codecs.encode(text, encoding)


def _shown(value: Any) -> str:
    """A value in a message; a tuple may hold another twice, that another twice, and so on."""
    return repr(value[:20]) if isinstance(value, str) else f"of a {type(value).__name__}"


def _dictionary(kind: type[dict], keys: list, items: list) -> dict:
    """A dictionary, whose keys are text or numbers: to hash tuples in tuples may take forever, or end the process."""
    if not all(key is None or isinstance(key, str | bytes | int | float) for key in keys):
        raise Damaged("its pickle has a dictionary whose keys are neither text nor numbers")
    return kind(zip(keys, items, strict=True))


def _ordered(pairs: Any = ()) -> OrderedDict:
    """An OrderedDict of a list of pairs, as Python 2 pickles it."""
    if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise Damaged("its pickle has an OrderedDict of something else than pairs")
    return cast(OrderedDict, _dictionary(OrderedDict, [pair[0] for pair in pairs], [pair[1] for pair in pairs]))


def _shape(sizes: Any) -> tuple:
    if type(sizes) not in (list, tuple) or len(sizes) > 64:
        raise Damaged("its pickle has a shape that is none")
    return tuple(sizes)


# the only functions that a pickle may call
REBUILD: dict[Global, Callable] = {
    Global("collections", "OrderedDict"): _ordered,
    Global("torch._utils", "_rebuild_tensor"): lambda *a: Tensor(*a),
    Global("torch._utils", "_rebuild_tensor_v2"): lambda *a: Tensor(*a[:4]),
    Global("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Global("torch", "Size"): _shape,
    Global("numpy", "dtype"): _dtype,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.multiarray", "scalar"): _scalar,
    Global("_codecs", "encode"): _encode,
}


class Array:
    """An array that a pickle of NumPy builds: it has no value until its data come."""

    def __init__(self, kind: Any, *_: Any) -> None:
        """Takes the arguments of `numpy.core.multiarray._reconstruct`, of which only the class matters."""
        self.value: np.ndarray | None = None
        if kind != Global("numpy", "ndarray"):
            raise Damaged("its pickle has an array of an unknown class")

    def set(self, state: Any) -> None:
        """Takes (version, shape, dtype, whether it is in Fortran's order, bytes), or the same without version."""
        shape, dtype, fortran, raw = state[-4:]
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not (isinstance(shape, tuple) and isinstance(dtype, np.dtype) and isinstance(raw, bytes)):
            raise Damaged("its pickle has an array without data")
        self.value = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran is True else "C")


def _no_call(*_: Any) -> Any:
    raise Damaged("its pickle calls numpy.ndarray")


# the functions of a pickle of arrays, text and numbers, as Python 2 and 3 write them
REBUILD_ARRAYS: dict[Global, Callable] = {
    Global("numpy.core.multiarray", "_reconstruct"): Array,
    Global("numpy._core.multiarray", "_reconstruct"): Array,
    Global("numpy", "ndarray"): _no_call,
    Global("numpy", "dtype"): _dtype,
    Global("_codecs", "encode"): _encode,
}
STORAGE_TYPES = {Global("torch", name): kind for name, kind in STORAGES.items()}


@no_type_check  # tests check the arguments of all other functions; these are called a million times
class Machine:
    """A stack machine that interprets one pickle.

    A subclass for another kind of file knows other `functions` and `actions`.

    Args:
      storages: collects the storages of its tensors, by key.
    """

    functions: ClassVar[Mapping[Global, Callable]] = REBUILD  # the only ones that the pickle may call
    actions: ClassVar[Mapping[str, Callable[[Any, Any], None]]]  # by instruction; those of CONSTANTS aside
    given_limit: ClassVar[int] = GIVEN_LIMIT  # items that functions may be given

    def __init__(self, storages: dict[str, Storage]) -> None:
        """Starts with an empty stack."""
        self.given = 0  # items that functions have been given
        self.stack: list[Any] = []
        self.marks: list[list] = []  # the stacks below each MARK
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def run(self, pickle: Any) -> Any:
        """The object that a pickle holds.

        Args:
          pickle: bytes, or a file, which is left at the end of the pickle.

        Raises:
          Damaged: the pickle has no end, or an instruction that no checkpoint needs.
        """
        for number, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if number > INSTRUCTION_LIMIT:
                raise Damaged(f"its pickle has more instructions than {INSTRUCTION_LIMIT}, which no checkpoint needs")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in CONSTANTS:
                self.stack.append(argument)
            elif opcode.name in self.actions:
                self.actions[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise Damaged(f"its pickle has the instruction {opcode.name}, which no checkpoint needs")
        raise Damaged("its pickle has no end")

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self, count: int) -> list:
        """Takes the last `count` values off the stack."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _: Any) -> None:
        """Starts a new stack above the present one."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        """Returns the values since the last mark, and goes back to the stack below it."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def make_tuple(self, count: int | None) -> None:
        """Replaces the last `count` values, or those since the mark, by a tuple."""
        self.push(tuple(self.pop_mark() if count is None else self.pop(count)))

    def append(self, items: list) -> None:
        """Appends to the list on the stack."""
        if type(self.stack[-1]) is not list:
            raise Damaged("its pickle appends to something that is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list) -> None:
        """Sets keys and values, which alternate in `items`, of the dictionary on the stack."""
        if type(self.stack[-1]) not in (dict, OrderedDict) or len(items) % 2:
            raise Damaged("its pickle sets items of something that is not a dictionary")
        self.stack[-1].update(_dictionary(dict, items[::2], items[1::2]))

    def put(self, index: int | None) -> None:
        """Remembers the last value under `index`, or under the next one."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def find(self, name: str | None) -> None:
        """Pushes a function or storage type, named by "module name" or by the last two values."""
        if name is None:
            name = " ".join(self.pop(2))
        target = Global(*name.split(" ", 1))
        if target not in self.functions and target not in STORAGE_TYPES:
            raise Damaged(f"its pickle asks for {target.module}.{target.name}"[:120] + ", which no checkpoint needs")
        self.push(target)

    def reduce(self, _: Any) -> None:
        """Calls one of the `functions`."""
        function, arguments = self.pop(2)
        if type(function) is not Global or function not in self.functions or type(arguments) is not tuple:
            raise Damaged("its pickle calls something that is not a function")
        self.given += sum(len(value) for value in arguments if isinstance(value, str | bytes | list | tuple))
        if self.given > self.given_limit:  # the same text a thousand times, each time copied
            raise Damaged("its pickle calls functions with more than it can hold")
        self.push(self.functions[function](*arguments))

    def build(self, _: Any) -> None:
        """Sets the data of an array; drops a dictionary's attributes and a dtype's byte order, which don't matter."""
        state = self.stack.pop()
        if type(self.stack[-1]) is OrderedDict and type(state) is dict:
            return
        if isinstance(self.stack[-1], Array) and type(state) is tuple:
            self.stack[-1].set(state)
            return
        if isinstance(self.stack[-1], np.dtype) and type(state) is tuple and state[1:2] in (("<",), ("|",)):
            return
        raise Damaged("its pickle sets attributes of something that has none")

    def storage(self, _: Any) -> None:
        """Replaces ('storage', type, key, device, size), in legacy files followed by None, by a storage."""
        kind, storage_type, key, _, size, *view = self.stack.pop()
        known = kind == "storage" and type(storage_type) is Global and storage_type in STORAGE_TYPES
        known = known and isinstance(key, str)
        if not known or view not in ([], [None]):
            raise Damaged("its pickle refers to data in an unknown way")
        if type(size) is not int or size < 0:
            raise Damaged(f"its data {key[:20]!r} has no size")
        dtype = STORAGE_TYPES[storage_type]
        storage = self.storages.setdefault(key, Storage(key, dtype, size))
        if (storage.dtype, storage.size) != (dtype, size):
            raise Damaged(f"its data {key[:20]!r} has two types or sizes")
        self.push(storage)


# instructions that push their argument, and all others
CONSTANTS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
CONSTANTS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
ACTIONS: dict[str, Callable[[Any, Any], None]] = {
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
Machine.actions = ACTIONS


class ArrayMachine(Machine):
    """Interprets a pickle of arrays, text and numbers."""

    functions = REBUILD_ARRAYS


def dump(node: Any, arrays: list[Shaped[np.ndarray, "..."]]) -> Iterator[bytes]:
    """The instructions of protocol 2 that build `node`.

    Args:
      node: dictionaries, lists, tuples, numbers, text and arrays.
      arrays: collects its arrays; an array's index is its key in the file.
    """
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


def _dump_tensor(array: np.ndarray, arrays: list[np.ndarray]) -> Iterator[bytes]:
    strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    yield b"ctorch._utils\n_rebuild_tensor_v2\n((" + b"".join(dump("storage", arrays))
    yield f"ctorch\n{STORAGE_NAMES[array.dtype]}\n".encode()
    location: tuple = (str(len(arrays)), "cpu", array.size)
    view: tuple = (0, tuple(array.shape), tuple(strides), False, OrderedDict())
    for part in location:
        yield from dump(part, arrays)
    arrays.append(array)
    yield b"tQ"
    for part in view:
        yield from dump(part, arrays)
    yield b"tR"
