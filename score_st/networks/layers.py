"""The layers of NCSN++ and DDPM++ (Song et al. 2021, appendix H). Images are [B, H, W, C], embeddings [B, D].

Submodules have the names of the official PyTorch code, so that a checkpoint maps by name. `dtype` is the type of the
arithmetic; parameters, statistics of the normalization, softmax and time embedding stay in float32.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from score_st.array_types import Array, Float, Int
from score_st.config import ConfigError
from score_st.networks import resample


def default_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """DDPM's initializer: uniform, with variance scale / mean(fan in, fan out); scale 0 stands for 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def conv(features: int, size: int, name: str, dtype: DTypeLike, init_scale: float = 1.0, **options: Any) -> nn.Conv:
    """A `size` x `size` convolution that keeps the size of the image, unless `options` of nn.Conv change that."""
    options = {"padding": size // 2} | options
    return nn.Conv(features, (size, size), kernel_init=default_init(init_scale), dtype=dtype, name=name, **options)


class GroupNorm(nn.Module):
    """Group normalization, with the parameters of nn.GroupNorm.

    Means are taken over the pixels of each channel first, where memory is contiguous, and then over the channels of a
    group. On a CPU, this saves an eighth of a train step.
    """

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The normalized images, in `dtype`."""
        b, _, _, c = x.shape
        if c % self.groups:
            raise ConfigError(f"config.model: {c} channels can't be normalized in {self.groups} groups")
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))

        def group_mean(x: Array) -> Array:
            means = x.mean((1, 2)).reshape(b, self.groups, c // self.groups).mean(-1)
            return jnp.repeat(means, c // self.groups, axis=1)[:, None, None]

        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))  # float64 stays float64, bfloat16 becomes float32
        x -= group_mean(x)
        x *= scale * jax.lax.rsqrt(group_mean(jnp.square(x)) + 1e-6)
        return (x + bias).astype(self.dtype)


def _keys_of_images(key: Array, count: int) -> Array:
    """A key for each image [count], a function of its place in the batch, of which `count` are on this device."""
    first: int | Array = 0  # the place of the first
    mesh = jax.sharding.get_abstract_mesh()
    if axes := tuple(axis for axis in mesh.axis_names if axis in mesh.manual_axes):  # these are the device's share
        first = jax.lax.axis_index(axes) * count
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(count))


class Dropout(nn.Module):
    """Dropout whose mask depends on an image's place in the batch, and not on the number of devices."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """`x` with zeros at random, and the rest scaled up."""
        keys = _keys_of_images(self.make_rng("dropout"), len(x))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0)


class ClassEmbedding(nn.Module):
    """What is added to the time embedding for a class: a dense layer of the one-hot vector times √classes.

    No class is the vector 0 (Karras et al. 2022, as in the code; classes are dropped as by Ho and Salimans 2022).
    """

    num_classes: int
    dropout: float
    features: int

    @nn.compact
    def __call__(self, labels: Int[Array, " B"], dtype: DTypeLike, train: bool) -> Float[Array, "B D"]:
        """The embedding, D = `features`.

        Args:
          labels: 0 ... num_classes - 1; -1 is no class.
          dtype: of the one-hot vectors.
          train: drop classes at random, with random numbers from the "dropout" key.
        """
        if train and self.dropout:
            keys = _keys_of_images(self.make_rng("dropout"), len(labels))
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout))(keys)
            labels = jnp.where(keep, labels, -1)
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=dtype)
        return dense(self.features, "Dense_0", None)(one_hot * math.sqrt(self.num_classes))


