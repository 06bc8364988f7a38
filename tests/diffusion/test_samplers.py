"""Samplers on Gaussian data with its exact score: mean and covariance, and what depends on what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.environment import OPTIMIZED
from support.gaussian import SDES, SHAPE, Gaussian
from support.official import FIXTURES, OfficialVP, family, nhwc

from score_st import config
from score_st.diffusion import correctors, parametrization, predictors, probability_flow, samplers, sde
from score_st.diffusion.dims import expand
from score_st.evaluation import generation
from score_st.model import DiffusionModel

data = Gaussian()
keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(512))
IMAGE = (8, 8, 1)
PC = samplers.PredictorCorrector
NO_MEMORY = jnp.zeros((1, 1, 1, 1)), jnp.zeros(1)
LANGEVIN = correctors.Langevin(0.1)
ALD = correctors.AnnealedLangevin(0.1)
SAMPLERS = {
    "ode": samplers.ODE(probability_flow.Solver(1e-4, 1e-4)),
    "euler_maruyama": PC(predictors.EulerMaruyama(), steps=400, grid=samplers.logsnr_grid),
    "reverse_diffusion": PC(predictors.ReverseDiffusion(), steps=400, grid=samplers.logsnr_grid),
    "ancestral": PC(predictors.Ancestral(), steps=400, grid=samplers.logsnr_grid),
    "reverse_diffusion+langevin": PC(predictors.ReverseDiffusion(), LANGEVIN, steps=200, grid=samplers.logsnr_grid),
    "reverse_diffusion+ald": PC(predictors.ReverseDiffusion(), ALD, steps=200, grid=samplers.logsnr_grid),
    "uniform grid": PC(predictors.Ancestral(), steps=1000),
}

PAIRS = [(sampler, name) for sampler in SAMPLERS for name in SDES]
# VE and RVE need a grid that spreads the noise levels
PAIRS = [(sampler, name) for sampler, name in PAIRS if sampler != "uniform grid" or name.endswith("vpsde")]


@pytest.mark.parametrize("sampler, name", PAIRS)
def test_mean_and_covariance(sampler, name):
    diffusion = SDES[name]
    draw = lambda keys: SAMPLERS[sampler](data.score(diffusion), diffusion, keys, IMAGE)[0]
    run = jax.jit(draw, compiler_options=OPTIMIZED)
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
    sampler = dataclasses.replace(SAMPLERS["ode"], solver=probability_flow.Solver(1e-6, 1e-6), denoise=False)
    x, evaluations = sampler(data.score(diffusion), diffusion, keys[:8], SHAPE)
    start = jax.vmap(lambda key: diffusion.prior.sample(key, SHAPE))(keys[:8])
    (a0, s0), (a1, s1) = ((float(diffusion.alpha(t)), float(diffusion.sigma(t))) for t in map(jnp.float32, (1e-5, 1)))
    scale = np.sqrt((a0**2 * data.std**2 + s0**2) / (a1**2 * data.std**2 + s1**2))
    np.testing.assert_allclose(x, a0 * data.mean + scale * (start - a1 * data.mean), atol=2e-3)
    assert np.all(evaluations > 20)


def run_steps(step, diffusion, grid):
    """Through linear steps: where 0 and 1 at T end up, and the variance of the end, of one pixel.

    Each step is also taken from 0 with noise 1: what that adds is carried on by the slopes of the steps after it.
    """
    run = jax.jit(lambda *a: step(data.score(diffusion), diffusion, *a)[::2])
    wide = lambda *a: jnp.array(a).reshape(-1, 1, 1, 1)
    ends, variance = wide(0.0, 1.0), diffusion.prior.std**2
    memory = jnp.zeros((2, 1, 1, 1)), jnp.zeros(2)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        t, s = jnp.full(2, t), jnp.full(2, s)
        unit, _ = run(wide(0.0, 1.0), t, s, wide(0.0, 0.0), memory)
        noisy, _ = run(wide(0.0, 0.0), t, s, wide(0.0, 1.0), memory)
        (low, high), noise = map(float, unit.ravel()), float((noisy[1] - noisy[0]).ravel()[0])
        variance = (high - low) ** 2 * variance + noise**2
        ends, memory = run(ends, t, s, wide(0.0, 0.0), memory)
    low, high = map(float, ends.ravel())
    return low, high - low, variance


def with_noise(predictor, lambda_: float):
    """With this λ, where it has one."""
    return predictor(**{"lambda_": lambda_} if "lambda_" in predictor.__dataclass_fields__ else {})


TABLE = {name: predictor for name, predictor in predictors.PREDICTORS.items() if predictor}
HIGHER = {"heun": 2, "dpm_solver_2m": 2}  # the order of the others is 1
ORDERS = {name: (with_noise(each, 0.0), HIGHER.get(name, 1)) for name, each in TABLE.items()}
ORDERS.pop("ancestral_sampling")  # which always has noise


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_deterministic_steps(sampler, name):
    """The map from x_T to x_ε against the flow's affine map: the error falls with the steps as the order says."""
    (step, order), diffusion, errors = ORDERS[sampler], SDES[name], []
    with jax.enable_x64(True):
        ends = [
            tuple(float(f(jnp.float64(t))) for f in (diffusion.alpha, diffusion.sigma)) for t in (diffusion.eps, 1)
        ]
        (a0, s0), (a1, s1) = ends
        exact = np.sqrt((a0**2 * data.std**2 + s0**2) / (a1**2 * data.std**2 + s1**2))
        for steps in (200, 400):
            mean, slope, _ = run_steps(step, diffusion, samplers.logsnr_grid(diffusion, steps))
            errors.append(np.hypot(slope / exact - 1, mean - (a0 - a1 * exact) * data.mean))
    # the slowest to reach its order is the probability flow by Euler, for RVE
    assert order - 0.35 < np.log2(errors[0] / errors[1]) < order + 0.1, errors


