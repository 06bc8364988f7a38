"""Log-likelihood of a score model: by the probability flow ODE (NLL) and by its variational bound (NELBO).

Both are estimates of −log p(x_ε), or upper bounds on it, in nats per image, as sums of named terms. With the
reconstruction term (`losses.reconstruction`) they bound −log p(x_0); many published figures leave it out.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import erf, erf_inv

from score_st.array_types import Array, Bool, Float, Int
from score_st.config import ConfigError
from score_st.diffusion.dims import expand, sum_dims
from score_st.diffusion.losses import denoising_error
from score_st.diffusion.parametrization import Score
from score_st.diffusion.probability_flow import Solver, flow
from score_st.diffusion.sde import SDE
from score_st.diffusion.stages import stages

MOST_DIMS = 4096  # of an exact trace
CHUNK = 16  # products of an exact trace that are computed together

Images = Float[Array, "B ..."]
Values = Float[Array, " B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NLL:
    """−log p by the ODE, in nats: `prior` + `trace`.

    Attributes:
      prior: −log π(x_T).
      trace: minus the integral of the drift's divergence.
      latent: x_T.
      evaluations: NFE, each of the drift together with its divergence, by whatever number of products.
      reached: the solver reached T; where it did not, the figures mean nothing.
    """

    prior: Values
    trace: Values
    latent: Images
    evaluations: Int[Array, " B"]
    reached: Bool[Array, " B"]

    @property
    def total(self) -> Values:
        """−log p; NaN where the solver did not reach T."""
        return jnp.where(self.reached, self.prior + self.trace, jnp.nan)


def check_exact_trace(dims: int) -> None:
    """Raises ConfigError if images have too many dimensions for an exact trace."""
    if dims > MOST_DIMS:
        raise ConfigError(
            f"config.eval.trace=exact: takes a product for each of the {dims} dimensions of an image, and at most "
            f"{MOST_DIMS} are allowed; hutchinson estimates it"
        )


def divergence(
    velocity: Callable[[Array], Array], x: Float[Array, "..."], probes: Float[Array, "m ..."] | None
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """The velocity at x and its divergence per dimension, by products of its Jacobian with vectors.

    Args:
      velocity: x [...] -> [...].
      x: one image.
      probes: for Hutchinson's estimate, the mean over the m probes; None for the exact one, with a unit vector for
        each dimension, CHUNK of them at a time.
    """
    push = lambda vector: jax.jvp(velocity, (x,), (vector,))
    if probes is not None:
        drift, tangents = jax.vmap(push, out_axes=(None, 0))(probes)
        return drift, jnp.mean(tangents * probes)
    check_exact_trace(x.size)

    def diagonal(i: Array) -> Array:
        unit = jax.nn.one_hot(i, x.size, dtype=x.dtype).reshape(x.shape)
        return jnp.sum(unit * push(unit)[1])

    return velocity(x), jnp.mean(jax.lax.map(diagonal, jnp.arange(x.size), batch_size=CHUNK))


def nll(
    score: Score, sde: SDE, x: Images, probes: Float[Array, "B m ..."] | None, solver: Solver, lambda_: float = 0.0
) -> NLL:
    """Integrates from ε to T, with the trace of the flow's Jacobian along the way.

    The trace is Hutchinson's estimate (Grathwohl et al. 2019; Song et al. 2021, appendix D.2) or exact. The solver's
    state is the image and the log-determinant in nats per dimension, both to its tolerance. It stops where the score
    function goes from one stage to the next.

    Args:
      score: the score function.
      sde: the diffusion.
      x: where the flow starts: x_ε for a bound on −log p(x_0), or x_0, as in earlier papers.
      probes: with zero mean and unit variance (Rademacher or Gaussian), fixed along the path; the trace is the mean
        over the m probes. None: the exact trace, which takes a product for each dimension.
      solver: of the ODE.
      lambda_: as in the official code: if not 0, the flow follows the drift of the reverse SDE of λ without its noise,
        and the result is the likelihood of that flow, not of the SDE.

    Raises:
      ConfigError: the trace is exact, and x has more than MOST_DIMS dimensions.
    """

    def field(score: Score) -> Callable:
        def derivative(logsnr: Array, state: tuple[Array, Array], probes: Array | None) -> tuple[Array, Array]:
            velocity = lambda x: flow(score, sde, logsnr[None], x[None], lambda_)[0]
            return divergence(velocity, state[0], probes)

        return derivative

    first, last = sde.logsnr(jnp.array([sde.eps, sde.T], x.dtype))
    state, parts = (x, jnp.zeros(x.shape[0], x.dtype)), stages(score)[::-1]
    (latent, integral), evaluations, reached = solver.solve_in_stages(field, parts, sde, state, first, last, probes)
    return NLL(-sde.prior.log_density(latent), -math.prod(x.shape[1:]) * integral, latent, evaluations, reached)


def truncated_normal(sde: SDE, x: Images, half_bin: float, u: Images) -> tuple[Images, Values]:
    """Dequantization without training (Zheng et al. 2023, section 4): x_ε = α x + σ z, with z kept in the bin of x.

    A discrete x has the probability of its bin, P(x) = ∫ p_ε(α v) α^D dv over |v − x| < half_bin = E_q[p_ε/q], where
    q(x_ε | x) is N(α x, σ²) on |x_ε − α x| < α half_bin: the noise that the network was trained with. So
    −log P <= E[−log p_ε(x_ε) + log q(x_ε | x)], and −log of the mean of K such ratios is tighter (Burda et al. 2016).

    Args:
      sde: the diffusion.
      x: pixels, at the middle of their bins.
      half_bin: half the width of a bin.
      u: uniform on [0, 1).

    Returns:
      x_ε and log q(x_ε | x) in nats.
    """
    eps = jnp.full(x.shape[0], sde.eps, x.dtype)
    mean, std = sde.marginal(x, eps)
    edge = expand(sde.alpha(eps) * half_bin / std, x)
    mass = erf(edge / math.sqrt(2))
    z = jnp.clip(math.sqrt(2) * erf_inv((2 * u - 1) * mass), -edge, edge)
    log_q = -0.5 * jnp.square(z) - 0.5 * math.log(2 * math.pi) - jnp.log(expand(std, x) * mass)
    return mean + expand(std, x) * z, sum_dims(log_q)


def prior_kl(sde: SDE, x: Images) -> Values:
    """KL(p(x_T | x_0) ‖ π) in nats."""
    t = jnp.full(x.shape[0], sde.T, x.dtype)
    mean, std = sde.marginal(x, t)
    prior_std = sde.prior.std
    ratio = jnp.square(std / prior_std)
    dims = math.prod(x.shape[1:])
    return 0.5 * (sum_dims(jnp.square(mean)) / prior_std**2 + dims * (ratio - 1 - jnp.log(ratio)))


def entropy(sde: SDE, x: Images, t: Values) -> Values:
    """The entropy of p(x_t | x_0) in nats."""
    return math.prod(x.shape[1:]) * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(sde.sigma(t)))


def nelbo(
    score: Score, sde: SDE, x: Images, u: Values, z: Images, lambda_: float = 1.0
) -> tuple[Values, Values, Values]:
    """The terms of the bound on −log p(x_ε), averaged over x_ε given x_0 (Song et al. 2021b, theorem 3).

    KL(p(x_T | x_0) ‖ π) + ½ ∫ g² E‖s − ∇log p(x_t | x_0)‖² dt + the entropy of x_ε given x_0, the integral by one
    importance-sampled time per image. With `losses.reconstruction` at ε, which subtracts the entropy again, it is a
    bound on −log p(x_0) (Kim et al. 2022, Lemma 1 at τ = ε).

    λ names the reverse SDE dx = (f − ½ (1 + λ²) g² s) dt + λ g dw whose likelihood is bounded. Of all processes with
    the marginals p(x_t | x_0) the one that differs from it by ½ (1 + λ²) g² (s − ∇log p) in drift, with the same noise
    λ g, gives a relative entropy (Girsanov) that is ((1 + λ²)/2λ)² times that of λ = 1.

    Args:
      score: the score function.
      sde: the diffusion.
      x: scaled images x_0.
      u: uniform on [0, 1).
      z: standard normal noise.
      lambda_: λ > 0.

    Returns:
      prior, diffusion and entropy, in nats.
    """
    eps = jnp.full(x.shape[0], sde.eps, x.dtype)
    first, last = sde.logsnr(eps), sde.logsnr(jnp.full_like(eps, sde.T))
    t = jnp.clip(sde.time(first - u * (first - last)), sde.eps, sde.T)
    factor = ((1 + lambda_**2) / (2 * lambda_)) ** 2
    diffusion = 0.5 * factor * (first - last) * denoising_error(score, sde, x, t, z)
    return prior_kl(sde, x), diffusion, entropy(sde, x, eps)


def bits_per_dim(
    nats: Float[Array, "..."] | float, dims: int, num_levels: int, centered: bool, lossless: bool = False
) -> Float[Array, "..."] | float:
    """Nats per image as bits per dimension of integer data with `num_levels` values.

    Densities are of data scaled to [−1, 1] (`centered`) or [0, 1], where a level is 2 or 1 / num_levels wide (8-bit
    data: 7 or 8 bits are added); a lossless figure is a probability of levels already.
    """
    bits = nats / (dims * math.log(2))
    return bits if lossless else bits + math.log2(num_levels / (2 if centered else 1))
