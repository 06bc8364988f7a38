"""Hostile inputs for every reader of files and of the port where processes meet, drawn by Hypothesis.

  python tests/fuzz.py --inputs 10000 --seed 0
  python tests/fuzz.py --only npz,json --inputs 1000

An input is a damaged copy of a valid file, or one built to be wrong. It is accepted, or refused as the reader's
docstring says, in one line. Anything else is wrong: another exception, other values under a checksum that fits the
valid file alone, 5 seconds of the processor or 10 minutes of waiting, 256 MiB of memory, a signal, code of the input
that runs. The first input of each fault is kept. The exit code is 1 if anything is wrong.
"""

import argparse
import collections
import contextlib
import hashlib
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from fuzzing import Silent, Target, arrays, containers, meetings, networks, pickles, texts
from hypothesis import strategies as st

CPU_SECONDS, WALL_SECONDS = 5.0, 600.0  # others may use the processor
GROWTH, LIMIT = 2**18, 3 * 2**30  # KiB that an input may need, bytes that it may ask for


class Hang(BaseException):
    """An input takes too long."""


KINDS: dict[str, Callable[[str], list[Target]]] = {
    "npz": lambda canary: arrays.npz_targets(),
    "idx": lambda canary: arrays.idx_targets(),
    "mat": lambda canary: arrays.mat_targets(),
    "pickle": pickles.pickle_targets,
    "json": lambda canary: texts.json_targets(),
    "zip": lambda canary: containers.zip_targets(),
    "tar": lambda canary: containers.tar_targets(),
    "parquet": lambda canary: containers.parquet_targets(),
    "records": lambda canary: containers.record_targets(),
    "safetensors": lambda canary: networks.safetensors_targets(),
    "edm": networks.edm_targets,
    "diffusers": lambda canary: networks.diffusers_targets(),
    "coordinator": lambda canary: [],
}


def same(first: Any, second: Any) -> bool:
    """Whether two trees of arrays are the same; the first may lack some."""
    import jax

    if isinstance(first, dict):
        return isinstance(second, dict) and all(key in second and same(first[key], second[key]) for key in first)
    leaves = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(leaves[0]) == len(leaves[1]) and all(
        np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b) for a, b in zip(*leaves, strict=True)
    )


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises Hang after some seconds of the processor, and Silent for memory that was needed."""

    def late(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, late)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS + 2)  # ends the process if it is deep in C
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > GROWTH:
            raise Silent(f"needs {grown >> 10} MiB")


class Counts:
    """Counts in memory that a child shares with its parent: tried, accepted, refused, wrong, when the last began."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 40)

    def __getitem__(self, place: int) -> int:
        return struct.unpack_from("<q", self.memory, 8 * place)[0]

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("<q", self.memory, 8 * place, value)


TRIED, ACCEPTED, REFUSED, WRONG, BEGAN = range(5)


def fault(error: BaseException) -> str:
    """Names an exception by its type and the last line of the package that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/score_st/" in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    text = "" if isinstance(error, Hang) else f": {' '.join(str(error).split())[:100]}"
    return f"{type(error).__name__} at {at}{text}"


class Child:
    """Tries inputs of one kind in a process of its own."""

    def __init__(self, kind: str, folder: Path, counts: Counts) -> None:
        self.kind, self.folder, self.counts = kind, folder, counts
        self.canary = str(folder / "canary")
        self.faults = collections.Counter[str]()

    def note(self, target: str, problem: str, path: Path | None) -> None:
        """Counts a fault, and keeps the first input of each."""
        self.counts[WRONG] += 1
        key = f"{target}: {problem}"
        place = problem.partition(": ")[0]
        self.faults[place] += 1
        if self.faults[place] == 1:
            name = hashlib.md5(key.encode()).hexdigest()[:8]
            if path is not None and path.exists():
                shutil.copy(path, self.folder.parent / f"{self.kind}_{name}_{path.name}")
            print(f"WRONG {self.kind}, {key}: {self.kind}_{name}", flush=True)

    def attempt(self, target: Target, copy: bool, content: bytes, expected: list[Any]) -> None:
        """Writes an input, reads it and counts what comes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        path = self.folder / target.file
        path.parent.mkdir(parents=True)
        target.others(self.folder)
        path.write_bytes(content)
        (self.folder.parent / f"{self.kind}.current").write_text(f"{target.name}\0{path}")
        kept = self.folder.parent / f"{self.kind}.input"
        kept.write_bytes(content)  # a reader may write the file
        self.counts[BEGAN] = time.monotonic_ns()
        try:
            with limited():
                value = target.read(path)
            if copy and target.checksum and value is not None and not any(same(value, one) for one in expected):
                raise Silent("reads other values from a damaged copy than from the valid file")
            self.counts[ACCEPTED] += 1
        except target.refusals as error:
            if "\n" in str(error) or len(str(error)) > 5000:
                self.note(target.name, f"a message of {len(str(error))} characters, not one line {fault(error)}", kept)
            self.counts[REFUSED] += 1
        except (Exception, Hang) as error:
            self.note(target.name, fault(error), kept)
        self.counts[BEGAN] = 0
        self.counts[TRIED] += 1

    def run(self, inputs: int, seed: int) -> None:
        """Tries some inputs."""
        warnings.simplefilter("ignore")
        if self.kind == "coordinator":
            strategy, act = meetings.meetings(), self.meet
        else:
            targets = KINDS[self.kind](self.canary)
            unique = {key: self.expected(one) for key, one in {id(one): one for one in targets}.items()}
            expected = [unique[id(target)] for target in targets]
            numbers = st.integers(0, len(targets) - 1)
            strategy = numbers.flatmap(lambda n: st.tuples(st.just(n), targets[n].inputs()))
            act = lambda drawn: self.attempt(targets[drawn[0]], *drawn[1], expected[drawn[0]])
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def test(drawn: Any) -> None:
            act(drawn)

        test()

    def expected(self, target: Target) -> list[Any]:
        """What a reader makes of the valid files."""
        values: list[Any] = []
        for content in target.valid if target.checksum else ():
            shutil.rmtree(self.folder, ignore_errors=True)
            path = self.folder / target.file
            path.parent.mkdir(parents=True)
            target.others(self.folder)
            path.write_bytes(content)
            with contextlib.suppress(*target.refusals):
                values.append(target.read(path))
        assert values or not target.checksum, target.name
        return values

    def meet(self, drawn: Any) -> None:
        """Has strangers come to the port of process 0 beside process 1."""
        self.counts[BEGAN] = time.monotonic_ns()
        (self.folder.parent / "coordinator.input").write_text(repr(drawn))
        try:
            with limited():
                meetings.meeting(*drawn)
            self.counts[ACCEPTED] += 1
        except (Exception, Hang) as error:
            self.note("port", fault(error), self.folder.parent / "coordinator.input")
        self.counts[BEGAN] = 0
        self.counts[TRIED] += 1


