"""Numbers of the official code: networks with weights and outputs, a checkpoint, and its SDEs in float32.

`fixtures/family_*.npz` have networks of the official code. It saved `fixtures/official.pth` and `official_legacy.pth`
after three of its training steps, with a DDPM++ of 4 channels. `official_steps.npz` has what that network computes,
and the next three steps with their random numbers.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st import config
from score_st.diffusion import sde
from score_st.diffusion.time_sampling import TimeSampler
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.pytorch import parameter_map
from score_st.training.state import TrainState

FIXTURES = Path(__file__).parents[1] / "fixtures"
# as in the official configurations
SDES = {
    "vpsde_1e-5": sde.VP(),
    "subvpsde": sde.SubVP(),
    "vesde_celeba": sde.VE(sigma_min=0.01, sigma_max=90.0),
    "rve_cifar10": sde.RVE(sigma_min=1e-3, sigma_max=50.0, eta=1e-3),
    "rve_eta_ne_sigmamin": sde.RVE(sigma_min=0.01, sigma_max=50.0, eta=1e-3),
}

CHECKPOINT = FIXTURES / "official.pth"
CIFAR10 = "vp/CIFAR10/ddpmpp_nll_st"
# the network of the checkpoint
TINY = {"model.nf": 4, "model.num_res_blocks": 1, "model.ch_mult": (1, 2), "model.attn_resolutions": (4,)}
TINY |= {"data.image_size": 8, "model.dropout": 0.0, "optim.warmup": 5}


def overrides(**more: Any) -> dict[str, str]:
    """TINY and other settings, with __ for the dot."""
    return {key: str(value) for key, value in (TINY | {k.replace("__", "."): v for k, v in more.items()}).items()}


def flags(**more: Any) -> list[str]:
    """The same as options of a command."""
    return [f"--config.{key}={value}" for key, value in overrides(**more).items()]


@functools.cache
def tiny() -> tuple[ConfigDict, DiffusionModel]:
    """The configuration and model of the checkpoint."""
    settings = config.load(CIFAR10, overrides())
    return settings, DiffusionModel.from_config(settings)


def converted(content: Any) -> TrainState:
    """The training state in the content of a file."""
    return torch_checkpoint.state_from_torch(content, *tiny())


cached_content = functools.cache(torch_file.read)


def official_content(function: Callable[[np.ndarray], Any] = lambda a: a) -> Any:
    """The content of the official checkpoint, with `function` applied to each array."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(map(walk, node))
        return function(node) if isinstance(node, np.ndarray) else node

    return walk(cached_content(CHECKPOINT))


def assert_same_content(a: Any, b: Any, path: str = "") -> None:
    """Containers with the same keys in the same order, arrays with the same type and bits."""
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same_content(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_content(x, y, f"{path}/{i}")
    elif isinstance(a, np.ndarray) and "sigmas" in path:  # exp may differ in the last bit between machines
        np.testing.assert_allclose(a, b, rtol=1e-15)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), path
    else:
        assert a == b, path


@functools.cache
def family(name: str) -> tuple[ConfigDict, DiffusionModel, dict, dict[str, np.ndarray]]:
    """Configuration, model, parameters and arrays (images as [B, H, W, C]) of family a, c or g."""
    file = np.load(FIXTURES / f"family_{name}.npz")
    settings = config.default()
    known = config.flatten(settings)
    for section, values in json.loads(str(file["config"])).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if f"{section}.{key}" in known:
                settings[section][key] = tuple(value) if isinstance(value, list) else value
    model = DiffusionModel.from_config(settings)
    slots = parameter_map.layout(model.abstract_params)
    tensors = [file[f"param/{slot.name}"] for slot in slots]
    params = jax.tree.map(jnp.asarray, parameter_map.to_flax(slots, tensors, model.abstract_params))
    arrays = {key: nhwc(file[key]) for key in file.files if key != "config" and not key.startswith("param/")}
    return settings, model, params, arrays


def nhwc(a: np.ndarray) -> np.ndarray:
    """PyTorch's images [B, C, H, W] as [B, H, W, C]; other arrays as they are."""
    return a.transpose(0, 2, 3, 1) if a.ndim == 4 else a


def relative_error(a: Any, b: Any) -> float:
    """The largest difference, divided by the largest of `b`."""
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


@dataclasses.dataclass(frozen=True)
class GivenTimes:
    """A time sampler whose times and weights are given."""

    sampler: TimeSampler
    t: jax.Array
    weight: jax.Array

    @property
    def natural(self):
        return self.sampler.natural

    def __call__(self, sde, tau, u):
        return self.t, self.weight
