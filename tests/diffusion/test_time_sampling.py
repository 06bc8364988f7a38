"""How t is drawn given τ: quantiles, weights, and what the configuration means by its keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support import gaussian, quadrature
from support.official import SDES

from score_st import config
from score_st.diffusion import losses, sde, time_sampling, truncation, weighting
from score_st.diffusion.time_sampling import TIME_SAMPLERS


@pytest.mark.parametrize("name", ["vpsde_1e-5", "vesde_celeba"])
def test_times_and_weights_are_the_official_ones(reference, name):
    official, made = reference("sde"), SDES[name]
    with jax.enable_x64(True):
        u = jnp.float64(official["u"])
        for i, t_min in enumerate(official["t_min"]):
            tau = jnp.full_like(u, t_min)
            t, z = time_sampling.Importance()(made, tau, u)
            # float32's 1 - exp(-B) limits the official values at small t, and log(1 + exp(x)) at t near 1
            atol = 0.1 if name.startswith("vp") else 1e-5
            theirs = made.logsnr(jnp.float64(official[f"{name}/diffusion_time_is1/t"][i]))
            np.testing.assert_allclose(made.logsnr(t), theirs, atol=atol)
            np.testing.assert_allclose(z, official[f"{name}/diffusion_time_is1/Z"][i], atol=0.3 * atol)
            middle = (t > 1e-2) & (t < 0.99)
            np.testing.assert_allclose(made.logsnr(t)[middle], theirs[middle], atol=atol if t_min < 1e-3 else 1e-3)
            t, weight = time_sampling.Uniform()(made, tau, u)
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
            t, _ = time_sampling.Reciprocal()(made, jnp.full_like(u, t_min), u)
            np.testing.assert_allclose(t, official["rve_cifar10/diffusion_time_is0/t"][i], rtol=1e-5)


def built(name, sampler):
    """The sampler of a configuration in which it is allowed."""
    weights = "softened" if sampler == "softened" else ""
    return TIME_SAMPLERS[sampler](gaussian.settings_of(name, time_sampler=sampler, weighting=weights))


@pytest.mark.parametrize("sampler", TIME_SAMPLERS)
@pytest.mark.parametrize("name", gaussian.SDES)
def test_weighted_mean_over_t_is_the_integral(name, sampler):
    """E[w h(t)] = C ∫ c h dt for any h, with c the natural weighting and the C that is stated, for every τ."""
    diffusion, sampler = gaussian.SDES[name], built(name, sampler)
    constant = 1 / (1 / diffusion.eps - 1) if sampler == time_sampling.Reciprocal() else 1.0
    ratio = lambda t: sampler.natural(diffusion, t) / weighting.likelihood(diffusion, t)
    with jax.enable_x64(True):
        nodes, mass = quadrature.tanh_sinh()
        u = jnp.asarray(nodes)
        for tau in (diffusion.eps, 1e-2, 0.5):
            t, weight = sampler(diffusion, jnp.full_like(u, tau), u)
            for h in (jnp.ones_like, jnp.cos, jnp.sqrt):
                integral = constant * quadrature.over_logsnr(diffusion, lambda t, h=h: ratio(t) * h(t), tau)
                np.testing.assert_allclose(jnp.sum(mass * weight * h(t)), integral, rtol=1e-6)
            assert jnp.all(jnp.diff(t) > -1e-15) and t[0] >= tau and t[-1] <= 1
            assert len(jnp.unique(t[(u > 1e-3) & (u < 0.999)])) == jnp.sum((u > 1e-3) & (u < 0.999))


@pytest.mark.parametrize("sampler", ["importance", "idode", "lognormal", "softened"])
@pytest.mark.parametrize("name", ["vpsde", "subvpsde", "vesde"])
def test_times_close_to_T_in_float32(name, sampler):
    """Compiled, at τ = 0.99 where little of a density may be left, against float64."""
    diffusion, sampler = gaussian.SDES[name], built(name, sampler)
    u = (jnp.arange(10000) + 0.5) / 10000
    t, weight = jax.jit(lambda tau, u: sampler(diffusion, tau, u))(jnp.full_like(u, 0.99), u)
    with jax.enable_x64(True):
        u = u.astype(float)
        exact, z = sampler(diffusion, jnp.full_like(u, jnp.float32(0.99)), u)
    np.testing.assert_allclose(t, exact, atol=1e-6)
    np.testing.assert_allclose(weight, z, rtol=2e-4)
    assert len(np.unique(t)) > 5000 and np.all(np.diff(t) >= 0)


def test_idode_times_of_vp_are_in_proportion_to_the_data():
    """With d = 1 it is α² in logSNR, so log σ is uniform, and only 2.4 % of the times are above 0.35."""
    vp, u = SDES["vpsde_1e-5"], jnp.linspace(0, 1, 10001)
    with jax.enable_x64(True):
        tau, end = jnp.float64(0.01), jnp.float64(1.0)
        t, weight = time_sampling.IDODE(1.0)(vp, jnp.full(10001, tau), jnp.linspace(0, 1, 10001))
        z = 2 * (vp.log_sigma(end) - vp.log_sigma(tau))
        np.testing.assert_allclose(weight, z, rtol=1e-12)
        np.testing.assert_allclose(2 * (vp.log_sigma(t) - vp.log_sigma(tau)) / z, jnp.linspace(0, 1, 10001), atol=1e-9)
    t, _ = time_sampling.IDODE(1.0)(vp, jnp.full_like(u, vp.eps), u)
    assert float(jnp.mean(t > 0.35)) == pytest.approx(0.024, abs=1e-3)
    t, _ = time_sampling.Importance()(vp, jnp.full_like(u, vp.eps), u)
    assert float(jnp.mean(t > 0.35)) == pytest.approx(0.38, abs=5e-3)


@pytest.mark.parametrize("tau", [1e-5, 0.3, 0.99])
@pytest.mark.parametrize("name", ["vpsde", "subvpsde", "vesde"])
def test_lognormal_times_are_a_truncated_normal(name, tau):
    """ln(σ/α) against SciPy's quantile, in float32; data in [0, 1] take half of the noise."""
    diffusion, u = gaussian.SDES[name], (jnp.arange(10000) + 0.5) / 10000
    for centered in (True, False):
        c = gaussian.settings_of(name)
        c.data.centered = centered
        sampler, mean = TIME_SAMPLERS["lognormal"](c), -1.2 if centered else -1.2 - math.log(2)
        t, weight = sampler(diffusion, jnp.full_like(u, tau), u)
        with jax.enable_x64(True):
            level = lambda t: -0.5 * np.asarray(diffusion.logsnr(jnp.float64(t)))
            a, b = ((level(end) - mean) / 1.2 for end in (np.float32(tau), 1.0))
            np.testing.assert_allclose(weight, stats.norm.sf(a) - stats.norm.sf(b), rtol=1e-4)
            exact = stats.truncnorm.ppf(np.float64(u), a, b, loc=mean, scale=1.2)
            np.testing.assert_allclose(level(t), exact, atol=2e-5, rtol=1e-5)
        assert len(np.unique(t)) > 5000


