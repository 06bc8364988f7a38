"""Several processes: the same curves and bits, preemption, deaths, and how they find each other."""

import os
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from support.commands import DIGITS, ROOT, SMALL
from support.environment import QUICK
from support.processes import LAUNCH, await_step, curve, ended, final_state, launched, start, stored_averages, workers

from score_st import train
from score_st.config import ConfigError
from score_st.runtime import distributed, sharding

TRAIN = [sys.executable, "-m", "score_st.train", "--config"]
COMMAND = [*TRAIN, SMALL, "--config.training.n_iters=8", "--config.training.tau_groups=4"]
COMMAND += ["--config.training.averages=4"]


@pytest.fixture(scope="module")
def environment():
    """That of all processes here, which share what is compiled."""
    return os.environ | dict(XLA_FLAGS=QUICK)


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    """The workdir of a run of 2 processes with 2 devices each."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    command = [*COMMAND, "--config.training.profile_steps=5-6"]
    code, output = ended(launched(environment, workdir, "--devices", 2, command=command))
    assert code == 0, output
    assert output.count("step 8/8") == 1  # process 0 alone prints
    return workdir


def test_traces_of_two_processes_lie_together(uninterrupted):
    """XProf shows the files of one folder as those of one run."""
    traces = sorted((uninterrupted / "profile/plugins/profile/steps_5-6").glob("*.xplane.pb"))
    assert [path.name.rpartition("_")[2] for path in traces] == ["0.xplane.pb", "1.xplane.pb"]
    for path in traces:
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        steps = {
            dict(event.stats)["step_num"]
            for plane in planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        }
        assert steps == {5, 6}


def test_one_process_begins_what_two_finish(environment, uninterrupted, tmp_path):
    """1 process with 4 devices up to step 4, then 2 with 2 from its checkpoint: the curve of 2 with 2."""
    options = ["--config.training.n_iters=4", "--workdir", str(tmp_path / "run"), "--quiet"]
    train.main([*COMMAND[3:], *options], sharding.mesh(devices=jax.devices()[:4]))
    code, output = ended(launched(environment, tmp_path / "run", "--devices", 2, command=COMMAND))
    assert code == 0 and "step 5/8" in output and "step 4/8" not in output, output
    losses, expected = curve(tmp_path / "run"), curve(uninterrupted)
    for step in expected:
        np.testing.assert_allclose(losses[step][: len(expected[step])], expected[step], rtol=1e-5)
    averages = [final_state(workdir)[0][1] for workdir in (tmp_path / "run", uninterrupted)]
    chex.assert_trees_all_close(*averages, rtol=1e-7, atol=2e-5)
    stored = [stored_averages(workdir) for workdir in (tmp_path / "run", uninterrupted)]
    assert [list(steps) for steps in stored] == [[1, 2, 3, 4, 6, 8], [2, 4, 6, 8]]
    chex.assert_trees_all_close(stored[0][8], stored[1][8], rtol=1e-7, atol=2e-5)


@pytest.mark.slow
def test_sigterm_changes_nothing(environment, uninterrupted, tmp_path):
    """SIGTERM to one process saves on both; started again they end with the bits of the run that none disturbed."""
    launcher = launched(environment, tmp_path / "run", "--devices", 2, "--restart", command=COMMAND)
    await_step(launcher, tmp_path / "run", 1)
    os.kill(workers(launcher)[1], signal.SIGTERM)
    code, output = ended(launcher)
    assert code == 0, output
    assert output.count("saved and stopped on SIGTERM") == 1
    assert output.count("local.sh: ended with exit code 143; started again") == 1
    (first, step), (second, _) = (final_state(path) for path in (uninterrupted, tmp_path / "run"))
    assert step == 8
    chex.assert_trees_all_equal(first, second)


WORKER = """
import os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from score_st import config
from score_st.runtime import cli, distributed, sharding

