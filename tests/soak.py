"""One run through kills, signals, full disks, damaged files, second trainers and changed settings, in random order.

  python tests/soak.py --minutes 30 --seed 0

What is left at the end is compared bit by bit with a run that none disturbed: parameters, average, optimizer state and
the stored averages. Every fault is a line of JSON, with the exit code and the step at which the run
resumed. A full disk needs root, for a small file system that is mounted. A fault that a run has no time for, as it is
complete, begins another run. The exit code is 1 if a run ended differently, or as it should not.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from support.commands import SMALL, overrides
from support.environment import QUICK

COUNTS = dict(kill=40, signal=20, full=5, damage=10, second=5, setting=10)  # at 30 minutes
LEASE = 3.0  # seconds
NOTHING = "nothing there yet"
STEPS = 20_000  # at 30 minutes
SETTINGS = dict(training__log_freq=20, training__eval_freq=500, training__averages=10)
SETTINGS |= dict(training__snapshot_freq=2000, training__snapshot_freq_for_preemption=20, data__num_threads=1)
SETTINGS |= dict(
    storage__lease=LEASE,
    training__snapshot_sampling=True,
    sampling__method="pc",
    sampling__steps=3,
    sampling__group=64,
)
CHANGES = dict(training__log_freq=(10, 40), training__eval_freq=(100, 1000), training__n_jitted_steps=(2, 5))
CHANGES |= dict(training__snapshot_freq_for_preemption=(10, 50), data__num_threads=(2, 3), data__memory_gb=(0.0, 1.0))
CHANGES |= dict(training__grace=(10.0, 20.0), training__snapshot_sampling=(False,))
TORN = (b'{"step": 20, "lo', b'{"step": 20, "lo{"step": 40, "loss": 1.0}\n', b"\xff\xfe\x00}\n", b'{"step": "x"}\n')


def child(arguments: list[str], log: Path) -> int:
    """Starts training in a fork of this process, which has imported everything and touched no device."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        from score_st import train
        from score_st.runtime import cli

        cli.run(lambda: train.main(arguments))
        sys.stdout.flush()
        os._exit(0)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(pid: int, seconds: float) -> int | None:
    """Returns the exit code (128 + the signal that killed it), or None if it goes on."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() > end:
            return None
        time.sleep(0.02)


def steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


class Soak:
    """A workdir, and what happens to it."""

    def __init__(self, folder: Path, mounted: Path, draw: random.Random) -> None:
        self.folder, self.mounted, self.draw, self.startup = folder, mounted, draw, 8.0
        self.legs, self.more, self.steps = 0, dict[str, object](), 60
        self.begin()

    def begin(self) -> None:
        self.legs += 1
        self.workdir, self.log = self.mounted / f"run{self.legs}", self.folder / "log.txt"

    def start(self, **more: object) -> int:
        settings = overrides(**SETTINGS | dict(training__n_iters=self.steps) | self.more | more)
        return child(["--config", SMALL, "--workdir", str(self.workdir), *settings], self.log)

    def delayed(self, pid: int) -> int | None:
        """Waits for a random time, most of it while it trains."""
        return wait(pid, self.draw.uniform(0.3, self.startup + 2))

    def kill(self) -> tuple[str, int, set[int]]:
        pid = self.start()
        if (code := self.delayed(pid)) is None:
            os.kill(pid, signal.SIGKILL)
            code = wait(pid, 30)
        return "SIGKILL", code, {0, 137}

    def signal(self) -> tuple[str, int, set[int]]:
        pid, sent = self.start(), self.draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        if (code := self.delayed(pid)) is None:
            os.kill(pid, sent)
            code = wait(pid, 30)
            if code is None:  # it has ended within 25 s, or not as it should
                os.kill(pid, signal.SIGKILL)
                wait(pid, 30)
        return sent.name, code, {0, 128 + sent}

    def full(self) -> tuple[str, int, set[int]]:
        pid, filler, left = self.start(), self.mounted / "filler", self.draw.choice([0, 2**12, 2**16])
        code = self.delayed(pid)
        with filler.open("wb", buffering=0) as file:  # what does not fit would be written again at the end
            try:
                while True:
                    file.write(bytes(2**14))
            except OSError:
                os.truncate(filler, max(filler.stat().st_size - left, 0))
        if code is None and (code := wait(pid, 60)) is None:
            os.kill(pid, signal.SIGKILL)
            wait(pid, 30)
        filler.unlink()
        return f"{left} bytes left", code, {0, 2, 74}

    def second(self) -> tuple[str, int | None, set[int]]:
        """Starts another trainer, at once or later: one of the two is refused; the other is killed."""
        together, pids = self.draw.random() < 0.4, [self.start()]
        if not together and (code := self.delayed(pids[0])) is not None:
            return "complete before", code, {0}
        pids.append(self.start())
        codes, end = dict[int, int](), time.monotonic() + 3 * self.startup + 4 * LEASE + 20
        while not codes and time.monotonic() < end:
            codes = {pid: code for pid in pids if (code := wait(pid, 0.1)) is not None}
        for pid in set(pids) - set(codes):
            os.kill(pid, signal.SIGKILL)
            wait(pid, 30)
        return "together" if together else "later", next(iter(codes.values()), None), {0, 2}

    def damage(self) -> tuple[str, int | None, set]:
        """Cuts, fills or tears a file while nothing runs."""
        names = ["metrics.jsonl", "goodput.json", "report.html", "parameters.json", "snapshot", "samples.png"]
        found = [self.workdir / name for name in names if (self.workdir / name).exists()]
        found += list((self.workdir / "tensorboard").glob("*"))[-1:]
        if len(steps(self.workdir)) > 1:  # the newest is set aside, and the one before taken
            newest = self.workdir / "checkpoints" / str(steps(self.workdir)[-1])
            found += [max(newest.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)] * 3
        if not found:
            return NOTHING, None, {None}
        path = self.draw.choice(found)
        content = path.read_bytes()
        place = self.draw.randrange(len(content)) if content else 0
        if path.name == "metrics.jsonl":
            path.write_bytes(content + self.draw.choice(TORN))
        elif self.draw.random() < 0.5:
            path.write_bytes(content[:place])
        else:
            path.write_bytes(
                content[:place] + bytes([(content[place : place + 1] or b"\0")[0] ^ 255]) + content[place + 1 :]
            )
        return str(path.relative_to(self.workdir)), None, {None}

    def setting(self) -> tuple[str, int | None, set]:
        others = [(key, value) for key, values in CHANGES.items() for value in values if self.more != {key: value}]
        key, value = self.draw.choice(others)
        self.more = {key: value}
        return f"{key.replace('__', '.')}={value}", None, {None}

    def finish(self) -> int | None:
        pid = self.start()
        return wait(pid, 600)


def final(workdir: Path) -> dict:
    """Everything that two runs have in common at their end."""
    from support.processes import final_state

    from score_st import config
    from score_st.runtime import sharding
    from score_st.training import averages, checkpoints, step, stored_weights

    state, number = final_state(workdir)
    settings = config.from_workdir(workdir)
    mesh = sharding.mesh()
    with checkpoints.manager(workdir, read_only=True, folder=stored_weights.FOLDER) as opened:
        shape = step.from_config(settings, mesh).abstract_state.averages
        stored = {at: checkpoints.read_item(opened, at, checkpoints.placed(shape, mesh)) for at in opened.all_steps()}
    assert set(stored) == set(averages.stored_steps(settings.training.averages, settings.training.n_iters))
    return dict(state=state, step=number, stored=stored)


def compare(first: Path, second: Path) -> list[str]:
    """Names what differs between two runs, in a process of its own, as this one may touch no device."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import soak; soak.differences({str(first)!r}, {str(second)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.split() if done.returncode == 0 else [done.stderr[-2000:]]


