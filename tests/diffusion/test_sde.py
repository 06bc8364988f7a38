"""The SDEs against the official values in float64, and against themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.official import SDES

from score_st import config
from score_st.diffusion import sde

each = pytest.mark.parametrize("name", SDES)


@each
def test_marginals_are_the_official_ones_to_float32(reference, name):
    official, made = reference("sde"), SDES[name]
    t = official["t"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(made.alpha(t), official[f"{name}/mean_coeff_f64"])
    close(made.sigma(t), official[f"{name}/std_f64"])
    close(made.drift(t), official[f"{name}/drift_coeff_f64"], atol=1e-7)
    close(made.prior.log_density(official["prior_z"]), official[f"{name}/prior_logp"])
    if name != "rve_eta_ne_sigmamin":  # there the official g is not the derivative of its own σ², see below
        close(jnp.sqrt(made.diffusion2(t)), official[f"{name}/diffusion_f64"])


@pytest.mark.parametrize("name", ["vpsde_1e-5", "subvpsde"])
def test_small_times_are_more_precise_than_the_official_float32(reference, name):
    official = reference("sde")
    exact = official[f"{name}/std_f64"]
    ours = np.max(np.abs(SDES[name].sigma(official["t"]) / exact - 1))
    theirs = np.max(np.abs(official[f"{name}/std"] / exact - 1))
    assert ours < 3e-7 and theirs > 5e-3


@each
def test_derivatives(name):
    """f = d log α/dt, g² = dσ²/dt - 2 f σ² and d logSNR/dt = -g²/σ², by automatic differentiation in float64."""
    made = SDES[name]
    with jax.enable_x64(True):
        t = jnp.geomspace(1e-5, 1, 50, dtype=jnp.float64)
        derivative = lambda f: jax.vmap(jax.grad(f))(t)
        drift, g2, variance = made.drift(t), made.diffusion2(t), made.sigma(t) ** 2
        np.testing.assert_allclose(drift, derivative(made.log_alpha), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(g2, derivative(lambda t: made.sigma(t) ** 2) - 2 * drift * variance, rtol=1e-7)
        np.testing.assert_allclose(-g2 / variance, derivative(made.logsnr), rtol=1e-7)
        np.testing.assert_allclose(made.logsnr(t), 2 * (made.log_alpha(t) - jnp.log(made.sigma(t))), rtol=1e-9)


@each
def test_time_inverts_logsnr(name):
    made = SDES[name]
    with jax.enable_x64(True):
        t = jnp.geomspace(1e-5, 1, 200, dtype=jnp.float64)
        np.testing.assert_allclose(made.time(made.logsnr(t)), t, rtol=1e-9)
    t = jnp.geomspace(1e-5, 1, 200)
    back = made.time(made.logsnr(t))  # in float32 t need only be as precise as σ is sensitive to it
    np.testing.assert_allclose(made.sigma(back), made.sigma(t), rtol=1e-5)


@each
def test_prior(name):
    made = SDES[name]
    z = made.prior.sample(jax.random.key(0), (20000, 2))
    np.testing.assert_allclose(np.std(z), made.prior.std, rtol=0.01)
    entropy = np.log(2 * np.pi * np.e * made.prior.std**2)  # of two dimensions
    np.testing.assert_allclose(-np.mean(made.prior.log_density(z)), entropy, rtol=0.01)


def test_unknown_name_lists_the_choices():
    c = config.default()
    c.training.sde = "vpsd"
    with pytest.raises(config.ConfigError, match="vpsde, subvpsde, vesde, reciprocal_vesde; did you mean vpsde?"):
        sde.from_config(c)
