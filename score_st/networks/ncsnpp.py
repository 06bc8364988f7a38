"""NCSN++ and DDPM++ (Song et al. 2021), one U-Net with options.

UNCSN++ and UDDPM++ (Kim et al. 2022) are the same networks with another time conditioning.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from score_st.array_types import Array, Float, Int
from score_st.config import ConfigError
from score_st.networks import layers
from score_st.networks.network import REMAT

ACTIVATIONS: dict[str, Callable] = {
    "swish": nn.swish,
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": functools.partial(nn.leaky_relu, negative_slope=0.2),
}
MOST_PARAMETERS = 10**12  # of a network that is built


class NCSNpp(nn.Module):
    """A U-Net with len(ch_mult) resolutions.

    The fields have the names and meanings of `config.model`. The submodule `all_modules_i` is the i-th of the official
    network's list, so that a checkpoint maps by name. `sigma_min`, `sigma_max` and `num_scales` matter only for
    scale_by_sigma with a positional embedding.
    """

    FIXED_PARAMS: ClassVar[frozenset[str]] = frozenset({"all_modules_0/W"})  # frequencies of the Fourier embedding

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
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    num_classes: int = 0
    class_dropout: float = 0.0
    num_groups: int = 0
    diffusers_groups: bool = False
    attention_each: bool = False

    def least_numbers(self, height: int, width: int) -> int:
        """How many numbers an image has in the network at once, at least: the skips at full resolution."""
        return height * width * self.nf * (1 + self.num_res_blocks * self.ch_mult[0])

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time_cond: Float[Array, " B"],
        train: bool = False,
        log_time_cond: Float[Array, " B"] | None = None,
        labels: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """The output, in the type of `x`; see `Network`.

        Args:
          x: noisy images.
          time_cond: 999 t or σ.
          train: use dropout, with random numbers from the "dropout" key.
          log_time_cond: for the Gaussian Fourier embedding, in place of log(time_cond).
          labels: classes 0 ... num_classes - 1, -1 for none; None for none at all.
        """
        net = _Submodules(self)
        temb = self._embed(net, time_cond, log_time_cond, labels, train)
        image, dtype = x if self.centered else 2 * x - 1, x.dtype
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
        output_pyramid: Any = None
        for level in reversed(levels):
            for _ in range(self.num_res_blocks + self.auxiliary_resblock):
                first = self._first_groups(h, skips[-1])
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = net.block(self.nf * self.ch_mult[level], first_groups=first)(h, temb, train)
                h = net.attend(h) if self.attention_each else h
            h = h if self.attention_each else net.attend(h)
            h, output_pyramid = self._progress(net, h, output_pyramid, x.shape[-1])
            if level != 0:
                h = self._up(net, h, temb, train)
        h = output_pyramid if self.progressive == "output_skip" else net.normed_conv(h, x.shape[-1], self.init_scale)
        return self._scale(h.astype(dtype), time_cond)

    def attends(self, size: int) -> bool:
        """Whether there is self-attention at this size of the image."""
        return self.attention and size in self.attn_resolutions

    def _first_groups(self, h: Array, skip: Array) -> int:
        """The groups of the first normalization of a block on the way up, which joins `h` and `skip`."""
        if self.diffusers_groups and self.attends(h.shape[1]):
            return min(h.shape[-1] + skip.shape[-1] // 4, 32)
        return self.num_groups

    def _embed(
        self,
        net: "_Submodules",
        time_cond: Array,
        log_time_cond: Array | None,
        labels: Array | None,
        train: bool,
    ) -> Array | None:
        """The time embedding [B, 4 width], or None if the network is not conditional."""
        if self.embedding_type == "fourier":
            project = layers.GaussianFourierProjection(self.nf, self.fourier_scale, name=net.name())
            temb, width = project(jnp.log(time_cond) if log_time_cond is None else log_time_cond), self.nf
        else:
            width = self.embedding_dim
            temb = layers.positional_embedding(time_cond, width)
        if not self.conditional:
            return None
        if self.num_classes:
            labels = jnp.full(len(time_cond), -1) if labels is None else labels
            classes = layers.ClassEmbedding(self.num_classes, self.class_dropout, temb.shape[-1], name=net.name())
            temb += classes(labels, temb.dtype, train)
        temb = layers.dense(4 * width, net.name(), None)(temb)
        return layers.dense(4 * width, net.name(), None)(net.act(temb))

    def _down(
        self, net: "_Submodules", h: Array, pyramid: Array, temb: Array | None, train: bool
    ) -> tuple[Array, Array]:
        """Halves the size of `h` and of the input pyramid, and merges the pyramid into `h`."""
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

    def _up(self, net: "_Submodules", h: Array, temb: Array | None, train: bool) -> Array:
        """Doubles the size of `h`."""
        if self.resblock_type == "ddpm":
            return net.resample(layers.Upsample, h.shape[-1] if self.resamp_with_conv else None)(h)
        return net.block(h.shape[-1], "up")(h, temb, train) if self.auxiliary_resblock else h

    def _progress(self, net: "_Submodules", h: Array, pyramid: Array | None, channels: int) -> tuple[Array, Any]:
        """`h`, and the output pyramid with this level's contribution (None without a pyramid)."""
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

    def _scale(self, h: Array, time_cond: Array) -> Array:
        """The output divided by σ, if scale_by_sigma.

        σ is the time conditioning itself, or with a positional embedding the noise level of that number.
        """
        if not self.scale_by_sigma:
            return h
        sigma = time_cond
        if self.embedding_type == "positional":
            log_sigmas = np.linspace(np.log(self.sigma_max), np.log(self.sigma_min), self.num_scales)
            sigma = jnp.asarray(np.exp(log_sigmas), h.dtype)[time_cond.astype(jnp.int32)]
        return h / sigma[:, None, None, None]


