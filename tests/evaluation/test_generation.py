"""The commands that sample: shards, resuming after a kill, pictures, and refusals."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import commands, told  # noqa: F401
from support.environment import QUICK

from score_st import config, edit, sample, train
from score_st import eval as eval_command
from score_st.data import pipeline
from score_st.data.labels import labels_of
from score_st.evaluation import editing, generation
from score_st.model import DiffusionModel

ROOT = Path(__file__).parents[2]


def test_a_killed_run_resumes_with_the_next_shard(arguments, one_device, tmp_path):
    """SIGKILL after the second shard of many; the images are those of an uninterrupted run; its shards stay."""
    out, steps = tmp_path / "cut", "--config.sampling.steps=400"  # long enough to be caught at it
    command = [sys.executable, "-m", "score_st.sample", *arguments(steps, "--num", 30, "--out", out)]
    environment = os.environ | {"XLA_FLAGS": QUICK}  # one device
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("samples_*.npz"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("samples_*.npz")}
    assert 2 <= len(before) < 5
    sample.main(arguments(steps, "--num", 30, "--out", out), one_device)
    sample.main(arguments(steps, "--num", 30, "--out", tmp_path / "uncut"), one_device)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    first, second = (generation.read_shards(tmp_path / name) for name in ("cut", "uncut"))
    assert first.shape == (30, 8, 8, 1) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert len(list(out.glob("samples_*.npz"))) == 5 and not list(out.glob(".*"))


def test_more_images_continue_where_fewer_ended(arguments, one_device, tmp_path, capsys):
    sample.main(arguments("--num", 8, "--out", tmp_path / "a", "--png", tmp_path / "8.zip"), one_device)
    few = generation.read_shards(tmp_path / "a")
    sample.main(arguments("--num", 14, "--out", tmp_path / "a", "--png", tmp_path / "png"), one_device)
    many = generation.read_shards(tmp_path / "a")
    stretched = np.round(many[..., 0] * (255 / 16)).astype(np.uint8)
    assert len(list((tmp_path / "png").iterdir())) == 14
    np.testing.assert_array_equal(Image.open(tmp_path / "png/000013.png"), stretched[13])
    with zipfile.ZipFile(tmp_path / "8.zip") as archive:
        assert archive.namelist() == [f"{i:06d}.png" for i in range(8)]
        np.testing.assert_array_equal(Image.open(io.BytesIO(archive.read("000007.png"))), stretched[7])
    with pytest.raises(config.ConfigError, match="has other files, such as 000008.png; name a new folder"):
        sample.main(arguments("--num", 8, "--out", tmp_path / "a", "--png", tmp_path / "png"), one_device)
    assert (len(few), len(many)) == (8, 14)
    np.testing.assert_array_equal(few, many[:8])
    about = json.loads((tmp_path / "a/samples.json").read_text())
    assert about["images"] == 14 and about["nfe"] == 5 and about["settings"]["sampling.batch_size"] == 6
    assert "samples 14/14" in capsys.readouterr().out
    grid = Image.open(tmp_path / "a/grid.png")
    assert grid.size[0] >= 4 * 10 and np.asarray(grid).std() > 10


def test_shards_that_are_of_another_shape_are_drawn_again(arguments, one_device, tmp_path):
    sample.main(arguments("--num", 8, "--out", tmp_path / "a"), one_device)
    path, before = tmp_path / "a/samples_0000000.npz", generation.read_shards(tmp_path / "a")
    shard = dict(np.load(path))
    twins = [{"samples": shard["samples"][:, :4]}, {"samples": shard["samples"][1:]}, {"nfe": shard["nfe"][:2]}]
    twins += [{"samples": shard["samples"].astype(np.float32)}, {"nfe": shard["nfe"] * np.nan}]
    for twin in twins:
        np.savez(path, **shard | twin)
        sample.main(arguments("--num", 8, "--out", tmp_path / "a"), one_device)
        np.testing.assert_array_equal(generation.read_shards(tmp_path / "a"), before)


@pytest.mark.parametrize("content", ["[]", '{"settings": [1]}', "[" * 10**5, "{}", "null"])
def test_a_folder_with_a_damaged_note_is_not_taken(content, tmp_path):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(config.ConfigError, match="can't be used .*; name another folder"):
        generation.claim_folder(tmp_path, {"seed": 0})
    assert (tmp_path / "samples.json").read_text() == content


def test_a_folder_keeps_its_samples(arguments, one_device, tmp_path):
    sample.main(arguments("--num", 2, "--out", tmp_path / "a"), one_device)
    before = (tmp_path / "a/samples_0000000.npz").read_bytes()
    with pytest.raises(config.ConfigError, match=r"holds samples of seed=0 \(not 1\).*another folder"):
        sample.main(arguments("--num", 2, "--out", tmp_path / "a", "--seed", 1), one_device)
    assert (tmp_path / "a/samples_0000000.npz").read_bytes() == before
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b/mine.npz", x=1)
    with pytest.raises(config.ConfigError, match="not of this command"):
        sample.main(arguments("--num", 2, "--out", tmp_path / "b"), one_device)
    (tmp_path / "file").write_text("")
    with pytest.raises(config.ConfigError, match="can't be used"):
        sample.main(arguments("--num", 2, "--out", tmp_path / "file/c"), one_device)
    with pytest.raises(config.ConfigError, match="sampling.group=0: should be 1 or more"):
        sample.main(arguments("--config.sampling.group=0"), one_device)


def test_trajectory_starts_as_noise_and_ends_as_the_samples(arguments, one_device, tmp_path):
    sample.main(arguments("--num", 4, "--out", tmp_path, "--trajectory", "--config.sampling.steps=60"), one_device)
    film = Image.open(tmp_path / "trajectory.gif")
    assert film.n_frames == sample.FRAMES
    first = np.asarray(film.convert("L"), float)
    film.seek(film.n_frames - 1)
    assert np.abs(np.asarray(film.convert("L"), float) - first).mean() > 5


@pytest.mark.parametrize("task", ["inpaint", "interpolate"])
def test_edited_test_images(arguments, one_device, tmp_path, task):
    """The known half is in every draw; the ends of an interpolation are the images, but for the solver's error."""
    solver = ["--config.sampling.rtol=1e-4", "--config.sampling.atol=1e-4"]
    more = solver if task == "interpolate" else ["--steps", 5]
    edit.main(arguments("--task", task, "--num", 2, "--out", tmp_path / "a.png", *more), one_device)
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("L"), float)
    columns = 2 + (editing.DRAWS if task == "inpaint" else 8)
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


