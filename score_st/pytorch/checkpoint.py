"""The contents of an official PyTorch checkpoint as a training state, and back."""

import math
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_st.config import ConfigError
from score_st.model import DiffusionModel
from score_st.pytorch import parameter_map
from score_st.pytorch.parameter_map import Slot, from_flax, layout, to_flax
from score_st.training import optimizer, state


def sigmas(config) -> np.ndarray:
    """The noise levels [num_scales] that the official networks keep beside their parameters."""
    model = config.model
    logs = np.linspace(math.log(model.sigma_max), math.log(model.sigma_min), model.num_scales)
    return np.array([math.exp(log) for log in logs])  # np.exp's last bit depends on the processor


def _part(tree, key: str, kind: type, what: str):
    """`tree[key]`; raises ConfigError where that isn't there or is of another kind."""
    if not isinstance(tree, dict) or not isinstance(tree.get(key), kind):
        raise ConfigError(f"{what} should be there; the file is no checkpoint of Soft Truncation or score_sde")
    return tree[key]


def _whole(number, what: str) -> int:
    """A whole number from 0 up to what an int32 holds, from a number or a tensor of one."""
    if isinstance(number, np.ndarray) and number.size == 1:
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 2**31 or number % 1:
        raise ConfigError(f"{what} should be a whole number from 0 to 2147483647")
    return int(number)


def _model(config, checkpoint: dict, slots: list[Slot]) -> list[np.ndarray]:
    """The parameters in the order of the slots, every tensor of the file used or named."""
    tensors = {}
    for key, value in _part(checkpoint, "model", dict, "'model', the network's tensors,").items():
        name = str(key).removeprefix("module.")
        if not isinstance(value, np.ndarray) or name in tensors:
            raise ConfigError(f"{key!s:.80} is no tensor, or there twice")
        tensors[name] = value
    levels = tensors.pop("sigmas", None)
    wanted = {slot.name: slot.shape for slot in slots}
    parameter_map.check(config, wanted, {name: value.shape for name, value in tensors.items()})
    expected = sigmas(config)
    if levels is None:
        raise ConfigError(f"sigmas [{len(expected)}], the network's noise levels, is missing")
    if levels.shape != expected.shape or not np.allclose(levels, expected, rtol=1e-5):
        first, last = (float(levels.flat[i]) for i in (0, -1))
        raise ConfigError(
            f"sigmas {list(levels.shape)} goes from {first:g} to {last:g}, the configuration's {list(expected.shape)} "
            f"from {expected[0]:g} to {expected[-1]:g}; --config.model.sigma_max={first:g} "
            f"--config.model.sigma_min={last:g} --config.model.num_scales={levels.size} would fit"
        )
    return [_numbers(tensors[slot.name], slot.name, slot.shape) for slot in slots]


