"""Linear diffusions dx = x·(d log α/dt) dt + g dw on 0 < t <= 1, with marginals x_t ~ N(α(t) x_0, σ(t)² I).

Everything follows from log α and log σ, by way of logSNR = 2 (log α − log σ): g² = −σ² d logSNR/dt (Kingma et al.
2021, eq. 20). The SDEs of the paper have closed forms that keep full float32 precision down to t = 1e-5, where
1 − exp(−∫β) would lose half of the digits. Times are arrays of any shape, and results have the same shape.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Float, Key
from score_st.config import ConfigError, Table
from score_st.diffusion import parametrization
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Parametrization

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

    @classmethod
    def from_config(cls, config) -> "SDE":
        """The SDE with the settings of `config`; a subclass with more fields than `eps` reads them here."""
        return cls(eps=config.training.truncation_time)

    @abc.abstractmethod
    def log_alpha(self, t: Times) -> Times:
        """log α, the logarithm of the mean's factor."""

    @abc.abstractmethod
    def log_sigma(self, t: Times) -> Times:
        """log σ, the logarithm of the standard deviation of x_t given x_0."""

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
        """d log α/dt: the drift of the SDE is this times x."""
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
        return self._unbounded(training) if training.unbounded_parametrization else self._bounded(training)

    def _bounded(self, training) -> Parametrization:
        """The network predicts the noise (or, without ddpm_score, the score), and is told 999 t."""
        if training.ddpm_score:
            return parametrization.noise(self)
        return Parametrization(parametrization.bounded_time)

    def _unbounded(self, training) -> Parametrization:
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


@dataclasses.dataclass(frozen=True)
class VP(SDE):
    """Variance preserving (Song et al. 2021, eq. 11): β(t) is linear, α² + σ² = 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    @classmethod
    def from_config(cls, config) -> "VP":
        """Reads model.beta_min and model.beta_max."""
        model = config.model
        return cls(eps=config.training.truncation_time, beta_min=model.beta_min, beta_max=model.beta_max)

    def beta(self, t: Times) -> Times:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral_beta(self, t: Times) -> Times:
        """B(t), the integral of β from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_integral(self, b: Times) -> Times:
        return 2 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))

    def log_alpha(self, t: Times) -> Times:
        """−B/2."""
        return -0.5 * self.integral_beta(t)

    def log_sigma(self, t: Times) -> Times:
        """½ log(1 − e^−B)."""
        return 0.5 * jnp.log(-jnp.expm1(-self.integral_beta(t)))

    def sigma(self, t: Times) -> Times:
        """√(1 − e^−B)."""
        return jnp.sqrt(-jnp.expm1(-self.integral_beta(t)))

    def logsnr(self, t: Times) -> Times:
        """−B − log(1 − e^−B)."""
        b = self.integral_beta(t)
        return -b - jnp.log(-jnp.expm1(-b))

    def time(self, logsnr: Times) -> Times:
        """The inverse of `logsnr`, by B = log(1 + e^−logSNR)."""
        return self._time_of_integral(jax.nn.softplus(-logsnr))

    def drift(self, t: Times) -> Times:
        """−β/2."""
        return -0.5 * self.beta(t)

    def diffusion2(self, t: Times) -> Times:
        """β."""
        return self.beta(t)

    def unbounded_time(self, t: Times, stabilizer: float) -> Times:
        """0 at t = 1e-5 and 999 at T, growing like −logSNR, for U-DDPM++ (Kim et al. 2022).

        The official code adds `stabilizer` inside the logarithm: log(1 − e^−B + stabilizer) + B.
        """

        def growth(t: Times) -> Times:
            b = self.integral_beta(t)
            return jnp.log(-jnp.expm1(-b) + stabilizer) + b

        first, last = growth(jnp.float32(1e-5)), growth(jnp.float32(self.T))
        return 999.0 * (growth(t) - first) / (last - first)

    def _unbounded(self, training) -> Parametrization:
        time_conditioning = functools.partial(self.unbounded_time, stabilizer=training.stabilizing_constant)
        if training.ddpm_score:
            return parametrization.noise(self, time_conditioning)
        return Parametrization(time_conditioning)

    def noise_levels(self, n: int) -> NoiseLevels | None:
        """DDPM's `n` levels, with linear β_i and the variance 1 − ∏(1 − β) (Ho et al. 2020, eq. 4)."""
        beta = jnp.linspace(self.beta_min / n, self.beta_max / n, n)
        alpha2 = jnp.exp(jnp.cumsum(jnp.log1p(-beta)))
        return NoiseLevels(
            jnp.sqrt(alpha2), jnp.sqrt(1 - alpha2), True, parametrization.ddpm(self.beta_min, self.beta_max, n)
        )


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, eq. 12): σ = 1 − α²."""

    def log_sigma(self, t: Times) -> Times:
        """log(1 − e^−B)."""
        return jnp.log(-jnp.expm1(-self.integral_beta(t)))

    def sigma(self, t: Times) -> Times:
        """1 − e^−B."""
        return -jnp.expm1(-self.integral_beta(t))

    def logsnr(self, t: Times) -> Times:
        """−B − 2 log(1 − e^−B)."""
        b = self.integral_beta(t)
        return -b - 2 * jnp.log(-jnp.expm1(-b))

    def time(self, logsnr: Times) -> Times:
        """The inverse of `logsnr`, by σ/α = 2 sinh(B/2)."""
        return self._time_of_integral(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * logsnr)))

    def diffusion2(self, t: Times) -> Times:
        """β (1 − e^−2B)."""
        return -self.beta(t) * jnp.expm1(-2 * self.integral_beta(t))

    def noise_levels(self, n: int) -> NoiseLevels | None:
        """None: DDPM's levels are those of VP."""
        return None