WEAK = {name: with_noise(each, 1.0) for name, each in TABLE.items() if name not in HIGHER}
WEAK["half the noise"] = predictors.DDIM(lambda_=0.5)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("sampler", WEAK)
def test_weak_order_of_the_reverse_sde(sampler, name):
    """The error of the standard deviation falls with the steps as its order, one, says."""
    step, diffusion, errors = WEAK[sampler], SDES[name], []
    with jax.enable_x64(True):
        eps = jnp.float64(diffusion.eps)
        exact = float(jnp.sqrt(jnp.square(diffusion.alpha(eps) * data.std) + jnp.square(diffusion.sigma(eps))))
        for steps in (100, 200):
            _, _, variance = run_steps(step, diffusion, samplers.logsnr_grid(diffusion, steps))
            errors.append(abs(variance**0.5 - exact))
    # Euler-Maruyama for VE is of order two in the variance
    assert 0.9 < np.log2(errors[0] / errors[1]) < (2.1 if (sampler, name) == ("euler_maruyama", "vesde") else 1.1), (
        errors
    )


@pytest.mark.parametrize("name", SDES)
def test_ddim_is_the_exponential_integrator(name):
    """Its step is the flow's solution while the noise ε = -σ s stays what it is at t."""
    diffusion = SDES[name]
    x, t, s = keys_to_images(4), jnp.full(4, 0.6), jnp.full(4, 0.2)
    epsilon = -expand(diffusion.sigma(t), x) * data.score(diffusion)(x, t)
    frozen = lambda x, t: -epsilon[:1] / expand(diffusion.sigma(t), x)
    ends = diffusion.logsnr(jnp.array([0.6, 0.2]))
    field = lambda logsnr, x, _: probability_flow.flow(frozen, diffusion, logsnr[None], x[None])[0]
    solved, _, _ = probability_flow.Solver(1e-6, 1e-6).solve(field, x[:1], ends[0], ends[1])
    step, mean, _ = predictors.DDIM()(
        data.score(diffusion), diffusion, x[:1], t[:1], s[:1], jnp.ones_like(x[:1]), NO_MEMORY
    )
    np.testing.assert_allclose(step, solved, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(step, mean)


def keys_to_images(n):
    return jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys[:n])


@pytest.mark.parametrize("grid", samplers.GRIDS)
@pytest.mark.parametrize("name", SDES)
def test_grids_fall_from_T_to_eps(name, grid):
    diffusion = SDES[name]
    times = np.asarray(samplers.GRIDS[grid](diffusion, 50))
    assert times[0] == 1 and times[-1] == np.float32(diffusion.eps) and np.all(np.diff(times) < 0)
    ratio = np.exp(-0.5 * np.asarray(diffusion.logsnr(jnp.asarray(times)), np.float64))
    even = {"uniform": times, "quadratic": times**0.5, "logsnr": np.log(ratio), "edm": ratio ** (1 / 7)}[grid]
    np.testing.assert_allclose(np.diff(even), (even[-1] - even[0]) / 50, rtol=0.02)


def ddpm_transition(diffusion, t, s):
    """The official one of VP: the β of the nearest of 1000 steps below t."""
    beta = jnp.linspace(0.1 / 1000, 20 / 1000, 1000)[(t * 999).astype(int)]
    return jnp.sqrt(1 - beta), beta


def beta_transition(diffusion, t, s):
    """The official one of VP where the next time is given, with β(t) as it has it."""
    v = (t - s) * (0.1 + 19.9 * t)
    return jnp.sqrt(1 - v), v


