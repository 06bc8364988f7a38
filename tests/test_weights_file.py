"""Weights as safetensors files: there and back, with the configuration; what does not fit is named."""

import argparse
import json

import jax
import numpy as np
import pytest
from support.runs import DIGITS, SETTINGS

import score_st
from score_st import config, convert, weights_file
from score_st.config import ConfigError
from score_st.model import DiffusionModel
from score_st.runtime.workdir import claim_workdir
from score_st.training import checkpoints, step

numpy_files = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    """A workdir whose EMA differs from its weights, its state, and the words of a command on it."""
    folder, settings = tmp_path_factory.mktemp("weights") / "run", config.load(DIGITS, SETTINGS)
    claim_workdir(folder, settings, bool)
    current = step.from_config(settings, one_device).create(jax.random.key(0))
    current = current.replace(step=current.step + 7, ema=jax.tree.map(lambda leaf: leaf + 1, current.params))
    with checkpoints.manager(folder) as manager:
        checkpoints.save(manager, current)
    words = ["--config", DIGITS, *(f"--config.{key}={value}" for key, value in SETTINGS.items())]
    return folder, current, [str(word) for word in words]


def same(first, second) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), first, second))


@pytest.mark.parametrize("ema", ["ema", "raw"])
def test_there_and_back(run, one_device, tmp_path, ema):
    """The same bits, step and configuration; the file is read by safetensors itself."""
    folder, current, words = run
    path = tmp_path / "model.safetensors"
    convert.main([*words, "--workdir", str(folder), "--to", str(path), "--ema", ema], one_device)
    expected = current.ema if ema == "ema" else current.params
    tensors = numpy_files.load_file(path)
    assert sum(map(np.size, tensors.values())) == sum(leaf.size for leaf in jax.tree.leaves(expected))
    about = weights_file.header(path)
    assert about["step"] == "7" and about["weights"] == ema and json.loads(about["config"])["model"]["nf"]
    convert.main([*words, "--workdir", str(tmp_path / "back"), "--from", str(path)], one_device)
    settings = config.load(DIGITS, SETTINGS)
    back = checkpoints.open_for_reading(tmp_path / "back", settings, DiffusionModel.from_config(settings), one_device)
    assert same(back.params, expected) and same(back.ema, expected)
    assert int(back.step) == int(back.ema_updates) == 7
    with pytest.raises(ConfigError, match="already exists"):
        convert.main([*words, "--workdir", str(folder), "--to", str(path)], one_device)
    with pytest.raises(ConfigError, match="--ema raw: is for --to FILE.safetensors"):
        convert.main([*words, "--workdir", str(folder), "--to", str(tmp_path / "a.pth"), "--ema", "raw"], one_device)


def test_the_header_is_enough(run, one_device, tmp_path):
    """Without a configuration file: the workdir gets one, which is that of the run."""
    folder, current, words = run
    path = tmp_path / "model.safetensors"
    convert.main([*words, "--workdir", str(folder), "--to", str(path)], one_device)
    arguments = argparse.Namespace(source=path, workdir=tmp_path / "new", base=None, changes={"training.k": "3.0"})
    convert.import_weights(arguments, one_device)
    expected = config.load(DIGITS, SETTINGS)
    expected.training.k = 3.0
    assert config.load(tmp_path / "new/config.py").to_dict() == expected.to_dict()
    assert config.from_workdir(tmp_path / "new").to_dict() == expected.to_dict()


def test_a_file_is_loaded_without_a_workdir(run, one_device, tmp_path):
    """The same weights, step and settings as from the workdir."""
    folder, _, words = run
    path = tmp_path / "model.safetensors"
    convert.main([*words, "--workdir", str(folder), "--to", str(path)], one_device)
    settings = {"eval.rtol": 1e-2, "sampling.grid": "logsnr"}
    mine, other = score_st.load(path, settings=settings), score_st.load(folder, settings=settings)
    assert same(mine.params, other.params) and mine.step == other.step == 7
    assert mine.config.to_dict() == other.config.to_dict()
    x = np.ones((2, 8, 8, 1), np.float32)
    np.testing.assert_array_equal(mine.score(x, 0.5), other.score(x, 0.5))
    for wrong in ({"step": 7}, {"ema": "raw"}, {"ema": 0.1}):
        with pytest.raises(ConfigError, match="model.safetensors: has one set of weights; leave out step and ema"):
            score_st.load(path, **wrong)
    with pytest.raises(ConfigError, match="was made with model.parametrization="):
        score_st.load(path, settings={"model.parametrization": "velocity"})
    with pytest.raises(ConfigError, match="gone.safetensors: "):
        score_st.load(tmp_path / "gone.safetensors")


def test_files_that_do_not_fit(run, one_device, tmp_path):
    folder, _, words = run
    good = tmp_path / "good.safetensors"
    convert.main([*words, "--workdir", str(folder), "--to", str(good)], one_device)
    tensors, about = numpy_files.load_file(good), weights_file.header(good)
    name = sorted(tensors)[0]
    wrong = dict(tensors)
    wrong[name] = tensors[name][..., :1]
    nan, other = tensors | {name: tensors[name] * np.nan}, json.loads(about["config"])
    other["model"]["nf"] = 64
    key = {"config": json.dumps(other | {"x": 1})}
    files = {
        "missing": ({k: v for k, v in tensors.items() if k != name}, about, f"{name} is missing"),
        "surplus": (tensors | {"x": tensors[name]}, about, "x is surplus"),
        "shape": (wrong, about, f"{name} is float32.*; should be float32"),
        "type": (tensors | {name: tensors[name].astype(np.float16)}, about, f"{name} is float16"),
        "nan": (nan, about, f"{name} has numbers that are not finite"),
        "others": (tensors, {"format": "pt"}, "has no configuration in its header"),
        "step": (tensors, about | {"step": "-1"}, "the step in its header is '-1'"),
        "nf": (tensors, about | {"config": json.dumps(other)}, r"was made with model.nf=64 \(not \d+\)"),
        "key": (tensors, about | key, "the configuration in its header: .*x"),
    }
    for kind, (arrays, header, _) in files.items():
        numpy_files.save_file(arrays, tmp_path / f"{kind}.safetensors", header)
    content = good.read_bytes()
    for kind, part in (("cut", content[:-1]), ("text", b"text"), ("none", b"")):
        (tmp_path / f"{kind}.safetensors").write_bytes(part)
        files[kind] = ({}, {}, f"{kind}.safetensors: not a complete safetensors file")
    files["gone"] = ({}, {}, "gone.safetensors: ")
    for kind, (_, _, message) in files.items():
        arguments = [*words, "--workdir", str(tmp_path / "new"), "--from", str(tmp_path / f"{kind}.safetensors")]
        with pytest.raises(ConfigError, match=message) as error:
            convert.main(arguments, one_device)
        assert "\n" not in str(error.value), kind
    assert not (tmp_path / "new").exists()
