"""Parametrizations: what a network that knows nothing stands for, and how far it can be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gaussian import SDES, SHAPE, Gaussian, settings_of

from score_st import config, networks
from score_st.diffusion import likelihood, parametrization, probability_flow
from score_st.diffusion.parametrization import denoise
from score_st.model import DiffusionModel

KEYS = jax.random.split(jax.random.key(0), 3)


def zero(x, time_cond, log_time_cond):
    return jnp.zeros_like(x)


def settings(name: str, **model):
    made = settings_of(name)
    made.model.update(dict(parametrization="edm", data_std=0.7, data_mean=-0.4) | model)
    return made


@pytest.mark.parametrize("name", SDES)
def test_a_preconditioned_network_that_returns_zero_knows_a_gaussian(name):
    """Its score is that of N(m, d²) data to 1e-6 of its size at every t, and the flow's NLL is theirs to 1e-3."""
    diffusion, data = SDES[name], Gaussian(-0.4, 0.7)
    score = parametrization.from_config(settings(name), diffusion).score(zero)
    t = jnp.geomspace(diffusion.eps, diffusion.T, 40)
    x = diffusion.sigma(t)[:, None, None, None] * jax.random.normal(KEYS[0], (40, *SHAPE)) + 0.3
    exact = np.asarray(data.score(diffusion)(x, t))
    np.testing.assert_allclose(jax.jit(score)(x, t), exact, rtol=2e-6, atol=1e-6 * np.abs(exact).max())
    # without a mean, which the prior of VP at T does not have
    score, data = parametrization.from_config(settings(name, data_mean=0.0), diffusion).score(zero), Gaussian(0.0, 0.7)
    start = data.sample(KEYS[1], 6)
    probes = jax.random.rademacher(KEYS[2], (6, 1, *SHAPE)).astype(jnp.float32)
    flow = jax.jit(lambda x: likelihood.nll(score, diffusion, x, probes, probability_flow.Solver()))(start)
    np.testing.assert_allclose(flow.total, data.nll(start), atol=1e-3 * np.prod(SHAPE))
    assert np.all(flow.reached)


def test_velocity_is_the_preconditioned_form_of_unit_variance():
    """On VP its output is −v = σ x_0 − α z (Salimans and Ho 2022), whatever the data's statistics are said to be."""
    diffusion = SDES["vpsde"]
    form = parametrization.from_config(settings("vpsde", parametrization="velocity"), diffusion)
    x0, z = (jax.random.normal(key, (5, *SHAPE)) for key in KEYS[:2])
    t = jnp.array([1e-5, 0.01, 0.3, 0.7, 1.0])
    mean, std = diffusion.marginal(x0, t)
    std, alpha = std[:, None, None, None], diffusion.alpha(t)[:, None, None, None]
    score = form.score(lambda *_: std * x0 - alpha * z)(mean + std * z, t)
    np.testing.assert_allclose(std * score, -z, atol=2e-5)
    assert form.mean is None and parametrization.preconditioned(diffusion, 1.0).mean is None


@pytest.mark.parametrize(
    "name, bound", [("vpsde", 0.0033), ("subvpsde", 0.0033), ("vesde", 0.010), ("reciprocal_vesde", 0.010)]
)
def test_how_far_a_preconditioned_score_can_be_wrong(name, bound):
    """Where |F| <= 1: σ s at T by α d/√(α² d² + σ²), and E[x_0 | x_ε] by σ²/(α² d²) of x besides σ/α."""
    diffusion, d = SDES[name], 0.5
    form = parametrization.from_config(settings(name, data_std=d, data_mean=0.0), diffusion)
    ones = lambda x, *_: jnp.ones_like(x)
    x = jnp.full((1, *SHAPE), 0.8)
    last = jnp.array([diffusion.T])
    change = diffusion.sigma(last)[0] * (form.score(ones)(x, last) - form.score(zero)(x, last))
    np.testing.assert_allclose(change, bound, rtol=0.06)
    first = jnp.array([diffusion.eps])
    ratio = float(diffusion.sigma(first)[0] / diffusion.alpha(first)[0])
    clean = denoise(form.score(zero), diffusion, x, first)
    np.testing.assert_allclose(clean, x / diffusion.alpha(first)[0], rtol=1.01 * (ratio / d) ** 2 + 1e-6)


