"""The optimiser and the average against PyTorch's, checkpoints, and the stream of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.official import FIXTURES

from score_st import config
from score_st.data import pipeline, preprocessing
from score_st.runtime import sharding
from score_st.training import checkpoints, state
from score_st.training.optimizer import optimizer_from_config

TORCH = np.load(FIXTURES / "torch_adam.npz")


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_updates_are_those_of_torch(name):
    """Twelve steps with warm-up, clipping, weight decay and the average's ramp; frequencies stay as they are."""
    c = config.default()
    c.optim.update(optimizer=name, lr=0.05, warmup=5, weight_decay=0.1)
    optimizer = optimizer_from_config(c)
    fixed = {"all_modules_0": {"W": jnp.arange(3.0)}}
    current = state.create({"p": jnp.asarray(TORCH["p0"]), "q": jnp.asarray(TORCH["q0"])} | fixed, optimizer)
    for p, q in zip(TORCH["gp"], TORCH["gq"], strict=True):
        zero = jax.tree.map(jnp.zeros_like, fixed)
        current = state.update(current, {"p": jnp.asarray(p), "q": jnp.asarray(q)} | zero, optimizer, 0.6)
    for key in ("p", "q"):
        np.testing.assert_allclose(current.params[key], TORCH[f"{name}/{key}"], rtol=2e-5, atol=5e-6)
        np.testing.assert_allclose(current.ema[key], TORCH[f"{name}/ema_{key}"], rtol=2e-5, atol=5e-6)
    np.testing.assert_array_equal(current.params["all_modules_0"]["W"], jnp.arange(3.0))
    assert (int(current.step), int(current.ema_updates)) == (12, 12)


def test_checkpoints_keep_the_newest_and_every_period(tmp_path):
    optimizer = optimizer_from_config(config.default())
    current = state.create({"w": jnp.arange(8.0)}, optimizer)
    abstract = jax.eval_shape(lambda: current)
    manager = checkpoints.manager(tmp_path, keep_period=4)
    assert checkpoints.restore(manager, abstract, sharding.mesh()) is None
    for _ in range(7):
        current = state.update(current, {"w": jnp.ones(8)}, optimizer, 0.9)
        checkpoints.save(manager, current)
    manager.wait_until_finished()
    assert manager.all_steps() == [4, 7]
    restored = checkpoints.restore(manager, abstract, sharding.mesh())
    jax.tree.map(np.testing.assert_array_equal, restored, current)
    assert restored.params["w"].sharding.num_devices == 8
    manager.close()


def test_stream_is_a_function_of_the_step():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    stream = pipeline.Stream(images, batch_size=4, seed=3)
    through = list(stream.batches(0, 10))
    np.testing.assert_array_equal(np.stack(through[6:]), np.stack(list(stream.batches(6, 10))))
    epochs = np.concatenate(through).ravel().reshape(4, 10)  # each epoch holds every image once, in another order
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    halves = [pipeline.Stream(images, 4, 3, part, 2).batch(5) for part in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), through[5])
    assert not np.array_equal(pipeline.Stream(images, 4, 4).batch(0), through[0])


def test_padded_batches_hold_every_image_once():
    images = np.arange(7)
    batches = list(pipeline.padded(images, 3))
    assert all(len(batch) == 3 for batch, _ in batches)
    np.testing.assert_array_equal(np.concatenate([batch[mask] for batch, mask in batches]), images)


@pytest.mark.parametrize("how", preprocessing.DEQUANTIZATIONS)
@pytest.mark.parametrize("centered", [False, True])
def test_scaling_and_back(how, centered):
    scaler = preprocessing.Scaler(17, centered, how)
    images = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1)
    for u in (0.01, 0.99):
        x = scaler.forward(images, jnp.full(images.shape, u))
        np.testing.assert_array_equal(scaler.inverse(x), images)
        assert x.min() >= (-1 if centered else 0) and x.max() <= 1
    np.testing.assert_array_equal(scaler.inverse(jnp.array([-9.0, 9.0])), [0, 16])


def test_digits():
    """1,500 and 297 images, no image in both, 17 levels; nobody's histogram changed by the split."""
    c = config.default()
    c.data.update(dataset="DIGITS", image_size=8, num_channels=1, num_levels=17)
    train, test = (pipeline.load(c, split) for split in ("train", "test"))
    assert (train.shape, test.shape, train.dtype) == ((1500, 8, 8, 1), (297, 8, 8, 1), np.uint8)
    keys = [{image.tobytes() for image in split} for split in (train, test)]
    assert not keys[0] & keys[1]
    assert abs(train.mean() - test.mean()) < 0.2 and train.max() == test.max() == 16
    counts = np.stack([(train == level).sum(0) + 1 for level in range(17)]) / (len(train) + 17)
    independent = -np.log2(np.take_along_axis(counts, test.astype(int), axis=0)).mean()
    assert independent == pytest.approx(2.42, abs=0.03)  # bits/dim that pixel histograms need


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dataset="DIGIT"), "choose from DIGITS"),
        (dict(num_levels=10), "values up to 16"),
        (dict(image_size=16), "DIGITS has 8, not 16"),
        (dict(dequantization="uniforme"), "did you mean uniform?"),
    ],
)
def test_impossible_data(change, message):
    c = config.default()
    c.data.update(dict(dataset="DIGITS", image_size=8, num_channels=1, num_levels=17) | change)
    with pytest.raises(config.ConfigError, match=message):
        pipeline.load(c, "test")


def test_random_flip():
    images = jnp.arange(64 * 4.0).reshape(64, 1, 4, 1)
    flipped = preprocessing.random_flip(images, jax.random.key(0))
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert np.all(mirrored ^ same) and 16 < mirrored.sum() < 48
