"""What training carries from step to step, the optimiser, and how both lie on the devices."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from score_st.config import ConfigError, choose


@flax.struct.dataclass
class TrainState:
    """Attributes:
    step: updates done, int32.
    params: of the network.
    opt_state: of the optimiser.
    ema: moving average of the parameters.
    ema_updates: of the average, int32; differs from `step` only in converted checkpoints.
    """

    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict
    ema_updates: jax.Array


def trainable(params):
    """A tree of bools like `params`: False for the fixed frequencies of a Gaussian Fourier embedding."""
    fixed = "['all_modules_0']['W']"
    return jax.tree_util.tree_map_with_path(lambda path, _: fixed not in jax.tree_util.keystr(path), params)


BETA2 = {"Adam": 0.999, "AdamW": 0.99}


def adam(optim, lr):
    """torch.optim.Adam: weight decay is added to the gradient."""
    decay = optax.add_decayed_weights(optim.weight_decay, mask=trainable)
    return optax.chain(
        decay, optax.scale_by_adam(optim.beta1, BETA2["Adam"], optim.eps), optax.scale_by_learning_rate(lr)
    )


def adamw(optim, lr):
    """Decoupled weight decay, with the official β₂ = 0.99."""
    return optax.adamw(lr, optim.beta1, BETA2["AdamW"], optim.eps, weight_decay=optim.weight_decay, mask=trainable)


OPTIMIZERS = {"Adam": adam, "AdamW": adamw}


def optimizer_from_config(config) -> optax.GradientTransformation:
    """Clipping of the global norm, then Adam or AdamW with linear warm-up from 0 at the first step."""
    optim = config.optim
    make = choose(OPTIMIZERS, optim.optimizer, "optim.optimizer")
    lr = optim.lr
    if optim.warmup > 0:
        lr = lambda count: optim.lr * jnp.minimum(count / optim.warmup, 1.0)
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip >= 0 else optax.identity()
    return optax.chain(clip, make(optim, lr))


def create(params, optimizer) -> TrainState:
    # step and ema_updates are buffers of their own, as donation wants
    zeros = [jnp.zeros((), jnp.int32) for _ in range(2)]
    return TrainState(zeros[0], params, optimizer.init(params), jax.tree.map(jnp.copy, params), zeros[1])


def update(state: TrainState, gradient, optimizer, ema_rate: float) -> TrainState:
    """One step of the optimiser, then of the average: its rate is min(ema_rate, (1 + n)/(10 + n)) at update n."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    n = state.ema_updates + 1
    rate = jnp.minimum(ema_rate, (1 + n) / (10 + n))
    ema = jax.tree.map(lambda e, p: e - (1 - rate) * (e - p), state.ema, params)
    return TrainState(state.step + 1, params, opt_state, ema, n)


AXES = ("data", "fsdp")
WHOLE = 1024  # numbers, of arrays that are not worth a division


def mesh(fsdp: int = 1, devices=None) -> Mesh:
    """Devices (by default all of all processes) as [n / fsdp, fsdp]: the batch is divided along both axes, `data` and
    `fsdp`; parameters, optimiser and average along `fsdp`.

    Raises:
      ConfigError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if fsdp < 1 or n % fsdp:
        raise ConfigError(f"config.training.fsdp={fsdp}: should divide the number of devices, {n}")
    return jax.make_mesh((n // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def specs(mesh, abstract):
    """A tree of PartitionSpecs: each array's longest axis that `fsdp` divides lies along it."""
    parts = mesh.shape["fsdp"]

    def spec(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < WHOLE or not axes:
            return PartitionSpec()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*(["fsdp" if axis == longest else None for axis in range(leaf.ndim)]))

    return jax.tree.map(spec, abstract)


def shardings(mesh, abstract):
    """A tree of NamedShardings, see `specs`; without fsdp all are whole on every device."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(mesh, abstract))


def whole(tree):
    """Arrays divided over devices, joined on each."""
    return jax.jit(lambda tree: tree, out_shardings=jax.tree.map(lambda a: replicated(a.sharding.mesh), tree))(tree)


def on_all(tree):
    """Arrays that every process has, on all devices of all processes."""
    return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh()))


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh, axis: int = 0):
    """Of a batch: its axis over all devices, in contiguous shares."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def check_divisible(key: str, size: int, by: int, what: str):
    """Raises ConfigError unless `size`, the value of config key `key`, is a multiple of `by`."""
    if size % by:
        below = max(size // by * by, by)
        raise ConfigError(f"config.{key}={size}: should be a multiple of {by}, {what}; {below} would do")