def _numbers(tensor, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor itself; raises ConfigError unless it holds finite floating-point numbers in this shape."""
    if not isinstance(tensor, np.ndarray) or tensor.shape != shape:
        there = f"has {list(tensor.shape)}" if isinstance(tensor, np.ndarray) else "is missing"
        raise ConfigError(f"{name} should be a tensor of shape {list(shape)}, and {there}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or not np.isfinite(tensor).all():
        raise ConfigError(f"{name} should hold finite floating-point numbers, and does not")
    return tensor


def _average(checkpoint: dict, slots: list[Slot], model: list[np.ndarray], step: int):
    """The EMA in the order of the slots and its number of updates; the parameters themselves where there is none."""
    if "ema" not in checkpoint:
        return model, step
    shadow = _part(checkpoint["ema"], "shadow_params", list, "'shadow_params' in 'ema'")
    names = [slot for slot in slots if slot.trainable]
    if len(shadow) != len(names):
        raise ConfigError(f"the EMA has {len(shadow)} tensors, and the network {len(names)} that are trained")
    values = iter(_numbers(s, f"the EMA of {slot.name}", slot.shape) for s, slot in zip(shadow, names, strict=True))
    updates = checkpoint["ema"].get("num_updates")
    average = [next(values) if slot.trainable else fixed for slot, fixed in zip(slots, model, strict=True)]
    return average, step if updates is None else _whole(updates, "'num_updates' of the EMA")


def _moments(checkpoint: dict, slots: list[Slot]):
    """Adam's two moments in the order of the slots, and its number of updates; zeros where there are none."""
    states = {}
    if "optimizer" in checkpoint:
        states = _part(checkpoint["optimizer"], "state", dict, "'state' in 'optimizer'")
        groups = _part(checkpoint["optimizer"], "param_groups", list, "'param_groups' in 'optimizer'")
        listed = [len(_part(group, "params", list, "'params' of the optimiser's group")) for group in groups]
        if listed != [len(slots)]:
            raise ConfigError(f"the optimiser has groups of {listed} tensors, and the network one of {len(slots)}")
    fixed = {index for index, slot in enumerate(slots) if not slot.trainable}
    if states and set(states) != set(range(len(slots))) - fixed:
        odd = min(set(states) ^ (set(range(len(slots))) - fixed), key=str)
        name = slots[odd].name if odd in range(len(slots)) else str(odd)[:20]
        raise ConfigError(f"the optimiser's state of {name} is {'surplus' if odd in states else 'missing'}")
    first, second, counts = [], [], set()
    for index, slot in enumerate(slots):
        if not states or index in fixed:
            zeros = np.broadcast_to(np.float32(0), slot.shape)
            first.append(zeros)
            second.append(zeros)
            continue
        what = f"of the optimiser's state of {slot.name}"
        known = _part(states, index, dict, f"numbers {what}")
        if set(known) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ConfigError(
                f"step, exp_avg and exp_avg_sq {what} should be there, and are {sorted(map(str, known))}"
            )
        first.append(_numbers(known["exp_avg"], f"exp_avg {what}", slot.shape))
        second.append(_numbers(known["exp_avg_sq"], f"exp_avg_sq {what}", slot.shape))
        counts.add(_whole(known["step"], f"step {what}"))
        if np.min(second[-1]) < 0:
            raise ConfigError(f"exp_avg_sq {what} has negative numbers")
    if len(counts) > 1:
        raise ConfigError(f"the optimiser's steps differ between tensors, from {min(counts)} to {max(counts)}")
    return first, second, counts.pop() if counts else 0


def state_from_torch(checkpoint, config, made: DiffusionModel) -> state.TrainState:
    """The training state, of NumPy arrays, that a file's content stands for.

    Args:
      checkpoint: what `torch_file.read` gives.

    Raises:
      ConfigError: it doesn't fit the configuration; the message names the tensor.
    """
    if not isinstance(checkpoint, dict):
        raise ConfigError("holds no dictionary, as checkpoints of Soft Truncation and score_sde do")
    if "model" not in checkpoint and checkpoint and all(isinstance(v, np.ndarray) for v in checkpoint.values()):
        checkpoint = {"model": checkpoint}  # the network alone
    surplus = sorted(set(map(str, checkpoint)) - {"model", "ema", "optimizer", "step"})
    if surplus:
        raise ConfigError(f"{surplus[0]:.40} is surplus; a checkpoint has model, ema, optimizer and step")
    abstract = state.abstract(made, optimizer.optimizer_from_config(config))
    slots, step = layout(abstract.params), _whole(checkpoint.get("step", 0), "'step'")
    model = _model(config, checkpoint, slots)
    average, updates = _average(checkpoint, slots, model, step)
    first, second, count = _moments(checkpoint, slots)
    tree = lambda tensors: to_flax(slots, tensors, abstract.params)
    adam = optax.ScaleByAdamState(np.int32(count), tree(first), tree(second))
    schedule = optax.ScaleByScheduleState(np.int32(step))
    kinds = {type(adam): adam, type(schedule): schedule}
    fill = lambda s: kinds.get(type(s), s)
    opt_state = jax.tree.map(fill, abstract.opt_state, is_leaf=lambda s: type(s) in kinds)
    return state.TrainState(np.int32(step), tree(model), opt_state, tree(average), np.int32(updates))


def state_to_torch(current: state.TrainState, config) -> dict:
    """What the official code would have saved, for `torch_file.write`."""
    slots, optim, step = layout(current.params), config.optim, int(current.step)
    adam = next(
        s
        for s in jax.tree.leaves(current.opt_state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState))
        if isinstance(s, optax.ScaleByAdamState)
    )
    count = int(adam.count)
    moments = zip(slots, from_flax(slots, adam.mu), from_flax(slots, adam.nu), strict=True)
    states = {
        index: {"step": np.float32(count), "exp_avg": first, "exp_avg_sq": second}
        for index, (slot, first, second) in enumerate(moments)
        if slot.trainable and count
    }
    warm = min(max(step - 1, 0) / optim.warmup, 1.0) if optim.warmup > 0 else 1.0
    betas = (optim.beta1, optimizer.BETA2[optim.optimizer])
    group = {"lr": optim.lr * warm, "betas": betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    group |= {"amsgrad": False, "params": list(range(len(slots)))}
    model = OrderedDict({"module.sigmas": sigmas(config)})
    model.update(
        (f"module.{s.name}", tensor) for s, tensor in zip(slots, from_flax(slots, current.params), strict=True)
    )
    average = zip(slots, from_flax(slots, current.ema), strict=True)
    shadow = [tensor for slot, tensor in average if slot.trainable]
    ema = {"decay": config.model.ema_rate, "num_updates": int(current.ema_updates), "shadow_params": shadow}
    return {"optimizer": {"state": states, "param_groups": [group]}, "model": model, "ema": ema, "step": step}


def compare(config, made: DiffusionModel, current: state.TrainState, golden: dict) -> dict[str, dict]:
    """Maximal relative errors of network output and score against official ones, at the golden file's x, t and label.

    Returns:
      {"model_out_raw": {"float32": max |a - b| / max |b|, "float64": ...}, ...} for the keys in `golden`.
    """
    errors: dict[str, dict] = {}
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
            wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)  # noqa: B023
            x, t, parametrization = wide(golden["x"].transpose(0, 2, 3, 1)), wide(golden["t"]), made.parametrization
            time_cond = wide(golden["label"]) if "label" in golden else parametrization.time_conditioning(t)
            log_time_cond = parametrization.log_time_conditioning(t) if parametrization.log_time_conditioning else None
            scale = parametrization.output_scale(t)
            if "std" in golden and config.training.continuous:  # the official float32 σ, 0.9 % off at t = 1e-5
                scale = jnp.where(scale == 1, scale, scale * made.sde.sigma(t) / wide(golden["std"]))
            network = jax.jit(made.network.clone(dtype=dtype).apply)
            for weights, params in (("raw", current.params), ("ema", current.ema)):
                if not {f"model_out_{weights}", f"score_{weights}"} & set(golden):
                    continue
                output = network({"params": wide(params)}, x, time_cond, log_time_cond=log_time_cond)
                for name, a in (("model_out", output), ("score", output * scale[:, None, None, None])):
                    key, a = f"{name}_{weights}", np.asarray(a, np.float64).transpose(0, 3, 1, 2)
                    if key in golden:
                        error = np.max(np.abs(a - golden[key])) / np.max(np.abs(golden[key]))
                        errors.setdefault(key, {})[dtype.__name__] = float(error)
    return errors


