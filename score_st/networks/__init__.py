"""Networks, as Flax modules: a contract, a table, and NCSN++."""

from collections.abc import Callable

from ml_collections import ConfigDict

from score_st.config import Table
from score_st.networks import ncsnpp
from score_st.networks.network import (
    REMAT,
    Network,
    arithmetic_dtype,
    trainable,
    with_arithmetic,
    with_normalized_input,
)

__all__ = [
    "NETWORKS",
    "REMAT",
    "Network",
    "arithmetic_dtype",
    "from_config",
    "trainable",
    "with_arithmetic",
    "with_normalized_input",
]

NETWORKS: Table[Callable[[ConfigDict], Network]] = Table("model.name", {"ncsnpp": ncsnpp.from_config})


def from_config(config: ConfigDict) -> Network:
    """The network that `config.model.name` names.

    Raises:
      ConfigError: there is no such network, or its settings contradict each other.
    """
    return NETWORKS.choose(config.model.name)(config)
