"""Downloads by TensorFlow Datasets, from a server of the test's own."""

import functools
import gzip
import hashlib
import http.server
import threading
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support.image_files import idx, noise, settings
from tensorflow_datasets.core.download import checksums

from score_st.config import ConfigError
from score_st.data import download, pipeline


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Fashion-MNIST's files, ten images each, at an address that TensorFlow Datasets is given."""
    root, infos = tmp_path / "served", {}
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    images = noise(10, 28, 28)
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        content = gzip.compress(idx(images))
        (root / name).write_bytes(content)
        sums = dict(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=name)
        infos[f"http://127.0.0.1:{server.server_port}/{name}"] = checksums.UrlInfo(**sums)
    monkeypatch.setattr(tfds, "builder_cls", lambda name: types.SimpleNamespace(url_infos=infos))
    yield root, images
    server.shutdown()


def test_missing_files_are_fetched_and_checked(served, tmp_path):
    root, images = served
    config = settings("FASHION_MNIST", tmp_path / "fashion", num_channels=1, download=True)
    content = (root / "train-images-idx3-ubyte.gz").read_bytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(content[:-9] + b"123456789")
    with pytest.raises(ConfigError, match="FASHION_MNIST can't be fetched .*[Cc]hecksum"):
        pipeline.load(config, "train")
    (root / "train-images-idx3-ubyte.gz").write_bytes(content)
    np.testing.assert_array_equal(pipeline.load(config, "train")[:, 2:-2, 2:-2, 0], images)
    with pytest.raises(ConfigError, match="data.download: needs data.dir"):
        download.fetch(settings("FASHION_MNIST", ""))
    with pytest.raises(
        ConfigError, match="IMAGENET32 has to be fetched by hand; it can download FASHION_MNIST, .*EMNIST, CIFAR10"
    ):
        download.fetch(settings("IMAGENET32", "x"))
