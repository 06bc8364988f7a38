"""Linear diffusions dx = x·(d log α/dt) dt + g dw on 0 < t <= 1, with marginals x_t ~ N(α(t) x_0, σ(t)² I).

Everything follows from log α and log σ, by way of logSNR = 2 (log α − log σ): g² = −σ² d logSNR/dt (Kingma et al.
2021, eq. 20). The SDEs of the paper have closed forms that keep full float32 precision down to t = 1e-5, where
1 − exp(−∫β) would lose half of the digits. Times are arrays of any shape, and results have the same shape.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Float, Key
from score_st.checks import FRACTION, POSITIVE, check_fields
from score_st.config import ConfigError
from score_st.diffusion import parametrization
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import OfTime, Parametrization

if TYPE_CHECKING:
    Times = Any  # mypy has no type for "a float gives a float, an array an array"
else:
    Times = Float[Array, "*times"] | float


@dataclasses.dataclass(frozen=True)
class Prior:
    """N(0, std² I), the distribution of x_T that samples start from.

    Attributes:
      std: standard deviation of each dimension.
    """

    std: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range, as other dataclasses here do."""
        check_fields(self, std=POSITIVE)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """One draw of this shape."""
        return self.std * jax.random.normal(key, shape)

    def log_density(self, z: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """Log density of each z in nats."""
        axes = tuple(range(1, z.ndim))
        squares = jnp.sum(jnp.square(z / self.std), axis=axes)
        return -0.5 * squares - math.prod(z.shape[1:]) * (0.5 * math.log(2 * math.pi) + math.log(self.std))


@dataclasses.dataclass(frozen=True)
class NoiseLevels:
    """The levels of a discrete diffusion, each x_i ~ N(alphas[i] x_0, sigmas[i]² I).

    Attributes:
      alphas: [N].
      sigmas: [N].
      predicts_noise: the network's output is the noise z; otherwise it is the score.
      parametrization: from such a network to the score at a continuous time.
    """

    alphas: Float[Array, " N"]
    sigmas: Float[Array, " N"]
    predicts_noise: bool
    parametrization: Parametrization


@dataclasses.dataclass(frozen=True)
class SDE(abc.ABC):
    """A linear diffusion.

    A subclass gives `log_alpha` and `log_sigma`. Everything else follows, by automatic differentiation and bisection,
    unless the subclass has a closed form that is faster or more exact. To be trained it also needs a
    `default_parametrization`; its line in `SDES` makes it known to configurations.

    Attributes:
      eps: the smallest time that is ever used, ε.
      T: the largest.
    """

    eps: float = 1e-5
    T: float = dataclasses.field(default=1.0, init=False)

    eps_is_part_of_the_diffusion: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range; a subclass calls it before it checks its own."""
        check_fields(self, eps=FRACTION)

    @classmethod
    def from_config(cls, config) -> "SDE":
        """The SDE with the settings of `config`; a subclass with more fields than `eps` reads them here."""
        return cls(eps=config.training.truncation_time)

    @abc.abstractmethod
    def log_alpha(self, t: Times) -> Times:
        """The logarithm of α, where x_t given x_0 has the mean α x_0."""

    @abc.abstractmethod
    def log_sigma(self, t: Times) -> Times:
        """The logarithm of σ, the standard deviation of x_t given x_0."""

    def alpha(self, t: Times) -> Times:
        """α: x_t given x_0 has the mean α x_0."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Times:
        """σ, the standard deviation of x_t given x_0."""
        return jnp.exp(self.log_sigma(t))

    def logsnr(self, t: Times) -> Times:
        """2 (log α − log σ), which falls in t."""
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def time(self, logsnr: Times) -> Times:
        """The t between 0 and T with this logSNR, by bisection."""

        def bisect(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = 0.5 * (low + high)
            above = self.logsnr(middle) > logsnr
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        low = jnp.zeros_like(logsnr)
        low, high = jax.lax.fori_loop(0, 60, bisect, (low, jnp.full_like(low, self.T)))
        return 0.5 * (low + high)

    def drift(self, t: Times) -> Times:
        """The factor d log α/dt: the drift of the SDE is this times x."""
        return _derivative(self.log_alpha, t)

    def diffusion2(self, t: Times) -> Times:
        """g², the squared diffusion coefficient."""
        return -jnp.square(self.sigma(t)) * _derivative(self.logsnr, t)

    def marginal(self, x: Float[Array, "B ..."], t: Float[Array, " B"]) -> tuple[Array, Array]:
        """Mean [B, ...] and standard deviation [B] of x_t given x_0 = `x`."""
        return expand(self.alpha(t), x) * x, self.sigma(t)

    @property
    def prior(self) -> Prior:
        """The distribution that x_T is drawn from."""
        return Prior(1.0)

    def with_smallest_time(self, eps: float) -> "SDE":
        """The same diffusion down to another ε.

        Raises:
          ValueError: ε is part of this diffusion.
        """
        if self.eps_is_part_of_the_diffusion:
            raise ValueError(f"{type(self).__name__}: ε is part of the diffusion, so another one makes another SDE")
        return dataclasses.replace(self, eps=eps)

    def default_parametrization(self, config) -> Parametrization:
        """How a network stands for the score, unless model.parametrization names another way.

        Raises:
          ConfigError: config.training asks for a discrete or an unbounded form, and this SDE has none.
        """
        training = config.training
        if not training.continuous:
            return self.required_noise_levels(config).parametrization
        form = self._bounded(training)
        if not training.unbounded_parametrization:
            return form
        time_cond, log_time_cond = self.unbounded_time_conditioning(training)
        return dataclasses.replace(form, time_conditioning=time_cond, log_time_conditioning=log_time_cond)

    def _bounded(self, training) -> Parametrization:
        """The network predicts the noise (or, without ddpm_score, the score), and is told 999 t."""
        if training.ddpm_score:
            return parametrization.noise(self)
        return Parametrization(parametrization.bounded_time)

    def unbounded_time_conditioning(self, training) -> tuple[OfTime, OfTime | None]:
        """What an unbounded network is told of t, and what a Fourier embedding takes for its logarithm, or None.

        Raises:
          ConfigError: this SDE has none.
        """
        raise ConfigError(f"config.training.unbounded_parametrization=True: {training.sde} has no unbounded form")

    def required_noise_levels(self, config) -> "NoiseLevels":
        """`noise_levels` for config.model.num_scales; raises ConfigError where there is no discrete diffusion."""
        levels = self.noise_levels(config.model.num_scales)
        if levels is None:
            raise ConfigError(f"config.training.continuous=False: {config.training.sde} has no discrete form")
        return levels

    def official_time_sampler(self, training) -> str:
        """The time sampler that the official keys of config.training mean."""
        return "importance" if training.importance_sampling else "uniform"

    def official_weighting(self, training) -> str:
        """The weighting that the official keys of config.training mean."""
        return "likelihood" if training.importance_sampling or training.likelihood_weighting else "variance"

    def noise_levels(self, n: int) -> NoiseLevels | None:
        """The discrete diffusion with `n` levels, for the losses of DDPM and SMLD; None where there is none."""
        return None


def _derivative(function: Callable[[Times], Times], t: Times) -> Times:
    """The derivative of an elementwise function at each of the times."""
    t = jnp.asarray(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