def test_single_steps_are_the_official_ones():
    """One step from t = 1, 0.5 and 0.01 of each predictor and corrector, with the official discretisation."""
    reference = np.load(FIXTURES / "sampling.npz")
    batch_mean = lambda x: jnp.mean(correctors.image_norm(x), keepdims=True)
    common = dict(transition=ddpm_transition)
    previous, given = (lambda t: t - 1 / 1000), (lambda t: 0.98 * t)
    steps = {
        "a/euler_maruyama_pf0": (predictors.EulerMaruyama, {}, previous),
        "a/euler_maruyama_pf1": (predictors.EulerMaruyama, dict(lambda_=0.0), previous),
        "a/reverse_diffusion_pf0": (predictors.ReverseDiffusion, common, previous),
        "a/reverse_diffusion_pf1": (predictors.ReverseDiffusion, common | dict(lambda_=0.0), previous),
        "a/reverse_diffusion_next_pf0": (predictors.ReverseDiffusion, dict(transition=beta_transition), given),
        "a/ancestral_sampling_pf0": (predictors.Ancestral, common, previous),
        "a/langevin_pf0": (correctors.Langevin, common | dict(snr=0.16, norm=batch_mean), previous),
        "a/ald_pf0": (correctors.AnnealedLangevin, common | dict(snr=0.16), previous),
        "c/euler_maruyama_pf0": (predictors.EulerMaruyama, {}, previous),
        "c/reverse_diffusion_next_pf0": (predictors.ReverseDiffusion, {}, given),
    }
    families = {}
    for name in "ac":
        made, exp, params, _ = family(name)
        diffusion = OfficialVP() if name == "a" else exp.sde
        families[name] = diffusion, jax.jit(parametrization.from_config(made, diffusion).score(exp.apply(params)))
    for case, (step, options, next_time) in steps.items():
        diffusion, score_fn = families[case[0]]
        img, prior = nhwc(reference["img"]), nhwc(reference["prior"])
        for i, t in enumerate(np.repeat(reference["t"][:, None], 2, axis=1)):
            mean, std = diffusion.marginal(jnp.asarray(2 * img - 1 if case[0] == "a" else img), jnp.asarray(t))
            x, corrector = mean + std[:, None, None, None] * prior, "l" in case[2:4]
            for k in range(2 if corrector else 1):
                noise = jnp.asarray(nhwc(reference["noise"][i + k]))
                times = jnp.asarray(t), jnp.asarray(next_time(t))
                memory = () if corrector else (NO_MEMORY,)
                x, mean, *_ = step(**options)(score_fn, diffusion, x, *times, noise, *memory)
            for name, ours in (("x_mean", mean), ("x", x)):
                if name == "x" and "ancestral" in case:  # officially √β z; here the smaller variance given x_0
                    continue
                wanted = nhwc(reference[f"{case}/{name}"][i])
                # officially σ_t² - σ_s² is a difference of float32 numbers
                limit = 1e-4 if case.startswith("c/reverse") else 2e-5
                assert np.max(np.abs(ours[:, :2] - wanted)) < limit * np.max(np.abs(wanted)), (case, t, name)


def test_unfinished_samples_are_not_numbers():
    diffusion = SDES["vpsde"]
    sampler = samplers.ODE(probability_flow.Solver(max_steps=2))
    x, _ = sampler(data.score(diffusion), diffusion, keys[:2], SHAPE)
    assert np.all(np.isnan(x))


def test_sampler_of_a_configuration():
    c = config.default()
    made = samplers.from_config(c)
    assert isinstance(made, samplers.ODE) and made.solver.rtol == 1e-5
    c.sampling.update(method="pc", predictor="reverse_diffusion", corrector="langevin", snr=0.2, n_steps_each=3)
    made = samplers.from_config(c)
    assert (made.steps, made.corrections, made.denoise, made.evaluations_per_step) == (1000, 3, True, 4)
    assert (made.predictor, made.corrector) == (predictors.ReverseDiffusion(), correctors.Langevin(0.2))
    c.sampling.truncation_time = 1e-3
    assert samplers.sampling_sde(c, sde.VP()).eps == 1e-3
    c = generation.with_sampler(c, "heun", 12)
    c.sampling.churn = 6.0
    made = samplers.from_config(c)
    assert (made.steps, made.evaluations_per_step, made.corrector) == (12, 2, None)
    assert made.predictor == predictors.Heun(2**0.5 - 1)
    made = samplers.from_config(generation.with_sampler(c, "ddim+langevin", 12))
    assert (made.predictor, made.corrector) == (predictors.DDIM(), correctors.Langevin(0.2))
    for settings, message in {
        ("ddpm", 12): "did you mean",
        ("heun", -1): "should be 1 or more",
    }.items():
        with pytest.raises(config.ConfigError, match=message):
            samplers.from_config(generation.with_sampler(config.default(), *settings))
    c.sampling.update(predictor="ancestral_sampling", probability_flow=True)
    with pytest.raises(
        config.ConfigError, match="has no λ .probability_flow.; euler_maruyama, reverse_diffusion, ddim"
    ):
        samplers.from_config(c)
    c.sampling.probability_flow = False
    c.sampling.method = "rk"
    with pytest.raises(config.ConfigError, match="choose from ode, pc"):
        DiffusionModel.from_config(c)
