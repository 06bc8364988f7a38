"""Log-likelihood of a score model: by the probability-flow ODE (NLL) and by its variational bound (NELBO).

Both are upper bounds or estimates of -log p(x_0) in nats an image [B], split in named terms. With the reconstruction
term they hold for x_0; without it they speak of x_ε, as do many published figures.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.lax import erf, erf_inv

from score_st.diffusion.losses import denoising_error, sum_dims
from score_st.diffusion.parametrization import Score
from score_st.diffusion.probability_flow import Solver
from score_st.diffusion.sde import SDE, expand


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NLL:
    """-log p by the ODE, in nats [B]: `prior` + `trace`.

    Attributes:
      prior: -log π(x_T).
      trace: minus the integral of the drift's divergence.
      latent: x_T [B, ...].
      evaluations: of the drift and its divergence together.
      reached: the solver came to T; where not, the figures mean nothing.
    """

    prior: jax.Array
    trace: jax.Array
    latent: jax.Array
    evaluations: jax.Array
    reached: jax.Array

    @property
    def total(self):
        return self.prior + self.trace


def flow_at(score: Score, sde: SDE, t, x, lambda_=0.0):
    """dx/dlogSNR [B, ...] of the probability flow (Song et al. 2021, eq. 13) at t [B].

    f - ½ (1 + λ²) g² s divided by dlogSNR/dt = -g²/σ²; λ > 0 is the drift of a reverse SDE, see `nelbo`.
    """
    variance = jnp.square(sde.sigma(t))
    drift = -sde.drift(t) * variance / sde.diffusion2(t)
    return expand(drift, x) * x + expand(0.5 * (1 + lambda_**2) * variance, x) * score(x, t)


def flow(score: Score, sde: SDE, logsnr, x, lambda_=0.0):
    """`flow_at` by logsnr [B] instead of t: in t the flow is singular at 0."""
    return flow_at(score, sde, jnp.clip(sde.time(logsnr), sde.eps, sde.T), x, lambda_)


def nll(score: Score, sde: SDE, x, probes, solver: Solver, lambda_=0.0) -> NLL:
    """Integrates from ε to T with the Hutchinson trace (Grathwohl et al. 2019).

    The solver's state is the image and the log-determinant in nats a dimension, both to its tolerance.

    Args:
      x: [B, ...], where the flow starts: x_ε for the correct figure, x_0 for the one of earlier papers.
      probes: [B, m, ...] with zero mean and unit variance (Rademacher or Gaussian), fixed along the path; the trace is
        their mean.
      lambda_: the official code's λ: not 0, it follows the drift of the reverse SDE of λ without its noise, which is
        the likelihood of that flow, not of the SDE.
    """

    def field(logsnr, state, probes):
        velocity = lambda x: flow(score, sde, logsnr[None], x[None], lambda_)[0]
        push = lambda probe: jax.jvp(velocity, (state[0],), (probe,))
        drift, tangents = jax.vmap(push, out_axes=(None, 0))(probes)
        return drift, jnp.mean(tangents * probes)

    ends = sde.logsnr(jnp.array([sde.eps, sde.T], x.dtype))
    state = (x, jnp.zeros(x.shape[0], x.dtype))
    (latent, divergence), evaluations, reached = solver.solve(field, state, ends[0], ends[1], probes)
    return NLL(-sde.prior_logp(latent), -math.prod(x.shape[1:]) * divergence, latent, evaluations, reached)


def truncated_normal(sde: SDE, x, half_bin: float, u):
    """Dequantisation without training (Zheng et al. 2023, section 4): x_ε = α x + σ z with z kept in the bin of x.

    A discrete x has the probability of its bin, P(x) = ∫ p_ε(α v) α^D dv over |v - x| < half_bin = E_q[p_ε/q], where
    q(x_ε | x) is N(α x, σ²) on |x_ε - α x| < α half_bin: the noise that the network knows from its training. So
    -log P <= E[-log p_ε(x_ε) + log q(x_ε | x)], and -log of the mean of K such ratios is tighter (Burda et al. 2016).

    Args:
      x: [B, ...], pixels at the middle of bins of half width half_bin.
      u: like x, uniform on [0, 1).

    Returns:
      x_ε [B, ...] and log q(x_ε | x) [B] in nats.
    """
    eps = jnp.full(x.shape[0], sde.eps, x.dtype)
    mean, std = sde.marginal(x, eps)
    edge = expand(sde.alpha(eps) * half_bin / std, x)
    mass = erf(edge / math.sqrt(2))
    z = jnp.clip(math.sqrt(2) * erf_inv((2 * u - 1) * mass), -edge, edge)
    log_q = -0.5 * jnp.square(z) - 0.5 * math.log(2 * math.pi) - jnp.log(expand(std, x) * mass)
    return mean + expand(std, x) * z, sum_dims(log_q)


def prior_kl(sde: SDE, x):
    """KL(p(x_T | x_0) ‖ π) in nats [B]."""
    t = jnp.full(x.shape[0], sde.T, x.dtype)
    mean, std = sde.marginal(x, t)
    ratio = jnp.square(std / sde.prior_std)
    dims = math.prod(x.shape[1:])
    return 0.5 * (sum_dims(jnp.square(mean)) / sde.prior_std**2 + dims * (ratio - 1 - jnp.log(ratio)))


def entropy(sde: SDE, x, t):
    """Of p(x_t | x_0), in nats [B]."""
    return math.prod(x.shape[1:]) * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(sde.sigma(t)))


def nelbo(score: Score, sde: SDE, x, u, z, lambda_=1.0):
    """The terms of the bound on -log p(x_ε) averaged over x_ε given x_0, in nats [B] (Song et al. 2021b, thm 3).

    prior KL + ½ ∫ g² E‖s - ∇log p(x_t|x_0)‖² dt + entropy of x_ε given x_0, the integral by one importance sampled
    time an image: u [B] uniform on [0, 1), z like x. `losses.reconstruction` at ε, which subtracts the entropy again,
    makes it a bound on -log p(x_0).

    λ names the reverse SDE dx = (f - ½ (1 + λ²) g² s) dt + λ g dw whose likelihood is bounded. Of all processes with
    the marginals p(x_t|x_0) the one that differs from it by ½ (1 + λ²) g² (s - ∇log p) in drift, with the same noise
    λ g, gives a relative entropy (Girsanov) that is ((1 + λ²)/2λ)² times that of λ = 1.

    Returns:
      prior, diffusion and entropy.
    """
    eps = jnp.full(x.shape[0], sde.eps, x.dtype)
    first, last = sde.logsnr(eps), sde.logsnr(jnp.full_like(eps, sde.T))
    t = jnp.clip(sde.time(first - u * (first - last)), sde.eps, sde.T)
    factor = ((1 + lambda_**2) / (2 * lambda_)) ** 2
    diffusion = 0.5 * factor * (first - last) * denoising_error(score, sde, x, t, z)
    return prior_kl(sde, x), diffusion, entropy(sde, x, eps)


def bits_per_dim(nats, dims: int, num_levels: int, centered: bool, lossless: bool = False):
    """Nats an image to bits a dimension of integer data with `num_levels` values.

    Densities are of data scaled to [-1, 1] (`centered`) or [0, 1], where a level is 2 or 1 / num_levels wide (8-bit
    data: 7 or 8 bits are added); a lossless figure is a probability of levels already.
    """
    bits = nats / (dims * math.log(2))
    return bits if lossless else bits + math.log2(num_levels / (2 if centered else 1))
