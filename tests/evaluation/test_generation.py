"""The commands that sample: shards, going on after a kill, pictures, and what they refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from score_st import config, edit, sample
from score_st.evaluation import generation
from score_st.runtime import sharding
from score_st.runtime.workdir import claim_workdir
from score_st.training import checkpoints, step

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py")
SETTINGS = {"model.nf": "8", "model.ch_mult": "(1,)", "model.attention": "False", "sampling.group": "4"}
SETTINGS |= {"sampling.method": "pc", "sampling.batch_size": "6", "model.num_scales": "4"}
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """With a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    made = config.load(DIGITS, SETTINGS)
    claim_workdir(folder, made)
    with checkpoints.manager(folder) as manager:
        setup = step.from_config(made, sharding.mesh(devices=jax.devices()[:1]))
        checkpoints.save(manager, setup.create(jax.random.key(0)))
    return folder


def arguments(workdir, *more):
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    return ["--config", DIGITS, "--workdir", str(workdir), *settings, *map(str, more)]


def test_a_killed_run_goes_on_with_the_next_shard(workdir, tmp_path):
    """SIGKILL after the second shard of many; the images are those of a run in one piece, shards of which stay."""
    out, steps = tmp_path / "cut", "--config.sampling.steps=400"  # long enough to be caught at it
    command = [sys.executable, "-m", "score_st.sample", *arguments(workdir, steps, "--num", 50, "--out", out)]
    environment = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("samples_*.npz"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("samples_*.npz")}
    assert 2 <= len(before) < 9
    sample.main(arguments(workdir, steps, "--num", 50, "--out", out))
    sample.main(arguments(workdir, steps, "--num", 50, "--out", tmp_path / "whole"))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    first, second = (generation.read_shards(tmp_path / name) for name in ("cut", "whole"))
    assert first.shape == (50, 8, 8, 1) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert len(list(out.glob("samples_*.npz"))) == 9 and not list(out.glob(".*"))


def test_more_images_go_on_where_fewer_ended(workdir, tmp_path, capsys):
    sample.main(arguments(workdir, "--num", 8, "--out", tmp_path / "a"))
    few = generation.read_shards(tmp_path / "a")
    sample.main(arguments(workdir, "--num", 14, "--out", tmp_path / "a"))
    many = generation.read_shards(tmp_path / "a")
    assert (len(few), len(many)) == (8, 14)
    np.testing.assert_array_equal(few, many[:8])
    about = json.loads((tmp_path / "a/samples.json").read_text())
    assert about["images"] == 14 and about["nfe"] == 5 and about["settings"]["sampling.batch_size"] == 6
    assert "samples 14/14" in capsys.readouterr().out
    grid = Image.open(tmp_path / "a/grid.png")
    assert grid.size[0] >= 4 * 10 and np.asarray(grid).std() > 10


def test_a_folder_keeps_its_samples(workdir, tmp_path):
    sample.main(arguments(workdir, "--num", 2, "--out", tmp_path / "a"))
    before = (tmp_path / "a/samples_0000000.npz").read_bytes()
    with pytest.raises(config.ConfigError, match=r"holds samples of seed=0 \(not 1\).*another folder"):
        sample.main(arguments(workdir, "--num", 2, "--out", tmp_path / "a", "--seed", 1))
    assert (tmp_path / "a/samples_0000000.npz").read_bytes() == before
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b/mine.npz", x=1)
    with pytest.raises(config.ConfigError, match="not of this command"):
        sample.main(arguments(workdir, "--num", 2, "--out", tmp_path / "b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(config.ConfigError, match="can't be used"):
        sample.main(arguments(workdir, "--num", 2, "--out", tmp_path / "file/c"))
    with pytest.raises(config.ConfigError, match="sampling.group=0: should be 1 or more"):
        sample.main(arguments(workdir, "--config.sampling.group=0"))


def test_trajectory_starts_as_noise_and_ends_as_the_samples(workdir, tmp_path):
    sample.main(arguments(workdir, "--num", 4, "--out", tmp_path, "--trajectory", "--config.sampling.steps=60"))
    film = Image.open(tmp_path / "trajectory.gif")
    assert film.n_frames == sample.FRAMES
    first = np.asarray(film.convert("L"), float)
    film.seek(film.n_frames - 1)
    assert np.abs(np.asarray(film.convert("L"), float) - first).mean() > 5


@pytest.mark.parametrize("task", ["inpaint", "interpolate"])
def test_edited_test_images(workdir, tmp_path, task):
    """The known half is in every draw; the ends of an interpolation are the images, but for the solver's error."""
    more = ["--config.sampling.rtol=1e-4", "--config.sampling.atol=1e-4"] if task == "interpolate" else []
    edit.main(arguments(workdir, "--task", task, "--num", 2, "--steps", 5, "--out", tmp_path / "a.png", *more))
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("L"), float)
    columns = 2 + (edit.DRAWS if task == "inpaint" else 8)
    scale = 512 // (columns * 10 + 2)
    sheet = sheet[scale // 2 :: scale, scale // 2 :: scale]
    assert sheet.shape == (2 * 10 + 2, columns * 10 + 2)
    cell = lambda row, column: sheet[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column]
    level = 255 / 16
    for row in range(2):
        if task == "inpaint":
            for column in range(2, columns):
                assert np.abs(cell(row, column)[:4] - cell(row, 0)[:4]).max() <= level + 1
            assert np.abs(cell(row, 2) - cell(row, 3))[4:].max() > level
        else:
            assert np.abs(cell(row, 1) - cell(row, 0)).mean() < level
            assert np.abs(cell(row, columns - 2) - cell(row, columns - 1)).mean() < level
            np.testing.assert_array_equal(cell(row, 0), cell(1 - row, columns - 1))


def test_edits_that_can_not_be(workdir):
    with pytest.raises(config.ConfigError, match="DIGITS has 1 channels, not 3"):
        edit.main(arguments(workdir, "--task", "colourise"))
    with pytest.raises(config.ConfigError, match="can't keep what is known"):
        edit.main(arguments(workdir, "--task", "inpaint", "--sampler", "ode"))
