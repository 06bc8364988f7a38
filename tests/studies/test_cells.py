"""Cells: trained as `score_st.train` does, claimed by a lease, resumed to the bit."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support import tiny_study
from support.commands import ROOT

from score_st.config import check
from score_st.data import pipeline
from score_st.runtime import lease, sharding
from score_st.studies import cells, definition
from score_st.studies.training import Run, Trainer, train_side_by_side
from score_st.training import loop
from score_st.training import step as stepping

FILE = ROOT / "tests/support/tiny_study.py"


@pytest.fixture(scope="module")
def both():
    return list(tiny_study.STUDY.cells)


class Killed(Exception):
    pass


def killed_after(jobs: int):
    """A function that raises when it is called for the next job."""
    left = iter(range(jobs))

    def keep_going() -> None:
        if next(left, None) is None:
            raise Killed

    return keep_going


def test_a_study_that_is_killed_twice(both, one_device, tmp_path):
    """It has the same numbers as an undisturbed one, to the bit, and leaves no states."""
    for cell in both:
        cells.CellRunner(cell, tmp_path / "undisturbed", one_device)()
        for jobs in (1, 3):  # after the first training; then after the measure at step 4 and a training
            with pytest.raises(Killed):
                cells.CellRunner(cell, tmp_path / "killed", one_device)(killed_after(jobs))
        cells.CellRunner(cell, tmp_path / "killed", one_device)()
    values = {
        name: [cells.Results(cell, tmp_path / name).values() for cell in both] for name in ("undisturbed", "killed")
    }
    assert values["undisturbed"] == values["killed"]
    assert [key for key in values["killed"][0] if key[2] == "nelbo"] == [(2, "ema", "nelbo"), (4, "ema", "nelbo")]
    assert all(set(by_seed) == {0, 1} for figures in values["killed"] for by_seed in figures.values())
    assert values["killed"][0] != values["killed"][1]
    assert not list(tmp_path.rglob("state-*"))


def test_training_is_that_of_the_train_command(both, one_device):
    """One program for all seeds has the weights of `loop`'s with the seed in its configuration."""
    config = both[0].config.copy_and_resolve_references()
    images = {split: pipeline.load(config, split) for split in ("train", "test")}
    trainer = Trainer(config, images, one_device)
    ours, logged = trainer.train(trainer.start(3), 3, 3)
    with config.unlocked():
        config.seed = 3
    setup = stepping.from_config(config, one_device)
    state, key = jax.jit(setup.create)(jax.random.fold_in(jax.random.key(3), 2**31 - 1)), jax.random.key(3)
    steps, batches = loop.compiled_steps(setup), loop.stream(config, images["train"]).batches(0, 3)
    for i in range(3):
        state, metrics = steps(state, [next(batches)], key)
        assert logged["gradient_norm"][i] == metrics["gradient_norm"]
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_seeds_side_by_side(both, one_device, tmp_path):
    """One program for several seeds, as on an accelerator: the states of each seed alone, to rounding."""
    cell = both[1]
    images = {split: pipeline.load(cell.config, split) for split in ("train", "test")}
    trainer = Trainer(cell.config, images, one_device)
    alone = [Run(trainer, seed, cell.steps, tmp_path / "alone") for seed in range(3)]
    together = [Run(trainer, seed, cell.steps, tmp_path / "together") for seed in range(3)]
    for step in cell.steps:
        together[1].at(step)  # it was trained before; only the others are left
    train_side_by_side(together)
    stored = [run.states.path((step,)) for run in together for step in cell.steps]
    assert all(path.exists() for path in stored)
    for step in cell.steps:
        for one, other in zip(alone, together, strict=True):
            (state, logged), (expected, expected_logged) = other.at(step), one.at(step)
            assert int(state.step) == step == len(logged["loss"])
            for name in logged:
                np.testing.assert_allclose(logged[name], expected_logged[name], rtol=1e-5)
            for leaf, other_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(leaf, other_leaf, rtol=1e-3, atol=1e-5)
    assert trainer.train_side_by_side([trainer.start(0), trainer.start(5)], [0, 5], 1)[0][1]["loss"].shape == (1,)


