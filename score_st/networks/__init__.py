"""Networks, as Flax modules."""

import flax.linen as nn
import jax

from score_st.config import ConfigError, choose
from score_st.networks.ncsnpp import ACTIVATIONS, NCSNpp

CHOICES = {
    "embedding_type": ("fourier", "positional"),
    "nonlinearity": tuple(ACTIVATIONS),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
}


def ncsnpp(config) -> NCSNpp:
    """NCSN++ or DDPM++ from config.model; raises ConfigError for settings that make no network."""
    model = config.model
    for key, choices in CHOICES.items():
        choose(dict.fromkeys(choices), model[key], f"model.{key}")
    if model.nf < 4 or not model.ch_mult:
        raise ConfigError(
            f"config.model.nf={model.nf}, ch_mult={model.ch_mult}: should be 4 or more, and one at least"
        )
    size, by = config.data.image_size, 2 ** (len(model.ch_mult) - 1)
    if size < by or size % by:
        near = max(round(size / by), 1) * by
        raise ConfigError(
            f"config.data.image_size={size}: {len(model.ch_mult)} resolutions (model.ch_mult) halve it "
            f"{len(model.ch_mult) - 1} times, so it should be a multiple of {by}, such as {near}"
        )
    plain = model.resblock_type == "biggan" and model.progressive == model.progressive_input == "none"
    if not model.auxiliary_resblock and not plain:
        raise ConfigError(
            "config.model.auxiliary_resblock=False: needs resblock_type=biggan and no progressive pyramids"
        )
    skipped = ("name", "parametrization", "ema_rate", "beta_min", "beta_max", "lsgm")
    options = {key: value for key, value in model.items() if key not in skipped}
    if not model.lsgm:
        options["embedding_dim"] = model.nf
    return NCSNpp(**options, centered=config.data.centered)


def trainable(params):
    """A tree of bools like `params`: False for the fixed frequencies of a Gaussian Fourier embedding."""
    fixed = "['all_modules_0']['W']"
    return jax.tree_util.tree_map_with_path(lambda path, _: fixed not in jax.tree_util.keystr(path), params)


MODELS = {"ncsnpp": ncsnpp}


def from_config(config) -> nn.Module:
    """The network that config.model.name names."""
    return choose(MODELS, config.model.name, "model.name")(config)