def test_edits_that_can_not_be(arguments, one_device, tmp_path):
    with pytest.raises(config.ConfigError, match="DIGITS has 1 channels, not 3"):
        edit.main(arguments("--task", "colourise"), one_device)
    with pytest.raises(config.ConfigError, match="can't keep what is known"):
        edit.main(arguments("--task", "inpaint", "--sampler", "ode"), one_device)
    for more, message in (
        (("--out", tmp_path / "x.xyz"), "x.xyz: Pillow can't write such files; end it in .png"),
        (("--out", tmp_path / "x"), "can't write such files"),
        (("--out", tmp_path / "x.xbm"), "can't write such files"),  # which are black and white
        (("--out", tmp_path), "is a folder; name a file, such as .*picture.png"),
    ):
        with pytest.raises(config.ConfigError, match=message):
            edit.main(arguments("--task", "inpaint", *more), one_device)
    for number in (-3, 0):
        with pytest.raises(SystemExit, match="2"):
            edit.main(arguments("--task", "inpaint", "--num", number), one_device)
    assert not list(tmp_path.iterdir())


def test_classes_of_samples():
    """Image i has class i modulo their number, or all have one, or none; no others, and no guidance without."""
    settings = commands.tiny(model__num_classes=3)
    model, indices = DiffusionModel.from_config(settings), np.arange(7)
    given = lambda label: generation.classes(commands.tiny(sampling__label=label), model, indices).tolist()
    assert given("all") == [0, 1, 2, 0, 1, 2, 0] and given("2") == [2] * 7 and given("none") == [-1] * 7
    with pytest.raises(config.ConfigError, match="label=3: the network has classes 0 ... 2"):
        given("3")
    plain = DiffusionModel.from_config(commands.tiny())
    assert generation.classes(commands.tiny(), plain, indices) is None
    with pytest.raises(config.ConfigError, match="label=0: the network has no classes"):
        generation.classes(commands.tiny(sampling__label=0), plain, indices)
    with pytest.raises(config.ConfigError, match="class_guidance=2.0: the network has no classes"):
        generation.score_given(commands.tiny(sampling__class_guidance=2), plain, {}, None)
    with pytest.raises(config.ConfigError, match="class_guidance_from=3: should be below"):
        config.check(commands.tiny(sampling__class_guidance_from=3, sampling__class_guidance_to=2))