def main():
    distributed.start({"a": os.environ.get("A", 1)})
    preemption = distributed.Preemption(sharding.mesh())
    for step in range(10**6):
        multihost_utils.process_allgather(np.zeros(1))
        if step == 1:
            preemption.listen(False)
            preemption.listen()
        if step == 3 and os.environ.get("SNAPSHOT"): preemption.pause()
        if step == 3: print("running", os.getpid(), flush=True)
        if step == 3 and os.environ.get("SNAPSHOT"): time.sleep(60)
        if code := preemption.reached(): sys.exit(code)
        if os.environ.get("FAIL"): raise config.ConfigError("wrong")
        if os.environ.get("END") and step == 3: return
        if os.environ.get("NAN") and step == 3:
            from score_st.training import keeping  # not in the workers of all tests
            keeping.check_finite(step, float("nan"), list)
        time.sleep(0.02)

cli.run(main)
"""


def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def pair(environment, command=(sys.executable, "-c", WORKER), more=((), ()), which=(0, 1), **variables):
    """Starts processes 0 and 1 without a launcher."""
    shared = dict(SCORE_ST_COORDINATOR=f"localhost:{port()}", SCORE_ST_PROCESSES="2", SCORE_ST_HEARTBEAT="6")
    environment = environment | shared | variables
    return [start(environment | dict(SCORE_ST_PROCESS=str(i)), *command, *more[i]) for i in which]


def running(process):
    """Waits until process 0 is at work."""
    assert any(line.startswith("running") for line in iter(process.stdout.readline, ""))


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line]


@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_dies_and_the_other_ends_with_one_line(environment, dead):
    both = pair(environment)
    running(both[0])
    both[dead].kill()
    began = time.monotonic()
    code, output = ended(both[1 - dead])
    assert time.monotonic() - began < 40 and code == -signal.SIGABRT
    line = f"error: process {dead} died or can't be reached; started again, the run resumes from what was saved"
    assert errors(output) == [line]
    ended(both[dead])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_one_ends_all_with_its_code(environment, sent):
    both = pair(environment)
    running(both[0])
    both[1].send_signal(sent)
    assert [ended(process)[0] for process in both] == [128 + sent] * 2


def test_the_launcher_passes_sigterm_on(environment):
    command = [LAUNCH / "local.sh", "--restart", "--", sys.executable, "-c", WORKER]
    launcher = start(environment, *command)
    running(launcher)
    launcher.terminate()
    assert ended(launcher) == (143, "")


def test_sigterm_in_a_snapshot_ends_both(environment):
    """Which the launcher sees to: the other may be waiting for the one that has ended."""
    launcher = start(environment | dict(SNAPSHOT="1"), LAUNCH / "local.sh", "--", sys.executable, "-c", WORKER)
    running(launcher)
    began = time.monotonic()
    os.kill(workers(launcher)[1], signal.SIGTERM)
    assert ended(launcher)[0] == 143 and time.monotonic() - began < 25


def test_sigterm_ends_a_snapshot_at_once(environment):
    """Which JAX's own preemption service keeps from happening: it takes SIGTERM, and nothing can take it back."""
    first, second = pair(environment, SNAPSHOT="1")
    running(first)
    second.terminate()
    assert second.wait(10) == -signal.SIGTERM
    first.kill()
    ended(first), ended(second)


@pytest.mark.parametrize(
    ("how", "code", "lines"),
    [("END", 0, []), ("NAN", 1, ["error: step 3: the loss is nan"]), ("FAIL", 2, ["error: wrong"])],
)
def test_all_end_alike(environment, how, code, lines):
    """With one exit code, and one line of process 0."""
    (first, output), (second, silence) = (ended(process) for process in pair(environment, **{how: "1"}))
    messages = [line.partition(";")[0] for line in errors(output) if not line.startswith("running")]
    assert (first, second, messages, errors(silence)) == (code, code, lines, [])


def slurm(environment, *tasks, **variables):
    """Starts the tasks of a job of two, each with its variables."""
    job = dict(SLURM_JOB_ID=str(port()), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2") | variables
    of_task = [dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) | task for i, task in enumerate(tasks)]
    return [ended(p) for p in [start(environment | job | task, sys.executable, "-c", WORKER) for task in of_task]]


def test_slurm_is_found(environment):
    """By JAX; settings are compared there as well."""
    assert slurm(environment, {}, {}, FAIL="1") == [(2, "error: wrong\n"), (2, "")]
    line = f"error: process 1 on {socket.gethostname()} differs from process 0: a='3' (not '2')\n"
    assert slurm(environment, dict(A="2"), dict(A="3")) == [(2, line), (2, "")]


