"""Steps that stay at a time t and improve x there: the correctors of `samplers.PredictorCorrector`."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp

from score_st.array_types import Array, Float
from score_st.checks import POSITIVE, check_fields
from score_st.config import Table
from score_st.diffusion.dims import expand, sum_dims
from score_st.diffusion.parametrization import Score
from score_st.diffusion.predictors import Transition, exact_transition
from score_st.diffusion.sde import SDE

Images = Float[Array, "B ..."]
Times = Float[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Corrector(abc.ABC):
    """Langevin dynamics at a time t. A new one is a class and a line of `CORRECTORS`.

    Attributes:
      snr: the signal-to-noise ratio, which sets the step size.
      transition: (sde, t, s) -> a [B] and v [B] of p(x_t | x_s).
      evaluations: of the score per step.
    """

    evaluations: ClassVar[int] = 1

    snr: float
    transition: Transition = exact_transition

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, snr=POSITIVE)

    @classmethod
    def from_config(cls, sampling) -> "Corrector":
        """The corrector with sampling.snr."""
        return cls(sampling.snr)

    @abc.abstractmethod
    def half_step(self, sde: SDE, x: Images, gradient: Images, z: Images, t: Times, s: Times) -> Times:
        """Half the step size, where `gradient` is the score at x."""

    def __call__(self, score: Score, sde: SDE, x: Images, t: Times, s: Times, z: Images) -> tuple[Images, Images]:
        """One step.

        Args:
          score: the score function.
          sde: the diffusion.
          x: x_t.
          t: the time of x.
          s: the time that the predictor will go to.
          z: standard normal noise.

        Returns:
          The new x_t, and its mean without the noise.
        """
        gradient = score(x, t)
        step = expand(2 * self.half_step(sde, x, gradient, z, t, s), x)
        mean = x + step * gradient
        return mean + jnp.sqrt(2 * step) * z, mean


def image_norm(x: Images) -> Times:
    """The norm of each image."""
    return jnp.sqrt(sum_dims(jnp.square(x)))


@dataclasses.dataclass(frozen=True)
class Langevin(Corrector):
    """A step size from the norms of noise and score (Song et al. 2021, algorithms 4 and 5).

    Each image has its own, where the official code takes the mean norm over the batch.

    Attributes:
      norm: of images [B, ...] -> [B].
    """

    norm: Callable[[Array], Array] = image_norm

    def half_step(self, sde: SDE, x: Images, gradient: Images, z: Images, t: Times, s: Times) -> Times:
        """(snr a ‖z‖/‖s‖)²."""
        return jnp.square(self.snr * self.norm(z) / self.norm(gradient) * self.transition(sde, t, s)[0])


@dataclasses.dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """A step size ∝ σ² (Song and Ermon 2019, algorithm 1)."""

    def half_step(self, sde: SDE, x: Images, gradient: Images, z: Images, t: Times, s: Times) -> Times:
        """(snr a σ)²."""
        return jnp.square(self.snr * sde.sigma(t) * self.transition(sde, t, s)[0])


CORRECTORS: Table[type[Corrector] | None] = Table(
    "sampling.corrector", {"langevin": Langevin, "ald": AnnealedLangevin, "none": None}
)