def child(kind: str, folder: Path, counts: Counts, inputs: int, seed: int) -> int:
    """Starts a process that tries inputs; returns its number."""
    if pid := os.fork():
        return pid
    try:
        Child(kind, folder / kind, counts).run(inputs, seed)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


class Run:
    """All inputs of a kind; a process that a signal ends, or that hangs, is followed by another."""

    def __init__(self, kind: str, folder: Path, inputs: int, seed: int) -> None:
        self.kind, self.folder, self.inputs, self.seed = kind, folder, inputs, seed
        self.counts, self.began, self.shown, self.deaths = Counts(), time.monotonic(), time.monotonic(), 0
        self.seconds: float | None = None  # once all is done
        self.start()

    def start(self) -> None:
        left = self.inputs - self.counts[TRIED]
        self.pid = child(self.kind, self.folder, self.counts, left, self.seed + 1000 * self.deaths)

    def poll(self) -> None:
        """Says how far it is, ends a process that hangs, and starts another after one that has died."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        started, now = self.counts[BEGAN], time.monotonic()
        if not done:
            if started and time.monotonic_ns() - started > WALL_SECONDS * 1e9:
                os.kill(self.pid, signal.SIGKILL)
            if now > self.shown + 30:
                self.shown = now
                so_far = f"{self.counts[TRIED]:,} of {self.inputs:,} in {now - self.began:.0f} s"
                print(f"{self.kind}: {so_far}, {self.counts[WRONG]} wrong", flush=True)
            return
        code = os.waitstatus_to_exitcode(status)
        if code:
            self.died(code)
        if code < 0 and self.deaths < 20 and self.counts[TRIED] < self.inputs:
            self.start()
        else:
            self.seconds = now - self.began

    def died(self, code: int) -> None:
        """Counts an input that has ended its process, and keeps it."""
        self.deaths += 1
        self.counts[TRIED], self.counts[WRONG], self.counts[BEGAN] = self.counts[TRIED] + 1, self.counts[WRONG] + 1, 0
        current, content = (self.folder / f"{self.kind}.{name}" for name in ("current", "input"))
        name, _, path = current.read_text().partition("\0") if current.exists() else (self.kind, "", "input")
        how = "hangs" if -code in (signal.SIGKILL, signal.SIGVTALRM) else f"ends with {code}"
        kept = self.folder / f"{self.kind}_death{self.deaths}_{Path(path).name}"
        if content.exists():
            shutil.copy(content, kept)
        print(f"WRONG {self.kind}, {name}: the process {how}: {kept.name}", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--out", type=Path, help="a folder for inputs that are wrong")
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="fuzz_"))
    folder.mkdir(parents=True, exist_ok=True)
    import score_st.api
    import score_st.convert  # noqa: F401

    runs = [Run(kind, folder, arguments.inputs, arguments.seed) for kind in kinds]
    while any(run.seconds is None for run in runs):
        for run in runs:
            if run.seconds is None:
                run.poll()
        time.sleep(0.05)
    rows = [
        (run.kind, *(run.counts[place] for place in (TRIED, ACCEPTED, REFUSED, WRONG)), run.seconds) for run in runs
    ]
    print(f"{'kind':12} {'inputs':>8} {'accepted':>9} {'refused':>8} {'wrong':>6} {'seconds':>8}")
    for kind, *numbers, seconds in rows:
        print(f"{kind:12} {numbers[0]:8,} {numbers[1]:9,} {numbers[2]:8,} {numbers[3]:6,} {seconds:8.0f}")
    wrong = sum(row[4] for row in rows) or any(row[1] < arguments.inputs for row in rows)
    if wrong:
        print(f"inputs that are wrong are in {folder}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