@pytest.mark.parametrize("name", SDES)
def test_the_input_of_a_preconditioned_network_has_unit_variance(name):
    """At every t, and the network takes it as it is: it does not compute 2x − 1."""
    diffusion, data = SDES[name], Gaussian(-0.4, 0.7)
    form = parametrization.from_config(settings(name), diffusion)
    seen = []
    x0, z = data.sample(KEYS[0], 4000), jax.random.normal(KEYS[1], (4000, *SHAPE))
    for t in (diffusion.eps, 0.3, diffusion.T):
        times = jnp.full(4000, t)
        mean, std = diffusion.marginal(x0, times)
        form.score(lambda x, *_: seen.append(x) or x)(mean + std[:, None, None, None] * z, times)
    np.testing.assert_allclose([np.std(x) for x in seen], 1, atol=0.02)
    np.testing.assert_allclose([np.mean(x) for x in seen], 0, atol=0.03)
    made = settings(name, nf=8, ch_mult=(1,), num_res_blocks=1)
    assert not made.data.centered and not networks.from_config(made).centered
    assert DiffusionModel.from_config(made).network.centered


@pytest.mark.parametrize("name", SDES)
def test_time_conditioning(name):
    """999 t, ¼ log(σ/α), which is a Fourier embedding's logarithm too, and the unbounded one where there is one."""
    diffusion, t = SDES[name], jnp.geomspace(1e-4, 1, 7)
    form = lambda **model: parametrization.from_config(settings(name, **model), diffusion)
    np.testing.assert_allclose(form().time_conditioning(t), 999 * t)
    assert form().log_time_conditioning is None
    level = form(time_conditioning="log_noise_level")
    exact = 0.25 * np.log(np.asarray(diffusion.sigma(t), np.float64) / np.asarray(diffusion.alpha(t), np.float64))
    np.testing.assert_allclose(level.time_conditioning(t), exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(level.log_time_conditioning(t), level.time_conditioning(t))
    if name == "vesde":
        with pytest.raises(config.ConfigError, match="vesde has no unbounded form"):
            form(time_conditioning="unbounded")
        return
    official = settings_of(name, unbounded_parametrization=True)
    expected = parametrization.from_config(official, diffusion)
    twin = settings(name)
    twin.training.unbounded_parametrization = True
    for made in (form(time_conditioning="unbounded"), parametrization.from_config(twin, diffusion)):
        np.testing.assert_array_equal(made.time_conditioning(t), expected.time_conditioning(t))
        assert (made.log_time_conditioning is None) == (expected.log_time_conditioning is None)
        assert made.skip and made.normalized


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"training.continuous": "False"}, "training.continuous=False asks for another one"),
        ({"training.ddpm_score": "False"}, "training.ddpm_score=False asks for another one"),
        ({"model.scale_by_sigma": "True"}, "can't be combined with model.scale_by_sigma=True; should be False"),
        ({"training.official_loss": "True"}, "can't be combined with training.official_loss=True; should be False"),
        ({"model.time_conditioning": "sigma"}, "model.time_conditioning: unknown 'sigma'; choose from bounded"),
        (
            {"model.time_conditioning": "bounded", "training.unbounded_parametrization": "True"},
            "time_conditioning=bounded: training.unbounded_parametrization=True asks for another one",
        ),
        (
            {"model.parametrization": "", "model.time_conditioning": "bounded", "training.continuous": "False"},
            "time_conditioning=bounded: training.continuous=False asks for another one",
        ),
    ],
)
def test_what_cannot_be_combined(changes, message):
    made = config.changed(settings("vpsde"), changes)
    with pytest.raises(config.ConfigError, match=message):
        parametrization.from_config(made, SDES["vpsde"])
