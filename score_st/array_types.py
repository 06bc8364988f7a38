"""Array types for signatures: `Float[Array, "B H W C"]`, checked by beartype in the tests.

Axes have the same letters everywhere: B images, H height, W width, C channels, N images of a data set or points of a
grid, D features. A leading space (`Float[Array, " B"]`) marks a single axis.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key, Shaped, UInt8, UInt32

Array = jax.Array | np.ndarray

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Shaped", "UInt8", "UInt32"]
