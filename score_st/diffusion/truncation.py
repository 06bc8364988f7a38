"""The prior of the truncation time: P_k(τ) ∝ τ^-k on [ε, T] (Kim et al. 2022, section 4.2), T = 1.

k = inf is no soft truncation (τ = ε), k = 0 the uniform prior, k = 2 uniform in 1/τ, the natural prior of RVE.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_st.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Truncation:
    """P_k on [eps, 1].

    Attributes:
      k: exponent, 0 <= k <= inf.
      eps: smallest truncation time, 0 < eps < 1.
    """

    k: float
    eps: float

    def quantile(self, u):
        """τ with P_k(τ' <= τ) = u, for u in [0, 1); any shape. τ = ε (1 - u (1 - ε^(k-1)))^(-1/(k-1))."""
        log_eps = math.log(self.eps)
        if math.isinf(self.k):
            return jnp.full_like(u, self.eps)
        if self.k == 1.0:
            return jnp.exp((1 - u) * log_eps)
        a = self.k - 1
        return jnp.exp(log_eps - jnp.log1p(u * math.expm1(a * log_eps)) / a)

    def cdf(self, tau):
        """P_k(τ' <= tau)."""
        log_ratio = jnp.log(tau / self.eps)
        if math.isinf(self.k):
            return jnp.where(tau >= self.eps, 1.0, 0.0)
        if self.k == 1.0:
            return -log_ratio / math.log(self.eps)
        a = self.k - 1
        return jnp.expm1(-a * log_ratio) / math.expm1(a * math.log(self.eps))

    def sample(self, key, groups: int, batch: int):
        """τ [batch] for each image: one draw for each of `groups` equal, contiguous parts of the batch.

        With the batch sharded over as many devices as there are groups, every device has a τ of its own; one group is
        one τ a batch (as in the official code), and as many groups as images one an image.
        """
        tau = self.quantile(jax.random.uniform(key, (groups,)))
        return jnp.broadcast_to(tau[:, None], (groups, batch // groups)).reshape(batch)


def from_config(config) -> Truncation:
    """Reads training.st, training.k and training.truncation_time; raises ConfigError where they make no prior."""
    k, eps = config.training.k, config.training.truncation_time
    if not k >= 0:
        raise ConfigError(f"config.training.k: should be 0 or more, or inf for no soft truncation, not {k}")
    if not 0 < eps < 1:
        raise ConfigError(f"config.training.truncation_time: should be between 0 and 1, not {eps}")
    return Truncation(k if config.training.st else math.inf, eps)
