"""Integrals in float64 of smooth functions that may change fast close to an end."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def tanh_sinh(step: float = 1 / 1024) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in (0, 1), ever closer to the ends, and weights whose sum is 1 (Takahasi and Mori 1974)."""
    k = np.arange(-4, 4, step)
    nodes = 1 / (1 + np.exp(-np.pi * np.sinh(k)))
    weights = step * np.pi * np.cosh(k) * nodes / (1 + np.exp(np.pi * np.sinh(k)))
    return nodes, weights


def over_logsnr(sde, function: Callable[[jax.Array], jax.Array], tau: float) -> float:
    """∫ function(t) dlogSNR from T to τ; with x64 only."""
    nodes, weights = tanh_sinh()
    end = sde.logsnr(jnp.float64(sde.T))
    span = sde.logsnr(jnp.float64(tau)) - end
    return float(span * jnp.sum(weights * function(sde.time(end + span * nodes))))
