"""Samplers: predictor-corrector over a grid of times, and the probability-flow ODE, each in one compiled loop.

A step is a function (score, sde, x [B, ...], t, s, z) -> (x, its mean without the noise): a predictor goes from time t
to s < t, a corrector stays at t; t and s are [B]. Image i is a function of its own key alone.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_st import ode
from score_st.config import ConfigError, choose
from score_st.likelihood import flow
from score_st.losses import sum_dims
from score_st.score import Score
from score_st.score import denoise as tweedie
from score_st.sde import SDE, expand


def euler_maruyama(score: Score, sde: SDE, x, t, s, z, lambda_=1.0):
    """Of the reverse SDE dx = (f - ½ (1 + λ²) g² s) dt + λ g dw; λ = 1 is Anderson's, λ = 0 the probability flow."""
    dt, g2 = expand(t - s, x), expand(sde.diffusion2(t), x)
    mean = x - dt * (expand(sde.drift(t), x) * x - 0.5 * (1 + lambda_**2) * g2 * score(x, t))
    return mean + lambda_ * jnp.sqrt(g2 * dt) * z, mean


def _transition(sde: SDE, t, s):
    """a and v of p(x_t | x_s) = N(a x_s, v I), s < t."""
    a = jnp.exp(sde.log_alpha(t) - sde.log_alpha(s))
    return a, -jnp.square(sde.sigma(t)) * jnp.expm1(sde.logsnr(t) - sde.logsnr(s))


def reverse_diffusion(score: Score, sde: SDE, x, t, s, z, lambda_=1.0):
    """x + (x - a x) + v s, with the forward transition's own a and v (Song et al. 2021, eq. 46)."""
    a, v = (expand(c, x) for c in _transition(sde, t, s))
    mean = (2 - a) * x + 0.5 * (1 + lambda_**2) * v * score(x, t)
    return mean + lambda_ * jnp.sqrt(v) * z, mean


def ancestral(score: Score, sde: SDE, x, t, s, z, lambda_=1.0):
    """A draw of p(x_s | x_t, x_0) at the x_0 that the score predicts (Ho et al. 2020, eq. 7)."""
    if lambda_ != 1.0:
        raise ConfigError("config.sampling.probability_flow: ancestral_sampling has no such form")
    a, v = (expand(c, x) for c in _transition(sde, t, s))
    mean = (x + v * score(x, t)) / a
    return mean + jnp.sqrt(v) * expand(sde.sigma(s) / sde.sigma(t), x) * z, mean


def langevin(score: Score, sde: SDE, x, t, s, z, snr):
    """Langevin dynamics at t, its step set by each image's signal-to-noise ratio (Song et al. 2021, alg. 4 and 5)."""
    gradient = score(x, t)
    ratio = jnp.sqrt(sum_dims(z**2) / sum_dims(gradient**2))
    return _langevin(x, gradient, z, jnp.square(snr * ratio * _transition(sde, t, s)[0]))


def annealed_langevin(score: Score, sde: SDE, x, t, s, z, snr):
    """Langevin dynamics at t with a step ∝ σ² (Song & Ermon 2019, alg. 1)."""
    return _langevin(x, score(x, t), z, jnp.square(snr * sde.sigma(t) * _transition(sde, t, s)[0]))


def _langevin(x, gradient, z, half_step):
    step = expand(2 * half_step, x)
    mean = x + step * gradient
    return mean + jnp.sqrt(2 * step) * z, mean


def uniform_grid(sde: SDE, n: int):
    return jnp.linspace(sde.T, sde.eps, n + 1)


def logsnr_grid(sde: SDE, n: int):
    ends = sde.logsnr(jnp.array([sde.T, sde.eps]))
    return sde.time(jnp.linspace(ends[0], ends[1], n + 1)).at[0].set(sde.T).at[n].set(sde.eps)


