"""The loss of a model and its gradient as functions of the time t."""

import jax
import jax.numpy as jnp
import numpy as np

from score_st.evaluation import image_terms, runner
from score_st.evaluation.image_terms import Evaluation

TIMES = 40


def curve(evaluation: Evaluation, run: runner.ImageRunner, gradient_images: int) -> dict[str, list[float]]:
    """Returns the loss ½‖σs + z‖² a dimension over the images, at times evenly spread in log t.

    Args:
      evaluation: computes the loss and its gradient.
      run: over the images.
      gradient_images: how many images the gradient is of; 0 leaves it out.

    Returns:
      Lists over t: `loss` and `std` over images; `weight`, the likelihood's g²/σ²; `bits`, what a unit of log t adds
      to the NELBO in bits/dim; `gradient_norm2` and `gradient_variance` of the unweighted loss of the first images.
    """
    sde, (device, params) = evaluation.model.sde, next(iter(run.params.items()))
    t = np.geomspace(sde.eps, sde.T, TIMES).astype(np.float32)
    loss_at, gradient_of = evaluation.compiled["loss_at"], evaluation.compiled["gradient_of"]
    first = jax.device_put([a[:gradient_images] for a in (run.images, np.arange(len(run.images)))], device)
    key = jax.random.fold_in(jax.random.key(run.seed), 0)
    points = []
    for i, time in enumerate(t):

        def compute(i: int = i, time: np.float32 = time) -> dict:
            loss = run(f"loss{i}", loss_at, time, store=False)["loss"]
            point = {"loss": loss.mean(), "std": loss.std()}
            if not gradient_images:
                return point
            return point | image_terms.gradient_moments(gradient_of, params, *first, time, key)

        points.append(run.results(("by_time", i), compute))
    weight = np.asarray(sde.diffusion2(t) / jnp.square(sde.sigma(t)), np.float64)
    result = {"t": t.tolist(), "weight": weight.tolist()}
    result |= {name: [float(point[name]) for point in points] for name in points[0]}
    return result | {"bits": (np.asarray(result["loss"]) * weight * t / np.log(2)).tolist()}