@pytest.mark.parametrize("tau", [1e-5, 0.99])
@pytest.mark.parametrize("name", gaussian.SDES)
def test_lognormal_times_take_the_density_out_of_the_edm_weighting(name, tau):
    """What is left is 1 + (σ/α)²/d², up to the mass of [τ, T]; in float32."""
    c = gaussian.settings_of(name, weighting="edm")
    diffusion, sampler, edm = gaussian.SDES[name], built(name, "lognormal"), weighting.WEIGHTINGS["edm"](c)
    u = (jnp.arange(1000) + 0.5) / 1000
    t, weight = sampler(diffusion, jnp.full_like(u, tau), u)
    total = weight * (edm(diffusion, t) / sampler.natural(diffusion, t))
    level = jnp.square(diffusion.sigma(t) / diffusion.alpha(t))
    np.testing.assert_allclose(total / (1 + level / 0.5**2) / weight[0], 1, rtol=2e-5)


NORMALISERS = {"vpsde": (1.0, 16.7562), "subvpsde": (1.0, 23.9032), "vesde": (1.0, 15.5548)}
NORMALISERS |= {"reciprocal_vesde": (2.0, 10.8198)}


@pytest.mark.parametrize("name", NORMALISERS)
def test_softened_times_are_those_of_a_random_tau(name):
    """In float32: draws of τ by its share Z(τ) of the weight, then of t given τ, have the same distribution."""
    (k, z), diffusion = NORMALISERS[name], gaussian.SDES[name]
    prior = truncation.Truncation(k, diffusion.eps)
    sampler = time_sampling.softened(prior, diffusion)
    u = (jnp.arange(2000) + 0.5) / 2000
    t, weight = sampler(diffusion, jnp.full_like(u, diffusion.eps), u)
    np.testing.assert_allclose(weight, z, atol=1e-4)
    with jax.enable_x64(True):
        nodes, mass = quadrature.tanh_sinh()
        tau, end = prior.quantile(jnp.asarray(nodes)), diffusion.logsnr(jnp.float64(1.0))
        total = jnp.sum(mass * (diffusion.logsnr(tau) - end))
        np.testing.assert_allclose(weight[0], total, rtol=1e-5)
        later = jnp.minimum(diffusion.logsnr(tau)[:, None], diffusion.logsnr(t.astype(float))) - end
        np.testing.assert_allclose(mass @ later / total, 1 - u, atol=1e-5)


