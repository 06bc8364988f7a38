"""A configuration file outside the package brings an entry for each of seven tables, and everything works."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gaussian import SHAPE, Gaussian

import score_st
from score_st import config, networks, report, sample, train
from score_st import eval as evaluate
from score_st.data import pipeline
from score_st.data.datasets import DATASETS
from score_st.diffusion import likelihood, losses, parametrization, samplers, sde
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import PARAMETRIZATIONS, ScoreModel
from score_st.diffusion.predictors import PREDICTORS
from score_st.diffusion.probability_flow import Solver
from score_st.diffusion.sde import SDES
from score_st.diffusion.time_sampling import TIME_SAMPLERS
from score_st.diffusion.weighting import WEIGHTINGS
from score_st.networks import NETWORKS

FILE = Path(__file__).parent / "fixtures/extension.py"
ROOT = Path(__file__).parents[1]
ENTRIES = {
    "cosine": SDES,
    "square_root": TIME_SAMPLERS,
    "linear": WEIGHTINGS,
    "clean_image": PARAMETRIZATIONS,
    "exponential_sde": PREDICTORS,
    "two_layers": NETWORKS,
    "SQUARES": DATASETS,
}
data = Gaussian()


@pytest.fixture(scope="module")
def extension():
    """The configuration; its entries are in the tables until the module's tests are done."""
    yield config.load(FILE)
    for name, table in ENTRIES.items():
        del table[name]


@pytest.fixture(scope="module")
def cosine(extension):
    return sde.from_config(extension)


def test_sde(cosine):
    """The quantities that follow from log α and log σ, against their closed forms."""
    with jax.enable_x64(True):
        t = jnp.linspace(1e-3, 1, 101)
        theta, slope = cosine.theta(t), cosine.last - cosine.first
        np.testing.assert_allclose(cosine.logsnr(t), -2 * jnp.log(jnp.tan(theta)), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(cosine.logsnr(jnp.array([0.0, 1.0])), [14, -10], rtol=1e-9)
        np.testing.assert_allclose(cosine.time(cosine.logsnr(t)), t, atol=1e-12)
        np.testing.assert_allclose(cosine.drift(t), -slope * jnp.tan(theta), rtol=1e-9)
        np.testing.assert_allclose(cosine.diffusion2(t), 2 * slope * jnp.tan(theta), rtol=1e-9)
        np.testing.assert_allclose(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, 1, rtol=1e-12)


def test_times_and_weighting(extension, cosine):
    """The loss is ∫ t ½‖σ s + z‖² dt, in closed form for Gaussian data."""
    with jax.enable_x64(True):
        n, tau = 100000, 0.04
        u, x = (jnp.arange(n) + 0.5) / n, jnp.full((n, 1, 1, 1), 0.7)
        loss, model = losses.from_config(extension, cosine, 1), ScoreModel(data.score(cosine))
        nodes = [jnp.full_like(x, z) for z in (-1.0, 1.0)]
        taus = jnp.full(n, tau)
        values = [loss(model, x, tau=taus, u=u, z=z, z_rec=z).mean() for z in nodes]
        t = jnp.linspace(tau, 1, 20001)
        alpha, sigma = cosine.alpha(t), cosine.sigma(t)
        v = (alpha * data.std) ** 2 + sigma**2
        error = (sigma * alpha * (0.7 - data.mean) / v) ** 2 + (1 - sigma**2 / v) ** 2
        exact = jnp.trapezoid(0.5 * t * error, t)
        np.testing.assert_allclose(sum(values) / 2, exact, rtol=1e-5)
    times, _ = loss.time_sampler(cosine, jnp.full(3, 0.25), jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(times, [0.25, 0.5625, 1.0], rtol=1e-6)


def test_parametrization(extension, cosine):
    """A network that returns the posterior mean of Gaussian data stands for its score."""

    def posterior_mean(x, time_cond, log_time_cond):
        t = time_cond / 999
        alpha, sigma = (expand(a, x) for a in (cosine.alpha(t), cosine.sigma(t)))
        return data.mean + alpha * data.std**2 * (x - alpha * data.mean) / ((alpha * data.std) ** 2 + sigma**2)

    x, t = jax.random.normal(jax.random.key(0), (5, *SHAPE)), jnp.linspace(0.05, 1, 5)
    score = parametrization.from_config(extension, cosine).score(posterior_mean)
    np.testing.assert_allclose(score(x, t), data.score(cosine)(x, t), rtol=1e-4, atol=1e-4)
    with jax.enable_x64(False), pytest.raises(config.ConfigError, match="ddpm_score=False asks for another one"):
        changed = config.load(FILE, {"training.ddpm_score": "False"})
        parametrization.from_config(changed, cosine)


def test_predictor(extension, cosine):
    """Mean and standard deviation of what it draws, and what it costs."""
    sampler = samplers.from_config(config.load(FILE, {"sampling.steps": "200", "sampling.grid": "logsnr"}))
    keys = jax.random.split(jax.random.key(0), 4000)
    x, nfe = jax.jit(lambda keys: sampler(data.score(cosine), cosine, keys, SHAPE))(keys)
    assert int(nfe[0]) == 201 and sampler.evaluations_per_step == 1
    np.testing.assert_allclose([x.mean(), x.std()], [data.mean, data.std], atol=0.02)


def test_likelihood(cosine):
    """By the flow of this SDE, whose logSNR is inverted by bisection."""
    x = data.sample(jax.random.key(1), 4)
    result = likelihood.nll(data.score(cosine), cosine, x, jnp.ones_like(x)[:, None], Solver(1e-5, 1e-5))
    assert result.reached.all()
    np.testing.assert_allclose(result.total, data.nll(x), atol=0.05)  # x_ε is narrower than x_0, by e^−14


def test_network_and_data(extension):
    network = networks.from_config(extension)
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))["params"]
    assert all(jax.tree.leaves(networks.trainable(network, params)))
    with pytest.raises(config.ConfigError, match="training.dtype=bfloat16: TwoLayers has no field `dtype`"):
        networks.with_arithmetic(network, jnp.bfloat16, "none")
    images = pipeline.load(extension, "test")
    assert images.shape == (32, 8, 8, 1) and np.all(np.sum(np.asarray(images) == 255, axis=(1, 2, 3)) == 9)


