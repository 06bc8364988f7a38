"""The table of exit codes against --help, the launch scripts, the job of Kubernetes and the pages."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from score_st import bench, convert, copy, edit, plan, quality, report, sample, study, sweep, train
from score_st import eval as eval_command
from score_st.data import __main__ as data_command
from score_st.runtime.exit_codes import TABLE

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
RESTARTED = {code for code, entry in TABLE.items() if entry.restarted}

COMMANDS = {"train": train, "eval": eval_command, "quality": quality, "sample": sample, "edit": edit, "sweep": sweep}
COMMANDS |= {"convert": convert, "data": data_command, "report": report, "plan": plan}
COMMANDS |= {"copy": copy, "bench": bench, "study": study}
ONE_PROCESS = ("report", "plan", "copy", "study")
OWN = {
    "train": "the loss is not finite; the last checkpoint is kept",
    "convert": "an output differs by more than --tol",
}


def output(*words) -> str:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout


def numbers(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


def test_the_table():
    """The codes of the design: 74 is not started again, 75 is, and so is whatever a signal of the cluster causes."""
    assert RESTARTED == {75, 134, 137, 143}
    assert TABLE.keys() - RESTARTED == {0, 1, 2, 74, 129, 130}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    lines = COMMANDS[command].parser().format_help().partition("exit codes:\n")[2].splitlines()
    listed = {int(code): meaning for code, meaning in (line.split(maxsplit=1) for line in lines)}
    own = {1: OWN[command]} if command in OWN else {}
    alone = {0, 2, 74, 75, 130}
    expected = alone if command in ONE_PROCESS else alone | {129, 134, 143}
    assert listed == {code: TABLE[code].meaning for code in sorted(expected)} | own


def test_launchers_restart():
    """What common.sh says of each possible code; tpu.sh and local.sh ask it."""
    source = f". {shlex.quote(str(LAUNCH / 'common.sh'))}"
    script = f"{source}; for code in {{0..255}}; do if restarts $code; then echo $code; fi; done"
    assert numbers(output("bash", "-c", script)) == RESTARTED
    for name in ("local.sh", "tpu.sh"):
        assert '! restarts "$code"' in (LAUNCH / name).read_text()


@pytest.mark.parametrize("code", sorted(TABLE))
def test_local(code):
    """local.sh starts a command again that ended with one of the codes, and ends with its code."""
    words = [LAUNCH / "local.sh", "--processes", "1", "--restart", "1", "--", "sh", "-c", f"echo began; exit {code}"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and done.stdout.count("began") == 1 + TABLE[code].restarted
    assert done.stderr.count(f"ended with exit code {code}; started again") == TABLE[code].restarted


def test_help_of_local():
    [line] = [line for line in output(LAUNCH / "local.sh", "--help").splitlines() if line.startswith("  --restart")]
    assert numbers(line.partition("exit code ")[2].partition(", at most")[0]) == RESTARTED


def test_slurm():
    script = output(LAUNCH / "slurm.sh", "--dry-run", "--", "train")
    pattern = script.partition("case $code in\n")[2].partition(")")[0]
    assert {int(code) for code in pattern.split("|")} == RESTARTED


def action(rules: list[dict], code: int) -> str:
    """What Kubernetes does with a pod whose container ended with a code: the first rule that matches."""
    for rule in rules:
        if (requirement := rule.get("onExitCodes")) and code:
            if (code in requirement["values"]) == (requirement["operator"] == "In"):
                return rule["action"]
    return "none"


def test_job():
    job = output(LAUNCH / "gke.sh", "submit", "--name", "a", "--image", "i", "--dry-run", "--", "train")
    _, job = yaml.safe_load_all(job.partition("\n")[2])
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert {code for code in range(256) if action(rules, code) == "Count"} == RESTARTED
    assert all(action(rules, code) == "FailJob" for code in range(1, 256) if code not in RESTARTED)
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # or the policy is refused
    text = (LAUNCH / "job.yaml").read_text()
    assert "2 (a wrong request) and 74" in text and not {2, 74} & RESTARTED


def test_pages():
    """docs/pods.md has the whole table, word for word; no page and no script names another code."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (yes|no) \|$", (ROOT / "docs/pods.md").read_text(), re.MULTILINE)
    documented = {int(code): (meaning, restarted == "yes") for code, meaning, restarted in rows}
    assert documented == {code: (entry.meaning, entry.restarted) for code, entry in TABLE.items()}
    assert [int(code) for code, _, _ in rows] == sorted(TABLE)
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *LAUNCH.iterdir()]
    named = {int(code) for path in files for code in re.findall(r"[Ee]xit code (\d+)", path.read_text())}
    assert {2, 75} <= named <= TABLE.keys()


def test_the_package():
    """No module ends the program with a code of its own."""
    text = "".join(path.read_text() for path in (ROOT / "score_st").rglob("*.py"))
    assert numbers(" ".join(re.findall(r"(?:_exit|sys\.exit|leave|raise SystemExit)\(\d+", text))) <= TABLE.keys()
