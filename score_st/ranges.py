"""What values a setting may have: small objects, each with one text that finishes "should be …"."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Protocol, no_type_check, runtime_checkable

import numpy as np

LARGEST = 2**31 - 1  # of whole numbers, which JAX counts in int32
TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple such as (1, 2, 2)",
}


@runtime_checkable
class Range(Protocol):
    """The values that a setting may have.

    Attributes:
      text: "1 or more", as it stands after "should be".
      kind: the type of the values; a whole number counts as a float, too.
    """

    @property
    def text(self) -> str:
        """What is allowed."""
        ...

    @property
    def kind(self) -> type:
        """The type of the values."""
        ...

    def problem(self, value: Any) -> str:
        """Says what is wrong with a value of the right type, as "should be …"; "" for nothing."""
        ...

    def edges(self) -> tuple[Any, ...]:
        """The values at which it begins and ends, for tests."""
        ...


def plain(value: Any) -> Any:
    """A NumPy scalar as the number that it is; other values as they are."""
    return value.item() if isinstance(value, np.generic) else value


@no_type_check  # tests check all other arguments; for a protocol that takes longer than the rest of a command's start
def problem(range: Range, value: Any) -> str:
    """As `Range.problem`, for a value of any type."""
    value = plain(value)
    wanted: type | tuple[type, ...] = (int, float) if range.kind is float else range.kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and range.kind is not bool):
        return f"should be {TYPES[range.kind]}"
    return range.problem(value)


def shown(value: Any) -> str:
    """A value as a message has it: texts in quotes, and -1 instead of -1.0."""
    value = plain(value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else repr(value)


@dataclasses.dataclass(frozen=True)
class Number:
    """Numbers from `low` to `high`, both included unless they are `open`. NaN is none, and infinity only with `also`.

    Attributes:
      kind: int or float.
      low: the lower bound, by nature.
      high: the upper bound, by nature.
      open: "(" and ")" as in intervals, for the bounds that are not included themselves.
      least: what computers can do with; only the message for a smaller number says so.
      most: likewise, for a larger one.
      also: other numbers, with their meanings in the text.
      without: numbers between the bounds that are not allowed.
      words: another text.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    open: str = ""
    least: float = -math.inf
    most: float = math.inf
    also: tuple[float, ...] = ()
    without: tuple[float, ...] = ()
    words: str = ""

    @property
    def text(self) -> str:
        """See `Range`."""
        show = lambda number: f"{number:,}" if isinstance(number, int) else f"{number:g}"
        low = f"{'above ' if '(' in self.open else ''}{show(self.low)}{'' if '(' in self.open else ' or more'}"
        if self.words:
            return self.words
        if self.low == -math.inf:
            return "finite"
        if self.high == math.inf:
            return low
        if not self.open:
            return f"from {show(self.low)} to {show(self.high)}"
        return f"{low} and {'below' if ')' in self.open else 'at most'} {show(self.high)}"

    def problem(self, value: Any) -> str:
        """See `Range`."""
        if value in self.also:
            return ""
        above = value > self.low if "(" in self.open else value >= self.low
        below = value < self.high if ")" in self.open else value <= self.high
        if not (above and below and math.isfinite(value)) or value in self.without:  # NaN is neither above nor below
            return f"should be {self.text}"
        if value > self.most:
            return f"should be at most {int(self.most):,}"
        return f"should be at least {self.least:g}" if value < self.least else ""

    def edges(self) -> tuple[Any, ...]:
        """See `Range`."""
        return tuple(n for n in (self.low, self.high, self.least, self.most, *self.also) if math.isfinite(n))


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Some values, and no others."""

    values: tuple[Any, ...]

    @property
    def kind(self) -> type:
        """See `Range`."""
        return type(self.values[0])

    @property
    def text(self) -> str:
        """See `Range`."""
        return " or ".join(filter(None, (", ".join(map(str, self.values[:-1])), str(self.values[-1]))))

    def problem(self, value: Any) -> str:
        """See `Range`."""
        return "" if value in self.values else f"should be {self.text}"

    def edges(self) -> tuple[Any, ...]:
        """See `Range`."""
        return self.values


@dataclasses.dataclass(frozen=True)
class Text:
    """Texts of some form.

    Attributes:
      text: see `Range`.
      is_right: whether a text has the form.
    """

    text: str
    is_right: Callable[[str], bool] = lambda text: True
    kind: type = str

    def problem(self, value: str) -> str:
        """See `Range`."""
        return "" if "\0" not in value and self.is_right(value) else f"should be {self.text}"

    def edges(self) -> tuple[Any, ...]:
        """See `Range`."""
        return ()


@dataclasses.dataclass(frozen=True)
class Tuple:
    """Tuples of numbers.

    Attributes:
      text: see `Range`.
      entry: the range of each number.
      fits: whether the numbers together are right.
    """

    text: str
    entry: Number
    fits: Callable[[tuple], bool] = lambda numbers: True
    kind: type = tuple

    def problem(self, value: tuple) -> str:
        """See `Range`."""
        wrong = [text for text in (problem(self.entry, number) for number in value) if text]
        if wrong and wrong[0].startswith("should be at most"):
            return f"{wrong[0].replace('should be', 'each should be')}"
        return f"should be {self.text}" if wrong or not self.fits(value) else ""

    def edges(self) -> tuple[Any, ...]:
        """See `Range`."""
        return tuple((edge,) for edge in self.entry.edges())


def _is_period(text: str) -> bool:
    match = re.fullmatch(r"(\d{1,10})-(\d{1,10})", text, re.ASCII)
    return not text or bool(match and 1 <= int(match[1]) <= int(match[2]) <= LARGEST)


def whole(low: int, high: float = math.inf, most: int = LARGEST, **more: Any) -> Number:
    """Whole numbers from `low`."""
    return Number(int, low, high, most=min(most, high), **more)


def real(low: float = -math.inf, high: float = math.inf, open: str = "", **more: Any) -> Number:
    """Finite numbers between bounds, at most 1e9 in size where there is no other bound."""
    return Number(float, low, high, open, **{"least": -1e9, "most": 1e9} | more)


FLAG = OneOf((True, False))
COUNT = whole(1)
COUNT_OR_0 = whole(0)
POSITIVE = real(0, open="(")
NOT_NEGATIVE = real(0)
FINITE = real()
RATE = real(0, 1, open=")")
TIME = real(0, 1, open="()", least=1e-12)
TOLERANCE = real(0, open="(", least=1e-12)
SEED = whole(0, 2**32 - 1, most=2**32 - 1)  # JAX drops the bits above
ENTRY = Text("the name of an entry", bool)
LABEL = Text("all, none or the number of a class", lambda text: text in ("all", "none") or text.isdecimal())
OPTIONAL = Text("the name of an entry, or empty")
NAME = Text("a text")
PLACE = Text("a path or a URL; only a shell expands ~, so write it out", lambda text: not text.startswith("~"))
PERIOD = Text("two steps A-B with 1 <= A <= B, such as 100-110, or empty", _is_period)
SIZES = Tuple("a tuple of whole numbers above 0", COUNT)
SIZES_NOT_EMPTY = Tuple("a tuple of whole numbers above 0, at least one", COUNT, bool)
