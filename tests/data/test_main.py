"""`python -m score_st.data`, which looks at a data set and prepares it."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image

from score_st.config import ConfigError, load
from score_st.data import __main__ as data_command
from score_st.data import pipeline, preprocessing


def test_looking_at_a_data_set(image_folder, capsys):
    data_command.main(["--config", str(image_folder / "mine.py"), "--workdir", str(image_folder / "out")])
    figures = json.loads((image_folder / "out/data_FOLDER.json").read_text())
    train = figures["train"]
    images = np.asarray(pipeline.load(load(image_folder / "mine.py"), "train"))
    assert (train["count"], figures["test"]["count"], train["shape"]) == (20, 4, [8, 8, 3])
    np.testing.assert_allclose(train["mean"], images.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(train["std"], images.std((0, 1, 2)), atol=1e-4)
    assert train["max"] == images.max() and train["repeated"] == 0
    assert train["crc32"] == f"{zlib.crc32(images.tobytes()):08x}" and figures["images_per_second"] > 0
    assert Image.open(image_folder / "out/data_FOLDER.png").size[0] > 400
    assert "train: count 20, shape [8, 8, 3]" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{}, {"data.centered": "False"}, {"data.dequantization": "none"}])
def test_mean_and_deviation_of_scaled_data(tmp_path, capsys, changes):
    """For a preconditioned network, as the scaler makes them: of the digits' levels −0.39 and 0.752."""
    argv = ["--config", "vp/DIGITS/ddpmpp_nll_st", "--workdir", str(tmp_path)]
    data_command.main(argv + [f"--config.{key}={value}" for key, value in changes.items()])
    settings = load("vp/DIGITS/ddpmpp_nll_st", changes)
    images = np.asarray(pipeline.load(settings, "train"))
    u = np.random.default_rng(0).uniform(size=images.shape).astype(np.float32)
    x = np.asarray(preprocessing.scaler_from_config(settings).forward(images, u), np.float64)
    figures = json.loads((tmp_path / "data_DIGITS.json").read_text())["scaled"]
    np.testing.assert_allclose([figures["model.data_mean"], figures["model.data_std"]], [x.mean(), x.std()], atol=1e-3)
    assert f"model.data_mean={figures['model.data_mean']}" in capsys.readouterr().out
    if "data.dequantization" in changes:
        np.testing.assert_allclose([figures["model.data_mean"], figures["model.data_std"]], [-0.39, 0.752], atol=2e-3)


def test_broken_files_are_counted(image_folder, capsys):
    """Every one is named, of both splits, also where the first is broken; without them the data set is fine."""
    broken = ["train/00.png", "train/03.png", "train/05.png", "train/11.png", "test/20.png"]
    for name in broken:
        (image_folder / "photographs" / name).write_bytes(b"broken")
    argv = ["--config", str(image_folder / "mine.py"), "--workdir", str(image_folder / "out")]
    message = "4 of 20 images of train are broken: .*00.png.*03.png.*05.png.*; 1 of 4 images of test are .*20.png"
    with pytest.raises(ConfigError, match=message):
        data_command.main(argv)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("broken: ")]
    assert len(lines) == 5 and all(name in line for name, line in zip(broken, lines, strict=True))
    assert not (image_folder / "out").exists()
    data_command.main([*argv, "--config.data.skip_unreadable=True"])
    figures = json.loads((image_folder / "out/data_FOLDER.json").read_text())
    assert (figures["train"]["count"], figures["test"]["count"]) == (16, 3)
