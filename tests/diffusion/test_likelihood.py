"""NLL and NELBO against closed forms for Gaussian data and mixtures of Gaussians with their exact scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support.gaussian import SDES, SHAPE, Gaussian, Mixture

from score_st.config import ConfigError
from score_st.diffusion import likelihood, losses, probability_flow

DIMS = int(np.prod(SHAPE))
NATS = DIMS * np.log(2) * 1e-3  # 1e-3 bits/dim
each = pytest.mark.parametrize("name", SDES)
data = Gaussian()
SOLVER = probability_flow.Solver(3e-6, 3e-6)


@each
def test_nll_is_the_exact_one(name):
    """Started at x_ε, the flow gives -log p_ε(x_ε); with reconstruction, on average, -log p(x_0)."""
    diffusion, n = SDES[name], 512
    score = data.score(diffusion)
    keys = jax.random.split(jax.random.key(0), 4)
    x, z, z_rec = data.sample(keys[0], n), *(jax.random.normal(k, (n, *SHAPE)) for k in keys[1:3])
    eps = jnp.full(n, diffusion.eps)
    mean, std = diffusion.marginal(x, eps)
    start = mean + std[0] * z
    probe = jax.random.rademacher(keys[3], start.shape).astype(x.dtype)
    run = jax.jit(lambda x, probe: likelihood.nll(score, diffusion, x, probe[:, None], probability_flow.Solver()))
    result = run(start, probe)
    alpha, sigma = diffusion.alpha(eps[0]), diffusion.sigma(eps[0])
    at_eps = Gaussian(float(alpha * data.mean), float(jnp.sqrt(alpha**2 * data.std**2 + sigma**2)))
    # the probability flow of the exact score ends in p_T, which is the prior but for what is left of the data
    end = diffusion.alpha(jnp.float32(1)), diffusion.sigma(jnp.float32(1))
    at_t = Gaussian(float(end[0] * data.mean), float(jnp.sqrt(end[0] ** 2 * data.std**2 + end[1] ** 2)))
    exact = at_eps.nll(start) + (-diffusion.prior.log_density(result.latent) - at_t.nll(result.latent))
    assert bool(jnp.all(result.reached))
    np.testing.assert_allclose(result.total, exact, atol=NATS)
    if name != "vesde":  # there p(x_0 | x_ε) is the narrower by σ_min²/std², which costs 3e-4 bits/dim
        residual = losses.reconstruction(score, diffusion, x, eps, z_rec)
        gap = np.asarray(result.total + residual - data.nll(x))
        assert abs(gap.mean()) < NATS + 3 * gap.std() / n**0.5


def normal_nodes(n: int):
    """Nodes and weights with which means of polynomials of a standard normal variable are exact."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


@each
def test_nelbo_is_the_entropy(name):
    """Its mean over data, noise and times, by quadrature: the entropy to 1e-3 bits/dim, and never less."""
    diffusion = SDES[name]
    (nodes, weights), times = normal_nodes(4), 20000
    with jax.enable_x64(True):
        score = data.score(diffusion)
        # one pixel an image: every pair of nodes for x_0 and z, at every time
        shape = (4, 4, times)
        x = jnp.broadcast_to(data.mean + data.std * nodes[:, None, None], shape).reshape(-1, 1, 1, 1)
        z = jnp.broadcast_to(nodes[None, :, None], shape).reshape(-1, 1, 1, 1)
        u = jnp.broadcast_to((jnp.arange(times) + 0.5) / times, shape).ravel()
        terms = sum(likelihood.nelbo(score, diffusion, x, u, z))
        terms += losses.reconstruction(score, diffusion, x, jnp.full(len(x), diffusion.eps), z)
        mean = jnp.einsum("ijk,i,j->k", terms.reshape(shape), weights, weights).mean()
        entropy = 0.5 * np.log(2 * np.pi * np.e * data.std**2)
        assert -1e-9 < (mean - entropy) / np.log(2) < 1e-3


