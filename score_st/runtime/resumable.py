"""Long work in jobs whose results are stored, so that a killed run resumes where it stopped.

A job is a key: a tuple of names and numbers. `results(job, compute)` returns the stored result of the job, or else
calls `compute()` and stores what it returns. Where the results are stored is the choice of a class:

- `JsonLines`: one line of a file for each job. Evaluations and sweeps.
- `JobFiles`: a file for each job. Shards of samples and plans.
- `Chunks`: jobs that are done in order, and a small file that says how far they are. Prepared data sets.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from score_st import strict_json
from score_st.runtime.workdir import write_text

Job = tuple[str | int | float, ...]
Result = Mapping[str, Any]


class Results(Protocol):
    """Results by job, kept over the end of the process."""

    def __contains__(self, job: Job) -> bool:
        """Whether the result of `job` is stored."""
        ...

    def __call__(self, job: Job, compute: Callable[[], Result]) -> Result:
        """Returns the stored result of `job`, or computes and stores it."""
        ...


class JsonLines:
    """Results as lines of JSON in one file: the settings first, then each job with its seconds and its result.

    Lines of other settings are dropped, and so is a last line that was cut off. The constructor only reads: with
    several processes, let all of them construct theirs before one stores a result.
    """

    def __init__(self, path: Path, settings: dict, writes: bool = True) -> None:
        """Reads the file, if there is one.

        Args:
          path: the file.
          settings: everything that the results depend on, as JSON has it.
          writes: whether this process writes the file; only one may.
        """
        self.path, self.writes = path, writes
        self.header = json.dumps({"settings": settings})
        self.seconds: dict[Job, float] = {}
        self._lines: dict[Job, dict] = {}
        self._clean = False  # whether the file has the lines that we have, and no others
        lines = path.read_text().splitlines() if path.exists() else []
        if lines[:1] == [self.header]:
            for line in lines[1:]:
                try:
                    self._add(json.loads(line))
                except ValueError:  # only the last line can be cut off
                    break

    def _add(self, line: dict) -> None:
        job = tuple(line["job"])
        self._lines[job], self.seconds[job] = line, line["seconds"]

    def _write(self, line: dict) -> None:
        if not self._clean:
            write_text(
                self.path, "".join(f"{text}\n" for text in (self.header, *map(json.dumps, self._lines.values())))
            )
            self._clean = True
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def __contains__(self, job: Job) -> bool:
        """Whether the result of `job` is stored."""
        return job in self._lines

    def __call__(self, job: Job, compute: Callable[[], Result]) -> dict[str, np.ndarray]:
        """Returns the arrays of `job`, stored or computed, in both cases float64, int64 or bool, as JSON has them."""
        if job not in self._lines:
            began = time.perf_counter()
            result = {key: np.asarray(value).tolist() for key, value in compute().items()}
            line = {"job": job, "seconds": round(time.perf_counter() - began, 4), "result": result}
            if self.writes:
                self._write(line)
            self._add(line)
        return {key: np.asarray(value) for key, value in self._lines[job]["result"].items()}


class Format(NamedTuple):
    """How `JobFiles` reads and writes one file; `write` leaves the complete file or none."""

    read: Callable[[Path], Result]
    write: Callable[[Path, Result], None]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def _write_npz(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # without a process number: the next run replaces what a kill leaves
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **result)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


JSON = Format(
    lambda path: json.loads(path.read_text()),
    lambda path, result: write_text(path, strict_json.dumps(result, indent=1)),
)
NPZ = Format(_read_npz, _write_npz)


class JobFiles:
    """Results as a file for each job; a file that is there is complete."""

    def __init__(self, folder: Path, pattern: str, format: Format, writes: bool = True) -> None:
        """Touches nothing.

        Args:
          folder: where the files are; it is created with the first of them.
          pattern: the name of a job's file, for `str.format`: "samples_{:07d}.npz".
          format: JSON, or NPZ for dictionaries of arrays.
          writes: whether this process writes the files; only one may.
        """
        self.folder, self.pattern, self.format, self.writes = folder, pattern, format, writes

    def path(self, job: Job) -> Path:
        """The file of `job`."""
        return self.folder / self.pattern.format(*job)

    def __contains__(self, job: Job) -> bool:
        """Whether the result of `job` is stored."""
        return self.path(job).exists()

    def __call__(
        self, job: Job, compute: Callable[[], Result], valid: Callable[[Result], bool] = lambda result: True
    ) -> Result:
        """Returns the stored result of `job` if there is a `valid` one, or computes and stores it."""
        if job in self and valid(result := self.format.read(self.path(job))):
            return result
        result = compute()
        if self.writes:
            self.format.write(self.path(job), result)
        return result


class Chunks:
    """Jobs (first,) that are done in order; a JSON file holds the settings and the state after the latest of them.

    A state is a dictionary of numbers, of which `done` says that all jobs with first < done are done.
    """

    def __init__(self, path: Path, settings: dict, start: dict) -> None:
        """Reads the file, if there is one; the state of other settings is dropped.

        Args:
          path: the file.
          settings: everything that the results depend on, as JSON has it; no key of `start`.
          start: the state before the first job, such as {"done": 0, "crc32": 0}.
        """
        self.path, self.settings, self.state = path, json.loads(json.dumps(settings)), start
        try:
            stored = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return
        if isinstance(stored, dict) and stored == self.settings | {key: stored.get(key) for key in start}:
            self.state = {key: stored[key] for key in start}

    def __contains__(self, job: Job) -> bool:
        """Whether `job` is done."""
        return job[0] < self.state["done"]

    def __call__(self, job: Job, compute: Callable[[], Result]) -> Result:
        """Returns the latest state, after `compute()` has done the job and returned its state if it was not done."""
        if job not in self:
            self.state = dict(compute())
            write_text(self.path, strict_json.dumps(self.settings | self.state))
        return self.state
