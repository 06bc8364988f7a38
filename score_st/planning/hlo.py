"""What a compiled TPU program says of itself in its HLO text: collectives, and what moves bytes to and from memory.

XLA's own count of bytes (`cost_analysis`) takes in what stays in the chip's vector memory (`S(1)` in a layout), and
counts a loop's body once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # others end in their number of bits
ARRAY = re.compile(r"\b(pred|token|opaque|bf16|[sufc]\d+)\[([\d,]*)\](\{[^}]*\})?")
COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(")
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COPIES = {"copy-start": 0, "slice-start": 1}  # where the destination is in the shape
STILL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`arguments` is the rest of the line after the opening parenthesis."""

    name: str
    shape: str
    opcode: str
    arguments: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments.partition(")")[0])

    @property
    def source(self) -> str:
        """The operation in the Python code: its name scopes and primitive."""
        found = re.search(r'op_name="([^"]*)"', self.arguments)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Attributes:
    kind: one of KINDS.
    types: of the elements.
    bytes: of the whole array before it is scattered or after it is gathered.
    group: devices that take part together.
    times: a step.
    """

    kind: str
    types: str
    bytes: int
    group: int
    times: int


@dataclasses.dataclass(frozen=True)
class Array:
    """Of a shape: `padded` is its size with the tiles that its layout fills up; `in_hbm` is False in vector memory."""

    type: str
    bytes: int
    padded: int
    in_hbm: bool


def arrays(shape: str) -> Iterator[Array]:
    """The arrays of a shape, which may be a tuple."""
    for kind, dims, layout in ARRAY.findall(shape):
        bits = BITS[kind] if kind in BITS else int(kind[1:])
        sizes = [int(d) for d in dims.split(",") if d]
        padded = list(sizes)
        if tile := re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout):  # from the most minor axis
            for axis, by in zip(tile[1].split(","), reversed(tile[2].split(",")), strict=False):
                padded[int(axis)] = -(-sizes[int(axis)] // int(by)) * int(by)
        size, filled = (math.prod(s) * bits // 8 for s in (sizes, padded))
        yield Array(kind, size, filled, not re.search(r"S\([1-9]", layout))


class Program:
    """Args: text: `Compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations, self.entry, current = {}, None, {}
        for line in text.splitlines():
            if match := COMPUTATION.match(line):
                current = self.computations[match[2]] = {}
                self.entry = match[2] if match[1] else self.entry
            elif match := INSTRUCTION.match(line):
                current[match[1]] = Instruction(*match.groups())
        self.times = collections.Counter()
        self._count(self.entry, 1)

    def _count(self, name: str, times: int):
        """How often each computation runs; a loop of unknown length counts once."""
        self.times[name] += times
        for instruction in self.computations[name].values():
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.arguments)
            called = [found for _, found in CALLED.findall(instruction.arguments)]
            for branches in BRANCHES.findall(instruction.arguments):
                called += re.findall(r"%([\w.-]+)", branches)
            for other in called:
                self._count(other, times * (int(trips[1]) if trips else 1))

    def collectives(self) -> list[Collective]:
        """Of all computations, also fused ones, the largest first."""
        found = []
        for name, body in self.computations.items():
            for instruction in body.values():
                kind = instruction.opcode.removesuffix("-start")
                if kind not in KINDS or not self.times[name]:
                    continue
                parts = [part for operand in instruction.operands for part in arrays(body[operand].shape)]
                group = group_size(instruction.arguments)
                size = sum(part.bytes for part in parts) * (group if kind == "all-gather" else 1)
                types = "+".join(sorted({part.type for part in parts}))
                found.append(Collective(kind, types, size, group, self.times[name]))
        return sorted(found, key=lambda c: -c.bytes * c.times)

    def traffic(self) -> collections.Counter:
        """Bytes to and from HBM by source: what each instruction that is not fused reads and writes there."""
        moved = collections.Counter()
        fused = {other for body in self.computations.values() for i in body.values() for other in _within(i)}
        for name, body in self.computations.items():
            for instruction in () if name in fused else body.values():
                if instruction.opcode in STILL or instruction.opcode.endswith("-done"):
                    continue
                read = [array for o in instruction.operands if o in body for array in arrays(body[o].shape)]
                written = list(arrays(instruction.shape))
                if instruction.opcode in COPIES:  # the shape has source, destination and a flag
                    written = [written[COPIES[instruction.opcode]]]
                    read = [dataclasses.replace(written[0], in_hbm=read[0].in_hbm)]
                size = sum(array.padded for array in read + written if array.in_hbm)
                moved[_source(instruction, body)] += size * self.times[name]
        return moved


def _source(instruction: Instruction, body: dict, depth: int = 8) -> str:
    """Of a copy, which has no name of its own, the source of what it copies."""
    if instruction.opcode == "parameter":
        return "arguments"
    if instruction.source or not depth:
        return instruction.source
    operands = (body[name] for name in instruction.operands if name in body)
    return next((found for i in operands if (found := _source(i, body, depth - 1))), "")


def _within(instruction: Instruction) -> list[str]:
    """Computations that run inside an instruction, without memory traffic of their own."""
    return [name for how, name in CALLED.findall(instruction.arguments) if how in ("calls", "to_apply")]


def sources(traffic: collections.Counter) -> collections.Counter:
    """`Program.traffic` by direction and the last names of the scope: "backward GroupNorm_0/mul"."""
    found = collections.Counter()
    for name, size in traffic.items():
        way = "backward " if "transpose(" in name else "forward " if "jvp(" in name else ""
        found[way + "/".join(name.split("/")[-2:]) if name else "other"] += size
    return found


def group_size(arguments: str) -> int:
    """Of replica_groups in its three notations, {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'a'}; else 1."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", arguments):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", arguments):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", arguments):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'[^']*'", match[2]))
    return 1