def test_a_cell_on_an_accelerator(both, one_device, tmp_path, monkeypatch):
    """Its figures are those of a CPU, to rounding, from seeds side by side and from larger groups of images."""
    cell = both[1]
    cells.CellRunner(cell, tmp_path / "cpu", one_device)()
    monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")
    runner = cells.CellRunner(cell, tmp_path / "gpu", one_device)
    section = runner.setting.config.eval
    assert (section.batch_size, section.group, runner.setting.config.sampling.group) == (297, 297, 500)
    check(runner.setting.config)
    runner()
    on_cpu, on_gpu = (cells.Results(cell, tmp_path / name).values() for name in ("cpu", "gpu"))
    assert on_cpu.keys() == on_gpu.keys() and len(on_gpu[4, "ema", "nelbo"]) == 2
    for key, by_seed in on_cpu.items():
        assert on_gpu[key] == pytest.approx(by_seed, rel=1e-4), key
    assert not list(tmp_path.rglob("state-*"))


def test_arms_share_everything_but_tau(both, one_device):
    """x, u, z and z_rec of a step, and the weights before the first one."""
    setups = [stepping.from_config(cell.config, one_device) for cell in both]
    images = np.arange(16 * 64, dtype=np.uint8).reshape(16, 8, 8, 1) % 17
    one, each = (stepping.draw(setup, images, jax.random.key(5)) for setup in setups)
    for name in ("x", "u", "z", "z_rec"):
        np.testing.assert_array_equal(one[name], each[name])
    assert len(np.unique(one["tau"])) == 1 and len(np.unique(each["tau"])) == 16
    first, second = (jax.jit(setup.create)(jax.random.key(0)) for setup in setups)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def complete(cell, out: Path) -> None:
    """Stores results, as a run of the cell does."""
    results = cells.Results(cell, out, writes=True)
    for seed in range(cell.seeds):
        for name, job in results.jobs(seed):
            results.lines[name](job, lambda: {"ema/nelbo": 1.0})


def test_cells_of_others_come_last(both, tmp_path):
    """A cell that another process has is not yielded; once it gives its lease back, it is."""
    other = lease.Lease(tmp_path / "T/one", 1.0)
    other.acquire()
    released = threading.Timer(2.0, other.release)
    released.start()
    began, seen = time.monotonic(), []
    for cell, _ in cells.claimed(both, tmp_path, seconds=1.0):
        seen.append((cell.name, time.monotonic() - began > 1.9))
        complete(cell, tmp_path)
    assert seen == [("T/each", False), ("T/one", True)]
    assert not list(tmp_path.rglob(".lease*"))


@pytest.mark.slow
def test_a_process_that_is_killed_twice(tmp_path):
    """SIGKILL, and the next process resumes: study.json is the same."""
    found = {}
    for name, kills in (("undisturbed", 0), ("killed", 2)):
        command = [sys.executable, "-m", "score_st.study", "--study", FILE, "--out", tmp_path / name, "--quiet"]
        for _ in range(kills):
            process = subprocess.Popen(command, cwd=ROOT)
            before = size(tmp_path / name)
            while size(tmp_path / name) == before and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True)
        content = json.loads((tmp_path / name / "study.json").read_text())
        for cell in content["parts"]["T"]["cells"].values():
            del cell["hours"]
        found[name] = content
    assert found["killed"] == found["undisturbed"]
    assert found["killed"]["comparisons"][0]["difference"] != 0


def size(out: Path) -> int:
    """What is stored there."""
    return sum(path.stat().st_size for path in out.rglob("results.jsonl"))


def test_the_tiny_study_is_read():
    study = definition.read(FILE)
    assert [cell.name for cell in study.cells] == ["T/one", "T/each"]