def read_golden(path: str | Path, config) -> dict[str, np.ndarray]:
    """Raises ConfigError where the file can't be read or has not what can be compared."""
    names = ("model_out_raw", "score_raw", "model_out_ema", "score_ema")
    try:
        with np.load(path, allow_pickle=False) as file:
            golden = {key: file[key] for key in ("x", "t", "label", "std", *names) if key in file.files}
    except Exception as error:  # zipfile and NumPy raise what they like on what is no .npz file
        what = " ".join(str(error).split())[:120]
        raise ConfigError(f"--verify {path}: can't be read as .npz ({type(error).__name__}: {what})") from error
    size = config.data.image_size
    shape = (len(golden.get("t", ())), config.data.num_channels, size, size)
    there = [key for key in names if key in golden]
    vectors = [key for key in ("t", "label", "std") if key in golden]
    if not there or "t" not in golden or any(golden.get(k, np.zeros(0)).shape != shape for k in ("x", *there)):
        raise ConfigError(f"--verify {path}: should have t [B], x and one of {', '.join(names)} {list(shape)}")
    if any(golden[key].shape != shape[:1] for key in vectors):
        raise ConfigError(f"--verify {path}: {', '.join(vectors)} should have shape {list(shape[:1])}")
    return golden


def verify(config, made, current, golden: dict, tol: float):
    """Prints the errors; ends the program with exit code 1 where one in float32 is above `tol`."""
    errors = compare(config, made, current, golden)
    for name, error in errors.items():
        print(f"{name:14} maximal relative error {error['float32']:.2e} in float32, {error['float64']:.2e} in float64")
    worst = max(errors, key=lambda name: errors[name]["float32"])
    if not errors[worst]["float32"] <= tol:
        sys.exit(f"error: {worst} is {errors[worst]['float32']:.2e} off, more than --tol {tol:g}; nothing was written")


def differences(checkpoint: dict, config) -> list[str]:
    """What the file says of training and the configuration says otherwise."""
    group = (checkpoint.get("optimizer") or {"param_groups": [{}]})["param_groups"][0]
    ema, betas = checkpoint.get("ema") or {}, group.get("betas")
    pairs = [("optim.eps", group.get("eps")), ("optim.weight_decay", group.get("weight_decay"))]
    pairs += [("model.ema_rate", ema.get("decay")), ("optim.beta1", betas[0] if isinstance(betas, tuple) else None)]
    mine = {key: config[key.split(".")[0]][key.split(".")[1]] for key, _ in pairs}
    return [
        f"{key} is {value!r} in the file, {mine[key]!r} here"
        for key, value in pairs
        if isinstance(value, int | float) and value != mine[key]
    ]
