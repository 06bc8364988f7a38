"""A configuration of the digits with a small network, which compiles in a tenth of the time of NCSN++.

It has what could differ between devices: convolutions, dropout and the time.
"""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_st import networks
from score_st.config import load
from score_st.networks.layers import Dropout


class Small(nn.Module):
    """Three convolutions."""

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        """The output, see `networks.Network`."""
        h = nn.Conv(8, (3, 3))(x) + nn.Dense(8)(jnp.sin(time_cond / 99)[:, None])[:, None, None]
        h = nn.Conv(16, (3, 3))(nn.swish(h))
        h = Dropout(0.1)(h) if train else h
        return nn.Conv(x.shape[-1], (3, 3))(nn.swish(h))


networks.NETWORKS["small"] = lambda config: Small()


def get_config() -> ConfigDict:
    """Batches of 16, and nothing but training."""
    config = load("vp/DIGITS/ddpmpp_nll_st").unlock()
    config.model.name = "small"
    config.optim.schedule = "constant"  # so that tests may prolong a run
    config.training.update(batch_size=16, log_freq=1, snapshot_freq_for_preemption=3, snapshot_sampling=False)
    config.eval.enable_bpd = False
    return config
