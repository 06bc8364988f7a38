"""A workdir from before the package was divided: it loads, and training resumes to the same numbers."""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from support.commands import DIGITS, OFFICIAL_DIGITS, refused

import score_st
from score_st import config, train
from score_st import eval as evaluate

FIXTURE = Path(__file__).parent / "fixtures/workdir_before.zip"
SETTINGS = {"model.nf": "8", "model.ch_mult": "(1,)", "model.num_res_blocks": "1", "model.attention": "False"}
SETTINGS |= {"training.batch_size": "16", "training.log_freq": "1", "training.eval_freq": "1"}
SETTINGS |= {"training.snapshot_freq": "100", "training.snapshot_freq_for_preemption": "2"}
SETTINGS |= {"eval.enable_bpd": "False", "training.snapshot_sampling": "False", "training.n_iters": "4"}


@pytest.fixture
def workdir(tmp_path):
    """After two steps."""
    with zipfile.ZipFile(FIXTURE) as file:
        file.extractall(tmp_path)
    return tmp_path


def arguments(workdir, **changes):
    settings = SETTINGS | changes
    return [
        "--config",
        OFFICIAL_DIGITS,
        "--workdir",
        str(workdir),
        *(f"--config.{key}={v}" for key, v in settings.items()),
    ]


def test_scores_and_samples(workdir):
    model, expected = score_st.load(workdir), np.load(workdir / "expected.npz")
    assert model.step == 2
    x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 8, 8, 1)
    np.testing.assert_allclose(model.score(x, 0.3), expected["score"], rtol=1e-4, atol=1e-9)
    images = model.sample(jax.random.key(0), 2, sampler="ddim", steps=5)
    np.testing.assert_array_equal(images, expected["images"])


def test_training_resumes(workdir, one_device):
    """Its log goes on with the numbers that the old code logged."""
    train.main(arguments(workdir), one_device)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    expected = [json.loads(line) for line in (workdir / "expected.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, old in zip(lines[2:], expected, strict=True):
        assert list(line) == [*old, "eval_nelbo", "tflops_per_s", "arithmetic", "goodput"]
        for key in ("loss", "gradient_norm", "tau", "eval_loss"):
            assert line[key] == pytest.approx(old[key], rel=1e-5)


def test_a_key_that_it_lacks_counts_as_its_default(workdir, capsys):
    stored = config.flatten(json.loads((workdir / "config.json").read_text()))
    new = config.flatten(config.default()).keys() - stored.keys()
    assert {"training.time_sampler", "training.weighting", "model.parametrization"} <= new
    error = refused(capsys, train.main, arguments(workdir, **{"training.time_sampler": "uniform"}))
    assert "training.time_sampler='' (not 'uniform')" in error


def test_it_is_not_evaluated_as_a_preconditioned_network(workdir, capsys):
    """The digits' own configuration has another form of the network than runs from before it had."""
    argv = [DIGITS if word == OFFICIAL_DIGITS else word for word in arguments(workdir)]
    error = refused(capsys, evaluate.main, argv)
    assert "was made with model.data_mean=0.0 (not -0.3663), model.data_std=0.5 (not 0.7086)" in error
    assert "model.parametrization='' (not 'edm')" in error
