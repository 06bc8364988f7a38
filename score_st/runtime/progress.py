"""Progress of long loops: a live bar on a terminal, lines if the output goes elsewhere, nothing with --quiet."""

import atexit
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

quiet = False  # of the process, see `cli.parse`


@functools.cache
def bars() -> "Progress":
    """Returns the display that all loops share, since a terminal has room for one."""
    from rich.progress import BarColumn, Progress, TextColumn

    label = TextColumn("{task.description} {task.completed}/{task.total}", markup=False)
    status = TextColumn("{task.fields[status]}", markup=False)
    display = Progress(label, BarColumn(None), status, expand=True, refresh_per_second=4)
    atexit.register(display.stop)  # it brings the cursor back
    return display


def close() -> None:
    """Ends the display, which brings the cursor back."""
    if bars.cache_info().currsize:
        bars().stop()


def clock(seconds: float) -> str:
    """Formats seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


class Loop:
    """Shows the progress of a loop, its speed, and the time left at this speed."""

    def __init__(
        self,
        label: str,
        start: int,
        stop: int,
        unit: str,
        seconds: float = 0.0,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begins at step `start`.

        Args:
          label: begins the line.
          start: the steps that are done already.
          stop: the last step.
          unit: what is counted, such as "steps" or "images".
          seconds: least time between two lines.
          now: a clock.
        """
        self.label, self.stop, self.unit, self.seconds, self.now = label, stop, unit, seconds, now
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.task: TaskID | None = None
        self.skip(start)

    def skip(self, step: int) -> None:
        """Takes the steps up to `step` as done before, in no time."""
        self.last = (step, self.now())

    def speed(self, step: int) -> float:
        """Returns the steps/s since the last line, now that `step` is done."""
        return (step - self.last[0]) / max(self.now() - self.last[1], 1e-9)

    def __call__(self, step: int, text: str = "") -> float:
        """Shows that `step` is done, together with `text`, unless it is too soon.

        Returns:
          The steps/s since the last line.
        """
        now, speed = self.now(), self.speed(step)
        if step < self.stop and now - self.last[1] < (min(self.seconds, 0.2) if self.live else self.seconds):
            return speed
        self.last = (step, now)
        times = f"{speed:.2f} {self.unit}/s  {clock((self.stop - step) / speed if speed else 0)} left"
        status = f"{text}  {times}" if text else times
        if self.live and not quiet:
            self._draw(step, status)
        if not quiet and (not self.live or step >= self.stop):
            print(f"{self.label} {step}/{self.stop}  {status}", flush=True)
        return speed

    def _draw(self, step: int, status: str) -> None:
        if self.task is None:
            bars().start()
            self.task = bars().add_task(self.label, total=self.stop, status="")
        bars().update(self.task, completed=step, status=status)
        if step >= self.stop:
            bars().remove_task(self.task)
            self.task = None
            if not bars().tasks:
                bars().stop()
