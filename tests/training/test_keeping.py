"""How training ends: signals, a file that vanishes, a disk that is full or gone, a snapshot that fails, NaN."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.commands import SMALL, TINY, overrides
from support.environment import QUICK
from support.processes import await_step, ended, final_state, start

from score_st import config, train
from score_st.runtime import cli
from score_st.training import checkpoints, keeping, step

LONG = dict(training__n_iters=100_000, training__snapshot_freq=100_000, training__snapshot_freq_for_preemption=100_000)
LONG |= dict(training__eval_freq=100_000, training__eval_images=0, data__num_threads=1)


ALONE = os.environ | dict(XLA_FLAGS=QUICK)  # one device
TRAIN = "from score_st import train; from score_st.runtime import cli; cli.run(train.main)"


def words(workdir, **more) -> list[str]:
    return ["--config", SMALL, "--quiet", "--workdir", str(workdir), *overrides(**more)]


def saved(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def logged(workdir) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves(tmp_path, sent):
    """The step that was reached, of which the line says; test_distributed.py has SIGTERM."""
    run = tmp_path / "run"
    process = start(ALONE, sys.executable, "-c", TRAIN, *[word for word in words(run, **LONG) if word != "--quiet"])
    await_step(process, run, 3)
    began = time.monotonic()
    process.send_signal(sent)
    code, output = ended(process)
    (number,) = saved(run)
    assert code == 128 + sent and time.monotonic() - began < 25
    assert output.splitlines()[-1] == f"step {number}/100000  saved and stopped on {sent.name}"
    assert final_state(run)[1] == number


def test_sighup_stays_ignored_under_nohup(tmp_path):
    run = tmp_path / "run"
    process = start(
        ALONE, "nohup", sys.executable, "-m", "score_st.train", *words(run, **LONG | dict(training__n_iters=30))
    )
    await_step(process, run, 2)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0 and saved(run)[-1] == 30


def test_ctrl_c_in_python_saves_and_propagates(tmp_path, one_device):
    """As in a notebook: KeyboardInterrupt, and the process lives."""
    run, main = tmp_path / "run", threading.get_ident()

    def press():
        while not (run / "metrics.jsonl").exists() or len(logged(run)) < 3:
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train.main(words(run, **LONG), one_device)
    assert saved(run) == logged(run)[-1:]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_an_image_that_vanishes_costs_no_step(tmp_path, one_device):
    """The last state is saved before the error is raised."""
    images, run = tmp_path / "images", tmp_path / "run"
    for split in ("train", "test"):
        (images / split).mkdir(parents=True)
        for i in range(32):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(images / split / f"{i}.png")
    source = dict(data__dataset="FOLDER", data__dir=images, data__memory_gb=0.0, data__num_levels=256)
    argv = words(run, **LONG | source)

    def remove():
        while not (run / "metrics.jsonl").exists() or len(logged(run)) < 3:
            time.sleep(0.05)
        shutil.rmtree(images / "train")

    threading.Thread(target=remove, daemon=True).start()
    with pytest.raises(Exception, match="png"):
        train.main(argv, one_device)
    assert saved(run) == logged(run)[-1:] and final_state(run)[1] == logged(run)[-1]


def test_a_workdir_that_vanishes_is_one_line(tmp_path):
    """And does not come back without its configuration."""
    run = tmp_path / "run"
    process = start(ALONE, sys.executable, "-c", TRAIN, *words(run, **LONG))
    await_step(process, run, 3)
    run.rename(tmp_path / "elsewhere")
    assert ended(process) == (74, f"error: {run}: is gone; what was saved stays\n")
    assert not run.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_room_is_made(tmp_path, one_device):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        run, settings = disk / "run", dict(training__n_iters=4, training__eval_images=0)
        code, output = ended(start(ALONE, sys.executable, "-c", TRAIN, *words(run, **settings)))
        assert (code, output) == (74, f"error: {run}: No space left on device; what was saved stays\n")
        assert not list(run.rglob("*tmp*")) and not saved(run)
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        train.main(words(run, **settings), one_device)
        train.main(words(tmp_path / "other", **settings), one_device)
        chex.assert_trees_all_equal(final_state(run), final_state(tmp_path / "other"))
    finally:
        subprocess.run(["umount", "-l", disk])


def test_a_snapshot_that_diverges_is_said(tmp_path, one_device, capsys):
    """Training goes on, and ends with the same bits; started again, the snapshot is tried again, and said."""
    sampler = dict(
        sampling__method="pc", sampling__predictor="reverse_diffusion", sampling__steps=9, sampling__lambda_=1e9
    )
    settings = dict(training__n_iters=4, training__snapshot_freq=2, training__eval_images=0, sampling__group=4)
    train.main(words(tmp_path / "without", **settings), one_device)
    more = settings | sampler | dict(training__snapshot_sampling=True)
    for steps in ((2, 4), (4,)):
        cli.run(lambda: train.main(words(tmp_path / "run", **more), one_device))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(steps)
        for number, line in zip(steps, lines, strict=True):
            assert line.startswith(f"warning: step {number}: no image of samples: ") and "are not finite" in line
    assert saved(tmp_path / "run") == [2, 4] and not (tmp_path / "run/snapshot").exists()
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(tmp_path / "without"))


def test_an_average_that_is_nan_ends_training(tmp_path, one_device, capsys):
    """Before a checkpoint of it is written; the one that is there stays."""
    settings = config.load(SMALL, TINY | {"training.n_iters": "2"})
    setup = step.from_config(settings, one_device)
    state = jax.jit(setup.create, out_shardings=setup.state_shardings)(jax.random.key(0))
    ema = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state.ema)
    run = tmp_path / "run"
    with checkpoints.manager(run, alone=True) as manager:
        checkpoints.save(manager, state.replace(ema=ema, step=state.step + 2))
    (run / "config.json").write_text(config.to_json(settings))
    with pytest.raises(SystemExit) as stop:
        train.main(words(run, training__n_iters=4, training__eval_images=0), one_device)
    message = "error: step 3: the average of the weights is not finite; the last checkpoint is kept. "
    assert stop.value.code == 1 and capsys.readouterr().err.startswith(message) and saved(run) == [2]


def test_what_is_not_finite(one_device):
    setup = step.from_config(config.load(SMALL), one_device)
    state = jax.jit(setup.create)(jax.random.key(0))
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), state.params)
    assert keeping.not_finite(np.array([np.nan, 1.0]), state) == ""
    assert keeping.not_finite(np.array([1.0, np.nan]), state) == "the loss is nan"
    assert keeping.not_finite(1.0, state.replace(params=broken)) == "the weights are not finite"


def test_a_broken_loss_ends_the_program(capsys):
    waited = []
    with pytest.raises(SystemExit, match="^1$"):
        keeping.check_finite(7, float("nan"), lambda: waited.append("for the last checkpoint"))
    message = "error: step 7: the loss is nan; the last checkpoint is kept. A smaller optim.lr may help\n"
    assert capsys.readouterr().err == message and len(waited) == 1
    keeping.check_finite(7, 1.0, lambda: waited.append("in vain"))
    assert len(waited) == 1
