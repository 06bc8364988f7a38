"""Steps from a time t to an earlier time s: the predictors of `samplers.PredictorCorrector`."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp

from score_st.array_types import Array, Float
from score_st.checks import NOT_NEGATIVE, check_fields
from score_st.config import ConfigError, Table
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Score, denoise
from score_st.diffusion.sde import SDE

Images = Float[Array, "B ..."]
Times = Float[Array, " B"]
Memory = tuple[Array, Array]  # what a multistep method keeps: E[x_0] [B, ...] and the length [B] of its last step
Transition = Callable[[SDE, Array, Array], tuple[Array, Array]]


def exact_transition(sde: SDE, t: Times, s: Times) -> tuple[Times, Times]:
    """Returns a and v of p(x_t | x_s) = N(a x_s, v I), s < t."""
    a = jnp.exp(sde.log_alpha(t) - sde.log_alpha(s))
    return a, -jnp.square(sde.sigma(t)) * jnp.expm1(sde.logsnr(t) - sde.logsnr(s))


@dataclasses.dataclass(frozen=True)
class Predictor(abc.ABC):
    """A step from t to s < t. A new one is a class and a line of `PREDICTORS`.

    A subclass whose noise can be chosen has a field `lambda_`: λ = 1 is the noise of the reverse SDE, 0 none.

    Attributes:
      evaluations: of the score per step.
    """

    evaluations: ClassVar[int] = 1

    @classmethod
    def from_config(cls, sampling, steps: int) -> "Predictor":
        """The predictor with the noise that sampling.lambda_ and sampling.probability_flow (λ = 0) ask for.

        Raises:
          ConfigError: it has no λ, or the two keys contradict each other.
        """
        lambda_ = chosen_lambda(sampling)
        if lambda_ < 0:
            return cls()
        if "lambda_" not in cls.__dataclass_fields__:
            has_lambda = lambda predictor: "lambda_" in getattr(predictor, "__dataclass_fields__", ())
            others = ", ".join(name for name, predictor in PREDICTORS.items() if has_lambda(predictor))
            raise ConfigError(
                f"config.sampling.predictor={sampling.predictor}: has no λ (probability_flow); {others} have"
            )
        return cls(**{"lambda_": lambda_})

    @abc.abstractmethod
    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """One step.

        Args:
          score: the score function.
          sde: the diffusion.
          x: x_t.
          t: the time of x.
          s: the earlier time to go to.
          z: standard normal noise.
          memory: what the last step returned; zeros before the first.

        Returns:
          x_s, its mean without the noise, and the memory for the next step.
        """


def chosen_lambda(sampling) -> float:
    """λ as config.sampling has it, negative for the predictor's own; raises ConfigError for a contradiction."""
    if not sampling.probability_flow:
        return sampling.lambda_
    if sampling.lambda_ > 0:
        raise ConfigError(f"config.sampling.probability_flow=True: means lambda_=0, not {sampling.lambda_}")
    return 0.0


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Predictor):
    """Of the reverse SDE dx = (f − ½ (1 + λ²) g² s) dt + λ g dw; λ = 1 is Anderson's, λ = 0 the probability flow.

    Attributes:
      lambda_: λ.
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, lambda_=NOT_NEGATIVE)

    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """See `Predictor`."""
        dt, g2 = expand(t - s, x), expand(sde.diffusion2(t), x)
        mean = x - dt * (expand(sde.drift(t), x) * x - 0.5 * (1 + self.lambda_**2) * g2 * score(x, t))
        return mean + self.lambda_ * jnp.sqrt(g2 * dt) * z, mean, memory


@dataclasses.dataclass(frozen=True)
class ReverseDiffusion(Predictor):
    """x + (x − a x) + v s, with the forward transition's own a and v (Song et al. 2021, eq. 46).

    Attributes:
      lambda_: λ.
      transition: (sde, t, s) -> a [B] and v [B].
    """

    lambda_: float = 1.0
    transition: Transition = exact_transition

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, lambda_=NOT_NEGATIVE)

    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """See `Predictor`."""
        a, v = (expand(c, x) for c in self.transition(sde, t, s))
        mean = (2 - a) * x + 0.5 * (1 + self.lambda_**2) * v * score(x, t)
        return mean + self.lambda_ * jnp.sqrt(v) * z, mean, memory


@dataclasses.dataclass(frozen=True)
class Ancestral(Predictor):
    """A draw of p(x_s | x_t, x_0) at the x_0 that the score predicts (Ho et al. 2020, eq. 7).

    Attributes:
      transition: (sde, t, s) -> a [B] and v [B].
    """

    transition: Transition = exact_transition

    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """See `Predictor`."""
        a, v = (expand(c, x) for c in self.transition(sde, t, s))
        mean = (x + v * score(x, t)) / a
        return mean + jnp.sqrt(v) * expand(sde.sigma(s) / sde.sigma(t), x) * z, mean, memory


@dataclasses.dataclass(frozen=True)
class DDIM(Predictor):
    """α_s x_0 + √(σ_s² − λ² τ²) ε + λ τ z, with τ² the variance of p(x_s | x_t, x_0) (Song et al. 2021a, eq. 12).

    λ = 0 is the exponential integrator of the probability flow that holds ε = −σ_t s fixed, λ = 1 ancestral sampling.

    Attributes:
      lambda_: λ.
    """

    lambda_: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, lambda_=NOT_NEGATIVE)

    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """See `Predictor`."""
        sigma_t, sigma_s = (expand(sde.sigma(a), x) for a in (t, s))
        noise = -sigma_t * score(x, t)
        clean = (x - sigma_t * noise) / expand(sde.alpha(t), x)
        tau2 = jnp.square(self.lambda_ * sigma_s / sigma_t) * expand(exact_transition(sde, t, s)[1], x)
        mean = expand(sde.alpha(s), x) * clean + jnp.sqrt(jnp.square(sigma_s) - tau2) * noise
        return mean + jnp.sqrt(tau2) * z, mean, memory


@dataclasses.dataclass(frozen=True)
class Heun(Predictor):
    """The trapezoidal rule for y = x/α over ς = σ/α, dy/dς = −σ s (Karras et al. 2022, algorithms 1 and 2).

    Attributes:
      churn: γ: first the noise is raised to (1 + γ) ς, up to that of T.
    """

    evaluations: ClassVar[int] = 2

    churn: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, churn=NOT_NEGATIVE)

    @classmethod
    def from_config(cls, sampling, steps: int) -> "Heun":
        """S_churn is sampling.churn; it is the only noise, so that λ must be 0 or left alone."""
        if (lambda_ := chosen_lambda(sampling)) > 0:
            raise ConfigError(f"config.sampling.lambda_={lambda_}: heun has no λ; its noise is sampling.churn")
        return cls(min(sampling.churn / steps, 2**0.5 - 1))

    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """See `Predictor`."""
        ratio = lambda t: jnp.exp(-0.5 * sde.logsnr(t))
        slope = lambda y, t: -expand(sde.sigma(t), y) * score(expand(sde.alpha(t), y) * y, t)
        y, old = x / expand(sde.alpha(t), x), ratio(t)
        if self.churn:
            t = jnp.minimum(sde.time(-2 * jnp.log((1 + self.churn) * old)), sde.T)
            y += expand(jnp.sqrt(jnp.maximum(jnp.square(ratio(t)) - jnp.square(old), 0)), y) * z
        h = expand(ratio(s) - ratio(t), y)
        first = slope(y, t)
        y += 0.5 * h * (first + slope(y + h * first, s))
        x = expand(sde.alpha(s), y) * y
        return x, x, memory


@dataclasses.dataclass(frozen=True)
class DPMSolver2M(Predictor):
    """DPM-Solver++ of order 2, multistep: one evaluation per step (Lu et al. 2022b, algorithm 2)."""

    def __call__(
        self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images, memory: Memory
    ) -> tuple[Images, Images, Memory]:
        """See `Predictor`."""
        clean, h = denoise(score, sde, x, t), 0.5 * (sde.logsnr(s) - sde.logsnr(t))
        last, last_h = memory
        guess = clean + expand(jnp.where(last_h > 0, 0.5 * h / last_h, 0.0), x) * (clean - last)
        x = expand(sde.sigma(s) / sde.sigma(t), x) * x - expand(sde.alpha(s) * jnp.expm1(-h), x) * guess
        return x, x, (clean, h)


PREDICTORS: Table[type[Predictor] | None] = Table(
    "sampling.predictor",
    {
        "euler_maruyama": EulerMaruyama,
        "reverse_diffusion": ReverseDiffusion,
        "ancestral_sampling": Ancestral,
        "ddim": DDIM,
        "heun": Heun,
        "dpm_solver_2m": DPMSolver2M,
        "none": None,
    },
)
