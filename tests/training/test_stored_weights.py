"""Runs with averages: resumed, divided among devices, absent; and --ema of the commands."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from support.commands import SMALL, overrides, refused
from support.processes import final_state, stored_averages

import score_st
from score_st import config, edit, sample, sweep, train
from score_st import eval as eval_command
from score_st.config import ConfigError
from score_st.evaluation import efficientnet
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.runtime import sharding
from score_st.training import averages, checkpoints, state, step

STEPS = 40
RUN = dict(training__n_iters=STEPS, training__log_freq=40, training__eval_freq=40, training__snapshot_freq=20)
RUN |= dict(training__snapshot_freq_for_preemption=100, training__averages=20)
QUICK = dict(eval__nll_iter=0, eval__gradient_images=0, eval__batch_size=104, sampling__group=4)
TRAINING = ["--config", SMALL, *overrides(**RUN)]
COMMAND = ["--config", SMALL, *overrides(**QUICK)]


@pytest.fixture(scope="module")
def run(one_device, tmp_path_factory):
    """A complete run with checkpoints at 20 and 40, and averages at 2, 4, ..."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train.main([*TRAINING, "--quiet", "--workdir", str(workdir)], one_device)
    return workdir


@pytest.fixture
def words(run):
    return lambda *more: [*COMMAND, "--workdir", str(run), *map(str, more)]


def complete_state(workdir):
    """With the averages."""
    setup = step.from_config(config.from_workdir(workdir), sharding.mesh())
    with checkpoints.manager(workdir, read_only=True) as manager:
        return jax.tree.map(np.asarray, checkpoints.restore(manager, setup.abstract_state, sharding.mesh()))


def test_a_resumed_run_has_the_same_averages(run, one_device, tmp_path):
    """It lacks those of the checkpoint's own step, and has others past it, which must not stay: one is wrong."""
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    for path in ("checkpoints/40", "averages/20", "averages/30"):
        shutil.rmtree(cut / path)
    shutil.copytree(cut / "averages/4", cut / "averages/30")
    shutil.copytree(cut / "averages/4", cut / "averages/31")
    train.main([*TRAINING, "--quiet", "--workdir", str(cut)], one_device)
    stored = [stored_averages(path) for path in (run, cut)]
    assert list(stored[0]) == list(stored[1]) == list(range(2, 42, 2))
    chex.assert_trees_all_equal(*stored)
    states = [complete_state(path) for path in (run, cut)]
    chex.assert_trees_all_equal(*states)
    chex.assert_trees_all_equal(states[0].averages, stored[0][STEPS])


SHORT = RUN | dict(training__n_iters=18, training__averages=2, training__tau_groups=1)


@pytest.fixture(scope="module")
def short(one_device, tmp_path_factory):
    """The stored averages of a run of 18 steps on one device."""
    workdir = tmp_path_factory.mktemp("runs")
    train.main(["--config", SMALL, *overrides(**SHORT), "--quiet", "--workdir", str(workdir)], one_device)
    return stored_averages(workdir)


@pytest.mark.parametrize("changes, devices", [(dict(training__n_jitted_steps=7), 1), (dict(training__fsdp=2), 2)])
def test_steps_a_dispatch_and_devices_change_rounding_alone(short, tmp_path, changes, devices):
    """Seven steps a program store at the same steps; so do two devices that share the state."""
    mesh = sharding.mesh(devices, jax.devices()[:devices])
    train.main(["--config", SMALL, *overrides(**SHORT | changes), "--quiet", "--workdir", str(tmp_path)], mesh)
    found = stored_averages(tmp_path)
    assert list(found) == list(short) == [9, 18]
    chex.assert_trees_all_close(found, short, rtol=1e-3, atol=1e-5)


def test_without_averages_there_is_no_trace(one_device, tmp_path):
    settings = RUN | dict(training__n_iters=2, training__averages=0)
    train.main(["--config", SMALL, *overrides(**settings), "--quiet", "--workdir", str(tmp_path)], one_device)
    assert not (tmp_path / "averages").exists()
    setup = step.from_config(config.from_workdir(tmp_path), one_device)
    assert type(setup.abstract_state) is state.TrainState
    keys = json.loads((tmp_path / "checkpoints/2/default/_METADATA").read_text())["tree_metadata"]
    assert {key.split("'")[1] for key in keys} == {"step", "params", "opt_state", "ema", "ema_updates", "hashes"}


def test_weights_are_those_of_the_run(run):
    """score_st.load: the EMA, the raw weights, and averages at the end and before it."""
    (params, ema, _), _ = final_state(run)
    stored = stored_averages(run)
    loaded = {name: score_st.load(run, ema=name) for name in ("ema", "raw", 0.05, "0.1")}
    pairs = ("ema", ema), ("raw", params), (0.05, stored[STEPS]["0.05"])
    for name, expected in pairs:
        chex.assert_trees_all_equal(loaded[name].params, expected)
    chex.assert_trees_all_close(loaded["0.1"].params, stored[STEPS]["0.1"], rtol=1e-6, atol=1e-7)
    earlier = score_st.load(run, ema=0.05, step=28)
    assert earlier.step == 28 and loaded["raw"].step == STEPS
    chex.assert_trees_all_equal(earlier.params, stored[28]["0.05"])