def test_entries_of_the_package_stay(extension):
    with pytest.raises(config.ConfigError, match="training.sde: 'vpsde' is an entry of the package"):
        SDES["vpsde"] = SDES["cosine"]


@pytest.fixture(scope="module")
def workdir(extension, one_device, tmp_path_factory):
    """A run of two steps, started with a copy of the file that is gone afterwards."""
    folder = tmp_path_factory.mktemp("extension")
    file, workdir = folder / "mine.py", folder / "run"
    shutil.copyfile(FILE, file)
    train.main(["--config", str(file), "--workdir", str(workdir)], one_device)
    file.unlink()
    return workdir


def test_commands(workdir, one_device):
    """Training kept the file; evaluation, samples and report need no other."""
    assert (workdir / "config.py").read_text() == FILE.read_text()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2] and all(math.isfinite(line["loss"]) for line in lines)
    common = ["--config", str(workdir / "config.py"), "--workdir", str(workdir)]
    figures = evaluate.main(common, one_device)
    assert figures["images"] == 32 and math.isfinite(figures["nelbo"]) and figures["sde"] == "cosine"
    sample.main([*common, "--num", "4"], one_device)
    assert json.loads((workdir / "samples/samples.json").read_text())["nfe"] == 5
    report.main(["--workdir", str(workdir)])
    assert "SQUARES 8&#215;8&#215;1, cosine" in (workdir / "report.html").read_text()


def python(code: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_load_in_another_process(workdir):
    """The entries come from the workdir's copy; the model is the one that was trained."""
    ran = python("import sys, score_st; model = score_st.load(sys.argv[1]); print(model.step, model.sde)", workdir)
    assert ran.stdout == "2 Cosine(eps=0.001, T=1.0)\n", ran.stderr


def test_an_entry_that_is_missing_is_named(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/config.py").unlink()
    code = "import sys, score_st\ntry: score_st.load(sys.argv[1])\nexcept score_st.ConfigError as error: print(error)"
    ran = python(code, tmp_path / "run")
    line = f"{tmp_path}/run/config.json: data.dataset='SQUARES' is unknown, and {tmp_path}/run/config.py, which should"
    assert ran.stdout == f"{line} add it, is not there\n", ran.stderr
    assert score_st.ConfigError is config.ConfigError
