"""Data whose score is known: a Gaussian in each pixel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from score_st import sde

SHAPE = (2, 2, 1)
# the four SDEs as the published configurations have them
SDES = {
    "vp": sde.VP(),
    "subvp": sde.SubVP(),
    "ve": sde.VE(sigma_min=0.01, sigma_max=50.0),
    "rve": sde.RVE(sigma_min=1e-3, sigma_max=50.0, eta=1e-3),
}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, std²) in every pixel of SHAPE, independent."""

    mean: float = 0.3
    std: float = 0.5

    def score(self, diffusion):
        """∇ log p_t of the data diffused by `diffusion`."""

        def score(x, t):
            alpha, sigma = (sde.expand(c, x) for c in (diffusion.alpha(t), diffusion.sigma(t)))
            return -(x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)

        return score

    def sample(self, key, n):
        return self.mean + self.std * jax.random.normal(key, (n, *SHAPE))

    def nll(self, x):
        """-log p in nats [B]."""
        z = (x - self.mean) / self.std
        return jnp.sum(0.5 * z**2 + 0.5 * np.log(2 * np.pi * self.std**2), axis=(1, 2, 3))
