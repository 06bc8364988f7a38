"""Log-likelihood of a score model: by the probability-flow ODE (NLL) and by its variational bound (NELBO).

Both are upper bounds or estimates of -log p(x_0) in nats an image [B], split in named terms. With the reconstruction
term they hold for x_0; without it they speak of x_ε, as do many published figures.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_st.losses import denoising_error, sum_dims
from score_st.ode import Solver
from score_st.score import Score
from score_st.sde import SDE, expand


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


def flow(score: Score, sde: SDE, logsnr, x):
    """dx/dlogSNR [B, ...] of the probability flow (Song et al. 2021, eq. 13) at logsnr [B].

    f - ½ g² s divided by dlogSNR/dt = -g²/σ². In logSNR the solver needs far fewer steps than in t.
    """
    t = jnp.clip(sde.time(logsnr), sde.eps, sde.T)
    variance = jnp.square(sde.sigma(t))
    drift = -sde.drift(t) * variance / sde.diffusion2(t)
    return expand(drift, x) * x + expand(0.5 * variance, x) * score(x, t)


def nll(score: Score, sde: SDE, x, probe, solver: Solver) -> NLL:
    """Integrates from ε to T with the Hutchinson trace (Grathwohl et al. 2019).

    Args:
      x: [B, ...], where the flow starts: x_ε for the correct figure, x_0 for the one of earlier papers.
      probe: like x, with zero mean and unit variance (Rademacher or Gaussian), fixed along the path.
    """

    def field(logsnr, state, probe):
        x, _ = state
        drift, tangent = jax.jvp(lambda x: flow(score, sde, logsnr[None], x[None])[0], (x,), (probe,))
        return drift, jnp.sum(tangent * probe)

    ends = sde.logsnr(jnp.array([sde.eps, sde.T], x.dtype))
    state = (x, jnp.zeros(x.shape[0], x.dtype))
    (latent, divergence), evaluations, reached = solver.solve(field, state, ends[0], ends[1], probe)
    return NLL(-sde.prior_logp(latent), -divergence, latent, evaluations, reached)


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


def nelbo(score: Score, sde: SDE, x, u, z):
    """The terms of the bound on -log p(x_ε) averaged over x_ε given x_0, in nats [B] (Song et al. 2021b, thm 3).

    prior KL + ½ ∫ g² E‖s - ∇log p(x_t|x_0)‖² dt + entropy of x_ε given x_0, the integral by one importance sampled
    time an image: u [B] uniform on [0, 1), z like x. `losses.reconstruction` at ε, which subtracts the entropy again,
    makes it a bound on -log p(x_0).

    Returns:
      prior, diffusion and entropy.
    """
    eps = jnp.full(x.shape[0], sde.eps, x.dtype)
    first, last = sde.logsnr(eps), sde.logsnr(jnp.full_like(eps, sde.T))
    t = jnp.clip(sde.time(first - u * (first - last)), sde.eps, sde.T)
    diffusion = 0.5 * (first - last) * denoising_error(score, sde, x, t, z)
    return prior_kl(sde, x), diffusion, entropy(sde, x, eps)


def bits_per_dim(nats, dims: int, num_levels: int, centered: bool, lossless: bool = False):
    """Nats an image to bits a dimension of integer data with `num_levels` values.

    Densities are of data scaled to [-1, 1] (`centered`) or [0, 1], where a level is 2 or 1 / num_levels wide (8-bit
    data: 7 or 8 bits are added); a lossless figure is a probability of levels already.
    """
    bits = nats / (dims * math.log(2))
    return bits if lossless else bits + math.log2(num_levels / (2 if centered else 1))
