"""Images that are completed, colored or interpolated by a model, as rows of a picture."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_st.array_types import Array, Float, Int
from score_st.diffusion import guidance, samplers
from score_st.evaluation import generation
from score_st.model import DiffusionModel, by_image

DRAWS = 4  # samples for each image


def known_part(
    model: DiffusionModel, x: Float[Array, "B H W C"], mask: Float[Array, "H 1 1"], gray: bool
) -> Float[Array, "B H W C"]:
    """Returns what is kept of images: the pixels of the mask on middle gray, or with `gray` the gray values."""
    if gray:
        return jnp.broadcast_to(jnp.mean(x, axis=-1, keepdims=True), x.shape)
    return jnp.where(mask > 0, x, model.scaler.center)


def complete(
    config: ConfigDict,
    model: DiffusionModel,
    params: Any,
    x: Float[Array, "B H W C"],
    seed: int,
    gray: bool,
    labels: Int[Array, " B"] | None = None,
) -> Float[Array, "B K H W C"]:
    """Draws what is missing of images: their lower half, or with `gray` their colors.

    Args:
      config: `sampling` of it is a predictor, best with a corrector.
      model: the diffusion model.
      params: the network's weights.
      x: scaled images.
      seed: of the draws.
      gray: whether the colors are missing.
      labels: the classes of the images, which a network with classes is told unless sampling.label says others.

    Returns:
      Rows of K = 2 + DRAWS images: the image, what is kept of it, and the draws.
    """
    sampler, sde = samplers.from_config(config), samplers.sampling_sde(config, model.sde)
    assert isinstance(sampler, samplers.PredictorCorrector)
    height = model.image_shape[0]
    mask = (jnp.arange(height) < height // 2).astype(x.dtype)[:, None, None]

    if config.sampling.label != "all" or not model.num_classes:
        labels = generation.classes(config, model, jnp.arange(len(x)))

    @jax.jit
    def draw(params: Any, x: Any, keys: Any) -> Any:
        def given(labels: Any, x: Any, keys: Any) -> Any:
            project = guidance.colorize(sde, x) if gray else guidance.inpaint(sde, x, mask)
            score = generation.score_given(config, model, params, labels)
            return sampler(score, sde, keys, model.image_shape, project=project)[0]

        return by_image(given, labels, x, keys)

    keys = jax.random.split(jax.random.key(seed), (DRAWS, len(x)))
    draws = [draw(params, x, k) for k in keys]
    return jnp.stack([x, known_part(model, x, mask, gray), *draws], axis=1)


def interpolate(
    config: ConfigDict, model: DiffusionModel, params: Any, x: Float[Array, "B H W C"], steps: int = 8
) -> Float[Array, "B K H W C"]:
    """Goes from each image to the next through the latents of the probability flow.

    A network with classes is told that of sampling.label if it names one, and none otherwise, since the next image may
    be of another class.

    Args:
      config: `sampling` of it is the ODE.
      model: the diffusion model.
      params: the network's weights.
      x: scaled images.
      steps: how many images lie between two, the decoded ends included.

    Returns:
      Rows of K = 2 + steps images: the image, the path, and the next image.
    """
    sde = samplers.sampling_sde(config, model.sde)
    sampler = samplers.from_config(config)
    assert isinstance(sampler, samplers.ODE)
    generation.classes(config, model, jnp.arange(1))  # says if there is no such class

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        label = config.sampling.label
        score = model.score(params, labels=int(label) if label.isdecimal() else None)
        start = sde.alpha(sde.eps) * x  # the mean of x_ε
        latent = sampler.encode(score, sde, start)[0]
        between = jax.vmap(lambda a, b: samplers.interpolate(a, b, jnp.linspace(0, 1, steps)))
        path = between(latent, jnp.roll(latent, -1, axis=0))
        decoded = sampler.decode(score, sde, path.reshape(-1, *x.shape[1:]))[0]
        return jnp.concatenate([x[:, None], decoded.reshape(path.shape), jnp.roll(x, -1, axis=0)[:, None]], axis=1)

    return run(params, x)
