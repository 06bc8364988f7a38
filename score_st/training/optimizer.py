"""The optimizers, by their names in the configuration."""

import functools

import jax.numpy as jnp
import optax

from score_st import networks
from score_st.config import choose

BETA2 = {"Adam": 0.999, "AdamW": 0.99}


def adam(optim, lr, mask):
    """torch.optim.Adam: weight decay is added to the gradient."""
    decay = optax.add_decayed_weights(optim.weight_decay, mask=mask)
    return optax.chain(
        decay, optax.scale_by_adam(optim.beta1, BETA2["Adam"], optim.eps), optax.scale_by_learning_rate(lr)
    )


def adamw(optim, lr, mask):
    """Decoupled weight decay, with the official β₂ = 0.99."""
    return optax.adamw(lr, optim.beta1, BETA2["AdamW"], optim.eps, weight_decay=optim.weight_decay, mask=mask)


OPTIMIZERS = {"Adam": adam, "AdamW": adamw}


def optimizer_from_config(config) -> optax.GradientTransformation:
    """Clipping of the global norm, then Adam or AdamW with linear warm-up from 0 at the first step."""
    optim = config.optim
    make = choose(OPTIMIZERS, optim.optimizer, "optim.optimizer")
    lr = optim.lr
    if optim.warmup > 0:
        lr = lambda count: optim.lr * jnp.minimum(count / optim.warmup, 1.0)
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip >= 0 else optax.identity()
    mask = functools.partial(networks.trainable, networks.from_config(config))
    return optax.chain(clip, make(optim, lr, mask))
