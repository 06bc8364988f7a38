"""Controllable generation without training: inpainting, coloring, guidance by a classifier (Song et al. 2021).

The known part of the images replaces its part of the state after each step, with the noise of that time (appendix
I.2); a corrector brings the rest into agreement with it. A predictor alone leaves a bias, so use a corrector.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float, Int
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Score
from score_st.diffusion.samplers import Project
from score_st.diffusion.sde import SDE

Images = Float[Array, "B H W C"]

# orthonormal rows; the first is the gray value of an RGB pixel times √3
GRAY_FIRST = (
    np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt(np.array([3, 2, 6], np.float32))[:, None]
)


def replace(
    sde: SDE, images: Float[Array, "B ..."], mask: Float[Array, "..."], basis: Float[Array, "C C"] | None = None
) -> Project:
    """A `project` for `PredictorCorrector` that keeps the known part of images.

    Args:
      sde: the diffusion.
      images: scaled; where the mask is 0 their values do not matter.
      mask: 1 where the images are known and 0 elsewhere, broadcast to `images`.
      basis: an orthogonal matrix; the mask's channels belong to its rows. None: the channels themselves.
    """
    basis = jnp.eye(images.shape[-1]) if basis is None else basis

    def project(x: Array, t: Array, z: Array) -> Array:
        mean, std = sde.marginal(images, t)
        return x + ((mean + expand(std, x) * z - x) @ basis.T * mask) @ basis

    return project


def inpaint(sde: SDE, images: Float[Array, "B ..."], mask: Float[Array, "..."]) -> Project:
    """Keeps the pixels of images where `mask` is 1, see `replace`."""
    return replace(sde, images, mask)


def colorize(sde: SDE, images: Float[Array, "B H W 3"]) -> Project:
    """Keeps the gray values of images, their mean over RGB, see `replace`."""
    return replace(sde, images, jnp.array([1.0, 0, 0]), GRAY_FIRST)


def guided(
    score: Score, classifier: Callable[[Array, Array], Array], labels: Int[Array, " B"], scale: float = 1.0
) -> Score:
    """∇ log p_t(x) + scale ∇ log p_t(y|x) (appendix I.1), for samples of the classes `labels`.

    Args:
      score: the unconditional score.
      classifier: (x [B, ...], t [B]) -> logits [B, classes], trained on x_t.
      labels: the classes.
      scale: the strength of the guidance.
    """

    def log_probability(x: Array, t: Array) -> Array:
        log_p = jax.nn.log_softmax(classifier(x, t))
        return jnp.sum(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    return lambda x, t: score(x, t) + scale * jax.grad(log_probability)(x, t)
