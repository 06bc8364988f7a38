"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from score_st.model import DiffusionModel
from score_st.training import averages


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


@flax.struct.dataclass
class AveragedState(TrainState):
    """A state with the averages that training.averages asks for; without them there is no trace of these.

    Attributes:
      averages: by width, see `averages`.
    """

    averages: dict


def create(params: dict, optimizer: optax.GradientTransformation, averaged: bool = False) -> TrainState:
    """Returns the state before the first step, an `AveragedState` if `averaged`."""
    # the two counts are separate buffers, since a step donates them
    zeros = [jnp.zeros((), jnp.int32) for _ in range(2)]
    parts = zeros[0], params, optimizer.init(params), jax.tree.map(jnp.copy, params), zeros[1]
    return AveragedState(*parts, averages.start(params)) if averaged else TrainState(*parts)


def update(state: TrainState, gradient: dict, optimizer: optax.GradientTransformation, ema_rate: float) -> TrainState:
    """Updates the parameters, then their averages, of which `ema` has the rate min(ema_rate, (1 + n) / (10 + n))."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    n = state.ema_updates + 1
    rate = jnp.minimum(ema_rate, (1 + n) / (10 + n))
    ema = jax.tree.map(lambda e, p: e - (1 - rate) * (e - p), state.ema, params)
    parts = state.step + 1, params, opt_state, ema, n
    if isinstance(state, AveragedState):
        return AveragedState(*parts, averages.updated(state.averages, params, state.step + 1))
    return TrainState(*parts)


def abstract(model: DiffusionModel, optimizer: optax.GradientTransformation, averaged: bool = False) -> TrainState:
    """Returns the state as a tree of ShapeDtypeStructs."""
    return jax.eval_shape(lambda: create(model.init(jax.random.key(0)), optimizer, averaged))
