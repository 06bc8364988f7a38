"""Samplers: steps over a grid of times, predictor and corrector, and the probability-flow ODE, in one compiled loop.

A predictor is a function (score, sde, x [B, ...], t, s, z, memory) -> (x, its mean without the noise, memory) that
goes from time t to s < t; t and s are [B], z is a standard normal like x, and `memory` is what a multistep method
keeps of its last step: E[x_0] like x and the step's length [B], zeros before the first. A corrector (score, sde, x, t,
s, z) -> (x, mean) stays at t. Image i is a function of its own key alone.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_st.config import ConfigError, choose
from score_st.diffusion import probability_flow
from score_st.diffusion.likelihood import flow
from score_st.diffusion.losses import sum_dims
from score_st.diffusion.parametrization import Score
from score_st.diffusion.parametrization import denoise as tweedie
from score_st.diffusion.sde import SDE, expand

Project = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def euler_maruyama(score: Score, sde: SDE, x, t, s, z, memory=None, lambda_=1.0):
    """Of the reverse SDE dx = (f - ½ (1 + λ²) g² s) dt + λ g dw; λ = 1 is Anderson's, λ = 0 the probability flow."""
    dt, g2 = expand(t - s, x), expand(sde.diffusion2(t), x)
    mean = x - dt * (expand(sde.drift(t), x) * x - 0.5 * (1 + lambda_**2) * g2 * score(x, t))
    return mean + lambda_ * jnp.sqrt(g2 * dt) * z, mean, memory


def exact_transition(sde: SDE, t, s):
    """a and v of p(x_t | x_s) = N(a x_s, v I), s < t."""
    a = jnp.exp(sde.log_alpha(t) - sde.log_alpha(s))
    return a, -jnp.square(sde.sigma(t)) * jnp.expm1(sde.logsnr(t) - sde.logsnr(s))


def reverse_diffusion(score: Score, sde: SDE, x, t, s, z, memory=None, lambda_=1.0, transition=exact_transition):
    """x + (x - a x) + v s, with the forward transition's own a and v (Song et al. 2021, eq. 46)."""
    a, v = (expand(c, x) for c in transition(sde, t, s))
    mean = (2 - a) * x + 0.5 * (1 + lambda_**2) * v * score(x, t)
    return mean + lambda_ * jnp.sqrt(v) * z, mean, memory


def ancestral(score: Score, sde: SDE, x, t, s, z, memory=None, transition=exact_transition):
    """A draw of p(x_s | x_t, x_0) at the x_0 that the score predicts (Ho et al. 2020, eq. 7)."""
    a, v = (expand(c, x) for c in transition(sde, t, s))
    mean = (x + v * score(x, t)) / a
    return mean + jnp.sqrt(v) * expand(sde.sigma(s) / sde.sigma(t), x) * z, mean, memory


def ddim(score: Score, sde: SDE, x, t, s, z, memory=None, lambda_=0.0):
    """α_s x_0 + √(σ_s² - λ² τ²) ε + λ τ z, τ² the variance of p(x_s | x_t, x_0) (Song et al. 2021a, eq. 12).

    λ = 0 is the exponential integrator of the probability flow that holds ε = -σ_t s fixed, λ = 1 ancestral sampling.
    """
    sigma_t, sigma_s = (expand(sde.sigma(a), x) for a in (t, s))
    noise = -sigma_t * score(x, t)
    clean = (x - sigma_t * noise) / expand(sde.alpha(t), x)
    tau2 = jnp.square(lambda_ * sigma_s / sigma_t) * expand(exact_transition(sde, t, s)[1], x)
    mean = expand(sde.alpha(s), x) * clean + jnp.sqrt(jnp.square(sigma_s) - tau2) * noise
    return mean + jnp.sqrt(tau2) * z, mean, memory


