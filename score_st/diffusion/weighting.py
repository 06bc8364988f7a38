"""The weighting c(t) of the denoising score matching loss: ∫ c(t) ½‖σ s + z‖² dt."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from score_st.array_types import Array, Float
from score_st.checks import FINITE, POSITIVE, check_fields
from score_st.config import ConfigError, Table, default
from score_st.diffusion import sde as sdes
from score_st.diffusion import truncation
from score_st.diffusion.sde import SDE
from score_st.diffusion.truncation import TruncationPrior

Times = Float[Array, " B"]


@runtime_checkable
class Weighting(Protocol):
    """A function (sde, t [B]) -> c [B], positive. A new one is a function and a line of `WEIGHTINGS`.

    One with settings is a frozen dataclass: the loss compares it by `==` with the natural weighting of the times.
    """

    def __call__(self, sde: SDE, t: Times) -> Times:
        """c(t), the factor of ½‖σ s + z‖² under dt."""


def variance(sde: SDE, t: Times) -> Times:
    """The weighting c = 1, that is λ = σ² (Song et al. 2021)."""
    return jnp.ones_like(t)


def likelihood(sde: SDE, t: Times) -> Times:
    """The weighting c = g²/σ², that is λ = g², which bounds −log p (Song et al. 2021b)."""
    return sde.diffusion2(t) / jnp.square(sde.sigma(t))


def reciprocal(sde: SDE, t: Times) -> Times:
    """The weighting c = 1/t², which the official code has for RVE; with η = σ_min it is ∝ g²/σ²."""
    return 1 / jnp.square(t)


def reciprocal_likelihood(sde: SDE, t: Times) -> Times:
    """The weighting c = g²/(σ² t²): what the official code trains RVE with if likelihood_weighting=True."""
    return likelihood(sde, t) / jnp.square(t)


@dataclasses.dataclass(frozen=True)
class SignalFraction:
    """The weighting c = (g²/σ²) · α²d²/(α²d² + σ²), natural to the times of i-DODE (Zheng et al. 2023).

    Attributes:
      data_std: d, the standard deviation of the scaled data.
    """

    data_std: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, data_std=POSITIVE)

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return likelihood(sde, t) * jax.nn.sigmoid(sde.logsnr(t) + 2 * math.log(self.data_std))


@dataclasses.dataclass(frozen=True)
class Softened:
    """The weighting c = (g²/σ²) · P(τ <= t): Soft Truncation in expectation (Kim et al. 2022, section 4.3).

    Attributes:
      prior: P.
    """

    prior: TruncationPrior

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return likelihood(sde, t) * self.prior.cdf(t)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """The weighting c = (g²/σ²) · sigmoid(b − logSNR) (Kingma and Gao 2023).

    Attributes:
      bias: b.
    """

    bias: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, bias=FINITE)

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return likelihood(sde, t) * jax.nn.sigmoid(self.bias - sde.logsnr(t))


@dataclasses.dataclass(frozen=True)
class MinSNR:
    """The weighting c = min(1, γ/SNR), which is min(SNR, γ) for the error of x_0 (Hang et al. 2023).

    Attributes:
      gamma: γ.
    """

    gamma: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, gamma=POSITIVE)

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return jnp.exp(jnp.minimum(0.0, math.log(self.gamma) - sde.logsnr(t)))


@dataclasses.dataclass(frozen=True)
class Lognormal:
    """The density of t where ln(σ/α) is normal: c = (g²/σ²) · ½ N(ln(σ/α); mean, std²).

    Attributes:
      mean: of ln(σ/α).
      std: of ln(σ/α).
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, mean=FINITE, std=POSITIVE)

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return 0.5 * likelihood(sde, t) * norm.pdf(-0.5 * sde.logsnr(t), self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class EDM:
    """The weighting of Karras et al. 2022, table 1, with the density of its times: `Lognormal` times 1 + (σ/α)²/d².

    With log-normal times and the preconditioned network F it is ½‖F − F*‖² without a weight.

    Attributes:
      times: the density.
      data_std: d, the standard deviation of the scaled data.
    """

    times: Lognormal
    data_std: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, data_std=POSITIVE)

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return self.times(sde, t) * (1 + jnp.exp(-sde.logsnr(t)) / self.data_std**2)


