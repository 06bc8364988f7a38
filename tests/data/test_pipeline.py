"""Fashion-MNIST's files, the stream of batches, and the command that looks at a data set."""

import functools
import gzip
import hashlib
import http.server
import json
import struct
import threading
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from score_st import config
from score_st.data import __main__ as data_command
from score_st.data import datasets, decoded_cache, download, pipeline
from score_st.data import images as pictures

ROOT = Path(__file__).parents[2]


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
    train, test = (pipeline.load(fashion, split) for split in ("train", "test"))
    assert train.shape == (3, 32, 32, 1) and test.shape == (2, 32, 32, 1) and train.dtype == np.uint8
    np.testing.assert_array_equal(train[:, 2:-2, 2:-2, 0], images[:3])
    np.testing.assert_array_equal(test[:, 2:-2, 2:-2, 0], images[3:])
    assert train.sum() == images[:3].sum()


def test_a_damaged_file_is_named(fashion, tmp_path):
    fashion.data.dir = str(tmp_path / "none")
    with pytest.raises(config.ConfigError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        datasets.fashion_mnist(fashion, "train")
    whole, path = idx(np.zeros((2, 28, 28), np.uint8)), tmp_path / "train-images-idx3-ubyte"
    packed = gzip.compress(whole)
    cases = [b"", whole[:3], whole[:10], whole[:-1], whole + b"\0", b"\0\0\x0d" + whole[3:], packed[:20], packed[:-9]]
    fashion.data.dir = str(tmp_path)
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(config.ConfigError, match=r"train-images-idx3-ubyte: (is no idx|can't be read)"):
            datasets.fashion_mnist(fashion, "train")
    path.write_bytes(idx(np.zeros((2, 14, 14), np.uint8)))
    with pytest.raises(config.ConfigError, match=r"is uint8\[2, 14, 14\]; should be uint8 \[N, 28, 28\]"):
        datasets.fashion_mnist(fashion, "train")


# ---- the stream


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("count", [24, 25])
def test_every_example_once_an_epoch(parts, count):
    """For 1, 2 and 3 processes, also where an epoch ends within a batch: 12 epochs in other orders."""
    images, batch = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), 6
    streams = [pipeline.Stream(images, batch, 7, part, parts) for part in range(parts)]
    steps = 12 * count // batch
    seen = np.concatenate([stream.batch(step).ravel() for step in range(steps) for stream in streams])
    epochs = seen.reshape(12, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(count), (12, count)))
    assert len({tuple(epoch) for epoch in epochs}) == 12
    np.testing.assert_array_equal(
        seen, np.concatenate([pipeline.Stream(images, batch, 7).batch(i).ravel() for i in range(steps)])
    )


def test_resumed_with_other_threads():
    """The stream from step 37 is the same for 0, 1, 2 and 5 threads, and as part of the whole."""
    images = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    whole = np.stack(list(pipeline.Stream(images, 8, 3, threads=2).batches(0, 60)))
    for threads in (0, 1, 2, 5):
        rest = list(pipeline.Stream(images, 8, 3, threads=threads).batches(37, 60))
        np.testing.assert_array_equal(np.stack(rest), whole[37:])


