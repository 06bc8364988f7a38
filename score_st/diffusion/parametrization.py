"""How a network stands for the score ∇ log p_t(x): how its input and output are scaled, and what it is told of t."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float
from score_st.config import ConfigError, Table
from score_st.diffusion.dims import expand

Score = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> [B, ...]
Network = Callable[[Array, Array, Array | None], Array]  # (x [B, ...], time_cond [B], log_time_cond [B]) -> [B, ...]
OfTime = Callable[[Array], Array]  # t [B] -> [B]


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """The score as skip(t) y + output_scale(t) F(input_scale(t) y, time_conditioning(t)), with y = x − mean(t).

    F is the network. A part that is None is the identity and adds no operation, so the official forms keep their bits.

    Attributes:
      time_conditioning: what the network is told of t.
      output_scale: the factor of the network's output; None is 1.
      log_time_conditioning: what a Fourier embedding takes instead of the logarithm of `time_conditioning`.
      input_scale: the factor of the network's input; None is 1.
      skip: the factor of y that is added; None is 0.
      mean: what is subtracted from x; None is 0.
      normalized: the network's input has a standard deviation near 1 at every t, and is taken as it is.
    """

    time_conditioning: OfTime
    output_scale: OfTime | None = None
    log_time_conditioning: OfTime | None = None
    input_scale: OfTime | None = None
    skip: OfTime | None = None
    mean: OfTime | None = None
    normalized: bool = False

    def score(self, network: Network) -> Score:
        """The score function of a network."""

        def score(x: Array, t: Array) -> Array:
            log_time_cond = self.log_time_conditioning(t) if self.log_time_conditioning else None
            x = x - expand(self.mean(t), x) if self.mean else x
            scaled = expand(self.input_scale(t), x) * x if self.input_scale else x
            output = network(scaled, self.time_conditioning(t), log_time_cond)
            output = expand(self.output_scale(t), x) * output if self.output_scale else output
            return output + expand(self.skip(t), x) * x if self.skip else output

        return score


def _no_network(x: Array, time_cond: Array, log_time_cond: Array | None) -> Array:
    raise ConfigError("this model has a score but no network, which discrete levels need")


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

    def logsnr(self, t: Array) -> Array:
        """2 (log α − log σ)."""

    def default_parametrization(self, config) -> Parametrization:
        """The one that official networks of this SDE have."""

    def unbounded_time_conditioning(self, training) -> tuple[OfTime, OfTime | None]:
        """What the network of U-DDPM++ or U-NCSN++ is told; raises ConfigError where there is none."""


def denoise(score: Score, sde: Diffusion, x: Float[Array, "B ..."], t: Float[Array, " B"]) -> Float[Array, "B ..."]:
    """E[x_0 | x_t = x] by Tweedie's formula."""
    return (x + expand(jnp.square(sde.sigma(t)), x) * score(x, t)) / expand(sde.alpha(t), x)


def bounded_time(t: Float[Array, " B"]) -> Float[Array, " B"]:
    """999 t, as DDPM counts its steps."""
    return 999.0 * t


def log_noise_level(sde: Diffusion) -> OfTime:
    """Returns ¼ log(σ/α) as a function of t (Karras et al. 2022, table 1)."""
    return lambda t: -0.125 * sde.logsnr(t)


def ddpm_logsnr(beta_min: float, beta_max: float, n: int) -> Float[np.ndarray, " n"]:
    """Returns logSNR of DDPM's levels in float64: β_i go evenly from beta_min / n to beta_max / n (Ho et al. 2020)."""
    log_alpha2 = np.cumsum(np.log1p(-np.linspace(beta_min / n, beta_max / n, n)))
    return log_alpha2 - np.log(-np.expm1(log_alpha2))


def ddpm_step(sde: Diffusion, beta_min: float, beta_max: float, n: int) -> OfTime:
    """Returns the step, 0 to `n` − 1, at which DDPM's levels have the noise of t; between two levels, a fraction.

    Steps are interpolated in the logSNR of `ddpm_logsnr`. Below the first level and above the last the step stays
    there.
    """
    noise_of_step = -ddpm_logsnr(beta_min, beta_max, n)  # which rises
    return lambda t: jnp.interp(-sde.logsnr(t), jnp.asarray(noise_of_step, t.dtype), jnp.arange(n, dtype=t.dtype))


def noise(sde: Diffusion) -> Parametrization:
    """The network predicts the noise, so the score is −F/σ (Ho et al. 2020, section 3.2)."""
    return Parametrization(bounded_time, lambda t: -1 / sde.sigma(t))


def score(sde: Diffusion) -> Parametrization:
    """The network's output is the score, and it is told σ (Song et al. 2021)."""
    return Parametrization(sde.sigma)


