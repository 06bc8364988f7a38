"""Traces of JAX's profiler, for XProf and TensorBoard's profile plugin, and the operations that took longest in them.

A trace lies in `<workdir>/profile/plugins/profile/<name>/`, where both look for it. Its name is the same on all hosts,
since XProf shows the files of one folder together. What fails in the profiler is said on stderr; no work ends for it.
"""

import argparse
import collections
import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from score_st import strict_json
from score_st.runtime import endings
from score_st.runtime.workdir import write_text

FOLDER = "profile"  # in the workdir
OPERATIONS = "operations.json"  # there
LONGEST = 10  # operations that are listed


def parse_steps(text: str) -> tuple[int, int] | None:
    """Returns the first and the last step of training.profile_steps, "A-B", or None for ""."""
    first, _, last = text.partition("-")
    return (int(first), int(last)) if text else None


class Trace:
    """One trace: `start`, work, `stop`. Neither raises."""

    def __init__(self, workdir: Path, name: str, about: str) -> None:
        """Touches nothing.

        Args:
          workdir: of the run, on this host.
          name: of the folder of the trace, the same in all processes; an earlier trace of this name is replaced.
          about: what is traced, for the run page.
        """
        self.folder, self.name, self.about, self.active = workdir / FOLDER, name, about, False

    def start(self) -> None:
        """Starts the profiler, without its tracer of Python, which would slow down what is measured."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        options.session_id = self.name
        with endings.said(f"no trace of {self.about}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._temporary, profiler_options=options)
            self.active = True

    def stop(self) -> None:
        """Stops the profiler and writes the trace; process 0 also writes the operations that took longest."""
        if not self.active:
            return
        self.active = False
        with endings.said(f"no trace of {self.about}"):
            jax.profiler.stop_trace()
            path = self._move()
            if jax.process_index() == 0:
                with endings.said(f"the operations of {path} were not read"):
                    self._list(path)

    @property
    def _temporary(self) -> Path:
        return self.folder / f".{self.name}.{jax.process_index()}"

    def _move(self) -> Path:
        """Moves the files of this process to their place, complete or not at all; returns that of the trace itself."""
        place, suffix = self.folder / "plugins/profile" / self.name, ".xplane.pb"
        place.mkdir(parents=True, exist_ok=True)
        (path,) = self._temporary.rglob(f"*{suffix}")
        host = path.name.removesuffix(suffix)
        # there may be several processes on one host
        unique = host if jax.process_count() == 1 else f"{host}_{jax.process_index()}"
        for file in path.parent.iterdir():
            file.replace(place / (unique + file.name.removeprefix(host)))
        shutil.rmtree(self._temporary)
        return place / f"{unique}{suffix}"

    def _list(self, path: Path) -> None:
        """Adds the longest operations of a trace to those of other traces."""
        known, file = {}, self.folder / OPERATIONS
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = dict(strict_json.loads(file.read_bytes()))
        data = jax.profiler.ProfileData.from_file(str(path))
        entry = {"about": self.about, "device": jax.devices()[0].device_kind} | longest(data)
        write_text(
            file, strict_json.dumps({name: known[name] for name in known if name != self.name} | {self.name: entry})
        )


def traced(
    steps: Callable[..., tuple[Any, Any]],
    workdir: Path,
    profile_steps: str,
    start: int,
    stop: int,
    aside: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Callable[..., tuple[Any, Any]]:
    """Returns `steps` with a trace of those that training.profile_steps names.

    Where several steps are one program, the trace has all programs that have one of these steps. A run that resumes
    between the first and the last traces the rest. Earlier steps are waited for, so that they are not in the trace.

    Args:
      steps: a function (state, batches, key) -> (state, metrics), called for one step after the other.
      workdir: of the run.
      profile_steps: see `parse_steps`.
      start: the steps that are done already.
      stop: the last step.
      aside: entered while the profiler starts and while it writes.
    """
    span = parse_steps(profile_steps)
    if span is None or span[1] <= start:
        return steps
    first, last = span
    trace, done = Trace(workdir, f"steps_{first}-{last}", f"steps {first} to {last} of training"), start

    def traced_steps(current: Any, batches: list, key: Any) -> tuple[Any, Any]:
        nonlocal done
        before, done = done, done + len(batches)
        if before >= last or done < first:
            return steps(current, batches, key)
        if before < first or before == start:
            jax.block_until_ready(current)
            with aside():
                trace.start()
        with jax.profiler.StepTraceAnnotation("train", step_num=done):
            current, metrics = steps(current, batches, key)
        if done >= min(last, stop):
            jax.block_until_ready((current, metrics))
            with aside():
                trace.stop()
        return current, metrics

    return traced_steps


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds --profile."""
    about = "trace one batch with JAX's profiler, in WORKDIR/profile"
    parser.add_argument_group("profile").add_argument("--profile", action="store_true", help=about)


