"""The content of an official PyTorch checkpoint as a training state, and back.

Both official codes save {'model', 'ema', 'optimizer', 'step'}. The model is a dictionary by name; the EMA and the
optimizer are lists in the order of `parameter_map.layout`.
"""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from score_st import networks
from score_st.array_types import Float, Shaped
from score_st.config import ConfigError, changed, default, flatten
from score_st.model import DiffusionModel
from score_st.networks.ncsnpp import NCSNpp
from score_st.pytorch import parameter_map
from score_st.pytorch.parameter_map import Slot, from_flax, layout, to_flax
from score_st.runtime import numpy_files
from score_st.training import optimizer, state

# keys of ours that an official network has at their default, and how the default is called
OFFICIAL = {"parametrization": "empty", "time_conditioning": "empty", "num_classes": "0", "num_groups": "0"}
OFFICIAL |= {"diffusers_groups": "False", "attention_each": "False", "center_input": "True"}
Golden = dict[str, Shaped[np.ndarray, "..."]]  # official outputs, and what they are computed from
OUTPUTS = ("model_out_raw", "score_raw", "model_out_ema", "score_ema")  # that `compare` knows


def sigmas(config: ConfigDict) -> Float[np.ndarray, " N"]:
    """The N = num_scales noise levels, descending, which the official networks store beside their parameters."""
    model = config.model
    logs = np.linspace(math.log(model.sigma_max), math.log(model.sigma_min), model.num_scales)
    return np.array([math.exp(log) for log in logs])  # np.exp's last bit depends on the processor


def require_convertible(config: ConfigDict) -> None:
    """Raises ConfigError if the official code has no such network, parametrization or optimizer."""
    if not isinstance(networks.from_config(config), NCSNpp):
        raise ConfigError(f"config.model.name={config.model.name}: only NCSN++ networks can be converted")
    for key, official in OFFICIAL.items():
        if config.model[key] != default().model[key]:
            raise ConfigError(
                f"config.model.{key}={config.model[key]}: only official networks can be converted; "
                f"should be {official}"
            )
    if config.optim.optimizer not in optimizer.BETA2:
        names = " and ".join(optimizer.BETA2)
        raise ConfigError(f"config.optim.optimizer={config.optim.optimizer}: only {names} can be converted")


def _get(tree: Any, key: Any, kind: type, name: str) -> Any:
    """`tree[key]`, called `name` in messages; raises ConfigError if it is missing or of another type."""
    if not isinstance(tree, dict) or not isinstance(tree.get(key), kind):
        raise ConfigError(f"{name} is missing; the file is not a checkpoint of Soft Truncation or score_sde")
    return tree[key]


def _count(number: Any, name: str) -> int:
    """A number of steps, called `name` in messages, from a number or a tensor with one number."""
    if isinstance(number, np.ndarray) and number.size == 1:
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 2**31 or number % 1:
        raise ConfigError(f"{name} should be a whole number from 0 to 2147483647")
    return int(number)


