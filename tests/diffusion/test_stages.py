"""Two models together, against closed forms: their scores are those of Gaussians, so that every flow is linear."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gaussian import SDES, SHAPE, Gaussian

from score_st.config import ConfigError
from score_st.diffusion import correctors, guidance, likelihood, predictors, samplers, stages
from score_st.diffusion.dims import expand
from score_st.diffusion.probability_flow import Solver

WIDE, NARROW, C, W = Gaussian(0.0, 0.5), Gaussian(0.0, 0.25), 0.7, 1.7
DIMS = int(np.prod(SHAPE))
keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(512))
x = NARROW.sample(jax.random.key(1), 8)
slow = [pytest.param(name, marks=() if name == "vpsde" else pytest.mark.slow) for name in SDES]
most_slow = pytest.mark.parametrize("name", slow)


def experts(diffusion, above=WIDE, below=NARROW):
    return guidance.Experts(C)(diffusion, above.score(diffusion), below.score(diffusion))


def guided(diffusion, weight=W):
    return guidance.Autoguidance(weight)(diffusion, WIDE.score(diffusion), NARROW.score(diffusion))


def log_variance(data, diffusion, t):
    """Of x_t."""
    return jnp.log(jnp.square(diffusion.alpha(t) * data.std) + jnp.square(diffusion.sigma(t)))


def growth(data, diffusion, t, s):
    """The logarithm of what the flow from t to s multiplies x by, for the score of `data`."""
    return 0.5 * (log_variance(data, diffusion, s) - log_variance(data, diffusion, t))


def closed_form(diffusion, x, log_factor):
    """x_T and −log p(x) of a flow that multiplies all of x by exp(log_factor)."""
    latent = x * jnp.exp(log_factor)
    return latent, -diffusion.prior.log_density(latent) - DIMS * log_factor


def of_experts(diffusion, x):
    first, change, last = map(jnp.float32, (diffusion.eps, guidance.Experts(C).time(diffusion), diffusion.T))
    return closed_form(diffusion, x, growth(NARROW, diffusion, first, change) + growth(WIDE, diffusion, change, last))


def of_guidance(diffusion, x):
    """The flow's speed is affine in the score: so is the logarithm of what it multiplies x by."""
    ends = map(jnp.float32, (diffusion.eps, diffusion.T))
    wide, narrow = (functools.partial(growth, data, diffusion) for data in (WIDE, NARROW))
    first, last = ends
    return closed_form(diffusion, x, W * wide(first, last) + (1 - W) * narrow(first, last))


def nll(score, diffusion, tolerance):
    solver = Solver(tolerance, tolerance)
    return jax.jit(lambda x: likelihood.nll(score, diffusion, x, jnp.ones_like(x)[:, None], solver))(x)


@most_slow
def test_flow_of_autoguidance(name):
    """Its latents and its NLL; NFE counts both networks."""
    diffusion = SDES[name]
    result = nll(guided(diffusion), diffusion, 1e-5)
    latent, exact = of_guidance(diffusion, x)
    np.testing.assert_allclose(result.total, exact, atol=2e-3)
    np.testing.assert_allclose(result.latent, latent, rtol=1e-3)
    alone = nll(stages.stages(guided(diffusion))[0].score, diffusion, 1e-5)
    np.testing.assert_array_equal(result.total, alone.total)
    np.testing.assert_array_equal(result.evaluations, 2 * alone.evaluations)


@most_slow
def test_flow_of_two_experts(name):
    """It is the closed form in pieces, which a solver that does not stop misses, and takes more evaluations for it."""
    diffusion, score = SDES[name], experts(SDES[name])
    latent, exact = of_experts(diffusion, x)
    stopped, passed = (nll(f, diffusion, 1e-5) for f in (score, lambda x, t: score(x, t)))
    errors = [float(jnp.abs(result.total - exact).max()) for result in (stopped, passed)]
    assert bool(stopped.reached.all()) and errors[0] < 3e-4 and errors[1] > 10 * errors[0], errors
    np.testing.assert_allclose(stopped.latent, latent, rtol=2e-4)
    assert stopped.evaluations.mean() < passed.evaluations.mean()


def test_two_exact_experts_are_the_model():
    """The NLL is that of the one model, and a sampler draws its data."""
    diffusion = SDES["vpsde"]
    score = experts(diffusion, NARROW, NARROW)
    ends = [jnp.float32(t) for t in (diffusion.eps, diffusion.T)]
    _, exact = closed_form(diffusion, x, growth(NARROW, diffusion, *ends))
    np.testing.assert_allclose(nll(score, diffusion, 1e-5).total, exact, atol=1e-3)
    sampler = samplers.PredictorCorrector(predictors.Ancestral(), steps=200, grid=samplers.logsnr_grid)
    drawn, evaluations = jax.jit(lambda keys: sampler(score, diffusion, keys, SHAPE))(keys)
    assert abs(drawn.mean()) < 0.03 and set(evaluations.tolist()) == {201}
    np.testing.assert_allclose(drawn.std(), NARROW.std, rtol=0.06)


