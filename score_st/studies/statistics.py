"""Means and differences with 95 % intervals over seeds, and whether what was expected came."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
CAME, OPPOSITE, UNDECIDED = "as expected", "the opposite", "undecided"


class Interval(NamedTuple):
    """A mean or a difference of means, its interval (NaN where there are too few seeds), and how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def over_seeds(values: Mapping[int, float]) -> Interval:
    """Returns the mean of the finite values with Student's t interval."""
    finite = np.array([value for value in values.values() if np.isfinite(value)])
    if len(finite) < 2:
        return Interval(float(finite.mean()) if len(finite) else np.nan, np.nan, np.nan, len(finite))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(finite) - 1) * stats.sem(finite))
    mean = float(finite.mean())
    return Interval(mean, mean - half, mean + half, len(finite))


def difference(a: Mapping[int, float], b: Mapping[int, float], paired: bool = False) -> Interval:
    """Returns the mean of `a` minus that of `b`.

    Args:
      a: values by seed.
      b: values by seed.
      paired: takes the difference seed by seed; otherwise the interval is Welch's, for unequal variances.
    """
    if paired:
        return over_seeds({seed: a[seed] - b[seed] for seed in a.keys() & b.keys()})
    first, second = (np.array([value for value in side.values() if np.isfinite(value)]) for side in (a, b))
    seeds = min(len(first), len(second))
    mean = float(first.mean() - second.mean()) if seeds else np.nan
    if seeds < 2:
        return Interval(mean, np.nan, np.nan, seeds)
    if not (first.var() or second.var()):
        return Interval(mean, mean, mean, seeds)
    limits = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return Interval(mean, float(limits.low), float(limits.high), seeds)


def ratio(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """Returns the mean of a / b, seed by seed; NaN where a `b` is not above 0, and a ratio says nothing."""
    seeds = sorted(a.keys() & b.keys())
    positive = all(b[seed] > 0 for seed in seeds)
    return over_seeds({seed: a[seed] / b[seed] if positive else np.nan for seed in seeds})


def verdict(expect: str, interval: Interval, margin: float = 0.0, size: Sequence[float] | None = None) -> str:
    """Returns whether what was expected of a difference came: CAME, OPPOSITE or UNDECIDED, or "" if nothing was.

    Args:
      expect: one of `definition.EXPECTATIONS`, or empty.
      interval: of the difference; it decides only as a whole.
      margin: up to which a difference counts as none, for "same".
      size: lower and upper limit that were expected, too; CAME is then followed by whether the interval lies between.
    """
    low, high = interval.low, interval.high
    came, opposite = {
        "lower": (high < 0, low > 0),
        "higher": (low > 0, high < 0),
        "same": (-margin < low and high < margin, low > margin or high < -margin),
        "": (False, False),
    }[expect]
    if not came:
        return "" if not expect else OPPOSITE if opposite else UNDECIDED
    if not size:
        return CAME
    inside, outside = size[0] <= low and high <= size[1], high < size[0] or low > size[1]
    return f"{CAME}, {'and of that size' if inside else 'but of another size' if outside else 'its size undecided'}"
