"""The parts of NCSN++ and DDPM++ (Song et al. 2021, appendix H). Images are [B, H, W, C], embeddings [B, D].

Submodules carry the names of the official PyTorch code, so that a checkpoint maps by name. `dtype` is that of the
arithmetic; parameters, statistics of the normalisation, softmax and time embedding stay in float32.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_st.networks import resample


def default_init(scale: float = 1.0):
    """DDPM's: uniform, variance scaled by the mean of fan in and fan out; 0 stands for 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def conv(features: int, size: int, name: str, dtype, init_scale: float = 1.0, **options) -> nn.Conv:
    options = {"padding": size // 2} | options
    return nn.Conv(features, (size, size), kernel_init=default_init(init_scale), dtype=dtype, name=name, **options)


class GroupNorm(nn.Module):
    """Group normalisation [B, H, W, C], with nn.GroupNorm's parameters.

    Sums run over the pixels of each channel first, along which memory is contiguous, then over a group's channels: an
    eighth of a training step on a CPU.
    """

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, _, _, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))

        def group_mean(x):
            means = x.mean((1, 2)).reshape(b, self.groups, c // self.groups).mean(-1)
            return jnp.repeat(means, c // self.groups, axis=1)[:, None, None]

        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))  # float64 stays float64, bfloat16 becomes float32
        x -= group_mean(x)
        x *= scale * jax.lax.rsqrt(group_mean(jnp.square(x)) + 1e-6)
        return (x + bias).astype(self.dtype)


class Dropout(nn.Module):
    """Of x [B, ...], with a mask for each image by its place in the batch: the same on any number of devices."""

    rate: float

    @nn.compact
    def __call__(self, x):
        key, first = self.make_rng("dropout"), 0
        mesh = jax.sharding.get_abstract_mesh()
        if axes := tuple(axis for axis in mesh.axis_names if axis in mesh.manual_axes):  # x is one device's share
            first = jax.lax.axis_index(axes) * len(x)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(len(x)))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0)


def group_norm(channels: int, name: str, dtype) -> GroupNorm:
    return GroupNorm(min(channels // 4, 32), dtype, name=name)


def dense(features: int, name: str, dtype=jnp.float32) -> nn.Dense:
    return nn.Dense(features, kernel_init=default_init(), dtype=dtype, name=name)


def merge(x, h, rescale: bool):
    """x + h, over √2 where that keeps the variance."""
    return (x + h) / math.sqrt(2) if rescale else x + h


def positional_embedding(time_cond, dim: int, max_positions: float = 10000.0):
    """Sines and cosines [B, dim] of `time_cond` [B] at geometric frequencies."""
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=time_cond.dtype) * (-math.log(max_positions) / (half - 1)))
    angles = time_cond[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class GaussianFourierProjection(nn.Module):
    """Sines and cosines [B, 2 size] of [B] at fixed random frequencies."""

    size: int
    scale: float

    @nn.compact
    def __call__(self, x):
        w = jax.lax.stop_gradient(self.param("W", nn.initializers.normal(self.scale), (self.size,)))
        angles = 2 * math.pi * x[:, None] * w
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def fourier_features(x):
    """The image with its sines and cosines at frequencies 128π and 256π: [B, H, W, 5C]."""
    angles = [128 * math.pi * x, 256 * math.pi * x]
    return jnp.concatenate([x, *(f(a) for a in angles for f in (jnp.sin, jnp.cos))], axis=-1)


class NIN(nn.Module):
    """A dense layer on the channels."""

    features: int
    init_scale: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        w = self.param("W", default_init(self.init_scale), (x.shape[-1], self.features))
        b = self.param("b", nn.initializers.zeros, (self.features,))
        x, w, b = nn.dtypes.promote_dtype(x, w, b, dtype=self.dtype)
        return x @ w + b


class AttnBlockpp(nn.Module):
    """Self-attention of one head over the pixels."""

    skip_rescale: bool
    init_scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        y = group_norm(c, "GroupNorm_0", self.dtype)(x)
        q, k, v = (NIN(c, dtype=self.dtype, name=f"NIN_{i}")(y).reshape(b, h * w, c) for i in range(3))
        scores = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32).astype(x.dtype) * c**-0.5
        # float64 stays float64, bfloat16 becomes float32
        wide = jnp.promote_types(self.dtype, jnp.float32)
        attention = jax.nn.softmax(scores.astype(wide), axis=-1).astype(self.dtype)
        y = jnp.einsum("bij,bjc->bic", attention, v).reshape(b, h, w, c)
        return merge(x, NIN(c, self.init_scale, self.dtype, name="NIN_3")(y), self.skip_rescale)