@dataclasses.dataclass(frozen=True)
class RaisedVariance:
    """The weighting c = (g²/σ²) · max_{s <= t} (σ²/g²)(s): the smallest above the variance's that theorem 1 allows.

    λ/g² does not decrease, which Kim et al. 2022, theorem 1 needs for a prior P_λ. For the variance weighting it is
    σ²/g², which for VP falls from t = 0.350 on. See `raised_variance`, which makes one.

    Attributes:
      sde: the diffusion of the table, with ε.
      log_t: ln t of the nodes, increasing to ln T.
      highest: the largest σ²/g² up to each node.
    """

    sde: SDE
    log_t: np.ndarray = dataclasses.field(compare=False, repr=False)
    highest: np.ndarray = dataclasses.field(compare=False, repr=False)

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`; the SDE is the one of the table."""
        return jnp.maximum(1.0, likelihood(sde, t) * jnp.interp(jnp.log(t), self.log_t, self.highest))


def raised_variance(sde: SDE) -> RaisedVariance:
    """The `RaisedVariance` of an SDE; not to be called while tracing."""
    t, ratio = truncation.tabulated(sde, lambda t: 1 / likelihood(sde, t))
    return RaisedVariance(sde, np.log(t), np.maximum.accumulate(ratio))


def _softened(config) -> Softened:
    prior = truncation.from_config(config)
    if prior != prior.fixed():
        raise ConfigError("config.training.weighting=softened: needs st=False; a random τ would soften a second time")
    return Softened(truncation.random_from_config(config))


def lognormal_from_config(config) -> Lognormal:
    """With training.lognormal_mean and lognormal_std.

    The mean is stated for data in [−1, 1]. Data in [0, 1] are half as wide, and so is the noise that does the same to
    them: the mean is then less by ln 2.
    """
    mean = config.training.lognormal_mean - (0 if config.data.centered else math.log(2))
    return Lognormal(mean, config.training.lognormal_std)


# builders of the weighting, from the configuration
WEIGHTINGS: Table[Callable[..., Weighting]] = Table(
    "training.weighting",
    {
        "variance": lambda config: variance,
        "likelihood": lambda config: likelihood,
        "reciprocal": lambda config: reciprocal,
        "reciprocal_likelihood": lambda config: reciprocal_likelihood,
        "softened": _softened,
        "sigmoid": lambda config: Sigmoid(config.training.sigmoid_bias),
        "min_snr": lambda config: MinSNR(config.training.min_snr_gamma),
        "raised_variance": lambda config: raised_variance(sdes.from_config(config)),
        "edm": lambda config: EDM(lognormal_from_config(config), config.model.data_std),
    },
    also=("training.truncation_weighting",),
)


def from_config(config, sde: SDE) -> Weighting:
    """The weighting that training.weighting names; where it is empty, what the official keys mean.

    Raises:
      ConfigError: an unknown name, one that differs from an official key that is not at its default, one of ours with
        training.official_loss, or settings that make no weighting.
    """
    training = config.training
    official = sde.official_weighting(training)
    literal = "likelihood" if training.likelihood_weighting else "variance"
    check_twin(config, "weighting", "likelihood_weighting", {official, literal})
    build = WEIGHTINGS.choose(training.weighting or official)
    check_official(config, "weighting", official)
    return build(config)


def check_twin(config, key: str, official_key: str, meanings: set[str]) -> None:
    """Raises ConfigError where config.training has both a key and its official twin, and they differ.

    Args:
      config: the configuration.
      key: ours, empty by default.
      official_key: the twin; at its default it counts as not given.
      meanings: the names in `key` that agree with the official key's value.
    """
    name, value = config.training[key], config.training[official_key]
    if name and value != default().training[official_key] and name not in meanings:
        raise ConfigError(
            f"config.training.{key}={name}: {official_key}={value} means {' or '.join(sorted(meanings))}; "
            "leave one of the two at its default"
        )


def check_official(config, key: str, official: str) -> None:
    """Raises ConfigError where training.official_loss meets a value of config.training that the official code lacks.

    Args:
      config: the configuration.
      key: ours, empty by default.
      official: the name in `key` that the official keys mean.
    """
    name = config.training[key]
    if config.training.official_loss and name not in ("", official):
        what = f"{name} {key.replace('_', ' ')}"
        raise ConfigError(
            f"config.training.official_loss=True: the official code has no {what} here; leave {key} empty"
        )
