"""What the HLO text of a compiled TPU program says: collectives, and traffic to and from memory.

XLA's own count of bytes (`cost_analysis`) includes what stays in the chip's vector memory (`S(1)` in a layout), and
counts the body of a loop once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # other types end in their number of bits
ARRAY = re.compile(r"\b(pred|token|opaque|bf16|[sufc]\d+)\[([\d,]*)\](\{[^}]*\})?")
COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(")
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COPIES = {"copy-start": 0, "slice-start": 1}  # the position of the destination in the shape
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation; `arguments` is the rest of the line after the opening parenthesis."""

    name: str
    shape: str
    opcode: str
    arguments: str

    @property
    def operands(self) -> list[str]:
        """The names of the instructions that it takes."""
        return re.findall(r"%([\w.-]+)", self.arguments.partition(")")[0])

    @property
    def source(self) -> str:
        """The operation in the Python code, by name scopes and primitive."""
        match = re.search(r'op_name="([^"]*)"', self.arguments)
        return match[1] if match else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication between devices.

    Attributes:
      kind: one of KINDS.
      types: of the elements.
      bytes: size of the full array, before it is scattered or after it is gathered.
      group: number of devices that take part together.
      times: how often a step runs it.
    """

    kind: str
    types: str
    bytes: int
    group: int
    times: int


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a shape; `padded` is its size with full tiles, `in_hbm` is False in vector memory."""

    type: str
    bytes: int
    padded: int
    in_hbm: bool


def arrays(shape: str) -> Iterator[Array]:
    """Yields the arrays of a shape, which may be a tuple."""
    for kind, dims, layout in ARRAY.findall(shape):
        bits = BITS[kind] if kind in BITS else int(kind[1:])
        sizes = [int(size) for size in dims.split(",") if size]
        padded = list(sizes)
        if tile := re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout):  # from the most minor axis
            for axis, multiple in zip(tile[1].split(","), reversed(tile[2].split(",")), strict=False):
                padded[int(axis)] = -(-sizes[int(axis)] // int(multiple)) * int(multiple)
        exact, tiled = (math.prod(axes) * bits // 8 for axes in (sizes, padded))
        yield Array(kind, exact, tiled, not re.search(r"S\([1-9]", layout))


class Program:
    """The computations of a program, and how often a step runs each."""

    def __init__(self, text: str) -> None:
        """Parses `Compiled.as_text()`."""
        self.computations: dict[str, Computation] = {}
        entry, current = "", Computation()
        for line in text.splitlines():
            if match := COMPUTATION.match(line):
                current = self.computations[match[2]] = {}
                entry = match[2] if match[1] else entry
            elif match := INSTRUCTION.match(line):
                current[match[1]] = Instruction(*match.groups())
        self.times: collections.Counter[str] = collections.Counter()
        self._count(entry, 1)

    def _count(self, name: str, times: int) -> None:
        """Counts how often each computation runs; a loop of unknown length counts once."""
        self.times[name] += times
        for instruction in self.computations[name].values():
            trips = TRIP_COUNT.search(instruction.arguments)
            called = [other for _, other in CALLED.findall(instruction.arguments)]
            for branches in BRANCHES.findall(instruction.arguments):
                called += re.findall(r"%([\w.-]+)", branches)
            for other in called:
                self._count(other, times * (int(trips[1]) if trips else 1))

    def collectives(self) -> list[Collective]:
        """Returns the collectives of all computations, fused ones included, the largest first."""
        collectives = []
        for name, computation in self.computations.items():
            for instruction in computation.values():
                kind = instruction.opcode.removesuffix("-start")
                if kind not in KINDS or not self.times[name]:
                    continue
                parts = [part for operand in instruction.operands for part in arrays(computation[operand].shape)]
                group = group_size(instruction.arguments)
                size = sum(part.bytes for part in parts) * (group if kind == "all-gather" else 1)
                types = "+".join(sorted({part.type for part in parts}))
                collectives.append(Collective(kind, types, size, group, self.times[name]))
        return sorted(collectives, key=lambda collective: -collective.bytes * collective.times)

    def traffic(self) -> collections.Counter[str]:
        """Returns bytes to and from HBM by source: what instructions read and write there, unless they are fused."""
        traffic: collections.Counter[str] = collections.Counter()
        instructions = (i for computation in self.computations.values() for i in computation.values())
        fused = {name for instruction in instructions for name in _inlined(instruction)}
        for name, computation in self.computations.items():
            for instruction in () if name in fused else computation.values():
                if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
                    continue
                operands = [computation[operand] for operand in instruction.operands if operand in computation]
                read = [array for operand in operands for array in arrays(operand.shape)]
                written = list(arrays(instruction.shape))
                if instruction.opcode in COPIES:  # the shape has source, destination and a flag
                    written = [written[COPIES[instruction.opcode]]]
                    read = [dataclasses.replace(written[0], in_hbm=read[0].in_hbm)]
                size = sum(array.padded for array in read + written if array.in_hbm)
                traffic[_source(instruction, computation)] += size * self.times[name]
        return traffic


def _source(instruction: Instruction, computation: Computation, depth: int = 8) -> str:
    """Returns the source of an instruction, or of what it copies if it has no name of its own."""
    if instruction.opcode == "parameter":
        return "arguments"
    if instruction.source or not depth:
        return instruction.source
    operands = (computation[name] for name in instruction.operands if name in computation)
    return next((source for operand in operands if (source := _source(operand, computation, depth - 1))), "")


def _inlined(instruction: Instruction) -> list[str]:
    """Returns the computations that run inside an instruction, without memory traffic of their own."""
    return [name for relation, name in CALLED.findall(instruction.arguments) if relation in ("calls", "to_apply")]


def by_scope(traffic: collections.Counter[str]) -> collections.Counter[str]:
    """Sums `Program.traffic` by direction and the last names of the scope: "backward GroupNorm_0/mul"."""
    sums: collections.Counter[str] = collections.Counter()
    for name, size in traffic.items():
        direction = "backward " if "transpose(" in name else "forward " if "jvp(" in name else ""
        sums[direction + "/".join(name.split("/")[-2:]) if name else "other"] += size
    return sums


def group_size(arguments: str) -> int:
    """Returns the number of devices in each of the replica_groups, or 1 without any.

    They have three notations: {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'a'}.
    """
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", arguments):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", arguments):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", arguments):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'[^']*'", match[2]))
    return 1
