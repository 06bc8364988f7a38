"""From the output of a network to the score ∇ log p_t(x): what the network is told about t, and how its output scales.

A network is a function (x [B, H, W, C], time_cond [B], log_time_cond [B] or None) -> [B, H, W, C]; a score function is
(x, t [B]) -> [B, H, W, C].
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_st.config import ConfigError
from score_st.diffusion.sde import expand

Score = Callable[[jax.Array, jax.Array], jax.Array]


def denoise(score: Score, sde, x, t):
    """E[x_0 | x_t = x] by Tweedie's formula, x [B, ...], t [B]."""
    return (x + expand(jnp.square(sde.sigma(t)), x) * score(x, t)) / expand(sde.alpha(t), x)


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """How a network stands for a score.

    Attributes:
      time_conditioning: t [B] -> what the network gets as its time [B].
      output_scale: t [B] -> the factor [B] from the network's output to the score.
      log_time_conditioning: t [B] -> what a Fourier embedding takes instead of the logarithm of the former.
    """

    time_conditioning: Callable
    output_scale: Callable
    log_time_conditioning: Callable | None = None

    def score(self, network) -> Score:
        def score(x, t):
            log_time_cond = self.log_time_conditioning(t) if self.log_time_conditioning else None
            return expand(self.output_scale(t), x) * network(x, self.time_conditioning(t), log_time_cond)

        return score


def bounded_time(t):
    """999 t, as DDPM counts its steps."""
    return 999.0 * t


def unbounded_time(sde, stabilizer, t):
    """0 at t = 1e-5 and 999 at T, growing like -logSNR (Kim et al. 2022, section 4.1).

    The official code adds `stabilizer` inside the logarithm: log(1 - e^-B + stabilizer) + B.
    """

    def growth(t):
        b = sde.integral_beta(t)
        return jnp.log(-jnp.expm1(-b) + stabilizer) + b

    first, last = growth(jnp.float32(1e-5)), growth(jnp.float32(sde.T))
    return 999.0 * (growth(t) - first) / (last - first)


def unbounded_log_sigma(sde, t):
    """log σ above σ = 0.01 and -c₁/σ + c₂ below, joined smoothly: the unbounded UNCSN++ (Kim et al. 2022, app. C)."""
    b, edge = sde._log_b, 0.01
    s_edge = 1 / float(sde.time(jnp.float32(-2 * math.log(edge))))
    sigma = sde.sigma(t)
    slope = edge / b * math.log(edge / sde.sigma_max) / (s_edge - 1)
    return jnp.where(sigma > edge, jnp.log(sigma), -slope / (sigma + 1e-4) + math.log(edge) + slope / edge)


def _ones(t):
    return jnp.ones_like(t)


def _minus_inverse_sigma(sde, t):
    return -1 / sde.sigma(t)


def _discrete(sde, config) -> Parametrization:
    """Networks of the discrete losses take whole steps: 0 ... N-1 in time for DDPM, down from σ_max for SMLD."""
    n = config.model.num_scales
    if config.training.sde.lower() == "vpsde":
        sigmas = jnp.sqrt(1 - jnp.cumprod(1 - jnp.linspace(sde.beta_min / n, sde.beta_max / n, n)))
        time_cond = lambda t: t * (n - 1)
        return Parametrization(time_cond, lambda t: -1 / sigmas[time_cond(t).astype(int)])
    return Parametrization(lambda t: jnp.round((sde.T - t) * (n - 1)), _ones)


def from_config(config, sde) -> Parametrization:
    """Reads continuous, ddpm_score and unbounded_parametrization of config.training."""
    training = config.training
    variance_preserving = training.sde.lower() in ("vpsde", "subvpsde")
    if not training.continuous:
        if training.sde.lower() not in ("vpsde", "vesde"):
            raise ConfigError(f"config.training.continuous: {training.sde} has no discrete form; vpsde and vesde have")
        return _discrete(sde, config)
    if variance_preserving:
        time_cond = bounded_time
        if training.unbounded_parametrization:
            time_cond = functools.partial(unbounded_time, sde, training.stabilizing_constant)
        scale = functools.partial(_minus_inverse_sigma, sde) if training.ddpm_score else _ones
        return Parametrization(time_cond, scale)
    if not training.unbounded_parametrization:
        return Parametrization(sde.sigma, _ones)
    if training.sde.lower() != "reciprocal_vesde":
        raise ConfigError("config.training.unbounded_parametrization: needs vpsde, subvpsde or reciprocal_vesde")
    return Parametrization(sde.sigma, _ones, functools.partial(unbounded_log_sigma, sde))
