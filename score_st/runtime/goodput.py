"""Goodput: the share of wall time since a run began that went into steps whose results were kept."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from score_st import strict_json
from score_st.runtime.workdir import write_text

FILE = "goodput.json"
ENTRIES = 1000  # checkpoints whose seconds are kept
Steps = Callable[..., tuple[Any, Any]]


class Goodput:
    """Counts the time of steps, over the ends of processes.

    `goodput.json` has the time at which the run began (Unix seconds), and for each checkpoint the seconds of the steps
    up to it. A run that resumes takes those of its checkpoint, so that steps that are done again count once. Where a
    run had reached its end and is prolonged, the time between does not count as that of the run.
    """

    def __init__(self, workdir: Path, start: int, writes: bool = True, now: Callable[[], float] = time.time) -> None:
        """Reads the file, if there is one, and writes it at the beginning of a run.

        Args:
          workdir: of the run.
          start: the step of the checkpoint from which it resumes, or 0.
          writes: whether this process writes the file; only one may.
          now: a clock of Unix seconds.
        """
        self.path, self.writes, self.now = workdir / FILE, writes, now
        self.began, self.kept = self.now(), dict[int, float]()
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            stored = strict_json.loads(self.path.read_bytes())
            began = float(stored["began"]) + (self.now() - float(stored["ended"]) if "ended" in stored else 0.0)
            kept = {int(step): float(seconds) for step, seconds in stored["seconds"].items()}
            if not (math.isfinite(began) and all(0 <= seconds < math.inf for seconds in kept.values())):
                raise ValueError("no times")
            self.began, self.kept = min(began, self.now()), {step: kept[step] for step in kept if step <= start}
        self.before = self.kept[max(self.kept)] if self.kept else 0.0
        self.resumed: float | None = None  # when the steps of this process began
        self.outside, self.is_aside = 0.0, False
        self._write()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The time inside is not that of steps."""
        if self.is_aside:
            yield
            return
        began, self.is_aside = self.now(), True
        try:
            yield
        finally:
            self.outside += self.now() - began
            self.is_aside = False

    def timed(self, steps: Steps) -> Steps:
        """Returns `steps` with the first call of each of its programs set `aside`, since it is compiled there.

        Steps begin with the first call.

        Args:
          steps: a function (state, batches, key), with one program for each number of batches.
        """
        programs = set[int]()

        def timed_steps(current: Any, batches: list, key: Any) -> tuple[Any, Any]:
            if not programs:
                self.resumed, self.outside = self.now(), 0.0
            if len(batches) in programs:
                return steps(current, batches, key)
            programs.add(len(batches))
            with self.aside():
                return steps(current, batches, key)

        return timed_steps

    def seconds(self) -> float:
        """Returns the seconds of the steps so far."""
        return self.before + (0.0 if self.resumed is None else self.now() - self.resumed - self.outside)

    def share(self) -> float:
        """Returns the goodput."""
        return min(self.seconds() / max(self.now() - self.began, 1e-9), 1.0)

    def keep(self, step: int) -> None:
        """Takes the results up to `step` as kept; called before a checkpoint of them is written."""
        self.kept = dict(list((self.kept | {step: self.seconds()}).items())[-ENTRIES:])
        self._write()

    def end(self) -> None:
        """Takes the run as complete."""
        self._write(ended=self.now())

    def _write(self, **more: float) -> None:
        if self.writes:
            write_text(self.path, strict_json.dumps({"began": self.began, "seconds": self.kept} | more))
