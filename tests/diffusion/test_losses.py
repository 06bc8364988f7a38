"""The losses against the official values for given noise, and their parts against closed forms."""

import dataclasses
import functools
import json
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gaussian import SDES, Gaussian, settings_of
from support.official import FIXTURES, GivenTimes, OfficialRVE, OfficialVP, family, importance_weight, nhwc
from support.quadrature import over_logsnr, tanh_sinh

from score_st import config
from score_st.diffusion import losses, parametrization, sde, time_sampling
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import ScoreModel
from score_st.diffusion.time_sampling import TIME_SAMPLERS
from score_st.diffusion.weighting import WEIGHTINGS, likelihood

OFFICIAL = np.load(FIXTURES / "losses.npz")
CASES = json.loads(str(OFFICIAL["_meta"]))


def growth(diffusion, t):
    """Minus logSNR as officially computed, in float32."""
    b = np.float32(diffusion.integral_beta(np.float32(t)))
    return np.log(np.float32(1) - np.exp(-b)) + b


@pytest.mark.parametrize("name", ["a", "c"])
def test_official_losses(name):
    """Importance, uniform and likelihood weighting, mean or sum, two kinds of reconstruction, two τ: to 1e-5."""
    made, exp, params, _ = family(name)
    diffusion = OfficialVP() if name == "a" else OfficialRVE(sigma_min=1e-3, sigma_max=50.0, eta=1e-3)
    network = jax.jit(exp.apply(params), static_argnums=2)
    model = ScoreModel(parametrization.from_config(made, diffusion).score(network), network)
    img, u, z, z_rec = (jnp.asarray(nhwc(OFFICIAL[f"in/{key}"])) for key in ("img", "u_t", "z", "z_rec"))
    x = 2 * img - 1 if made.data.centered else img
    errors = {}
    for case, meta in CASES.items():
        if not case.startswith(name) or case.endswith("micro2"):
            continue
        settings = made.copy_and_resolve_references()
        for key, value in (meta["overrides"] | {"training.official_loss": True}).items():
            settings[key.split(".")[0]][key.split(".")[1]] = value
        tau = jnp.full(4, OFFICIAL[f"{case}/t_min"], jnp.float32)
        t, weight = time_sampling.from_config(settings, diffusion)(diffusion, tau, u if name == "a" else 1 - u)
        labels = OFFICIAL[f"{case}/labels"][:4]
        if name == "a":  # the official times, which its rounding moves a little
            np.testing.assert_allclose(diffusion.logsnr(t), diffusion.logsnr(labels / 999), atol=0.2)
            t = jnp.asarray(labels / 999)
            if settings.training.importance_sampling:
                weight = jnp.full(4, importance_weight(diffusion, tau[0]))
        else:
            np.testing.assert_allclose(diffusion.sigma(t), labels, rtol=1e-5)
        loss = losses.from_config(settings, diffusion, 1)
        loss = dataclasses.replace(loss, time_sampler=GivenTimes(loss.time_sampler, t, weight))
        if name == "c" and loss.log_mass:  # officially the bins of [-1, 1], though these images are in [0, 1]
            bins = dict(low=-1.0, high=0.999 + 1 / 255, half_bin=1 / 255)
            loss = dataclasses.replace(loss, log_mass=functools.partial(loss.log_mass, **bins))
        ours = loss(model, x, tau=tau, u=u, z=z, z_rec=z_rec)
        errors[case] = float(np.max(np.abs(ours / OFFICIAL[f"{case}/losses"] - 1)))
    assert len(errors) > 12
    assert not {case: error for case, error in errors.items() if error > 1e-5}


@dataclasses.dataclass(frozen=True)
class Constant:
    """A loss that is the score of each image times a factor, for what mixtures do with losses."""

    soft_truncation: ClassVar[bool] = True
    images_per_value: ClassVar[int] = 1

    factor: float

    def __call__(self, model, x, *, tau, u, z, z_rec):
        return self.factor * model.score(x, u) * tau


@pytest.mark.parametrize("balanced", [False, True])
def test_mixture(balanced):
    """Of each group's images the first half takes one loss, the second the other, balanced without a gradient."""
    x = jnp.arange(1.0, 9).reshape(8, 1, 1, 1)
    tau = jnp.repeat(jnp.array([0.5, 0.25]), 4)
    mixture = losses.Mixture(Constant(1.0), Constant(3.0), 100.0, balanced, groups=2)
    model = lambda w: ScoreModel(lambda x, u: w * x.ravel() ** 2)
    value = lambda w: mixture(model(w), x, tau=tau, u=tau, z=x, z_rec=x)
    first, second = np.array([1, 4, 25, 36.0]), 3 * np.array([9, 16, 49, 64.0])
    at = np.array([0.5, 0.5, 0.25, 0.25])
    ratio = (first / second).reshape(2, 2).mean(1).repeat(2) if balanced else np.ones(4)
    exact = at * (first + 100 * ratio * second)
    np.testing.assert_allclose(value(1.0), exact, rtol=1e-6)
    np.testing.assert_allclose(jax.jacobian(value)(1.0), exact, rtol=1e-6)


def test_mixture_of_a_configuration():
    c = config.default()
    c.training.update(mixed=True, ddpm_weight=100.0, importance_sampling=False, likelihood_weighting=False)
    mixture = losses.from_config(c, sde.from_config(c), groups=2)
    samplers = time_sampling.Importance(), time_sampling.Uniform()
    assert (mixture.first.time_sampler, mixture.second.time_sampler) == samplers
    assert mixture.first.weighting is mixture.second.weighting is None  # natural
    assert (mixture.weight, mixture.balanced, mixture.groups) == (100.0, False, 2)


