"""The optimizers, by their names in the configuration."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from score_st import networks
from score_st.config import Table

BETA2 = {"Adam": 0.999, "AdamW": 0.99}


def adam(optim: ConfigDict, lr: optax.ScalarOrSchedule, mask: Any) -> optax.GradientTransformation:
    """Adam as in torch.optim.Adam, which adds weight decay to the gradient."""
    decay = optax.add_decayed_weights(optim.weight_decay, mask=mask)
    return optax.chain(
        decay, optax.scale_by_adam(optim.beta1, BETA2["Adam"], optim.eps), optax.scale_by_learning_rate(lr)
    )


def adamw(optim: ConfigDict, lr: optax.ScalarOrSchedule, mask: Any) -> optax.GradientTransformation:
    """AdamW, with decoupled weight decay and the official β₂ = 0.99."""
    return optax.adamw(lr, optim.beta1, BETA2["AdamW"], optim.eps, weight_decay=optim.weight_decay, mask=mask)


# functions of the configuration's `optim`, the learning rate (a number, or a function of the count of updates), and a
# function that marks the parameters which decay
OPTIMIZERS = Table("optim.optimizer", {"Adam": adam, "AdamW": adamw})


def cosine(config: ConfigDict, count: Any) -> Any:
    """Falls from 1 to 0 at training.n_iters along half a cosine (Loshchilov and Hutter 2017, eq. 5)."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / config.training.n_iters, 1.0)))


# functions of the configuration and the count of updates: the factor of the learning rate; None is 1
SCHEDULES: Table[Callable | None] = Table("optim.schedule", {"constant": None, "cosine": cosine})


def depends_on_length(config: ConfigDict) -> bool:
    """Whether the schedule of the learning rate depends on training.n_iters, so that a run can't be prolonged."""
    return SCHEDULES.choose(config.optim.schedule) is not None


def optimizer_from_config(config: ConfigDict, network: networks.Network) -> optax.GradientTransformation:
    """Clips the global norm of the gradient, then does Adam or AdamW with linear warm-up from 0 and a schedule."""
    optim, schedule = config.optim, SCHEDULES.choose(config.optim.schedule)
    lr: optax.ScalarOrSchedule = optim.lr
    if optim.warmup > 0:
        lr = lambda count: optim.lr * jnp.minimum(count / optim.warmup, 1.0)
    if schedule:
        warmed_up: Any = lr if callable(lr) else lambda count: optim.lr
        lr = lambda count: warmed_up(count) * schedule(config, count)
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip >= 0 else optax.identity()
    mask = functools.partial(networks.trainable, network)
    return optax.chain(clip, OPTIMIZERS.choose(optim.optimizer)(optim, lr, mask))
