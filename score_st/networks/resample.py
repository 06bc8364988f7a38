"""Up- and downsampling by 2 with a separable FIR filter, alone or fused with a 3x3 convolution (StyleGAN2).

Images are [B, H, W, C]. A filter is applied as a sum of shifted, strided slices, which XLA fuses into one pass.
A `kernel` is one axis of the filter; it need not be normalized.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _slice(x: Array, axis: int, start: int, count: int, stride: int = 1) -> Array:
    return jax.lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (before, after)
    return jnp.pad(x, pads)


def _filter(x: Array, taps: list[float], axis: int, pad: tuple[int, int], down: int = 1) -> Any:
    x = _pad(x, axis, *pad)
    count = (x.shape[axis] - len(taps)) // down + 1
    return sum(tap * _slice(x, axis, j, count, down) for j, tap in enumerate(taps))


def _upsample(x: Array, taps: list[float], axis: int) -> Array:
    """Puts zeros between the samples and filters; phase by phase, so that no zero is multiplied."""
    size, reach = x.shape[axis], len(taps) // 2
    padded = _pad(x, axis, reach, reach)
    phases = []
    for phase in (0, 1):
        used = [(j, (phase + j - reach) // 2) for j in range(len(taps)) if (phase + j - reach) % 2 == 0]
        phases.append(sum(taps[j] * _slice(padded, axis, reach + shift, size) for j, shift in used))
    shape = list(x.shape)
    shape[axis] *= 2
    return jnp.stack(phases, axis + 1).reshape(shape)


def _taps(kernel: Sequence[int | float], gain: float) -> list[float]:
    """The filter along one axis, reversed for a convolution, with sum `gain`."""
    taps = np.asarray(kernel, np.float64)[::-1]
    return [float(tap) for tap in taps / taps.sum() * gain]


def upsample_fir(x: Float[Array, "B H W C"], kernel: Sequence[int | float]) -> Float[Array, "B 2*H 2*W C"]:
    """Doubles the size; away from the border, constants stay constant."""
    taps = _taps(kernel, 2)
    return _upsample(_upsample(x, taps, 1), taps, 2)


def downsample_fir(x: Float[Array, "B H W C"], kernel: Sequence[int | float]) -> Float[Array, "B H//2 W//2 C"]:
    """Filters, and keeps every second pixel."""
    taps, pad = _taps(kernel, 1), ((len(kernel) - 1) // 2, (len(kernel) - 2) // 2)
    return _filter(_filter(x, taps, 1, pad, 2), taps, 2, pad, 2)


def upsample_naive(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Repeats every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample_naive(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """Averages 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def upsample_conv(
    x: Float[Array, "B H W C"], weight: Float[Array, "3 3 C D"], kernel: Sequence[int | float]
) -> Float[Array, "B 2*H 2*W D"]:
    """Puts zeros between the pixels, convolves with `weight`, and filters."""
    pads = [(2, 2), (2, 2)]
    x, weight = jnp.asarray(x), jnp.asarray(weight)
    x = jax.lax.conv_general_dilated(x, weight, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=DIMENSIONS)
    taps = _taps(kernel, 2)
    excess = len(kernel) - 4
    pad = ((excess + 1) // 2 + 1, excess // 2 + 1)
    return _filter(_filter(x, taps, 1, pad), taps, 2, pad)


def conv_downsample(
    x: Float[Array, "B H W C"], weight: Float[Array, "3 3 C D"], kernel: Sequence[int | float]
) -> Float[Array, "B H//2 W//2 D"]:
    """Filters, and convolves with `weight` at every second pixel."""
    taps, pad = _taps(kernel, 1), ((len(kernel) + 1) // 2, len(kernel) // 2)
    filtered = _filter(_filter(x, taps, 1, pad), taps, 2, pad)
    return jax.lax.conv_general_dilated(filtered, jnp.asarray(weight), (2, 2), "VALID", dimension_numbers=DIMENSIONS)