def _checked(tensor: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor itself; raises ConfigError unless it has finite floating-point numbers in this shape."""
    if not isinstance(tensor, np.ndarray) or tensor.shape != shape:
        actual = f"has shape {list(tensor.shape)}" if isinstance(tensor, np.ndarray) else "is missing"
        raise ConfigError(f"{name} should be a tensor of shape {list(shape)}, and {actual}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or not np.isfinite(tensor).all():
        raise ConfigError(f"{name} should have finite floating-point numbers, and does not")
    return tensor


def _parameters(config: ConfigDict, checkpoint: dict, slots: list[Slot]) -> list[np.ndarray]:
    """The parameters in the order of the slots; raises ConfigError unless the file has them and no others."""
    tensors = {}
    for key, value in _get(checkpoint, "model", dict, "'model', the network's tensors,").items():
        name = str(key).replace("_orig_mod.", "").removeprefix("module.")  # of torch.compile, of DataParallel
        if not isinstance(value, np.ndarray) or name in tensors:
            raise ConfigError(f"{key!s:.80} is not a tensor, or occurs twice")
        tensors[name] = value
    levels = tensors.pop("sigmas", None)
    expected_shapes = {slot.name: slot.shape for slot in slots}
    parameter_map.check(config, expected_shapes, {name: value.shape for name, value in tensors.items()})
    _check_levels(config, levels)
    return [_checked(tensors[slot.name], slot.name, slot.shape) for slot in slots]


def _check_levels(config: ConfigDict, levels: np.ndarray | None) -> None:
    """Raises ConfigError unless the noise levels of the file are those of the configuration, up to their precision."""
    expected = sigmas(config)
    if levels is None:
        raise ConfigError(f"sigmas [{len(expected)}], the network's noise levels, is missing")
    is_float = jnp.issubdtype(levels.dtype, jnp.floating)
    tolerance = max(1e-5, 2 * float(jnp.finfo(levels.dtype).eps) if is_float else 0)
    values = levels.astype(np.float64)
    fits = lambda others: values.shape == others.shape and np.allclose(values, others, rtol=tolerance, atol=0)
    if fits(expected):
        return
    advice = ""
    if values.ndim == 1 and values.size and np.isfinite(values).all() and (values > 0).all():
        first, last = values[0], values[-1]
        settings = {"sigma_max": f"{first:g}", "sigma_min": f"{last:g}", "num_scales": f"{values.size}"}
        settings = {f"model.{key}": value for key, value in settings.items()}
        flags = " ".join(f"--config.{key}={value}" for key, value in settings.items())
        with contextlib.suppress(ConfigError):
            if fits(sigmas(changed(config.copy_and_resolve_references(), settings))):
                advice = f"; {flags} would fit"
    ends = f"from {values.flat[0]:g} to {values.flat[-1]:g}" if values.size else "nowhere"
    raise ConfigError(
        f"sigmas {list(values.shape)} goes {ends}, the configuration's {list(expected.shape)} "
        f"from {expected[0]:g} to {expected[-1]:g}{advice}"
    )


def _average(checkpoint: dict, slots: list[Slot], params: list[np.ndarray], step: int) -> tuple[list[np.ndarray], int]:
    """The EMA in the order of the slots, and its number of updates; without one, the parameters and `step`."""
    if "ema" not in checkpoint:
        return params, step
    shadow = _get(checkpoint["ema"], "shadow_params", list, "'shadow_params' in 'ema'")
    trained = [slot for slot in slots if slot.trainable]
    if len(shadow) != len(trained):
        raise ConfigError(f"the EMA has {len(shadow)} tensors, and the network {len(trained)} that are trained")
    values = iter(_checked(s, f"the EMA of {slot.name}", slot.shape) for s, slot in zip(shadow, trained, strict=True))
    updates = checkpoint["ema"].get("num_updates")
    average = [next(values) if slot.trainable else fixed for slot, fixed in zip(slots, params, strict=True)]
    return average, step if updates is None else _count(updates, "'num_updates' of the EMA")


def _optimizer_states(checkpoint: dict, slots: list[Slot]) -> dict[int, Any]:
    """The optimizer's state of each trained parameter by its index among the slots; empty if there is none."""
    if "optimizer" not in checkpoint:
        return {}
    states = _get(checkpoint["optimizer"], "state", dict, "'state' in 'optimizer'")
    groups = _get(checkpoint["optimizer"], "param_groups", list, "'param_groups' in 'optimizer'")
    sizes = [len(_get(group, "params", list, "'params' of the optimizer's group")) for group in groups]
    if sizes != [len(slots)]:
        raise ConfigError(f"the optimizer has groups of {sizes} tensors, and the network one of {len(slots)}")
    trained = {index for index, slot in enumerate(slots) if slot.trainable}
    if states and set(states) != trained:
        wrong = min(set(states) ^ trained, key=str)
        name = slots[wrong].name if wrong in range(len(slots)) else str(wrong)[:20]
        raise ConfigError(f"the optimizer's state of {name} is {'surplus' if wrong in states else 'missing'}")
    return states


def _moments(checkpoint: dict, slots: list[Slot]) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Adam's two moments in the order of the slots, and its number of updates; zeros where there are none."""
    states = _optimizer_states(checkpoint, slots)
    first, second, counts = [], [], set()
    for index, slot in enumerate(slots):
        if not states or not slot.trainable:
            zeros = np.broadcast_to(np.float32(0), slot.shape)
            first.append(zeros)
            second.append(zeros)
            continue
        owner = f"of the optimizer's state of {slot.name}"
        adam = _get(states, index, dict, f"the content {owner}")
        if set(adam) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ConfigError(f"the keys {owner} are {sorted(map(str, adam))}; should be exp_avg, exp_avg_sq and step")
        first.append(_checked(adam["exp_avg"], f"exp_avg {owner}", slot.shape))
        second.append(_checked(adam["exp_avg_sq"], f"exp_avg_sq {owner}", slot.shape))
        counts.add(_count(adam["step"], f"step {owner}"))
        if np.min(second[-1]) < 0:
            raise ConfigError(f"exp_avg_sq {owner} has negative numbers")
    if len(counts) > 1:
        raise ConfigError(f"the optimizer's steps differ between tensors, from {min(counts)} to {max(counts)}")
    return first, second, counts.pop() if counts else 0


def state_from_torch(checkpoint: Any, config: ConfigDict, model: DiffusionModel) -> state.TrainState:
    """The training state, of NumPy arrays, in the content of an official file.

    Args:
      checkpoint: the content, as `pytorch.file.read` returns it.
      config: all keys.
      model: of `config`.

    Raises:
      ConfigError: the content doesn't fit the configuration; the message names the tensor.
    """
    require_convertible(config)
    if config.training.averages:
        asked = f"config.training.averages={config.training.averages}"
        raise ConfigError(f"{asked}: an official checkpoint has no averages over its training; use 0")
    if not isinstance(checkpoint, dict):
        raise ConfigError("the content is not a dictionary, as in checkpoints of Soft Truncation and score_sde")
    if "model" not in checkpoint and checkpoint and all(isinstance(v, np.ndarray) for v in checkpoint.values()):
        checkpoint = {"model": checkpoint}  # the network alone
    surplus = sorted(set(map(str, checkpoint)) - {"model", "ema", "optimizer", "step"})
    if surplus:
        raise ConfigError(f"{surplus[0]:.40} is surplus; a checkpoint has model, ema, optimizer and step")
    abstract, slots = _abstract(config, model)
    step = _count(checkpoint.get("step", 0), "'step'")
    params = _parameters(config, checkpoint, slots)
    average, updates = _average(checkpoint, slots, params, step)
    return _assembled(abstract, slots, (params, average), _moments(checkpoint, slots), step, updates)


def state_from_tensors(
    tensors: Callable[[list[str]], dict[str, np.ndarray]], config: ConfigDict, model: DiffusionModel
) -> state.TrainState:
    """The training state at step 0 of a network whose tensors are at hand; its average is the network itself.

    Args:
      tensors: of the names of ours in PyTorch, those tensors.
      config: all keys.
      model: of `config`.

    Raises:
      ConfigError: what `tensors` raises, or a tensor has another shape or numbers that are not finite.
    """
    abstract, slots = _abstract(config, model)
    found = tensors([slot.name for slot in slots])
    params = [_checked(found[slot.name], slot.name, slot.shape) for slot in slots]
    return _assembled(abstract, slots, (params, params), _moments({}, slots), 0, 0)


def _abstract(config: ConfigDict, model: DiffusionModel) -> tuple[state.TrainState, list[Slot]]:
    """The training state as ShapeDtypeStructs, and the slots of its parameters."""
    abstract = state.abstract(model, optimizer.optimizer_from_config(config, model.network))
    return abstract, layout(abstract.params)


def _assembled(
    abstract: state.TrainState, slots: list[Slot], weights: tuple[list, list], moments: tuple, step: int, updates: int
) -> state.TrainState:
    """The training state of the parameters and their average, and of Adam's two moments and number of updates."""
    first, second, count = moments
    tree = lambda tensors: to_flax(slots, tensors, abstract.params)
    adam = optax.ScaleByAdamState(np.int32(count), tree(first), tree(second))
    schedule = optax.ScaleByScheduleState(np.int32(step))
    converted: dict[type, Any] = {type(adam): adam, type(schedule): schedule}
    opt_state = jax.tree.map(
        lambda part: converted.get(type(part), part),
        abstract.opt_state,
        is_leaf=lambda part: type(part) in converted,
    )
    params, average = map(tree, weights)
    return state.TrainState(np.int32(step), params, opt_state, average, np.int32(updates))


def _adam_state(opt_state: Any) -> optax.ScaleByAdamState:
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)
    return next(part for part in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(part))


