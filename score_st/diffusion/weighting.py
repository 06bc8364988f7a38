"""The weighting c(t) of the denoising score matching loss: ∫ c(t) ½‖σ s + z‖² dt."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Float
from score_st.config import ConfigError, Table, default
from score_st.diffusion.sde import SDE

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

    def __call__(self, sde: SDE, t: Times) -> Times:
        """See `Weighting`."""
        return likelihood(sde, t) * jax.nn.sigmoid(sde.logsnr(t) + 2 * math.log(self.data_std))


def data_std(config) -> float:
    """model.data_std; raises ConfigError unless it is positive."""
    value = config.model.data_std
    if not 0 < value < math.inf:
        raise ConfigError(f"config.model.data_std={value}: should be positive, the standard deviation of scaled data")
    return value


# builders of the weighting, from the configuration
WEIGHTINGS: Table[Callable[..., Weighting]] = Table(
    "training.weighting",
    {
        "variance": lambda config: variance,
        "likelihood": lambda config: likelihood,
        "reciprocal": lambda config: reciprocal,
        "reciprocal_likelihood": lambda config: reciprocal_likelihood,
    },
)


def from_config(config, sde: SDE) -> Weighting:
    """The weighting that training.weighting names; where it is empty, what the official keys mean.

    Raises:
      ConfigError: an unknown name, or one that differs from an official key that is not at its default.
    """
    training = config.training
    official = sde.official_weighting(training)
    literal = "likelihood" if training.likelihood_weighting else "variance"
    check_twin(config, "weighting", "likelihood_weighting", {official, literal})
    return WEIGHTINGS.choose(training.weighting or official)(config)


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
