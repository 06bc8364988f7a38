"""The parameters of the networks as PyTorch names, shapes and orders them.

Submodules have the names of the official code here too, so that a tensor's place follows from its name.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_st import networks
from score_st.config import ConfigError, flatten
from score_st.networks.ncsnpp import NCSNpp

Shapes = dict[str, tuple[int, ...]]

# of a module, in the order in which PyTorch lists what it holds
ORDER = ("GroupNorm_0", "Conv2d_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2", "NIN_0", "NIN_1", "NIN_2")
ORDER += ("NIN_3", "W", "weight", "b", "bias")
LEAVES = {"kernel": "weight", "scale": "weight"}
AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # of a kernel: from ours to PyTorch's


class Slot(NamedTuple):
    """A parameter of the network.

    Attributes:
      name: in PyTorch, without the leading "module.".
      shape: in PyTorch.
      axes: which of our axes each of PyTorch's is.
      leaf: its index among the leaves of the Flax parameters.
      trainable: False for fixed frequencies, which neither the EMA nor the optimiser know.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    leaf: int
    trainable: bool


def layout(params) -> list[Slot]:
    """The parameters of a network (arrays or ShapeDtypeStructs) in PyTorch's order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)

    def slot(leaf: int) -> Slot:
        path, value = leaves[leaf]
        first, *rest, last = keys = [key.key for key in path]
        name = ".".join([first.replace("all_modules_", "all_modules."), *rest, LEAVES.get(last, last)])
        axes = AXES[value.ndim] if last == "kernel" else tuple(range(value.ndim))
        return Slot(name, tuple(value.shape[a] for a in axes), axes, leaf, "/".join(keys) not in NCSNpp.FIXED_PARAMS)

    def order(slot: Slot):
        _, index, *parts = slot.name.split(".")
        return int(index), [ORDER.index(part) for part in parts]

    return sorted(map(slot, range(len(leaves))), key=order)


def to_flax(slots: list[Slot], tensors: Sequence[np.ndarray], params):
    """A tree like `params` from tensors in the order of the slots."""
    leaves: list[Any] = [None] * len(slots)
    for slot, tensor in zip(slots, tensors, strict=True):
        leaves[slot.leaf] = np.asarray(tensor.transpose(np.argsort(slot.axes)), np.float32)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def from_flax(slots: list[Slot], params) -> list[np.ndarray]:
    leaves = jax.tree.leaves(params)
    return [np.asarray(leaves[slot.leaf]).transpose(slot.axes) for slot in slots]


# values to try where the file's network is another one, the likely ones first
ALTERNATIVES = {
    "model.num_res_blocks": (1, 2, 4, 8, 3, 5, 6, 7),
    "model.ch_mult": ((1, 2, 2, 2), (1, 1, 1), (1, 1, 2, 2), (1, 2), (1, 2, 2), (1, 1, 2, 2, 2, 2, 2)),
    "model.attn_resolutions": ((16,), (8,), (32,), (4,), (16, 8), ()),
    "model.attention": (True, False),
    "model.progressive_input": ("none", "residual", "input_skip"),
    "model.progressive": ("none", "output_skip", "residual"),
    "model.progressive_combine": ("sum", "cat"),
    "model.auxiliary_resblock": (True, False),
    "model.fourier_feature": (True, False),
    "model.conditional": (True, False),
    "model.resblock_type": ("biggan", "ddpm"),
    "model.fir": (True, False),
    "model.resamp_with_conv": (True, False),
    "model.lsgm": (True, False),
}


def check(config, wanted: Shapes, found: Shapes):
    """Raises ConfigError, naming the first tensor that is missing, surplus or of another shape, unless all fit.

    Args:
      wanted: of the configuration's network, by PyTorch name.
      found: in the file.
    """
    wrong = [name for name in (wanted | found) if wanted.get(name) != found.get(name)]
    if not wrong:
        return
    wrong.sort(key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")])
    name = wrong[0]
    if name not in found:
        what = f"is missing, and should be {list(wanted[name])}"
    elif name not in wanted:
        what = f"{list(found[name])} is surplus"
    else:
        what = f"is {list(found[name])}, and should be {list(wanted[name])}"
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise ConfigError(
        f"{name[:80]} of {module(name, wanted | found)} {what}{more}; {_explain(config, found, len(wrong))}"
    )


def module(name: str, shapes: Shapes) -> str:
    """The official class of the module that holds a tensor, by what else it holds."""
    prefix = re.match(r"all_modules\.\d+\.", name)
    if not prefix:
        return "no known module"
    parts = {other.removeprefix(prefix[0]): shape for other, shape in shapes.items() if other.startswith(prefix[0])}
    heads = {part.split(".")[0] for part in parts}
    if "GroupNorm_1" in heads:
        return "a residual block"
    if "NIN_3" in heads:
        return "an attention block (AttnBlockpp)"
    if "W" in heads:
        return "the Gaussian Fourier embedding"
    if heads & {"Conv2d_0", "Conv_0"}:
        return "a resampling layer or a joint of the input pyramid"
    kinds = {1: "a group normalisation", 2: "a dense layer of the time embedding", 4: "a convolution"}
    return kinds.get(len(parts.get("weight", ())), "no known module")


def shapes_of(config) -> Shapes:
    """Of the parameters of the configuration's network, by PyTorch name."""
    shape = (1, config.data.image_size, config.data.image_size, config.data.num_channels)
    params = jax.eval_shape(networks.from_config(config).init, jax.random.key(0), jnp.zeros(shape), jnp.ones(1))
    return {slot.name: slot.shape for slot in layout(params["params"])}


def _misfits(config, changes: dict, found: Shapes) -> int:
    """How many tensors of the file are not those of the configuration with some keys changed."""
    config = config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    try:
        shapes = shapes_of(config)
    except (ConfigError, ValueError, TypeError, ZeroDivisionError):  # no such network
        shapes = {}
    return sum(shapes.get(name) != found.get(name) for name in shapes | found)


def _explain(config, found: Shapes, wrong: int) -> str:
    """Which settings would make the network the file's, looked for by changing one after the other."""
    convs = [name for name in found if re.fullmatch(r"all_modules\.\d+\.weight", name) and len(found[name]) == 4]
    first = min(convs, key=lambda name: int(name.split(".")[1]), default=None)
    features, channels = found[first][:2] if first else (config.model.nf, config.data.num_channels)
    changes = {}
    embedding = "fourier" if "all_modules.0.W" in found else "positional"
    seen = {"model.nf": features, "data.num_channels": channels, "model.embedding_type": embedding}
    for trials in (*({key: (value,)} for key, value in seen.items()), ALTERNATIVES, ALTERNATIVES):
        if trials is ALTERNATIVES and wrong <= 3:  # a few tensors are no matter of settings
            break
        best = changes
        for key, value in ((key, value) for key, values in trials.items() for value in values):
            if key in changes or flatten(config)[key] == value:
                continue
            left = _misfits(config, changes | {key: value}, found)
            if left < wrong:
                wrong, best = left, changes | {key: value}
            if not left:
                break
        changes = best
    flags = " ".join(f"--config.{key}={value}".replace(" ", "") for key, value in changes.items())
    if not changes:
        return "no single setting explains it: the file is incomplete, or of another network"
    return f"{flags} would fit" + (f" all but {wrong}" if wrong else "")
