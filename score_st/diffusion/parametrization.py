"""How a network stands for the score ∇ log p_t(x): how its input and output are scaled, and what it is told of t."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from score_st.array_types import Array, Float
from score_st.config import ConfigError, Table
from score_st.diffusion.dims import expand

Score = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> [B, ...]
Network = Callable[[Array, Array, Array | None], Array]  # (x [B, ...], time_cond [B], log_time_cond [B]) -> [B, ...]
OfTime = Callable[[Array], Array]  # t [B] -> [B]


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """The score as skip(t) x + output_scale(t) F(input_scale(t) x, time_conditioning(t)), with F the network.

    A part that is None is the identity and adds no operation, so that the official forms keep their bits.

    Attributes:
      time_conditioning: what the network is told of t.
      output_scale: the factor of the network's output; None is 1.
      log_time_conditioning: what a Fourier embedding takes instead of the logarithm of `time_conditioning`.
      input_scale: the factor of the network's input; None is 1.
      skip: the factor of x that is added; None is 0.
    """

    time_conditioning: OfTime
    output_scale: OfTime | None = None
    log_time_conditioning: OfTime | None = None
    input_scale: OfTime | None = None
    skip: OfTime | None = None

    def score(self, network: Network) -> Score:
        """The score function of a network."""

        def score(x: Array, t: Array) -> Array:
            log_time_cond = self.log_time_conditioning(t) if self.log_time_conditioning else None
            scaled = expand(self.input_scale(t), x) * x if self.input_scale else x
            output = network(scaled, self.time_conditioning(t), log_time_cond)
            output = expand(self.output_scale(t), x) * output if self.output_scale else output
            return output + expand(self.skip(t), x) * x if self.skip else output

        return score


def _no_network(x: Array, time_cond: Array, log_time_cond: Array | None) -> Array:
    raise ValueError("this model has a score but no network, which the discrete losses need")


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """A network with its weights, and the score that it stands for: what a loss is given.

    Attributes:
      score: (x [B, ...], t [B]) -> ∇ log p_t(x) [B, ...].
      network: (x [B, ...], time_cond [B], log_time_cond [B] or None) -> [B, ...]; the discrete losses need it.
    """

    score: Score
    network: Network = _no_network


@runtime_checkable
class Diffusion(Protocol):
    """The part of an SDE that a parametrization needs, see `sde.SDE`."""

    def alpha(self, t: Array) -> Array:
        """The factor of x_0 in x_t."""

    def sigma(self, t: Array) -> Array:
        """The standard deviation of x_t given x_0."""

    def default_parametrization(self, config) -> Parametrization:
        """The one that official networks of this SDE have."""


def denoise(score: Score, sde: Diffusion, x: Float[Array, "B ..."], t: Float[Array, " B"]) -> Float[Array, "B ..."]:
    """E[x_0 | x_t = x] by Tweedie's formula."""
    return (x + expand(jnp.square(sde.sigma(t)), x) * score(x, t)) / expand(sde.alpha(t), x)


def bounded_time(t: Float[Array, " B"]) -> Float[Array, " B"]:
    """999 t, as DDPM counts its steps."""
    return 999.0 * t


def noise(sde: Diffusion, time_conditioning: OfTime = bounded_time) -> Parametrization:
    """The network predicts the noise, so the score is −F/σ (Ho et al. 2020, section 3.2)."""
    return Parametrization(time_conditioning, lambda t: -1 / sde.sigma(t))


def score(sde: Diffusion) -> Parametrization:
    """The network's output is the score, and it is told σ (Song et al. 2021)."""
    return Parametrization(sde.sigma)


def ddpm(beta_min: float, beta_max: float, n: int) -> Parametrization:
    """Networks of DDPM's loss predict the noise; they are told the step from 0 to `n` − 1, here a fraction of one."""
    sigmas = jnp.sqrt(1 - jnp.cumprod(1 - jnp.linspace(beta_min / n, beta_max / n, n)))
    step = lambda t: t * (n - 1)
    return Parametrization(step, lambda t: -1 / sigmas[step(t).astype(int)])


def smld(last: float, n: int) -> Parametrization:
    """Networks of SMLD's loss give the score; they are told the level, 0 being the largest σ, at t = `last`."""
    return Parametrization(lambda t: jnp.round((last - t) * (n - 1)))


PARAMETRIZATIONS: Table[Callable[[Diffusion], Parametrization]] = Table(
    "model.parametrization", {"noise": noise, "score": score}
)


def from_config(config, sde: Diffusion) -> Parametrization:
    """The parametrization that model.parametrization names; where it is empty, the SDE's own.

    Raises:
      ConfigError: an unknown name, or a named parametrization beside an official key that asks for another.
    """
    training, name = config.training, config.model.parametrization
    if not name:
        return sde.default_parametrization(config)
    official = {"unbounded_parametrization": False, "ddpm_score": True, "continuous": True}
    for key, value in official.items():
        if training[key] != value:
            raise ConfigError(
                f"config.model.parametrization={name}: training.{key}={training[key]} asks for another one; "
                f"leave one of the two at its default"
            )
    return PARAMETRIZATIONS.choose(name)(sde)
