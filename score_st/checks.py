"""Checks of arrays and of the fields of dataclasses, so that what is wrong is an error and not a figure.

Shapes and types are checked everywhere, values only outside jit: a traced array has none.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.config import ConfigError
from score_st.ranges import Number

ROUNDING = 1e-6  # of times in float32, relative
FAR = 8.0  # half widths of its range from the middle, where x is no scaled image


POSITIVE = Number(float, 0, open="(")
NOT_NEGATIVE = Number(float, 0)
FINITE = Number(float)
FRACTION = Number(float, 0, 1, "()")
ONE_OR_MORE = Number(float, 1)


def is_traced(*values: Any) -> bool:
    """Whether one of the values is known only when a jitted function runs."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def check_fields(instance: Any, **allowed: Number) -> None:
    """Raises ConfigError where a field of a dataclass is not allowed, unless it or a bound is traced."""
    for name, numbers in allowed.items():
        value = getattr(instance, name)
        if is_traced(value, numbers.low, numbers.high):
            continue
        try:
            problem = numbers.problem(float(value))
        except (TypeError, ValueError):
            problem = f"should be {numbers.text}"
        if problem:
            raise ConfigError(f"{type(instance).__name__}({name}={value!r}): {problem}")


def _range(array: Any) -> tuple[float, float]:
    """Returns the smallest and the largest value, also while something else is traced; NaN if there is one."""
    with jax.ensure_compile_time_eval():
        module: Any = jnp if isinstance(array, jax.Array) else np
        return float(module.min(array)), float(module.max(array))


def check_images(
    images: Any, shape: tuple[int, ...], num_levels: int, what: str = "images", batch: bool = True
) -> None:
    """Raises ConfigError unless `images` are integer levels 0 ... num_levels - 1, or finite floats, of the shape.

    Args:
      images: an array.
      shape: (H, W, C).
      num_levels: of integers.
      what: names them in the error.
      batch: whether they should be [B, H, W, C]; otherwise any axes may come before the shape.
    """
    if images.shape[-len(shape) :] != tuple(shape) or (batch and images.ndim != len(shape) + 1):
        wanted = ["B" if batch else "...", *shape]
        raise ConfigError(f"{what}: is {list(images.shape)}; should be [{', '.join(map(str, wanted))}]")
    integers = jnp.issubdtype(images.dtype, jnp.integer)
    if not integers and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(f"{what}: is of type {images.dtype}; should be integers 0 ... {num_levels - 1}, or floats x")
    if is_traced(images) or not images.size:
        return
    low, high = _range(images)
    if integers and not 0 <= low <= high < num_levels:
        raise ConfigError(f"{what}: has values from {low:g} to {high:g}; should be 0 ... {num_levels - 1}")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{what}: has values that are not finite")


def check_scaled(x: Any, centered: bool, what: str = "images") -> None:
    """Raises ConfigError for floats that are far outside the range of x, as levels given as floats are."""
    if jnp.issubdtype(x.dtype, jnp.integer) or is_traced(x) or not x.size:
        return
    low, high = _range(x)
    middle, half = (0.0, 1.0) if centered else (0.5, 0.5)
    if max(middle - low, high - middle) > FAR * half:
        scale = "[-1, 1]" if centered else "[0, 1]"
        raise ConfigError(
            f"{what}: has floats from {low:g} to {high:g}; should be scaled to about {scale}, or levels as integers"
        )


def check_times(t: Any, batch: int, smallest: float, largest: float) -> None:
    """Raises ConfigError unless `t` is a number or [B], with values from `smallest` (ε) to `largest` (T)."""
    shape = np.shape(t)
    if shape not in ((), (1,), (batch,)):
        raise ConfigError(f"t: is {list(shape)}; should be a number or [{batch}], one for each image")
    if is_traced(t) or not np.size(t):
        return
    low, high = _range(t if isinstance(t, jax.Array) else np.asarray(t))
    if not smallest * (1 - ROUNDING) <= low <= high <= largest * (1 + ROUNDING):
        raise ConfigError(f"t: has values from {low:g} to {high:g}; should be from ε = {smallest:g} to {largest:g}")


def check_mask(mask: Any, shape: tuple[int, ...]) -> None:
    """Raises ConfigError unless `mask` broadcasts to the shape of images, with values from 0 to 1."""
    mask = mask if hasattr(mask, "dtype") else np.asarray(mask)
    try:
        fits = np.broadcast_shapes(mask.shape, shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"mask: is {list(mask.shape)}; should broadcast to {list(shape)}, as [H, W, 1] does")
    if is_traced(mask) or not mask.size:
        return
    low, high = _range(mask)
    if not 0 <= low <= high <= 1:
        hint = "; divide a picture's 0 ... 255 by 255" if high > 1 else ""
        raise ConfigError(f"mask: has values from {low:g} to {high:g}; should be from 0 to 1{hint}")
