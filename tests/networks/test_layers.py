"""Embeddings against their formulas."""

import jax.numpy as jnp
import numpy as np

from score_st.networks import layers


def test_positional_embedding():
    time_cond = jnp.array([0.0, 1.0, 999.0])
    embedding = layers.positional_embedding(time_cond, 9)
    angles = time_cond[:, None] * 10000 ** (-np.arange(4) / 3)
    np.testing.assert_allclose(embedding[:, :8], np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-4)
    assert np.all(embedding[:, 8] == 0)


def test_fourier_features():
    x = jnp.full((1, 1, 1, 1), 0.3)
    expected = [0.3] + [f(k * np.pi * 0.3) for k in (128, 256) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(layers.fourier_features(x).ravel(), expected, atol=1e-4)
