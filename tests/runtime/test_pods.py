"""Several processes: the same curves and bits, preemption, deaths, and the launchers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.commands import DIGITS, ROOT, SHORT, final_params, overrides
from support.environment import QUICK

from score_st.runtime import distributed

LAUNCH = ROOT / "launch"
SETTINGS = SHORT | dict(training__n_iters=12, training__tau_groups=8, training__eval_freq=12, training__log_freq=1)
COMMAND = [sys.executable, "-m", "score_st.train", "--config", DIGITS, *overrides(**SETTINGS)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of all runs here: they share what is compiled."""
    cache = str(tmp_path_factory.mktemp("cache"))
    more = dict(JAX_COMPILATION_CACHE_DIR=cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", XLA_FLAGS=QUICK)
    return os.environ | more


def start(environment, *command):
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, start_new_session=True, **pipe)


def ended(process, timeout=120) -> tuple[int, str]:
    """Exit code and output without the notices of CPU collectives; nothing of it stays behind."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, "".join(line for line in output.splitlines(True) if "[Gloo]" not in line)


def launched(environment, workdir, *options, command=COMMAND):
    return start(environment, LAUNCH / "local.sh", *options, "--", *command, "--workdir", workdir)


def curve(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {line["step"]: [line[key] for key in ("loss", "tau", "eval_loss") if key in line] for line in lines}


def await_step(process, workdir, step):
    while process.poll() is None and step not in (curve(workdir) if (workdir / "metrics.jsonl").exists() else ()):
        time.sleep(0.05)


def workers(launcher) -> list[int]:
    """Process ids of the processes of a launcher, in their order."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"score_st" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """The workdir of an uninterrupted run of 2 processes of 4 devices each."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, output = ended(launched(environment, workdir))
    assert code == 0, output
    assert output.count("step 12/12") == 1  # process 0 alone prints
    return workdir