def state_to_torch(current: state.TrainState, config: ConfigDict) -> dict[str, Any]:
    """The dictionary that the official code would have saved, for `pytorch.file.write`.

    Raises:
      ConfigError: the official code has no such network, parametrization or optimizer.
    """
    require_convertible(config)
    slots, optim, step = layout(current.params), config.optim, int(current.step)
    adam = _adam_state(current.opt_state)
    count = int(adam.count)
    moments = zip(slots, from_flax(slots, adam.mu), from_flax(slots, adam.nu), strict=True)
    states = {
        index: {"step": np.float32(count), "exp_avg": first, "exp_avg_sq": second}
        for index, (slot, first, second) in enumerate(moments)
        if slot.trainable and count
    }
    warmed_up = min(max(step - 1, 0) / optim.warmup, 1.0) if optim.warmup > 0 else 1.0
    group = {
        "lr": optim.lr * warmed_up,
        "betas": (optim.beta1, optimizer.BETA2[optim.optimizer]),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
        "amsgrad": False,
        "params": list(range(len(slots))),
    }
    params = zip(slots, from_flax(slots, current.params), strict=True)
    model = OrderedDict({"module.sigmas": sigmas(config)})
    model.update((f"module.{slot.name}", tensor) for slot, tensor in params)
    average = zip(slots, from_flax(slots, current.ema), strict=True)
    shadow = [tensor for slot, tensor in average if slot.trainable]
    ema = {"decay": config.model.ema_rate, "num_updates": int(current.ema_updates), "shadow_params": shadow}
    return {"optimizer": {"state": states, "param_groups": [group]}, "model": model, "ema": ema, "step": step}