def told_model(**changes):
    """A network of three numbers, one for each class, its settings and its weights."""
    settings = dict(model__name="told", model__num_classes=3, sampling__method="pc", sampling__steps=6) | changes
    settings = commands.tiny(**settings)
    model = DiffusionModel.from_config(settings)
    return settings, model, {"scale": jnp.array([0.1, 0.5, 1.0])}


def test_trajectories_of_classes():
    """Each image has its own; without the last step's denoising the last frame is the image."""
    settings, model, params = told_model(sampling__noise_removal=False)
    run = lambda frames: generation.generator(settings, model, 0, frames)(params, jnp.arange(4))
    film, still = run(3), run(1)
    assert film["frames"].shape == (4, 3, 8, 8, 1) and len(np.unique(film["frames"][:, 0])) > 5
    np.testing.assert_array_equal(film["samples"], still["samples"])
    assert np.abs(film["frames"][:, -1].astype(int) - still["samples"]).max() <= 1


def test_edits_are_given_the_classes_of_the_images():
    """Each of its own, in whatever batch; sampling.label is another one, or none, and there is guidance."""
    x, labels = jnp.zeros((2, 8, 8, 1)), jnp.array([0, 2])

    def drawn(labels, **changes):
        settings, model, params = told_model(sampling__predictor="reverse_diffusion", **changes)
        return np.asarray(editing.complete(settings, model, params, x, 0, False, labels))[:, 2:]

    own, none = drawn(labels), drawn(None)
    named = {label: drawn(labels, sampling__label=label) for label in ("0", "2", "none")}
    np.testing.assert_allclose(own[0], named["0"][0], atol=1e-6)
    np.testing.assert_allclose(own[1], named["2"][1], atol=1e-6)
    np.testing.assert_allclose(named["none"], none, atol=1e-6)
    assert np.abs(own - none).max(axis=(1, 2, 3, 4)).min() > 1e-2
    assert np.abs(drawn(labels, sampling__class_guidance=3) - own).max() > 1e-2


def test_a_row_of_samples_for_each_class(tmp_path, one_device):
    """`train`, `sample` and `eval` with classes, of a network of a few numbers."""
    settings = dict(model__name="told", model__num_classes=10, training__n_iters=2, training__eval_images=16)
    settings |= dict(training__snapshot_sampling=False, eval__enable_bpd=False, optim__warmup=0)
    settings |= dict(sampling__method="pc", sampling__steps=2, eval__batch_size=104, eval__nll_iter=0)
    settings |= dict(eval__nelbo_iter=1, eval__gradient_images=0)
    common = ["--config", commands.OFFICIAL_DIGITS, *commands.overrides(**settings), "--workdir", tmp_path / "run"]
    argv = [str(word) for word in common]
    train.main(argv, one_device)
    sample.main([*argv, "--num", "40"], one_device)
    picture = np.asarray(Image.open(tmp_path / "run/samples/classes.png"))
    assert picture.shape[0] > 2 * picture.shape[1]  # ten rows of four
    figures = eval_command.main(argv, one_device)
    images = pipeline.load(commands.tiny(), "test")
    counts = np.bincount(labels_of(images), minlength=10)
    assert figures["images_by_class"] == counts.tolist()
    means = np.array(figures["nelbo_by_class"])
    assert np.sum(means * counts) / counts.sum() == pytest.approx(figures["nelbo"], rel=1e-6) and len(set(means)) == 10