def allowed(name, sampler, weights):
    """The loss of this pair, or None if it is one that a configuration may not have."""
    c = settings_of(name, time_sampler=sampler, weighting=weights)
    if sampler == "softened" and weights != "softened":
        with pytest.raises(config.ConfigError, match="time_sampler=softened: needs weighting=softened"):
            losses.from_config(c, SDES[name], 1)
        return None
    return losses.from_config(c, SDES[name], 1)


@pytest.mark.parametrize("sampler", TIME_SAMPLERS)
@pytest.mark.parametrize("name", SDES)
def test_the_mean_over_u_is_the_weighted_integral(name, sampler):
    """Of every time sampler with every weighting, up to the sampler's constant; in closed form for Gaussian data."""
    diffusion, data = SDES[name], Gaussian()
    model = ScoreModel(data.score(diffusion))
    constant = 1 / (1 / diffusion.eps - 1) if sampler == "reciprocal" else 1.0

    with jax.enable_x64(True):
        u, mass = tanh_sinh()
        x = jnp.full((len(u), 1, 1, 1), 0.7)
        for weights in WEIGHTINGS:
            if (loss := allowed(name, sampler, weights)) is None:
                continue
            c = WEIGHTINGS[weights](settings_of(name))
            for tau in (diffusion.eps, 0.1):
                given = dict(tau=jnp.full(len(u), tau), u=jnp.asarray(u))
                values = [loss(model, x, z=sign * x / 0.7, z_rec=x, **given) for sign in (-1, 1)]
                integrand = lambda t, c=c: 0.5 * c(diffusion, t) / likelihood(diffusion, t) * data.error(diffusion, t)
                exact = constant * over_logsnr(diffusion, integrand, tau)
                estimate = jnp.sum(mass * sum(values)) / 2  # exact for a quadratic in z
                np.testing.assert_allclose(estimate, exact, rtol=1e-4, err_msg=f"{weights}, τ = {tau}")


def test_reconstruction_of_a_gaussian():
    """With the exact score the decoder's mean is the posterior mean, and its standard deviation σ/α."""
    diffusion, data = SDES["vpsde"], Gaussian()
    t = jnp.array([0.01, 0.3])
    x, z = data.sample(jax.random.key(0), 2), jax.random.normal(jax.random.key(1), (2, 2, 2, 1))
    mean, std = losses.decoder(data.score(diffusion), diffusion, x, t, z)
    alpha, sigma = (expand(c, x) for c in (diffusion.alpha(t), diffusion.sigma(t)))
    v = data.std**2
    posterior = data.mean + alpha * v * (alpha * x + sigma * z - alpha * data.mean) / (alpha**2 * v + sigma**2)
    np.testing.assert_allclose(mean, posterior, rtol=1e-5)
    nll = 0.5 * jnp.sum(jnp.square((x - mean) / expand(std, x)), (1, 2, 3)) + 2 * jnp.log(2 * jnp.pi * std**2)
    entropy = 2 * jnp.log(2 * jnp.pi * math.e * diffusion.sigma(t) ** 2)
    np.testing.assert_allclose(
        losses.reconstruction(data.score(diffusion), diffusion, x, t, z), nll - entropy, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["vpsde", "vesde"])
def test_discrete_losses(kind):
    """DDPM and SMLD: the perturbed image and the level that reach the network, and the error, by their definitions."""
    c = config.default()
    c.training.update(sde=kind, continuous=False, likelihood_weighting=False)
    c.model.update(num_scales=10, beta_max=2.0)
    loss = losses.from_config(c, sde.from_config(c), 1)
    x, z = jnp.linspace(0, 1, 12).reshape(3, 2, 2, 1), jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    seen = {}

    def network(perturbed, time_cond, log_time_cond):
        seen.update(x=perturbed, time_cond=time_cond)
        return 0.1 * perturbed

    u, model = jnp.array([0.0, 0.55, 0.9999]), ScoreModel(lambda x, t: x, network)
    value = loss(model, x, tau=jnp.ones(3), u=u, z=z, z_rec=z)
    np.testing.assert_array_equal(seen["time_cond"], [0, 5, 9])
    if kind == "vpsde":
        alpha2 = np.cumprod(1 - np.linspace(0.01, 0.2, 10))[[0, 5, 9]]
        alpha, sigma = np.sqrt(alpha2), np.sqrt(1 - alpha2)
    else:
        alpha, sigma = np.ones(3), np.geomspace(50, 0.01, 10)[[0, 5, 9]]
    alpha, sigma = (a.reshape(3, 1, 1, 1) for a in (alpha, sigma))
    perturbed = alpha * x + sigma * z
    np.testing.assert_allclose(seen["x"], perturbed, rtol=1e-4, atol=1e-6)
    target = z if kind == "vpsde" else -z / sigma
    weight = 1 if kind == "vpsde" else sigma**2
    error = (weight * (0.1 * perturbed - target) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(value, 0.5 * error, rtol=1e-4)


def test_discrete_losses_have_no_likelihood_weighting():
    c = config.default()
    c.training.update(continuous=False, likelihood_weighting=True)
    with pytest.raises(config.ConfigError, match="likelihood_weighting"):
        losses.from_config(c, sde.from_config(c), 1)
