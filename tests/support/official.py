"""Networks of the official code with their weights and outputs, from `fixtures/family_*.npz`, and its float32 SDEs."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st import config
from score_st.diffusion import sde
from score_st.model import DiffusionModel
from score_st.pytorch import parameter_map

FIXTURES = Path(__file__).parents[1] / "fixtures"
# as the official configurations have them
SDES = {
    "vpsde_1e-5": sde.VP(),
    "subvpsde": sde.SubVP(),
    "vesde_celeba": sde.VE(sigma_min=0.01, sigma_max=90.0),
    "rve_cifar10": sde.RVE(sigma_min=1e-3, sigma_max=50.0, eta=1e-3),
    "rve_eta_ne_sigmamin": sde.RVE(sigma_min=0.01, sigma_max=50.0, eta=1e-3),
}


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
    exp = DiffusionModel.from_config(made)
    template = exp.abstract_params
    tensors = [file[f"param/{slot.name}"] for slot in parameter_map.layout(template)]
    params = jax.tree.map(jnp.asarray, parameter_map.to_flax(parameter_map.layout(template), tensors, template))
    arrays = {key: nhwc(file[key]) for key in file.files if key != "config" and not key.startswith("param/")}
    return made, exp, params, arrays


def nhwc(a):
    return a.transpose(0, 2, 3, 1) if a.ndim == 4 else a


def relative_error(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))


@dataclasses.dataclass(frozen=True)
class OfficialVP(sde.VP):
    """With the official float32 expressions, whose rounding at small t the official losses contain."""

    def sigma(self, t):
        return jnp.sqrt(1 - jnp.exp(-self.integral_beta(t)))

    def log_alpha(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min


@dataclasses.dataclass(frozen=True)
class OfficialRVE(sde.RVE):
    """With the official float32 power in g², up to 0.3 % off, and σ in float64 where that is enabled."""

    def sigma(self, t):
        return super().sigma(t.astype(jax.dtypes.canonicalize_dtype(np.float64))).astype(t.dtype)

    def diffusion2(self, t):
        base = math.exp(self._log_b)
        return -2 * (self.sigma_max / base) ** 2 * self._log_b * jnp.float32(base) ** (2 / t) / t**2


def importance_weight(diffusion, tau: float):
    """Z(τ) as officially computed in float32, which at τ = 1e-5 puts it 0.25 % off."""
    if np.float32(tau) == np.float32(1e-5):  # where the last bit of PyTorch's exp matters
        return np.load(FIXTURES / "sde.npz")["vpsde_1e-5/diffusion_time_is1/Z"][0]

    def growth(t):
        t = np.float32(t)
        b = np.float32(0.5) * t**2 * np.float32(diffusion.beta_max - diffusion.beta_min) + t * np.float32(0.1)
        return np.log(np.float32(1) - np.exp(-b)) + b

    return growth(1.0) - growth(tau)
