"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from score_st.model import DiffusionModel


@flax.struct.dataclass
class TrainState:
    """The state of training, or trees of the same form of shapes or shardings.

    Attributes:
      step: updates done, int32.
      params: of the network.
      opt_state: of the optimizer.
      ema: exponential moving average of the parameters.
      ema_updates: updates of the average, int32; differs from `step` only in converted checkpoints.
    """

    step: Any
    params: dict
    opt_state: tuple
    ema: dict
    ema_updates: Any


def create(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    # the two counts are separate buffers, since a step donates them
    zeros = [jnp.zeros((), jnp.int32) for _ in range(2)]
    return TrainState(zeros[0], params, optimizer.init(params), jax.tree.map(jnp.copy, params), zeros[1])


def update(state: TrainState, gradient: dict, optimizer: optax.GradientTransformation, ema_rate: float) -> TrainState:
    """Updates the parameters, then their average, whose rate at update n is min(ema_rate, (1 + n) / (10 + n))."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    n = state.ema_updates + 1
    rate = jnp.minimum(ema_rate, (1 + n) / (10 + n))
    ema = jax.tree.map(lambda e, p: e - (1 - rate) * (e - p), state.ema, params)
    return TrainState(state.step + 1, params, opt_state, ema, n)


def abstract(model: DiffusionModel, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state as a tree of ShapeDtypeStructs."""
    return jax.eval_shape(lambda: create(model.init(jax.random.key(0)), optimizer))
