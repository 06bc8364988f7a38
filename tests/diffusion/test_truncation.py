"""The prior of τ and the laws of t given τ: quantiles, distributions and weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support.official import SDES

from score_st import config
from score_st.diffusion import time_sampling, truncation

EXPONENTS = (0.0, 0.5, 0.9, 0.999, 1.0, 1.1, 2.0, 3.0, 50.0)


def test_quantile_is_the_official_one(reference):
    official = reference("sde")
    for k, tau in zip(official["k"], official["vpsde_1e-5/tau"], strict=True):
        with jax.enable_x64(True):
            ours = truncation.Truncation(float(k), 1e-5).quantile(jnp.float64(official["u"]))
        np.testing.assert_allclose(ours, tau, rtol=1e-9)


def test_rve_prior_is_p2_read_backwards(reference):
    official = reference("sde")
    with jax.enable_x64(True):
        ours = truncation.Truncation(2.0, 1e-5).quantile(1 - jnp.float64(official["u"]))
    np.testing.assert_allclose(ours, official["rve_cifar10/tau"].squeeze(), rtol=1e-9)


@pytest.mark.parametrize("k", EXPONENTS)
def test_quantile_inverts_the_integral_of_the_density(k):
    prior = truncation.Truncation(k, 1e-3)
    with jax.enable_x64(True):
        tau = np.geomspace(1e-3, 1, 20001)
        mass = np.concatenate([[0], np.cumsum(np.diff(tau) * (tau[1:] ** -k + tau[:-1] ** -k) / 2)])
        cdf = mass / mass[-1]
        np.testing.assert_allclose(prior.cdf(tau), cdf, atol=1e-5)
        u = np.linspace(0, 0.999, 50)
        np.testing.assert_allclose(prior.cdf(prior.quantile(u)), u, atol=1e-9)


def test_no_soft_truncation():
    prior = truncation.Truncation(math.inf, 1e-5)
    assert np.all(prior.sample(jax.random.key(0), 4, 8) == np.float32(1e-5))
    c = config.default()
    c.training.update(st=False, k=1.0)
    assert truncation.from_config(c).k == math.inf
    c.training.k = -1.0
    with pytest.raises(config.ConfigError, match="0 or more"):
        truncation.from_config(c)


def test_one_draw_a_group():
    prior = truncation.Truncation(1.0, 1e-5)
    for groups, distinct in ((1, 1), (4, 4), (16, 16)):
        tau = np.asarray(prior.sample(jax.random.key(3), groups, 16)).reshape(groups, -1)
        assert len(np.unique(tau)) == distinct
        assert np.all(tau == tau[:, :1])  # contiguous parts of the batch


@pytest.mark.parametrize("k", [0.0, 0.9, 1.0, 2.0])
def test_law_of_tau(k):
    prior = truncation.Truncation(k, 1e-5)
    tau = prior.sample(jax.random.key(1), 20000, 20000)
    assert stats.kstest(np.asarray(prior.cdf(tau)), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["vpsde_1e-5", "vesde_celeba"])
def test_times_and_weights_are_the_official_ones(reference, name):
    official, made = reference("sde"), SDES[name]
    with jax.enable_x64(True):
        u = jnp.float64(official["u"])
        for i, t_min in enumerate(official["t_min"]):
            tau = jnp.full_like(u, t_min)
            t, z = time_sampling.importance(made, tau, u)
            # float32's 1 - exp(-B) limits the official values at small t, and log(1 + exp(x)) at t near 1
            atol = 0.1 if name.startswith("vp") else 1e-5
            theirs = made.logsnr(jnp.float64(official[f"{name}/diffusion_time_is1/t"][i]))
            np.testing.assert_allclose(made.logsnr(t), theirs, atol=atol)
            np.testing.assert_allclose(z, official[f"{name}/diffusion_time_is1/Z"][i], atol=0.3 * atol)
            middle = (t > 1e-2) & (t < 0.99)
            np.testing.assert_allclose(made.logsnr(t)[middle], theirs[middle], atol=atol if t_min < 1e-3 else 1e-3)
            t, weight = time_sampling.uniform(made, tau, u)
            np.testing.assert_allclose(t, official[f"{name}/diffusion_time_is0/t"][i], rtol=1e-5)
            np.testing.assert_allclose(weight, 1 - t_min, rtol=1e-6)


def test_importance_normaliser_in_float64(reference):
    official, made = reference("sde"), SDES["vpsde_1e-5"]
    growth = official["vpsde_1e-5/antiderivative_f64"]  # minus logSNR
    t = jnp.asarray(official["t"])
    np.testing.assert_allclose(made.logsnr(t), -growth, rtol=1e-6, atol=1e-6)


def test_reciprocal_times_are_the_official_ones(reference):
    official, made = reference("sde"), SDES["rve_cifar10"]
    with jax.enable_x64(True):
        u = 1 - jnp.float64(official["u"])  # the official quantile decreases in u
        for i, t_min in enumerate(official["t_min"]):
            t, _ = time_sampling.reciprocal(made, jnp.full_like(u, t_min), u)
            np.testing.assert_allclose(t, official["rve_cifar10/diffusion_time_is0/t"][i], rtol=1e-5)


@pytest.mark.parametrize("law", time_sampling.LAWS)
@pytest.mark.parametrize("name", SDES)
def test_weighted_mean_over_t_is_the_integral(name, law):
    """E[w c(t) h(t)] = C ∫ c h dt for any h, with c = 1 (uniform), g²/σ² (importance) or 1/t² (reciprocal)."""
    made, tau = SDES[name], 1e-2
    with jax.enable_x64(True):
        u = (jnp.arange(20000) + 0.5) / 20000
        t, weight = time_sampling.LAWS[law](made, jnp.full_like(u, tau), u)
        density = {
            "uniform": lambda t: jnp.ones_like(t),
            "importance": lambda t: made.diffusion2(t) / made.sigma(t) ** 2,
            "reciprocal": lambda t: t**-2 / (1e5 - 1),
        }[law]
        grid = jnp.geomspace(tau, 1, 20001)
        for h in (jnp.ones_like, jnp.cos, jnp.sqrt):
            values = density(grid) * h(grid)
            integral = jnp.sum(jnp.diff(grid) * (values[1:] + values[:-1]) / 2)
            np.testing.assert_allclose(jnp.mean(weight * h(t)), integral, rtol=1e-4)
        assert jnp.all(jnp.diff(t) > 0) and t[0] >= tau and t[-1] <= 1


def test_low_discrepancy():
    """One shift of a grid, and over many keys each entry uniform."""
    draws = np.asarray(
        jax.vmap(lambda key: time_sampling.low_discrepancy(key, 8))(jax.random.split(jax.random.key(0), 4000))
    )
    np.testing.assert_allclose(np.diff(np.sort(draws, axis=1), axis=1), 1 / 8, atol=1e-6)
    assert all(stats.kstest(column, "uniform").pvalue > 1e-4 for column in draws.T)


@pytest.mark.parametrize("sde", ["vpsde", "reciprocal_vesde"])
def test_law_of_a_configuration(sde):
    c = config.default()
    c.training.sde = sde
    laws = []
    for flag in (True, False):
        c.training.importance_sampling = flag
        laws.append(time_sampling.from_config(c))
    assert laws == (
        [time_sampling.importance, time_sampling.uniform] if sde == "vpsde" else [time_sampling.reciprocal] * 2
    )
