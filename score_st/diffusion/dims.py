"""Arrays with one number per image beside arrays with one per pixel."""

import jax.numpy as jnp

from score_st.array_types import Array, Float, Shaped


def expand(a: Shaped[Array, " B"], x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """`a` with as many trailing axes of length one as it takes to multiply `x`."""
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))


def sum_dims(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """The sum over all axes but the first."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