@each
def test_nll_of_a_mixture_is_the_exact_one(name):
    """Started at x_ε, the flow gives -log p_ε(x_ε), but for what is left of the data at T."""
    diffusion, mixture = SDES[name], Mixture()
    ends = [mixture.diffused(diffusion, jnp.float32(t)) for t in (diffusion.eps, diffusion.T)]
    x, z = mixture.sample(jax.random.key(0), 64), jax.random.normal(jax.random.key(1), (64, *SHAPE))
    mean, std = diffusion.marginal(x, jnp.full(64, diffusion.eps))
    start = mean + std[0] * z
    run = jax.jit(lambda x: likelihood.nll(mixture.score(diffusion), diffusion, x, jnp.ones_like(x)[:, None], SOLVER))
    result = run(start)
    exact = ends[0].nll(start) + (-diffusion.prior.log_density(result.latent) - ends[1].nll(result.latent))
    assert bool(jnp.all(result.reached))
    np.testing.assert_allclose(result.total, exact, atol=NATS)


@each
def test_latent_of_the_flow_is_the_affine_map_of_gaussians(name):
    diffusion = SDES[name]
    x = data.sample(jax.random.key(2), 8)
    score = data.score(diffusion)
    result = likelihood.nll(score, diffusion, x, jnp.ones_like(x)[:, None], probability_flow.Solver(1e-6, 1e-6))
    (a0, s0), (a1, s1) = ((diffusion.alpha(jnp.float32(t)), diffusion.sigma(jnp.float32(t))) for t in (1e-5, 1.0))
    scale = jnp.sqrt((a1**2 * data.std**2 + s1**2) / (a0**2 * data.std**2 + s0**2))
    exact = a1 * data.mean + scale * (x - a0 * data.mean)
    np.testing.assert_allclose(result.latent, exact, atol=2e-3 * float(s1))


def test_step_limit_is_reported():
    diffusion = SDES["vpsde"]
    x = data.sample(jax.random.key(2), 4)
    result = likelihood.nll(
        data.score(diffusion), diffusion, x, jnp.ones_like(x)[:, None], probability_flow.Solver(max_steps=3)
    )
    assert not np.any(result.reached) and np.all(np.isnan(result.total))
    assert np.all(np.isfinite(result.prior + result.trace))  # where the solver stopped, not where it should be


def test_hutchinson_trace_is_unbiased():
    """For a score that mixes pixels, the mean over probes is the trace."""
    diffusion = SDES["vpsde"]
    matrix = jax.random.normal(jax.random.key(0), (4, 4)) * 0.3
    score = lambda x, t: -(x.reshape(-1, 4) @ (jnp.eye(4) + matrix)).reshape(x.shape)
    x = jnp.broadcast_to(data.sample(jax.random.key(2), 1), (2000, *SHAPE))
    estimates = []
    for draw in (jax.random.rademacher, jax.random.normal):
        probe = draw(jax.random.key(5), x.shape).astype(x.dtype)
        trace = jax.jit(
            lambda x, p: likelihood.nll(score, diffusion, x, p[:, None], probability_flow.Solver(1e-4, 1e-4)).trace
        )(x, probe)
        estimates.append((trace.mean(), trace.std() / 2000**0.5))
    # minus the integral over t of the divergence of f - ½ g² s, which is ½ β tr M
    exact = -jnp.trace(matrix) * 0.5 * (diffusion.integral_beta(1.0) - diffusion.integral_beta(1e-5))
    for mean, error in estimates:
        assert abs(mean - exact) < 4 * error + 1e-3


CORNERS = np.random.default_rng(0).normal(0, 0.5, (2, 20))  # the means of two Gaussians


def corners_log_density(diffusion, t, x):
    """Of N(±, 0.3² I) with weights 0.3 and 0.7, diffused to a scalar t; x [20]."""
    alpha, variance = diffusion.alpha(t), jnp.square(diffusion.alpha(t) * 0.3) + jnp.square(diffusion.sigma(t))
    squares = jnp.sum(jnp.square(x - alpha * CORNERS), axis=1)
    parts = jnp.log(jnp.array([0.3, 0.7])) - 0.5 * squares / variance - 10 * jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(parts)


def corners_score(diffusion):
    """Nonlinear, with a full Jacobian."""
    gradient = jax.vmap(jax.grad(lambda x, t: corners_log_density(diffusion, t, x)))
    return lambda x, t: gradient(x.reshape(len(x), 20), t).reshape(x.shape)