@dataclasses.dataclass(frozen=True)
class VE(SDE):
    """Variance exploding (Song et al. 2021, eq. 9): α = 1, σ geometric from sigma_min to sigma_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @classmethod
    def from_config(cls, config) -> "VE":
        """Reads model.sigma_min and model.sigma_max."""
        model = config.model
        return cls(eps=config.training.truncation_time, sigma_min=model.sigma_min, sigma_max=model.sigma_max)

    @property
    def prior(self) -> Prior:
        """N(0, σ_max² I)."""
        return Prior(self.sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Times) -> Times:
        """0."""
        return jnp.zeros_like(t)

    def log_sigma(self, t: Times) -> Times:
        """log σ_min + t log(σ_max/σ_min)."""
        return -0.5 * self.logsnr(t)

    def logsnr(self, t: Times) -> Times:
        """−2 log σ."""
        return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

    def time(self, logsnr: Times) -> Times:
        """The inverse of `logsnr`."""
        return (-0.5 * logsnr - math.log(self.sigma_min)) / self._log_ratio

    def drift(self, t: Times) -> Times:
        """0."""
        return jnp.zeros_like(t)

    def diffusion2(self, t: Times) -> Times:
        """2 σ² log(σ_max/σ_min)."""
        return 2 * self._log_ratio * jnp.square(self.sigma(t))

    def _bounded(self, training) -> Parametrization:
        """The network's output is the score, and it is told σ."""
        return parametrization.score(self)

    def noise_levels(self, n: int) -> NoiseLevels | None:
        """SMLD's `n` levels, geometric and the largest first (Song and Ermon 2019, section 4.2)."""
        sigmas = jnp.exp(jnp.linspace(math.log(self.sigma_max), math.log(self.sigma_min), n))
        return NoiseLevels(jnp.ones(n), sigmas, False, parametrization.smld(self.T, n))