def _outputs(
    config: ConfigDict, model: DiffusionModel, current: state.TrainState, golden: Golden, dtype: Any
) -> dict[str, np.ndarray]:
    """Our outputs [B, C, H, W] under the names of `golden`, computed in `dtype`."""
    cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    outputs, form = {}, model.parametrization
    with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        x, t = cast(golden["x"].transpose(0, 2, 3, 1)), cast(golden["t"])
        time_cond = cast(golden["label"]) if "label" in golden else form.time_conditioning(t)
        log_time_cond = form.log_time_conditioning(t) if form.log_time_conditioning else None
        scale = form.output_scale(t) if form.output_scale else jnp.ones_like(t)
        if "std" in golden and config.training.continuous:  # the official float32 σ, 0.9 % off at t = 1e-5
            scale = jnp.where(scale == 1, scale, scale * model.sde.sigma(t) / cast(golden["std"]))
        network = jax.jit(model.network.clone(dtype=dtype).apply)
        for weights, params in (("raw", current.params), ("ema", current.ema)):
            names = f"model_out_{weights}", f"score_{weights}"
            if not set(names) & set(golden):
                continue
            output = network({"params": cast(params)}, x, time_cond, log_time_cond=log_time_cond)
            for name, value in zip(names, (output, output * scale[:, None, None, None]), strict=True):
                outputs[name] = np.asarray(value, np.float64).transpose(0, 3, 1, 2)
    return {name: outputs[name] for name in outputs if name in golden}


