"""NCSN++ and DDPM++ (Song et al. 2021), one U-Net with options; U-NCSN++ and U-DDPM++ differ in the time."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_st.networks import layers

ACTIVATIONS = {
    "swish": nn.swish,
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": functools.partial(nn.leaky_relu, negative_slope=0.2),
}


# what the backward pass does not find stored: nothing, all but convolutions and products, or residual blocks
REMAT = {
    "none": None,
    "elementwise": jax.checkpoint_policies.dots_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class NCSNpp(nn.Module):
    """A U-net with blocks for each of len(ch_mult) resolutions.

    The submodule `all_modules_i` is the i-th of the official network's list. Options have the names and meanings of
    `config.model`; `sigma_min`, `sigma_max` and `num_scales` are used by scale_by_sigma with positional embedding.
    """

    nf: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    attention: bool
    dropout: float
    embedding_type: str
    embedding_dim: int
    fourier_scale: float
    fourier_feature: bool
    conditional: bool
    scale_by_sigma: bool
    nonlinearity: str
    resblock_type: str
    resamp_with_conv: bool
    fir: bool
    fir_kernel: Sequence[int | float]
    skip_rescale: bool
    progressive: str
    progressive_input: str
    progressive_combine: str
    auxiliary_resblock: bool
    init_scale: float
    sigma_min: float
    sigma_max: float
    num_scales: int
    centered: bool
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x, time_cond, train: bool = False, log_time_cond=None):
        """The network's output [B, H, W, C] in the type of x.

        Args:
          x: images [B, H, W, C].
          time_cond: [B], t · 999 or σ.
          train: with dropout, for which there must be a "dropout" key.
          log_time_cond: [B], embedded by Gaussian Fourier features instead of log(time_cond).
        """
        net = _Modules(self)
        temb = self._embed(net, time_cond, log_time_cond)
        image, kind = x if self.centered else 2 * x - 1, x.dtype
        features = image
        if self.fourier_feature:
            net.skip()
            features = layers.fourier_features(image)
        h, skips, levels = net.conv(self.nf)(features), [], range(len(self.ch_mult))
        skips.append(h)
        pyramid = image
        for level in levels:
            for _ in range(self.num_res_blocks):
                h = net.attend(net.block(self.nf * self.ch_mult[level])(h, temb, train))
                skips.append(h)
            if level != levels[-1]:
                h, pyramid = self._down(net, h, pyramid, temb, train)
                if self.auxiliary_resblock:
                    skips.append(h)
        if not self.auxiliary_resblock:
            skips.pop()
        h = net.block(h.shape[-1])(h, temb, train)
        h = net.attention()(h)
        h = net.block(h.shape[-1])(h, temb, train)
        pyramid = None
        for level in reversed(levels):
            for _ in range(self.num_res_blocks + self.auxiliary_resblock):
                joined = jnp.concatenate([h, skips.pop()], axis=-1)
                h = net.block(self.nf * self.ch_mult[level])(joined, temb, train)
            h, pyramid = self._progress(net, net.attend(h), pyramid, x.shape[-1])
            if level != 0:
                h = self._up(net, h, temb, train)
        h = pyramid if self.progressive == "output_skip" else net.normed_conv(h, x.shape[-1], self.init_scale)
        return self._scale(h.astype(kind), time_cond)

    def _embed(self, net, time_cond, log_time_cond):
        """The time embedding [B, 4 nf], or None where the network is not conditional."""
        if self.embedding_type == "fourier":
            project = layers.GaussianFourierProjection(self.nf, self.fourier_scale, name=net.name())
            temb, width = project(jnp.log(time_cond) if log_time_cond is None else log_time_cond), self.nf
        else:
            width = self.embedding_dim
            temb = layers.positional_embedding(time_cond, width)
        if not self.conditional:
            return None
        temb = layers.dense(4 * width, net.name(), None)(temb)
        return layers.dense(4 * width, net.name(), None)(net.act(temb))

    def _down(self, net, h, pyramid, temb, train):
        """To half the size, with the input pyramid joined."""
        if self.resblock_type == "ddpm":
            h = net.resample(layers.Downsample, h.shape[-1] if self.resamp_with_conv else None)(h)
        elif self.auxiliary_resblock:
            h = net.block(h.shape[-1], "down")(h, temb, train)
        if self.progressive_input == "input_skip":
            pyramid = layers.Downsample(self.fir, self.fir_kernel)(pyramid)
            h = layers.Combine(self.progressive_combine, self.dtype, name=net.name())(pyramid, h)
        elif self.progressive_input == "residual":
            pyramid = net.resample(layers.Downsample, h.shape[-1])(pyramid)
            h = pyramid = layers.merge(pyramid, h, self.skip_rescale)
        return h, pyramid

    def _up(self, net, h, temb, train):
        """To twice the size."""
        if self.resblock_type == "ddpm":
            return net.resample(layers.Upsample, h.shape[-1] if self.resamp_with_conv else None)(h)
        return net.block(h.shape[-1], "up")(h, temb, train) if self.auxiliary_resblock else h

    def _progress(self, net, h, pyramid, channels: int):
        """The output pyramid with what this level adds; None without one."""
        if self.progressive == "output_skip":
            new = net.normed_conv(h, channels, self.init_scale)
            if pyramid is not None:
                new = layers.Upsample(self.fir, self.fir_kernel)(pyramid) + new
            return h, new
        if self.progressive == "residual":
            if pyramid is None:
                return h, net.normed_conv(h, h.shape[-1])
            pyramid = net.resample(layers.Upsample, h.shape[-1])(pyramid)
            pyramid = layers.merge(pyramid, h, self.skip_rescale)
            return pyramid, pyramid
        return h, None

    def _scale(self, h, time_cond):
        """The output over σ, which is the time conditioning itself, or of a discrete network its level."""
        if not self.scale_by_sigma:
            return h
        sigma = time_cond
        if self.embedding_type == "positional":
            log_sigmas = np.linspace(np.log(self.sigma_max), np.log(self.sigma_min), self.num_scales)
            sigma = jnp.asarray(np.exp(log_sigmas), h.dtype)[time_cond.astype(jnp.int32)]
        return h / sigma[:, None, None, None]


class _Modules:
    """Makes the submodules of an NCSNpp, numbered in the order of making."""

    def __init__(self, net: NCSNpp):
        self.net, self.act, self.next = net, ACTIVATIONS[net.nonlinearity], 0

    def name(self) -> str:
        self.next += 1
        return f"all_modules_{self.next - 1}"

    skip = name  # a module without parameters

    def conv(self, features: int, init_scale: float = 1.0):
        return layers.conv(features, 3, self.name(), self.net.dtype, init_scale)

    def normed_conv(self, h, features: int, init_scale: float = 1.0):
        h = layers.group_norm(h.shape[-1], self.name(), self.net.dtype)(h)
        return self.conv(features, init_scale)(self.act(h))

    def block(self, features: int, resample: str = ""):
        net, kind = self.net, layers.ResnetBlock
        if net.remat != "none":
            kind = nn.remat(kind, static_argnums=3, policy=REMAT[net.remat])
        block = kind(
            self.act,
            features,
            net.dropout,
            net.skip_rescale,
            net.init_scale,
            net.resblock_type == "biggan",
            net.fir,
            net.fir_kernel,
            resample,
            net.dtype,
            name=self.name(),
        )
        return block

    def resample(self, kind, features: int | None):
        return kind(self.net.fir, self.net.fir_kernel, features, self.net.dtype, name=self.name())

    def attention(self):
        return layers.AttnBlockpp(self.net.skip_rescale, self.net.init_scale, self.net.dtype, name=self.name())

    def attend(self, h: jax.Array):
        if self.net.attention and h.shape[1] in self.net.attn_resolutions:
            return self.attention()(h)
        return h
