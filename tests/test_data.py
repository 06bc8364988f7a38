"""Images from files of the original formats."""

import gzip
import struct

import numpy as np
import pytest

from score_st import config, data


def idx(images: np.ndarray) -> bytes:
    """As LeCun's page and Fashion-MNIST's release have it: 0, 0, the type's code, dimensions, sizes, bytes."""
    return struct.pack(f">BBBB{images.ndim}I", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


@pytest.fixture
def fashion():
    made = config.default()
    made.data.update(dataset="FASHION_MNIST", image_size=32, num_channels=1)
    return made


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_fashion_mnist_in_a_black_frame(fashion, tmp_path, pack):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    suffix = ".gz" if pack is gzip.compress else ""
    for stem, part in (("train", images[:3]), ("t10k", images[3:])):
        (tmp_path / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(part)))
    fashion.data.dir = str(tmp_path)
    train, test = (data.load(fashion, split) for split in ("train", "test"))
    assert train.shape == (3, 32, 32, 1) and test.shape == (2, 32, 32, 1) and train.dtype == np.uint8
    np.testing.assert_array_equal(train[:, 2:-2, 2:-2, 0], images[:3])
    np.testing.assert_array_equal(test[:, 2:-2, 2:-2, 0], images[3:])
    assert train.sum() == images[:3].sum()


def test_a_damaged_file_is_named(fashion, tmp_path):
    fashion.data.dir = str(tmp_path / "none")
    with pytest.raises(config.ConfigError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        data.fashion_mnist(fashion, "train")
    whole, path = idx(np.zeros((2, 28, 28), np.uint8)), tmp_path / "train-images-idx3-ubyte"
    packed = gzip.compress(whole)
    cases = [b"", whole[:3], whole[:10], whole[:-1], whole + b"\0", b"\0\0\x0d" + whole[3:], packed[:20], packed[:-9]]
    fashion.data.dir = str(tmp_path)
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(config.ConfigError, match=r"train-images-idx3-ubyte: (is no idx|can't be read)"):
            data.fashion_mnist(fashion, "train")
    path.write_bytes(idx(np.zeros((2, 14, 14), np.uint8)))
    with pytest.raises(config.ConfigError, match=r"shape \(2, 14, 14\); should be \[N, 28, 28\]"):
        data.fashion_mnist(fashion, "train")
