"""What every network of the table does, and what training asks of a network that a user adds."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_st import config, networks
from score_st.config import ConfigError


class Plain(nn.Module):
    """A network without the optional fields, whose parameter has the path of NCSN++'s fixed frequencies."""

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        return x * Scale(name="all_modules_0")(time_cond)[:, None, None, None]


class Scale(nn.Module):
    @nn.compact
    def __call__(self, time_cond):
        return self.param("W", nn.initializers.ones, ()) * time_cond


def small(name):
    settings = config.default()
    settings.model.update(name=name, nf=8, ch_mult=(1,), num_res_blocks=1, attention=False, progressive_input="none")
    settings.data.update(image_size=8, num_channels=1)
    return networks.from_config(settings)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_of_the_table_fulfil_the_contract(name):
    network = small(name)
    assert isinstance(network, networks.Network)
    x, time_cond = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, time_cond)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    for dtype, remat in (("float32", "none"), ("bfloat16", "elementwise"), ("bfloat16", "blocks")):
        trained = networks.with_arithmetic(network, jnp.dtype(dtype), remat)
        assert jnp.dtype(networks.arithmetic_dtype(trained)) == dtype

        def call(params, x, time_cond, key):
            return trained.apply({"params": params}, x, time_cond, True, time_cond, rngs={"dropout": key})  # noqa: B023

        output = jax.eval_shape(call, params, x, time_cond, jax.random.key(0))
        assert (output.shape, output.dtype) == (x.shape, x.dtype)


def test_fixed_frequencies_are_not_trainable():
    network = small("ncsnpp")
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))["params"]
    trainable = networks.trainable(network, params)
    assert trainable["all_modules_0"].pop("W") is False
    assert all(jax.tree.leaves(trainable))


def test_a_user_s_network_is_trained_in_float32_or_refused():
    networks.NETWORKS["plain"] = lambda settings: Plain()
    try:
        network = small("plain")
    finally:
        del networks.NETWORKS["plain"]
    x, time_cond = jnp.ones((2, 8, 8, 1)), jnp.arange(2.0)
    params = network.init(jax.random.key(0), x, time_cond)["params"]
    chex.assert_trees_all_equal(networks.trainable(network, params), {"all_modules_0": {"W": True}})
    assert networks.with_arithmetic(network, jnp.float32, "none") is network
    assert networks.arithmetic_dtype(network) == jnp.float32
    for dtype, remat, message in (
        (jnp.bfloat16, "none", "training.dtype=bfloat16: Plain has no field `dtype`; should be float32"),
        (jnp.float32, "blocks", "training.remat=blocks: Plain has no field `remat`; should be none"),
        (jnp.float32, "all", "training.remat: unknown 'all'; choose from none, elementwise, blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            networks.with_arithmetic(network, dtype, remat)


def test_the_package_s_network_can_t_be_replaced():
    with pytest.raises(ConfigError, match="'ncsnpp' is an entry of the package"):
        networks.NETWORKS["ncsnpp"] = lambda settings: Plain()
