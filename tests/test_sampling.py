"""Samplers on Gaussian data with its exact score: mean and covariance, and what depends on what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import SDES, SHAPE, Gaussian

from score_st import config, experiment, ode, sampling, sde

data = Gaussian()
keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(512))
IMAGE = (8, 8, 1)
PC = sampling.PredictorCorrector
LANGEVIN = lambda *a: sampling.langevin(*a, snr=0.1)
ALD = lambda *a: sampling.annealed_langevin(*a, snr=0.1)
SAMPLERS = {
    "ode": sampling.ODE(ode.Solver(1e-4, 1e-4)),
    "euler_maruyama": PC(sampling.euler_maruyama, steps=400, grid=sampling.logsnr_grid),
    "reverse_diffusion": PC(sampling.reverse_diffusion, steps=400, grid=sampling.logsnr_grid),
    "ancestral": PC(sampling.ancestral, steps=400, grid=sampling.logsnr_grid),
    "reverse_diffusion+langevin": PC(sampling.reverse_diffusion, LANGEVIN, steps=200, grid=sampling.logsnr_grid),
    "reverse_diffusion+ald": PC(sampling.reverse_diffusion, ALD, steps=200, grid=sampling.logsnr_grid),
    "uniform grid": PC(sampling.ancestral, steps=1000),
}


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mean_and_covariance(name, sampler):
    if sampler == "uniform grid" and name != "vp":
        name = "subvp"  # VE and RVE need a grid that spreads the noise levels
    diffusion = SDES[name]
    run = jax.jit(lambda keys: SAMPLERS[sampler](data.score(diffusion), diffusion, keys, IMAGE)[0])
    x = np.asarray(run(keys)).reshape(len(keys), -1)
    assert np.all(np.isfinite(x))
    # sampling noise of 512 x 64 pixels: 0.003 in the mean, 0.002 in the deviation
    assert abs(x.mean() - data.mean) < 0.03
    np.testing.assert_allclose(x.std(), data.std, rtol=0.06)
    correlation = np.corrcoef(x.T) - np.eye(64)
    assert np.max(np.abs(correlation)) < 0.25 and abs(correlation.mean()) < 0.01


@pytest.mark.parametrize("name", SDES)
def test_probability_flow_is_the_affine_map(name):
    """Each sample of the ODE is the prior's draw mapped by the known map of Gaussians."""
    diffusion = SDES[name]
    sampler = dataclasses.replace(SAMPLERS["ode"], solver=ode.Solver(1e-6, 1e-6), denoise=False)
    x, evaluations = sampler(data.score(diffusion), diffusion, keys[:8], SHAPE)
    start = jax.vmap(lambda key: diffusion.prior_sample(key, SHAPE))(keys[:8])
    (a0, s0), (a1, s1) = ((float(diffusion.alpha(t)), float(diffusion.sigma(t))) for t in map(jnp.float32, (1e-5, 1)))
    scale = np.sqrt((a0**2 * data.std**2 + s0**2) / (a1**2 * data.std**2 + s1**2))
    np.testing.assert_allclose(x, a0 * data.mean + scale * (start - a1 * data.mean), atol=2e-3)
    assert np.all(evaluations > 20)


def test_weak_order_of_the_reverse_sde():
    """The error of the standard deviation falls with the steps as its order, about one, says."""
    diffusion, errors = SDES["vp"], []
    for steps in (10, 20, 40):
        grid = sampling.logsnr_grid(diffusion, steps)
        mean, variance = 0.0, 1.0  # of one pixel through the linear steps, exactly
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            step = lambda x, z: sampling.ancestral(data.score(diffusion), diffusion, x, t[None], s[None], z)[0]  # noqa: B023
            at = lambda x, z: float(step(jnp.full((1, 1, 1, 1), x), jnp.full((1, 1, 1, 1), z)).ravel()[0])  # noqa: B023
            slope, noise = at(1.0, 0.0) - at(0.0, 0.0), at(0.0, 1.0) - at(0.0, 0.0)
            mean, variance = at(mean, 0.0), slope**2 * variance + noise**2
        errors.append(abs(variance**0.5 - data.std))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((0.6 < slopes) & (slopes < 1.4)), slopes


def test_unfinished_samples_are_not_numbers():
    diffusion = SDES["vp"]
    sampler = sampling.ODE(ode.Solver(max_steps=2))
    x, _ = sampler(data.score(diffusion), diffusion, keys[:2], SHAPE)
    assert np.all(np.isnan(x))


def test_sampler_of_a_configuration():
    c = config.default()
    made = sampling.from_config(c)
    assert isinstance(made, sampling.ODE) and made.solver.rtol == 1e-5
    c.sampling.update(method="pc", predictor="reverse_diffusion", corrector="langevin", snr=0.2, n_steps_each=3)
    made = sampling.from_config(c)
    assert (made.steps, made.corrections, made.denoise) == (1000, 3, True)
    assert made.corrector.keywords == {"snr": 0.2} and made.predictor.func is sampling.reverse_diffusion
    c.sampling.truncation_time = 1e-3
    assert sampling.sampling_sde(c, sde.VP()).eps == 1e-3
    c.sampling.method = "rk"
    with pytest.raises(config.ConfigError, match="choose from ode, pc"):
        experiment.from_config(c)
