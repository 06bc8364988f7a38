"""The prior of τ: quantiles, distributions, and one draw per group."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from support.gaussian import SDES, Gaussian, settings_of
from support.quadrature import over_logsnr, tanh_sinh

from score_st import config
from score_st.diffusion import losses, sde, truncation, weighting

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
    c.training.truncation_weighting = "sigmoid" if name == "weighting" else ""
    prior, u = truncation.from_config(c), jnp.linspace(0, 0.999, 50)
    with jax.enable_x64(True):
        atom = prior.cdf(jnp.float64(1e-3))
        assert atom < 0.01
        np.testing.assert_allclose(prior.cdf(prior.quantile(u.astype(float))), jnp.maximum(u, atom), atol=1e-6)
    assert np.all(prior.quantile(u) > 1e-3 * (1 - 1e-6)) and np.all(prior.quantile(u) <= 1)
    c.training.st = False
    assert np.all(truncation.from_config(c).quantile(u) == np.float32(1e-3))


POWER = truncation.Truncation(1.0, 1e-5)
FALLS = {  # where λ/g² first falls, on (VP, sub-VP, VE, RVE); 0: it does not, so Theorem 1 has a prior
    "likelihood": (0, 0, 0, 0),
    "sigmoid": (0, 0, 0, 0),
    "softened": (0, 0, 0, 0),
    "variance": (0.350, 0.463, 0, 0),
    "min_snr": (0.350, 0.463, 0, 0),
    "edm": (0.431, 0.445, 0.642, 3.55e-5),
}


@pytest.mark.parametrize("weights", FALLS)
def test_which_weightings_have_a_prior(weights):
    for falls, (name, diffusion) in zip(FALLS[weights], SDES.items(), strict=True):
        c = weighting.WEIGHTINGS[weights](settings_of(name))
        if falls:
            with pytest.raises(ValueError, match="falls from t = .* on; theorem 1 needs it non-decreasing") as error:
                truncation.of_weighting(c, diffusion)
            t = float(str(error.value).split("t = ")[1].split()[0])
            assert t == pytest.approx(falls, rel=3e-3)
        else:
            prior = truncation.of_weighting(c, diffusion)
            at_eps = weights == "likelihood" or (weights, name) == ("variance", "vesde")
            assert (prior == prior.fixed() == truncation.Truncation(math.inf, 1e-5)) is at_eps


@pytest.mark.parametrize("name", SDES)
def test_the_peak_of_the_edm_weighting(name):
    """By the derivative of ln(λ/g²) in x = ln(σ/α), which is 2/(1 + d² e^−2x) − (x − mean)/std²."""
    diffusion, (mean, std, d) = SDES[name], (-1.2 - math.log(2), 1.2, 0.5)
    x = optimize.brentq(lambda x: 2 / (1 + d**2 * math.exp(-2 * x)) - (x - mean) / std**2, -5, 3)
    with jax.enable_x64(True):
        t = float(diffusion.time(jnp.float64(-2 * x)))
    assert t == pytest.approx(FALLS["edm"][list(SDES).index(name)], rel=2e-3)


def tilted(sde, t):
    """λ/g² = 0.3 + 0.7 t."""
    return (0.3 + 0.7 * t) * sde.diffusion2(t) / jnp.square(sde.sigma(t))


CASES = [("sigmoid", weighting.Sigmoid(2.0), name) for name in SDES]
CASES += [("softened", weighting.Softened(POWER), name) for name in SDES]
CASES += [("variance", weighting.variance, "vesde"), ("variance", weighting.variance, "reciprocal_vesde")]
CASES += [("tilted", tilted, "vpsde"), ("min_snr", weighting.MinSNR(5.0), "vesde")]


@pytest.mark.parametrize(("_", "c", "name"), CASES)
def test_theorem_1(_, c, name):
    """(1/Z) L(λ, ε) = E[L(g², τ)] for τ ~ P_λ, for the closed error of Gaussian data."""
    diffusion, data = SDES[name], Gaussian()
    prior = truncation.of_weighting(c, diffusion)
    with jax.enable_x64(True):
        ratio = lambda t: c(diffusion, t) / weighting.likelihood(diffusion, t)
        expected = over_logsnr(diffusion, lambda t: ratio(t) * data.error(diffusion, t), diffusion.eps)
        expected /= float(ratio(jnp.ones(1))[0])
        inner, inner_mass = tanh_sinh(1 / 16)
        outer, outer_mass = tanh_sinh(1 / 128)
        end = diffusion.logsnr(jnp.float64(1.0))

        def likelihood_loss(tau):
            span = diffusion.logsnr(tau) - end
            return span * (data.error(diffusion, diffusion.time(end + span[:, None] * inner)) @ inner_mass)

        atom = float(prior.cdf(jnp.float64(diffusion.eps)))
        above = likelihood_loss(prior.quantile(jnp.asarray(atom + (1 - atom) * outer))) @ outer_mass
        mean = atom * likelihood_loss(jnp.array([diffusion.eps]))[0] + (1 - atom) * above
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_priors_with_a_closed_form():
    """Softened gives P_k back, sigmoid has logSNR(τ) = b − logit(u Z), 0.3 + 0.7 t the mass 0.300007 at ε."""
    for name, diffusion in SDES.items():
        for k in (0.0, 1.0, 2.0):
            power = truncation.Truncation(k, diffusion.eps)
            prior, u = truncation.of_weighting(weighting.Softened(power), diffusion), jnp.linspace(0.01, 0.99, 99)
            np.testing.assert_allclose(prior.quantile(u), power.quantile(u), rtol=2e-5)
            np.testing.assert_allclose(prior.cdf(power.quantile(u)), u, atol=2e-6)
        prior = truncation.of_weighting(weighting.Sigmoid(2.0), diffusion)
        z = jax.nn.sigmoid(2.0 - diffusion.logsnr(jnp.ones(1)))
        u = jnp.linspace(0.01, 0.99, 99)
        closed = 2.0 - jax.scipy.special.logit(u * z)
        np.testing.assert_allclose(diffusion.logsnr(prior.quantile(u)), closed, atol=2e-4, err_msg=name)
    prior = truncation.of_weighting(tilted, SDES["vpsde"])
    u = jnp.linspace(0, 0.999, 1000)
    np.testing.assert_allclose(prior.cdf(jnp.array([0.0, 9e-6, 1e-5, 0.5])), [0, 0, 0.300007, 0.65], rtol=1e-6)
    tau = jax.jit(prior.quantile)(u)
    np.testing.assert_allclose(tau, jnp.maximum((u - 0.3) / 0.7, 1e-5), rtol=1e-5, atol=1e-7)
    assert jnp.mean(tau == jnp.float32(1e-5)) == pytest.approx(0.3, abs=2e-3)


def test_the_prior_of_a_weighting_in_a_configuration():
    """It is that of the loss with λ, whatever the loss is trained with; without one there is an error."""

    def settings(**training):
        c = config.default()
        c.training.update({"st": True, "truncation_prior": "weighting"} | training)
        return c

    c = settings(truncation_weighting="sigmoid", sigmoid_bias=1.0)
    prior = truncation.from_config(c)
    assert prior == truncation.of_weighting(weighting.Sigmoid(1.0), sde.from_config(c))
    assert losses.from_config(c, sde.from_config(c), 1).weighting == weighting.likelihood
    softened = truncation.from_config(settings(truncation_weighting="softened", k=2.0))
    u = jnp.linspace(0.01, 0.99, 99)
    np.testing.assert_allclose(softened.quantile(u), truncation.Truncation(2.0, 1e-5).quantile(u), rtol=2e-5)
    for more, message in (
        ({}, "training.truncation_weighting: unknown ''; choose from variance, likelihood"),
        ({"truncation_weighting": "variance"}, "truncation_weighting=variance: .* falls from t = 0.350 on"),
        (
            dict(truncation_weighting="sigmoid", weighting="variance"),
            "its prior needs weighting=likelihood in the loss",
        ),
        (
            dict(truncation_weighting="sigmoid", sde="reciprocal_vesde"),
            "its prior needs weighting=likelihood in the",
        ),
        (dict(truncation_weighting="sigmoid", official_loss=True), "its prior needs .*, and official_loss=False"),
        (dict(truncation_weighting="sigmoid", truncation_prior="power"), "sigmoid: needs truncation_prior=weighting"),
        (dict(truncation_weighting="sigmoid", mixed=True), "truncation_weighting=sigmoid: should be empty; the mix"),
        (
            dict(truncation_weighting="sigmoid", weighting="softened"),
            "its prior needs weighting=likelihood in the loss",
        ),
    ):
        with pytest.raises(config.ConfigError, match=message):
            c = settings(**more)
            losses.from_config(c, sde.from_config(c), 1)
            truncation.from_config(c)
    rve = settings(truncation_weighting="sigmoid", sde="reciprocal_vesde", weighting="likelihood")
    assert isinstance(truncation.from_config(rve), truncation.OfWeighting)


def test_a_weighting_that_is_not_finite_has_no_prior():
    for c in (lambda sde, t: jnp.full_like(t, jnp.nan), lambda sde, t: jnp.zeros_like(t)):
        with pytest.raises(ValueError, match="not positive and finite"):
            truncation.of_weighting(c, SDES["vpsde"])
