"""A 32-bit hash of each array, computed where it lies: the same number however the array is sharded.

Each number's bits are mixed with its place in the whole array by a bijection, and the results are added up modulo
2³². A change of a single number, such as one flipped bit, therefore always changes the hash.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from score_st.array_types import Array, Shaped, UInt32

KEY = "hashes"  # of a checkpoint, beside what they are of


def mixed(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32 bits, in which each bit depends on all: the finalizer of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)


def words(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of an array's numbers; those of 64 bits are two words, along a new last axis."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    size = array.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def of_array(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """The hash of an array."""
    bits = words(array)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(mixed(bits ^ mixed(place + jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


@functools.lru_cache(maxsize=8)
def _programs(layout: NamedSharding | None) -> tuple[Any, Any]:
    together = lambda each: {name: jnp.stack(values) for name, values in each.items()}
    return jax.jit(of_array, out_shardings=layout), jax.jit(together, out_shardings=layout)


def of(parts: dict[str, Any]) -> dict[str, UInt32[Array, " N"]]:
    """The hashes of trees by name, each in the order of its N leaves, computed on the devices of the arrays.

    Each shape is a program of its own: one program for all arrays of a large network takes a minute to compile.
    """
    leaves = {name: jax.tree.leaves(part) for name, part in parts.items() if jax.tree.leaves(part)}
    layouts = [leaf.sharding for leaf in jax.tree.leaves(leaves) if isinstance(leaf, jax.Array)]
    meshes = [layout.mesh for layout in layouts if isinstance(layout, NamedSharding)]
    one, together = _programs(NamedSharding(meshes[0], PartitionSpec()) if meshes else None)
    return together({name: [one(leaf) for leaf in part] for name, part in leaves.items()})


def abstract(parts: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what `of` returns."""
    counts = {name: len(jax.tree.leaves(part)) for name, part in parts.items()}
    return {name: jax.ShapeDtypeStruct((count,), np.uint32) for name, count in counts.items() if count}


def changed(parts: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """The names of the arrays whose hash is not the one that was stored with them."""
    found = []
    for name, hashes in jax.device_get(of(parts)).items():
        leaves = jax.tree_util.tree_leaves_with_path(parts[name])
        wrong = np.flatnonzero(hashes != np.asarray(stored[name]))
        path = lambda i: jax.tree_util.keystr(leaves[i][0], simple=True, separator="/")  # noqa: B023
        found += ["/".join(filter(None, (name, path(i)))) for i in wrong]
    return found