def test_softened_times_of_rve_with_k_0():
    """They are about uniform in ln t, though nearly all of them have one logSNR; against the closed form."""
    rve, u = gaussian.SDES["reciprocal_vesde"], (jnp.arange(1000) + 0.5) / 1000
    sampler = time_sampling.softened(truncation.Truncation(0.0, rve.eps), rve)
    t, _ = sampler(rve, jnp.full_like(u, rve.eps), u)
    above = lambda t: -np.log(t) - rve.eps * (1 / t - 1)  # the integral of (t − ε)/t² from t to T
    np.testing.assert_allclose(above(np.float64(t)) / above(rve.eps), 1 - u, atol=2e-6)


def test_lognormal_times_that_float32_has_not():
    c, vp = settings(time_sampler="lognormal", lognormal_std=0.3)
    with pytest.raises(config.ConfigError, match=r"lognormal_std=0.3: .* 6.9. from .* at least 0.58"):
        losses.from_config(c, vp, 1)
    c.training.lognormal_std = 0.58
    u = (jnp.arange(1000) + 0.5) / 1000
    t, weight = time_sampling.from_config(c, vp)(vp, jnp.full_like(u, 0.99), u)
    assert len(np.unique(t)) > 900 and np.all(weight > 0)
    c, subvp = settings(sde="subvpsde", time_sampler="lognormal", weighting="edm", lognormal_std=0.6)
    loss, u = losses.from_config(c, subvp, 1), jnp.array([0.0, 0.5])  # ε is 20 standard deviations away
    t, weight = loss.time_sampler(subvp, jnp.full(2, 1e-5), u)
    assert np.all(weight * loss.weighting(subvp, t) / loss.time_sampler.natural(subvp, t) > 0.99)


def test_softened_is_refused_where_it_means_nothing():
    softened = dict(time_sampler="softened", weighting="softened")
    for more, message in (
        (dict(st=True), "weighting=softened: needs st=False; a random τ would soften a second time"),
        (dict(weighting="likelihood"), "time_sampler=softened: needs weighting=softened"),
        (dict(mixed=True), "time_sampler=softened: should be empty; the mixture has importance times"),
        (dict(official_loss=True), "official_loss=True: the official code has no softened time sampler here"),
        (dict(official_loss=True, time_sampler=""), "official_loss=True: the official code has no softened weighting"),
    ):
        c, vp = settings(**softened | more)
        with pytest.raises(config.ConfigError, match=message):
            losses.from_config(c, vp, 1)
    c, vp = settings(**softened, st=True, k=math.inf)  # τ = ε after all: this is importance sampling
    loss = losses.from_config(c, vp, 1)
    u = jnp.linspace(0, 0.99, 100)
    t, weight = loss.time_sampler(vp, jnp.full_like(u, 1e-5), u)
    expected, z = time_sampling.Importance()(vp, jnp.full_like(u, 1e-5), u)
    np.testing.assert_allclose(vp.logsnr(t), vp.logsnr(expected), atol=1e-3)
    np.testing.assert_allclose(weight, z, rtol=1e-6)