def fenced(diffusion):
    """Experts that are NaN on the other's side, but for what rounding does to the time of the change."""
    t, wide, narrow = guidance.Experts(C).time(diffusion), WIDE.score(diffusion), NARROW.score(diffusion)
    above = lambda x, s: jnp.where(expand(s > t * (1 - 1e-4), x), wide(x, s), jnp.nan)
    below = lambda x, s: jnp.where(expand(s < t * (1 + 1e-4), x), narrow(x, s), jnp.nan)
    return guidance.Experts(C)(diffusion, above, below)


@most_slow
def test_each_network_sees_its_own_times(name):
    """Of samples with their frames, and of latents, which are the closed form."""
    diffusion, score, flow = SDES[name], fenced(SDES[name]), samplers.ODE(Solver(1e-5, 1e-5), denoise=False)
    latent, _ = of_experts(diffusion, x)
    encoded, _ = jax.jit(lambda x: flow.encode(score, diffusion, x))(x)
    np.testing.assert_allclose(encoded, latent, rtol=1e-3)
    decoded, _, states, _ = jax.jit(lambda z: flow.decode(score, diffusion, z, 5))(latent)
    np.testing.assert_allclose(decoded, x, atol=1e-3)
    predictor, corrector = predictors.Heun(), correctors.Langevin(0.1)
    sampler = samplers.PredictorCorrector(predictor, corrector, steps=20, grid=samplers.logsnr_grid)
    drawn, _, steps, _ = jax.jit(lambda keys: sampler(score, diffusion, keys, SHAPE, 5))(keys[:4])
    batch = score(x, jnp.linspace(diffusion.eps, diffusion.T, len(x)))
    for result in (states, drawn, steps, batch):
        assert np.isfinite(result).all()


@pytest.mark.parametrize("steps", [1, 2, 13])
@pytest.mark.parametrize("grid", samplers.GRIDS)
def test_steps_of_a_predictor(grid, steps):
    """The change is a time of the grid, the steps are as many, and each is done by its own model."""
    diffusion, score = SDES["vpsde"], experts(SDES["vpsde"])
    change, parts, n = jnp.float32(stages.stages(score)[1].start), stages.stages(score), max(steps, 2)
    sampler = samplers.PredictorCorrector(predictors.DDIM(), steps=steps, grid=samplers.GRIDS[grid], denoise=False)
    drawn, evaluations, states, times = sampler(score, diffusion, keys[:3], SHAPE, frames=n)
    times = np.array([diffusion.T, *times])
    assert len(times) == n + 1 and change in times and np.all(np.diff(times) < 0)
    assert set(evaluations.tolist()) == {n}
    y = jax.vmap(lambda key: diffusion.prior.sample(key, SHAPE))(keys[:3])
    for t, s in zip(times[:-1], times[1:], strict=True):
        part = parts[0] if s >= change else parts[1]
        args = jnp.full(3, t), jnp.full(3, s), jnp.zeros_like(y), (jnp.zeros_like(y), jnp.zeros(3))
        y, _, _ = sampler.predictor(part.score, diffusion, y, *args)
    np.testing.assert_allclose(drawn, y, rtol=1e-4, atol=1e-5)


@most_slow
def test_multistep_predictor_starts_afresh(name):
    """DPM-Solver++ keeps its order over the change: four times as exact for twice the steps."""
    diffusion, errors = SDES[name], []
    with jax.enable_x64(True):
        t, ends = guidance.Experts(C).time(diffusion), (diffusion.eps, diffusion.T)
        first, change, last = (jnp.float64(s) for s in (ends[0], t, ends[1]))
        factor = jnp.exp(-growth(NARROW, diffusion, first, change) - growth(WIDE, diffusion, change, last))
        z = jax.vmap(lambda key: diffusion.prior.sample(key, SHAPE))(keys[:2])
        for steps in (200, 400):
            sampler = samplers.PredictorCorrector(
                predictors.DPMSolver2M(), steps=steps, grid=samplers.logsnr_grid, denoise=False
            )
            run = jax.jit(lambda keys, sampler=sampler: sampler(experts(diffusion), diffusion, keys, SHAPE)[0])
            errors.append(float(jnp.abs(run(keys[:2]) / (z * factor) - 1).max()))
    assert 1.6 < np.log2(errors[0] / errors[1]) < 2.4, errors


