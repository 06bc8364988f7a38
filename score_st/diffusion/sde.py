"""The SDEs of the paper, and the table of all SDEs."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from score_st.array_types import Array
from score_st.checks import NOT_NEGATIVE, POSITIVE, check_fields, is_traced
from score_st.config import ConfigError, Table
from score_st.diffusion import parametrization
from score_st.diffusion.linear_sde import SDE, NoiseLevels, Prior, Times
from score_st.diffusion.parametrization import OfTime, Parametrization
from score_st.ranges import Number

__all__ = ["RVE", "SDE", "SDES", "VE", "VP", "NoiseLevels", "Prior", "SubVP", "from_config"]


@dataclasses.dataclass(frozen=True)
class VP(SDE):
    """Variance preserving (Song et al. 2021, eq. 11): β(t) is linear, α² + σ² = 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        super().__post_init__()
        check_fields(self, beta_min=NOT_NEGATIVE)
        check_fields(self, beta_max=POSITIVE)
        check_fields(self, beta_max=Number(float, self.beta_min))

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

    def unbounded_time_conditioning(self, training) -> tuple[OfTime, OfTime | None]:
        """`unbounded_time` with training.stabilizing_constant."""
        return functools.partial(self.unbounded_time, stabilizer=training.stabilizing_constant), None

    def noise_levels(self, n: int) -> NoiseLevels | None:
        """DDPM's `n` levels, with linear β_i and the variance 1 − ∏(1 − β) (Ho et al. 2020, eq. 4).

        Raises:
          ConfigError: there are so few that a β_i, at most beta_max / n, would be 1 or more.
        """
        if not is_traced(self.beta_max) and n <= self.beta_max:
            raise ConfigError(f"{n} noise levels: should be more than beta_max={self.beta_max:g}, as β_i is below 1")
        beta = jnp.linspace(self.beta_min / n, self.beta_max / n, n)
        alpha2 = jnp.exp(jnp.cumsum(jnp.log1p(-beta)))
        return NoiseLevels(
            jnp.sqrt(alpha2), jnp.sqrt(1 - alpha2), True, parametrization.ddpm(self.beta_min, self.beta_max, n)
        )


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, eq. 12): σ = 1 − α²."""

    def log_sigma(self, t: Times) -> Times:
        """The logarithm of 1 − e^−B."""
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

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        super().__post_init__()
        check_fields(self, sigma_min=POSITIVE, sigma_max=Number(float, self.sigma_min, open="("))

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
        """The logarithm of σ_min (σ_max/σ_min)^t."""
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

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        super().__post_init__()
        check_fields(self, eta=Number(float, 0, self.sigma_max, "()"))

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
        """The unbounded UNCSN++'s log σ above σ = 0.01 and −c₁/σ + c₂ below, joined smoothly (Kim et al. 2022)."""
        edge = 0.01
        s_edge = 1 / float(self.time(jnp.float32(-2 * math.log(edge))))
        sigma = self.sigma(t)
        slope = edge / self._log_b * math.log(edge / self.sigma_max) / (s_edge - 1)
        return jnp.where(sigma > edge, jnp.log(sigma), -slope / (sigma + 1e-4) + math.log(edge) + slope / edge)

    def unbounded_time_conditioning(self, training) -> tuple[OfTime, OfTime | None]:
        """As U-NCSN++: σ, and a Fourier embedding of `unbounded_log_sigma`."""
        return self.sigma, self.unbounded_log_sigma

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
