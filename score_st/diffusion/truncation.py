"""The prior of the truncation time τ, the smallest time of a training step (Kim et al. 2022, sections 4.2 and 4.5)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Float, Key
from score_st.config import ConfigError, Table

Values = Float[Array, "*values"]


@runtime_checkable
class TruncationPrior(Protocol):
    """A distribution of τ on [ε, 1]. A new one is a class and a line of `TRUNCATION_PRIORS`."""

    def quantile(self, u: Values) -> Values:
        """The τ with P(τ' <= τ) = u, for u in [0, 1); an atom at ε takes an interval of u."""

    def cdf(self, tau: Values) -> Values:
        """P(τ' <= τ)."""

    def fixed(self) -> "TruncationPrior":
        """The prior with all mass at ε, which is training without Soft Truncation."""


@dataclasses.dataclass(frozen=True)
class Truncation:
    """P_k(τ) ∝ τ^−k on [ε, 1] (Kim et al. 2022, section 4.5).

    k = ∞ fixes τ = ε, which is no Soft Truncation; k = 0 is the uniform prior; k = 2 is uniform in 1/τ.

    Attributes:
      k: the exponent, 0 <= k <= inf.
      eps: the smallest truncation time, 0 < eps < 1.
    """

    k: float
    eps: float

    def quantile(self, u: Values) -> Values:
        """The τ with P_k(τ' <= τ) = u, for u in [0, 1): τ = ε (1 − u (1 − ε^(k−1)))^(−1/(k−1))."""
        log_eps = math.log(self.eps)
        if math.isinf(self.k):
            return jnp.full_like(u, self.eps)
        if self.k == 1.0:
            return jnp.exp((1 - u) * log_eps)
        a = self.k - 1
        return jnp.exp(log_eps - jnp.log1p(u * math.expm1(a * log_eps)) / a)

    def cdf(self, tau: Values) -> Values:
        """P_k(τ' <= τ)."""
        log_ratio = jnp.log(tau / self.eps)
        if math.isinf(self.k):
            return jnp.where(tau >= self.eps, 1.0, 0.0)
        if self.k == 1.0:
            return -log_ratio / math.log(self.eps)
        a = self.k - 1
        return jnp.expm1(-a * log_ratio) / math.expm1(a * math.log(self.eps))

    def fixed(self) -> "Truncation":
        """P_∞: τ = ε."""
        return Truncation(math.inf, self.eps)


def sample(
    prior: TruncationPrior, key: Key[Array, ""], groups: int, batch: int, uniforms: Callable = jax.random.uniform
) -> Float[Array, " B"]:
    """τ for each image of a batch: one draw for each of `groups` equal, contiguous parts.

    If the batch is sharded over as many devices as there are groups, every device has a τ of its own. One group is one
    τ per batch, as in the official code; as many groups as images is one τ per image.

    Args:
      prior: of τ.
      key: of the draws.
      groups: how many.
      batch: the number of images.
      uniforms: (key, shape) -> u in [0, 1), such as `time_sampling.stratified`.
    """
    tau = prior.quantile(uniforms(key, (groups,)))
    return jnp.broadcast_to(tau[:, None], (groups, batch // groups)).reshape(batch)


def _power(config) -> Truncation:
    k = config.training.k
    if not k >= 0:
        raise ConfigError(f"config.training.k={k}: should be 0 or more, or inf for no Soft Truncation")
    return Truncation(k, config.training.truncation_time)


# builders of the prior, from the configuration
TRUNCATION_PRIORS: Table[Callable[..., TruncationPrior]] = Table("training.truncation_prior", {"power": _power})


def from_config(config) -> TruncationPrior:
    """The prior that training.truncation_prior names; with training.st=False all of its mass is at ε.

    Raises:
      ConfigError: an unknown name, or settings that make no prior.
    """
    eps = config.training.truncation_time
    if not 0 < eps < 1:
        raise ConfigError(f"config.training.truncation_time={eps}: should be between 0 and 1")
    prior = TRUNCATION_PRIORS.choose(config.training.truncation_prior)(config)
    return prior if config.training.st else prior.fixed()