class BatchTrace:
    """A trace of one batch: of the second, since the first is compiled, or of the first if there is only one."""

    def __init__(self, workdir: Path, name: str) -> None:
        """Touches nothing; see `Trace`."""
        self.trace, self.due, self.expected, self.seen = Trace(workdir, name, f"a batch of {name}"), True, 0, 0

    def expect(self, batches: int) -> None:
        """Takes note of how many batches of the same program come next."""
        self.expected, self.seen = batches, 0

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Traces what happens inside, if it is the batch to trace; all of it should be done at the end."""
        self.seen += 1
        if not self.due or self.seen != min(2, self.expected):
            yield
            return
        self.due = False
        self.trace.start()
        yield
        self.trace.stop()

    def finish(self) -> None:
        """Says so if there was no batch to trace."""
        if self.due and jax.process_index() == 0:
            print("note: --profile: no trace, as all results were there already", file=sys.stderr)


def longest(data: jax.profiler.ProfileData, count: int = LONGEST) -> dict[str, Any]:
    """Returns the operations of a trace that took longest.

    Those of devices (TPU, GPU) are taken; on a CPU, where there are none, those that XLA's threads ran. The time of an
    operation is without those inside it, such as the body of a loop, and is summed over all devices of this process.

    Args:
      data: the trace.
      count: how many operations at most.

    Returns:
      `ms` of all operations, and `operations`: a list of name, program, calls, ms and share, the longest first.
    """
    planes = list(data.planes)
    devices = [line for plane in planes if re.match(r"/device:(TPU|GPU)", plane.name) for line in _device_lines(plane)]
    hosts = [line for plane in planes if plane.name.startswith("/host:CPU") for line in plane.lines]
    calls, nanoseconds = collections.Counter[tuple[str, str]](), collections.defaultdict[tuple[str, str], float](float)
    for line in devices or hosts:
        events = [(name, event) for event in line.events if (name := _operation(event, bool(devices)))]
        calls.update(name for name, _ in events)
        for name, own in _own_times((name, event.start_ns, event.duration_ns) for name, event in events):
            nanoseconds[name] += own
    total = sum(nanoseconds.values())
    rows = [
        {"name": name, "program": program, "calls": calls[program, name], "ms": time / 1e6, "share": time / total}
        for (program, name), time in sorted(nanoseconds.items(), key=lambda item: -item[1])[:count]
        if total
    ]
    return {"ms": total / 1e6, "operations": rows}


def _device_lines(plane: Any) -> list[Any]:
    """Returns the lines of a device's plane that have its operations: one of a TPU, the streams of a GPU."""
    lines = list(plane.lines)
    operations = [line for line in lines if line.name == "XLA Ops"]
    return operations or [line for line in lines if line.name.startswith("Stream")]


def _operation(event: Any, on_device: bool) -> tuple[str, str] | None:
    """Returns program and name of the operation of an event, or None if it is none."""
    stats = {name: value for name, value in event.stats if name in ("hlo_op", "hlo_module")}
    if not on_device and "hlo_op" not in stats:
        return None
    # a TPU's events have the whole instruction as their name: "%fusion.1 = f32[8]{0} fusion(...)"
    name = str(stats.get("hlo_op") or event.name.partition(" = ")[0].removeprefix("%"))
    return str(stats.get("hlo_module", "")), name


def _own_times(events: Iterable[tuple[Any, float, float]]) -> Iterator[tuple[Any, float]]:
    """Yields the key of each event (key, start, duration), and its duration without that of events inside it."""
    inside: list[tuple[Any, float, float]] = []  # key, end, own time

    for key, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while inside and inside[-1][1] <= start:
            key_before, _, own = inside.pop()
            yield key_before, own
        if inside:
            outer, end, own = inside[-1]
            inside[-1] = outer, end, own - min(duration, end - start)
        inside.append((key, start + duration, duration))
    for key, _, own in inside:
        yield key, own
