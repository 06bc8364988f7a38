"""Training with classes: each image's label goes with it, over devices and micro-batches."""

import jax
import numpy as np
import pytest
from support import told  # noqa: F401
from support.commands import tiny

from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.labels import labels_of
from score_st.runtime import sharding
from score_st.training import loop, step


def updated(digits, devices, micro):
    """Loss and parameters after a step with images of the classes 0 and 2, and one without a class."""
    settings = tiny(
        model__name="told",
        model__num_classes=3,
        optim__num_micro_batch=micro,
        optim__warmup=0,
        training__tau_groups=8,
    )
    setup = step.from_config(settings, sharding.mesh(1, jax.devices()[:devices]))
    labels = np.where(np.arange(16) % 2, 2, 0)
    labels[5] = -1
    batch = loop.place(setup.mesh, (digits[:16], labels))
    current, metrics = step.jitted(setup)(jax.jit(setup.create)(jax.random.key(0)), batch, jax.random.key(1))
    losses = [step.jitted_eval_loss(setup)(current.params, part, jax.random.key(2)) for part in (batch, batch[0])]
    return float(metrics["loss"]), np.asarray(current.params["scale"]), np.array(losses)


def test_a_step_with_classes(digits):
    """Only the classes of the batch are learned, in the same way on any number of devices."""
    loss, scale, losses = updated(digits, 1, 1)
    assert scale[1] == 0 and scale[0] != 0 and scale[2] != 0 and losses[0] != losses[1]
    others = updated(digits, 8, 2)
    np.testing.assert_allclose(others[0], loss, rtol=1e-4)
    np.testing.assert_allclose(others[1], scale, rtol=1e-3)
    np.testing.assert_allclose(others[2], losses, rtol=1e-4)


def test_batches_have_the_labels_of_their_images():
    settings = tiny(model__num_classes=10)
    images = pipeline.load(settings, "train")
    found, labels = loop.stream(settings, images).inputs(3)
    known = {image.tobytes(): label for image, label in zip(images[:], labels_of(images), strict=True)}
    assert [known[image.tobytes()] for image in found] == labels.tolist() and len(set(labels.tolist())) > 3
    assert isinstance(loop.stream(tiny(), images).inputs(3), np.ndarray)
    with pytest.raises(ConfigError, match="num_classes=9: DIGITS has a class 9; should be 10"):
        pipeline.load(tiny(model__num_classes=9), "train")
    with pytest.raises(ConfigError, match="num_classes=10: DIGITS has no classes; should be 0"):
        pipeline.require_classes(settings, images[:])
