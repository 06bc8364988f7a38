"""MNIST and the sets of its format, from small files like those of their releases."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from support.image_files import idx, load_splits, noise, settings

from score_st.config import ConfigError
from score_st.data import idx as idx_files
from score_st.data import pipeline
from score_st.data.idx import read_fashion_mnist
from score_st.data.labels import labels_of

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def write(folder, stem, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array(labels, np.uint8))))


@pytest.mark.parametrize("name", ["MNIST", "KMNIST", "FASHION_MNIST"])
def test_files_of_the_same_name(tmp_path, name):
    """What is of no known release is what the user says."""
    images = noise(5, 28, 28)
    write(tmp_path, "train", images[:3], [7, 0, 9])
    write(tmp_path, "t10k", images[3:], [1, 1])
    config = settings(name, tmp_path, num_channels=1)
    for split, part, labels in (("train", images[:3], [7, 0, 9]), ("test", images[3:], [1, 1])):
        loaded = pipeline.load(config, split)
        np.testing.assert_array_equal(np.asarray(loaded), np.pad(part, ((0, 0), (2, 2), (2, 2)))[..., None])
        assert labels_of(loaded).tolist() == labels


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_a_release_is_told_by_its_checksum(tmp_path):
    content = gzip.decompress((DEBIAN / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert idx_files.KNOWN[hashlib.md5(content).hexdigest()] == "FASHION_MNIST"
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    assert pipeline.load(settings("FASHION_MNIST", tmp_path, num_channels=1), "test").shape == (10_000, 32, 32, 1)
    with pytest.raises(ConfigError, match="is of FASHION_MNIST by its MD5, not of MNIST; set data.dataset=FASHION_MN"):
        pipeline.load(settings("MNIST", tmp_path, num_channels=1), "test")


@pytest.mark.parametrize("category, first", [("letters", 1), ("balanced", 0)])
def test_emnist_is_turned_upright(tmp_path, category, first):
    """A bar on the left is stored as a bar at the top; letters are stored as 1 ... 26."""
    bars = np.zeros((3, 28, 28), np.uint8)
    bars[:, :, 3] = [[10], [20], [30]]
    write(tmp_path / "gzip", f"emnist-{category}-train", bars.transpose(0, 2, 1), [first, first + 25, first + 1])
    write(tmp_path / "gzip", f"emnist-{category}-test", bars[:1].transpose(0, 2, 1), [first])
    config = settings("EMNIST", tmp_path, num_channels=1, category=category)
    train = pipeline.load(config, "train")
    np.testing.assert_array_equal(np.asarray(train)[:, 2:-2, 2:-2, 0], bars)
    assert labels_of(train).tolist() == [0, 25, 1] and len(pipeline.load(config, "test")) == 1
    with pytest.raises(ConfigError, match="no emnist-digits-train-images.*set data.category to byclass, bymerge"):
        pipeline.load(settings("EMNIST", tmp_path, num_channels=1, category="digits"), "train")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_fashion_mnist_is_padded_with_black(tmp_path, pack):
    images = noise(5, 28, 28)
    suffix = ".gz" if pack is gzip.compress else ""
    for stem, part in (("train", images[:3]), ("t10k", images[3:])):
        (tmp_path / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(part)))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(np.array([9, 0, 4], np.uint8))))
    config = settings("FASHION_MNIST", tmp_path, num_channels=1)
    train, test = load_splits(config)
    assert labels_of(pipeline.load(config, "train")).tolist() == [9, 0, 4]
    assert labels_of(pipeline.load(config, "test")) is None
    assert train.shape == (3, 32, 32, 1) and test.shape == (2, 32, 32, 1) and train.dtype == np.uint8
    np.testing.assert_array_equal(train[:, 2:-2, 2:-2, 0], images[:3])
    np.testing.assert_array_equal(test[:, 2:-2, 2:-2, 0], images[3:])
    assert train.sum() == images[:3].sum()


def test_fashion_mnist_at_half_the_size(tmp_path):
    """Means of 2x2 pixels after padding, rounded half up."""
    images = noise(3, 28, 28)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    small = pipeline.load(settings("FASHION_MNIST", tmp_path, num_channels=1, image_size=16), "train")
    assert small.shape == (3, 16, 16, 1) and not small[:, [0, -1]].any() and small.dtype == np.uint8
    blocks = images.astype(float).reshape(3, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(3, 14, 14, 4)
    np.testing.assert_array_equal(small[:, 1:-1, 1:-1, 0], np.floor(blocks.mean(-1) + 0.5))


def test_a_damaged_idx_file_is_named(tmp_path):
    config, path = settings("FASHION_MNIST", tmp_path, num_channels=1), tmp_path / "train-images-idx3-ubyte"
    with pytest.raises(ConfigError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        read_fashion_mnist(config, "train")
    intact = idx(np.zeros((2, 28, 28), np.uint8))
    packed = gzip.compress(intact)
    damaged = [b"", intact[:3], intact[:10], intact[:-1], intact + b"\0", b"\0\0\x0d" + intact[3:]]
    damaged += [
        idx(np.zeros((0, 28, 28), np.uint8)),
        struct.pack(">BBBB6I", 0, 0, 8, 6, 1, 2**32 - 1, 9, 2**32 - 1, 9, 0),
    ]
    damaged += [struct.pack(">BBBB3I", 0, 0, 8, 3, 10**9, 28, 28), gzip.compress(intact + bytes(2**20))]
    damaged.append(packed[:20] + bytes([packed[20] ^ 1]) + packed[21:])
    for content in (*damaged, packed[:20], packed[:-9]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="train-images-idx3-ubyte: can't be read"):
            read_fashion_mnist(config, "train")
    path.write_bytes(idx(np.zeros((2, 14, 14), np.uint8)))
    with pytest.raises(ConfigError, match=r"is uint8\[2, 14, 14\]; should be uint8 \[N, 28, 28\]"):
        read_fashion_mnist(config, "train")
