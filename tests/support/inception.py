"""Weights for Inception that take no download."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from score_st.evaluation import inception

RNG = np.random.default_rng


def pseudo_random_weights() -> dict:
    """A state dict for Inception, each tensor a function of its name."""
    spread = {"weight": (0.8, 1.2), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
    shapes = jax.eval_shape(inception.Network().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))
    state = {}
    draw = lambda name: RNG(zlib.crc32(name.encode()))
    for (*_, layer, kind), leaf in flatten_dict(shapes).items():
        if kind == "bias":
            for part, bounds in spread.items():
                name = f"{layer}.bn.{part}"
                state[name] = draw(name).uniform(*bounds, leaf.shape).astype(np.float32)
            continue
        shape = leaf.shape[::-1] if len(leaf.shape) == 2 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
        name = "fc.weight" if layer == "fc" else f"{layer}.conv.weight"
        scale = (2 / np.prod(shape[1:])) ** 0.5
        state[name] = draw(name).standard_normal(shape, np.float32) * np.float32(scale)
    return state | {"fc.bias": draw("fc.bias").uniform(-1, 1, 1008).astype(np.float32)}
