"""Progress of long loops: a live bar on a terminal, lines where the output goes elsewhere, nothing with --quiet."""

import atexit
import functools
import os
import sys
import time

quiet = False  # for the whole process, see `cli.parse`


@functools.cache
def bars():
    """The display that all loops share, since a terminal has room for one."""
    from rich.progress import BarColumn, Progress, TextColumn

    label = TextColumn("{task.description} {task.completed}/{task.total}", markup=False)
    shown = TextColumn("{task.fields[shown]}", markup=False)
    made = Progress(label, BarColumn(None), shown, expand=True, refresh_per_second=4)
    atexit.register(made.stop)  # it brings the cursor back
    return made


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


class Loop:
    """Steps `start` to `stop`, with their speed and the time left at this speed as h:mm:ss.

    Args:
      label: what the line begins with.
      unit: steps, images, ...
      seconds: the least between two lines.
    """

    def __init__(self, label: str, start: int, stop: int, unit: str, seconds: float = 0.0):
        self.label, self.stop, self.unit, self.seconds = label, stop, unit, seconds
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.task = None
        self.skip(start)

    def skip(self, step: int):
        """The steps up to here were done before and take no time."""
        self.last = (step, time.perf_counter())

    def __call__(self, step: int, shown: str = "") -> float:
        """Says that `step` is done, with what else there is to say; returns the steps/s since this last was said."""
        now = time.perf_counter()
        speed = (step - self.last[0]) / max(now - self.last[1], 1e-9)
        if step < self.stop and now - self.last[1] < (min(self.seconds, 0.2) if self.live else self.seconds):
            return speed
        self.last = (step, now)
        times = f"{speed:.2f} {self.unit}/s  {clock((self.stop - step) / speed if speed else 0)} left"
        said = f"{shown}  {times}" if shown else times
        if self.live and not quiet:
            self._draw(step, said)
        if not quiet and (not self.live or step >= self.stop):
            print(f"{self.label} {step}/{self.stop}  {said}", flush=True)
        return speed

    def _draw(self, step: int, said: str):
        if self.task is None:
            bars().start()
            self.task = bars().add_task(self.label, total=self.stop, shown="")
        bars().update(self.task, completed=step, shown=said)
        if step >= self.stop:
            bars().remove_task(self.task)
            self.task = None
            if not bars().tasks:
                bars().stop()
