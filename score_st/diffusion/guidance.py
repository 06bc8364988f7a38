"""Controllable generation without training: inpainting, colourisation, guidance by a classifier (Song et al. 2021).

What is known of the images replaces its part of the state after each step, with the noise of that time (appendix I.2);
a corrector brings the rest into agreement with it. A predictor alone leaves a bias: ask for a corrector.
"""

import jax
import jax.numpy as jnp
import numpy as np

from score_st.diffusion.parametrization import Score
from score_st.diffusion.samplers import Project
from score_st.diffusion.sde import SDE, expand

# orthonormal; the first row is the grey value of an RGB pixel times √3
GREY_FIRST = (
    np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt(np.array([3, 2, 6], np.float32))[:, None]
)


def replace(sde: SDE, images, mask, basis=None) -> Project:
    """A `project` for `PredictorCorrector` that keeps the known part of images.

    Args:
      images: [B, H, W, C], scaled as the network has them; what the mask leaves out is not looked at.
      mask: broadcast to `images`: 1 where they are known, 0 where not.
      basis: an orthogonal [C, C] matrix whose rows the mask's channels are of; the channels themselves by default.
    """
    basis = jnp.eye(images.shape[-1]) if basis is None else basis

    def project(x, t, z):
        mean, std = sde.marginal(images, t)
        return x + ((mean + expand(std, x) * z - x) @ basis.T * mask) @ basis

    return project


def inpaint(sde: SDE, images, mask) -> Project:
    """Keeps the pixels of images [B, H, W, C] where `mask` (broadcast) is 1."""
    return replace(sde, images, mask)


def colourise(sde: SDE, images) -> Project:
    """Keeps the grey values, the mean over RGB, of images [B, H, W, 3]."""
    return replace(sde, images, jnp.array([1.0, 0, 0]), GREY_FIRST)


def guided(score: Score, classifier, labels, scale: float = 1.0) -> Score:
    """∇ log p_t(x) + scale ∇ log p_t(y|x) (appendix I.1), for samples of class y.

    Args:
      classifier: (x [B, ...], t [B]) -> logits [B, classes], trained on x_t.
      labels: [B].
    """

    def log_probability(x, t):
        log_p = jax.nn.log_softmax(classifier(x, t))
        return jnp.sum(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    return lambda x, t: score(x, t) + scale * jax.grad(log_probability)(x, t)
