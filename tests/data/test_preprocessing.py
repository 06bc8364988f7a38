"""Scaling, dequantization and flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_st.data import preprocessing


@pytest.mark.parametrize("dequantization", preprocessing.DEQUANTIZATIONS)
@pytest.mark.parametrize("centered", [False, True])
def test_scaling_and_back(dequantization, centered):
    scaler = preprocessing.Scaler(17, centered, dequantization)
    images = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1)
    for u in (0.01, 0.99):
        x = scaler.forward(images, jnp.full(images.shape, u))
        np.testing.assert_array_equal(scaler.inverse(x), images)
        assert x.min() >= (-1 if centered else 0) and x.max() <= 1
    np.testing.assert_array_equal(scaler.inverse(jnp.array([-9.0, 9.0])), [0, 16])


def test_random_flip():
    images = np.arange(64 * 4, dtype=np.uint8).reshape(64, 1, 4, 1)
    flipped = np.asarray(preprocessing.random_flip(images, jax.random.key(0)))
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert np.all(mirrored ^ same) and 16 < mirrored.sum() < 48
