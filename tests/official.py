"""Networks of the official code with their weights and outputs, from `fixtures/family_*.npz`."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st import config, experiment

FIXTURES = Path(__file__).parent / "fixtures"


def params_from_torch(tensors: dict[str, np.ndarray], template):
    """Flax parameters like `template` from tensors by their PyTorch names; every tensor is used once."""
    leaf = {"kernel": "weight", "scale": "weight"}
    left = dict(tensors)

    def take(path, like):
        *modules, last = (key.key for key in path)
        module = ".".join([modules[0].replace("all_modules_", "all_modules."), *modules[1:]])
        value = left.pop(f"{module}.{leaf.get(last, last)}")
        if last == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        assert value.shape == like.shape, path
        return jnp.asarray(value)

    params = jax.tree_util.tree_map_with_path(take, template)
    assert not left, f"not used: {list(left)}"
    return params


@functools.cache
def family(name: str):
    """Configuration, experiment, parameters and arrays (images as [B, H, W, C]) of family a, c or g."""
    file = np.load(FIXTURES / f"family_{name}.npz")
    made = config.default()
    known = config.flatten(made)
    for section, values in json.loads(str(file["config"])).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if f"{section}.{key}" in known:
                made[section][key] = tuple(value) if isinstance(value, list) else value
    exp = experiment.from_config(made)
    tensors = {key.removeprefix("param/"): file[key] for key in file.files if key.startswith("param/")}
    params = params_from_torch(tensors, exp.abstract_state.params)
    arrays = {key: nhwc(file[key]) for key in file.files if key != "config" and not key.startswith("param/")}
    return made, exp, params, arrays


def nhwc(a):
    return a.transpose(0, 2, 3, 1) if a.ndim == 4 else a


def relative_error(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))