class _Submodules:
    """Builds the submodules of an NCSNpp, and numbers them in the order in which they are built."""

    def __init__(self, net: NCSNpp) -> None:
        self.net, self.act, self.next = net, ACTIVATIONS[net.nonlinearity], 0

    def name(self) -> str:
        self.next += 1
        return f"all_modules_{self.next - 1}"

    skip = name  # the official list has a module without parameters here

    def conv(self, features: int, init_scale: float = 1.0) -> nn.Conv:
        return layers.conv(features, 3, self.name(), self.net.dtype, init_scale)

    def normed_conv(self, h: Array, features: int, init_scale: float = 1.0) -> Array:
        h = layers.group_norm(h.shape[-1], self.name(), self.net.dtype, self.net.num_groups)(h)
        return self.conv(features, init_scale)(self.act(h))

    def block(self, features: int, resample: str = "", first_groups: int | None = None) -> nn.Module:
        net, block = self.net, layers.ResnetBlock
        if net.remat != "none":
            block = nn.remat(block, static_argnums=3, policy=REMAT[net.remat])
        return block(
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
            (net.num_groups if first_groups is None else first_groups, net.num_groups),
            name=self.name(),
        )

    def resample(
        self, layer: type[layers.Upsample] | type[layers.Downsample], features: int | None
    ) -> layers.Upsample | layers.Downsample:
        return layer(self.net.fir, self.net.fir_kernel, features, self.net.dtype, name=self.name())

    def attention(self, groups: int | None = None) -> layers.AttnBlockpp:
        net = self.net
        groups = net.num_groups if groups is None else groups
        return layers.AttnBlockpp(net.skip_rescale, net.init_scale, net.dtype, groups, name=self.name())

    def attend(self, h: Array) -> Array:
        """`h` after self-attention, if there is any at its resolution."""
        if self.net.attends(h.shape[1]):
            return self.attention(32 if self.net.diffusers_groups else None)(h)
        return h