def compare(
    config: ConfigDict, model: DiffusionModel, current: state.TrainState, golden: Golden
) -> dict[str, dict[str, float]]:
    """Compares network output and score with official ones, with raw and averaged weights.

    Args:
      config: all keys.
      model: of `config`.
      current: the state whose weights are compared.
      golden: of `read_golden`.

    Returns:
      The maximal relative errors max |a - b| / max |b| of each output in `golden`, computed in float32 and float64:
      {"model_out_raw": {"float32": ..., "float64": ...}, ...}.

    Raises:
      ConfigError: the official code has no such parametrization.
    """
    if model.parametrization.input_scale or model.parametrization.skip:
        raise ConfigError("model.parametrization: official outputs have no input scale and no skip to compare with")
    errors: dict[str, dict[str, float]] = {}
    for dtype in (jnp.float32, jnp.float64):
        for name, output in _outputs(config, model, current, golden, dtype).items():
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.max(np.abs(output - golden[name])) / np.max(np.abs(golden[name]))
            errors.setdefault(name, {})[jnp.dtype(dtype).name] = float(error)
    return errors


def read_arrays(path: str | Path) -> Golden:
    """The arrays of an .npz file; raises ConfigError if it can't be read."""
    try:
        return numpy_files.read_npz(path)
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: can't be read as .npz ({detail})") from error


def read_golden(path: str | Path, config: ConfigDict) -> Golden:
    """Reads official outputs to compare with, see `check_golden`."""
    return check_golden(path, read_arrays(path), config)


def check_golden(path: str | Path, content: Golden, config: ConfigDict) -> Golden:
    """The official outputs among the arrays of a file.

    Args:
      path: names the file in messages.
      content: t [B], x and at least one of `OUTPUTS` [B, C, H, W], and optionally the time conditioning (label [B])
        and σ(t) (std [B]).
      config: all keys.

    Raises:
      ConfigError: the file lacks one of these, or has numbers that are not finite.
    """
    golden = {key: value for key, value in content.items() if key in ("x", "t", "label", "std", *OUTPUTS)}
    size = config.data.image_size
    shape = (len(golden.get("t", ())), config.data.num_channels, size, size)
    outputs = [key for key in OUTPUTS if key in golden]
    vectors = [key for key in ("t", "label", "std") if key in golden]
    if not outputs or "t" not in golden or any(golden.get(k, np.zeros(0)).shape != shape for k in ("x", *outputs)):
        raise ConfigError(f"{path}: should have t [B], x and one of {', '.join(OUTPUTS)} {list(shape)}")
    if any(golden[key].shape != shape[:1] for key in vectors):
        raise ConfigError(f"{path}: {', '.join(vectors)} should have shape {list(shape[:1])}")
    for key, value in golden.items():
        if not (np.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
            raise ConfigError(f"{path}: {key} should have finite floating-point numbers, and does not")
    return golden


def differences(checkpoint: dict[str, Any], config: ConfigDict) -> list[str]:
    """Training settings in the file that differ from the configuration, a line for each."""
    group = (checkpoint.get("optimizer") or {"param_groups": [{}]})["param_groups"][0]
    ema, betas = checkpoint.get("ema") or {}, group.get("betas")
    stored = {
        "optim.eps": group.get("eps"),
        "optim.weight_decay": group.get("weight_decay"),
        "model.ema_rate": ema.get("decay"),
        "optim.beta1": betas[0] if isinstance(betas, tuple) else None,
    }
    configured = flatten(config)
    return [
        f"{key} is {value!r} in the file, and {configured[key]!r} here"
        for key, value in stored.items()
        if isinstance(value, int | float) and value != configured[key]
    ]
