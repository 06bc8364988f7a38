"""The Python API: the numbers of the commands, closed forms, and the blocks of docs/python.md."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from support.gaussian import SHAPE, Gaussian

import score_st
from score_st import config, sample
from score_st.data import pipeline
from score_st.diffusion import parametrization, samplers
from score_st.evaluation import bits_per_dim, generation
from score_st.model import DiffusionModel
from score_st.runtime.workdir import claim_workdir
from score_st.training import checkpoints, step

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py")
SETTINGS = {"model.nf": "8", "model.ch_mult": "(1,)", "model.attention": "False", "sampling.group": "4"}
SETTINGS |= {"eval.group": "0", "eval.batch_size": "8", "eval.nelbo_iter": "1", "eval.gradient_images": "0"}
SETTINGS |= {"sampling.method": "pc", "sampling.predictor": "ddim", "sampling.steps": "5"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_device):
    """A folder with `runs/digits`, whose checkpoint has random weights."""
    folder = tmp_path_factory.mktemp("api")
    settings = config.load(DIGITS, SETTINGS)
    claim_workdir(folder / "runs/digits", settings, bool)
    rng, like = np.random.default_rng(0), step.from_config(settings, one_device).abstract_state
    weights = jax.tree.map(lambda a: rng.normal(0, 0.03, a.shape).astype(a.dtype), like)
    with checkpoints.manager(folder / "runs/digits") as manager:
        checkpoints.save(manager, dataclasses.replace(weights, step=np.zeros((), np.int32)))
    return folder


def test_samples_have_the_bits_of_the_command(runs, tmp_path, one_device):
    flags = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    argv = ["--config", DIGITS, "--workdir", runs / "runs/digits", "--num", 6, "--seed", 3, "--out", tmp_path / "a"]
    sample.main([*map(str, argv), *flags], one_device)
    model = score_st.load(runs / "runs/digits")
    drawn = model.sample(jax.random.key(3), 6)
    assert drawn.dtype == jnp.uint8 and drawn.std() > 0
    np.testing.assert_array_equal(drawn, generation.read_shards(tmp_path / "a"))
    x = jax.jit(lambda model, key: model.sample(key, 6, scaled=True))(model, jax.random.key(3))
    assert x.dtype == jnp.float32 and jnp.mean(model.unscale(x) != drawn) < 0.01


@pytest.mark.slow  # the next checks the figures faster, against closed forms
def test_bits_per_dim_are_those_of_the_command(runs, tmp_path, one_device):
    model = score_st.load(runs / "runs/digits", settings={"eval.rtol": 1e-4, "eval.atol": 1e-4})
    images = pipeline.load(model.config, "test")[:8]
    changed = config.from_workdir(runs / "runs/digits", {"eval.rtol": 1e-4, "eval.atol": 1e-4})
    bits_per_dim.evaluate(changed, model.diffusion_model, model.params, 0, images, tmp_path, one_device)
    reported = json.loads((tmp_path / "eval/bpd.json").read_text())["nll"]
    bits = model.bits_per_dim(images)
    assert bits.shape == (8,) and reported > 1
    np.testing.assert_allclose(bits.mean(), reported, atol=1e-4)
    np.testing.assert_allclose(-model.log_likelihood(images), bits * 64 * np.log(2), rtol=1e-6)


GAUSSIAN = Gaussian(0.1, 0.25)


class GaussianNet(nn.Module):
    """The exact score, told t itself."""

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        return GAUSSIAN.score(score_st.VP())(x, time_cond)


def test_closed_forms():
    """Of a Gaussian in each pixel: score, likelihood, the flow, which is linear, samples, what inpainting keeps."""
    settings = {"data.image_size": 2, "data.num_levels": 256, "eval.n_probes": 4}
    settings |= {f"{section}.{key}": 1e-6 for section in ("eval", "sampling") for key in ("rtol", "atol")}
    changed = config.load(DIGITS, {key: str(value) for key, value in (SETTINGS | settings).items()})
    plain = parametrization.Parametrization(lambda t: t, jnp.ones_like)
    exact = dataclasses.replace(DiffusionModel.from_config(changed), network=GaussianNet(), parametrization=plain)
    model, n = score_st.Model({}, FrozenConfigDict(changed), custom=exact), 512
    assert model.image_shape == SHAPE
    x = GAUSSIAN.sample(jax.random.key(0), n)
    np.testing.assert_allclose(
        model.score(x, 0.3), GAUSSIAN.score(model.sde)(x, jnp.full(n, 0.3)), rtol=1e-4, atol=1e-4
    )
    nll = GAUSSIAN.nll(x)
    np.testing.assert_allclose(-model.log_likelihood(x), nll, atol=0.01)
    bits = nll / (4 * np.log(2)) + 7  # 256 levels on [-1, 1]
    np.testing.assert_allclose(model.bits_per_dim(x), bits, atol=0.01)
    gap = model.bits_per_dim(model.unscale(x)) - bits  # of what dequantization and reconstruction draw
    assert abs(gap.mean()) < 0.01 + 3 * gap.std() / n**0.5 < 0.1
    moments = lambda t: (model.sde.alpha(t) * GAUSSIAN.mean, jnp.hypot(model.sde.alpha(t) * 0.25, model.sde.sigma(t)))
    (m, s), (m_end, s_end) = moments(model.sde.eps), moments(1.0)
    z = (model.sde.alpha(model.sde.eps) * x - m) / s * s_end + m_end
    np.testing.assert_allclose(model.encode(x), z, atol=2e-3)
    np.testing.assert_allclose(model.decode(z, scaled=True), x, atol=2e-3)
    drawn = model.sample(jax.random.key(0), n, "heun", 40, scaled=True)
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [GAUSSIAN.mean, GAUSSIAN.std], atol=0.03)
    mask = np.array([1.0, 0.0])[:, None, None]
    completed = model.inpaint(jax.random.key(1), x, mask, steps=50, scaled=True)
    np.testing.assert_allclose(completed[:, 0], x[:, 0], atol=0.02)
    np.testing.assert_allclose(completed[:, 1].mean(), GAUSSIAN.mean, atol=0.05)
    assert abs(np.corrcoef(completed[:, 1].ravel(), x[:, 1].ravel())[0, 1]) < 0.2


class ClassNet(nn.Module):
    """The exact score of data whose mean is 0.2 times the class, and 0.1 without a class; told t itself."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None, labels=None):
        labels = jnp.full(len(x), -1) if labels is None else labels
        sde, means = score_st.VP(), jnp.where(labels < 0, 0.1, 0.2 * labels)
        alpha, sigma, mean = (c[:, None, None, None] for c in (sde.alpha(time_cond), sde.sigma(time_cond), means))
        return -(x - alpha * mean) / (alpha**2 * 0.25**2 + sigma**2)


