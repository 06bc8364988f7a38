"""Loading a data set, and the stream of batches."""

import numpy as np
import pytest
from support.image_files import noise, settings

from score_st.config import ConfigError, load
from score_st.data import pipeline
from score_st.data.labels import labeled, labels_of


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dataset="DIGIT"), "choose from DIGITS, .*did you mean DIGITS?"),
        (dict(num_levels=10), "values up to 16"),
        (dict(image_size=16), "DIGITS has 8, not 16"),
        (dict(num_channels=3), "DIGITS has 1, not 3"),
        (dict(dequantization="uniforme"), "did you mean uniform?"),
    ],
)
def test_impossible_data(change, message):
    config = settings("DIGITS", "", **dict(image_size=8, num_channels=1, num_levels=17))
    config.data.update(change)
    with pytest.raises(ConfigError, match=message):
        pipeline.load(config, "test")


def test_images_that_are_not_square(tmp_path):
    np.save(tmp_path / "all.npy", noise(4, 8, 10, 3))
    with pytest.raises(ConfigError, match="8x10, .*; cropping them to 8x8 or framing them to 10x10"):
        pipeline.load(settings("NPY", tmp_path / "all.npy", image_size=8), "train")


@pytest.mark.parametrize("count", [24, 25])
def test_every_example_once_an_epoch(count):
    """Also where an epoch ends within a batch: 12 epochs, each in another order.

    Two or three processes that read backwards get the same batches.
    """
    images, batch_size = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), 6
    steps = range(12 * count // batch_size)
    stream = pipeline.Stream(images, batch_size, 7)
    batches = [stream.batch(step).ravel() for step in steps]
    epochs = np.reshape(batches, (12, count))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(count), (12, count)))
    assert len({tuple(epoch) for epoch in epochs}) == 12
    for parts in (2, 3):
        streams = [pipeline.Stream(images, batch_size, 7, part, parts) for part in range(parts)]
        for step in reversed(steps):
            batch = np.concatenate([stream.batch(step) for stream in streams]).ravel()
            np.testing.assert_array_equal(batch, batches[step])


@pytest.mark.parametrize("parts", [1, 2])
def test_labels_are_those_of_the_images_of_a_batch(parts):
    images, labels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), [3, 1, None, 0, 2, 2, -7, 1, 0, 9]
    expected = np.array([3, 1, -1, 0, 2, 2, -1, 1, 0, 9])
    for part in range(parts):
        stream = pipeline.Stream(labeled(images, labels, "mine"), 4, 3, part, parts)
        for step in range(6):
            np.testing.assert_array_equal(stream.labels(step), expected[stream.batch(step).ravel()])
    assert pipeline.Stream(images, 4, 3).labels(0) is None
    assert labels_of(labeled(images, [None] * 10, "mine")) is None
    for wrong in (labels[:9], [0.5] * 10, [[1, 0]] * 10):
        with pytest.raises(ConfigError, match="mine: its labels are .*; should be 10 whole numbers"):
            labeled(images, wrong, "mine")


def test_stream_is_a_function_of_the_seed():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    first, again, other = (pipeline.Stream(images, 4, seed).batch(0) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_resumed_with_other_threads():
    """The batches from step 37 on are the same for 0, 1, 2 and 5 threads, and as part of all batches."""
    images = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    batches = np.stack(list(pipeline.Stream(images, 8, 3, threads=2).batches(0, 60)))
    np.testing.assert_array_equal(batches[5], pipeline.Stream(images, 8, 3).batch(5))
    for threads in (0, 1, 2, 5):
        rest = list(pipeline.Stream(images, 8, 3, threads=threads).batches(37, 60))
        np.testing.assert_array_equal(np.stack(rest), batches[37:])


def test_a_file_removed_during_training_is_an_error_of_one_line(image_folder):
    config = load(image_folder / "mine.py", {"data.memory_gb": "0"})
    stream = pipeline.Stream(pipeline.load(config, "train"), 8, 0)
    batches = stream.batches(0, 10**6)
    next(batches)
    for path in (image_folder / "photographs/train").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"\d\d.png': can't be read \(.*No such file") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_padded_batches_hold_every_image_once():
    images = np.arange(7)
    batches = list(pipeline.padded(images, 3))
    assert all(len(batch) == 3 for batch, _ in batches)
    np.testing.assert_array_equal(np.concatenate([batch[mask] for batch, mask in batches]), images)
