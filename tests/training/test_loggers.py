"""Where the numbers of a run go."""

import csv
import json

import numpy as np
import pytest
from support.image_files import settings

from score_st import config, train
from score_st.config import ConfigError
from score_st.training import loggers, loop


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_column_for_each_number(tmp_path):
    """New columns come on the right; NaN and text are left out, as for TensorBoard; all digits are kept."""
    log = loop.Log(tmp_path, 0, 9, names=("csv",))
    log(1, loss=float(np.float32(0.1)))
    log(2, loss=2.0, eval_loss=1 / 3, nan=np.nan, device="cpu")
    log(3, loss=3.0)
    assert [list(row.values()) for row in rows(tmp_path)] == [
        ["1", repr(float(np.float32(0.1))), ""], ["2", "2.0", repr(1 / 3)], ["3", "3.0", ""]
    ]  # fmt: skip
    assert not (tmp_path / "tensorboard").exists()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,4.0,\n5,5.0,0.2")  # torn
    log = loop.Log(tmp_path, 3, 9, names=("csv",))
    log(4, loss=4.5, bpd=7.0)
    assert [row["loss"] for row in rows(tmp_path)] == [repr(float(np.float32(0.1))), "2.0", "3.0", "4.5"]
    assert rows(tmp_path)[3] == {"step": "4", "loss": "4.5", "eval_loss": "", "bpd": "7.0"}
    loop.Log(tmp_path, 4, 9, names=("csv",))(5, loss=5.0)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]


def test_all_loggers_get_the_same_numbers(tmp_path):
    log = loop.Log(tmp_path, 0, 9, names=("tensorboard", "csv"))
    log(2, loss=2.5, nan=np.nan)
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in path.read_bytes() and b"nan" not in path.read_bytes()
    assert rows(tmp_path) == [{"step": "2", "loss": "2.5"}]


def test_wandb_offline(tmp_path, monkeypatch):
    """It keeps the run for `wandb sync`, and a run that is resumed has the same id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 2):
        log = loop.Log(tmp_path, start, 9, names=("wandb",), settings={"training.k": 1.0})
        log(start + 1, loss=0.25)
        identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
        assert log.loggers[0].run.id == identity and log.loggers[0].run.config["training.k"] == 1.0
        log.loggers[0].run.finish()
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files and b"loss" in files[0].read_bytes()


@pytest.mark.parametrize(
    "text, expected",
    [("", []), ("tensorboard", ["tensorboard"]), ("csv, tensorboard,csv", ["csv", "tensorboard"])],
)
def test_names(text, expected):
    c = settings("DIGITS", "")
    c.training.loggers = text
    assert loggers.names(c) == expected


def test_an_unknown_logger_is_refused_before_anything_is_written(tmp_path):
    c = config.load("vp/DIGITS/ddpmpp_nll_st", {"training.loggers": "tensorboard,cvs"})
    with pytest.raises(ConfigError, match="config.training.loggers: unknown 'cvs'; choose from .*did you mean csv?"):
        train.train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