def test_closed_forms_by_class():
    """The likelihood of each image given its class, latents, samples, and guidance, which moves the mean."""
    settings = {"data.image_size": 2, "data.num_levels": 256, "eval.trace": "exact", "sampling.steps": 40}
    settings |= {"sampling.predictor": "heun", "sampling.group": 64}
    settings |= {f"{section}.{key}": 1e-5 for section in ("eval", "sampling") for key in ("rtol", "atol")}
    changed = config.load(DIGITS, {key: str(value) for key, value in (SETTINGS | settings).items()})
    plain = parametrization.Parametrization(lambda t: t, jnp.ones_like)
    exact = dataclasses.replace(DiffusionModel.from_config(changed), network=ClassNet(), parametrization=plain)
    model = score_st.Model({}, FrozenConfigDict(changed), custom=exact)
    labels = jnp.array([0, 1, 2, -1])
    means = jnp.array([0.0, 0.2, 0.4, 0.1])
    x = means[:, None, None, None] + 0.25 * jax.random.normal(jax.random.key(0), (4, *SHAPE))
    nll = jax.vmap(lambda mean, x: Gaussian(mean, 0.25).nll(x[None])[0])(means, x)
    np.testing.assert_allclose(-model.log_likelihood(x, labels=labels), nll, atol=0.01)
    np.testing.assert_allclose(model.log_likelihood(x), model.log_likelihood(x, labels=-1), atol=1e-3)
    a, s = model.sde.alpha(1.0), model.sde.sigma(1.0)
    mean = means[:, None, None, None]
    latents = (x - mean) / 0.25 * jnp.hypot(a * 0.25, s) + a * mean
    np.testing.assert_allclose(model.encode(x, labels), latents, atol=5e-3)
    np.testing.assert_allclose(model.decode(latents, scaled=True, labels=labels), x, atol=5e-3)
    drawn = model.sample(jax.random.key(0), 192, scaled=True)  # image i is of class i modulo 3
    np.testing.assert_allclose([drawn[i::3].mean() for i in range(3)], means[:3], atol=0.06)
    guided = dataclasses.replace(
        model, config=FrozenConfigDict(config.changed(changed, {"sampling.class_guidance": "2"}))
    )
    drawn = guided.sample(jax.random.key(0), 64, scaled=True, labels=2)
    assert drawn.mean() == pytest.approx(0.7, abs=0.06)  # 0.1 + 2 (0.4 - 0.1), the widths being the same
    for wrong in (3, -2, 0.5, jnp.arange(2)):
        with pytest.raises(score_st.ConfigError, match="labels: "):
            model.log_likelihood(x, labels=wrong)
    with pytest.raises(score_st.ConfigError, match="the network has no classes"):
        score_st.Model.from_score(GAUSSIAN.score(score_st.VP()), score_st.VP(), SHAPE).encode(x, labels=0)


