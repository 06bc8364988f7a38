"""Up- and downsampling by 2 with a separable FIR filter, alone or fused with a 3x3 convolution (StyleGAN2).

Images are [B, H, W, C]. A filter is applied as a sum of shifted, strided slices, which XLA fuses into one pass.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _slice(x, axis: int, start: int, count: int, stride: int = 1):
    return jax.lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def _pad(x, axis: int, before: int, after: int):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (before, after)
    return jnp.pad(x, pads)


def _filter(x, taps, axis: int, pad: tuple[int, int], down: int = 1):
    x = _pad(x, axis, *pad)
    count = (x.shape[axis] - len(taps)) // down + 1
    return sum(tap * _slice(x, axis, j, count, down) for j, tap in enumerate(taps))


def _upsample(x, taps, axis: int):
    """Zeros between the samples, then the filter; by phases, so that no zero is touched."""
    size, before = x.shape[axis], len(taps) // 2
    reach = len(taps) // 2
    padded = _pad(x, axis, reach, reach)
    phases = []
    for phase in (0, 1):
        used = [(j, (phase + j - before) // 2) for j in range(len(taps)) if (phase + j - before) % 2 == 0]
        phases.append(sum(taps[j] * _slice(padded, axis, reach + shift, size) for j, shift in used))
    shape = list(x.shape)
    shape[axis] *= 2
    return jnp.stack(phases, axis + 1).reshape(shape)


def _taps(kernel: Sequence[int | float], gain: float):
    """One axis' share of the normalised filter, reversed as a convolution asks."""
    taps = np.asarray(kernel, np.float64)[::-1]
    return [float(tap) for tap in taps / taps.sum() * gain]


def upsample_fir(x, kernel: Sequence[int | float]):
    """[B, H, W, C] -> [B, 2H, 2W, C]; constants stay what they are away from the border."""
    taps = _taps(kernel, 2)
    return _upsample(_upsample(x, taps, 1), taps, 2)


def downsample_fir(x, kernel: Sequence[int | float]):
    """[B, H, W, C] -> [B, H/2, W/2, C]."""
    taps, pad = _taps(kernel, 1), ((len(kernel) - 1) // 2, (len(kernel) - 2) // 2)
    return _filter(_filter(x, taps, 1, pad, 2), taps, 2, pad, 2)


def upsample_naive(x):
    """Every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample_naive(x):
    """Means of 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def upsample_conv(x, weight, kernel: Sequence[int | float]):
    """A 3x3 convolution `weight` [3, 3, C, D] of the image with zeros between its pixels, then the filter."""
    pads = [(2, 2), (2, 2)]
    x = jax.lax.conv_general_dilated(x, weight, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=DIMENSIONS)
    taps = _taps(kernel, 2)
    excess = len(kernel) - 4
    pad = ((excess + 1) // 2 + 1, excess // 2 + 1)
    return _filter(_filter(x, taps, 1, pad), taps, 2, pad)


def conv_downsample(x, weight, kernel: Sequence[int | float]):
    """The filter, then a 3x3 convolution `weight` [3, 3, C, D] at every second pixel."""
    taps, pad = _taps(kernel, 1), ((len(kernel) + 1) // 2, len(kernel) // 2)
    x = _filter(_filter(x, taps, 1, pad), taps, 2, pad)
    return jax.lax.conv_general_dilated(x, weight, (2, 2), "VALID", dimension_numbers=DIMENSIONS)
