"""DDPM's bound against its closed form in float64, for Gaussian data with the exact noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support.gaussian import Gaussian

from score_st import config
from score_st.diffusion import discrete_bound, parametrization, sde
from score_st.diffusion.parametrization import ScoreModel

N, LEVELS, X0 = 50, 41, 0.2  # steps, and a pixel at the middle of a bin
DATA = Gaussian(0.1, 0.05)  # far from the edges, so that no guess is clipped
BETA = np.linspace(0.1 / N, 20 / N, N)
ALPHA2 = np.cumprod(1 - BETA)
SNR = ALPHA2 / (1 - ALPHA2)


def settings(**changes):
    changes = {key.replace("__", "."): str(value) for key, value in changes.items()}
    fixed = {"model.num_scales": str(N), "data.num_levels": str(LEVELS), "data.dequantization": "lossless"}
    fixed |= {"eval.nelbo_discrete_iter": "1", "data.centered": "True"}
    return config.changed(config.default(), fixed | changes)


def bound(**changes):
    chosen = settings(**changes)
    return discrete_bound.from_config(chosen, sde.from_config(chosen))


def discrete_network(x, level, _):
    """The noise in x_i, by the number of the level; Gaussian data, as DATA.score."""
    alpha2 = jnp.asarray(ALPHA2)[level.astype(int)].reshape(-1, 1, 1, 1)
    return jnp.sqrt(1 - alpha2) * (x - jnp.sqrt(alpha2) * DATA.mean) / (alpha2 * DATA.std**2 + 1 - alpha2)


def exact(variance):
    """The terms for one pixel, with the variance of each step [N − 1]."""
    posterior = BETA[1:] * (1 - ALPHA2[:-1]) / (1 - ALPHA2[1:])
    total = ALPHA2 * DATA.std**2 + 1 - ALPHA2  # of x_i over the data and the noise
    bias, noise = (1 - ALPHA2) / total * (X0 - DATA.mean), np.sqrt(ALPHA2 * (1 - ALPHA2)) * DATA.std**2 / total
    # DDPM's mean of a step has √ᾱ' β/(1 − ᾱ) times the guess of x_0
    shift2 = ALPHA2[:-1] * (BETA[1:] / (1 - ALPHA2[1:])) ** 2 * (bias**2 + noise**2)[1:]
    z, weights = np.polynomial.hermite_e.hermegauss(16)
    decoder = stats.norm(X0 - bias[0] + noise[0] * z, np.sqrt(posterior[0]))
    half = 1 / (LEVELS - 1)
    first = -np.log(decoder.cdf(X0 + half) - decoder.cdf(X0 - half))
    return {
        "prior": 0.5 * (ALPHA2[-1] * X0**2 + (1 - ALPHA2[-1]) - 1 - np.log(1 - ALPHA2[-1])),
        "diffusion": np.sum(shift2 / (2 * variance(posterior))),
        "variance": 0.5 * np.sum(posterior / variance(posterior) - 1 + np.log(variance(posterior) / posterior)),
        "reconstruction": first @ weights / weights.sum(),
    }


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_closed_form(continuous, variance):
    """Each step once, at the middle of its part of [0, 1), and means over the noise by quadrature."""
    with jax.enable_x64(True):
        if continuous:  # told a time, which is that of the level
            made = bound(eval__nelbo_discrete_variance=variance)
            model = ScoreModel(DATA.score(sde.VP()))
        else:
            made = bound(eval__nelbo_discrete_variance=variance, training__continuous=False)
            model = ScoreModel(DATA.score(sde.VP()), discrete_network)
        fall = -np.diff(np.log(SNR))
        z, weights = np.polynomial.hermite_e.hermegauss(16)
        u, z = (
            jnp.asarray(grid.ravel())
            for grid in np.meshgrid((np.cumsum(fall) - fall / 2) / fall.sum(), z, indexing="ij")
        )
        z = z.reshape(-1, 1, 1, 1)
        terms = {name: np.asarray(term) for name, term in made(model, jnp.full_like(z, X0), u, z, z).items()}
    weights = np.outer(fall / fall.sum(), weights / weights.sum()).ravel()
    expected = exact(lambda posterior: posterior if variance == "posterior" else BETA[1:])
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name] @ weights, value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert terms.keys() == expected.keys()


def test_steps_are_drawn_without_a_bias():
    """Over u uniform on [0, 1), in float32, with a guess beyond the data's range, which is clipped to 1."""
    u = (jnp.arange(40000) + 0.5) / 40000
    x = jnp.full((len(u), 1, 1, 1), X0)
    model = ScoreModel(lambda x, t: 1e6 * jnp.ones_like(x))
    terms = bound()(model, x, u, jnp.zeros_like(x), jnp.zeros_like(x))
    expected = 0.5 * (SNR[0] - SNR[-1]) * (1 - X0) ** 2
    np.testing.assert_allclose(terms["diffusion"].mean(), expected, rtol=1e-3)


def test_levels_of_ddpm():
    """β from 1e-4 to 0.02 over 1,000 steps; VP has each level's noise at a time near (i + 1) / 1000."""
    alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    logsnr = parametrization.ddpm_logsnr(0.1, 20.0, 1000)
    np.testing.assert_allclose(logsnr, np.log(alpha2 / (1 - alpha2)), rtol=1e-9)
    times = sde.VP().time(jnp.asarray(logsnr, jnp.float32))
    np.testing.assert_allclose(times, np.arange(1, 1001) / 1000, atol=4e-3)


@pytest.mark.parametrize("changes", [{"training__sde": "subvpsde"}, {"training__sde": "vesde"}])
def test_other_levels_are_refused(changes):
    with pytest.raises(config.ConfigError, match="needs training.sde=vpsde"):
        bound(**changes)