def test_evaluations_of_predictors():
    """Networks of both ranges: one above, and below a guided expert, which denoises, too."""
    diffusion = SDES["vpsde"]
    score = guidance.Experts(C)(diffusion, WIDE.score(diffusion), guided(diffusion))
    assert [part.evaluations for part in stages.stages(score)] == [1, 2] and stages.evaluations(score) == 2
    sampler = samplers.PredictorCorrector(
        predictors.Heun(), correctors.Langevin(0.1), corrections=2, steps=11, grid=samplers.logsnr_grid
    )
    times = np.asarray(samplers.logsnr_grid(diffusion, 10))
    above = int(np.sum(times > guidance.Experts(C).time(diffusion)))
    _, evaluations = sampler(score, diffusion, keys[:2], SHAPE)
    assert set(evaluations.tolist()) == {4 * (above + 2 * (11 - above)) + 2}


@most_slow
def test_time_of_the_change(name):
    """σ/α is c there; what is outside of [ε, T] is refused."""
    diffusion = SDES[name]
    for c in (0.02, 0.7, 20.0):
        t = jnp.float32(guidance.Experts(c).time(diffusion))
        np.testing.assert_allclose(jnp.exp(-0.5 * diffusion.logsnr(t)), c, rtol=2e-5)
    for c in (1e-7, 0.0, -1.0, 1e3, math.nan):
        with pytest.raises(ConfigError, match="should lie between .* at ε and .* at T"):
            experts_of = guidance.Experts(c)
            jax.jit(lambda x, e=experts_of: e(diffusion, NARROW.score(diffusion), WIDE.score(diffusion))(x, x[:, 0]))(
                jnp.ones((1, 1))
            )


def test_a_weight_of_one_is_the_model():
    score = WIDE.score(SDES["vpsde"])
    assert guidance.Autoguidance(1.0)(SDES["vpsde"], score, NARROW.score(SDES["vpsde"])) is score


@most_slow
def test_combinations_of_combinations(name):
    """Guided experts, experts of which one is guided, and a guide that changes elsewhere, at many times at once."""
    diffusion, t = SDES[name], jnp.linspace(SDES[name].eps, 1, 41)
    y = jax.random.normal(jax.random.key(3), (41, *SHAPE))
    wide, narrow, other = (data.score(diffusion) for data in (WIDE, NARROW, Gaussian(0.2, 0.7)))
    ratio = expand(jnp.exp(-0.5 * diffusion.logsnr(t)), y)
    pick = lambda c, above, below: jnp.where(ratio > c, above, below)
    mix = lambda main, guide: guide + W * (main - guide)
    a, b, c = (score(y, t) for score in (wide, narrow, other))
    guide, two_experts = guidance.Autoguidance(W), guidance.Experts(C)(diffusion, wide, narrow)
    cases = (
        (guide(diffusion, two_experts, other), mix(pick(C, a, b), c), 2),
        (guidance.Experts(0.3)(diffusion, two_experts, guide(diffusion, other, wide)), None, 3),
        (guide(diffusion, two_experts, guidance.Experts(2.0)(diffusion, other, wide)), None, 3),
    )
    exact = [cases[0][1], pick(C, a, pick(0.3, b, mix(c, a))), mix(pick(C, a, b), pick(2.0, c, a))]
    for (score, _, count), value in zip(cases, exact, strict=True):
        assert len(stages.stages(score)) == count
        np.testing.assert_allclose(score(y, t), value, rtol=1e-5, atol=1e-5 * float(jnp.abs(value).max()))
        for part, following in zip(score.parts, score.parts[1:], strict=False):
            assert part.end == following.start
    assert (score.parts[0].start, score.parts[-1].end) == (math.inf, 0.0)


def test_a_classifier_guides_each_stage():
    diffusion = SDES["vpsde"]
    logits = lambda y, t: jnp.stack([jnp.sum(y, axis=(1, 2, 3)), jnp.zeros(len(y))], axis=1)
    labels, t = jnp.zeros(8, int), jnp.linspace(0.01, 1, 8)
    score = guidance.guided(experts(diffusion), logits, labels, 3.0)
    slope = 3 * jax.nn.sigmoid(-jnp.sum(x, axis=(1, 2, 3)))
    np.testing.assert_allclose(score(x, t), experts(diffusion)(x, t) + expand(slope, x), rtol=1e-5, atol=1e-4)
    times = [[(part.start, part.end) for part in stages.stages(f)] for f in (score, experts(diffusion))]
    assert times[0] == times[1]


def test_a_change_below_the_smallest_time_of_sampling():
    """The second model has no turn; the samples are those of the first."""
    diffusion = SDES["vpsde"].with_smallest_time(0.3)
    score = experts(SDES["vpsde"])
    for sampler in (
        samplers.ODE(Solver(1e-4, 1e-4)),
        samplers.PredictorCorrector(predictors.DDIM(), steps=8, grid=samplers.logsnr_grid),
    ):
        run = jax.jit(lambda keys, score, sampler=sampler: sampler(score, diffusion, keys, SHAPE)[0], static_argnums=1)
        np.testing.assert_allclose(run(keys[:3], score), run(keys[:3], WIDE.score(diffusion)), atol=0.02)
