"""The images that a run began with, and what is said when they are others."""

import json

import numpy as np
import pytest
from support.commands import SMALL
from support.image_files import encode, noise, write_files

from score_st import config, train
from score_st.config import ConfigError
from score_st.data import identity


def test_what_it_covers():
    """Counts, shapes, order, and the pixels of 64 images with both ends."""
    images = noise(200, 4, 4, 1)
    about = identity.of(images)
    assert about["count"] == 200 and about["shape"] == [4, 4, 1] and identity.of(images.copy()) == about
    last, inside = images.copy(), images.copy()
    last[-1] ^= 1
    inside[1] ^= 1  # none of the 64
    assert identity.of(last) != about and identity.of(inside) == about
    assert identity.of(images[::-1]) != about and identity.of(images[:-1])["count"] == 199


def test_a_damaged_record(tmp_path):
    for content in ("", "[]", "{}", "null", '{"train": 3}', "\x00"):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(ConfigError, match="data.json: is damaged .*; delete it to accept"):
            identity.check(tmp_path, {"train": np.zeros((2, 4, 4, 1), np.uint8)})


def test_a_run_goes_on_with_the_same_images_alone(tmp_path, one_device):
    """Wherever they are; a folder that grew has another test set, which is refused until it is accepted."""
    write_files(tmp_path / "p", {f"{i:02d}.png": encode(noise(8, 8)) for i in range(20)})
    workdir = tmp_path / "run"

    def run(folder: str, steps: int) -> None:
        changes = {"dataset": "FOLDER", "dir": str(tmp_path / folder), "num_levels": 256}
        argv = [f"--config.data.{key}={value}" for key, value in changes.items()]
        argv += [f"--config.training.n_iters={steps}", "--config.training.eval_images=0", "--quiet"]
        train.main(["--config", SMALL, "--workdir", str(workdir), *argv], one_device)

    run("p", 1)
    recorded = json.loads((workdir / "data.json").read_text())
    assert [recorded[split]["count"] for split in ("train", "test")] == [18, 2]
    run("p/", 2)
    (tmp_path / "p").rename(tmp_path / "q")
    run("q", 3)
    assert config.from_workdir(workdir).data.dir == str(tmp_path / "q")
    write_files(tmp_path / "q", {"20.png": encode(noise(8, 8))})
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    message = "train has other images than at the beginning .18 images then, 19 now.*; give it those back"
    with pytest.raises(ConfigError, match=message):
        run("q", 4)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    (workdir / "data.json").unlink()
    run("q", 4)
    assert json.loads((workdir / "data.json").read_text())["train"]["count"] == 19
    assert max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()) == 4
