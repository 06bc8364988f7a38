"""The parameters of NCSN++ as PyTorch names, shapes and orders them.

Submodules have the names of the official code here too, so that a tensor's place follows from its name.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st import networks
from score_st.array_types import Float
from score_st.config import ConfigError, flatten
from score_st.networks.ncsnpp import NCSNpp

Shapes = dict[str, tuple[int, ...]]

# the order in which PyTorch lists the contents of a module
ORDER = (
    *("GroupNorm_0", "Conv2d_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2"),
    *("NIN_0", "NIN_1", "NIN_2", "NIN_3", "W", "weight", "b", "bias"),
)
LEAF_NAMES = {"kernel": "weight", "scale": "weight"}  # those that differ
KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # by number of axes: the transpose that makes a kernel PyTorch's


class Slot(NamedTuple):
    """A parameter of the network, and its place in both packages.

    Attributes:
      name: in PyTorch, without the leading "module.".
      shape: in PyTorch.
      axes: the transpose from Flax to PyTorch.
      leaf: its index among the leaves of the Flax parameters.
      trainable: False for fixed frequencies, which the official EMA and optimizer leave out.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    leaf: int
    trainable: bool


def layout(params: Any) -> list[Slot]:
    """The parameters of an NCSN++ (arrays or ShapeDtypeStructs) in PyTorch's order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)

    def slot(leaf: int) -> Slot:
        path, value = leaves[leaf]
        first, *rest, last = keys = [key.key for key in path]
        name = ".".join([first.replace("all_modules_", "all_modules."), *rest, LEAF_NAMES.get(last, last)])
        axes = KERNEL_AXES[value.ndim] if last == "kernel" else tuple(range(value.ndim))
        return Slot(name, tuple(value.shape[a] for a in axes), axes, leaf, "/".join(keys) not in NCSNpp.FIXED_PARAMS)

    def order(slot: Slot) -> tuple[int, list[int]]:
        _, index, *parts = slot.name.split(".")
        return int(index), [ORDER.index(part) for part in parts]

    return sorted(map(slot, range(len(leaves))), key=order)


def to_flax(slots: list[Slot], tensors: Sequence[Float[np.ndarray, "..."]], params: Any) -> Any:
    """A float32 tree like `params`, from tensors in the order of the slots."""
    leaves: list[Any] = [None] * len(slots)
    for slot, tensor in zip(slots, tensors, strict=True):
        leaves[slot.leaf] = np.asarray(tensor.transpose(np.argsort(slot.axes)), np.float32)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def from_flax(slots: list[Slot], params: Any) -> list[Float[np.ndarray, "..."]]:
    """The tensors of a tree of parameters, in the order of the slots."""
    leaves = jax.tree.leaves(params)
    return [np.asarray(leaves[slot.leaf]).transpose(slot.axes) for slot in slots]


# values to try where the file has another network than the configuration, the likely ones first
ALTERNATIVES: dict[str, tuple] = {
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


def check(config: ConfigDict, expected: Shapes, actual: Shapes) -> None:
    """Checks that a file has the tensors of the configuration's network.

    Args:
      config: all keys.
      expected: shapes by PyTorch name, of the configuration's network.
      actual: shapes by PyTorch name, of the file.

    Raises:
      ConfigError: a tensor is missing, surplus or of another shape; the message names the first, and settings that
        would fit.
    """
    wrong = [name for name in (expected | actual) if expected.get(name) != actual.get(name)]
    if not wrong:
        return
    wrong.sort(key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")])
    name = wrong[0]
    if name not in actual:
        problem = f"is missing, and should be {list(expected[name])}"
    elif name not in expected:
        problem = f"{list(actual[name])} is surplus"
    else:
        problem = f"is {list(actual[name])}, and should be {list(expected[name])}"
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise ConfigError(
        f"{name[:80]} of {module(name, expected | actual)} {problem}{more}; {_explain(config, actual, len(wrong))}"
    )


def module(name: str, shapes: Shapes) -> str:
    """What kind of module a tensor belongs to, judged by the other tensors of that module."""
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
        return "a layer that resamples or merges the input pyramid"
    by_axes = {1: "a group normalization", 2: "a dense layer of the time embedding", 4: "a convolution"}
    return by_axes.get(len(parts.get("weight", ())), "no known module")


def shapes_of(config: ConfigDict) -> Shapes:
    """The shapes of the parameters of the configuration's network, by PyTorch name."""
    shape = (1, config.data.image_size, config.data.image_size, config.data.num_channels)
    params = jax.eval_shape(networks.from_config(config).init, jax.random.key(0), jnp.zeros(shape), jnp.ones(1))
    return {slot.name: slot.shape for slot in layout(params["params"])}


def _misfits(config: ConfigDict, changes: dict[str, Any], actual: Shapes) -> float:
    """How many tensors differ between the file and the configuration with some keys changed; inf: no such network."""
    config = config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    try:
        shapes = shapes_of(config)
    except Exception:  # Flax and JAX raise many types
        return math.inf
    return sum(shapes.get(name) != actual.get(name) for name in shapes | actual)


def _explain(config: ConfigDict, actual: Shapes, wrong: float) -> str:
    """Which settings would give the network of the file; looked for by changing one setting after the other.

    Args:
      config: all keys.
      actual: shapes by PyTorch name, of the file.
      wrong: how many tensors differ.
    """
    convs = [name for name in actual if re.fullmatch(r"all_modules\.\d+\.weight", name) and len(actual[name]) == 4]
    first = min(convs, key=lambda name: int(name.split(".")[1]), default=None)
    features, channels = actual[first][:2] if first else (config.model.nf, config.data.num_channels)
    embedding = "fourier" if "all_modules.0.W" in actual else "positional"
    visible = {"model.nf": features, "data.num_channels": channels, "model.embedding_type": embedding}
    rounds: list[dict[str, tuple]] = [{key: (value,)} for key, value in visible.items()]
    changes: dict[str, Any] = {}
    for alternatives in (*rounds, ALTERNATIVES, ALTERNATIVES):
        if alternatives is ALTERNATIVES and wrong <= 3:  # no setting changes so few tensors
            break
        best = changes
        for key, value in ((key, value) for key, values in alternatives.items() for value in values):
            if key in changes or flatten(config)[key] == value:
                continue
            misfits = _misfits(config, changes | {key: value}, actual)
            if misfits < wrong:
                wrong, best = misfits, changes | {key: value}
            if not misfits:
                break
        changes = best
    flags = " ".join(f"--config.{key}={value}".replace(" ", "") for key, value in changes.items())
    if not changes:
        return "no single setting explains it: the file is incomplete, or has another network"
    return f"{flags} would fit" + (f" all but {wrong}" if wrong else "")
