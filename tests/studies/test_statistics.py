"""Intervals over seeds against values worked out by hand, and verdicts."""

import numpy as np
import pytest

from score_st.studies import statistics


def test_the_interval_of_a_mean():
    """1, 2, 3: the standard error is 1/√3, and the quantile of t with 2 degrees of freedom is 4.302653."""
    interval = statistics.over_seeds({0: 1.0, 1: 2.0, 2: 3.0, 3: np.nan})
    assert interval.mean == 2 and interval.seeds == 3
    assert interval.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert interval.high - interval.mean == pytest.approx(interval.half)


def test_the_interval_of_a_difference():
    """Welch's degrees of freedom are 4 for equal variances of three each, and nearly 2 where one side has none."""
    a, b, still = {0: 1.0, 1: 2.0, 2: 3.0}, {5: 3.0, 6: 4.0, 7: 5.0}, {0: 3.999, 1: 4.0, 2: 4.001}
    interval = statistics.difference(a, b)
    assert interval.mean == -2 and interval.seeds == 3
    assert interval.half == pytest.approx((2 / 3) ** 0.5 * 2.776445, rel=1e-6)
    assert statistics.difference(a, still).half == pytest.approx(4.302653 / 3**0.5, rel=1e-4)
    paired = statistics.difference(a, {0: 2.0, 1: 4.0, 2: 6.0}, paired=True)
    assert paired.mean == -2 and paired.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_the_ratio_of_pairs():
    """Seed by seed: 2, 3 and 4 of the seeds that both have; none where a denominator is not positive."""
    a, b = {0: 2.0, 1: 6.0, 2: 12.0, 5: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0}
    interval = statistics.ratio(a, b)
    assert interval.mean == 3 and interval.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert np.isnan(statistics.ratio(a, b | {0: -1.0}).mean)


def test_too_few_seeds_have_no_interval():
    assert np.isnan(statistics.over_seeds({0: 1.0}).low) and statistics.over_seeds({0: 1.0}).mean == 1
    assert np.isnan(statistics.difference({0: 1.0}, {}).mean)


@pytest.mark.parametrize(
    ("expect", "low", "high", "came"),
    [
        ("lower", -2, -1, "as expected"),
        ("lower", -2, 1, "undecided"),
        ("lower", 1, 2, "the opposite"),
        ("higher", 1, 2, "as expected"),
        ("higher", -2, -1, "the opposite"),
        ("same", -0.4, 0.4, "as expected"),
        ("same", -0.6, 0.4, "undecided"),
        ("same", 0.6, 0.9, "the opposite"),
        ("lower", np.nan, np.nan, "undecided"),
        ("", 1, 2, ""),
    ],
)
def test_verdicts(expect, low, high, came):
    interval = statistics.Interval((low + high) / 2, low, high, 5)
    assert statistics.verdict(expect, interval, margin=0.5) == came


@pytest.mark.parametrize(
    ("low", "high", "came"),
    [
        (-0.04, -0.03, "as expected, and of that size"),
        (-0.02, -0.01, "as expected, but of another size"),
        (-0.9, -0.1, "as expected, but of another size"),
        (-0.04, -0.02, "as expected, its size undecided"),
        (-0.04, 0.01, "undecided"),
        (0.03, 0.04, "the opposite"),
    ],
)
def test_verdicts_on_a_size(low, high, came):
    interval = statistics.Interval((low + high) / 2, low, high, 5)
    assert statistics.verdict("lower", interval, size=(-0.05, -0.025)) == came