def heun(score: Score, sde: SDE, x, t, s, z, memory=None, churn=0.0):
    """The trapezoidal rule for y = x/α over ς = σ/α, dy/dς = -σ s (Karras et al. 2022, algorithms 1 and 2).

    Args:
      churn: γ: first the noise is raised to (1 + γ) ς, up to that of T.
    """
    ratio = lambda t: jnp.exp(-0.5 * sde.logsnr(t))
    slope = lambda y, t: -expand(sde.sigma(t), y) * score(expand(sde.alpha(t), y) * y, t)
    y, old = x / expand(sde.alpha(t), x), ratio(t)
    if churn:
        t = jnp.minimum(sde.time(-2 * jnp.log((1 + churn) * old)), sde.T)
        y += expand(jnp.sqrt(jnp.maximum(jnp.square(ratio(t)) - jnp.square(old), 0)), y) * z
    h = expand(ratio(s) - ratio(t), y)
    first = slope(y, t)
    y += 0.5 * h * (first + slope(y + h * first, s))
    x = expand(sde.alpha(s), y) * y
    return x, x, memory


def dpm_solver_2m(score: Score, sde: SDE, x, t, s, z, memory):
    """DPM-Solver++ of order 2, multistep: one evaluation a step (Lu et al. 2022b, algorithm 2)."""
    clean, h = tweedie(score, sde, x, t), 0.5 * (sde.logsnr(s) - sde.logsnr(t))
    last, last_h = memory
    guess = clean + expand(jnp.where(last_h > 0, 0.5 * h / last_h, 0.0), x) * (clean - last)
    x = expand(sde.sigma(s) / sde.sigma(t), x) * x - expand(sde.alpha(s) * jnp.expm1(-h), x) * guess
    return x, x, (clean, h)


def image_norm(x):
    """[B, ...] -> [B]."""
    return jnp.sqrt(sum_dims(jnp.square(x)))


def langevin(score: Score, sde: SDE, x, t, s, z, snr, transition=exact_transition, norm=image_norm):
    """Langevin dynamics at t, its step set by the signal-to-noise ratio (Song et al. 2021, alg. 4 and 5).

    Each image has its own, where the official code takes the mean `norm` over the batch.
    """
    gradient = score(x, t)
    return _langevin(x, gradient, z, jnp.square(snr * norm(z) / norm(gradient) * transition(sde, t, s)[0]))


def annealed_langevin(score: Score, sde: SDE, x, t, s, z, snr, transition=exact_transition):
    """Langevin dynamics at t with a step ∝ σ² (Song & Ermon 2019, alg. 1)."""
    return _langevin(x, score(x, t), z, jnp.square(snr * sde.sigma(t) * transition(sde, t, s)[0]))


def _langevin(x, gradient, z, half_step):
    step = expand(2 * half_step, x)
    mean = x + step * gradient
    return mean + jnp.sqrt(2 * step) * z, mean


def uniform_grid(sde: SDE, n: int):
    return jnp.linspace(sde.T, sde.eps, n + 1)


def quadratic_grid(sde: SDE, n: int):
    """Even in √t: finer at small times (Song et al. 2021a, app. D.2)."""
    return jnp.square(jnp.linspace(sde.T**0.5, sde.eps**0.5, n + 1)).at[0].set(sde.T).at[n].set(sde.eps)


def _ratio_grid(sde: SDE, n: int, power: float):
    """Even in a power of ς = σ/α, or for 0 in its logarithm."""
    ends = sde.logsnr(jnp.array([sde.T, sde.eps]))
    if power:
        ends = jnp.exp(-0.5 * power * ends)
    even = jnp.linspace(ends[0], ends[1], n + 1)
    return sde.time(-2 / power * jnp.log(even) if power else even).at[0].set(sde.T).at[n].set(sde.eps)


def logsnr_grid(sde: SDE, n: int):
    return _ratio_grid(sde, n, 0)


def edm_grid(sde: SDE, n: int):
    """Even in ς^(1/7) (Karras et al. 2022, eq. 5)."""
    return _ratio_grid(sde, n, 1 / 7)