class Conv2d(nn.Module):
    """A 3x3 convolution fused with resampling by a FIR filter."""

    features: int
    resample: Callable
    fir_kernel: Sequence[int | float]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", default_init(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return self.resample(x, kernel, self.fir_kernel) + bias


class Upsample(nn.Module):
    """By 2, with a convolution to `features` channels where that is given."""

    fir: bool
    fir_kernel: Sequence[int | float]
    features: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        if self.features is None:
            return resample.upsample_fir(x, self.fir_kernel) if self.fir else resample.upsample_naive(x)
        if self.fir:
            return Conv2d(self.features, resample.upsample_conv, self.fir_kernel, self.dtype, name="Conv2d_0")(x)
        return conv(self.features, 3, "Conv_0", self.dtype)(resample.upsample_naive(x))


class Downsample(nn.Module):
    """By 2, with a convolution to `features` channels where that is given."""

    fir: bool
    fir_kernel: Sequence[int | float]
    features: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        if self.features is None:
            return resample.downsample_fir(x, self.fir_kernel) if self.fir else resample.downsample_naive(x)
        if self.fir:
            return Conv2d(self.features, resample.conv_downsample, self.fir_kernel, self.dtype, name="Conv2d_0")(x)
        return conv(self.features, 3, "Conv_0", self.dtype, strides=2, padding=((0, 1), (0, 1)))(x)


class Combine(nn.Module):
    """The input pyramid x joined to y, after a 1x1 convolution to y's channels."""

    method: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y):
        h = conv(y.shape[-1], 1, "Conv_0", self.dtype)(x)
        return jnp.concatenate([h, y], axis=-1) if self.method == "cat" else h + y


class ResnetBlock(nn.Module):
    """DDPM's or BigGAN's residual block, `resample` by "up" or "down" in BigGAN's alone.

    They differ in the shortcut: NIN where the channels change, or a 1x1 convolution there and where it resamples.
    """

    act: Callable
    features: int
    dropout: float
    skip_rescale: bool
    init_scale: float
    biggan: bool
    fir: bool
    fir_kernel: Sequence[int | float]
    resample: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, temb, train: bool):
        channels = x.shape[-1]
        h = self.act(group_norm(channels, "GroupNorm_0", self.dtype)(x))
        if self.resample:
            kind = Upsample if self.resample == "up" else Downsample
            change = kind(self.fir, self.fir_kernel)
            h, x = change(h), change(x)
        h = conv(self.features, 3, "Conv_0", self.dtype)(h)
        if temb is not None:
            h += dense(self.features, "Dense_0", self.dtype)(self.act(temb))[:, None, None]
        h = self.act(group_norm(self.features, "GroupNorm_1", self.dtype)(h))
        h = Dropout(self.dropout, name="Dropout_0")(h) if train and self.dropout else h
        h = conv(self.features, 3, "Conv_1", self.dtype, self.init_scale)(h)
        if self.biggan and (channels != self.features or self.resample):
            x = conv(self.features, 1, "Conv_2", self.dtype)(x)
        elif channels != self.features:
            x = NIN(self.features, dtype=self.dtype, name="NIN_0")(x)
        return merge(x, h, self.skip_rescale)
