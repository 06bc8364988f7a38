"""How arrays lie on the devices of a mesh."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from score_st.config import ConfigError

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


def on_all(tree, mesh: Mesh):
    """Arrays that every process has, on all devices of all processes."""
    return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh))


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