def test_any_score(capsys):
    """The blocks of docs/any_score.md: closed forms of a Gaussian in each pixel, and a network of Equinox."""
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs/any_score.md").read_text(), re.DOTALL)
    exec(first, names := {})
    printed = capsys.readouterr().out
    assert re.search("mean 0.(09|10|11), standard deviation 0.2[456]", printed), printed
    assert re.search("off by 0.0[0-4]. nats", printed), printed
    assert re.search(r"^7\.0[3-9] bits/dim", printed, re.MULTILINE), printed
    model, x, n = names["model"], names["x"][:64], names["sde"]
    z = (x - 0.1) / 0.25 * jnp.hypot(n.alpha(1.0) * 0.25, n.sigma(1.0)) + n.alpha(1.0) * 0.1
    np.testing.assert_allclose(model.encode(x), z, atol=5e-3)
    exec(second, names)
    assert "(4, 4, 4, 1)" in capsys.readouterr().out
    assert all(np.any(leaf) for leaf in jax.tree.leaves(names["gradient"]))
    for wrong, message in (
        ({"score": lambda x, t: x.sum()}, "should be an array like x"),
        ({"settings": {"sampling.grdi": "edm"}}, "did you mean sampling.grid?"),
        ({"num_levels": 1}, "should be from 2 to 256"),
    ):
        with pytest.raises(score_st.ConfigError, match=re.escape(message)):
            score_st.Model.from_score(**{"score": names["score"], "sde": n, "image_shape": (4, 4, 1)} | wrong)


def test_what_is_refused(runs):
    workdir = runs / "runs/digits"
    for wrong, message in (
        ({"workdir": runs / "none"}, "config.json: can't be read"),
        ({"step": 7}, "has steps 0, not 7"),
        ({"settings": {"sampling.grdi": "edm"}}, "did you mean sampling.grid?"),
        ({"settings": {"model.nf": 16}}, "was made with model.nf=8"),
    ):
        with pytest.raises(score_st.ConfigError, match=re.escape(message)):
            score_st.load(**{"workdir": workdir} | wrong)
    model = score_st.load(workdir)
    with pytest.raises(score_st.ConfigError, match="did you mean ddim?"):
        model.sample(jax.random.key(0), 1, "dim")
    with pytest.raises(score_st.ConfigError, match="can't keep what is known"):
        model.inpaint(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), 1.0, sampler=samplers.ODE())
    with pytest.raises(score_st.ConfigError, match="2 of 2 images are not finite"):
        dataclasses.replace(model, params=jax.tree.map(lambda a: a * jnp.nan, model.params)).sample(
            jax.random.key(0), 2
        )


