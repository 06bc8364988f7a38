"""Repeated timing, with a clock of the tests' own."""

import dataclasses

import pytest

from score_st.benchmarking.timing import Number, measure, measure_in_turn, seconds_text


@dataclasses.dataclass
class Clock:
    """A clock that runs move on; `calls` has what was called, and how often at a time."""

    time: float = 0.0
    calls: list = dataclasses.field(default_factory=list)

    def run(self, name, first, later):
        """A run whose first call takes longer, as one that compiles."""
        durations = [first]

        def run(calls):
            self.calls.append((name, calls))
            self.time += sum(durations.pop() if durations else later for _ in range(calls))

        return run


def test_quick_calls_are_timed_together():
    clock = Clock()
    number = measure(clock.run("a", 60, 0.03), 10, "a", lambda: clock.time)
    assert number.median == pytest.approx(0.03) and number.unit == "s" and number.better == "lower"
    # 7 calls take 0.21 s, which goes 47 times into 10 s; before come the warm-up and the calls that tell how long
    assert number.count == 47 and clock.calls == [("a", 1), ("a", 1), ("a", 7)] + [("a", 7)] * 47


def test_calls_that_were_computed_ahead_mislead_nobody():
    """The first eight take no time, as batches that wait in a buffer."""
    clock, ahead = Clock(), [0.0] * 8

    def run(calls):
        clock.calls.append(calls)
        clock.time += sum(ahead.pop() if ahead else 0.01 for _ in range(calls))

    number = measure(run, 2, "a", lambda: clock.time)
    assert number.median == pytest.approx(0.01) and number.count >= 8 and clock.time < 3


def test_in_turn():
    clock = Clock()
    runs = {"a": clock.run("a", 1, 0.5), "b": clock.run("b", 9, 1.5)}
    numbers = measure_in_turn(runs, 8, "both", lambda: clock.time)
    assert [name for name, _ in clock.calls[4:]] == ["a", "b"] * 4
    assert {name: (number.median, number.count) for name, number in numbers.items()} == {"a": (0.5, 4), "b": (1.5, 4)}


@pytest.mark.parametrize(("seconds", "calls"), [(20, [30]), (60, [30, 30, 30]), (100, [30] * 3)])
def test_slow_calls_count_from_the_second(seconds, calls):
    """Within the time, and once at least."""
    clock = Clock()
    number = measure(clock.run("a", 50, 30), seconds, "a", lambda: clock.time)
    assert number.median == 30 and number.count == len(calls)


def test_median_and_quartiles():
    number = Number.of([4, 1, 2, 3, 5], "s", "lower")
    assert (number.median, number.low, number.high, number.count) == (3, 2, 4, 5)
    rate = number.rate(12, "images/s")
    assert (rate.low, rate.median, rate.high, rate.better) == (3, 4, 6, "higher")
    assert number.times(2, "s").high == 8


def test_text():
    assert [seconds_text(value) for value in (0.0123, 2.345, 100)] == ["12.3 ms", "2.35 s", "100 s"]