@dataclasses.dataclass(frozen=True)
class PredictorCorrector:
    """Song et al. 2021, algorithm 1: at each time of the grid some corrections, then a prediction to the next.

    Attributes:
      predictor: a step, or None.
      corrector: a step, or None, made `corrections` times.
      grid: (sde, steps) -> times [steps + 1] from T down to ε.
      denoise: end with the mean of x_0 given x_ε.
      evaluations: of the score by the predictor.
    """

    predictor: Callable | None
    corrector: Callable | None = None
    corrections: int = 1
    steps: int = 1000
    grid: Callable = uniform_grid
    denoise: bool = True
    evaluations: int = 1

    def __call__(self, score: Score, sde: SDE, keys, shape, frames: int = 1, project: Project | None = None):
        """Images [B, *shape] from keys [B], and the evaluations of the score [B].

        Args:
          frames: more than 1: the state x_t at that many evenly spaced steps too, the last before `denoise`.
          project: (x, t [B], z like x) -> x, after every change of x: see `control`.

        Returns:
          Images, evaluations, and with frames > 1 the states [frames, B, *shape] and their times [frames].
        """
        times = self.grid(sde, self.steps)
        corrections = self.corrections if self.corrector else 0

        def noise(i, j):
            draw = lambda key: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), j), shape)
            return jax.vmap(draw)(keys)

        def held(i, j, t, x, mean):
            if not project:
                return x, mean
            z = noise(i, j)
            return project(x, t, z), project(mean, t, jnp.zeros_like(z))

        def step(i, carry):
            x, _, memory = carry
            mean, (t, s) = x, (jnp.full(len(keys), times[i + j]) for j in (0, 1))
            for j in range(1, corrections + 1):
                x, mean = held(i, corrections + j, t, *self.corrector(score, sde, x, t, s, noise(i, j)))
            if self.predictor:
                x, mean, memory = self.predictor(score, sde, x, t, s, noise(i, 0), memory)
                x, mean = held(i, 2 * corrections + 1, s, x, mean)
            return x, mean, memory

        def stretch(carry, ends):
            carry = jax.lax.fori_loop(ends[0], ends[1], step, carry)
            return carry, carry[0]

        x = jax.vmap(lambda key: sde.prior_sample(key, shape))(keys)
        memory = jnp.zeros_like(x), jnp.zeros(len(keys), x.dtype)
        stops = jnp.linspace(0, self.steps, frames + 1).round().astype(int)
        (x, mean, _), states = jax.lax.scan(stretch, (x, x, memory), (stops[:-1], stops[1:]))
        evaluations = self.steps * (corrections + self.evaluations * (self.predictor is not None)) + self.denoise
        if self.denoise:
            mean = tweedie(score, sde, mean, jnp.full(len(keys), sde.eps))
        result = mean if self.denoise else x, jnp.full(len(keys), evaluations)
        return result if frames == 1 else (*result, states, times[stops[1:]])


@dataclasses.dataclass(frozen=True)
class ODE:
    """The probability flow from T to ε by the adaptive solver."""

    solver: probability_flow.Solver = dataclasses.field(default_factory=probability_flow.Solver)
    denoise: bool = True

    def __call__(self, score: Score, sde: SDE, keys, shape, frames: int = 1):
        """Images [B, *shape] from keys [B], and the evaluations of the score [B]; NaN where max_steps ran out.

        `frames` as for `PredictorCorrector`, evenly spaced in logSNR.
        """
        return self.decode(score, sde, jax.vmap(lambda key: sde.prior_sample(key, shape))(keys), frames)

    def decode(self, score: Score, sde: SDE, latent, frames: int = 1):
        """The same from x_T [B, ...]."""
        first, last = sde.logsnr(jnp.array([sde.T, sde.eps]))
        stops = jnp.linspace(first, last, frames + 1)

        def stretch(x, ends):
            x, evaluations, reached = self._flow(score, sde, x, *ends)
            return x, (x, evaluations, reached)

        x, (states, evaluations, reached) = jax.lax.scan(stretch, latent, (stops[:-1], stops[1:]))
        if self.denoise:
            x = tweedie(score, sde, x, jnp.full(len(x), sde.eps))
        x = jnp.where(expand(jnp.all(reached, axis=0), x), x, jnp.nan)
        result = x, jnp.sum(evaluations, axis=0) + self.denoise
        return result if frames == 1 else (*result, states, sde.time(stops[1:]))

    def encode(self, score: Score, sde: SDE, x):
        """x_T [B, ...] of images x_ε [B, ...], and the evaluations [B]; NaN where max_steps ran out."""
        latent, evaluations, reached = self._flow(score, sde, x, *sde.logsnr(jnp.array([sde.eps, sde.T])))
        return jnp.where(expand(reached, x), latent, jnp.nan), evaluations

    def _flow(self, score, sde, x, start, end):
        field = lambda logsnr, x, _: flow(score, sde, logsnr[None], x[None])[0]
        return self.solver.solve(field, x, start, end)


