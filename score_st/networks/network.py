"""The contract of a network, and what training needs to know about one."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from score_st.array_types import Array, Float
from score_st.config import ConfigError, Table

# what the backward pass recomputes: nothing, everything but convolutions and matrix products, or residual blocks
REMAT: Table[Callable[..., bool] | None] = Table(
    "training.remat",
    {
        "none": None,
        "elementwise": jax.checkpoint_policies.dots_saveable,
        "blocks": jax.checkpoint_policies.nothing_saveable,
    },
)


@runtime_checkable
class Network(Protocol):
    """A Flax module that maps noisy images and a time conditioning to an output of the images' shape.

    The parametrization decides what the time conditioning is and what the output stands for (the noise or the score).

    A network may have these too:
      dtype: field, the type of its arithmetic. Training sets it to `training.dtype`. Parameters are float32.
      remat: field, a name of `REMAT`. Training sets it to `training.remat`.
      centered: field: the input is in [−1, 1], not [0, 1]. A parametrization that normalizes the input sets it.
      least_numbers: (height, width) -> how many numbers an image has in the network at once, at least.
      num_classes: field: it takes classes, too, as `labels`, an argument of __call__ of the shape [B].
      FIXED_PARAMS: class variable, the paths of parameters that are not trained, such as "all_modules_0/W".
    Without `dtype` and `remat`, a network is trained in float32 and nothing is recomputed.
    """

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time_cond: Float[Array, " B"],
        train: bool = False,
        log_time_cond: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """The output, in the type of `x`.

        Args:
          x: noisy images, in the range of the data (`data.centered`).
          time_cond: the time conditioning of each image, for example 999 t or σ(t).
          train: use dropout, with random numbers from the "dropout" key.
          log_time_cond: replaces log(time_cond) for networks that embed it, if the parametrization defines it.
        """
        ...

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Draws parameters, as `nn.Module.init` does."""
        ...

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the network with given parameters, as `nn.Module.apply` does."""
        ...

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """A copy with other values for some fields, as `nn.Module.clone` makes it."""
        ...


def with_arithmetic(network: Network, dtype: DTypeLike, remat: str) -> Network:
    """The network with `training.dtype` and `training.remat`.

    Raises:
      ConfigError: `remat` is unknown, or the network has no field for what is not the default.
    """
    REMAT.choose(remat)
    fields = {field.name for field in dataclasses.fields(cast(Any, network))}
    for key, name, default in (("dtype", jnp.dtype(dtype).name, "float32"), ("remat", remat, "none")):
        if key not in fields and name != default:
            kind = type(network).__name__
            raise ConfigError(f"config.training.{key}={name}: {kind} has no field `{key}`; should be {default}")
    changes = {key: value for key, value in (("dtype", dtype), ("remat", remat)) if key in fields}
    return network.clone(**changes) if changes else network


def with_normalized_input(network: Network) -> Network:
    """The network as it takes an input of standard deviation 1: it shifts and scales nothing."""
    fields = {field.name for field in dataclasses.fields(cast(Any, network))}
    return network.clone(centered=True) if "centered" in fields else network


def arithmetic_dtype(network: Network) -> DTypeLike:
    """The type of the network's arithmetic."""
    return getattr(network, "dtype", jnp.float32)


def trainable(network: Network, params: Any) -> Any:
    """A tree of bools like `params`: False for parameters that stay as they were drawn."""
    fixed: Iterable[str] = getattr(network, "FIXED_PARAMS", ())
    path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: path_of(path) not in fixed, params)
