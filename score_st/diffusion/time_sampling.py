"""How the time t of an image is drawn on [τ, T], with the weight that turns a mean over t into an integral."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from score_st.array_types import Array, Float, Key
from score_st.checks import POSITIVE, check_fields
from score_st.config import ConfigError, Table
from score_st.diffusion import sde as sdes
from score_st.diffusion import truncation, weighting
from score_st.diffusion.sde import SDE
from score_st.diffusion.truncation import TruncationPrior
from score_st.diffusion.weighting import Weighting

Times = Float[Array, " B"]
FLOAT32_TAIL = 12.0  # a standard normal has a density and a mass in float32 up to here


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

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, data_std=POSITIVE)

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
class Lognormal:
    """ln(σ/α) ~ N(mean, std²), cut to [τ, T] (Karras et al. 2022, table 1), with the mass of [τ, T] as weight; C = 1.

    Attributes:
      natural: the density, with mean and std.
    """

    natural: weighting.Lognormal

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`."""
        mean, std = self.natural.mean, self.natural.std
        first, last = ((-0.5 * sde.logsnr(t) - mean) / std for t in (tau, jnp.full_like(tau, sde.T)))
        # masses below and above t: only the smaller one has all of its digits, so that t close to T needs the upper
        below, above = ndtr(last) - ndtr(first), ndtr(-first) - ndtr(-last)
        lower, upper = ndtr(first) + u * below, ndtr(-last) + (1 - u) * above
        x = jnp.where(upper < 0.5, -ndtri(upper), ndtri(lower))
        x = jnp.clip(x, jnp.maximum(first, -FLOAT32_TAIL), last)  # u = 0 would give a time without a density
        return jnp.clip(sde.time(-2 * (mean + std * x)), tau, sde.T), jnp.where(first > 0, above, below)


@dataclasses.dataclass(frozen=True)
class Softened:
    """Density ∝ (g²/σ²) · P(τ' <= t), for Soft Truncation in expectation (Kim et al. 2022, section 4.3); C = 1.

    It is meant for a fixed τ = ε. See `softened`, which makes one.

    Attributes:
      natural: the density, with the prior P.
      log_t: ln t of the nodes of a table, increasing to ln T.
      mass: ∫ (g²/σ²) P(τ' <= t) dt from each node to T.
    """

    natural: weighting.Softened
    log_t: np.ndarray = dataclasses.field(compare=False, repr=False)
    mass: np.ndarray = dataclasses.field(compare=False, repr=False)

    def __call__(self, sde: SDE, tau: Times, u: Times) -> tuple[Times, Times]:
        """See `TimeSampler`; the SDE is the one of the table."""
        z = jnp.interp(jnp.log(tau), self.log_t, self.mass)
        log_t = jnp.interp((1 - u) * z, self.mass[::-1], self.log_t[::-1])
        return jnp.clip(jnp.exp(log_t), tau, sde.T), z


def softened(prior: TruncationPrior, sde: SDE) -> Softened:
    """The times of Soft Truncation in expectation with this prior and this SDE; not to be called while tracing."""
    t, (logsnr, cdf) = truncation.tabulated(sde, lambda t: (sde.logsnr(t), prior.cdf(t)))
    steps = -np.diff(logsnr) * (cdf[1:] + cdf[:-1]) / 2
    mass = np.append(np.cumsum(steps[::-1])[::-1], 0.0)
    return Softened(weighting.Softened(prior), np.log(t), mass)


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


def _lognormal(config) -> Lognormal:
    density, sde = weighting.lognormal_from_config(config), sdes.from_config(config)
    distance = abs(-0.5 * float(sde.logsnr(jnp.float32(sde.T))) - density.mean)
    if distance > FLOAT32_TAIL * density.std:  # no mass would be left near T
        raise ConfigError(
            f"config.training.lognormal_std={density.std}: ln(σ/α) at T is {distance:.2f} from its mean; "
            f"should be at least {distance / FLOAT32_TAIL:.2f}"
        )
    return Lognormal(density)


def _softened(config) -> Softened:
    sde = sdes.from_config(config)
    weights = weighting.from_config(config, sde)
    if not isinstance(weights, weighting.Softened):
        raise ConfigError(
            "config.training.time_sampler=softened: needs weighting=softened, "
            "as the weights of another one grow without bound near ε"
        )
    return softened(weights.prior, sde)


# builders of the time sampler, from the configuration
TIME_SAMPLERS: Table[Callable[..., TimeSampler]] = Table(
    "training.time_sampler",
    {
        "uniform": lambda config: Uniform(),
        "importance": lambda config: Importance(),
        "reciprocal": lambda config: Reciprocal(),
        "idode": lambda config: IDODE(config.model.data_std),
        "lognormal": _lognormal,
        "softened": _softened,
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
    weighting.check_official(config, "time_sampler", official)
    sampler = build(config)
    return Averaged(sampler) if training.official_loss and sampler != Importance() else sampler
