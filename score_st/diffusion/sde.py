"""Linear diffusions dx = x·(d log α/dt) dt + g dw on 0 < t <= 1, with marginals x_t ~ N(α(t) x_0, σ(t)² I).

Everything follows from log α, σ and the inverse of logSNR = 2 (log α - log σ): g² = -σ² d logSNR/dt (Kingma et al.
2021, eq. 20). Expressions are chosen to keep full float32 precision down to t = 1e-5, where 1 - exp(-∫β) would lose
half of the digits. Times are arrays of any shape; what is returned has the same shape.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_st.config import choose


def expand(a: jax.Array, x: jax.Array) -> jax.Array:
    """`a` [B] with as many trailing axes of length one as it takes to multiply `x` [B, ...]."""
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))


@dataclasses.dataclass(frozen=True)
class SDE:
    """What all four share; a subclass gives log_alpha, sigma, logsnr, time, drift and diffusion2.

    Attributes:
      eps: the smallest time that is ever used, the truncation time.
      T: the largest.
    """

    eps: float = 1e-5
    T: float = dataclasses.field(default=1.0, init=False)

    def log_alpha(self, t):
        raise NotImplementedError

    def sigma(self, t):
        """Standard deviation of x_t given x_0."""
        raise NotImplementedError

    def logsnr(self, t):
        """2 (log α - log σ), decreasing in t."""
        raise NotImplementedError

    def time(self, logsnr):
        """The t with logsnr(t) = logsnr."""
        raise NotImplementedError

    def drift(self, t):
        """d log α/dt: the drift is this times x."""
        raise NotImplementedError

    def diffusion2(self, t):
        """g²."""
        raise NotImplementedError

    def alpha(self, t):
        return jnp.exp(self.log_alpha(t))

    def marginal(self, x, t):
        """Mean [B, ...] and standard deviation [B] of x_t given x_0 = `x` [B, ...], at `t` [B]."""
        return expand(self.alpha(t), x) * x, self.sigma(t)

    @property
    def prior_std(self) -> float:
        return 1.0

    def prior_sample(self, key, shape):
        return self.prior_std * jax.random.normal(key, shape)

    def prior_logp(self, z):
        """Log density [B] in nats of `z` [B, ...] under N(0, prior_std² I)."""
        axes = tuple(range(1, z.ndim))
        dims = math.prod(z.shape[1:])
        squares = jnp.sum(jnp.square(z / self.prior_std), axis=axes)
        return -0.5 * squares - dims * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))


@dataclasses.dataclass(frozen=True)
class VP(SDE):
    """Variance preserving (Song et al. 2021, eq. 11): β(t) linear, α² + σ² = 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t):
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral_beta(self, t):
        """B(t), the integral of β from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_integral(self, b):
        return 2 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))

    def log_alpha(self, t):
        return -0.5 * self.integral_beta(t)

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-self.integral_beta(t)))

    def logsnr(self, t):
        b = self.integral_beta(t)
        return -b - jnp.log(-jnp.expm1(-b))

    def time(self, logsnr):
        return self._time_of_integral(jax.nn.softplus(-logsnr))

    def drift(self, t):
        return -0.5 * self.beta(t)

    def diffusion2(self, t):
        return self.beta(t)


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, eq. 13): σ = 1 - α²."""

    def sigma(self, t):
        return -jnp.expm1(-self.integral_beta(t))

    def logsnr(self, t):
        b = self.integral_beta(t)
        return -b - 2 * jnp.log(-jnp.expm1(-b))

    def time(self, logsnr):
        # σ/α = 2 sinh(B/2)
        return self._time_of_integral(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * logsnr)))

    def diffusion2(self, t):
        return -self.beta(t) * jnp.expm1(-2 * self.integral_beta(t))


@dataclasses.dataclass(frozen=True)
class VE(SDE):
    """Variance exploding (Song et al. 2021, eq. 9): α = 1, σ geometric from sigma_min to sigma_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def sigma(self, t):
        return jnp.exp(-0.5 * self.logsnr(t))

    def logsnr(self, t):
        return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

    def time(self, logsnr):
        return (-0.5 * logsnr - math.log(self.sigma_min)) / self._log_ratio

    def drift(self, t):
        return jnp.zeros_like(t)

    def diffusion2(self, t):
        return 2 * self._log_ratio * jnp.square(self.sigma(t))


@dataclasses.dataclass(frozen=True)
class RVE(VE):
    """Reciprocal variance exploding (Kim et al. 2022, section 4.3): σ² = a b^(2/t) + c d^(2/t) on [eps, 1].

    a b² = sigma_max² and a b^(2/eps) = eta², so that σ(1) is close to sigma_max; c and d put σ(eps) at sigma_min. With
    eta = sigma_min the second term vanishes and logSNR is linear in 1/t.
    """

    eta: float = 1e-3

    @property
    def _log_b(self) -> float:
        return math.log(self.eta / self.sigma_max) / (1 / self.eps - 1)

    @property
    def _log_d(self) -> float:
        return -math.log(1.01) / (2 * (1 / self.eps - 1))

    def _terms(self, s):
        """The two terms of σ², at s = 1/t."""
        first = jnp.exp(2 * (math.log(self.sigma_max) + (s - 1) * self._log_b))
        second = (self.sigma_min**2 - self.eta**2) * jnp.exp(2 * (s - 1 / self.eps) * self._log_d)
        return first, second

    def _linear(self) -> bool:
        return self.eta == self.sigma_min

    def logsnr(self, t):
        if self._linear():
            return -2 * (math.log(self.sigma_max) + (1 / t - 1) * self._log_b)
        return -jnp.log(sum(self._terms(1 / t)))

    def time(self, logsnr):
        s = 1 + (-0.5 * logsnr - math.log(self.sigma_max)) / self._log_b
        if self._linear():
            return 1 / s

        def bisect(_, bounds):  # log σ² decreases in s
            low, high = bounds
            middle = 0.5 * (low + high)
            above = sum(self._terms(middle)) > jnp.exp(-logsnr)
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        low = jnp.ones_like(s)
        low, high = jax.lax.fori_loop(0, 60, bisect, (low, low / self.eps))
        return 2 / (low + high)

    def diffusion2(self, t):
        first, second = self._terms(1 / t)
        return -2 * (self._log_b * first + self._log_d * second) / jnp.square(t)


def _vp(kind):
    return lambda c: kind(eps=c.training.truncation_time, beta_min=c.model.beta_min, beta_max=c.model.beta_max)


SDES = {
    "vpsde": _vp(VP),
    "subvpsde": _vp(SubVP),
    "vesde": lambda c: VE(eps=c.training.truncation_time, sigma_min=c.model.sigma_min, sigma_max=c.model.sigma_max),
    "reciprocal_vesde": lambda c: RVE(
        eps=c.training.truncation_time,
        sigma_min=c.model.sigma_min,
        sigma_max=c.model.sigma_max,
        eta=c.training.eta,
    ),
}


def from_config(config) -> SDE:
    """The SDE that `config.training.sde` names; raises ConfigError for an unknown name."""
    return choose(SDES, config.training.sde.lower(), "training.sde")(config)