def groups(channels: int) -> int:
    """The number of groups that channels are normalized in: four channels each, but at most 32 groups."""
    return min(channels // 4, 32)


def group_norm(channels: int, name: str, dtype: DTypeLike, count: int = 0) -> GroupNorm:
    """Group normalization in `count` groups, by default `groups`."""
    return GroupNorm(count or groups(channels), dtype, name=name)


def dense(features: int, name: str, dtype: DTypeLike | None = jnp.float32) -> nn.Dense:
    """A dense layer with DDPM's initializer; `dtype` None is that of its input and parameters."""
    return nn.Dense(features, kernel_init=default_init(), dtype=dtype, name=name)


def merge(x: Float[Array, "*S"], h: Float[Array, "*S"], rescale: bool) -> Float[Array, "*S"]:
    """The sum x + h, divided by √2 with `rescale`, which keeps the variance."""
    return (x + h) / math.sqrt(2) if rescale else x + h


def positional_embedding(
    time_cond: Float[Array, " B"], dim: int, max_positions: float = 10000.0
) -> Float[Array, "B {dim}"]:
    """Sines and cosines of `time_cond` at `dim` // 2 geometric frequencies from 1 to 1/max_positions."""
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=time_cond.dtype) * (-math.log(max_positions) / (half - 1)))
    angles = time_cond[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class GaussianFourierProjection(nn.Module):
    """Sines and cosines at `size` random frequencies of standard deviation `scale`, which are not trained."""

    size: int
    scale: float

    @nn.compact
    def __call__(self, x: Float[Array, " B"]) -> Float[Array, "B D"]:
        """The features, D = 2 size."""
        w = jax.lax.stop_gradient(self.param("W", nn.initializers.normal(self.scale), (self.size,)))
        angles = 2 * math.pi * x[:, None] * w
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def fourier_features(x: Float[Array, "B H W C"]) -> Float[Array, "B H W 5*C"]:
    """The images with their sines and cosines at frequencies 128π and 256π as more channels."""
    angles = [128 * math.pi * x, 256 * math.pi * x]
    return jnp.concatenate([x, *(f(a) for a in angles for f in (jnp.sin, jnp.cos))], axis=-1)


class NIN(nn.Module):
    """A dense layer over the channels of each pixel (network in network)."""

    features: int
    init_scale: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... D"]:
        """The images with D = `features` channels."""
        w = self.param("W", default_init(self.init_scale), (x.shape[-1], self.features))
        b = self.param("b", nn.initializers.zeros, (self.features,))
        x, w, b = nn.dtypes.promote_dtype(x, w, b, dtype=self.dtype)
        return x @ w + b


class AttnBlockpp(nn.Module):
    """Self-attention over the pixels, with one head."""

    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike = jnp.float32
    groups: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The images, plus what attention gives."""
        b, h, w, c = x.shape
        y = group_norm(c, "GroupNorm_0", self.dtype, self.groups)(x)
        q, k, v = (NIN(c, dtype=self.dtype, name=f"NIN_{i}")(y).reshape(b, h * w, c) for i in range(3))
        scores = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32).astype(x.dtype) * c**-0.5
        # float64 stays float64, bfloat16 becomes float32
        wide = jnp.promote_types(self.dtype, jnp.float32)
        attention = jax.nn.softmax(scores.astype(wide), axis=-1).astype(self.dtype)
        y = jnp.einsum("bij,bjc->bic", attention, v).reshape(b, h, w, c)
        return merge(x, NIN(c, self.init_scale, self.dtype, name="NIN_3")(y), self.skip_rescale)


class Conv2d(nn.Module):
    """A 3x3 convolution fused with resampling by a FIR filter.

    `resample` is `resample.upsample_conv` or `resample.conv_downsample`.
    """

    features: int
    resample: Callable
    fir_kernel: Sequence[int | float]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 D"]:
        """The images at their new size, with D = `features` channels."""
        kernel = self.param("kernel", default_init(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return self.resample(x, kernel, self.fir_kernel) + bias


class Upsample(nn.Module):
    """Doubles the size of the images, with a convolution if `features` is given."""

    fir: bool
    fir_kernel: Sequence[int | float]
    features: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W D"]:
        """The images at twice the size, with D = C or `features` channels."""
        if self.features is None:
            return resample.upsample_fir(x, self.fir_kernel) if self.fir else resample.upsample_naive(x)
        if self.fir:
            return Conv2d(self.features, resample.upsample_conv, self.fir_kernel, self.dtype, name="Conv2d_0")(x)
        return conv(self.features, 3, "Conv_0", self.dtype)(resample.upsample_naive(x))


class Downsample(nn.Module):
    """Halves the size of the images, with a convolution if `features` is given."""

    fir: bool
    fir_kernel: Sequence[int | float]
    features: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 D"]:
        """The images at half the size, with D = C or `features` channels."""
        if self.features is None:
            return resample.downsample_fir(x, self.fir_kernel) if self.fir else resample.downsample_naive(x)
        if self.fir:
            return Conv2d(self.features, resample.conv_downsample, self.fir_kernel, self.dtype, name="Conv2d_0")(x)
        return conv(self.features, 3, "Conv_0", self.dtype, strides=2, padding=((0, 1), (0, 1)))(x)


class Combine(nn.Module):
    """Merges the input pyramid into the features, after a 1x1 convolution to their number of channels.

    `method` is "sum", or "cat" to concatenate the channels.
    """

    method: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], y: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        """The pyramid `x` merged into the features `y`; E = D, or 2D for "cat"."""
        h = conv(y.shape[-1], 1, "Conv_0", self.dtype)(x)
        return jnp.concatenate([h, y], axis=-1) if self.method == "cat" else h + y


class ResnetBlock(nn.Module):
    """The residual block of DDPM, or of BigGAN (`biggan`), which may resample ("up" or "down").

    They differ in the shortcut where the number of channels changes: NIN in DDPM, a 1x1 convolution in BigGAN, which
    has it also where it resamples. `groups` are those of its two normalizations; 0 is the usual number.
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
    dtype: DTypeLike = jnp.float32
    groups: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], temb: Float[Array, "B E"] | None, train: bool
    ) -> Float[Array, "B H2 W2 D"]:
        """The images with D = `features` channels.

        Args:
          x: images.
          temb: time embedding, if the network is conditional.
          train: use dropout, with random numbers from the "dropout" key.
        """
        channels = x.shape[-1]
        h = self.act(group_norm(channels, "GroupNorm_0", self.dtype, self.groups[0])(x))
        if self.resample:
            resampled = (Upsample if self.resample == "up" else Downsample)(self.fir, self.fir_kernel)
            h, x = resampled(h), resampled(x)
        h = conv(self.features, 3, "Conv_0", self.dtype)(h)
        if temb is not None:
            h += dense(self.features, "Dense_0", self.dtype)(self.act(temb))[:, None, None]
        h = self.act(group_norm(self.features, "GroupNorm_1", self.dtype, self.groups[1])(h))
        h = Dropout(self.dropout, name="Dropout_0")(h) if train and self.dropout else h
        h = conv(self.features, 3, "Conv_1", self.dtype, self.init_scale)(h)
        if self.biggan and (channels != self.features or self.resample):
            x = conv(self.features, 1, "Conv_2", self.dtype)(x)
        elif channels != self.features:
            x = NIN(self.features, dtype=self.dtype, name="NIN_0")(x)
        return merge(x, h, self.skip_rescale)
