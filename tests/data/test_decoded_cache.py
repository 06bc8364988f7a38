"""Copies of decoded images."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from score_st.config import ConfigError, load
from score_st.data import __main__ as data_command
from score_st.data import datasets, decoded_cache, pipeline


def test_an_interrupted_copy_is_resumed(image_folder):
    """Interrupted by a broken file, then finished and read without the originals, to the same bytes."""
    folder, copy = image_folder / "photographs/train", image_folder / "copy"
    config = load(image_folder / "mine.py", {"data.prepared": str(copy)})
    expected = np.asarray(pipeline.load(load(image_folder / "mine.py"), "train"))
    argv = ["--config", str(image_folder / "mine.py"), "--workdir", str(image_folder)]
    argv.append(f"--config.data.prepared={copy}")
    content = (folder / "10.png").read_bytes()
    (folder / "10.png").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="10.png"):
        decoded_cache.write_copy(config, "train", datasets.read(config, "train"), chunk_size=4)
    with pytest.raises(ConfigError, match="1 of 20 images of train are broken: .*10.png"):
        data_command.main(argv)
    settings = dict(dataset="FOLDER", dir=str(image_folder / "photographs"), category="", tfrecords_path="")
    settings |= dict(image_size=8, num_channels=3)
    note = {"settings": settings, "shape": [20, 8, 8, 3], "done": 8, "crc32": zlib.crc32(expected[:8].tobytes())}
    assert (copy / "FOLDER_train_8x3.part.json").read_text() == json.dumps(note)  # as earlier versions wrote it
    assert decoded_cache.open_copy(config, "train") is None
    (folder / "10.png").write_bytes(content)
    images, numbers = datasets.read(config, "train"), []
    counted = dataclasses.replace(images, read=lambda i: numbers.append(i) or images.read(i))
    decoded_cache.write_copy(config, "train", counted, chunk_size=4)
    assert sorted(numbers) == list(range(8, 20))
    data_command.main(argv)
    for path in (image_folder / "photographs").rglob("*.png"):
        path.unlink()
    np.testing.assert_array_equal(pipeline.load(config, "train"), expected)
    assert pipeline.load(config, "test").shape == (4, 8, 8, 3)
    assert json.loads((copy / "FOLDER_train_8x3.json").read_text())["crc32"] == zlib.crc32(expected.tobytes())
    elsewhere = load(image_folder / "mine.py", {"data.prepared": str(copy), "data.dir": "elsewhere"})
    with pytest.raises(ConfigError, match="name another data.prepared"):
        pipeline.load(elsewhere, "train")
