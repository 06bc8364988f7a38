"""Two trainings in one workdir, as processes: killed, stopped, and started together."""

import json
import os
import re
import signal
import sys
import time

import jax
import numpy as np
import pytest
from support.commands import SMALL, overrides
from support.environment import QUICK
from support.processes import await_step, curve, ended, final_state, start

SETTINGS = dict(training__n_iters=60, training__snapshot_freq=1000, training__snapshot_freq_for_preemption=10)
SETTINGS |= dict(training__eval_images=0, training__eval_freq=1000)
TRAIN = [sys.executable, "-m", "score_st.train", "--config", SMALL, *overrides(**SETTINGS), "--quiet"]
LONG = "--config.training.n_iters=1000000"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = dict(JAX_COMPILATION_CACHE_DIR=str(tmp_path_factory.mktemp("cache")))
    return os.environ | cache | dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", XLA_FLAGS=QUICK)


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, output = ended(start(environment, *TRAIN, "--workdir", workdir))
    assert code == 0, output
    assert not (workdir / ".lease").exists()
    return workdir


def same(workdir, expected):
    """The same bits, and each step once and in order in the log."""
    assert jax.tree.all(jax.tree.map(np.array_equal, final_state(workdir), final_state(expected)))
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()] == list(range(1, 61))
    losses = lambda run: {step: values[:2] for step, values in curve(run).items()}
    assert losses(workdir) == losses(expected) and not list(workdir.glob(".lease*"))


def lease_of(workdir):
    return json.loads((workdir / ".lease").read_bytes())


def test_killed_and_started_at_once(environment, uninterrupted, tmp_path):
    """Without waiting for the lease, which is the default of 30 s."""
    killed = start(environment, *TRAIN, "--workdir", tmp_path, LONG)
    await_step(killed, tmp_path, 15)
    killed.send_signal(signal.SIGKILL)
    assert lease_of(tmp_path)["pid"] == killed.pid
    resumed, began = start(environment, *TRAIN, "--workdir", tmp_path), time.monotonic()
    while resumed.poll() is None and lease_of(tmp_path)["pid"] == killed.pid:
        time.sleep(0.05)
    assert ended(killed)[0] == -signal.SIGKILL
    code, output = ended(resumed)
    assert code == 0 and time.monotonic() < began + 30, output
    same(tmp_path, uninterrupted)


@pytest.mark.parametrize("lease", [1.5, pytest.param(30.0, marks=pytest.mark.slow)])
def test_stopped_taken_over_and_continued(environment, uninterrupted, tmp_path, lease):
    """The one that was stopped, for twice the lease, ends with 2 and has written nothing more."""
    short = f"--config.storage.lease={lease}"
    stopped = start(environment, *TRAIN, "--workdir", tmp_path, LONG, short)
    await_step(stopped, tmp_path, 15)
    stopped.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code, output = ended(start(environment, *TRAIN, "--workdir", tmp_path, short, "--config.training.n_iters=40"))
    assert code == 0, output
    time.sleep(max(began + 2 * lease - time.monotonic(), 0))
    second = start(environment, *TRAIN, "--workdir", tmp_path, short)
    await_step(second, tmp_path, 45)
    stopped.send_signal(signal.SIGCONT)
    code, output = ended(stopped)
    assert code == 2, output
    line = output.splitlines()[-1]  # before it, Orbax may say that it was saving when the process was stopped
    assert re.fullmatch(rf"error: --workdir {tmp_path}: process \d+ on \S+ trains there; .*", line), output
    code, output = ended(second)
    assert code == 0, output
    same(tmp_path, uninterrupted)


def test_two_started_together(environment, uninterrupted, tmp_path):
    """One trains; the other names it and has written nothing."""
    command = [*TRAIN, "--workdir", tmp_path, "--config.storage.lease=1.5"]
    results = [ended(process) for process in [start(environment, *command) for _ in range(2)]]
    codes = sorted(code for code, _ in results)
    assert codes in ([0, 2], [0, 0]), results  # [0, 0]: the second found a run that had reached its end
    refused = "".join(output for code, output in results if code == 2)
    named = rf"error: --workdir {tmp_path}: process \d+ on \S+ trains there; stop it first, or name another folder\n"
    assert re.fullmatch(named, refused) or codes == [0, 0], results
    same(tmp_path, uninterrupted)
