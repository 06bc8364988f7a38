"""Commands with a second model: what they draw, what they write of it, and what they refuse."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from support.commands import SMALL, refused

import score_st
from score_st import config, edit, sample, sweep
from score_st import eval as evaluate
from score_st.data import pipeline
from score_st.evaluation import generation, provenance
from score_st.runtime.workdir import claim_workdir
from score_st.training import checkpoints, step

SETTINGS = {"sampling.method": "pc", "sampling.predictor": "ddim", "sampling.steps": "5", "sampling.group": "4"}
SETTINGS |= {"eval.nll_iter": "1", "eval.nelbo_iter": "0", "eval.from_x0": "False", "eval.gradient_images": "0"}
SETTINGS |= {
    "eval.group": "0",
    "eval.batch_size": "297",
    "eval.rtol": "0.3",
    "eval.atol": "0.3",
    "eval.solver": "Bosh3",
}


def make(workdir, seed, at=7, **changes):
    """A workdir with random weights at a step."""
    settings = config.load(SMALL, SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})
    claim_workdir(workdir, settings, bool)
    rng, like = np.random.default_rng(seed), step.from_config(settings, one()).abstract_state
    weights = jax.tree.map(lambda a: rng.normal(0, 0.05, a.shape).astype(a.dtype), like)
    with checkpoints.manager(workdir, keep_period=1) as manager:
        checkpoints.save(manager, dataclasses.replace(weights, step=np.full((), at, np.int32)))


def one():
    from score_st.runtime import sharding

    return sharding.mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs `a` and `b` of two models that fit, `b` with an older checkpoint, and three that do not fit `a`."""
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "a", 0)
    make(folder / "b", 1, at=3)
    make(folder / "b", 2)
    make(folder / "beta", 0, model__beta_max="10.0")
    make(folder / "scaled", 0, data__centered="False")
    make(folder / "late", 0, training__truncation_time="1e-3")
    return folder


@pytest.fixture
def words(runs):
    """Of a command on `a`."""
    flags = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    return lambda *more: ["--config", SMALL, "--workdir", str(runs / "a"), *flags, *map(str, more)]


def crc(workdir, at=None):
    return provenance.checksum(score_st.load(workdir, at).params)


def test_samples(runs, words, one_device, tmp_path):
    """They are those of the Python models; the manifest has both checkpoints, and a resumed run compares them."""
    flags = {
        "guided": ("--guide", runs / "b", "--guidance", 1.5),
        "older": ("--guide", f"{runs / 'b'}@3", "--guidance", 1.5),
        "expert": ("--expert", runs / "b", "--below", 0.5),
        "both": ("--guide", runs / "b", "--guidance", 1.5, "--expert", f"{runs / 'b'}@3", "--below", 0.5),
        "none": ("--guide", runs / "b", "--guidance", 1.0),
    }
    a, b, older = score_st.load(runs / "a"), score_st.load(runs / "b"), score_st.load(runs / "b", 3)
    models = {"guided": a.guided_by(b, 1.5), "older": a.guided_by(older, 1.5), "expert": a.with_expert(b, 0.5)}
    models |= {"both": a.with_expert(older, 0.5).guided_by(b, 1.5), "none": a}
    nfe = {"guided": 12, "older": 12, "expert": 6, "both": 12, "none": 6}
    for name, more in flags.items():
        sample.main(words("--num", 6, "--out", tmp_path / name, *more), one_device)
        drawn = generation.read_shards(tmp_path / name)
        np.testing.assert_array_equal(drawn, models[name].sample(jax.random.key(0), 6))
        about = json.loads((tmp_path / name / "samples.json").read_text())
        assert about["nfe"] == nfe[name]
    assert len({generation.read_shards(tmp_path / name).tobytes() for name in flags}) == 5
    settings = json.loads((tmp_path / "both/samples.json").read_text())["settings"]
    expected = {"step": 7, "weights_crc32": crc(runs / "a"), "guide": str(runs / "b"), "guide_step": 7}
    expected |= {"guide_weights_crc32": crc(runs / "b"), "guidance": 1.5, "expert": f"{runs / 'b'}@3"}
    expected |= {"expert_step": 3, "expert_weights_crc32": crc(runs / "b", 3), "below": 0.5}
    assert expected.items() <= settings.items()
    sample.main(words("--num", 8, "--out", tmp_path / "guided", *flags["guided"]), one_device)  # resumes
    for more in ((), flags["older"], ("--guide", runs / "b", "--guidance", 2.0)):
        with pytest.raises(config.ConfigError, match="holds samples of guid"):
            sample.main(words("--num", 8, "--out", tmp_path / "guided", *more), one_device)


