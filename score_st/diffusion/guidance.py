"""Guidance without training: inpainting, coloring, classifiers (Song et al. 2021), and two models together.

The known part of the images replaces its part of the state after each step, with the noise of that time (appendix
I.2); a corrector brings the rest into agreement with it. A predictor alone leaves a bias, so use a corrector.

A combination makes one score function of those of two models. It is called as combination(sde, main, other).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float, Int
from score_st.checks import FINITE, NOT_NEGATIVE, check_fields, check_mask
from score_st.config import ConfigError
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Score
from score_st.diffusion.samplers import Project
from score_st.diffusion.sde import SDE
from score_st.diffusion.stages import Stage, Staged, between, stages
from score_st.ranges import Number

Images = Float[Array, "B H W C"]

# orthonormal rows; the first is the gray value of an RGB pixel times √3
GRAY_FIRST = (
    np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt(np.array([3, 2, 6], np.float32))[:, None]
)


def replace(
    sde: SDE, images: Float[Array, "B ..."], mask: Float[Array, "..."], basis: Float[Array, "C C"] | None = None
) -> Project:
    """A `project` for `PredictorCorrector` that keeps the known part of images.

    Args:
      sde: the diffusion.
      images: scaled; where the mask is 0 their values do not matter.
      mask: 1 where the images are known and 0 elsewhere, broadcast to `images`.
      basis: an orthogonal matrix; the mask's channels belong to its rows. None: the channels themselves.

    Raises:
      ConfigError: the mask does not broadcast, or (outside jit) has values below 0 or above 1.
    """
    check_mask(mask, images.shape)
    basis = jnp.eye(images.shape[-1]) if basis is None else basis

    def project(x: Array, t: Array, z: Array) -> Array:
        mean, std = sde.marginal(images, t)
        return x + ((mean + expand(std, x) * z - x) @ basis.T * mask) @ basis

    return project


def inpaint(sde: SDE, images: Float[Array, "B ..."], mask: Float[Array, "..."]) -> Project:
    """Keeps the pixels of images where `mask` is 1, see `replace`."""
    return replace(sde, images, mask)


def colorize(sde: SDE, images: Float[Array, "B H W 3"]) -> Project:
    """Keeps the gray values of images, their mean over RGB, see `replace`."""
    return replace(sde, images, jnp.array([1.0, 0, 0]), GRAY_FIRST)


def guided(
    score: Score, classifier: Callable[[Array, Array], Array], labels: Int[Array, " B"], scale: float = 1.0
) -> Score:
    """∇ log p_t(x) + scale ∇ log p_t(y|x) (appendix I.1), for samples of the classes `labels`.

    Args:
      score: the unconditional score.
      classifier: (x [B, ...], t [B]) -> logits [B, classes], trained on x_t.
      labels: the classes.
      scale: the strength of the guidance.
    """

    def log_probability(x: Array, t: Array) -> Array:
        log_p = jax.nn.log_softmax(classifier(x, t))
        return jnp.sum(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    def one(part: Stage) -> Stage:
        function = lambda x, t: part.score(x, t) + scale * jax.grad(log_probability)(x, t)
        return dataclasses.replace(part, score=function)

    return Staged(tuple(map(one, stages(score))))


@dataclasses.dataclass(frozen=True)
class Autoguidance:
    """s_guide + w (s_main − s_guide), with a worse version of the main model as the guide (Karras et al. 2024b).

    Attributes:
      weight: w. 1 is the main model alone, and evaluates nothing else.
    """

    weight: float

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, weight=FINITE)

    def __call__(self, sde: SDE, main: Score, guide: Score) -> Score:
        """The guided score; each of its evaluations is one of both networks."""
        if self.weight == 1:
            return main

        def pair(main: Stage, guide: Stage) -> Stage:
            def score(x: Array, t: Array) -> Array:
                base = guide.score(x, t)
                return base + self.weight * (main.score(x, t) - base)

            return Stage(score, main.evaluations + guide.evaluations, guide.start, guide.end)

        return Staged(tuple(pair(a, b) for a in stages(main) for b in between(guide, a.start, a.end)))


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """s_none + w (s_class − s_none), with the score without a class (Ho and Salimans 2022).

    Attributes:
      weight: w. 1 is the score of the class alone.
      low: the σ/α from which it guides, and below which the score of the class is alone.
      high: the σ/α up to which it guides, and above which the score of the class is alone (Kynkäänniemi et al. 2024).
    """

    weight: float
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, weight=FINITE, low=NOT_NEGATIVE, high=Number(float, self.low, open="(", also=(math.inf,)))

    def __call__(self, sde: SDE, conditional: Score, unconditional: Score) -> Score:
        """The guided score; outside the interval it evaluates one network, inside two."""
        if self.weight == 1:
            return conditional
        with jax.ensure_compile_time_eval():
            noise = lambda t: float(jnp.exp(-0.5 * sde.logsnr(jnp.float32(t))))
            time = lambda ratio: float(sde.time(jnp.float32(-2 * math.log(ratio))))
            start = time(self.high) if self.high < noise(sde.T) else math.inf
            end = time(self.low) if self.low > noise(sde.eps) else 0.0
        outer = between(conditional, math.inf, start) if start < math.inf else ()
        inner = Autoguidance(self.weight)(
            sde, Staged(between(conditional, start, end)), Staged(between(unconditional, start, end))
        )
        lower = between(conditional, end, 0.0) if end > 0 else ()
        return Staged((*outer, *stages(inner), *lower))


@dataclasses.dataclass(frozen=True)
class Experts:
    """One model at large noise and another at small noise, as in table 2 of the paper (Kim et al. 2022).

    Attributes:
      below: the σ/α at which they change over; there and below it is the second one's turn.
    """

    below: float

    def time(self, sde: SDE) -> float:
        """The time of this σ/α.

        Raises:
          ConfigError: it is not between those of ε and T.
        """
        with jax.ensure_compile_time_eval():
            low, high = (float(jnp.exp(-0.5 * sde.logsnr(jnp.float32(t)))) for t in (sde.eps, sde.T))
            if not low < self.below < high:
                limits = f"should lie between {low:.3g} at ε and {high:.3g} at T"
                raise ConfigError(f"{self.below} as the noise σ/α of an expert: {limits}")
            return float(sde.time(jnp.float32(-2 * math.log(self.below))))

    def __call__(self, sde: SDE, main: Score, expert: Score) -> Score:
        """The main model's score above, the expert's below; raises ConfigError as `time` does."""
        t = self.time(sde)
        return Staged((*between(main, math.inf, t), *between(expert, t, 0.0)))


Combination = Autoguidance | Experts
