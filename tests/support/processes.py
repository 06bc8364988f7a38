"""Processes that train together: started, awaited, and what they leave behind."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_st import config
from score_st.model import DiffusionModel
from score_st.runtime import sharding
from score_st.training import checkpoints, stored_weights
from support.commands import ROOT

LAUNCH = ROOT / "launch"


def start(environment: Mapping[str, str], *command: Any) -> subprocess.Popen:
    """Starts a command in a session of its own."""
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, start_new_session=True, **pipe)


def launched(environment: Mapping[str, str], workdir: Path, *options: Any, command: list[str]) -> subprocess.Popen:
    """Starts a command in several processes, in `workdir`."""
    return start(environment, LAUNCH / "local.sh", *options, "--", *command, "--workdir", workdir)


def ended(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str]:
    """Waits; returns exit code and output without the notices of CPU collectives. Nothing of it stays behind."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, "".join(line for line in output.splitlines(True) if "[Gloo]" not in line)


def workers(launcher: subprocess.Popen) -> list[int]:
    """Process ids of the processes of a launcher, in their order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"score_st" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def curve(workdir: Path) -> dict[int, list[float]]:
    """Loss, τ and held-out loss by step, as logged so far."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.open()] if path.exists() else []
    return {line["step"]: [line[key] for key in ("loss", "tau", "eval_loss") if key in line] for line in lines}


def await_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Waits until the step is logged, or the process has ended."""
    while process.poll() is None and step not in curve(workdir):
        time.sleep(0.05)


def final_state(workdir: Path) -> tuple[Any, int]:
    """Parameters, average and optimizer state of the newest checkpoint, and its step."""
    settings = config.from_workdir(workdir)
    model = DiffusionModel.from_config(settings)
    restored = checkpoints.open_for_reading(workdir, settings, model, sharding.mesh())
    return jax.tree.map(np.asarray, (restored.params, restored.ema, restored.opt_state)), int(restored.step)


def stored_averages(workdir: Path) -> dict[int, Any]:
    """The averages that training has stored, by step."""
    with checkpoints.manager(workdir, read_only=True, folder=stored_weights.FOLDER) as opened:
        shape = DiffusionModel.from_config(config.from_workdir(workdir)).abstract_params
        target = checkpoints.placed({"0.05": shape, "0.1": shape}, sharding.mesh())
        read = lambda step: jax.tree.map(np.asarray, checkpoints.read_item(opened, step, target))
        return {step: read(step) for step in sorted(opened.all_steps())}
