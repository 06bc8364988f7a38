"""A configuration put together: the SDE, the parametrization, the network and the scaling of a diffusion model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_st import networks
from score_st.config import ConfigError, check
from score_st.data import preprocessing
from score_st.diffusion import guidance, losses, parametrization, samplers, sde, truncation
from score_st.diffusion.parametrization import Parametrization, Score, ScoreModel


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Everything that gives a network's weights a meaning.

    Attributes:
      image_shape: (H, W, C).
      network: a Flax module, see `networks.Network`.
      sde: the diffusion.
      parametrization: how the network's output becomes a score.
      scaler: between integer images and what the network sees.
    """

    image_shape: tuple[int, int, int]
    network: networks.Network
    sde: sde.SDE
    parametrization: Parametrization
    scaler: preprocessing.Scaler

    @classmethod
    def from_config(cls, config) -> "DiffusionModel":
        """The model that `config` describes; touches no file and no device.

        Raises:
          ConfigError: a setting is unknown or out of its range, or no such model is possible.
        """
        check(config)
        diffusion = sde.from_config(config)
        image_shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
        form = parametrization.from_config(config, diffusion)
        network = networks.from_config(config)
        network = networks.with_normalized_input(network) if form.normalized else network
        model = cls(image_shape, network, diffusion, form, preprocessing.scaler_from_config(config))
        truncation.from_config(config)
        losses.from_config(config, diffusion, groups=1)
        samplers.from_config(config)
        _ = model.abstract_params  # a network that can't be built says so here
        return model

    @property
    def num_classes(self) -> int:
        """How many classes the network can be told; 0 for none."""
        return getattr(self.network, "num_classes", 0)

    def apply(self, params, dropout_key=None, labels=None):
        """The network of `params` as a function (x, time_cond, log_time_cond), with dropout where a key is given.

        `labels` are classes, a number or [B], -1 for none; a network without classes is not told them.
        """
        told = labels is not None and self.num_classes > 0

        def network(x, time_cond, log_time_cond):
            rngs = None if dropout_key is None else {"dropout": dropout_key}
            classes = {"labels": jnp.broadcast_to(labels, len(x))} if told else {}
            return self.network.apply(
                {"params": params}, x, time_cond, dropout_key is not None, log_time_cond, rngs=rngs, **classes
            )

        return network

    def score(self, params, dropout_key=None, labels=None) -> Score:
        """(x [B, H, W, C], t [B]) -> ∇ log p_t(x) of the network with `params`, given the classes `labels`."""
        return self.score_model(params, dropout_key, labels).score

    def score_model(self, params, dropout_key=None, labels=None) -> ScoreModel:
        """The network with `params` and its score, for a loss; `labels` as for `apply`."""
        network = self.apply(params, dropout_key, labels)
        return ScoreModel(self.parametrization.score(network), network)

    def init(self, key) -> dict:
        """Freshly drawn parameters of the network."""
        return self.network.init(key, jnp.zeros((1, *self.image_shape)), jnp.ones(1))["params"]

    def least_bytes(self, images: int) -> int:
        """The memory that so many images take in the network at least; their own and its output are float32."""
        height, width, channels = self.image_shape
        inside = getattr(self.network, "least_numbers", lambda height, width: 0)(height, width)
        itemsize = jnp.dtype(networks.arithmetic_dtype(self.network)).itemsize
        return images * (2 * 4 * height * width * channels + itemsize * inside)

    @functools.cached_property
    def abstract_params(self) -> dict:
        """The parameters as a tree of ShapeDtypeStructs."""
        return jax.eval_shape(self.init, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class ScoreOnly(DiffusionModel):
    """A model that is a score function, of whatever network, or of none. It is not for training.

    Attributes:
      function: (params, x [B, H, W, C], t [B]) -> ∇ log p_t(x).
    """

    function: Callable[[Any, Any, Any], Any]

    @classmethod
    def of(cls, function, diffusion: sde.SDE, image_shape: tuple[int, int, int], scaler) -> "ScoreOnly":
        """The model of a score function."""
        form = Parametrization(lambda t: t)
        return cls(image_shape, _NoNetwork(), diffusion, form, scaler, function)

    def score_model(self, params, dropout_key=None, labels=None) -> ScoreModel:
        """The score; there is no network, and no class."""
        return ScoreModel(functools.partial(self.function, params))


@dataclasses.dataclass(frozen=True)
class _NoNetwork:
    """Stands where a `ScoreOnly` has no network."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError("this model has a score but no network, so it can't be trained")

    init = apply = clone = __call__


@dataclasses.dataclass(frozen=True)
class CombinedModel(DiffusionModel):
    """Two models whose scores are combined; its parameters are the pair of theirs. It is not for training.

    The attributes of `DiffusionModel` are those of the first model.

    Attributes:
      parts: the two models, which share SDE, image shape and scaling.
      combination: autoguidance, or experts by noise level.
    """

    parts: tuple[DiffusionModel, DiffusionModel]
    combination: guidance.Combination

    @classmethod
    def of(cls, main: DiffusionModel, other: DiffusionModel, combination: guidance.Combination) -> "CombinedModel":
        """Combines two models.

        Raises:
          ConfigError: the models do not fit, or the combination does not fit their SDE.
        """
        fields = {field.name: getattr(main, field.name) for field in dataclasses.fields(DiffusionModel)}
        _check_fit(main, other)
        any_score = lambda x, t: x
        combination(main.sde, any_score, any_score)
        return cls(**fields, parts=(main, other), combination=combination)

    @property
    def num_classes(self) -> int:
        """That of the part with the most; the other is told no class that it has not."""
        return max(part.num_classes for part in self.parts)

    def score_model(self, params, dropout_key=None, labels=None) -> ScoreModel:
        """The combined score; there is no network of its own."""
        scores = (part.score(p, dropout_key, labels) for part, p in zip(self.parts, params, strict=True))
        return ScoreModel(self.combination(self.sde, *scores))

    def init(self, key) -> Any:
        """Freshly drawn parameters of both networks."""
        return tuple(part.init(key) for part in self.parts)


def by_image(function: Callable[..., Any], labels: Any, *arrays: Any) -> Any:
    """`function(labels, *arrays)`, image by image where there are labels.

    Adaptive solvers ask the score for one image at a time, so a score that is given the classes of a whole batch is
    none for them. Here each image has a score function of its own.

    Args:
      function: of classes, a number or None, and arrays [B, ...]; to trees of arrays [B, ...].
      labels: [B] or None.
      *arrays: trees of arrays [B, ...].
    """
    if labels is None:
        return function(None, *arrays)

    def one(label: Any, *parts: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[None], parts)
        return jax.tree.map(lambda leaf: leaf[0], function(label, *batch))

    return jax.vmap(one)(labels, *arrays)


def _check_fit(main: DiffusionModel, other: DiffusionModel) -> None:
    """Raises ConfigError unless SDE, image shape and scaling are the same and `other` knows all times of `main`."""
    smallest = other.sde.eps
    diffusion = main.sde if main.sde.eps_is_part_of_the_diffusion else main.sde.with_smallest_time(smallest)
    for what, first, second in (
        ("SDE", diffusion, other.sde),
        ("image shape", main.image_shape, other.image_shape),
        ("data.centered", main.scaler.centered, other.scaler.centered),
        ("data.num_levels", main.scaler.num_levels, other.scaler.num_levels),
    ):
        if first != second:
            raise ConfigError(f"two models together: the second has {what} {second}, not {first} as the main one")
    if smallest > main.sde.eps:
        raise ConfigError(
            f"two models together: the second is for times from {smallest:g}, the main one from {main.sde.eps:g}"
        )
