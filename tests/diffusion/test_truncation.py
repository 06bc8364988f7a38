"""The prior of τ: quantiles, distributions, and one draw per group."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from score_st import config
from score_st.diffusion import truncation

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
    assert np.all(truncation.sample(prior, jax.random.key(0), 4, 8) == np.float32(1e-5))
    c = config.default()
    c.training.update(st=False, k=1.0)
    assert truncation.from_config(c).k == math.inf
    c.training.k = -1.0
    with pytest.raises(config.ConfigError, match="0 or more"):
        truncation.from_config(c)


def test_one_draw_a_group():
    prior = truncation.Truncation(1.0, 1e-5)
    for groups, distinct in ((1, 1), (4, 4), (16, 16)):
        tau = np.asarray(truncation.sample(prior, jax.random.key(3), groups, 16)).reshape(groups, -1)
        assert len(np.unique(tau)) == distinct
        assert np.all(tau == tau[:, :1])  # contiguous parts of the batch


@pytest.mark.parametrize("k", [0.0, 0.9, 1.0, 2.0])
def test_distribution_of_tau(k):
    prior = truncation.Truncation(k, 1e-5)
    tau = truncation.sample(prior, jax.random.key(1), 20000, 20000)
    assert stats.kstest(np.asarray(prior.cdf(tau)), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", truncation.TRUNCATION_PRIORS)
def test_every_prior_of_the_table(name):
    """Quantile and distribution function are inverse, on [ε, 1]; without Soft Truncation all mass is at ε."""
    c = config.default()
    c.training.update(st=True, truncation_prior=name, truncation_time=1e-3)
    prior, u = truncation.from_config(c), jnp.linspace(0, 0.999, 50)
    with jax.enable_x64(True):
        np.testing.assert_allclose(prior.cdf(prior.quantile(u.astype(float))), u, atol=1e-6)
    assert np.all(prior.quantile(u) > 1e-3 * (1 - 1e-6)) and np.all(prior.quantile(u) <= 1)
    c.training.st = False
    assert np.all(truncation.from_config(c).quantile(u) == np.float32(1e-3))