def preconditioned(sde: Diffusion, std: float, mean: float = 0.0) -> Parametrization:
    """EDM's preconditioning (Karras et al. 2022, section 5), for any linear SDE.

    With v = α² d² + σ², which is the variance of x_t if that of the data is d², the network gets (x − α m)/√v, and
    the score is −(x − α m)/v + α d F/(σ √v). A network that returns 0 gives the score of N(m, d² I) data.
    The loss ½ ‖σ s + z‖² is (α² d²/v) ½ ‖F − F*‖², where F* has the variance 1. For d = 1 on VP, F is −v of
    Salimans and Ho (2022).

    Args:
      sde: the diffusion.
      std: d, the standard deviation of the scaled data.
      mean: m, the mean of the scaled data.
    """
    variance = lambda t: jnp.square(sde.alpha(t) * std) + jnp.square(sde.sigma(t))
    return Parametrization(
        bounded_time,
        output_scale=lambda t: sde.alpha(t) * std / (sde.sigma(t) * jnp.sqrt(variance(t))),
        input_scale=lambda t: 1 / jnp.sqrt(variance(t)),
        skip=lambda t: -1 / variance(t),
        mean=(lambda t: mean * sde.alpha(t)) if mean else None,
        normalized=True,
    )


def ddpm(beta_min: float, beta_max: float, n: int) -> Parametrization:
    """Networks of DDPM's loss predict the noise; they are told the step from 0 to `n` − 1, here a fraction of one."""
    sigmas = jnp.sqrt(1 - jnp.cumprod(1 - jnp.linspace(beta_min / n, beta_max / n, n)))
    step = lambda t: t * (n - 1)
    return Parametrization(step, lambda t: -1 / sigmas[step(t).astype(int)])


def smld(last: float, n: int) -> Parametrization:
    """Networks of SMLD's loss give the score; they are told the level, 0 being the largest σ, at t = `last`."""
    return Parametrization(lambda t: jnp.round((last - t) * (n - 1)))


def _preconditioned(config, sde: Diffusion, std: float, mean: float = 0.0) -> Parametrization:
    model = config.model
    for section, key in (("model", "scale_by_sigma"), ("training", "official_loss")):
        if config[section][key]:
            raise ConfigError(
                f"config.model.parametrization={model.parametrization}: can't be combined with {section}.{key}=True; "
                "should be False"
            )
    return preconditioned(sde, std, mean)


# builders of the parametrization, from the configuration and the SDE
PARAMETRIZATIONS: Table[Callable[..., Parametrization]] = Table(
    "model.parametrization",
    {
        "noise": lambda config, sde: noise(sde),
        "score": lambda config, sde: score(sde),
        "edm": lambda config, sde: _preconditioned(config, sde, config.model.data_std, config.model.data_mean),
        "velocity": lambda config, sde: _preconditioned(config, sde, 1.0),
    },
)


def _ddpm_step(model, sde: Diffusion) -> OfTime:
    if model.beta_max >= model.num_scales:
        raise ConfigError(
            f"config.model.num_scales={model.num_scales}: should be more than beta_max={model.beta_max:g} for "
            "time_conditioning=ddpm_step, as β_i is below 1"
        )
    return ddpm_step(sde, model.beta_min, model.beta_max, model.num_scales)


# builders of the time conditioning, and of what a Fourier embedding takes for its logarithm (or None)
TIME_CONDITIONINGS: Table[Callable[..., tuple[OfTime, OfTime | None]]] = Table(
    "model.time_conditioning",
    {
        "bounded": lambda config, sde: (bounded_time, None),
        "unbounded": lambda config, sde: sde.unbounded_time_conditioning(config.training),
        "log_noise_level": lambda config, sde: (log_noise_level(sde),) * 2,
        "ddpm_step": lambda config, sde: (_ddpm_step(config.model, sde), None),
    },
)


def from_config(config, sde: Diffusion) -> Parametrization:
    """The parametrization that model.parametrization names; where it is empty, the SDE's own.

    What the network is told of t is model.time_conditioning; where that is empty, the parametrization's own, or the
    unbounded one with training.unbounded_parametrization.

    Raises:
      ConfigError: an unknown name, a name beside an official key that asks for something else, or an impossible form.
    """
    training, model = config.training, config.model
    conditioning = model.time_conditioning
    twins = ("parametrization", "ddpm_score"), ("parametrization", "continuous"), ("time_conditioning", "continuous")
    for name, key in twins:
        if model[name] and not training[key]:
            raise ConfigError(
                f"config.model.{name}={model[name]}: training.{key}={training[key]} asks for another one; "
                "leave one of the two at its default"
            )
    if training.unbounded_parametrization and conditioning not in ("", "unbounded"):
        raise ConfigError(
            f"config.model.time_conditioning={conditioning}: training.unbounded_parametrization=True asks for another "
            "one; leave one of the two at its default"
        )
    if not model.parametrization:
        form = sde.default_parametrization(config)
    else:
        form = PARAMETRIZATIONS.choose(model.parametrization)(config, sde)
        conditioning = conditioning or ("unbounded" if training.unbounded_parametrization else "")
    if not conditioning:
        return form
    time_cond, log_time_cond = TIME_CONDITIONINGS.choose(conditioning)(config, sde)
    return dataclasses.replace(form, time_conditioning=time_cond, log_time_conditioning=log_time_cond)
