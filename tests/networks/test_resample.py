"""Resampling against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_st.networks import resample


def upfirdn(x, kernel, up, down, pad):
    """The definition: zeros between samples, padding, convolution, every `down`-th sample."""
    b, h, w, c = x.shape
    wide = np.zeros((b, h * up, w * up, c))
    wide[:, ::up, ::up] = x
    wide = np.pad(wide, ((0, 0), pad, pad, (0, 0)))
    k = np.outer(kernel, kernel)[::-1, ::-1]
    n = len(kernel)
    rows, columns = (s - n + 1 for s in wide.shape[1:3])
    out = sum(k[i, j] * wide[:, i : i + rows, j : j + columns] for i in range(n) for j in range(n))
    return out[:, ::down, ::down]


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 5, 1), (1, 1), (1, 4, 6, 4, 1, 2)])
def test_fir_resampling_is_its_definition(kernel):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    unit, excess = np.array(kernel) / np.sum(kernel), len(kernel) - 2
    up = upfirdn(x, unit * 2, 2, 1, ((excess + 1) // 2 + 1, excess // 2))
    np.testing.assert_allclose(resample.upsample_fir(x, kernel), up, atol=1e-6)
    down = upfirdn(x, unit, 1, 2, ((excess + 1) // 2, excess // 2))
    np.testing.assert_allclose(resample.downsample_fir(x, kernel), down, atol=1e-6)


def test_fused_convolutions_are_filter_and_convolution():
    """In the interior, convolving and filtering commute."""
    rng = np.random.default_rng(0)
    x = np.pad(rng.normal(size=(1, 4, 4, 2)), ((0, 0), (6, 6), (6, 6), (0, 0))).astype(np.float32)
    weight, kernel = rng.normal(size=(3, 3, 2, 5)).astype(np.float32), (1, 3, 3, 1)
    convolve = lambda x, strides, padding: jax.lax.conv_general_dilated(
        x, weight, strides, padding, dimension_numbers=resample.DIMENSIONS
    )
    up = resample.upsample_conv(x, weight, kernel)
    np.testing.assert_allclose(up, convolve(resample.upsample_fir(x, kernel), (1, 1), "SAME"), atol=1e-5)
    # the filter comes first: at full size, then every second 3x3 neighborhood
    unit = np.array(kernel) / np.sum(kernel)
    filtered = upfirdn(x, unit, 1, 1, (2, 2)).astype(np.float32)
    down = resample.conv_downsample(x, weight, kernel)
    np.testing.assert_allclose(down, convolve(filtered, (2, 2), "VALID"), atol=1e-5)
    assert down.shape == (1, 8, 8, 5)


def test_naive_resampling():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(resample.downsample_naive(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(resample.downsample_naive(resample.upsample_naive(x)), x)
