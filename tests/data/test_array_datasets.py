"""Each data set of arrays, from small files like those of its release."""

import os
import pickle
import resource

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.image_files import load_splits, noise, settings

from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.labels import labels_of


def rows(images: np.ndarray) -> np.ndarray:
    """[N, 3072], red, green and blue one after the other."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def test_digits():
    """1,500 and 297 images, no image in both, 17 levels; both splits have the same histograms."""
    config = settings("DIGITS", "", image_size=8, num_channels=1, num_levels=17)
    train, test = load_splits(config)
    labels = [labels_of(pipeline.load(config, split)) for split in ("train", "test")]
    digits = load_digits()
    pairs = zip(digits.images.astype(np.uint8), digits.target, strict=True)
    expected = {image.tobytes(): label for image, label in pairs}
    for images, classes in zip((train, test), labels, strict=True):
        assert [expected[image.tobytes()] for image in images] == classes.tolist()
    assert (train.shape, test.shape, train.dtype) == ((1500, 8, 8, 1), (297, 8, 8, 1), np.uint8)
    keys = [{image.tobytes() for image in split} for split in (train, test)]
    assert not keys[0] & keys[1]
    assert abs(train.mean() - test.mean()) < 0.2 and train.max() == test.max() == 16
    counts = np.stack([(train == level).sum(0) + 1 for level in range(17)]) / (len(train) + 17)
    bits = -np.log2(np.take_along_axis(counts, test.astype(int), axis=0)).mean()
    assert bits == pytest.approx(2.42, abs=0.03)  # bits/dim of a histogram for each pixel


def python2_pickle(images, name="data") -> bytes:
    """As Python 2 with protocol 2 wrote CIFAR-10: module names of old NumPy, strings that are bytes."""
    raw = pickle.dumps({b"batch_label": b"x", b"labels": list(range(len(images))), name.encode(): rows(images)}, 2)
    return raw.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


@pytest.mark.parametrize("version", ["py", "bin"])
def test_cifar10(tmp_path, version):
    images = noise(12, 32, 32, 3)
    folder = tmp_path / f"cifar-10-batches-{version}"
    folder.mkdir()
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        part = images[2 * i : 2 * i + 2]
        labeled = np.concatenate([np.array([[0], [1]], np.uint8), rows(part)], axis=1)
        path, content = (name, python2_pickle(part)) if version == "py" else (f"{name}.bin", labeled.tobytes())
        (folder / path).write_bytes(content)
    train, test = load_splits(settings("CIFAR10", tmp_path))
    np.testing.assert_array_equal(train, images[:10])
    np.testing.assert_array_equal(test, images[10:])
    assert labels_of(pipeline.load(settings("CIFAR10", tmp_path), "train")).tolist() == [0, 1] * 5


def test_a_pickle_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path}/ran'",)

    contents = [pickle.dumps({b"data": Hostile()}), b"", pickle.dumps([1]), python2_pickle(noise(2, 32, 32, 3))[:-900]]
    contents += [
        pickle.dumps({b"data": np.array([{}] * 3072)}),
        pickle.dumps(np.load),
        pickle.dumps({b"data": noise(7)}),
    ]
    nested, doubled = b")" + b"\x85" * 300_000, b")" + b"q\x01h\x01\x86" * 99  # to hash either ends badly
    contents += [b"\x80\x02}" + key + b"Ns." for key in (nested, doubled)]
    contents += [b"\x80\x02" + call + b")R." for call in (nested, doubled)]
    contents += [b"\x80\x02]r\xff\xff\xff\x1f."]  # in Python's memo, 8 GiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in contents:
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(ConfigError, match="test_batch: can't be read"):
            pipeline.load(settings("CIFAR10", tmp_path), "test")
    assert not (tmp_path / "ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_svhn(tmp_path):
    import scipy.io

    images = {"train": noise(3, 32, 32, 3), "test": noise(2, 32, 32, 3)}
    for split, array in images.items():
        labels = np.array([[10], [3], [9]], np.uint8)[: len(array)]
        matrix = {"X": np.moveaxis(array, 0, 3), "y": labels}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", matrix, do_compression=True)
    train, test = load_splits(settings("SVHN", tmp_path))
    np.testing.assert_array_equal(train, images["train"])
    np.testing.assert_array_equal(test, images["test"])
    assert labels_of(pipeline.load(settings("SVHN", tmp_path), "train")).tolist() == [0, 3, 9]
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(ConfigError, match="test_32x32.mat: can't be read"):
        pipeline.load(settings("SVHN", tmp_path), "test")


def test_imagenet32_of_2017(tmp_path):
    images = noise(11, 32, 32, 3)
    for i in range(10):
        others = dict(labels=np.full(1, i + 1, np.int64), mean=np.ones(3072))
        np.savez(tmp_path / f"train_data_batch_{i + 1}.npz", data=rows(images[i : i + 1]), **others)
    np.savez(tmp_path / "val_data.npz", data=rows(images[10:]), labels=np.ones(1, np.int64))
    train, test = load_splits(settings("IMAGENET32_RESIZED", tmp_path))
    np.testing.assert_array_equal(np.concatenate([train, test]), images)
    assert labels_of(pipeline.load(settings("IMAGENET32_RESIZED", tmp_path), "train")).tolist() == list(range(10))


def test_arrays(tmp_path):
    images = noise(30, 8, 8, 3)
    np.save(tmp_path / "all.npy", images)
    train, test = load_splits(settings("NPY", tmp_path / "all.npy", image_size=8))
    assert (len(train), len(test)) == (27, 3)
    np.testing.assert_array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(images, axis=0))
    np.savez(tmp_path / "two.npz", x_train=images[:20], x_test=images[20:])
    train, test = load_splits(settings("NPZ", tmp_path / "two.npz", image_size=8))
    np.testing.assert_array_equal(np.concatenate([train, test]), images)
    classes = np.arange(30) % 7
    arrays = dict(x_train=images[:20], x_test=images[20:], y_train=classes[:20], y_test=classes[20:])
    np.savez(tmp_path / "two.npz", **arrays)
    np.savez(tmp_path / "one.npz", arr_0=images, arr_1=classes)
    for name in ("one", "two"):
        for split in ("train", "test"):
            part = pipeline.load(settings("NPZ", tmp_path / f"{name}.npz", image_size=8), split)
            order = [np.flatnonzero((images == image).all((1, 2, 3)))[0] for image in np.asarray(part)]
            np.testing.assert_array_equal(labels_of(part), classes[order])
    for name, part in (("train", images[:20, ..., 0]), ("val", images[20:, ..., 0])):
        np.save(tmp_path / f"{name}.npy", part)
    train, test = load_splits(settings("NPY", tmp_path, image_size=8, num_channels=1))
    np.testing.assert_array_equal(np.concatenate([train, test]), images[..., :1])


def test_an_array_of_a_users_that_is_no_class_is_left_out(tmp_path, capsys):
    images = noise(30, 8, 8, 3)
    np.savez(tmp_path / "own.npz", images=images, labels=np.eye(30))
    train = pipeline.load(settings("NPZ", tmp_path / "own.npz", image_size=8), "train")
    assert len(train) == 27 and labels_of(train) is None
    assert "its labels are float64[30, 30]; should be 30 whole numbers" in capsys.readouterr().err


def test_files_that_are_not_arrays_of_images(tmp_path):
    path = tmp_path / "mine.npz"
    for save, array, message in (
        (np.savez, dict(images=np.array([{}, {}])), "has objects of Python, which are not read"),
        (np.savez, dict(pictures=noise(3, 8, 8)), "can't be read .has pictures; should have one of test, x_test"),
        (np.savez, dict(images=np.zeros((3, 8, 8))), "is float64"),
        (np.savez, dict(images=noise(3, 3, 8, 8)), "should be uint8"),
        (np.savez, dict(images=noise(1, 8, 8, 3)), "too few images to hold out a test set: 1;"),
    ):
        save(path, **array)
        with pytest.raises(ConfigError, match=message):
            pipeline.load(settings("NPZ", path, image_size=8), "test")
    for content in (b"", b"PK\3\4", path.read_bytes()[:-60], pickle.dumps({})):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="can't be read"):
            pipeline.load(settings("NPZ", path, image_size=8), "test")


def test_photographs():
    """Each split is always the same, and they are from different parts of the photographs."""
    config = settings("PHOTOS", "")
    train, test = load_splits(config)
    assert (train.shape, test.shape) == ((10000, 32, 32, 3), (1000, 32, 32, 3))
    np.testing.assert_array_equal(train, pipeline.load(config, "train"))
    keys = [{image[:, :1].tobytes() for image in part} for part in (train, test)]
    assert not keys[0] & keys[1]
    assert train.std() > 40
