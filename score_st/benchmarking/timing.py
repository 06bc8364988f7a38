"""Repeated timing: warm-up, then as many measurements as a time allows, and their median and quartiles."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from score_st.runtime import progress

SHORTEST = 0.2  # seconds of a measurement; quick calls are timed several at a time
MOST = 50  # measurements
FEW = 3  # below this many there is no spread to speak of

Run = Callable[[int], Any]  # does n calls, and returns when the last of them is done


@dataclasses.dataclass(frozen=True)
class Number:
    """A measured quantity.

    Attributes:
      median: of the measurements.
      low: their lower quartile.
      high: their upper quartile.
      count: how many measurements there are.
      unit: such as "s" or "images/s".
      better: which direction is: "higher", "lower" or neither, "".
    """

    median: float
    low: float
    high: float
    count: int
    unit: str
    better: str = ""

    @classmethod
    def of(cls, values: Iterable[float], unit: str, better: str = "") -> "Number":
        """Summarizes measurements."""
        values = np.asarray(list(values), np.float64)
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high), len(values), unit, better)

    def times(self, factor: float, unit: str, better: str = "") -> "Number":
        """Returns the quantity times a positive factor."""
        return Number(self.median * factor, self.low * factor, self.high * factor, self.count, unit, better)

    def rate(self, amount: float, unit: str) -> "Number":
        """Returns `amount` divided by the quantity, which is a time: more is better."""
        return Number(amount / self.median, amount / self.high, amount / self.low, self.count, unit, "higher")


Numbers = dict[str, Number]


def seconds_of(run: Run, calls: int = 1, now: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds that one of `calls` calls took."""
    began = now()
    run(calls)
    return (now() - began) / calls


def _agreed(values: list[int]) -> list[int]:
    """Returns the values of process 0, since all processes have to do the same calls."""
    if jax.process_count() == 1:
        return values
    return [int(value) for value in multihost_utils.broadcast_one_to_all(np.array(values, np.int32))]


def _calibrated(run: Run, shortest: float, now: Callable[[], float]) -> tuple[int, float]:
    """Returns how many calls take `shortest` seconds, and the seconds of one; the number grows tenfold at most.

    A single quick call says little: it may get what was computed ahead.
    """
    calls = 1
    while True:
        took = max(seconds_of(run, calls, now) * calls, 1e-9)
        enough, more = _agreed([min(10 * calls, math.ceil(calls * shortest / took)), took < shortest])
        if not more:
            return enough, took / calls
        calls = enough


def measure_in_turn(
    runs: Mapping[str, Run], seconds: float, label: str, now: Callable[[], float] = time.perf_counter
) -> Numbers:
    """Times several things in turn (ABAB...), so that a slower hour of the machine is one for all of them.

    Each is called twice or more before it counts: the first call compiles, the second says how long a call takes. A
    call that alone takes longer than `seconds` is not repeated: the second counts.

    Args:
      runs: by name.
      seconds: for all measurements together, without the warm-up.
      label: for the progress.
      now: a clock.

    Returns:
      The seconds of a call, by name.
    """
    if not progress.quiet and jax.process_index() == 0:
        print(f"{label}: warming up", flush=True)
    once, calls = {}, []
    for name, run in runs.items():
        run(1)
        count, once[name] = _calibrated(run, min(SHORTEST, seconds / FEW), now)
        calls.append(count)
    total = sum(count * value for count, value in zip(calls, once.values(), strict=True))
    rounds, few = _agreed([min(MOST, int(seconds / total)), int(seconds < FEW * total)])
    values = {name: [value] if few else [] for name, value in once.items()}
    loop = progress.Loop(label, 0, rounds, "rounds", seconds=2)
    for done in range(1, rounds + 1):
        for (name, run), count in zip(runs.items(), calls, strict=True):
            values[name].append(seconds_of(run, count, now))
        loop(done, ", ".join(f"{name} {seconds_text(times[-1])}" for name, times in values.items()))
    return {name: Number.of(times, "s", "lower") for name, times in values.items()}


def measure(run: Run, seconds: float, label: str, now: Callable[[], float] = time.perf_counter) -> Number:
    """Returns the seconds of a call, see `measure_in_turn`."""
    return measure_in_turn({"a call": run}, seconds, label, now)["a call"]


def seconds_text(value: float) -> str:
    """Formats seconds: 1.23 s, 45.6 ms."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
