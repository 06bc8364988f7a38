"""The weights of a run as a safetensors file, with their configuration in its header, and back; needs safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from score_st import strict_json
from score_st.config import MEANING, ConfigError, as_json, changed, check, default, differences, flatten, to_json
from score_st.model import DiffusionModel
from score_st.runtime import safetensors_files
from score_st.training import optimizer, state

ENDING = ".safetensors"
FORMAT = "score_st"  # of the header


def write(path: Path, params: Any, config: ConfigDict, about: Mapping[str, Any]) -> None:
    """Writes weights; the file appears complete or not at all.

    Args:
      path: of the file.
      params: of the network, as Flax has them; a tensor's name is the path of its module with dots.
      config: all settings.
      about: what else the header says, such as `step` and `weights`.

    Raises:
      ConfigError: it can't be written, or safetensors is not installed.
    """
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in _flat(params).items()}
    header = {"format": FORMAT, "config": to_json(config), **{key: str(value) for key, value in about.items()}}
    safetensors_files.write(path, tensors, header)


def _flat(params: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep=".")


def header(path: Path) -> dict[str, str]:
    """Returns the header of a file that `write` has written.

    Raises:
      ConfigError: it is no such file.
    """
    about = safetensors_files.header(path)
    if about.get("format") != FORMAT or "config" not in about:
        raise ConfigError(
            f"{path}: has no configuration in its header, as `python -m score_st.convert --to` writes it"
        )
    return about


def configuration(path: Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the configuration in a file's header, with other values for some keys as on the command line.

    Raises:
      ConfigError: it is no such file, or has an unknown key or a value out of its range.
    """
    about = header(path)
    try:
        stored = flatten(strict_json.loads(about["config"]))
        config = changed(default(), {key: str(value) for key, value in (stored | dict(overrides or {})).items()})
        check(config)
    except (ValueError, AttributeError, TypeError) as error:  # which a ConfigError is, too
        raise ConfigError(f"{path}: the configuration in its header: {error}") from error
    return config


def read(path: Path, model: DiffusionModel) -> dict[str, Any]:
    """Returns the weights of a file, NumPy arrays in the form of the model's.

    Raises:
      ConfigError: a tensor is missing, surplus, of another shape or type, or not finite.
    """
    expected = _flat(model.abstract_params)
    tensors = safetensors_files.read(path)
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ConfigError(f"{path}: {name} is {'missing' if name in expected else 'surplus'}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            wanted = f"{expected[name].dtype}{list(expected[name].shape)}"
            raise ConfigError(f"{path}: {name} is {tensor.dtype}{list(tensor.shape)}; should be {wanted}")
        if not np.isfinite(tensor).all():
            raise ConfigError(f"{path}: {name} has numbers that are not finite")
    return traverse_util.unflatten_dict(tensors, sep=".")


def check_same(path: Path, config: ConfigDict) -> None:
    """Raises ConfigError if the configuration in a file's header gives the weights another meaning than `config`."""
    old, new = as_json(configuration(path)), as_json(config)
    if differing := differences(old, new, [key for key in sorted(new) if key.startswith(MEANING)]):
        raise ConfigError(f"{path}: was made with {differing}; use that")


def step_of(path: Path) -> int:
    """Returns the step in a file's header, 0 if it has none.

    Raises:
      ConfigError: it is no whole number.
    """
    text = header(path).get("step", "0")
    if not text.isdecimal() or int(text) >= 2**31:
        raise ConfigError(f"{path}: the step in its header is {text[:40]!r}; should be a whole number")
    return int(text)


def training_state(path: Path, config: ConfigDict, model: DiffusionModel) -> state.TrainState:
    """Returns a training state with the weights of a file as parameters and as their average; Adam starts afresh.

    Args:
      path: of the file, whose header has the step.
      config: all settings.
      model: of `config`.

    Raises:
      ConfigError: see `read`; or training.averages is set, whose earlier averages the file lacks.
    """
    if config.training.averages:
        raise ConfigError(f"config.training.averages={config.training.averages}: {path} has no averages; use 0")
    params, step = read(path, model), np.int32(step_of(path))
    create = lambda weights: state.create(weights, optimizer.optimizer_from_config(config, model.network))
    created = jax.jit(create)(params)
    is_schedule = lambda part: isinstance(part, optax.ScaleByScheduleState)  # which goes on, without a warm-up
    counted = lambda part: optax.ScaleByScheduleState(step) if is_schedule(part) else part
    opt_state = jax.tree.map(counted, created.opt_state, is_leaf=is_schedule)
    return created.replace(step=step, ema_updates=step, opt_state=opt_state)
