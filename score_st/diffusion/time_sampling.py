"""How the time t of an image is drawn on [τ, T], with the weight that turns a mean over t into an integral."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Float, Key
from score_st.config import ConfigError, Table
from score_st.diffusion import weighting
from score_st.diffusion.sde import SDE
from score_st.diffusion.weighting import Weighting

Times = Float[Array, " B"]


@runtime_checkable
class TimeSampler(Protocol):
    """A distribution of t on [τ, T], with weights. A new one is a small class and a line of `TIME_SAMPLERS`.

    Over u ~ U[0, 1) the mean of weight · h(t) is C ∫_τ^T c(t) h(t) dt for any h, where c is the sampler's natural
    weighting, and C a constant that does not depend on τ. The loss with another weighting c' multiplies by c'/c; with
    the natural one it leaves the quotient out.
    """

    @property
    def natural(self) -> Weighting:
        """The weighting c whose integral the weighted mean is."""

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """Times and weights [B] for the smallest times τ [B] and u [B] in [0, 1); t increases in u."""


@dataclasses.dataclass(frozen=True)
class Uniform:
    """t ~ U[τ, T] with the weight T − τ; C = 1."""

    natural: Weighting = weighting.variance

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`."""
        span = sde.T - tau
        return tau + u * span, span


@dataclasses.dataclass(frozen=True)
class Importance:
    """Density ∝ g²/σ² with the weight Z(τ) = ∫ g²/σ² dt = logSNR(τ) − logSNR(T); C = 1.

    Uniform in logSNR, so that the quantile is closed wherever logSNR has an inverse (Song et al. 2021b; Kim et al.
    2022, sections 4.1 and 4.2). ½ Z ‖σ s + z‖² is the likelihood-weighted loss.
    """

    natural: Weighting = weighting.likelihood

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`."""
        start = sde.logsnr(tau)
        z = start - sde.logsnr(jnp.full_like(tau, sde.T))
        return jnp.clip(sde.time(start - u * z), tau, sde.T), z


@dataclasses.dataclass(frozen=True)
class Reciprocal:
    """t uniform in 1/t, as RVE is trained, with the weight ∫_τ^T dt/t² relative to τ = ε; C = 1/(1/ε − 1/T).

    With η = σ_min the density ∝ 1/t² is ∝ g²/σ², so this is `Importance` up to the constant Z(ε).
    """

    natural: Weighting = weighting.reciprocal

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`."""
        span = 1 / tau - 1 / sde.T
        s = 1 / tau - u * span
        return jnp.clip(1 / s, tau, sde.T), span / (1 / sde.eps - 1 / sde.T)


@dataclasses.dataclass(frozen=True)
class IDODE:
    """Density ∝ (g²/σ²) · α²d²/(α²d² + σ²), the times of i-DODE (Zheng et al. 2023) for any diffusion; C = 1.

    Uniform in y = softplus(logSNR + 2 ln d), whose fall from τ to T is the weight. Times where x_t is nearly all noise
    are rare: there a network that predicts the velocity, or is preconditioned, has little left to learn.

    Attributes:
      data_std: d, the standard deviation of the scaled data.
    """

    data_std: float

    @property
    def natural(self) -> Weighting:
        """The likelihood weighting times the part of x_t's variance that is data."""
        return weighting.SignalFraction(self.data_std)

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`."""
        shift = 2 * math.log(self.data_std)
        start = jax.nn.softplus(sde.logsnr(tau) + shift)
        z = start - jax.nn.softplus(sde.logsnr(jnp.full_like(tau, sde.T)) + shift)
        y = start - u * z
        logsnr = y + jnp.log(-jnp.expm1(-y)) - shift  # the inverse of softplus
        return jnp.clip(sde.time(logsnr), tau, sde.T), z


@dataclasses.dataclass(frozen=True)
class Averaged:
    """The times of another sampler with weight 1: the official code's mean over [τ, T] instead of the integral.

    Attributes:
      sampler: draws the times.
    """

    sampler: TimeSampler

    @property
    def natural(self) -> Weighting:
        """That of the other sampler."""
        return self.sampler.natural

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`, but the weight does not depend on τ."""
        return self.sampler(sde, tau, u)[0], jnp.ones_like(tau)


def stratified(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Draws u in [0, 1): along the last axis one in each of n equal parts, in random order.

    Each value is uniform and independent of its place; those along the last axis are together evenly spread.
    """
    *rows, n = shape
    if rows:
        keys = jax.random.split(key, math.prod(rows))
        return jax.vmap(lambda key: stratified(key, (n,)))(keys).reshape(shape)
    order, jitter = jax.random.split(key)
    return (jax.random.permutation(order, n) + jax.random.uniform(jitter, (n,))) / n


def _idode(config) -> IDODE:
    return IDODE(weighting.data_std(config))


# builders of the time sampler, from the configuration
TIME_SAMPLERS: Table[Callable[..., TimeSampler]] = Table(
    "training.time_sampler",
    {
        "uniform": lambda config: Uniform(),
        "importance": lambda config: Importance(),
        "reciprocal": lambda config: Reciprocal(),
        "idode": _idode,
    },
)


def from_config(config, sde: SDE) -> TimeSampler:
    """The sampler that training.time_sampler names; where it is empty, what the official keys mean.

    Raises:
      ConfigError: an unknown name, one that differs from an official key that is not at its default, one of ours with
        training.official_loss, or settings that make no sampler.
    """
    training = config.training
    official = sde.official_time_sampler(training)
    literal = "importance" if training.importance_sampling else "uniform"
    weighting.check_twin(config, "time_sampler", "importance_sampling", {official, literal})
    build = TIME_SAMPLERS.choose(training.time_sampler or official)
    if not training.official_loss:
        return build(config)
    if training.time_sampler not in ("", official):
        raise ConfigError(
            f"config.training.official_loss=True: the official code has no {training.time_sampler} times here; "
            "leave time_sampler empty"
        )
    sampler = build(config)
    return sampler if sampler == Importance() else Averaged(sampler)
