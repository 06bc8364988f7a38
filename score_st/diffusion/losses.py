"""Training losses: weighted denoising score matching on [τ, T], its mixture, the discrete ones, reconstruction at τ.

All take data already scaled, x [B, ...], a score (or network) function and every random draw as an argument, and
return one loss an image [B], in nats an image or (with `mean`) nats a dimension.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from score_st.config import ConfigError
from score_st.diffusion import time_sampling
from score_st.diffusion.parametrization import Score, denoise
from score_st.diffusion.sde import SDE, expand


def sum_dims(x):
    """[B, ...] -> [B]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def denoising_error(score: Score, sde: SDE, x, t, z):
    """‖σ s(x_t, t) + z‖² [B] at x_t = α x + σ z, for t [B] and z like x (Vincent 2011)."""
    mean, std = sde.marginal(x, t)
    std = expand(std, x)
    return sum_dims(jnp.square(std * score(mean + std * z, t) + z))


def tanh_cdf(x):
    """The official approximation of the normal distribution function, off by up to 4e-4."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian(x, mean, std, low, high, half_bin, cdf: Callable = norm.cdf, floor: float = 1e-30):
    """Log mass in nats of each pixel `x` [B, ...]: N(mean, std²) on a bin of x ± half_bin, the outer ones open.

    `std` [B]; `low` and `high` are the values of the outer bins (Ho et al. 2020, eq. 13); masses below `floor` count
    as that.
    """
    std, far = expand(std, x), 1e4
    right = jnp.where(x > high - half_bin, far, (x - mean + half_bin) / std)
    left = jnp.where(x < low + half_bin, -far, (x - mean - half_bin) / std)
    flip = left > 0  # in the lower tail small masses keep their digits
    mass = cdf(jnp.where(flip, -left, right)) - cdf(jnp.where(flip, -right, left))
    return jnp.log(jnp.maximum(mass, floor))


def decoder(score: Score, sde: SDE, x, t, z):
    """Mean [B, ...] and std [B] of the Gaussian q(x_0 | x_t) that the score gives, at x_t = α x + σ z (Tweedie)."""
    mean, std = sde.marginal(x, t)
    return denoise(score, sde, mean + expand(std, x) * z, t), std / sde.alpha(t)


def reconstruction(score: Score, sde: SDE, x, t, z, log_mass: Callable | None = None):
    """E[-log q(x_0 | x_t) + log p(x_t | x_0)] of each image in nats: what is lost below t (Song et al. 2021b, thm 5).

    Args:
      log_mass: (x, mean [B, ...], std [B]) -> log mass of each pixel, for discrete data (see `discretized_gaussian`);
        by default the density of continuous data.
    """
    mean, std = decoder(score, sde, x, t, z)
    dims = math.prod(x.shape[1:])
    entropy = dims * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(sde.sigma(t)))
    if log_mass is not None:
        return -sum_dims(log_mass(x, mean, std)) - entropy
    log_std = jnp.log(std)
    nll = dims * (0.5 * math.log(2 * math.pi) + log_std) + 0.5 * sum_dims(jnp.square((x - mean) / expand(std, x)))
    return nll - entropy


@dataclasses.dataclass(frozen=True)
class Loss:
    """½ w c(t) ‖σ s + z‖² with times t in [τ, T] of weight w, plus the reconstruction term at τ if asked for.

    Attributes:
      sde: the diffusion.
      law: of t given τ, see `times`.
      likelihood_weighting: c = g²/σ² instead of c = 1, the variance weighting λ = σ². Not with the importance law,
        whose weight is the likelihood's already.
      mean: over dimensions instead of the sum.
      reconstruction: add it; `log_mass` as there.
      official: as the official code has it, ½ twice in a sum, and no entropy in the lossless reconstruction.
    """

    sde: SDE
    law: Callable
    likelihood_weighting: bool = False
    mean: bool = False
    reconstruction: bool = False
    log_mass: Callable | None = None
    official: bool = False

    def __call__(self, score: Score, x, tau, u, z, z_rec):
        """[B] for x [B, ...], τ [B], u [B] uniform on [0, 1), z and z_rec like x."""
        t, weight = self.law(self.sde, tau, u)
        if self.likelihood_weighting:
            weight = weight * self.sde.diffusion2(t) / jnp.square(self.sde.sigma(t))
        loss = 0.5 * weight * denoising_error(score, self.sde, x, t, z)
        if self.official and not self.mean:
            loss = 0.5 * loss
        if self.reconstruction:
            extra = reconstruction(score, self.sde, x, tau, z_rec, self.log_mass)
            if self.official and self.log_mass is not None:
                dims = math.prod(x.shape[1:])
                extra += dims * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(self.sde.sigma(tau)))
            return self._reduce(loss, x) + self._reduce(extra, x)
        return self._reduce(loss, x)

    def _reduce(self, loss, x):
        return loss / math.prod(x.shape[1:]) if self.mean else loss


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One loss on the first half of the images, another on the second: first + weight · ratio · second.

    The loss of the *_deepest configurations: importance sampled likelihood weighting, plus DDPM's. ratio is 1, or when
    `balanced` the mean of first/second, through which no gradient flows. `groups` equal, contiguous parts of the batch
    (those that share a τ) are each halved and balanced by themselves.
    """

    first: Loss
    second: Loss
    weight: float
    balanced: bool
    groups: int = 1

    def __call__(self, score: Score, x, tau, u, z, z_rec):
        """[B/2], see `Loss`."""
        halves = [self._halves(a) for a in (x, tau, u, z, z_rec)]
        first = self.first(score, *(a for a, _ in halves))
        second = self.second(score, *(b for _, b in halves))
        ratio = jnp.ones(())
        if self.balanced:
            ratio = jnp.mean((first / second).reshape(self.groups, -1), axis=1)
            ratio = jax.lax.stop_gradient(jnp.repeat(ratio, first.shape[0] // self.groups))
        return first + self.weight * ratio * second

    def _halves(self, a):
        a = a.reshape(self.groups, 2, -1, *a.shape[1:])
        return a[:, 0].reshape(-1, *a.shape[3:]), a[:, 1].reshape(-1, *a.shape[3:])


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The discrete losses of DDPM and SMLD with N noise levels: ½ ‖σ s + z‖² at a level drawn by u.

    Attributes:
      alphas, sigmas: [N], by the time_cond that the network gets.
      predicts_noise: the network's output is z, not the score.
    """

    alphas: jax.Array
    sigmas: jax.Array
    predicts_noise: bool
    mean: bool = False

    def __call__(self, network, x, u, z):
        """[B] for x [B, ...], u [B] on [0, 1), z like x; network: (x, time_cond, None) -> [B, ...]."""
        time_cond = jnp.minimum(jnp.floor(u * len(self.sigmas)), len(self.sigmas) - 1).astype(jnp.int32)
        alpha, sigma = expand(self.alphas[time_cond], x), expand(self.sigmas[time_cond], x)
        output = network(alpha * x + sigma * z, time_cond.astype(x.dtype), None)
        error = sum_dims(jnp.square(output - z if self.predicts_noise else sigma * output + z))
        return 0.5 * error / (math.prod(x.shape[1:]) if self.mean else 1)


def ddpm(sde, n: int, mean: bool = False) -> Discrete:
    """Ho et al. 2020, eq. 14, with N linear β's; x_t has 1 - ∏(1 - β) as variance."""
    beta = jnp.linspace(sde.beta_min / n, sde.beta_max / n, n)
    alpha2 = jnp.exp(jnp.cumsum(jnp.log1p(-beta)))
    return Discrete(jnp.sqrt(alpha2), jnp.sqrt(1 - alpha2), predicts_noise=True, mean=mean)


def smld(sde, n: int, mean: bool = False) -> Discrete:
    """Song & Ermon 2019, eq. 5, with N geometric σ's, time_cond 0 the largest."""
    sigma = jnp.exp(jnp.linspace(math.log(sde.sigma_max), math.log(sde.sigma_min), n))
    return Discrete(jnp.ones(n), sigma, predicts_noise=False, mean=mean)


def half_bin(config) -> float:
    """Of pixels scaled without uniform dequantisation: half the distance of two levels."""
    return (2.0 if config.data.centered else 1.0) / (config.data.num_levels - 1) / 2


def log_mass_from_config(config) -> Callable:
    """Of the discretised decoder, for lossless figures."""
    low = -1.0 if config.data.centered else 0.0
    official: dict = dict(cdf=tanh_cdf, floor=1e-12) if config.training.official_loss else {}
    return functools.partial(discretized_gaussian, low=low, high=1.0, half_bin=half_bin(config), **official)


DISCRETE = {"vpsde": ddpm, "vesde": smld}


def from_config(config, sde: SDE, groups: int) -> Loss | Mixture | Discrete:
    """The loss of config.training; `groups` is the number of τ's a batch."""
    training = config.training
    if not training.continuous:
        if training.likelihood_weighting:
            raise ConfigError(
                "config.training.likelihood_weighting: needs continuous=True; the discrete losses have none"
            )
        return DISCRETE[training.sde.lower()](sde, config.model.num_scales, training.reduce_mean)
    loss = Loss(
        sde,
        time_sampling.from_config(config),
        training.likelihood_weighting and not training.importance_sampling,
        training.reduce_mean,
        training.reconstruction_loss,
        log_mass_from_config(config) if config.data.dequantization == "lossless" else None,
        training.official_loss,
    )
    if not training.mixed:
        return loss
    uniform = time_sampling.mean(time_sampling.uniform) if training.official_loss else time_sampling.uniform
    first, second = (dataclasses.replace(loss, law=law) for law in (time_sampling.importance, uniform))
    return Mixture(first, second, training.ddpm_weight, training.balanced, groups)
