"""The submodules of our NCSN++ in their order, each by what it is for, so that other code's names map onto ours."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import Float
from score_st.config import ConfigError

Tensors = Mapping[str, Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A submodule.

    Attributes:
      kind: block, attention, dense, conv, norm, fourier, classes, or merge (the 1x1 convolution of an input pyramid).
      place: "in", "down", "resample_down", "middle", "up", "resample_up", "pyramid" or "out".
      level: of the resolution, 0 being the full one; 0 where there is none.
      number: among those of the same kind, place and level.
    """

    kind: str
    place: str
    level: int = 0
    number: int = 0


def parts(config: ConfigDict) -> Iterator[Part]:
    """Yields the submodules of `config`'s network in the order of `all_modules`.

    It knows what networks of other packages need: an embedding of the time, and no output pyramid but output_skip.
    """
    model, size, last = config.model, config.data.image_size, len(config.model.ch_mult) - 1
    attends = lambda level: model.attention and size // 2**level in model.attn_resolutions
    biggan = model.resblock_type == "biggan"
    if model.embedding_type == "fourier":
        yield Part("fourier", "in")
    if model.num_classes:
        yield Part("classes", "in")
    yield from (Part("dense", "in", 0, 0), Part("dense", "in", 0, 1), Part("conv", "in"))
    for level in range(last + 1):
        for index in range(model.num_res_blocks):
            yield Part("block", "down", level, index)
            if attends(level):
                yield Part("attention", "down", level, index)
        if level != last:
            if biggan or model.resamp_with_conv:
                yield Part("block" if biggan else "conv", "resample_down", level)
            if model.progressive_input != "none":
                yield Part("merge" if model.progressive_input == "input_skip" else "conv", "pyramid", level)
    yield from (Part("block", "middle", last, 0), Part("attention", "middle", last), Part("block", "middle", last, 1))
    for level in range(last, -1, -1):
        for index in range(model.num_res_blocks + 1):
            yield Part("block", "up", level, index)
            if attends(level) and (model.attention_each or index == model.num_res_blocks):
                yield Part("attention", "up", level, index if model.attention_each else 0)
        if model.progressive == "output_skip":
            yield from (Part("norm", "out", level), Part("conv", "out", level))
        if level and (biggan or model.resamp_with_conv):
            yield Part("block" if biggan else "conv", "resample_up", level)
    if model.progressive != "output_skip":
        yield from (Part("norm", "out"), Part("conv", "out"))


class Foreign(NamedTuple):
    """A network of another package, as its file has it.

    Attributes:
      kind: what it is, for messages.
      settings: of our configuration, by dotted key, where they are not the default.
      tensors: by their names there.
      name_of: (part, leaf) -> the tensor there that is leaf "Conv_0.weight", for instance, of our part, and which of
        its first axis.
      ignored: whether a tensor there is not needed.
      notes: lines about what is not in the configuration.
    """

    kind: str
    settings: dict[str, Any]
    tensors: Tensors
    name_of: Callable[[Part, str], tuple[str, slice]]
    ignored: Callable[[str], bool]
    notes: tuple[str, ...] = ()


def per_pixel(tensor: Float[np.ndarray, "..."], name: str) -> Float[np.ndarray, "C D"]:
    """The weight [in, out] of a NIN, from a 1x1 convolution [out, in, 1, 1] or a linear layer [out, in]."""
    if tensor.ndim not in (2, 4) or tensor.shape[2:] not in ((), (1, 1)):
        raise ConfigError(f"{name[:80]} should be [out, in] or [out, in, 1, 1], and is {list(tensor.shape)[:8]}")
    return tensor.reshape(tensor.shape[:2]).T


def renamed(config: ConfigDict, names: Iterable[str], network: Foreign) -> dict[str, Float[np.ndarray, "..."]]:
    """The tensors of a foreign network by our PyTorch names.

    Args:
      config: all keys, of the same network in ours.
      names: of our tensors.
      network: in the other package.

    Raises:
      ConfigError: a tensor is missing or surplus.
    """
    order, found, used = list(parts(config)), {}, set()
    for name in names:
        _, index, *leaf = name.split(".")
        theirs, rows = network.name_of(order[int(index)], ".".join(leaf))
        if theirs not in network.tensors:
            raise ConfigError(f"{theirs[:80]} is missing, which {network.kind} of these options has")
        used.add(theirs)
        tensor = network.tensors[theirs][rows]
        found[name] = per_pixel(tensor, theirs) if leaf[-1] == "W" and leaf[0] != "W" else tensor
    for theirs in network.tensors:
        if theirs not in used and not network.ignored(theirs):
            raise ConfigError(f"{theirs[:80]} is surplus: {network.kind} of these options has no such tensor")
    return found
