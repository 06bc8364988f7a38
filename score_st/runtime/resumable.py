"""Long work in jobs whose results are stored, so that a killed run resumes where it stopped.

A job is a key: a tuple of names and numbers. `results(job, compute)` returns the stored result of the job, or else
calls `compute()` and stores what it returns. Where the results are stored is the choice of a class:

- `JsonLines`: one line of a file for each job. Evaluations and sweeps.
- `JobFiles`: a file for each job. Shards of samples and plans.
- `Chunks`: jobs that are done in order, and a small file that says how far they are. Prepared data sets.
"""

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from score_st import strict_json
from score_st.runtime import numpy_files
from score_st.runtime.replacing import replacing
from score_st.runtime.workdir import write_text

# what reading damaged files raises, and asking for what should be in them
DAMAGED: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)

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

    A line has a CRC-32 of itself and the settings. Lines that are damaged, or of other settings, do not count, but
    stay. As nothing is ever rewritten, two processes may add to one file at once, even with different settings. Lines
    without a CRC-32, as older versions wrote them, count if the file begins with the same settings.
    """

    def __init__(self, path: Path, settings: dict, writes: bool = True) -> None:
        """Reads the file, if there is one.

        Args:
          path: the file.
          settings: everything that the results depend on, as JSON has it.
          writes: whether this process writes the file; only one of those that work together may.
        """
        self.path, self.writes = path, writes
        self.header = json.dumps({"settings": settings})
        self.seconds: dict[Job, float] = {}
        self._results: dict[Job, dict[str, np.ndarray]] = {}
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        self._headed, old = self.header.encode() in lines, lines[:1] == [self.header.encode()]
        for text in lines:
            with contextlib.suppress(*DAMAGED):
                line = strict_json.loads(text)
                stored = line.pop("crc32", None)
                if stored == self._crc32(line) or (stored is None and old):
                    self._add(line)

    def _crc32(self, line: dict) -> int:
        return zlib.crc32(json.dumps(line).encode(), zlib.crc32(self.header.encode()))

    def _add(self, line: dict) -> dict[str, np.ndarray]:
        job, result = tuple(line["job"]), {key: np.asarray(value) for key, value in line["result"].items()}
        if any(array.dtype.kind not in "bif" for array in result.values()):
            raise TypeError("neither numbers nor bool")
        self.seconds[job], self._results[job] = float(line["seconds"]), result
        return result

    def _write(self, line: dict) -> None:
        text = json.dumps(line | {"crc32": self._crc32(line)}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            cut_off = size and file.read() != b"\n"  # it stays a line of its own
            header = "" if self._headed else self.header + "\n"
            file.write(("\n" * bool(cut_off) + header + text).encode())
        self._headed = True

    def __contains__(self, job: Job) -> bool:
        """Whether the result of `job` is stored."""
        return job in self._results

    def __call__(
        self, job: Job, compute: Callable[[], Result], valid: Callable[[Result], bool] = lambda result: True
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of `job`: the stored ones if there are `valid` ones, or else computes and stores them.

        In both cases they are float64, int64 or bool, as JSON has them.
        """
        if job in self._results and valid(self._results[job]):
            return dict(self._results[job])
        began = time.perf_counter()
        result = {key: np.asarray(value).tolist() for key, value in compute().items()}
        line = {"job": job, "seconds": round(time.perf_counter() - began, 4), "result": result}
        if self.writes:
            self._write(line)
        return dict(self._add(line))


class Format(NamedTuple):
    """How `JobFiles` reads and writes one file; `write` leaves the complete file or none."""

    read: Callable[[Path], Result]
    write: Callable[[Path, Result], None]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    return numpy_files.read_npz(path)


def _write_npz(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **result)


JSON = Format(
    lambda path: strict_json.loads(path.read_bytes()),
    lambda path, result: write_text(path, strict_json.dumps(result, indent=1)),
)
NPZ = Format(_read_npz, _write_npz)


class JobFiles:
    """Results as a file for each job; one that can't be read is computed again."""

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
        if job in self:
            with contextlib.suppress(*DAMAGED):
                result = self.format.read(self.path(job))
                if valid(result):
                    return result
        result = compute()
        if self.writes:
            self.format.write(self.path(job), result)
        return result


class Chunks:
    """Jobs (first,) that are done in order; a JSON file holds the settings and the state after the latest of them.

    A state is a dictionary of whole numbers from 0 and lists of them. Its `done` says that all jobs with first < done
    are done.
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
            stored = strict_json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return
        is_count = lambda value: type(value) is int and value >= 0
        is_state = lambda value: all(map(is_count, value)) if isinstance(value, list) else is_count(value)
        alike = lambda key: is_state(stored.get(key)) and isinstance(stored[key], list) == isinstance(start[key], list)
        complete = isinstance(stored, dict) and all(map(alike, start))
        if complete and stored == self.settings | {key: stored.get(key) for key in start}:
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
