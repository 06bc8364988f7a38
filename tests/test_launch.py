"""The launch scripts, with stand-ins for the commands of a cluster."""

import os
import shlex
import shutil
import signal
import subprocess
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
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
WHAT = ["--", "python", "-m", "score_st.train", "--workdir", "/work/a b"]
BUCKET = ["--", "python", "-m", "score_st.train", "--config", "C", "--workdir", "gs://bucket/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_options(stage, script):
    shown = stage(script, "--help")
    assert shown.returncode == 0 and "--dry-run" in shown.stdout and script in shown.stdout
    action = {"tpu.sh": ["run"], "gke.sh": ["submit"]}.get(script, [])
    for words in ([*action, "--unknown"], [*action], ["nothing-such"] if action else ["--unknown", "x"]):
        refused = stage(script, *words)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, (words, refused)


DRY = {
    "local.sh": (
        ["--processes", 3, "--devices", 2],
        ["device_count=2", "SCORE_ST_PROCESS=2", "--workdir '/work/a b'"],
    ),
    "slurm.sh": (
        ["--nodes", 4],
        ["#SBATCH --nodes=4", "--signal=TERM@300", "srun", "--workdir '/work/a b'", "requeue"],
    ),
    "tpu.sh": (["all", *TPU, "--spot"], ["create pod --node-id pod", "--spot", "pip install", "--worker all"]),
    "gke.sh": (["submit", *GKE], ["kubectl create", "parallelism: 4", '"--workdir", "/work/a b"]', "image: r/i:1"]),
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


def test_tpu_dry_run_for_a_bucket(stage):
    """What is printed: the account of the hosts, the extra, the bucket, and nothing that mounts a folder."""
    account = "trainer@project.iam.gserviceaccount.com"
    shown = stage("tpu.sh", "all", *TPU, "--spot", "--service-account", account, "--dry-run", *BUCKET)
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    create, _, _, _, setup, run = [shlex.split(line) for line in shown.stdout.splitlines()]
    assert create[create.index("--service-account") + 1] == account and "--spot" in create
    assert setup[-1].endswith("pip install -q 'jax[tpu]' -e '.[gcs]' && :")
    assert "python -m score_st.train --config C --workdir gs://bucket/run >>run.log" in run[-1]
    assert "mount" not in shown.stdout


@pytest.mark.parametrize(
    "words, package",
    [
        ([], "-e '.'"),
        (["--", "--workdir=s3://bucket/run"], "-e '.[s3]'"),
        (["--", "--config.data.prepared=s3://b/d", "--workdir", "gs://b/r"], "-e '.[gcs,s3]'"),
        (["--extras", "fid,gcs", "--", "--workdir", "gs://b/r"], "-e '.[fid,gcs]'"),
        (["--extras", "lsun", "--", "sh", "-c", "python train --workdir gs://b/r"], "-e '.[lsun,gcs]'"),
    ],
)
def test_tpu_setup_installs_the_extras_of_the_buckets(stage, words, package):
    shown = stage("tpu.sh", "setup", *TPU, "--dry-run", *words)
    assert shlex.split(shown.stdout.splitlines()[-1])[-1].split("'jax[tpu]' ")[1] == f"{package} && :"


def pod(stage: Stage, *words) -> tuple[dict, str]:
    """The pod of the job that gke.sh prints, and what it says on stderr."""
    shown = stage("gke.sh", "submit", *GKE, "--dry-run", *words)
    assert shown.returncode == 0, shown.stderr
    command, _, job = shown.stdout.partition("\n")
    assert command == "kubectl create --filename -"
    service, job = yaml.safe_load_all(job)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return job["spec"]["template"]["spec"], shown.stderr


@pytest.mark.parametrize(
    "words, claim, warned",
    [
        (BUCKET, None, ""),
        (["--", "sh", "-c", "train --workdir gs://bucket/work/run"], None, ""),
        (["--claim", "mine", *BUCKET], "mine", ""),
        (WHAT, "score-st", ""),
        (["--", "train", "--workdir=/work"], "score-st", ""),
        ([*BUCKET, "--config.data.dir=/work/data"], "score-st", ""),
        (["--", "sh", "-c", "train --workdir /work/run"], "score-st", ""),
        (["--claim", "mine", *WHAT], "mine", ""),
        (["--claim", "none", *WHAT], None, "--workdir /work/a b: there is no volume with --claim none"),
        (["--", "train", "--workdir", "/workdir/a"], None, "--workdir /workdir/a: is lost with the pod"),
        (["--", "train", "--workdir=runs/a"], None, "--workdir runs/a: is lost with the pod"),
    ],
)
def test_gke_asks_for_a_volume_only_for_a_shared_folder(stage, words, claim, warned):
    spec, errors = pod(stage, *words)
    [container] = spec["containers"]
    if claim is None:
        assert "volumes" not in spec and "volumeMounts" not in container
    else:
        assert spec["volumes"] == [{"name": "work", "persistentVolumeClaim": {"claimName": claim}}]
        assert container["volumeMounts"] == [{"name": "work", "mountPath": "/work"}]
    assert container["args"] == words[words.index("--") + 1 :] and "serviceAccountName" not in spec
    assert errors.count("\n") == bool(warned) and warned in errors


def test_gke_service_account(stage):
    spec, _ = pod(stage, "--service-account", "trainer", *BUCKET)
    assert spec["serviceAccountName"] == "trainer" and "volumes" not in spec
    built = stage("gke.sh", "build", *GKE, "--extras", "gcs,s3", "--dry-run").stdout
    assert "--build-arg EXTRAS=gcs,s3" in built and "ARG EXTRAS=gcs\n" in (LAUNCH / "Dockerfile").read_text()


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
    assert stage.told("srun")[0] == "--kill-on-bad-exit=1 python -m score_st.train --workdir /work/a b"


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


def test_tpu_comes_back_to_the_same_bucket(stage):
    """After preemption the pod has the same account, the same extra, the same command with the same workdir."""
    stage.command("gcloud", POD)
    account = ["--spot", "--service-account", "trainer@p.iam.gserviceaccount.com"]
    command = ["--", "sh", "-c", 'echo "$1" >>seen', "train", "gs://bucket/run"]
    done = stage("tpu.sh", "all", *TPU, *account, *command)
    assert done.returncode == 0 and "pod was preempted (SUSPENDED)" in done.stderr, done.stderr
    assert (stage.folder / "score_st/seen").read_text() == "gs://bucket/run\n"
    told = stage.told("gcloud")
    creations = [line for line in told if "queued-resources create" in line]
    setups = [line for line in told if "pip install" in line]
    runs = [line for line in told if "nohup" in line]
    for lines, text in ((creations, " ".join(account)), (setups, "-e '.[gcs]'"), (runs, "gs://bucket/run")):
        assert len(lines) == 2 and lines[0] == lines[1] and text in lines[0]


def test_tpu_preempted_while_it_is_set_up(stage):
    """The pod is asked for again; an error of setup on a pod that is there ends the launcher."""
    preempted = 'touch preempted; echo SUSPENDED >state; echo "ERROR: Could not SSH" >&2; exit 1'
    stage.command("gcloud", POD.replace("*pip*)", f"*pip*) if [[ ! -e preempted ]]; then {preempted}; fi;"))
    done = stage("tpu.sh", "all", *TPU, "--", "sh", "-c", "echo done >>seen")
    assert done.returncode == 0 and done.stderr.count("pod was preempted (SUSPENDED)") == 1, done.stderr
    assert (stage.folder / "score_st/seen").read_text() == "done\n"
    stage.command("gcloud", POD.replace("*pip*)", '*pip*) echo "ERROR: no such extra" >&2; exit 1;'))
    failed = stage("tpu.sh", "all", *TPU, "--", "true")
    assert failed.returncode == 1 and failed.stderr.endswith("tpu.sh: error: setup: ERROR: no such extra\n")


@pytest.mark.parametrize("stop, starts", [(True, 1), (False, 2)])
def test_tpu_stop_is_not_preemption(stage, stop, starts):
    """A command that stop ended is not started again; one that SIGTERM from elsewhere ended is."""
    stage.command("gcloud", POD)
    (stage.folder / "state").write_text("ACTIVE\n")
    (stage.folder / "score_st").mkdir()
    (stage.folder / "preempted").touch()
    command = "trap 'exit 143' TERM; echo >>seen; test $(wc -l <seen) = 2 && exit; sleep 20 & wait"
    results: list[subprocess.CompletedProcess] = []
    run = lambda: results.append(stage("tpu.sh", "run", *TPU, "--", "bash", "-c", command))
    thread = threading.Thread(target=run)
    thread.start()
    pid = stage.folder / "score_st/run.pid"
    while not (stage.folder / "score_st/seen").exists() or not pid.exists() or not pid.read_text():
        time.sleep(0.1)
    if stop:
        assert stage("tpu.sh", "stop", *TPU).returncode == 0
    else:
        os.kill(int(pid.read_text()), signal.SIGTERM)
    thread.join()
    assert results[0].returncode == (143 if stop else 0), results[0].stderr
    assert (stage.folder / "score_st/seen").read_text().count("\n") == starts


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
        ("create", "ALREADY_EXISTS: Resource 'pod' already exists", 1, 0, "pod exists already"),
        ("create", "code=503, message=UNAVAILABLE: service is unavailable", 5, 1, "UNAVAILABLE"),
        ("create", "PERMISSION_DENIED: TPU API is disabled", 1, 1, "PERMISSION_DENIED"),
        ("wait", "NOT_FOUND: Resource 'pod' was not found", 1, 1, "pod: NOT_FOUND"),
        ("stop", "NOT_FOUND: Resource 'pod' was not found", 1, 1, "NOT_FOUND"),
        ("delete", "NOT_FOUND: Resource 'pod' was not found", 1, 0, "pod does not exist"),
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
    assert refused.returncode == 2 and "9 chips can't be divided among hosts with 4" in refused.stderr
