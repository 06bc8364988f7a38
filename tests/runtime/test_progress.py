"""Lines where the output is piped, a bar on a terminal, nothing when quiet."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from score_st.runtime import progress

ROOT = Path(__file__).parents[2]
CODE = """
import sys, time
from score_st.runtime.progress import Loop
outer, inner = Loop("step", 10, 14, "steps"), Loop("nll", 0, 2, "images")
for step in (11, 12, 13):
    outer(step, f"loss {step}.5 [red]")
for image in (1, 2):
    time.sleep(0.3)
    inner(image)
print("a line between")
sys.exit(STOP) if STOP else outer(14)
"""


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """A command with --quiet in another test of this process changes nothing here."""
    monkeypatch.setattr(progress, "quiet", False)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_lines(capsys):
    clock = Clock()
    loop = progress.Loop("step", 100, 7600, "steps", now=clock)
    seldom = progress.Loop("samples", 0, 64, "images", seconds=2, now=clock)
    clock.seconds = 1
    assert seldom(8) == 8
    clock.seconds = 4
    assert loop(300, "loss 0.5000") == 50 and seldom(16) == 4 and seldom(32) > 4
    assert seldom(64) > 4  # the last line is always shown
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 300/7600  loss 0.5000  50.00 steps/s  0:02:26 left"
    assert lines[1] == "samples 16/64  4.00 images/s  0:00:12 left"
    assert len(lines) == 3 and lines[2].startswith("samples 64/64  ") and lines[2].endswith("0:00:00 left")


def test_earlier_steps_take_no_time(capsys):
    clock = Clock()
    loop = progress.Loop("samples", 0, 100, "images", now=clock)
    clock.seconds = 1
    loop.skip(50)
    clock.seconds = 11
    assert loop(60) == 1 and "0:00:40 left" in capsys.readouterr().out


def on_a_terminal(stop: int, term: str = "xterm") -> tuple[int, str]:
    """Exit code of CODE, and what it shows on a terminal of 100 columns."""
    mine, other = pty.openpty()
    code = [sys.executable, "-c", CODE.replace("STOP", str(stop))]
    environment = os.environ | {"TERM": term, "COLUMNS": "100"}
    process = subprocess.Popen(code, cwd=ROOT, stdout=other, stderr=other, env=environment)
    os.close(other)
    shown = b""
    while True:
        try:
            shown += os.read(mine, 4096)
        except OSError:  # the other end is closed
            break
    os.close(mine)
    return process.wait(), shown.decode()


def test_a_terminal_has_bars():
    code, shown = on_a_terminal(0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0 and re.search("step 1[123]/14 .*━.* loss 1[123].5 \\[red\\] .*steps/s", text)
    assert re.search("nll 1/2 .*━.*images/s", text)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    assert "a line between" in lines and [line for line in lines if re.fullmatch("nll 2/2  .* 0:00:00 left", line)]
    assert not [line for line in lines if line.startswith("step 12/14  ")]  # that is the bar's
    assert re.fullmatch("step 14/14  .* 0:00:00 left", [line for line in lines if line][-1])


def test_the_cursor_comes_back():
    for stop, term in ((3, "xterm"), (0, "xterm")):
        code, shown = on_a_terminal(stop, term)
        assert code == stop and shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "\x1b" not in on_a_terminal(0, "dumb")[1]
