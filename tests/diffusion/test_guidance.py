"""Controllable generation on data whose conditional laws are known, and the way to latents and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.environment import OPTIMIZED
from support.gaussian import SDES, SHAPE, Gaussian

from score_st.diffusion import correctors, guidance, predictors, probability_flow, samplers, stages
from score_st.diffusion.dims import expand

RHO, STD = 0.8, 0.5
keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(400))


def correlated(diffusion, mix):
    """The score of x = mix·u [1, 1, D] with u ~ N(0, STD²) in each of D directions."""
    covariance = STD**2 * mix @ mix.T

    def score(x, t):
        alpha, sigma = diffusion.alpha(t), diffusion.sigma(t)
        c = jnp.square(alpha)[:, None, None] * covariance + jnp.square(sigma)[:, None, None] * jnp.eye(len(mix))
        return -jnp.linalg.solve(c, x.reshape(len(x), -1, 1)).reshape(x.shape)

    return score


CORRECTED = samplers.PredictorCorrector(
    predictors.Ancestral(),
    correctors.AnnealedLangevin(0.4),  # norms of two pixels are no measure of a step
    corrections=4,
    steps=150,
    grid=samplers.logsnr_grid,
)


@pytest.mark.parametrize("name", ["vpsde", "vesde"])
def test_inpainting_draws_from_the_conditional_law(name):
    """Two pixels with correlation ρ, the first known: the second is N(ρ x, (1 - ρ²) STD²)."""
    diffusion, known = SDES[name], 0.6
    score = correlated(diffusion, jnp.array([[1.0, 0.0], [RHO, np.sqrt(1 - RHO**2)]]))
    images = jnp.full((len(keys), 1, 2, 1), known).at[:, :, 1].set(jnp.nan)
    mask = jnp.array([1.0, 0.0])[None, :, None]
    images = jnp.where(mask > 0, images, 7.0)  # nothing of the unknown pixel is used

    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def draw(keys):
        return CORRECTED(score, diffusion, keys, (1, 2, 1), project=guidance.inpaint(diffusion, images, mask))[0]

    x = np.asarray(draw(keys)).reshape(-1, 2)
    np.testing.assert_allclose(x[:, 0], known, atol=0.02)
    std = STD * np.sqrt(1 - RHO**2)
    assert abs(x[:, 1].mean() - RHO * known) < 4 * std / np.sqrt(len(x)) + 0.02
    np.testing.assert_allclose(x[:, 1].std(), std, rtol=0.15)


def test_colours_have_the_grey_values_that_were_given():
    """Red, green and blue share a part: given their mean, the contrasts keep their own law."""
    diffusion, grey = SDES["vpsde"], 0.4
    score = correlated(diffusion, jnp.eye(3) + 0.5)
    images = jnp.full((len(keys), 1, 1, 3), grey)
    draw = lambda keys: CORRECTED(score, diffusion, keys, (1, 1, 3), project=guidance.colorize(diffusion, images))
    run = jax.jit(draw, compiler_options=OPTIMIZED)
    x = np.asarray(run(keys)[0]).reshape(-1, 3)
    np.testing.assert_allclose(x.mean(1), grey, atol=0.02)
    # orthogonal to the grey axis, mix is the identity
    np.testing.assert_allclose(((x[:, 0] - x[:, 1]) / np.sqrt(2)).std(), STD, rtol=0.12)
    assert abs((x[:, 0] - x[:, 1]).mean()) < 0.15


def test_basis_of_colours_is_orthonormal_with_grey_first():
    np.testing.assert_allclose(guidance.GRAY_FIRST @ guidance.GRAY_FIRST.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(guidance.GRAY_FIRST[0], np.full(3, 3**-0.5), rtol=1e-6)


@pytest.mark.parametrize("name", SDES)
def test_guidance_by_a_classifier_gives_the_score_of_the_class(name):
    """The mixture's score plus the exact classifier's gradient is the score of one component."""
    diffusion, parts = SDES[name], [Gaussian(-0.5, 0.2), Gaussian(0.4, 0.3)]

    def logits(x, t):
        log_p = []
        for part in parts:
            alpha, sigma = (expand(c, x) for c in (diffusion.alpha(t), diffusion.sigma(t)))
            var = jnp.square(alpha * part.std) + jnp.square(sigma)
            log_p.append(-jnp.sum(0.5 * jnp.square(x - alpha * part.mean) / var + 0.5 * jnp.log(var), axis=(1, 2, 3)))
        return jnp.stack(log_p, axis=-1)

    def mixture(x, t):
        weights = jax.nn.softmax(logits(x, t))
        return sum(expand(weights[:, i], x) * part.score(diffusion)(x, t) for i, part in enumerate(parts))

    x = jax.random.normal(jax.random.key(1), (6, *SHAPE))
    t, labels = jnp.array([0.05, 0.2, 0.4, 0.6, 0.8, 1.0]), jnp.array([0, 1, 0, 1, 0, 1])
    ours = guidance.guided(mixture, logits, labels)(x, t)
    both = [part.score(diffusion)(x, t) for part in parts]
    exact = jnp.where(expand(labels, x) == 1, both[1], both[0])
    np.testing.assert_allclose(ours, exact, rtol=2e-4, atol=2e-4 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("name", ["vpsde", "reciprocal_vesde"])
def test_encoding_and_decoding_are_inverse(name):
    diffusion, data = SDES[name], Gaussian()
    flow = samplers.ODE(probability_flow.Solver(1e-6, 1e-6), denoise=False)
    x = data.sample(jax.random.key(2), 4)
    latent, evaluations = jax.jit(lambda x: flow.encode(data.score(diffusion), diffusion, x))(x)
    back = jax.jit(lambda z: flow.decode(data.score(diffusion), diffusion, z))(latent)[0]
    np.testing.assert_allclose(back, x, atol=1e-3)
    (a0, s0), (a1, s1) = (
        (float(diffusion.alpha(t)), float(diffusion.sigma(t))) for t in map(jnp.float32, (diffusion.eps, 1))
    )
    scale = np.sqrt((a1**2 * data.std**2 + s1**2) / (a0**2 * data.std**2 + s0**2))
    np.testing.assert_allclose(latent, a1 * data.mean + scale * (x - a0 * data.mean), rtol=2e-3, atol=2e-3)
    assert np.all(evaluations > 10)


@pytest.mark.parametrize("low, high", [(0.0, np.inf), (0.3, 2.0), (0.3, np.inf), (0.0, 1e9)])
def test_guidance_by_classes_without_a_classifier(low, high):
    """In the interval s_none + w (s_class − s_none), outside s_class; two networks inside, one outside."""
    diffusion, (given, none) = SDES["vpsde"], (Gaussian(0.5, 0.2), Gaussian(0.0, 0.5))
    score, plain = given.score(diffusion), none.score(diffusion)
    guided = guidance.ClassifierFree(1.5, low, high)(diffusion, score, plain)
    x, noise = jax.random.normal(jax.random.key(0), (3, *SHAPE)), jnp.array([0.1, 1.0, 4.0])
    t = diffusion.time(-2 * jnp.log(noise))
    both = plain(x, t) + 1.5 * (score(x, t) - plain(x, t))
    inside = expand((noise > low) & (noise <= high), x)
    np.testing.assert_allclose(guided(x, t), jnp.where(inside, both, score(x, t)), rtol=1e-4, atol=1e-4)
    counts = [stages.at(guided, float(time)).evaluations for time in t]
    assert counts == [2 if low < ratio <= high else 1 for ratio in noise]
    assert guidance.ClassifierFree(1.0, low, high)(diffusion, score, plain) is score


def test_interpolation_keeps_ends_and_norms():
    first, second = jax.random.normal(jax.random.key(3), (2, 8, 8, 1))
    path = samplers.interpolate(first, second, jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(path[0], first, atol=1e-5)
    np.testing.assert_allclose(path[-1], second, atol=1e-5)
    norms = [float(jnp.linalg.norm(x)) for x in path]
    np.testing.assert_allclose(norms, np.linspace(norms[0], norms[-1], 5), rtol=1e-4)
    np.testing.assert_allclose(samplers.interpolate(first, first, jnp.array([0.5]))[0], first, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ode", "pc"])
def test_frames_lead_to_the_same_images(sampler):
    """Asked for its states, a sampler ends where it ends without; the last state is the image before denoising."""
    diffusion, score = SDES["vpsde"], Gaussian().score(SDES["vpsde"])
    made = {
        "ode": samplers.ODE(probability_flow.Solver(1e-6, 1e-6), denoise=False),
        "pc": samplers.PredictorCorrector(predictors.Ancestral(), steps=30, denoise=False),
    }[sampler]
    plain, _ = jax.jit(lambda keys: made(score, diffusion, keys, SHAPE))(keys[:5])
    x, _, states, times = jax.jit(lambda keys: made(score, diffusion, keys, SHAPE, frames=6))(keys[:5])
    np.testing.assert_allclose(x, plain, atol=1e-4)
    assert states.shape == (6, *x.shape) and np.all(np.diff(times) < 0) and times[-1] == pytest.approx(1e-5)
    np.testing.assert_allclose(states[-1], x, atol=1e-6)
    assert np.std(states[0]) > 1.5 * np.std(states[-1])
