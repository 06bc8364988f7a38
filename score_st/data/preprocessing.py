"""What happens to images on the device: random flips, dequantization and scaling."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_st.array_types import Array, Float, Key, Shaped, UInt8
from score_st.checks import check_fields
from score_st.ranges import Number

# of a level x of L, with u uniform on [0, 1)
DEQUANTIZATIONS = {"none": "x/(L-1)", "uniform": "(x + u)/L", "lossless": "x/(L-1), with a discretized decoder"}


@dataclasses.dataclass(frozen=True)
class Scaler:
    """The map between images of integer levels and the x that networks are trained on.

    x lies in [0, 1], or in [-1, 1] if it is centered.

    Attributes:
      num_levels: the levels are 0 ... num_levels - 1.
      centered: as data.centered.
      dequantization: a key of DEQUANTIZATIONS.
    """

    num_levels: int
    centered: bool
    dequantization: str

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers of levels that bytes don't have."""
        check_fields(self, num_levels=Number(float, 2, 256))

    @property
    def center(self) -> float:
        """The x of middle gray."""
        return 0.0 if self.centered else 0.5

    def forward(self, images: Shaped[Array, "*shape"], u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Scales images to x in the precision of `u`.

        Args:
          images: levels, of any type of integers.
          u: noise on [0, 1), added by uniform dequantization and ignored by the others.
        """
        x = images.astype(u.dtype)
        x = (x + u) / self.num_levels if self.dequantization == "uniform" else x / (self.num_levels - 1)
        return 2 * x - 1 if self.centered else x

    def inverse(self, x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
        """Rounds x to the images whose levels it stands for; values out of range are clipped."""
        x = (x + 1) / 2 if self.centered else x
        levels = self.num_levels
        x = jnp.floor(x * levels) if self.dequantization == "uniform" else jnp.round(x * (levels - 1))
        return jnp.clip(x, 0, levels - 1).astype(jnp.uint8)


def scaler_from_config(config: ConfigDict) -> Scaler:
    """Returns the scaler that config.data describes."""
    return Scaler(config.data.num_levels, config.data.centered, config.data.dequantization)


def random_flip(images: Shaped[Array, "B H W C"], key: Key[Array, ""]) -> Shaped[Array, "B H W C"]:
    """Mirrors each image left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
