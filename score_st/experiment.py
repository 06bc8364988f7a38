"""Everything that a configuration stands for, put together once, for training, evaluation and sampling alike."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from score_st import data, losses, models, sampling, score, sde, state, truncation


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Attributes:
    image_shape: (H, W, C).
    network: a Flax module, (x [B, H, W, C], label [B], train, log_label) -> [B, H, W, C].
    """

    image_shape: tuple[int, int, int]
    network: nn.Module
    sde: sde.SDE
    parametrization: score.Parametrization
    truncation: truncation.Truncation
    scaler: data.Scaler
    optimizer: optax.GradientTransformation

    def apply(self, params, dropout_key=None):
        """The network of `params` as a function (x, label, log_label); with dropout where there is a key for it."""

        def network(x, label, log_label):
            rngs = None if dropout_key is None else {"dropout": dropout_key}
            return self.network.apply({"params": params}, x, label, dropout_key is not None, log_label, rngs=rngs)

        return network

    def score(self, params, dropout_key=None) -> score.Score:
        """(x [B, H, W, C], t [B]) -> ∇ log p_t(x) of the network with `params`."""
        return self.parametrization.score(self.apply(params, dropout_key))

    def create(self, key) -> state.TrainState:
        """A freshly initialised state."""
        x, label = jnp.zeros((1, *self.image_shape)), jnp.ones(1)
        return state.create(self.network.init(key, x, label)["params"], self.optimizer)

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """Of ShapeDtypeStructs."""
        return jax.eval_shape(self.create, jax.random.key(0))


def from_config(config) -> Experiment:
    """Raises ConfigError where a setting is unknown or impossible; touches no file and no device."""
    diffusion = sde.from_config(config)
    image_shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    made = Experiment(
        image_shape,
        models.from_config(config),
        diffusion,
        score.from_config(config, diffusion),
        truncation.from_config(config),
        data.scaler_from_config(config),
        state.optimizer_from_config(config),
    )
    losses.from_config(config, diffusion, groups=1)
    sampling.from_config(config)
    _ = made.abstract_state  # a network that can't be built says so here
    return made
