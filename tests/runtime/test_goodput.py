"""The share of time in steps, by a clock that is set by hand."""

import json

import pytest

from score_st.runtime.goodput import FILE, Goodput


class Clock:
    def __init__(self):
        self.seconds = 1e9  # Unix seconds

    def __call__(self):
        return self.seconds

    def after(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


def steps(goodput, clock, first, last, checkpoints=()):
    """Steps of 2 s each, and checkpoints that take 3 s; the first is compiled in 10 s."""

    def dispatch(current, batches, key):
        clock.after(10 if current == first else 0)
        return current, None

    timed = goodput.timed(dispatch)
    for step in range(first, last + 1):
        timed(step, [None], None)
        clock.after(2)
        if step in checkpoints:
            goodput.keep(step)
            with goodput.aside():
                clock.after(3)


def test_an_uninterrupted_run(tmp_path, clock):
    goodput = Goodput(tmp_path, 0, now=clock)
    clock.after(5)  # it starts
    steps(goodput, clock, 1, 6, checkpoints=(3, 6))
    assert goodput.seconds() == 6 * 2
    assert goodput.share() == pytest.approx(12 / (5 + 10 + 12 + 2 * 3), rel=1e-12)


def test_what_is_lost_by_a_kill_is_lost(tmp_path, clock):
    """Two steps after a checkpoint are done again, 100 s later; a second kill comes before any other checkpoint."""
    goodput = Goodput(tmp_path, 0, now=clock)
    clock.after(5)
    steps(goodput, clock, 1, 5, checkpoints=(3,))
    for lost in (5, 4):
        clock.after(100)
        goodput = Goodput(tmp_path, 3, now=clock)
        assert goodput.seconds() == 3 * 2
        clock.after(5)
        steps(goodput, clock, 4, lost)
    total = (5 + 10 + 5 * 2 + 3) + (100 + 5 + 10 + 2 * 2) + (100 + 5 + 10 + 1 * 2)
    assert goodput.share() == pytest.approx((3 + 1) * 2 / total, rel=1e-12)
    goodput.keep(4)
    assert Goodput(tmp_path, 4, now=clock).seconds() == 4 * 2
    assert Goodput(tmp_path, 4, now=clock).share() == pytest.approx(8 / total, rel=1e-12)


def test_an_older_checkpoint_has_its_own_seconds(tmp_path, clock):
    goodput = Goodput(tmp_path, 0, now=clock)
    steps(goodput, clock, 1, 9, checkpoints=(3, 6, 9))
    assert Goodput(tmp_path, 6, now=clock).seconds() == 6 * 2
    # what came after it has been forgotten
    assert json.loads((tmp_path / FILE).read_text())["seconds"] == {"3": 6.0, "6": 12.0}


def test_a_complete_run_that_is_prolonged_did_not_wait(tmp_path, clock):
    goodput = Goodput(tmp_path, 0, now=clock)
    steps(goodput, clock, 1, 4, checkpoints=(4,))
    goodput.end()
    clock.after(86400)
    goodput = Goodput(tmp_path, 4, now=clock)
    assert goodput.share() == pytest.approx(8 / (10 + 8 + 3), rel=1e-7)  # of Unix seconds
    steps(goodput, clock, 5, 6)
    assert goodput.share() == pytest.approx(12 / (10 + 8 + 3 + 10 + 4), rel=1e-7)


def test_what_is_set_aside_inside_counts_once(tmp_path, clock):
    """As where the profiler starts in the first call."""
    goodput = Goodput(tmp_path, 0, now=clock)

    def dispatch(current, batches, key):
        clock.after(1)
        with goodput.aside():
            clock.after(2)
        return current, None

    goodput.timed(dispatch)(0, [None], None)
    clock.after(4)
    assert goodput.seconds() == 4 and goodput.share() == 4 / 7


def test_each_number_of_steps_is_a_program(tmp_path, clock):
    """Of 1, 1, 4, 4 and 1 steps at 2 s each, the first and the third call also compile."""
    goodput = Goodput(tmp_path, 0, now=clock)
    pauses = {0: 10, 2: 30}

    def dispatch(current, batches, key):
        clock.after(pauses.get(current, 0))
        return current, None

    timed = goodput.timed(dispatch)
    for i, count in enumerate([1, 1, 4, 4, 1]):
        timed(i, [None] * count, None)
        clock.after(2 * count)
    assert goodput.seconds() == 22 and goodput.share() == 22 / (22 + 40)


NO_TIMES = [f'{{"began": {began}, "seconds": {{"5": {seconds}}}}}' for began, seconds in (("1e999", 1), ("NaN", 1))]
NO_TIMES += ['{"began": 1, "seconds": {"5": -1}}', f'{{"began": 1{"0" * 400}, "seconds": {{}}}}']


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"began": "x", "seconds": {}}', '{"began": 1}', "[" * 10**5, *NO_TIMES]
)
def test_a_damaged_file_begins_anew(tmp_path, clock, content):
    (tmp_path / FILE).write_text(content)
    goodput = Goodput(tmp_path, 5, now=clock)
    assert json.loads((tmp_path / FILE).read_text()) == {"began": 1e9, "seconds": {}}
    steps(goodput, clock, 6, 7)
    assert goodput.share() == 4 / 14


def test_other_processes_write_nothing(tmp_path, clock):
    goodput = Goodput(tmp_path, 0, writes=False, now=clock)
    goodput.keep(3)
    goodput.end()
    assert not list(tmp_path.iterdir())
