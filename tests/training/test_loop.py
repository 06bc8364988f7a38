"""The train step on eight devices, resuming, and the commands from end to end."""

import dataclasses
import json
import os
import re
import signal
import sys
import time

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.commands import SMALL, overrides, refused, tiny
from support.processes import ended, final_state, start, stored_averages

from score_st import config, report, sample, train
from score_st import eval as eval_command
from score_st.evaluation import generation, image_terms, runner
from score_st.model import DiffusionModel
from score_st.planning import utilization
from score_st.runtime import sharding
from score_st.training import loop
from score_st.training import step as stepping


def test_killed_and_started_again_ends_with_the_same_bits(one_device, tmp_path):
    """A run killed (SIGKILL) after its first checkpoint and started again, against one in one go."""
    uninterrupted, cut = tmp_path / "uninterrupted", tmp_path / "cut"
    options = ["--config", SMALL, *overrides(training__n_iters=40, training__log_freq=10, training__eval_freq=20)]
    options.append("--config.training.averages=10")
    code = "import jax, sys; from score_st import train; from score_st.runtime import sharding; "
    code += "train.main(sys.argv[1:], sharding.mesh(devices=jax.devices()[:1]))"
    profile = "--config.training.profile_steps=2-30"  # may change
    process = start(os.environ, sys.executable, "-c", code, *options, profile, "--workdir", cut)
    while process.poll() is None and not list(cut.glob("checkpoints/*/commit_success.txt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    output = ended(process)[1]
    assert re.search(r"step 1/40  loss .* TFLOP/s  goodput [\d.]+%  .* steps/s", output) and "step 40/40" not in output
    for workdir in (cut, uninterrupted):
        train.main([*options, "--quiet", "--workdir", str(workdir)], one_device)
    (first, step), (second, _) = (final_state(path) for path in (uninterrupted, cut))
    assert step == 40
    chex.assert_trees_all_equal(first, second)
    stored = [stored_averages(path) for path in (uninterrupted, cut)]
    assert list(stored[0]) == [4 * i for i in range(1, 11)]
    chex.assert_trees_all_equal(*stored)
    logs = [[json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (uninterrupted, cut)]
    steps = [{line["step"] for line in log} for log in logs]
    assert steps[0] == {1, 10, 20, 30, 40} and steps[0] <= steps[1]  # where it resumed, there is a line more
    assert {"loss", "steps_per_s", "tflops_per_s", "data_wait", "gradient_norm", "tau"} <= set(logs[0][0])
    assert all(0 < line["goodput"] < 1 and line["arithmetic"] == "float32" for log in logs for line in log)
    kept = [json.loads((path / "goodput.json").read_text()) for path in (uninterrupted, cut)]
    assert list(kept[0]["seconds"]) == [str(step) for step in (*range(3, 40, 3), 40)]
    for figures, log in zip(kept, logs, strict=True):
        seconds = list(figures["seconds"].values())
        assert seconds == sorted(seconds) and 0 < seconds[0]
        # the last line was written just before the last checkpoint and the end
        share = seconds[-1] / (figures["ended"] - figures["began"])
        assert share <= log[-1]["goodput"] < 2 * share


def test_the_log_has_the_utilization_of_the_chip(tmp_path, one_device, capsys):
    """With a table of chips in which a CPU has 1 GFLOP/s; and a trace of some steps."""
    settings = {"training.n_iters": "6", "training.log_freq": "2", "training.eval_freq": "6"}
    settings |= {"training.profile_steps": "3-4"}
    train.train(config.load(SMALL, settings), tmp_path, mesh=one_device, chips={"cpu": {"float32": 1e9}})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    flops = 3 * utilization.forward_flops(DiffusionModel.from_config(config.load(SMALL)), 16)
    for line in lines:
        assert line["tflops_per_s"] == pytest.approx(flops * line["steps_per_s"] / 1e12)
        assert line["mfu"] == pytest.approx(line["tflops_per_s"] * 1e12 / 1e9)
    assert capsys.readouterr().err == ""
    trace = json.loads((tmp_path / "profile/operations.json").read_text())["steps_3-4"]
    assert {row["program"] for row in trace["operations"]} == {"jit_train_step"} and len(trace["operations"]) == 10


def test_steps_to_profile_are_checked_first(tmp_path, capsys):
    argv = ["--config", SMALL, "--workdir", tmp_path / "run", "--config.training.profile_steps=4-3"]
    error = refused(capsys, train.main, argv)
    assert "config.training.profile_steps='4-3': should be two steps A-B" in error and not (tmp_path / "run").exists()


def test_the_log_has_the_share_of_time_that_waits_for_data(tmp_path):
    def slow():
        while True:
            time.sleep(0.05)
            yield np.zeros((1, 8, 8, 1), np.uint8)

    batches, log = loop.Batches(slow()), loop.Log(tmp_path, 0, 6)
    for step in range(1, 7):
        next(batches)
        time.sleep(0.15)
        if step % 2 == 0:
            log.train(step, {"loss": 1.0}, batches.waited())
    shares = [json.loads(line)["data_wait"] for line in (tmp_path / "metrics.jsonl").open()]
    np.testing.assert_allclose(shares, [0.25] * 3, atol=0.06)


TORN = [
    b'{"step": 2, "loss": 1.0',
    b'{"step": 1, "loss": 0.5{"step": 2, "loss": 1.0}',
    b'{"step": 1, "loss": 0.5}{"step": 2, "loss": 1.0}',
    b"\xff\xfe}",
    b"[2]",
    b'{"step": "2"}',
    b'{"step": null}',
    b'{"loss": 1.0}',
    b"2",
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", TORN)
def test_a_damaged_line_of_the_log_is_dropped(line, tmp_path):
    good = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "loss": NaN}', b'{"step": 3, "loss": 1.0}']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([good[0], line, *good[1:], line]))
    loop.Log(tmp_path, 2, 6)(4, loss=0.5)
    assert path.read_bytes().splitlines() == [*good[:2], b'{"step": 4, "loss": 0.5}']


def test_means_are_those_of_numpy():
    """Of single steps and of several a program, to the last bit."""
    values = np.random.default_rng(0).uniform(size=100).astype(np.float32)
    means = loop.Means.empty()
    for part in np.split(values, [1, 2, 52]):
        means = means.add({"loss": jnp.asarray(part if len(part) > 1 else part[0])})
    assert means.compute() == {"loss": float(np.mean(values))}


COMPLETE = dict(training__n_iters=300, training__log_freq=100, training__eval_freq=100, training__snapshot_freq=300)
COMPLETE |= dict(eval__rtol=1e-2, eval__atol=1e-2, sampling__rtol=1e-2, sampling__atol=1e-2, optim__warmup=5)
COMPLETE |= dict(
    eval__nll_iter=1, eval__nelbo_iter=2, eval__batch_size=104, sampling__batch_size=16, eval__from_x0=False
)
COMPLETE |= dict(eval__enable_bpd=True, training__snapshot_sampling=True)


@pytest.fixture(scope="module")
def trained(one_device, tmp_path_factory):
    """A complete run of 300 steps: the workdir, and the arguments that name it."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--config", SMALL, "--workdir", str(workdir), *overrides(**COMPLETE)]
    train.main(arguments, one_device)
    return workdir, arguments


def test_a_run_leaves_its_files_and_figures(trained):
    workdir, _ = trained
    names = "config.json", "config_base.json", "metrics.jsonl", "samples.png", "eval/bpd.json", "eval/loss_by_time.png"
    for name in (*names, "report.html"):
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "tensorboard").iterdir()) and (workdir / "checkpoints/300").is_dir()
    assert (workdir / "snapshots/00000300.png").read_bytes() == (workdir / "samples.png").read_bytes()
    page = (workdir / "report.html").read_text()
    assert "Samples of run after 300 updates" in page and "left out" not in page
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert lines[0]["loss"] > lines[-2]["loss"] and "nll" in lines[-1]
    result = json.loads((workdir / "eval/bpd.json").read_text())
    assert result["images"] == 297 and result["nll_unreached"] == [] and result["dequantization"] == "uniform"
    assert result["config"]["eval"]["rtol"] == 1e-2 and result["step"] == 300 and result["versions"]["jax"]
    assert (workdir / "eval/bpd_by_time.png").stat().st_size > 0
    assert 2 < result["nll"] < 12 and result["nll"] == pytest.approx(sum(result["nll_terms"].values()))
    assert result["nelbo"] == pytest.approx(sum(result["nelbo_terms"].values()), rel=1e-5)
    assert 2 < result["nelbo"] < 12


def test_sample_eval_and_report_of_a_run(trained, one_device, tmp_path):
    workdir, arguments = trained
    before = json.loads((workdir / "eval/bpd.json").read_text())
    sample.main([*arguments, "--num", "5", "--profile"], one_device)
    images = generation.read_shards(workdir / "samples")
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8 and images.max() <= 16
    about = json.loads((workdir / "samples/samples.json").read_text())
    assert about["images"] == 5 and about["nfe"] > 10 and about["settings"]["step"] == 300
    (workdir / "report.html").write_text("old")
    eval_command.main([*arguments, "--config.eval.nelbo_iter=1", "--profile"], one_device)
    page = (workdir / "report.html").read_text()
    assert "Samples of run after 300 updates" in page
    traces = json.loads((workdir / "profile/operations.json").read_text())
    assert [trace["about"] for trace in traces.values()] == ["a batch of sample", "a batch of eval"]
    for name, trace in traces.items():
        assert list((workdir / "profile/plugins/profile" / name).glob("*.xplane.pb"))
        assert len(trace["operations"]) == 10 and trace["operations"][0]["name"] in page
    assert json.loads((workdir / "eval/bpd.json").read_text())["nll"] == pytest.approx(before["nll"], abs=1e-5)
    report.main(["--workdir", str(workdir), str(workdir), "--out", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").stat().st_size > 10000


class Small(nn.Module):
    """Three layers that see the time: what a convolution rounds depends on how it is divided."""

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        h = nn.Conv(8, (3, 3))(x) + nn.Dense(8)(jnp.sin(time_cond / 99)[:, None])[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3))(nn.swish(nn.Conv(16, (3, 3))(nn.swish(h))))


def test_devices_change_nothing(digits, tmp_path):
    """Bits/dim on 1 and 2 devices to the bit, and samples on 1, 2 and 8 in batches of 1, 7 and 64."""
    c = tiny(eval__rtol=1e-2, eval__atol=1e-2, sampling__method="pc", model__num_scales=5, sampling__group=4)
    exp = dataclasses.replace(DiffusionModel.from_config(c), network=Small())
    params = jax.jit(exp.init)(jax.random.key(0))
    nll, generate = jax.jit(image_terms.from_config(c, exp).nll), generation.generator(c, exp, seed=1)
    results, samples = [], []
    for n, batch in ((1, 1), (2, 7), (8, 64)):
        mesh = sharding.mesh(devices=jax.devices()[:n])
        if n < 8:  # the adaptive solver takes long to compile, once for each device
            stored = runner.open_results(tmp_path / f"{n}.jsonl", {})
            run = runner.ImageRunner(params, digits[:8], 8, 0, stored, mesh, group=1)
            results.append(image_terms.total(run("nll", nll)))
        pieces, drawing = [(i, min(i + batch, 18)) for i in range(0, 18, batch)], generation.runner(c, params, mesh)
        images = [piece["samples"] for ends in pieces for piece in generation.batches(drawing, generate, *ends)]
        samples.append(np.concatenate(images))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(samples, [samples[0]] * 3)
    assert len(np.unique(samples[0], axis=0)) == 18


def test_programs_are_kept_for_the_next_start(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        for platform, folder in (
            ("cpu", None),
            ("tpu", str(tmp_path / "compiled")),
            ("cpu", str(tmp_path / "compiled")),
        ):
            train.keep_programs(tmp_path, platform)
            assert jax.config.jax_compilation_cache_dir == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    "several, expected",
    [(1, [1] * 9), (4, [1, 1, 1, 4, 1, 1])],  # a mark at 10, and the end at 16
)
def test_programs_of_several_steps_end_where_something_is_due(several, expected):
    assert list(loop.dispatches(7, 16, several, [10, 100])) == expected


def test_programs_of_several_steps_end_where_averages_are_stored():
    assert list(loop.dispatches(0, 20, 4, [100], marks=(6, 12, 20))) == [4, 1, 1, 4, 1, 1, 4, 4]


def test_a_run_with_a_decaying_rate_is_not_prolonged(tmp_path, one_device, capsys):
    """Its rate depends on training.n_iters; one with a constant rate may go on."""
    settings = config.load(SMALL, {"training.n_iters": "4", "optim.schedule": "cosine"})
    (tmp_path / "config.json").write_text(config.to_json(settings))
    argv = ["--config", SMALL, "--workdir", str(tmp_path), "--config.training.n_iters=8"]
    error = refused(capsys, train.main, [*argv, "--config.optim.schedule=cosine"])
    assert "was made with training.n_iters=4 (not 8); use that, or another workdir" in error


def test_without_held_out_images_there_is_no_nelbo(digits, one_device):
    setup = stepping.from_config(config.load(SMALL, {"training.eval_images": "0"}), one_device)
    figures = loop.compiled_eval(config.load(SMALL, {"training.eval_images": "0"}), setup, digits[:32])
    result = figures(jax.jit(setup.create)(jax.random.key(0)), 1, jax.random.key(1))
    assert set(result) == {"eval_loss"} and np.isfinite(result["eval_loss"])