def test_arrays_that_are_refused(runs):
    """By every method at once, and inside jit where shapes and types are wrong; masks and times outside jit."""
    model, key = score_st.load(runs / "runs/digits"), jax.random.key(0)
    levels = np.zeros((2, 8, 8, 1), np.uint8)
    methods = {
        "score": lambda images: model.score(images, 0.5),
        "log_likelihood": model.log_likelihood,
        "bits_per_dim": model.bits_per_dim,
        "encode": model.encode,
        "inpaint": lambda images: model.inpaint(key, images, 1.0),
        "scale": model.scale,
    }
    wrong = {
        "16x16": np.zeros((2, 16, 16, 1), np.uint8),
        "8x12": np.zeros((2, 8, 12, 1), np.uint8),
        "colors": np.zeros((2, 8, 8, 3), np.uint8),
        "17": levels + 17,
        "negative": levels.astype(int) - 1,
        "bool": levels > 0,
        "nan": levels * np.nan,
    }
    for name, method in methods.items():
        for images in wrong.values():
            with pytest.raises(score_st.ConfigError, match="images: "):
                method(images)
        if name not in ("score", "scale"):  # which take noisy x, and any x
            with pytest.raises(score_st.ConfigError, match="or levels as integers"):
                method(levels + np.float32(16))
    for t in (0.0, 1e-6, 1.1, -1.0, np.nan, np.full(3, 0.5)):
        with pytest.raises(score_st.ConfigError, match="t: "):
            model.score(levels, t)
    with pytest.raises(score_st.ConfigError, match="divide a picture's 0 ... 255 by 255"):
        model.inpaint(key, levels, np.full((8, 8, 1), 255, np.uint8))
    with pytest.raises(score_st.ConfigError, match=r"mask: is \[8, 8\]"):
        model.inpaint(key, levels, np.ones((8, 8)))
    for method in (model.decode, model.unscale):
        for z in (np.zeros((2, 8, 12, 1), np.float32), levels * np.float32(np.nan)):
            with pytest.raises(score_st.ConfigError, match="(latents|images): "):
                method(z)
    with pytest.raises(score_st.ConfigError, match="n=0: should be 1 or more"):
        model.sample(key, 0)
    with pytest.raises(score_st.ConfigError, match=r"should be \[B, 8, 8, 1\]"):
        jax.jit(lambda x: model.score(x, 0.5))(np.zeros((2, 8, 12, 1), np.float32))
    with pytest.raises(score_st.ConfigError, match="of type bool"):
        jax.jit(model.bits_per_dim)(levels > 0)


@pytest.mark.parametrize("half", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_document(runs, monkeypatch, capsys, half):
    """Its blocks, in order: two of a trained model, two of one's own."""
    monkeypatch.chdir(runs)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks[2 * half :][:2]:
        exec(block, names)
    if half:
        assert "the data's own 1.5" in capsys.readouterr().out
    else:
        images, completed = (np.asarray(names[name], int) for name in ("images", "completed"))
        np.testing.assert_array_equal(completed[:, :4], images[:, :4])
        assert names["again"].shape == images.shape and np.isfinite(names["bits"]).all()


def test_the_block_of_the_readme(runs, monkeypatch):
    monkeypatch.chdir(runs)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(block, names := {})
    assert names["again"].shape == (16, 8, 8, 1) and np.isfinite(names["bits"]).all()
    assert names["gradient"].shape == names["z"].shape


def test_importing_the_package_imports_nothing_else():
    code = "import sys, score_st; assert not {'numpy', 'jax'} & set(sys.modules); score_st.VP; score_st.diffusion.sde"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert all(getattr(score_st, name) is not None for name in score_st.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = score_st.nothing