@dataclasses.dataclass(frozen=True)
class PredictorCorrector:
    """Song et al. 2021, algorithm 1: at each time of the grid some corrections, then a prediction to the next.

    Attributes:
      predictor: a step, or None.
      corrector: a step, or None, made `corrections` times.
      grid: (sde, steps) -> times [steps + 1] from T down to ε.
    """

    predictor: Callable | None
    corrector: Callable | None = None
    corrections: int = 1
    steps: int = 1000
    grid: Callable = uniform_grid
    denoise: bool = True

    def __call__(self, score: Score, sde: SDE, keys, shape):
        """Images [B, *shape] from keys [B], and the evaluations of the score [B]."""
        times = self.grid(sde, self.steps)
        corrections = self.corrections if self.corrector else 0

        def noise(i, j):
            return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), j), shape))(
                keys
            )

        def step(i, carry):
            x, _ = carry
            mean, (t, s) = x, (jnp.full(len(keys), times[i + j]) for j in (0, 1))
            for j in range(corrections):
                x, mean = self.corrector(score, sde, x, t, s, noise(i, j + 1))
            if self.predictor:
                x, mean = self.predictor(score, sde, x, t, s, noise(i, 0))
            return x, mean

        x = jax.vmap(lambda key: sde.prior_sample(key, shape))(keys)
        x, mean = jax.lax.fori_loop(0, self.steps, step, (x, x))
        evaluations = self.steps * (corrections + (self.predictor is not None)) + self.denoise
        if self.denoise:
            mean = tweedie(score, sde, mean, jnp.full(len(keys), sde.eps))
        return mean if self.denoise else x, jnp.full(len(keys), evaluations)


@dataclasses.dataclass(frozen=True)
class ODE:
    """The probability flow from T to ε by the adaptive solver."""

    solver: ode.Solver = dataclasses.field(default_factory=ode.Solver)
    denoise: bool = True

    def __call__(self, score: Score, sde: SDE, keys, shape):
        """Images [B, *shape] from keys [B], and the evaluations of the score [B]; NaN where max_steps ran out."""
        x = jax.vmap(lambda key: sde.prior_sample(key, shape))(keys)
        ends = sde.logsnr(jnp.array([sde.T, sde.eps]))
        field = lambda logsnr, x, _: flow(score, sde, logsnr[None], x[None])[0]
        x, evaluations, reached = self.solver.solve(field, x, ends[0], ends[1])
        if self.denoise:
            x = tweedie(score, sde, x, jnp.full(len(keys), sde.eps))
        return jnp.where(expand(reached, x), x, jnp.nan), evaluations + self.denoise


PREDICTORS = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral,
    "none": None,
}
CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": None}
METHODS = {"ode": "the probability-flow ODE", "pc": "predictor-corrector"}
GRIDS = {"uniform": uniform_grid, "logsnr": logsnr_grid}


def from_config(config) -> ODE | PredictorCorrector:
    """Reads config.sampling and config.model.num_scales, the number of predictor-corrector steps."""
    sampling = config.sampling
    choose(METHODS, sampling.method, "sampling.method")
    predictor = choose(PREDICTORS, sampling.predictor, "sampling.predictor")
    corrector = choose(CORRECTORS, sampling.corrector, "sampling.corrector")
    if predictor:
        predictor = functools.partial(predictor, lambda_=0.0 if sampling.probability_flow else 1.0)
    if corrector:
        corrector = functools.partial(corrector, snr=sampling.snr)
    grid = choose(GRIDS, sampling.grid, "sampling.grid")
    if sampling.method == "ode":
        return ODE(ode.from_config(sampling), sampling.noise_removal)
    steps = config.model.num_scales
    return PredictorCorrector(predictor, corrector, sampling.n_steps_each, steps, grid, sampling.noise_removal)


def sampling_sde(config, sde: SDE) -> SDE:
    """The SDE with sampling.truncation_time as its smallest time; RVE's own is part of its definition."""
    if config.training.sde.lower() == "reciprocal_vesde":
        return sde
    return dataclasses.replace(sde, eps=config.sampling.truncation_time)
