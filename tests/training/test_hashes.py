"""Hashes of arrays: independent of the sharding, and changed by every single bit."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from score_st.runtime import sharding
from score_st.training import hashes

TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, bool]


def reference(array: np.ndarray) -> int:
    """The definition in NumPy, for numbers of 32 or 64 bits."""
    with np.errstate(over="ignore"):

        def mixed(x):
            x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
            x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            return x ^ (x >> np.uint32(16))

        words = np.ascontiguousarray(array).ravel().view(np.uint32)
        place = np.arange(words.size, dtype=np.uint32) + np.uint32(0x9E3779B9)
        return int(np.sum(mixed(words ^ mixed(place)), dtype=np.uint32))


def test_the_number_is_the_same_for_one_device_and_eight():
    """However the array is sharded; and it is that of the definition."""
    array = np.random.default_rng(0).standard_normal((16, 3, 40)).astype(np.float32)
    expected = reference(array)
    assert int(hashes.of_array(jnp.asarray(array))) == expected
    for fsdp, spec in ((1, ()), (8, ("fsdp",)), (8, (None, None, "fsdp")), (2, (("data", "fsdp"),))):
        mesh = sharding.mesh(fsdp)
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        found = hashes.of({"a": placed, "b": [placed, placed[0]]})
        assert int(found["a"][0]) == int(found["b"][0]) == expected
        assert int(found["b"][1]) == reference(array[0])
        assert found["a"].sharding.is_fully_replicated


@pytest.mark.parametrize("dtype", TYPES)
def test_every_single_bit_counts(dtype):
    array = np.random.default_rng(1).integers(0, 2, 24).astype(dtype)
    hashed = jax.jit(hashes.of_array)
    before = int(hashed(array))
    raw = array.view(np.uint8)
    for bit in range(8 * raw.size if dtype is not bool else 0):
        raw[bit // 8] ^= 1 << bit % 8
        assert int(hashed(array)) != before
        raw[bit // 8] ^= 1 << bit % 8
    for i in range(array.size if dtype is bool else 0):
        array[i] = not array[i]
        assert int(hashed(array)) != before
        array[i] = not array[i]
    assert int(hashed(array)) == before and int(hashed(array[::-1])) != before


def test_numbers_of_64_bits_and_scalars():
    with jax.enable_x64():
        array = np.random.default_rng(2).standard_normal(9)
        before = int(hashes.of_array(jnp.asarray(array)))
        assert before == reference(array)
        for bit in (0, 31, 32, 63):
            other = array.copy()
            other.view(np.uint64)[4] ^= np.uint64(1) << np.uint64(bit)
            assert int(hashes.of_array(jnp.asarray(other))) != before
    assert int(hashes.of_array(jnp.int32(7))) == reference(np.int32([7])) != reference(np.int32([8]))


def test_arrays_that_changed_are_named():
    parts = {
        "step": np.int32(3),
        "params": {"conv": {"bias": np.zeros(3, np.float32), "kernel": np.ones(4)}},
        "none": (),
    }
    stored = jax.device_get(hashes.of(parts))
    assert {name: value.shape for name, value in stored.items()} == {"step": (1,), "params": (2,)}
    assert hashes.changed(parts, stored) == []
    parts["params"]["conv"]["bias"] = np.float32([0, 0, -0.0])
    assert hashes.changed(parts | {"step": np.int32(4)}, stored) == ["params/conv/bias", "step"]
