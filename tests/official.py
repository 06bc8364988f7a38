"""Networks of the official code with their weights and outputs, from `fixtures/family_*.npz`."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st import config, experiment, torch_layout

FIXTURES = Path(__file__).parent / "fixtures"


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
    template = exp.abstract_state.params
    tensors = [file[f"param/{slot.name}"] for slot in torch_layout.layout(template)]
    params = jax.tree.map(jnp.asarray, torch_layout.to_flax(torch_layout.layout(template), tensors, template))
    arrays = {key: nhwc(file[key]) for key in file.files if key != "config" and not key.startswith("param/")}
    return made, exp, params, arrays


def nhwc(a):
    return a.transpose(0, 2, 3, 1) if a.ndim == 4 else a


def relative_error(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))
