"""The optimizers and the average against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.official import FIXTURES

from score_st import config, networks
from score_st.training import state
from score_st.training.optimizer import optimizer_from_config

TORCH = np.load(FIXTURES / "torch_adam.npz")


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_updates_are_those_of_torch(name):
    """Twelve steps with warm-up, clipping, weight decay and the average's ramp; frequencies stay as they are."""
    c = config.default()
    c.optim.update(optimizer=name, lr=0.05, warmup=5, weight_decay=0.1)
    optimizer = optimizer_from_config(c, networks.from_config(c))
    fixed = {"all_modules_0": {"W": jnp.arange(3.0)}}
    current = state.create({"p": jnp.asarray(TORCH["p0"]), "q": jnp.asarray(TORCH["q0"])} | fixed, optimizer)
    for p, q in zip(TORCH["gp"], TORCH["gq"], strict=True):
        zero = jax.tree.map(jnp.zeros_like, fixed)
        current = state.update(current, {"p": jnp.asarray(p), "q": jnp.asarray(q)} | zero, optimizer, 0.6)
    for key in ("p", "q"):
        np.testing.assert_allclose(current.params[key], TORCH[f"{name}/{key}"], rtol=2e-5, atol=5e-6)
        np.testing.assert_allclose(current.ema[key], TORCH[f"{name}/ema_{key}"], rtol=2e-5, atol=5e-6)
    np.testing.assert_array_equal(current.params["all_modules_0"]["W"], jnp.arange(3.0))
    assert (int(current.step), int(current.ema_updates)) == (12, 12)