def test_one_process_begins_what_two_finish(environment, whole, tmp_path):
    """1 process of 8 devices up to step 6, 2 of 4 from its checkpoint: the curve of 2 of 4 from the start."""
    alone = environment | dict(XLA_FLAGS=f"{QUICK} --xla_force_host_platform_device_count=8")
    half = [*COMMAND, "--config.training.n_iters=6"]
    code, output = ended(start(alone, *half, "--workdir", tmp_path / "run"))
    assert code == 0, output
    code, output = ended(launched(environment, tmp_path / "run"))
    assert code == 0 and "step 7/12" in output, output
    found, expected = curve(tmp_path / "run"), curve(whole)
    for step in expected:
        np.testing.assert_allclose(found[step][: len(expected[step])], expected[step], rtol=1e-5)
    few = lambda workdir: jax.tree.leaves(final_params(workdir, SETTINGS)[0][1])
    for a, b in zip(few(tmp_path / "run"), few(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_sigterm_changes_nothing(environment, whole, tmp_path):
    """SIGTERM to one process saves on both, and started again they end bit by bit like the run that none disturbed."""
    launcher = launched(environment, tmp_path / "run", "--restart")
    await_step(launcher, tmp_path / "run", 2)
    os.kill(workers(launcher)[1], signal.SIGTERM)
    code, output = ended(launcher)
    assert code == 0, output
    assert output.count("saved and stopped on SIGTERM") == 1
    assert output.count("local.sh: ended with exit code 143; started again") == 1
    (first, step), (second, _) = (final_params(path, SETTINGS) for path in (whole, tmp_path / "run"))
    assert step == 12
    jax.tree.map(np.testing.assert_array_equal, first, second)


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
        if step == 3: print("running", os.getpid(), flush=True)
        if preemption.reached(): sys.exit(distributed.STOPPED)
        if os.environ.get("FAIL"): raise config.ConfigError("wrong")
        if os.environ.get("END") and step == 3: return
        if os.environ.get("NAN") and step == 3:
            from score_st.training import loop  # not in the workers of all tests
            loop.check_finite(step, float("nan"), list)
        time.sleep(0.02)

cli.run(main)
"""


def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def pair(environment, command=(sys.executable, "-c", WORKER), more=((), ()), which=(0, 1), **variables):
    """Processes 0 and 1, without a launcher."""
    shared = dict(SCORE_ST_COORDINATOR=f"localhost:{port()}", SCORE_ST_PROCESSES="2", SCORE_ST_HEARTBEAT="6")
    environment = environment | shared | variables | dict(PYTHONPATH=str(ROOT))
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


def test_sigterm_ends_all_with_the_code_of_preemption(environment):
    both = pair(environment)
    running(both[0])
    both[1].terminate()
    assert [ended(process)[0] for process in both] == [143, 143]
    command = [LAUNCH / "local.sh", "--restart", "--", sys.executable, "-c", WORKER]
    launcher = start(environment | dict(PYTHONPATH=str(ROOT)), *command)
    running(launcher)
    launcher.terminate()
    assert ended(launcher) == (143, "")


@pytest.mark.parametrize(("how", "code", "lines"), [("END", 0, []), ("NAN", 1, ["error: step 3: the loss is nan"])])
def test_all_end_alike(environment, how, code, lines):
    (first, output), (second, silence) = (ended(process) for process in pair(environment, **{how: "1"}))
    messages = [line.partition(";")[0] for line in errors(output) if not line.startswith("running")]
    assert (first, second, messages, errors(silence)) == (code, code, lines, [])


def test_slurm_is_found(environment):
    job = dict(SLURM_JOB_ID=str(port()), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2")
    job |= dict(PYTHONPATH=str(ROOT), FAIL="1")
    tasks = [dict(SLURM_PROCID=i, SLURM_LOCALID=i) for i in "01"]
    found = [ended(p) for p in [start(environment | job | task, sys.executable, "-c", WORKER) for task in tasks]]
    assert found == [(2, "error: wrong\n"), (2, "")]


def test_the_launcher_stops_the_others_when_one_is_killed(environment):
    launcher = start(environment | dict(PYTHONPATH=str(ROOT)), LAUNCH / "local.sh", "--", sys.executable, "-c", WORKER)
    running(launcher)
    os.kill(workers(launcher)[1], signal.SIGKILL)
    assert ended(launcher) == (137, "local.sh: error: process 1 was killed; the others are stopped\n")


def test_an_error_of_all_is_one_line(environment):
    found = [ended(process) for process in pair(environment, FAIL="1")]
    assert found == [(2, "error: wrong\n"), (2, "")]


def test_processes_that_differ_name_the_key(environment, tmp_path):
    more = ["--workdir", tmp_path / "run"], ["--workdir", tmp_path / "run", "--config.optim.lr=3e-3"]
    found = [ended(process) for process in pair(environment, COMMAND, more)]
    assert [code for code, _ in found] == [2, 2] and not (tmp_path / "run").exists()
    line = f"error: process 1 on {socket.gethostname()} differs from process 0: optim.lr=0.003 (not 0.002)\n"
    assert [output for _, output in found] == [line, ""]


@pytest.mark.parametrize(
    "which, text", [(0, "process 1 of 2 did not come within 2 s"), (1, "process 0 of 2 did not answer within 2 s")]
)
def test_a_process_that_never_comes_is_named(environment, which, text):
    (process,) = pair(environment, which=[which], SCORE_ST_START_TIMEOUT="2")
    code, output = ended(process)
    assert code == 75 and text in output and len(errors(output)) == 1


@pytest.mark.parametrize("name, value", [("PROCESS", "2"), ("PROCESSES", "two"), ("COORDINATOR", "host")])
def test_an_environment_that_makes_no_sense(environment, name, value):
    more = dict(SCORE_ST_COORDINATOR="localhost:1", SCORE_ST_PROCESSES="2", SCORE_ST_PROCESS="0", PYTHONPATH=str(ROOT))
    code, output = ended(start(environment | more | {f"SCORE_ST_{name}": value}, sys.executable, "-c", WORKER))
    assert code == 2 and output.startswith("error: SCORE_ST_") and len(errors(output)) == 1


def test_one_process_starts_nothing(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    for name in [name for name in os.environ if name.startswith(("SCORE_ST_", "SLURM_"))]:
        monkeypatch.delenv(name)
    distributed.start({})
    monkeypatch.setenv("SCORE_ST_PROCESSES", "1")
    distributed.start({})


def test_no_command_touches_a_device_when_imported():
    names = ", ".join(f"score_st.{name}" for name in ("train", "eval", "sample", "edit", "sweep", "convert", "report"))
    code = f"import {names}; from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr


SCRIPTS = ["local.sh", "slurm.sh", "tpu.sh", "gke.sh"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck")
def test_shellcheck():
    found = subprocess.run(["shellcheck", "-x", *LAUNCH.glob("*.sh")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


class Stage:
    """Runs launchers with stand-ins for the commands of a cluster, which write down what they are told."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()

    def command(self, name: str, script: str):
        """A stand-in: a piece of bash, which finds the number of its call in $call, from 1."""
        path = self.folder / "bin" / name
        path.write_text(
            f"""#!/usr/bin/env bash
printf '%s\\n' "$*" >>{self.folder}/{name}.log
call=$(wc -l <{self.folder}/{name}.log)
{textwrap.dedent(script)}
"""
        )
        path.chmod(0o755)

    def __call__(self, script: str, *arguments) -> subprocess.CompletedProcess:
        more = dict(PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}", RETRY_SECONDS="0", POLL_SECONDS="0")
        words = [str(LAUNCH / script), *map(str, arguments)]
        options = dict(env=os.environ | more | dict(HOME=str(self.folder)), cwd=self.folder, timeout=60)
        return subprocess.run(words, capture_output=True, text=True, **options)

    def told(self, name: str) -> list[str]:
        log = self.folder / f"{name}.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


TPU = ["--name", "pod", "--zone", "z"]
GKE = ["--name", "run", "--image", "r/i:1"]
WHAT = ["--", "python", "-m", "score_st.train", "--workdir", "a b"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_options(stage, script):
    shown = stage(script, "--help")
    assert shown.returncode == 0 and "--dry-run" in shown.stdout and script in shown.stdout
    action = {"tpu.sh": ["run"], "gke.sh": ["submit"]}.get(script, [])
    for words in ([*action, "--unknown"], [*action], ["nothing-such"] if action else ["--unknown", "x"]):
        refused = stage(script, *words)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, (words, refused)


DRY = {
    "local.sh": (["--processes", 3, "--devices", 2], ["device_count=2", "SCORE_ST_PROCESS=2", "--workdir 'a b'"]),
    "slurm.sh": (["--nodes", 4], ["#SBATCH --nodes=4", "--signal=TERM@300", "srun", "--workdir 'a b'", "requeue"]),
    "tpu.sh": (["all", *TPU, "--spot"], ["create pod --node-id pod", "--spot", "pip install", "--worker all"]),
    "gke.sh": (["submit", *GKE], ["kubectl create", "parallelism: 4", '"--workdir", "a b"]', "image: r/i:1"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_the_commands_and_runs_none(stage, script):
    for name in ("gcloud", "sbatch", "kubectl", "docker"):
        stage.command(name, "exit 1")
    arguments, expected = DRY[script]
    shown = stage(script, *arguments, "--dry-run", *WHAT)
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    assert all(text in shown.stdout for text in expected), shown.stdout
    assert "@" not in shown.stdout.replace("TERM@300", "")
    assert not [name for name in ("gcloud", "sbatch", "kubectl", "docker") if stage.told(name)]


def test_slurm_submits_and_tries_again(stage):
    busy = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    stage.command("sbatch", f'((call > 2)) && echo 41 || {{ echo "{busy}" >&2; exit 1; }}; cp "$2" script.sh')
    done = stage("slurm.sh", *WHAT)
    assert done.returncode == 0 and done.stdout.startswith("job 41:") and len(stage.told("sbatch")) == 3
    # the batch script: queued again after preemption, not after an error
    stage.command("scontrol", "")
    for code, requeued in ((143, 1), (2, 1), (0, 1)):
        stage.command("srun", f"exit {code}")
        stage.command("sleep", "")
        path = f"{stage.folder / 'bin'}:{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "script.sh"], cwd=stage.folder, env=os.environ | dict(PATH=path, SLURM_JOB_ID="41")
        )
        assert ran.returncode == code and stage.told("scontrol") == ["requeue 41"] * requeued
    assert stage.told("srun")[0] == "--kill-on-bad-exit=1 python -m score_st.train --workdir a b"


def test_slurm_refuses(stage):
    stage.command("sbatch", 'echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1')
    refused = stage("slurm.sh", "--partition", "gpu", *WHAT)
    assert (refused.returncode, refused.stderr) == (
        1,
        "slurm.sh: error: sbatch: error: invalid partition specified: gpu\n",
    )
    assert len(stage.told("sbatch")) == 1


# a pod that is preempted once: what it runs is run here, in a folder of its own
POD = r"""
state=$(cat state 2>/dev/null || echo NONE)
case "$*" in
  *queued-resources\ create*) echo WAITING_FOR_RESOURCES >state ;;
  *describe*)
    [[ $state == NONE ]] && { echo "ERROR: (gcloud...) NOT_FOUND: Resource not found" >&2; exit 1; }
    echo "$state"
    [[ $state != WAITING_FOR_RESOURCES ]] || echo ACTIVE >state ;;
  *queued-resources\ delete*) rm -f state ;;
  *tpu-vm\ scp*) cp "${5}" "${6#*:}" ;;
  *pip*) mkdir -p score_st ;;
  *tpu-vm\ ssh*)
    if [[ "$*" == *nohup* && ! -e preempted ]]; then
      touch preempted; echo SUSPENDED >state
      echo "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) Could not SSH into the instance." >&2; exit 255
    fi
    [[ $state == ACTIVE ]] || { echo "ERROR: (gcloud...) Could not SSH" >&2; exit 255; }
    while [[ $1 != --command ]]; do shift; done
    bash -c "$2" ;;
esac
"""


def test_tpu_goes_on_after_preemption(stage):
    stage.command("gcloud", POD)
    done = stage("tpu.sh", "all", *TPU, "--", "sh", "-c", 'echo "it\'s done" >>seen; exit 0')
    assert done.returncode == 0, done.stderr
    assert (stage.folder / "score_st/seen").read_text() == "it's done\n"
    kinds = [line.split()[3] for line in stage.told("gcloud") if "queued-resources" in line]
    assert kinds.count("create") == 2 and kinds.count("delete") == 1
    assert "pod was preempted (SUSPENDED)" in done.stderr
    code = stage("tpu.sh", "run", *TPU, "--", "sh", "-c", "exit 7")
    assert code.returncode == 7 and "the command ended with exit code 7" in code.stderr


@pytest.mark.parametrize(
    "action, error, tries, code, shown",
    [
        (
            "create",
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' has been exceeded. Limit: 0",
            1,
            1,
            "Quota",
        ),
        ("create", "ALREADY_EXISTS: Resource 'pod' already exists", 1, 0, "pod is there already"),
        ("create", "code=503, message=UNAVAILABLE: service is unavailable", 5, 1, "UNAVAILABLE"),
        ("create", "PERMISSION_DENIED: TPU API is disabled", 1, 1, "PERMISSION_DENIED"),
        ("wait", "NOT_FOUND: Resource 'pod' was not found", 1, 1, "pod: NOT_FOUND"),
        ("stop", "NOT_FOUND: Resource 'pod' was not found", 1, 1, "NOT_FOUND"),
        ("delete", "NOT_FOUND: Resource 'pod' was not found", 1, 0, "pod is not there"),
    ],
)
def test_tpu_errors_are_one_line(stage, action, error, tries, code, shown):
    stage.command("gcloud", f'echo "ERROR: (gcloud.compute.tpus) {error}" >&2; echo "- more of it" >&2; exit 1')
    done = stage("tpu.sh", action, *TPU)
    lines = [line for line in done.stderr.splitlines() if "trying again" not in line]
    assert done.returncode == code and len(stage.told("gcloud")) == tries
    assert shown in lines[-1] and len(lines) <= 2


def test_gke_builds_submits_and_waits(stage):
    stage.command("docker", "((call != 2)) || { echo 'received unexpected HTTP status: i/o timeout' >&2; exit 1; }")
    assert stage("gke.sh", "build", *GKE).returncode == 0
    assert [line.split()[0] for line in stage.told("docker")] == ["build", "push", "push"]
    stage.command(
        "kubectl", 'case $1 in create) cat "$3" >job.yaml ;; get) ((call > 2)) && echo "Complete ok" || echo ;; esac'
    )
    assert stage("gke.sh", "submit", *GKE, "--topology", "16x16", "--turns", 7, *WHAT).returncode == 0
    job = (stage.folder / "job.yaml").read_text()
    assert "completions: 64" in job and "backoffLimit: 7" in job and "@" not in job
    assert stage("gke.sh", "wait", *GKE).returncode == 0 and len(stage.told("kubectl")) >= 3


@pytest.mark.parametrize(
    "action, error, tries",
    [
        ("submit", "Error from server (AlreadyExists): error when creating: jobs.batch run already exists", 1),
        ("submit", "Error from server (Forbidden): pods run is forbidden: exceeded quota: tpu", 1),
        ("wait", "Error from server (NotFound): jobs.batch run not found", 1),
        ("stop", "Unable to connect to the server: dial tcp: i/o timeout", 5),
    ],
)
def test_gke_errors_are_one_line(stage, action, error, tries):
    stage.command("kubectl", f'echo "{error}" >&2; exit 1')
    done = stage("gke.sh", action, *GKE, *(WHAT if action == "submit" else []))
    lines = [line for line in done.stderr.splitlines() if "trying again" not in line]
    assert (done.returncode, lines) == (1, [f"gke.sh: error: {error}"]) and len(stage.told("kubectl")) == tries


def test_gke_reports_a_job_that_failed(stage):
    stage.command("kubectl", 'echo "Failed Pod failed with exit code 2, matching FailJob rule"')
    done = stage("gke.sh", "wait", *GKE)
    assert done.returncode == 1 and "exit code 2" in done.stderr and done.stderr.count("\n") == 1
    refused = stage("gke.sh", "submit", *GKE, "--topology", "3x3", *WHAT)
    assert refused.returncode == 2 and "9 chips can't be shared by hosts of 4" in refused.stderr
