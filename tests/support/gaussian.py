"""Data whose score is known: a Gaussian in each pixel."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st import config
from score_st.diffusion import sde
from score_st.diffusion.dims import expand

SHAPE = (2, 2, 1)
# every SDE of the table, with the settings of published configurations
SETTINGS = {"reciprocal_vesde": {"sigma_min": 1e-3}}


def settings_of(name: str, **training: Any) -> ConfigDict:
    """A configuration with this SDE."""
    made = config.default()
    made.training.update(training, sde=name)
    made.model.update(SETTINGS.get(name, {}))
    return made


SDES = {name: sde.from_config(settings_of(name)) for name in sde.SDES}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, std²) in every pixel of SHAPE, independent."""

    mean: float = 0.3
    std: float = 0.5

    def score(self, diffusion):
        """∇ log p_t of the data diffused by `diffusion`."""

        def score(x, t):
            alpha, sigma = (expand(c, x) for c in (diffusion.alpha(t), diffusion.sigma(t)))
            return -(x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)

        return score

    def error(self, diffusion, t, x=0.7):
        """The mean over z of ‖σ s + z‖² at x_t = α x + σ z, of one pixel."""
        alpha, sigma = diffusion.alpha(t), diffusion.sigma(t)
        v = alpha**2 * self.std**2 + sigma**2
        return (sigma * alpha * (x - self.mean) / v) ** 2 + (1 - sigma**2 / v) ** 2

    def sample(self, key, n):
        return self.mean + self.std * jax.random.normal(key, (n, *SHAPE))

    def nll(self, x):
        """-log p in nats [B]."""
        z = (x - self.mean) / self.std
        return jnp.sum(0.5 * z**2 + 0.5 * np.log(2 * np.pi * self.std**2), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Two Gaussians in every pixel of SHAPE, independent."""

    means: tuple = (-0.5, 0.4)
    stds: tuple = (0.1, 0.3)
    weights: tuple = (0.3, 0.7)

    def diffused(self, diffusion, t) -> "Mixture":
        """p_t at a scalar t."""
        alpha, sigma = diffusion.alpha(t), diffusion.sigma(t)
        means = tuple(alpha * m for m in self.means)
        return Mixture(means, tuple(jnp.sqrt((alpha * s) ** 2 + sigma**2) for s in self.stds), self.weights)

    def logp(self, x):
        """Log density of each pixel."""
        parts = [
            np.log(w) - 0.5 * ((x - m) / s) ** 2 - 0.5 * np.log(2 * np.pi) - jnp.log(s)
            for m, s, w in zip(self.means, self.stds, self.weights, strict=True)
        ]
        return jnp.logaddexp(*parts)

    def score(self, diffusion):
        """∇ log p_t of the data diffused by `diffusion`."""
        one = lambda x, t: jax.grad(lambda x: jnp.sum(self.diffused(diffusion, t).logp(x)))(x)
        return lambda x, t: jax.vmap(one)(x, t)

    def error(self, diffusion, t, x=0.7):
        """The mean over z of ‖σ s + z‖² at x_t = α x + σ z, of one pixel."""
        alpha, sigma = diffusion.alpha(t), diffusion.sigma(t)
        v = alpha**2 * self.std**2 + sigma**2
        return (sigma * alpha * (x - self.mean) / v) ** 2 + (1 - sigma**2 / v) ** 2

    def sample(self, key, n):
        keys = jax.random.split(key)
        first = jax.random.bernoulli(keys[0], self.weights[0], (n, *SHAPE))
        (m0, m1), (s0, s1) = self.means, self.stds
        return jnp.where(first, m0, m1) + jnp.where(first, s0, s1) * jax.random.normal(keys[1], (n, *SHAPE))

    def nll(self, x):
        """-log p in nats [B]."""
        return -jnp.sum(self.logp(x), axis=(1, 2, 3))
