"""The prior of the truncation time τ, the smallest time of a training step (Kim et al. 2022, sections 4.2 to 4.5)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import Array, Float, Key
from score_st.checks import FRACTION, check_fields
from score_st.config import ConfigError, Table
from score_st.diffusion import sde as sdes
from score_st.diffusion.sde import SDE
from score_st.ranges import Number

Values = Float[Array, "*values"]
Weighting = Callable[[SDE, Array], Array]  # see `weighting.Weighting`


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

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, k=Number(float, 0, also=(math.inf,), words="0 or more, or inf"), eps=FRACTION)

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


@dataclasses.dataclass(frozen=True)
class OfWeighting:
    """P_λ(τ <= t) = (λ/g²)(t) / (λ/g²)(T), with an atom at ε, as a table. See `of_weighting`, which makes one.

    Attributes:
      weighting: c = λ/σ².
      sde: the diffusion, with ε.
      log_tau: ln τ of the nodes, increasing to ln T.
      mass: P_λ at the nodes, increasing to 1.
    """

    weighting: Weighting
    sde: SDE
    log_tau: np.ndarray = dataclasses.field(compare=False, repr=False)
    mass: np.ndarray = dataclasses.field(compare=False, repr=False)

    def quantile(self, u: Values) -> Values:
        """The τ with P_λ(τ' <= τ) = u; ε where u is within the atom."""
        tau = jnp.clip(jnp.exp(jnp.interp(u, self.mass, self.log_tau)), self.sde.eps, self.sde.T)
        return jnp.where(u <= self.mass[0], self.sde.eps, tau)

    def cdf(self, tau: Values) -> Values:
        """P_λ(τ' <= τ)."""
        return jnp.where(tau >= self.sde.eps, jnp.interp(jnp.log(tau), self.log_tau, self.mass), 0.0)

    def fixed(self) -> Truncation:
        """P_∞: τ = ε."""
        return Truncation(math.inf, self.sde.eps)


def of_weighting(weighting: Weighting, sde: SDE) -> TruncationPrior:
    """The prior P_λ with which Soft Truncation trains with λ in expectation (Kim et al. 2022, theorem 1).

    With Z = (λ/g²)(T) and λ = c σ², (1/Z) L(θ; λ, ε) = E[L(θ; g², τ)] for τ ~ P_λ. Not to be called while tracing.

    Args:
      weighting: c, a function (sde, t) -> c(t).
      sde: the diffusion.

    Returns:
      P_λ; P_∞ where all of its mass is at ε.

    Raises:
      ValueError: λ/g² is not positive and finite at T, or falls somewhere on [ε, T].
    """
    t, ratio = tabulated(sde, lambda t: weighting(sde, t) * jnp.square(sde.sigma(t)) / sde.diffusion2(t))
    if not (np.all(np.isfinite(ratio)) and ratio[-1] > 0):
        raise ValueError("λ/g² of this weighting is not positive and finite on [ε, T], which theorem 1 needs")
    highest = np.maximum.accumulate(np.maximum(ratio, 0))
    if np.any(falls := ratio < highest - 1e-9 * highest[-1]):
        peak = t[np.argmax(ratio == highest[np.argmax(falls)])]
        raise ValueError(
            f"λ/g² of this weighting falls from t = {peak:#.3g} on; theorem 1 needs it non-decreasing on [ε, T]"
        )
    mass = highest / highest[-1]
    if mass[0] > 1 - 1e-9:
        return Truncation(math.inf, sde.eps)
    return OfWeighting(weighting, sde, np.log(t), mass)


def tabulated(sde: SDE, function: Callable[[Array], Any], nodes: int = 2**14) -> tuple[np.ndarray, Any]:
    """Times from ε to T, even in ln t, and an array or several of a function there: float64 on the CPU, NumPy's."""
    t = np.geomspace(sde.eps, sde.T, nodes)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return t, jax.tree.map(np.asarray, function(jnp.asarray(t)))


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
    k, name = config.training.k, config.training.truncation_weighting
    if name:
        raise ConfigError(f"config.training.truncation_weighting={name}: needs truncation_prior=weighting")
    return Truncation(k, config.training.truncation_time)


def _of_weighting(config) -> TruncationPrior:
    from score_st.diffusion import weighting  # which has weightings that need a prior

    name = config.training.truncation_weighting
    build = weighting.WEIGHTINGS.choose(name, "training.truncation_weighting")
    # a softened weighting, as λ or in the loss, is that of P_k
    config = ConfigDict(config.to_dict())
    config.training.update(st=False, truncation_prior="power", truncation_weighting="")
    sde, where = sdes.from_config(config), f"config.training.truncation_weighting={name}"
    if config.training.official_loss or weighting.from_config(config, sde) != weighting.likelihood:
        raise ConfigError(f"{where}: its prior needs weighting=likelihood in the loss, and official_loss=False")
    try:
        return of_weighting(build(config), sde)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


# builders of the prior, from the configuration
TRUNCATION_PRIORS: Table[Callable[..., TruncationPrior]] = Table(
    "training.truncation_prior", {"power": _power, "weighting": _of_weighting}
)


def random_from_config(config) -> TruncationPrior:
    """The prior that training.truncation_prior names, whatever training.st is; raises as `from_config`."""
    return TRUNCATION_PRIORS.choose(config.training.truncation_prior)(config)


def from_config(config) -> TruncationPrior:
    """The prior that training.truncation_prior names; with training.st=False all of its mass is at ε.

    Raises:
      ConfigError: an unknown name, or settings that make no prior.
    """
    prior = random_from_config(config)
    return prior if config.training.st else prior.fixed()