@pytest.mark.slow
def test_figures(runs, words, one_device):
    """Bits/dim are those of the Python model; both checkpoints are written, and are what a resumed run compares."""
    figures = evaluate.main(words("--guide", runs / "b", "--guidance", 1.5), one_device)
    folder = runs / "a/eval/guidance_1.5"  # beside the figures of the model alone
    assert json.loads((folder / "bpd.json").read_text()) == json.loads(json.dumps(figures))
    written = {"guide": str(runs / "b"), "guide_step": 7, "guide_weights_crc32": crc(runs / "b"), "guidance": 1.5}
    assert written.items() <= figures.items() and figures["weights_crc32"] == crc(runs / "a")
    header = json.loads((folder / "bpd.jsonl").open().readline())["settings"]
    assert written.items() <= header.items()
    assert figures["config"]["eval"]["trace"] == header["config"]["eval"]["trace"] == "hutchinson"
    models = [score_st.load(runs / name) for name in "ab"]
    images = pipeline.load(config.load(SMALL), "test")
    bits = models[0].guided_by(models[1], 1.5).bits_per_dim(images)
    np.testing.assert_allclose(bits.mean(), figures["nll"], rtol=1e-4)


@pytest.mark.slow
def test_pictures(runs, words, one_device, tmp_path):
    more = ("--num", 2, "--config.sampling.rtol=1e-1", "--config.sampling.atol=1e-1", "--out")
    second = ("--guide", runs / "b", "--guidance", 20)
    edit.main(words("--task", "interpolate", *more, tmp_path / "a.png"), one_device)
    edit.main(words("--task", "interpolate", *more, tmp_path / "b.png", *second), one_device)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


PARTNERS = {
    ("--guide", "b"): "--guide b: needs --guidance, too",
    ("--guidance", "2"): "--guidance 2.0: needs --guide, too",
    ("--expert", "b"): "--expert b: needs --below, too",
    ("--below", "0.5"): "--below 0.5: needs --expert, too",
    ("--guide", "b", "--guidance", "nan"): "argument --guidance: nan: should be finite",
}
UNFIT = {
    "none": "config.json: can't be read",
    "b@5": "has steps 3, 7, not 5",
    "beta": "has SDE VP(eps=1e-05, T=1.0, beta_min=0.1, beta_max=10.0), not VP(",
    "scaled": "has data.centered False, not True",
    "late": "is for times from 0.001, the main one from 1e-05",
}


@pytest.mark.parametrize("main", [sample.main, evaluate.main, sweep.main], ids=["sample", "eval", "sweep"])
def test_what_is_refused(runs, words, capsys, tmp_path, one_device, main):
    run = lambda argv: main(argv, one_device)
    more = ["--features", "efficientnet-lite0", "--nfe", "3"] if main is sweep.main else []
    if main is sample.main:
        more = ["--out", tmp_path / "out"]
    for options, message in PARTNERS.items():
        assert message in refused(capsys, run, words(*more, *options))
    for name, message in UNFIT.items():
        error = refused(capsys, run, words(*more, "--guide", runs / name, "--guidance", 2))
        assert f"--guide {runs / name}: " in error and message in error, error
    error = refused(capsys, run, words(*more, "--expert", runs / "b", "--below", 1e4))
    assert "10000.0 as the noise σ/α of an expert: should lie between 0.001 at ε and 152 at T" in error
    assert not (tmp_path / "out").exists()


def test_models_in_python(runs):
    """The weights of both are leaves; a weight of 1 is the model itself; what does not fit is refused."""
    a, b = score_st.load(runs / "a"), score_st.load(runs / "b")
    assert a.guided_by(b, 1.0) is a
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), np.array([0.01, 0.2, 0.9], np.float32)
    first, second = (np.asarray(model.score(x, t)) for model in (a, b))
    np.testing.assert_allclose(a.guided_by(b, 3.0).score(x, t), second + 3 * (first - second), rtol=1e-4, atol=1e-4)
    both = a.with_expert(b, 0.5)
    np.testing.assert_allclose(both.score(x, t)[0], second[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both.score(x, t)[2], first[2], rtol=1e-5, atol=1e-5)
    assert len(jax.tree.leaves(both)) == 2 * len(jax.tree.leaves(a))
    assert both.diffusion_model == a.with_expert(b, 0.5).diffusion_model  # compiles once
    swapped = dataclasses.replace(both, params=both.params[::-1])
    np.testing.assert_allclose(swapped.score(x, t)[0], first[0], rtol=1e-5, atol=1e-5)
    mask = (np.arange(8) < 4)[:, None, None]
    images = pipeline.load(a.config, "test")[:2]
    completed = both.inpaint(jax.random.key(0), images, mask, steps=20)
    assert np.abs(np.asarray(completed, int) - images)[:, :4].max() <= 1
    for name in ("beta", "scaled", "late"):
        with pytest.raises(score_st.ConfigError, match="two models together: the second"):
            a.with_expert(score_st.load(runs / name), 0.5)


def test_a_worse_model_may_be_smaller(runs, tmp_path):
    """Only SDE, image shape and scaling have to agree; a workdir may have an @ in its name."""
    make(tmp_path / "b@3", 3, model__name="ncsnpp", model__nf="8", model__ch_mult="(1,)", model__num_res_blocks="1")
    both = score_st.load(runs / "a").guided_by(score_st.load(tmp_path / "b@3"), 2.0)
    assert np.isfinite(both.score(jax.numpy.zeros((1, 8, 8, 1)), 0.5)).all()