@pytest.mark.parametrize("width", [0.03, 0.2])
def test_a_width_is_the_sum_of_what_is_stored(run, width):
    """In float64, of the plain terms."""
    made = score_st.load(run, ema=width)
    assert made.step == STEPS
    stored, target = stored_averages(run), DiffusionModel.from_config(config.from_workdir(run)).abstract_params
    values, _ = averages.coefficients(list(stored), width)
    terms = zip(stored.values(), values, strict=True)
    flat = lambda tree: np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])
    expected = sum(a * flat(pair["0.05"]) + b * flat(pair["0.1"]) for pair, (a, b) in terms)
    np.testing.assert_allclose(flat(made.params), expected, atol=1e-6)
    chex.assert_trees_all_equal_shapes(made.params, target)


def test_commands_keep_the_results_of_each_apart(run, words, one_device):
    bits = {}
    for ema in ("ema", "0.05"):
        eval_command.main(words("--ema", ema), one_device)
        name, folder = ("ema", run / "eval") if ema == "ema" else ("ema_0.05", run / "eval/ema_0.05")
        result = json.loads((folder / "bpd.json").read_text())
        assert result["weights"] == name and result["step"] == STEPS
        header = json.loads((folder / "bpd.jsonl").read_text().splitlines()[0])
        bits[ema] = result["nelbo"], header["settings"]["weights_crc32"]
        assert (folder / "loss_by_time.png").exists()
    assert len(set(bits.values())) == 2
    assert json.loads((run / "eval/bpd.json").read_text())["nelbo"] == bits["ema"][0]
    flags = "--num", 4, "--sampler", "ddim", "--steps", 2
    sample.main(words(*flags, "--ema", "0.05"), one_device)
    sample.main(words(*flags), one_device)
    manifests = [json.loads((run / f"samples{name}/samples.json").read_text()) for name in ("", "/ema_0.05")]
    assert [manifest["settings"]["weights"] for manifest in manifests] == ["ema", "ema_0.05"]
    crcs = [manifest["settings"]["weights_crc32"] for manifest in manifests]
    assert crcs == [bits["ema"][1], bits["0.05"][1]]
    edit.main(words("--task", "inpaint", "--num", 2, "--steps", 2, "--ema", "raw"), one_device)
    assert (run / "edit/raw/inpaint.png").stat().st_size > 100


@pytest.mark.skipif(not efficientnet.find_weights(), reason="the extra fid is not installed")
def test_a_sweep_over_widths(run, words, one_device, capsys):
    flags = "--num", 12, "--nfe", 3, "--features", "efficientnet-lite0", "--reference", 12
    flags += "--config.eval.batch_size=16", "--samplers", "ddim"
    sweep.main(words(*flags, "--ema", "0.2,raw"), one_device)
    result = json.loads((run / "eval/widths.json").read_text())
    assert [point["weights"] for point in result["points"]] == ["ema_0.2", "raw"]
    assert [point["width"] for point in result["points"]] == [0.2, None]
    distances = {point["weights"]: point["distance"] for point in result["points"]}
    assert len(set(distances.values())) == 2 and (result["sampler"], result["evaluations"]) == ("ddim", 3)
    assert (run / "eval/widths.png").stat().st_size > 5000
    lines = (run / "eval/widths.jsonl").read_text()
    sweep.main(words(*flags, "--ema", "raw,0.2"), one_device)  # both are stored
    again = json.loads((run / "eval/widths.json").read_text())["points"]
    assert {point["weights"]: point["distance"] for point in again} == distances
    assert (run / "eval/widths.jsonl").read_text() == lines
    for more in (("--nfe", "3,4"), ("--samplers", "ddim,heun")):
        error = refused(capsys, sweep.main, words(*flags, "--ema", "0.1,0.2", *more))
        assert "--ema 0.1,0.2: several weights take one sampler" in error


@pytest.mark.parametrize(
    "options, said",
    [
        (("--ema", "0.3"), "--ema 0.3: should be a width from 0.02 to 0.25, raw or ema"),
        (("--ema", "nan"), "--ema nan: should be a width"),
        (
            ("--ema", "0.05", "--step", "21"),
            "has no averages of --step 21; the nearest that are stored are 18, 20, 22",
        ),
        (("--ema", "0.02", "--step", "10"), "5 stored up to step 10: the profile would be off by"),
        (("--ema", "raw", "--step", "30"), "has steps 20, 40, not 30"),
    ],
)
def test_what_is_refused(capsys, words, options, said):
    assert said in refused(capsys, sample.main, words(*options))


def test_a_run_without_averages_says_how_to_have_them(tmp_path, capsys, run):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("averages"))
    argv = [*COMMAND, "--workdir", tmp_path / "run", "--ema", "0.05"]
    error = refused(capsys, eval_command.main, argv)
    assert "has no stored averages; train with --config.training.averages=64" in error


def test_averages_do_not_begin_in_the_middle(run, one_device):
    settings = overrides(**RUN | dict(training__averages=0))
    with pytest.raises(ConfigError, match=r"was made with training.averages=20 \(not 0\)"):
        train.main(["--config", SMALL, *settings, "--workdir", str(run)], one_device)


def test_a_converted_run_has_none():
    official = {"model.name": "ncsnpp", "model.parametrization": "", "model.time_conditioning": ""}
    settings = config.load(SMALL, {"training.averages": "64"} | official)
    with pytest.raises(ConfigError, match="training.averages=64: an official checkpoint has no averages"):
        torch_checkpoint.state_from_torch({}, settings, DiffusionModel.from_config(settings))
