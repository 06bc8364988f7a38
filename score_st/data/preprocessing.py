"""What happens to images on the device: random flips, dequantisation and scaling."""

import dataclasses

import jax
import jax.numpy as jnp

DEQUANTIZATIONS = {"none": "x/(L-1)", "uniform": "(x + u)/L", "lossless": "x/(L-1), with a discretised decoder"}


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Between integer images and what the networks are trained on.

    Attributes:
      num_levels, centered, dequantization: as in config.data.
    """

    num_levels: int
    centered: bool
    dequantization: str

    @property
    def centre(self) -> float:
        """Middle grey."""
        return 0.0 if self.centered else 0.5

    def forward(self, images, u):
        """Float x from uint8 images; u like x is uniform on [0, 1) and used by uniform dequantisation alone."""
        x = images.astype(u.dtype)
        x = (x + u) / self.num_levels if self.dequantization == "uniform" else x / (self.num_levels - 1)
        return 2 * x - 1 if self.centered else x

    def inverse(self, x):
        """uint8 images from float x, each pixel to the level whose values it lies among."""
        x = (x + 1) / 2 if self.centered else x
        levels = self.num_levels
        x = jnp.floor(x * levels) if self.dequantization == "uniform" else jnp.round(x * (levels - 1))
        return jnp.clip(x, 0, levels - 1).astype(jnp.uint8)


def scaler_from_config(config) -> Scaler:
    return Scaler(config.data.num_levels, config.data.centered, config.data.dequantization)


def random_flip(images, key):
    """Each image [H, W, C] of a batch mirrored left to right with probability ½."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
