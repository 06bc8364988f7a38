"""Training losses: weighted denoising score matching on [τ, T], its mixture, the discrete losses, reconstruction at τ.

All take scaled data x [B, ...], a score (or network) and every random draw as an argument, and return one loss per
image in nats, summed over dimensions or (with `mean`) averaged.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from score_st.array_types import Array, Float
from score_st.config import ConfigError, Table
from score_st.diffusion import time_sampling, weighting
from score_st.diffusion.dims import expand, sum_dims
from score_st.diffusion.parametrization import Score, ScoreModel, denoise
from score_st.diffusion.sde import SDE, NoiseLevels
from score_st.diffusion.time_sampling import TimeSampler
from score_st.diffusion.weighting import Weighting

Images = Float[Array, "B ..."]
Values = Float[Array, " B"]
LogMass = Callable[[Array, Array, Array], Array]  # (x, mean [B, ...], std [B]) -> log mass of each pixel [B, ...]


@runtime_checkable
class Loss(Protocol):
    """A loss per image. A new one is a class and a line of `LOSSES`.

    Attributes:
      soft_truncation: it uses τ.
      images_per_value: images that share one value of the loss.
    """

    soft_truncation: ClassVar[bool]
    images_per_value: ClassVar[int]

    def __call__(self, model: ScoreModel, x: Images, *, tau: Values, u: Values, z: Images, z_rec: Images) -> Values:
        """The loss in nats.

        Args:
          model: the score, and the network behind it.
          x: scaled images.
          tau: the smallest times.
          u: uniform on [0, 1), for the times.
          z: standard normal noise for the score matching term.
          z_rec: standard normal noise for the reconstruction term.

        Returns:
          [B / images_per_value].
        """


def denoising_error(score: Score, sde: SDE, x: Images, t: Values, z: Images) -> Values:
    """‖σ s(x_t, t) + z‖² at x_t = α x + σ z (Vincent 2011)."""
    mean, std = sde.marginal(x, t)
    std = expand(std, x)
    return sum_dims(jnp.square(std * score(mean + std * z, t) + z))


def tanh_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The official approximation of the normal distribution function, off by up to 4e-4."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian(
    x: Images,
    mean: Images,
    std: Values,
    low: float,
    high: float,
    half_bin: float,
    cdf: Callable[[Array], Array] = norm.cdf,
    floor: float = 1e-30,
) -> Images:
    """Log mass in nats that N(mean, std²) gives the bin x ± half_bin of each pixel (Ho et al. 2020, eq. 13).

    Args:
      x: pixels, at the middle of their bins.
      mean: of the Gaussian.
      std: of the Gaussian.
      low: the value of the lowest bin, which is open below.
      high: the value of the highest bin, which is open above.
      half_bin: half the width of a bin.
      cdf: the normal distribution function.
      floor: smaller masses count as this one.
    """
    std, far = expand(std, x), 1e4
    right = jnp.where(x > high - half_bin, far, (x - mean + half_bin) / std)
    left = jnp.where(x < low + half_bin, -far, (x - mean - half_bin) / std)
    flip = left > 0  # in the lower tail small masses keep their digits
    mass = cdf(jnp.where(flip, -left, right)) - cdf(jnp.where(flip, -right, left))
    return jnp.log(jnp.maximum(mass, floor))


def decoder(score: Score, sde: SDE, x: Images, t: Values, z: Images) -> tuple[Images, Values]:
    """Mean and standard deviation of the Gaussian q(x_0 | x_t) that the score gives, at x_t = α x + σ z (Tweedie)."""
    mean, std = sde.marginal(x, t)
    return denoise(score, sde, mean + expand(std, x) * z, t), std / sde.alpha(t)


def reconstruction(score: Score, sde: SDE, x: Images, t: Values, z: Images, log_mass: LogMass | None = None) -> Values:
    """E[−log q(x_0 | x_t) + log p(x_t | x_0)] in nats: what is lost below t (Song et al. 2021b, theorem 5).

    Args:
      score: the score function.
      sde: the diffusion.
      x: scaled images x_0.
      t: times.
      z: standard normal noise of x_t.
      log_mass: of discrete data, see `discretized_gaussian`; None is the density of continuous data.
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
class ScoreMatching:
    """∫_τ^T c(t) ½‖σ s + z‖² dt by one time per image, plus the reconstruction term at τ if wanted.

    With c = g²/σ² it is L(θ; g², τ) of Kim et al. 2022, section 3.2, which with the reconstruction term bounds −log p.

    Attributes:
      sde: the diffusion.
      time_sampler: draws t on [τ, T], with its weight.
      weighting: c; None is the sampler's natural weighting, up to its constant.
      mean: average over dimensions instead of summing.
      reconstruction: add the reconstruction term.
      log_mass: of discrete data, see `reconstruction`.
      official: as the official code has it: ½ twice in a sum, and no entropy in the discrete reconstruction.
    """

    soft_truncation: ClassVar[bool] = True
    images_per_value: ClassVar[int] = 1

    sde: SDE
    time_sampler: TimeSampler
    weighting: Weighting | None = None
    mean: bool = False
    reconstruction: bool = False
    log_mass: LogMass | None = None
    official: bool = False

    def __call__(self, model: ScoreModel, x: Images, *, tau: Values, u: Values, z: Images, z_rec: Images) -> Values:
        """See `Loss`."""
        t, weight = self.time_sampler(self.sde, tau, u)
        if self.weighting not in (None, self.time_sampler.natural):
            weight = weight * (self.weighting(self.sde, t) / self.time_sampler.natural(self.sde, t))
        loss = 0.5 * weight * denoising_error(model.score, self.sde, x, t, z)
        if self.official and not self.mean:
            loss = 0.5 * loss
        if self.reconstruction:
            return self._reduce(loss, x) + self._reduce(self._reconstruction(model.score, x, tau, z_rec), x)
        return self._reduce(loss, x)

    def _reconstruction(self, score: Score, x: Images, tau: Values, z: Images) -> Values:
        loss = reconstruction(score, self.sde, x, tau, z, self.log_mass)
        if self.official and self.log_mass is not None:
            dims = math.prod(x.shape[1:])
            loss += dims * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(self.sde.sigma(tau)))
        return loss

    def _reduce(self, loss: Values, x: Images) -> Values:
        return loss / math.prod(x.shape[1:]) if self.mean else loss


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One loss on the first half of the images, another on the second: first + weight · ratio · second.

    The loss of the *_deepest configurations: the likelihood's with importance sampling, and DDPM's.

    Attributes:
      first: the loss of the first half.
      second: the loss of the second half.
      weight: of the second.
      balanced: the ratio is the mean of first/second, without a gradient; otherwise it is 1.
      groups: equal, contiguous parts of the batch (those that share a τ), each halved and balanced by itself.
    """

    soft_truncation: ClassVar[bool] = True
    images_per_value: ClassVar[int] = 2

    first: Loss
    second: Loss
    weight: float
    balanced: bool
    groups: int = 1

    def __call__(
        self, model: ScoreModel, x: Images, *, tau: Values, u: Values, z: Images, z_rec: Images
    ) -> Float[Array, " half"]:
        """See `Loss`; [B / 2]."""
        draws = {"tau": tau, "u": u, "z": z, "z_rec": z_rec}
        halves = {name: self._halves(a) for name, a in draws.items()}
        x1, x2 = self._halves(x)
        first = self.first(model, x1, **{name: a for name, (a, _) in halves.items()})
        second = self.second(model, x2, **{name: b for name, (_, b) in halves.items()})
        ratio = jnp.ones(())
        if self.balanced:
            ratio = jnp.mean((first / second).reshape(self.groups, -1), axis=1)
            ratio = jax.lax.stop_gradient(jnp.repeat(ratio, first.shape[0] // self.groups))
        return first + self.weight * ratio * second

    def _halves(self, a: Float[Array, "B ..."]) -> tuple[Array, Array]:
        a = a.reshape(self.groups, 2, -1, *a.shape[1:])
        return a[:, 0].reshape(-1, *a.shape[3:]), a[:, 1].reshape(-1, *a.shape[3:])


@dataclasses.dataclass(frozen=True)
class Discrete:
    """½‖σ s + z‖² at one of N noise levels: DDPM (Ho et al. 2020, eq. 14) and SMLD (Song and Ermon 2019, eq. 5).

    Attributes:
      levels: of the SDE, see `SDE.noise_levels`.
      mean: average over dimensions instead of summing.
    """

    soft_truncation: ClassVar[bool] = False
    images_per_value: ClassVar[int] = 1

    levels: NoiseLevels
    mean: bool = False

    def __call__(self, model: ScoreModel, x: Images, *, tau: Values, u: Values, z: Images, z_rec: Images) -> Values:
        """See `Loss`; the level follows from u, and the network is told its number."""
        alphas, sigmas = self.levels.alphas, self.levels.sigmas
        level = jnp.minimum(jnp.floor(u * len(sigmas)), len(sigmas) - 1).astype(jnp.int32)
        alpha, sigma = expand(alphas[level], x), expand(sigmas[level], x)
        output = model.network(alpha * x + sigma * z, level.astype(x.dtype), None)
        error = sum_dims(jnp.square(output - z if self.levels.predicts_noise else sigma * output + z))
        return 0.5 * error / (math.prod(x.shape[1:]) if self.mean else 1)


def half_bin(config) -> float:
    """Half the distance of two levels, of pixels that are scaled without uniform dequantization."""
    return (2.0 if config.data.centered else 1.0) / (config.data.num_levels - 1) / 2


def log_mass_from_config(config) -> LogMass:
    """The discretized decoder, for lossless figures."""
    low = -1.0 if config.data.centered else 0.0
    official: dict = dict(cdf=tanh_cdf, floor=1e-12) if config.training.official_loss else {}
    return functools.partial(discretized_gaussian, low=low, high=1.0, half_bin=half_bin(config), **official)


def _discrete(config, sde: SDE, groups: int) -> Discrete:
    training = config.training
    if training.continuous:
        raise ConfigError("config.training.loss=discrete: needs continuous=False, which also sets the parametrization")
    if training.likelihood_weighting:
        raise ConfigError("config.training.likelihood_weighting: needs continuous=True; the discrete losses have none")
    _refuse(config, "the discrete losses have levels of their own")
    return Discrete(sde.required_noise_levels(config), training.reduce_mean)


def _score_matching(config, sde: SDE, groups: int) -> ScoreMatching:
    training, lossless = config.training, config.data.dequantization == "lossless"
    return ScoreMatching(
        sde,
        time_sampling.from_config(config, sde),
        weighting.from_config(config, sde),
        training.reduce_mean,
        training.reconstruction_loss,
        log_mass_from_config(config) if lossless else None,
        training.official_loss,
    )


def _mixture(config, sde: SDE, groups: int) -> Mixture:
    training = config.training
    _refuse(config, "the mixture has importance times on one half of the images, uniform times on the other")
    if training.likelihood_weighting and not training.importance_sampling:
        raise ConfigError("config.training.likelihood_weighting=True: should be False with importance_sampling=False")
    loss = dataclasses.replace(_score_matching(config, sde, groups), weighting=None)
    uniform: TimeSampler = time_sampling.Uniform()
    uniform = time_sampling.Averaged(uniform) if training.official_loss else uniform
    first = dataclasses.replace(loss, time_sampler=time_sampling.Importance())
    second = dataclasses.replace(loss, time_sampler=uniform)
    return Mixture(first, second, training.ddpm_weight, training.balanced, groups)


def _refuse(config, why: str) -> None:
    for key in ("time_sampler", "weighting", "truncation_weighting"):
        if config.training[key]:
            raise ConfigError(f"config.training.{key}={config.training[key]}: should be empty; {why}")


# builders of the loss, from the configuration, the SDE and the number of τ per batch
LOSSES: Table[Callable[..., Loss]] = Table(
    "training.loss", {"score_matching": _score_matching, "mixture": _mixture, "discrete": _discrete}
)


def from_config(config, sde: SDE, groups: int) -> Loss:
    """The loss that training.loss names; where it is empty, what the official keys mean.

    Args:
      config: the configuration.
      sde: the diffusion.
      groups: the number of τ per batch (of one device).

    Raises:
      ConfigError: an unknown name, or settings that make no sense together.
    """
    training = config.training
    official = "discrete" if not training.continuous else "mixture" if training.mixed else "score_matching"
    if training.loss and official not in ("score_matching", training.loss):
        raise ConfigError(
            f"config.training.loss={training.loss}: continuous={training.continuous}, mixed={training.mixed} mean "
            f"{official}; leave one of them at its default"
        )
    return LOSSES.choose(training.loss or official)(config, sde, groups)