@pytest.fixture
def pictured(tmp_path):
    """A configuration of a folder of 20 noisy PNG files to train and 4 to test, 8x8."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    for i, image in enumerate(noise):
        path = tmp_path / "photographs" / ("train" if i < 20 else "test") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    text = "from score_st.config import default\n\n\ndef get_config():\n    config = default()\n"
    text += f"    config.data.update(dataset='FOLDER', dir={str(tmp_path / 'photographs')!r}, image_size=8)\n"
    text += "    config.training.batch_size = 8\n    return config\n"
    (tmp_path / "mine.py").write_text(text)
    return tmp_path


def test_a_file_removed_during_training_is_an_error_of_one_line(pictured):
    made = config.load(pictured / "mine.py", {"data.memory_gb": "0"})
    stream = pipeline.Stream(pipeline.load(made, "train"), 8, 0)
    batches = stream.batches(0, 10**6)
    next(batches)
    for path in (pictured / "photographs/train").iterdir():
        path.unlink()
    with pytest.raises(config.ConfigError, match=r"\d\d.png': can't be read \(.*No such file") as error:
        list(batches)
    assert "\n" not in str(error.value)


# ---- the command


def test_looking_at_a_data_set(pictured, capsys):
    argv = ["--config", str(pictured / "mine.py"), "--workdir", str(pictured / "out")]
    data_command.main(argv)
    found = json.loads((pictured / "out/data_FOLDER.json").read_text())
    images = np.asarray(pipeline.load(config.load(pictured / "mine.py"), "train"))
    assert (found["train"]["count"], found["test"]["count"], found["train"]["shape"]) == (20, 4, [8, 8, 3])
    np.testing.assert_allclose(found["train"]["mean"], images.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["train"]["std"], images.std((0, 1, 2)), atol=1e-4)
    assert found["train"]["max"] == images.max() and found["train"]["repeated"] == 0
    assert found["train"]["crc32"] == f"{zlib.crc32(images.tobytes()):08x}" and found["images_per_second"] > 0
    assert Image.open(pictured / "out/data_FOLDER.png").size[0] > 400
    assert "train: count 20, shape [8, 8, 3]" in capsys.readouterr().out


def test_broken_files_are_counted(pictured):
    for i in (3, 5):
        (pictured / f"photographs/train/{i:02d}.png").write_bytes(b"broken")
    argv = ["--config", str(pictured / "mine.py"), "--workdir", str(pictured / "out")]
    with pytest.raises(config.ConfigError, match="2 of 20 images of train are broken: .*03.png.*05.png"):
        data_command.main(argv)
    assert not (pictured / "out").exists()


def test_a_prepared_copy_goes_on_where_it_was(pictured, monkeypatch):
    """Broken off by a file that is missing for a while; then read without the originals, to the same bytes."""
    monkeypatch.setattr(decoded_cache, "CHUNK", 4)
    folder, copy = pictured / "photographs/train", pictured / "copy"
    made = config.load(pictured / "mine.py", {"data.prepared": str(copy)})
    expected = np.asarray(pipeline.load(config.load(pictured / "mine.py"), "train"))
    argv = ["--config", str(pictured / "mine.py"), "--workdir", str(pictured), f"--config.data.prepared={copy}"]
    content = (folder / "10.png").read_bytes()
    (folder / "10.png").write_bytes(b"broken")
    with pytest.raises(config.ConfigError, match="1 of 20 images of train are broken: .*10.png"):
        data_command.main(argv)
    assert json.loads((copy / "FOLDER_train_8x3.part.json").read_text())["done"] == 8
    assert decoded_cache.opened(made, "train") is None
    (folder / "10.png").write_bytes(content)
    read, image = [], pictures.Encoded.image
    monkeypatch.setattr(pictures.Encoded, "image", lambda self, i: read.append(i) or image(self, i))
    data_command.main(argv)
    assert read[:2] == [0, 0] and sorted(read[2:14]) == list(range(8, 20))  # the first are read to see what they are
    for path in sorted((pictured / "photographs").rglob("*.png")):
        path.unlink()
    images = pipeline.load(made, "train")
    np.testing.assert_array_equal(images, expected)
    assert json.loads((copy / "FOLDER_train_8x3.json").read_text())["crc32"] == zlib.crc32(expected.tobytes())
    with pytest.raises(config.ConfigError, match="name another data.prepared"):
        pipeline.load(
            config.load(pictured / "mine.py", {"data.prepared": str(copy), "data.dir": "elsewhere"}), "train"
        )


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Fashion-MNIST's files (ten images each) at an address that TensorFlow Datasets is told of."""
    root, infos = tmp_path / "served", {}
    root.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        content = gzip.compress(idx(images))
        (root / name).write_bytes(content)
        sums = dict(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=name)
        infos[f"http://127.0.0.1:{server.server_port}/{name}"] = checksums.UrlInfo(**sums)
    monkeypatch.setattr(tfds, "builder_cls", lambda name: types.SimpleNamespace(url_infos=infos))
    yield root, images
    server.shutdown()


def test_what_is_missing_is_fetched_and_checked(served, tmp_path):
    root, images = served
    settings = {"data.download": "True", "data.dir": str(tmp_path / "fashion")}
    made = config.load(ROOT / "configs/vp/FASHION_MNIST/ddpmpp_nll_st.py", settings)
    content = (root / "train-images-idx3-ubyte.gz").read_bytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(content[:-9] + b"123456789")
    with pytest.raises(config.ConfigError, match="FASHION_MNIST can't be fetched .*[Cc]hecksum"):
        download.fetch(made)
    (root / "train-images-idx3-ubyte.gz").write_bytes(content)
    download.fetch(made)
    np.testing.assert_array_equal(pipeline.load(made, "train")[:, 2:-2, 2:-2, 0], images)
    with pytest.raises(config.ConfigError, match="data.download: needs data.dir"):
        download.fetch(config.load(ROOT / "configs/vp/FASHION_MNIST/ddpmpp_nll_st.py"))
    with pytest.raises(config.ConfigError, match="IMAGENET32 is fetched by hand; the others are FASHION_MNIST"):
        download.fetch(config.load(ROOT / "configs/vp/IMAGENET32/ddpmpp_st.py", {"data.dir": "x"}))