def settings(**training):
    c = config.default()
    c.training.update(training)
    return c, sde.from_config(c)


OFFICIAL = {  # importance_sampling, likelihood_weighting: what RVE and the others mean by them
    (True, True): ("importance", "likelihood", "reciprocal"),
    (True, False): ("importance", "likelihood", "reciprocal"),
    (False, True): ("uniform", "likelihood", "reciprocal_likelihood"),
    (False, False): ("uniform", "variance", "reciprocal"),
}


@pytest.mark.parametrize("name", sde.SDES)
@pytest.mark.parametrize("keys", OFFICIAL)
def test_what_the_official_keys_mean(name, keys):
    c, diffusion = settings(sde=name, importance_sampling=keys[0], likelihood_weighting=keys[1])
    times, weights, rve = OFFICIAL[keys]
    if name == "reciprocal_vesde":
        times, weights = "reciprocal", rve
    assert time_sampling.from_config(c, diffusion) == TIME_SAMPLERS[times](c)
    assert weighting.from_config(c, diffusion) == weighting.WEIGHTINGS[weights](c)


def test_a_key_and_its_official_twin_may_not_differ():
    c, vp = settings(importance_sampling=False, time_sampler="uniform")
    assert time_sampling.from_config(c, vp) == time_sampling.Uniform()
    c.training.time_sampler = "importance"
    with pytest.raises(config.ConfigError, match="time_sampler=importance: importance_sampling=False means uniform"):
        time_sampling.from_config(c, vp)
    c.training.importance_sampling = True  # at its default, it counts as not given
    for name in TIME_SAMPLERS:
        c.training.update(time_sampler=name, weighting="softened" if name == "softened" else "")
        assert time_sampling.from_config(c, vp) == TIME_SAMPLERS[name](c)
    c.training.update(likelihood_weighting=False, weighting="variance")
    assert weighting.from_config(c, vp) == weighting.variance
    c.training.weighting = "reciprocal"
    with pytest.raises(config.ConfigError, match="weighting=reciprocal: likelihood_weighting=False means lik"):
        weighting.from_config(c, vp)
    c.training.weighting = "varianc"
    c.training.likelihood_weighting = True
    with pytest.raises(config.ConfigError, match="training.weighting: unknown 'varianc'; .* did you mean variance"):
        weighting.from_config(c, vp)


def test_the_official_mean_over_times():
    """official_loss: uniform and reciprocal times have weight 1, importance times keep theirs."""
    tau, u = jnp.full(5, 0.25), jnp.linspace(0, 0.9, 5)
    for name, sampling, expected in (("vpsde", False, 1.0), ("reciprocal_vesde", False, 1.0), ("vpsde", True, None)):
        c, diffusion = settings(sde=name, importance_sampling=sampling, official_loss=True)
        t, weight = time_sampling.from_config(c, diffusion)(diffusion, tau, u)
        c.training.official_loss = False
        same, z = time_sampling.from_config(c, diffusion)(diffusion, tau, u)
        np.testing.assert_array_equal(t, same)
        np.testing.assert_array_equal(weight, z if expected is None else np.ones(5))
    c, vp = settings(time_sampler="uniform", official_loss=True)
    with pytest.raises(
        config.ConfigError, match="official_loss=True: the official code has no uniform time sampler here"
    ):
        time_sampling.from_config(c, vp)