def test_exact_trace():
    """It is the Jacobian's, which the mean of Hutchinson's estimates approaches; 20 dimensions are two chunks."""
    diffusion, t = SDES["vpsde"], jnp.array([0.1])
    score = corners_score(diffusion)
    velocity = lambda x: probability_flow.flow_at(score, diffusion, t, x[None])[0]
    x = diffusion.alpha(t) * CORNERS.mean(0) + 0.1 * jax.random.normal(jax.random.key(0), (20,))  # in the middle
    x = x.reshape(4, 5, 1)
    drift, exact = jax.jit(lambda x: likelihood.divergence(velocity, x, None))(x)
    jacobian = jax.jacobian(velocity)(x).reshape(20, 20)
    assert np.abs(jacobian - np.diag(np.diag(jacobian))).max() > 0.1  # an estimate has to be averaged
    np.testing.assert_allclose(exact, np.trace(jacobian) / 20, rtol=1e-5)
    np.testing.assert_allclose(drift, velocity(x), rtol=1e-5, atol=1e-6)
    estimate = jax.jit(jax.vmap(lambda probe: likelihood.divergence(velocity, x, probe[None])[1]))
    for draw in (jax.random.rademacher, jax.random.normal):
        estimates = np.asarray(estimate(draw(jax.random.key(1), (20000, *x.shape)).astype(x.dtype)))
        error = estimates.std() / 20000**0.5
        assert 1e-5 < error and abs(estimates.mean() - exact) < 4 * error


def test_nll_with_the_exact_trace():
    """The closed form to 1e-5 nats, of two Gaussians in 20 dimensions, where one probe is off by more than 0.1."""
    diffusion = SDES["vpsde"]
    with jax.enable_x64(True):
        score, ends = corners_score(diffusion), (diffusion.eps, diffusion.T)
        log_density = [
            jax.vmap(lambda x, t=t: corners_log_density(diffusion, jnp.float64(t), x.ravel())) for t in ends
        ]
        x = CORNERS[[0, 1, 1]].reshape(3, 4, 5, 1) + 0.3 * jax.random.normal(jax.random.key(0), (3, 4, 5, 1))
        probes, solver = jax.random.rademacher(jax.random.key(1), (3, 1, 4, 5, 1)), probability_flow.Solver(1e-8, 1e-8)
        run = jax.jit(lambda x, probes: likelihood.nll(score, diffusion, x, probes, solver))
        result, estimated = run(x, None), run(x, probes.astype(x.dtype))
        rest = log_density[1](result.latent) - diffusion.prior.log_density(result.latent)  # left of the data at T
        np.testing.assert_allclose(result.total, rest - log_density[0](x), atol=1e-5)
    assert np.abs(estimated.total - result.total).max() > 0.1
    assert np.all(result.evaluations < 1.2 * estimated.evaluations)  # products are not counted


def test_exact_trace_of_too_many_dimensions():
    too_large = jnp.zeros((1, 64, 65, 1))
    with pytest.raises(ConfigError, match="eval.trace=exact: .* each of the 4160 dimensions .* at most 4096"):
        jax.eval_shape(lambda x: likelihood.nll(data.score(SDES["vpsde"]), SDES["vpsde"], x, None, SOLVER), too_large)


def test_bits_per_dim_of_eight_bits():
    assert likelihood.bits_per_dim(0.0, 3072, 256, True) == 7
    assert likelihood.bits_per_dim(0.0, 3072, 256, False) == 8
    assert likelihood.bits_per_dim(3072 * np.log(2) * 2, 3072, 256, False, lossless=True) == pytest.approx(2)


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_discretized_gaussian_sums_to_one(low):
    """Over all levels, wherever the mean lies, also far in the tails."""
    levels = 17
    x = jnp.linspace(low, 1, levels)[:, None, None, None]
    half_bin = (1 - low) / (levels - 1) / 2
    for mean, std in ((0.1, 0.02), (0.93, 0.3), (1.5, 0.2), (-2.0, 0.01)):
        args = (x, jnp.full_like(x, mean), jnp.full(levels, std), low, 1.0, half_bin)
        mass = jnp.exp(losses.discretized_gaussian(*args))
        np.testing.assert_allclose(mass.sum(), 1, atol=1e-6)
    far = losses.discretized_gaussian(x, jnp.zeros_like(x) + 0.5, jnp.full(levels, 0.04), low, 1.0, half_bin)
    edge = np.asarray(x.ravel())
    exact = [
        np.log(max(np.diff(stats.norm.cdf([(e - 0.5 - half_bin) / 0.04, (e - 0.5 + half_bin) / 0.04]))[0], 1e-300))
        for e in edge
    ]
    middle = [i for i in range(1, levels - 1) if -60 < exact[i] and edge[i] < 0.5]
    np.testing.assert_allclose(far.ravel()[np.array(middle)], np.array(exact)[middle], rtol=1e-3)