def differences(first: str, second: str) -> None:
    import jax
    import numpy as np

    one, two = final(Path(first)), final(Path(second))
    for key in ("state", "step", "stored"):
        same = jax.tree.structure(one[key]) == jax.tree.structure(two[key])
        if not same or not jax.tree.all(jax.tree.map(np.array_equal, one[key], two[key])):
            print(key)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, draw = Path(tempfile.mkdtemp(prefix="soak_")), random.Random(arguments.seed)
    os.environ |= dict(XLA_FLAGS=QUICK, JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(folder / "cache"))
    os.environ |= dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    import orbax.checkpoint  # noqa: F401
    import tensorboardX  # noqa: F401

    from score_st import train  # noqa: F401

    mounted = folder / "mounted"
    mounted.mkdir()
    root = (
        os.geteuid() == 0
        and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "soak", mounted]).returncode
    )
    counts = {name: max(round(count * arguments.minutes / 30), 1) for name, count in COUNTS.items()}
    counts["full"] *= root
    faults = [name for name, count in counts.items() for _ in range(count)]
    draw.shuffle(faults)
    try:
        wrong = soak(Soak(folder, mounted, draw), faults, arguments)
    finally:
        if root:
            subprocess.run(["umount", "-l", mounted])
    if not wrong:
        shutil.rmtree(folder)
    sys.exit(bool(wrong))


def soak(run: Soak, faults: list[str], arguments: argparse.Namespace) -> int:
    """Does all that is to be done; returns how often something ended differently."""
    undisturbed = run.folder / "undisturbed"
    for name in ("compiling", "starting", "undisturbed"):  # the second finds everything compiled, as the others will
        run.workdir, began = run.folder / name, time.monotonic()
        run.steps = max(round(STEPS * arguments.minutes / 30), 1000) if name == "undisturbed" else 60
        code, seconds = run.finish(), time.monotonic() - began
        assert code == 0, run.log.read_text()
        run.startup = seconds if name == "starting" else run.startup
    about = dict(undisturbed=round(seconds, 1), steps=run.steps, startup=round(run.startup, 1))
    print(json.dumps(about), flush=True)
    run.legs = 0
    run.begin()
    done, wrong, began = collections.Counter[str](), 0, time.monotonic()

    def check() -> int:
        differing = compare(undisturbed, run.workdir)
        print(json.dumps(dict(run=run.legs, end="the same bits" if not differing else differing)), flush=True)
        if not differing:
            shutil.rmtree(run.workdir)
        run.more = {}
        run.begin()
        return bool(differing)

    for number, name in enumerate(faults):  # which grows by those that came too late, or too early
        act: Callable = getattr(run, name)
        before = steps(run.workdir)
        what, code, right = act()
        missed = what == NOTHING or (code == 0 and name != "full")
        done[name] += not missed
        faults += [name] * missed
        bad = code not in right or "Traceback" in (run.log.read_text() if run.log.exists() else "")
        about = dict(fault=name, what=what, code=code, before=before[-1:], after=steps(run.workdir)[-1:])
        print(json.dumps(dict(number=number, at=round(time.monotonic() - began)) | about), flush=True)
        if bad:
            print(run.log.read_text()[-3000:], flush=True)
        wrong += bad
        run.log.unlink(missing_ok=True)
        if code == 0:  # complete
            wrong += check()
    run.more = {}
    code = run.finish()
    wrong += code != 0 or check()
    print(json.dumps(dict(faults=done, runs=run.legs - 1, wrong=wrong, seconds=round(time.monotonic() - began))))
    return wrong


if __name__ == "__main__":
    main()
