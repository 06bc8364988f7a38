"""DDPM's bound on the probability of integer images, by the chain of its N discrete steps (Ho et al. 2020, eq. 5).

The levels have the variances 1 − ᾱ_i, with ᾱ_i = ∏(1 − β_j) and β_j evenly from beta_min / N to beta_max / N. With
α² + σ² = 1 they are levels of VP, too, at times close to (i + 1) / N: those at which VP has the same logSNR.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float, Int
from score_st.config import ConfigError, Table
from score_st.diffusion.dims import expand, sum_dims
from score_st.diffusion.losses import LogMass, log_mass_from_config
from score_st.diffusion.parametrization import ScoreModel, ddpm_logsnr
from score_st.diffusion.sde import SDE

Images = Float[Array, "B ..."]
Values = Float[Array, " B"]
Noise = Callable[[ScoreModel, Images, Int[Array, " B"]], Images]  # (model, x_i, level i) -> the noise in x_i

# the variance of a step divided by that of q(x_{i-1} | x_i, x_0), from (1 − ᾱ_{i-1}) / (1 − ᾱ_i)
VARIANCES: Table[Callable[[np.ndarray], np.ndarray]] = Table(
    "eval.nelbo_discrete_variance", {"posterior": np.ones_like, "beta": lambda quotient: 1 / quotient}
)


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteBound:
    """L_T + Σ L_{t-1} + L_0 (Ho et al. 2020, section 3).

    Means of a step are DDPM's, with the guess of x_0 clipped to the range of the data, as DDPM's code does for its
    figures; since x_0 is there itself, that never adds to the bound. With v times the variance of q, a step costs
    ½ (e^Δ − 1) (α/σ)² ‖x_0 − guess‖² / v + ½ D (1/v − 1 + log v), where Δ is the fall of logSNR.

    Attributes:
      logsnr: of the N levels, [N], which falls.
      noise: what the model says of the noise in x_i.
      log_mass: of the decoder, see `losses.discretized_gaussian`.
      low: of the scaled data; the highest value is 1.
      variance: an entry of VARIANCES.
    """

    logsnr: np.ndarray
    noise: Noise
    log_mass: LogMass
    low: float
    variance: Callable[[np.ndarray], np.ndarray]

    def __call__(self, model: ScoreModel, x: Images, u: Values, z: Images, z_first: Images) -> dict[str, Values]:
        """The terms in nats: `prior` (L_T), `diffusion` (the L_{t-1}), `variance` (v's part of them), L_0.

        The sum over steps is by one step per image, drawn in proportion to Δ. L_0, `reconstruction`, is a discretized
        Gaussian at x_1 with the variance of the step after, since q has none at the first (as in DDPM's code).

        Args:
          model: the network and its score.
          x: scaled images x_0, at the middle of their bins.
          u: uniform on [0, 1), for the steps.
          z: standard normal noise of x_i.
          z_first: of x_1, for L_0.
        """
        dims, fall = math.prod(x.shape[1:]), self.logsnr[:-1] - self.logsnr[1:]
        noise2 = 1 / (1 + np.exp(self.logsnr))  # 1 − ᾱ
        v = self.variance(noise2[:-1] / noise2[1:])
        step = jnp.searchsorted(jnp.asarray(np.cumsum(fall) / fall.sum(), x.dtype), u, side="right")
        step = jnp.minimum(step, len(fall) - 1)
        factor = 0.5 * np.expm1(fall) / v / fall * fall.sum()
        error, _ = self._error(model, x, step + 1, z)
        _, guess = self._error(model, x, jnp.zeros_like(step), z_first)
        last = 1 - noise2[-1]  # ᾱ_N
        beta = 1 - (1 - noise2[1]) / (1 - noise2[0])
        std = math.sqrt(beta * noise2[0] / noise2[1])
        constant = lambda nats: jnp.full(len(x), dims * nats, x.dtype)
        return {
            "prior": 0.5 * last * sum_dims(jnp.square(x)) + constant(-0.5 * (last + math.log1p(-last))),
            "diffusion": jnp.asarray(factor, x.dtype)[step] * error,
            "variance": constant(0.5 * float(np.sum(1 / v - 1 + np.log(v)))),
            "reconstruction": -sum_dims(self.log_mass(x, guess, jnp.full(len(x), std, x.dtype))),
        }

    def _error(self, model: ScoreModel, x: Images, level: Array, z: Images) -> tuple[Values, Images]:
        """(α/σ)² ‖x_0 − guess‖² at x_i = α x + σ z, and the guess."""
        logsnr = expand(jnp.asarray(self.logsnr, x.dtype)[level], x)
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        noise = self.noise(model, alpha * x + sigma * z, level)
        guess = jnp.clip(x + sigma / alpha * (z - noise), self.low, 1.0)
        return sum_dims(jnp.square(alpha / sigma * (x - guess))), guess


def _told_the_level(model: ScoreModel, x: Images, level: Array) -> Images:
    return model.network(x, level.astype(x.dtype), None)


def _at_its_time(sde: SDE, logsnr: np.ndarray) -> Noise:
    times = sde.time(jnp.asarray(logsnr))

    def noise(model: ScoreModel, x: Images, level: Array) -> Images:
        t = times[level].astype(x.dtype)
        return -expand(sde.sigma(t), x) * model.score(x, t)

    return noise


def from_config(config, sde: SDE) -> DiscreteBound:
    """The bound with config.model.num_scales steps; each network is told the level as it was in training.

    Raises:
      ConfigError: DDPM's levels are none of this SDE, or there are fewer than two.
    """
    n, model = config.model.num_scales, config.model
    levels = sde.noise_levels(n)
    if levels is None or not levels.predicts_noise or n < 2:
        raise ConfigError(
            f"config.eval.nelbo_discrete_iter: DDPM's bound needs training.sde=vpsde and model.num_scales of 2 or "
            f"more, not {config.training.sde} and {n}"
        )
    logsnr = ddpm_logsnr(model.beta_min, model.beta_max, n)
    noise = _at_its_time(sde, logsnr) if config.training.continuous else _told_the_level
    variance = VARIANCES.choose(config.eval.nelbo_discrete_variance)
    low = -1.0 if config.data.centered else 0.0
    return DiscreteBound(logsnr, noise, log_mass_from_config(config), low, variance)
