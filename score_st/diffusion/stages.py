"""Score functions that are one function at large times and another at small ones, and that know what they cost.

Samplers and likelihood ask `stages`, so that a plain function of x and t serves as well: it has one stage.
"""

import dataclasses
import math

import jax.numpy as jnp

from score_st.array_types import Array
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Score


@dataclasses.dataclass(frozen=True)
class Stage:
    """A score function for the times end < t <= start.

    Attributes:
      score: the function.
      evaluations: networks that one evaluation of it evaluates.
      start: the largest time.
      end: the next stage's largest time, or 0.
    """

    score: Score
    evaluations: int = 1
    start: float = math.inf
    end: float = 0.0


@dataclasses.dataclass(frozen=True)
class Staged:
    """A score function (x [B, ...], t [B]) -> [B, ...] made of stages.

    A call evaluates each stage, at the nearest of its own times, since the times of a batch may differ. Whoever knows
    that all of them are in one stage should call that stage.

    Attributes:
      parts: from the largest times to the smallest, without gaps.
    """

    parts: tuple[Stage, ...]

    def __call__(self, x: Array, t: Array) -> Array:
        """The score of the stage of each time."""
        first, *others = self.parts
        score = first.score(x, jnp.maximum(t, first.end))
        for part in others:
            score = jnp.where(expand(t > part.start, x), score, part.score(x, jnp.clip(t, part.end, part.start)))
        return score


def stages(score: Score) -> tuple[Stage, ...]:
    """The stages of a score function, from the largest times to the smallest."""
    return score.parts if isinstance(score, Staged) else (Stage(score),)


def at(score: Score, t: float) -> Stage:
    """The stage of the time t."""
    return next(part for part in stages(score) if part.end < t)


def between(score: Score, start: float, end: float) -> tuple[Stage, ...]:
    """The stages of a score function for end < t <= start, the outer ones cut to these times."""
    inside = [part for part in stages(score) if part.end < start and part.start > end]
    return tuple(dataclasses.replace(p, start=min(p.start, start), end=max(p.end, end)) for p in inside)


def evaluations(score: Score) -> int:
    """The most networks that one evaluation of a score function evaluates in any of its stages."""
    return max(part.evaluations for part in stages(score))
