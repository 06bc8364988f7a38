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


def test_the_rate_warms_up_and_decays():
    """SGD-like steps of Adam under a constant gradient are the rate: linear warm-up times half a cosine to 0."""
    c = config.default()
    c.training.n_iters = 40
    c.optim.update(lr=0.1, warmup=4, schedule="cosine", eps=1e-12, grad_clip=-1.0)
    network = networks.from_config(c)
    moves = {}
    for schedule in ("cosine", "constant"):
        c.optim.schedule = schedule
        optimizer = optimizer_from_config(c, network)
        current, moves[schedule] = state.create({"p": jnp.ones(3)}, optimizer), []
        for _ in range(44):
            before = current.params["p"]
            current = state.update(current, {"p": jnp.full(3, 2.0)}, optimizer, 0.9)
            moves[schedule].append(float(before[0] - current.params["p"][0]))
    count = np.arange(44)
    warm = 0.1 * np.minimum(count / 4, 1)
    np.testing.assert_allclose(moves["constant"], warm, atol=1e-6)
    np.testing.assert_allclose(
        moves["cosine"], warm * 0.5 * (1 + np.cos(np.pi * np.minimum(count / 40, 1))), atol=1e-6
    )


def test_an_unknown_schedule():
    c = config.default()
    c.optim.schedule = "linear"
    with pytest.raises(config.ConfigError, match="optim.schedule: unknown 'linear'; choose from constant, cosine"):
        optimizer_from_config(c, networks.from_config(c))