def interpolate(first, second, weights):
    """Between latents [...], at `weights` [K] from 0 to 1 along the great circle of their directions: [K, ...].

    Norms go straight from one to the other, so that what lies between is as likely as Gaussian ends are.
    """
    norms = jnp.linalg.norm(first), jnp.linalg.norm(second)
    angle = jnp.arccos(jnp.clip(jnp.vdot(first, second) / (norms[0] * norms[1]), -1, 1))
    w = weights.reshape(-1, *(1,) * first.ndim)
    lever = lambda w: jnp.where(angle < 1e-4, w, jnp.sin(w * angle) / jnp.sin(jnp.maximum(angle, 1e-4)))
    return ((1 - w) * norms[0] + w * norms[1]) * (lever(1 - w) * first / norms[0] + lever(w) * second / norms[1])


PREDICTORS = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "none": None,
}
WITH_LAMBDA = (euler_maruyama, reverse_diffusion, ddim)
CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": None}
METHODS = {"ode": "the probability-flow ODE", "pc": "predictor-corrector"}
GRIDS = {"uniform": uniform_grid, "quadratic": quadratic_grid, "logsnr": logsnr_grid, "edm": edm_grid}


def _predictor(sampling, steps: int) -> Callable | None:
    """With its noise: sampling.lambda_, probability_flow (λ = 0) and churn."""
    made, lambda_ = choose(PREDICTORS, sampling.predictor, "sampling.predictor"), sampling.lambda_
    if sampling.probability_flow:
        if lambda_ > 0:
            raise ConfigError(f"config.sampling.probability_flow: means lambda_=0, not {lambda_}")
        lambda_ = 0.0
    if made is heun:
        return functools.partial(heun, churn=min(sampling.churn / steps, 2**0.5 - 1))
    if lambda_ < 0:
        return made
    if made not in WITH_LAMBDA:
        others = ", ".join(name for name, predictor in PREDICTORS.items() if predictor in WITH_LAMBDA)
        raise ConfigError(
            f"config.sampling.predictor={sampling.predictor}: has no λ (probability_flow); {others} have"
        )
    return functools.partial(made, lambda_=lambda_)


def from_config(config) -> ODE | PredictorCorrector:
    """Reads config.sampling; the steps are sampling.steps, or where that is 0 model.num_scales."""
    sampling = config.sampling
    choose(METHODS, sampling.method, "sampling.method")
    if sampling.steps < 0:
        raise ConfigError(f"config.sampling.steps={sampling.steps}: should be 1 or more, or 0 for model.num_scales")
    steps = sampling.steps or config.model.num_scales
    predictor = _predictor(sampling, steps)
    corrector = choose(CORRECTORS, sampling.corrector, "sampling.corrector")
    if corrector:
        corrector = functools.partial(corrector, snr=sampling.snr)
    grid = choose(GRIDS, sampling.grid, "sampling.grid")
    if sampling.method == "ode":
        return ODE(probability_flow.from_config(sampling), sampling.noise_removal)
    evaluations = 2 if sampling.predictor == "heun" else 1
    return PredictorCorrector(
        predictor, corrector, sampling.n_steps_each, steps, grid, sampling.noise_removal, evaluations
    )


def sampling_sde(config, sde: SDE) -> SDE:
    """The SDE with sampling.truncation_time as its smallest time; RVE's own is part of its definition."""
    if config.training.sde.lower() == "reciprocal_vesde":
        return sde
    return dataclasses.replace(sde, eps=config.sampling.truncation_time)