def test_a_slurm_task_that_never_comes(environment):
    """JAX, left alone, aborts and names nobody."""
    ((code, output),) = slurm(environment, {}, SCORE_ST_START_TIMEOUT="2")
    assert (code, output) == (75, "error: not all processes came within 2 s (SCORE_ST_START_TIMEOUT)\n")


def test_the_launcher_stops_the_others_when_one_is_killed(environment):
    launcher = start(environment, LAUNCH / "local.sh", "--", sys.executable, "-c", WORKER)
    running(launcher)
    os.kill(workers(launcher)[1], signal.SIGKILL)
    assert ended(launcher) == (137, "local.sh: error: process 1 was killed; the others are stopped\n")


def test_processes_that_differ_name_the_key(environment, tmp_path):
    more = ["--workdir", tmp_path / "run"], ["--workdir", tmp_path / "run", "--config.optim.lr=3e-3"]
    ends = [ended(process) for process in pair(environment, [*TRAIN, DIGITS], more)]
    assert [code for code, _ in ends] == [2, 2] and not (tmp_path / "run").exists()
    line = f"error: process 1 on {socket.gethostname()} differs from process 0: optim.lr=0.003 (not 0.004)\n"
    assert [output for _, output in ends] == [line, ""]


@pytest.mark.parametrize(
    "which, text", [(0, "process 1 of 2 did not come within 2 s"), (1, "process 0 of 2 did not answer within 2 s")]
)
def test_a_process_that_never_comes_is_named(environment, which, text):
    (process,) = pair(environment, which=[which], SCORE_ST_START_TIMEOUT="2")
    code, output = ended(process)
    assert code == 75 and text in output and len(errors(output)) == 1


@pytest.fixture
def no_cluster(monkeypatch):
    """The environment of a laptop."""
    prefixes = ("SCORE_ST_", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("name, value", [("PROCESS", "2"), ("PROCESSES", "two"), ("COORDINATOR", "host")])
def test_an_environment_that_makes_no_sense(no_cluster, name, value):
    wrong = dict(COORDINATOR="localhost:1", PROCESSES="2", PROCESS="0") | {name: value}
    for key, text in wrong.items():
        no_cluster.setenv(f"SCORE_ST_{key}", text)
    with pytest.raises(ConfigError, match="^SCORE_ST_[^\n]*$"):
        distributed.start({})


SLURM = dict(SLURM_STEP_NODELIST="a", SLURM_NTASKS="2")
POD = dict(KUBERNETES_SERVICE_HOST="10.0.0.1")
TPU = dict(TPU_ML_PLATFORM="JAX")


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, False),
        (SLURM, True),
        (SLURM | dict(SLURM_NTASKS="1"), False),
        (SLURM | dict(SCORE_ST_PROCESSES="1"), False),
        (dict(SLURM_NTASKS="2"), False),  # an allocation, outside of srun
        (dict(OMPI_COMM_WORLD_SIZE="2"), True),
        (POD, False),
        (TPU, True),
        (TPU | POD | dict(TPU_WORKER_HOSTNAMES="a,b"), True),
        (TPU | POD | dict(TPU_WORKER_HOSTNAMES="a"), False),
        (TPU | POD | dict(TPU_WORKER_HOSTNAMES="a", MEGASCALE_NUM_SLICES="2"), True),
        (TPU | POD, False),
    ],
)
def test_where_jax_looks_for_other_processes(no_cluster, variables, expected):
    for name, value in variables.items():
        no_cluster.setenv(name, value)
    assert distributed.in_cluster() is expected


def test_one_process_starts_nothing(no_cluster):
    distributed.start({})
    for name, value in dict(COORDINATOR="localhost:1", PROCESSES="1", PROCESS="0").items():
        no_cluster.setenv(f"SCORE_ST_{name}", value)
    distributed.start({})
    assert not distributed.several()


def test_no_command_touches_a_device_when_imported():
    names = ", ".join(f"score_st.{name}" for name in ("train", "eval", "sample", "edit", "sweep", "convert", "report"))
    code = f"import {names}, jax; jax.distributed.initialize('localhost:{port()}', 1, 0); print('untouched')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "untouched\n", ran.stderr  # else JAX refuses