def normalized_widths(model: ConfigDict) -> set[int]:
    """The numbers of channels that pass through a group normalization, in units of nf, in the order of the blocks."""
    last, seen = len(model.ch_mult) - 1, set()
    h, skips = 1, [1]
    for level, mult in enumerate(model.ch_mult):
        for _ in range(model.num_res_blocks):
            seen |= {h, h := mult}
            skips.append(h)
        if level != last:
            h *= 2 if model.progressive_input == "input_skip" and model.progressive_combine == "cat" else 1
            skips += [h] * model.auxiliary_resblock
    if not model.auxiliary_resblock:
        skips.pop()
    seen.add(h)
    for mult in reversed(model.ch_mult):
        for _ in range(model.num_res_blocks + model.auxiliary_resblock):
            seen |= {h + skips.pop(), h := mult}
    return seen


def least_parameters(model: ConfigDict) -> int:
    """How many parameters a network has at least: those of some of its convolutions and of its time embedding.

    These are the last 3x3 convolutions of the residual blocks on the way down and up, and its second dense layer.
    """
    width = model.embedding_dim if model.lsgm and model.embedding_type == "positional" else model.nf
    convolutions = 2 * 9 * sum((model.nf * mult) ** 2 for mult in model.ch_mult) * model.num_res_blocks
    return convolutions + 16 * width**2 * model.conditional


def _check_channels(model: ConfigDict) -> None:
    """Raises ConfigError unless channels can be normalized in groups, and the network has a size that can be built."""
    multiples = normalized_widths(model)
    count = lambda channels: model.num_groups or layers.groups(channels)
    fits = lambda nf: all((model.num_groups or nf * n >= 4) and nf * n % count(nf * n) == 0 for n in multiples)
    if not fits(model.nf):
        larger = next(filter(fits, itertools.count(model.nf)))  # 128 and its multiples do, or those of num_groups
        raise ConfigError(
            f"config.model.nf={model.nf}: the channels, {sorted(multiples)} times nf with model.ch_mult, can't be "
            f"normalized in groups; {larger} would do"
        )
    if (parameters := least_parameters(model)) > MOST_PARAMETERS:
        key = max((model.nf, "nf"), (model.embedding_dim * model.lsgm, "embedding_dim"))[1]
        raise ConfigError(
            f"config.model.{key}={model[key]}: the network would have more than {parameters:.1e} parameters, and take "
            f"{parameters * 4e-12:,.0f} TB without its training; at most {MOST_PARAMETERS:.0e} can be built"
        )


def from_config(config: ConfigDict) -> NCSNpp:
    """NCSN++ or DDPM++ with the settings of `config.model`.

    Raises:
      ConfigError: a setting is unknown, or there is no such network.
    """
    model, image_size, levels = config.model, config.data.image_size, len(config.model.ch_mult)
    factor = 2 ** (levels - 1)
    if image_size < factor or image_size % factor:
        nearest, most = max(round(image_size / factor), 1) * factor, (image_size & -image_size).bit_length()
        ways = [f"framing the images to {-(-image_size // factor) * factor}"]
        ways += [f"cropping them to {image_size // factor * factor}"] if image_size > factor else []
        fits = tuple(model.ch_mult[:most])
        raise ConfigError(
            f"config.data.image_size={image_size}: {levels} resolutions (model.ch_mult) halve it {levels - 1} times, "
            f"so it should be a multiple of {factor}, such as {nearest}; {', '.join(ways)}, "
            f"or model.ch_mult={fits} would do"
        )
    no_pyramids = model.progressive == model.progressive_input == "none"
    if not model.auxiliary_resblock and not (model.resblock_type == "biggan" and no_pyramids):
        raise ConfigError(
            "config.model.auxiliary_resblock=False: needs resblock_type=biggan and no progressive pyramids"
        )
    if model.num_classes and not model.conditional:
        raise ConfigError(
            f"config.model.num_classes={model.num_classes}: conditional=False has no embedding; should be True"
        )
    _check_channels(model)
    return build(config)


def build(config: ConfigDict) -> NCSNpp:
    """As `from_config`, without its checks."""
    model = config.model
    fields = {field.name for field in dataclasses.fields(NCSNpp)} - {"name", "parent"}
    settings = {key: value for key, value in model.items() if key in fields}
    if not model.lsgm:
        settings["embedding_dim"] = model.nf
    return NCSNpp(**settings, centered=config.data.centered or not model.center_input)