@dataclasses.dataclass(frozen=True)
class RVE(VE):
    """Reciprocal variance exploding (Kim et al. 2022): σ² = a b^(2/t) + c d^(2/t) on [ε, 1].

    a b² = sigma_max² and a b^(2/ε) = eta², so that σ(1) is close to sigma_max; c and d put σ(ε) at sigma_min. With
    eta = sigma_min the second term vanishes and logSNR is linear in 1/t.
    """

    eta: float = 1e-3

    eps_is_part_of_the_diffusion: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config) -> "RVE":
        """Reads model.sigma_min, model.sigma_max and training.eta."""
        training, model = config.training, config.model
        return cls(training.truncation_time, model.sigma_min, model.sigma_max, training.eta)

    @property
    def _log_b(self) -> float:
        return math.log(self.eta / self.sigma_max) / (1 / self.eps - 1)

    @property
    def _log_d(self) -> float:
        return -math.log(1.01) / (2 * (1 / self.eps - 1))

    def _terms(self, s: Times) -> tuple[Array, Array]:
        """The two terms of σ², at s = 1/t."""
        first = jnp.exp(2 * (math.log(self.sigma_max) + (s - 1) * self._log_b))
        second = (self.sigma_min**2 - self.eta**2) * jnp.exp(2 * (s - 1 / self.eps) * self._log_d)
        return first, second

    def _linear(self) -> bool:
        return self.eta == self.sigma_min

    def logsnr(self, t: Times) -> Times:
        """−log σ²."""
        if self._linear():
            return -2 * (math.log(self.sigma_max) + (1 / t - 1) * self._log_b)
        return -jnp.log(sum(self._terms(1 / t)))

    def time(self, logsnr: Times) -> Times:
        """The inverse of `logsnr`; by bisection in 1/t unless that is linear."""
        s = 1 + (-0.5 * logsnr - math.log(self.sigma_max)) / self._log_b
        if self._linear():
            return 1 / s

        def bisect(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = 0.5 * (low + high)
            above = sum(self._terms(middle)) > jnp.exp(-logsnr)  # σ² falls in 1/t
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        low = jnp.ones_like(s)
        low, high = jax.lax.fori_loop(0, 60, bisect, (low, low / self.eps))
        return 2 / (low + high)

    def diffusion2(self, t: Times) -> Times:
        """dσ²/dt."""
        first, second = self._terms(1 / t)
        return -2 * (self._log_b * first + self._log_d * second) / jnp.square(t)

    def unbounded_log_sigma(self, t: Times) -> Times:
        """log σ above σ = 0.01 and −c₁/σ + c₂ below, joined smoothly: the unbounded UNCSN++ (Kim et al. 2022)."""
        edge = 0.01
        s_edge = 1 / float(self.time(jnp.float32(-2 * math.log(edge))))
        sigma = self.sigma(t)
        slope = edge / self._log_b * math.log(edge / self.sigma_max) / (s_edge - 1)
        return jnp.where(sigma > edge, jnp.log(sigma), -slope / (sigma + 1e-4) + math.log(edge) + slope / edge)

    def _unbounded(self, training) -> Parametrization:
        """As U-NCSN++: a Fourier embedding of `unbounded_log_sigma`."""
        return Parametrization(self.sigma, log_time_conditioning=self.unbounded_log_sigma)

    def official_time_sampler(self, training) -> str:
        """Always uniform in 1/t."""
        return "reciprocal"

    def official_weighting(self, training) -> str:
        """1/t², times g²/σ² with likelihood_weighting and without importance_sampling."""
        extra = training.likelihood_weighting and not training.importance_sampling
        return "reciprocal_likelihood" if extra else "reciprocal"

    def noise_levels(self, n: int) -> NoiseLevels | None:
        """None: SMLD's levels are those of VE."""
        return None


SDES: Table[type[SDE]] = Table("training.sde", {"vpsde": VP, "subvpsde": SubVP, "vesde": VE, "reciprocal_vesde": RVE})


def from_config(config) -> SDE:
    """The SDE that training.sde names; raises ConfigError for an unknown name."""
    return SDES.choose(config.training.sde.lower()).from_config(config)
