"""Samplers: predictor and corrector over a grid of times, and the probability flow ODE, each in one compiled loop.

Image i is a function of its own key alone.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Float, Int, Key
from score_st.checks import NOT_NEGATIVE, ONE_OR_MORE, check_fields
from score_st.config import Table
from score_st.diffusion import probability_flow
from score_st.diffusion.correctors import CORRECTORS, Corrector
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Score, denoise
from score_st.diffusion.predictors import PREDICTORS, Predictor
from score_st.diffusion.sde import SDE
from score_st.diffusion.stages import Stage, at, stages

Grid = Callable[[SDE, int], Array]  # (sde, steps) -> times [steps + 1] from T down to ε
Project = Callable[[Array, Array, Array], Array]  # (x [B, ...], t [B], z like x) -> x; see `guidance`
Keys = Key[Array, " B"]
Images = Float[Array, "B ..."]


def uniform_grid(sde: SDE, n: int) -> Float[Array, " steps"]:
    """Makes n steps, even in t."""
    return jnp.linspace(sde.T, sde.eps, n + 1)


def quadratic_grid(sde: SDE, n: int) -> Float[Array, " steps"]:
    """Makes n steps, even in √t: finer at small times (Song et al. 2021a, appendix D.2)."""
    return jnp.square(jnp.linspace(sde.T**0.5, sde.eps**0.5, n + 1)).at[0].set(sde.T).at[n].set(sde.eps)


def _ratio_grid(sde: SDE, n: int, power: float) -> jax.Array:
    """Makes n steps, even in a power of σ/α, or for 0 in its logarithm."""
    ends = sde.logsnr(jnp.array([sde.T, sde.eps]))
    if power:
        ends = jnp.exp(-0.5 * power * ends)
    even = jnp.linspace(ends[0], ends[1], n + 1)
    times = jnp.asarray(sde.time(-2 / power * jnp.log(even) if power else even))
    return times.at[0].set(sde.T).at[n].set(sde.eps)


def logsnr_grid(sde: SDE, n: int) -> Float[Array, " steps"]:
    """Makes n steps, even in logSNR."""
    return _ratio_grid(sde, n, 0)


def edm_grid(sde: SDE, n: int) -> Float[Array, " steps"]:
    """Makes n steps, even in (σ/α)^(1/7) (Karras et al. 2022, eq. 5)."""
    return _ratio_grid(sde, n, 1 / 7)


def _staged_times(grid: Grid, sde: SDE, steps: int, parts: Sequence[Stage]) -> tuple[Array, list[Array | int]]:
    """The times [steps + 1] of a grid that has the end of each stage among them, and the first step of each stage.

    The grid is that of fewer steps, and the ends are added to it. Ends below ε come to lie there.
    """
    if len(parts) == 1:
        return grid(sde, steps), [0, steps]
    times = grid(sde, steps - len(parts) + 1)
    ends = [jnp.clip(jnp.asarray(part.end, times.dtype), sde.eps, sde.T) for part in parts[:-1]]
    times = jnp.sort(jnp.concatenate([times, jnp.stack(ends)]), descending=True)
    return times, [0, *(jnp.minimum(jnp.sum(times > end), steps) for end in ends), steps]


@dataclasses.dataclass(frozen=True)
class PredictorCorrector:
    """At each time of the grid some corrections, then a prediction to the next (Song et al. 2021, algorithm 1).

    Where the score function goes from one stage to the next is a time of the grid: each step is done by the networks
    of its stage alone, and a multistep predictor starts afresh. The number of steps stays, but each stage has one.

    Attributes:
      predictor: goes from one time to the next; None stays.
      corrector: improves x at a time; None does nothing.
      corrections: corrector steps per predictor step.
      steps: predictor steps.
      grid: the times.
      denoise: end with the mean of x_0 given x_ε.
    """

    predictor: Predictor | None
    corrector: Corrector | None = None
    corrections: int = 1
    steps: int = 1000
    grid: Grid = uniform_grid
    denoise: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, corrections=NOT_NEGATIVE, steps=ONE_OR_MORE)

    @property
    def evaluations_per_step(self) -> int:
        """NFE of one predictor step with its corrections."""
        corrections = self.corrections * self.corrector.evaluations if self.corrector else 0
        return corrections + (self.predictor.evaluations if self.predictor else 0)

    def __call__(
        self,
        score: Score,
        sde: SDE,
        keys: Keys,
        shape: tuple[int, ...],
        frames: int = 1,
        project: Project | None = None,
    ) -> tuple[Array, ...]:
        """Draws images [B, *shape].

        Args:
          score: the score function.
          sde: the diffusion.
          keys: one for each image.
          shape: of an image.
          frames: if more than 1, x_t at that many evenly spaced steps too, the last before `denoise`.
          project: applied after every change of x, see `guidance`.

        Returns:
          The images and the NFE [B]; with frames > 1 also the states [frames, B, *shape] and their times [frames].
        """
        parts = stages(score)
        steps = max(self.steps, len(parts))
        times, firsts = _staged_times(self.grid, sde, steps, parts)
        ranges = list(zip(parts, itertools.pairwise(firsts), strict=True))
        step = functools.partial(self._step, sde, keys, shape, times, project)

        def stretch(carry: Any, ends: Any) -> Any:
            for part, (low, high) in ranges:
                begin, stop = (jnp.clip(end, low, high) for end in ends)
                carry = jax.lax.fori_loop(begin, stop, functools.partial(step, part, low), carry)
            return carry, carry[0]

        x = jax.vmap(lambda key: sde.prior.sample(key, shape))(keys)
        memory = jnp.zeros_like(x), jnp.zeros(len(keys), x.dtype)
        stops = jnp.linspace(0, steps, frames + 1).round().astype(int)
        (x, mean, _), states = jax.lax.scan(stretch, (x, x, memory), (stops[:-1], stops[1:]))
        networks = [part.evaluations * (high - low) for part, (low, high) in ranges]
        nfe = sum(networks) * self.evaluations_per_step
        if self.denoise:
            last = at(score, sde.eps)
            mean, nfe = denoise(last.score, sde, mean, jnp.full(len(keys), sde.eps)), nfe + last.evaluations
        result = mean if self.denoise else x, jnp.full(len(keys), nfe)
        return result if frames == 1 else (*result, states, times[stops[1:]])

    def _step(
        self,
        sde: SDE,
        keys: Keys,
        shape: tuple[int, ...],
        times: Array,
        project: Project | None,
        part: Stage,
        low: Array | int,
        i: Array,
        carry: tuple,
    ) -> tuple:
        """Step i, of a stage that begins with step `low`."""
        corrector: Any = self.corrector
        corrections = self.corrections if corrector else 0

        def noise(j: int) -> Array:
            draw = lambda key: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), j), shape)
            return jax.vmap(draw)(keys)

        def projected(j: int, t: Array, x: Array, mean: Array) -> tuple[Array, Array]:
            if not project:
                return x, mean
            z = noise(j)
            return project(x, t, z), project(mean, t, jnp.zeros_like(z))

        x, _, memory = carry
        if part.start < math.inf:
            memory = jax.tree.map(lambda kept: jnp.where(i == low, 0, kept), memory)
        mean, (t, s) = x, (jnp.full(len(keys), times[i + j]) for j in (0, 1))
        for j in range(1, corrections + 1):
            x, mean = projected(corrections + j, t, *corrector(part.score, sde, x, t, s, noise(j)))
        if self.predictor:
            x, mean, memory = self.predictor(part.score, sde, x, t, s, noise(0), memory)
            x, mean = projected(2 * corrections + 1, s, x, mean)
        return x, mean, memory


@dataclasses.dataclass(frozen=True)
class ODE:
    """The probability flow from T to ε by the adaptive solver, which stops at the end of each stage of the score.

    Attributes:
      solver: with its tolerances.
      denoise: end with the mean of x_0 given x_ε.
    """

    solver: probability_flow.Solver = dataclasses.field(default_factory=probability_flow.Solver)
    denoise: bool = True

    def __call__(
        self, score: Score, sde: SDE, keys: Keys, shape: tuple[int, ...], frames: int = 1
    ) -> tuple[Array, ...]:
        """Draws images [B, *shape]: NaN where max_steps ran out.

        Args:
          score: the score function.
          sde: the diffusion.
          keys: one for each image.
          shape: of an image.
          frames: as for `PredictorCorrector`, evenly spaced in logSNR.

        Returns:
          As `PredictorCorrector`.
        """
        return self.decode(score, sde, jax.vmap(lambda key: sde.prior.sample(key, shape))(keys), frames)

    def decode(self, score: Score, sde: SDE, latent: Images, frames: int = 1) -> tuple[Array, ...]:
        """The images of latents x_T; returns what `__call__` does."""
        first, last = sde.logsnr(jnp.array([sde.T, sde.eps]))
        stops = jnp.linspace(first, last, frames + 1)

        def stretch(x: Any, ends: Any) -> Any:
            x, evaluations, reached = self._flow(stages(score), sde, x, *ends)
            return x, (x, evaluations, reached)

        x, (states, evaluations, reached) = jax.lax.scan(stretch, latent, (stops[:-1], stops[1:]))
        nfe = jnp.sum(evaluations, axis=0)
        if self.denoise:
            last = at(score, sde.eps)
            x, nfe = denoise(last.score, sde, x, jnp.full(len(x), sde.eps)), nfe + last.evaluations
        x = jnp.where(expand(jnp.all(reached, axis=0), x), x, jnp.nan)
        result = x, nfe
        return result if frames == 1 else (*result, states, sde.time(stops[1:]))

    def encode(self, score: Score, sde: SDE, x: Images) -> tuple[Images, Int[Array, " B"]]:
        """The latents x_T of images x_ε and the NFE; NaN where max_steps ran out."""
        first, last = sde.logsnr(jnp.array([sde.eps, sde.T]))
        latent, evaluations, reached = self._flow(stages(score)[::-1], sde, x, first, last)
        return jnp.where(expand(reached, x), latent, jnp.nan), evaluations

    def _flow(self, parts: Sequence[Stage], sde: SDE, x: Array, start: Array, end: Array) -> tuple[Any, Array, Array]:
        field = lambda score: lambda logsnr, x, _: probability_flow.flow(score, sde, logsnr[None], x[None])[0]
        return self.solver.solve_in_stages(field, parts, sde, x, start, end)


def interpolate(
    first: Float[Array, "..."], second: Float[Array, "..."], weights: Float[Array, " K"]
) -> Float[Array, "K ..."]:
    """Between two latents, at `weights` from 0 to 1 along the great circle of their directions.

    Norms go straight from one to the other, so that what lies between is as likely as Gaussian ends are.
    """
    norms = jnp.linalg.norm(first), jnp.linalg.norm(second)
    angle = jnp.arccos(jnp.clip(jnp.vdot(first, second) / (norms[0] * norms[1]), -1, 1))
    w = weights.reshape(-1, *(1,) * first.ndim)
    lever = lambda w: jnp.where(angle < 1e-4, w, jnp.sin(w * angle) / jnp.sin(jnp.maximum(angle, 1e-4)))
    return ((1 - w) * norms[0] + w * norms[1]) * (lever(1 - w) * first / norms[0] + lever(w) * second / norms[1])


GRIDS: Table[Grid] = Table(
    "sampling.grid", {"uniform": uniform_grid, "quadratic": quadratic_grid, "logsnr": logsnr_grid, "edm": edm_grid}
)
Sampler = ODE | PredictorCorrector


def _ode(config) -> ODE:
    return ODE(probability_flow.from_config(config.sampling), config.sampling.noise_removal)


def _predictor_corrector(config) -> PredictorCorrector:
    sampling = config.sampling
    steps = sampling.steps or config.model.num_scales
    predictor, corrector = PREDICTORS.choose(sampling.predictor), CORRECTORS.choose(sampling.corrector)
    return PredictorCorrector(
        predictor.from_config(sampling, steps) if predictor else None,
        corrector.from_config(sampling) if corrector else None,
        sampling.n_steps_each,
        steps,
        GRIDS.choose(sampling.grid),
        sampling.noise_removal,
    )


METHODS: Table[Callable[..., Sampler]] = Table("sampling.method", {"ode": _ode, "pc": _predictor_corrector})


def from_config(config) -> Sampler:
    """The sampler of config.sampling; its steps are sampling.steps, or if that is 0 model.num_scales.

    Raises:
      ConfigError: an unknown name or an impossible setting, also of a method that is not chosen.
    """
    build = METHODS.choose(config.sampling.method)
    _predictor_corrector(config)
    return build(config)


def sampling_sde(config, sde: SDE) -> SDE:
    """The SDE down to sampling.truncation_time, unless its ε is part of its definition, as that of RVE is."""
    return sde if sde.eps_is_part_of_the_diffusion else sde.with_smallest_time(config.sampling.truncation_time)
