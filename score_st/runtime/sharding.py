"""How arrays lie on the devices of a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from score_st.config import ConfigError

AXES = ("data", "fsdp")
SMALLEST_SHARDED = 1024  # elements; smaller arrays are replicated


def mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as [n / fsdp, fsdp].

    Batches are sharded along both axes, `data` and `fsdp`; parameters, optimizer state and average along `fsdp`.

    Args:
      fsdp: how many devices share one copy of the parameters.
      devices: by default all devices of all processes.

    Raises:
      ConfigError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if n % fsdp:
        raise ConfigError(f"config.training.fsdp={fsdp}: should divide the number of devices, {n}")
    return jax.make_mesh((n // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def platform(mesh: Mesh) -> str:
    """Returns what the devices are: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def specs(mesh: Mesh, abstract: Any) -> Any:
    """Returns a tree of PartitionSpecs that shard the longest axis of each array that `fsdp` divides."""
    parts = mesh.shape["fsdp"]

    def spec(leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALLEST_SHARDED or not axes:
            return PartitionSpec()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*(["fsdp" if axis == longest else None for axis in range(leaf.ndim)]))

    return jax.tree.map(spec, abstract)


def shardings(mesh: Mesh, abstract: Any) -> Any:
    """Returns a tree of NamedShardings, see `specs`; without fsdp all arrays are replicated."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(mesh, abstract))


def all_gather(tree: Any) -> Any:
    """Replicates sharded arrays on all their devices."""
    return jax.jit(lambda tree: tree, out_shardings=jax.tree.map(lambda a: replicated(a.sharding.mesh), tree))(tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays that every process has on all devices of all processes."""
    return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of a batch: `axis` over all devices, contiguous parts in their order."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def check_divisible(key: str, size: int, by: int, what: str) -> None:
    """Raises ConfigError unless `size`, the value of config key `key`, is a positive multiple of `by`: `what`."""
    if size < 1 or size % by:
        below = max(size // by * by, by)
        raise ConfigError(f"config.{key}={size}: should be a multiple of {by}, {what}; {below} would do")
