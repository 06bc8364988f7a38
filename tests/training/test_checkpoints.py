"""Checkpoints: which are kept, and where they are restored to."""

import chex
import jax
import jax.numpy as jnp

from score_st import config, networks
from score_st.runtime import sharding
from score_st.training import checkpoints, state
from score_st.training.optimizer import optimizer_from_config


def test_checkpoints_keep_the_newest_and_every_period(tmp_path):
    settings = config.default()
    optimizer = optimizer_from_config(settings, networks.from_config(settings))
    current = state.create({"w": jnp.arange(8.0)}, optimizer)
    abstract = jax.eval_shape(lambda: current)
    manager = checkpoints.manager(tmp_path, keep_period=4)
    assert checkpoints.restore(manager, abstract, sharding.mesh()) is None
    for _ in range(7):
        current = state.update(current, {"w": jnp.ones(8)}, optimizer, 0.9)
        checkpoints.save(manager, current)
    manager.wait_until_finished()
    assert manager.all_steps() == [4, 7]
    restored = checkpoints.restore(manager, abstract, sharding.mesh())
    chex.assert_trees_all_equal(restored, current)
    assert restored.params["w"].sharding.num_devices == 8
    manager.close()
