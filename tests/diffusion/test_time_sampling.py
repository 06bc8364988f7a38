"""How t is drawn given τ: quantiles, weights, and what the configuration means by its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.official import SDES

from score_st import config
from score_st.diffusion import sde, time_sampling, weighting
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


@pytest.mark.parametrize("sampler", TIME_SAMPLERS)
@pytest.mark.parametrize("name", SDES)
def test_weighted_mean_over_t_is_the_integral(name, sampler):
    """E[w h(t)] = C ∫ c h dt for any h, with c the natural weighting and the C that is stated, for every τ."""
    sde, sampler = SDES[name], TIME_SAMPLERS[sampler](config.default())
    constant = 1 / (1 / sde.eps - 1) if sampler == time_sampling.Reciprocal() else 1.0
    with jax.enable_x64(True):
        u = (jnp.arange(20000) + 0.5) / 20000
        for tau in (1e-2, 0.5):
            t, weight = sampler(sde, jnp.full_like(u, tau), u)
            grid = jnp.geomspace(tau, 1, 20001)
            for h in (jnp.ones_like, jnp.cos, jnp.sqrt):
                values = constant * sampler.natural(sde, grid) * h(grid)
                integral = jnp.sum(jnp.diff(grid) * (values[1:] + values[:-1]) / 2)
                np.testing.assert_allclose(jnp.mean(weight * h(t)), integral, rtol=1e-4)
            assert jnp.all(jnp.diff(t) > 0) and t[0] >= tau and t[-1] <= 1


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


@pytest.mark.parametrize("name", ["vpsde_1e-5", "subvpsde", "vesde_celeba"])
def test_idode_times_in_float32_close_to_T(name):
    sde, sampler = SDES[name], time_sampling.IDODE(0.5)
    u = (jnp.arange(10000) + 0.5) / 10000
    t, weight = sampler(sde, jnp.full_like(u, 0.99), u)
    with jax.enable_x64(True):
        u = u.astype(float)
        exact, z = sampler(sde, jnp.full_like(u, jnp.float32(0.99)), u)
    np.testing.assert_allclose(t, exact, atol=1e-6)
    np.testing.assert_allclose(weight, z, rtol=2e-4)
    assert len(np.unique(t)) > 5000 and np.all(np.diff(t) >= 0)


def test_settings_out_of_range():
    c, vp = settings(time_sampler="idode")
    for value in (0.0, -1.0, float("inf"), float("nan")):
        c.model.data_std = value
        with pytest.raises(config.ConfigError, match=f"model.data_std={value}: should be positive"):
            time_sampling.from_config(c, vp)


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
        c.training.time_sampler = name
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
    with pytest.raises(config.ConfigError, match="official_loss=True: the official code has no uniform times here"):
        time_sampling.from_config(c, vp)
