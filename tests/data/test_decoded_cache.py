"""Copies of decoded images."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from score_st.config import ConfigError, load
from score_st.data import __main__ as data_command
from score_st.data import datasets, decoded_cache, pipeline
from score_st.data.labels import labels_of


def checksums(images: np.ndarray, chunk: int) -> list[int]:
    return [zlib.crc32(images[i : i + chunk].tobytes()) for i in range(0, len(images), chunk)]


def prepared(image_folder, chunk: int = 8):
    """The configuration with a prepared copy of the 20 training images, and these."""
    config = load(image_folder / "mine.py", {"data.prepared": str(image_folder / "copy")})
    images = datasets.read(config, "train")
    decoded_cache.write_copy(config, "train", images, chunk)
    return config, np.asarray(images)


def test_a_damaged_part_is_found_when_it_is_read(image_folder):
    """What is intact is still read, in any order and by slices; the error names the images and what to do."""
    config, expected = prepared(image_folder)
    copy = pipeline.load(config, "train")
    assert (copy.shape, copy.dtype, copy.ndim, len(copy), copy.max()) == ((20, 8, 8, 3), np.uint8, 4, 20, 255)
    for index in (3, -1, slice(2, 12), [19, 0, 7], np.arange(20) % 3 == 0, slice(0, 0)):
        np.testing.assert_array_equal(copy[index], expected[index])
    path = image_folder / "copy/FOLDER_train_8x3.npy"
    content = bytearray(path.read_bytes())
    content[-20 * 192 + 10 * 192 : -20 * 192 + 11 * 192] = bytes(192)  # image 10 is black
    path.write_bytes(content)
    copy = pipeline.load(config, "train")
    np.testing.assert_array_equal(copy[[0, 7, 16, 19]], expected[[0, 7, 16, 19]])
    for read in (lambda: copy[10], lambda: copy[8:9], lambda: np.asarray(copy), lambda: copy[[0, 15]]):
        with pytest.raises(ConfigError, match="FOLDER_train_8x3: images 8 to 15 are damaged .*; delete the copy"):
            read()
    path.write_bytes(content[:-1])  # shorter than its header says
    with pytest.raises(ConfigError, match="FOLDER_train_8x3: the prepared copy is damaged"):
        pipeline.load(config, "train")


@pytest.mark.parametrize("damage", ["cut", "zeros", "an earlier version"])
def test_a_part_that_lost_images_is_not_resumed(image_folder, damage):
    """As after a crash of the machine; the copy is made from the start, and right."""
    config = load(image_folder / "mine.py", {"data.prepared": str(image_folder / "copy")})
    last, content = image_folder / "photographs/train/19.png", (image_folder / "photographs/train/19.png").read_bytes()
    expected = np.asarray(datasets.read(config, "train"))
    last.write_bytes(b"broken")
    with pytest.raises(ConfigError, match="19.png"):
        decoded_cache.write_copy(config, "train", datasets.read(config, "train"), 8)
    last.write_bytes(content)
    part, note = (image_folder / "copy" / f"FOLDER_train_8x3.{end}" for end in ("part", "part.json"))
    written = part.read_bytes()
    assert json.loads(note.read_text())["done"] == 16
    if damage == "an earlier version":
        about = json.loads(note.read_text())
        note.write_text(json.dumps({key: about[key] for key in ("settings", "shape", "done", "crc32")}))
    else:
        part.write_bytes(written[:-2000] if damage == "cut" else written[:1000] + bytes(len(written) - 1000))
    decoded_cache.write_copy(config, "train", datasets.read(config, "train"), 8)
    np.testing.assert_array_equal(pipeline.load(config, "train"), expected)
    assert not part.exists() and not note.exists()


def test_a_copy_without_checksums_loads_and_says_so(image_folder, capsys):
    config, expected = prepared(image_folder)
    path = image_folder / "copy/FOLDER_train_8x3.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({key: about[key] for key in ("settings", "shape", "done", "crc32")}))
    np.testing.assert_array_equal(pipeline.load(config, "train"), expected)
    assert "without checksums; delete it to have it made with them" in capsys.readouterr().err
    for about["checksums"] in ([1], "x", [None] * 3):
        path.write_text(json.dumps(about))
        with pytest.raises(ConfigError, match="the prepared copy is damaged"):
            pipeline.load(config, "train")


def test_a_copy_has_the_classes(image_folder):
    """Of folders here; they are compared by their checksum, and the originals are not read."""
    for path in sorted((image_folder / "photographs/train").iterdir()):
        folder = path.parent / ("ant" if path.name < "07" else "bee")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    config, expected = prepared(image_folder)
    (image_folder / "photographs").rename(image_folder / "gone")
    copy = pipeline.load(config, "train")
    np.testing.assert_array_equal(copy, expected)
    assert labels_of(copy).tolist() == [0] * 7 + [1] * 13
    path = image_folder / "copy/FOLDER_train_8x3.labels.npy"
    np.save(path, labels_of(copy) + 1)
    with pytest.raises(ConfigError, match="the prepared copy is damaged .its labels are damaged"):
        pipeline.load(config, "train")


def test_a_copy_of_a_folder_that_moved(image_folder):
    """It serves the same images elsewhere, not others."""
    config, expected = prepared(image_folder)
    (image_folder / "photographs").rename(image_folder / "moved")
    config.data.dir = str(image_folder / "moved")
    np.testing.assert_array_equal(pipeline.load(config, "train"), expected)
    (image_folder / "moved/train/07.png").unlink()
    with pytest.raises(ConfigError, match="name another data.prepared"):
        pipeline.load(config, "train")


def test_levels_of_a_copy(image_folder):
    config, _ = prepared(image_folder)
    config.data.num_levels = 17
    with pytest.raises(ConfigError, match="FOLDER has values up to 255"):
        pipeline.load(config, "train")


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
    note = {"settings": settings, "shape": [20, 8, 8, 3], "chunk": 4, "done": 8}
    note |= {"crc32": zlib.crc32(expected[:8].tobytes()), "checksums": checksums(expected[:8], 4)}
    assert json.loads((copy / "FOLDER_train_8x3.part.json").read_text()) == note
    assert decoded_cache.open_copy(config, "train", lambda: expected) is None
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
    about = json.loads((copy / "FOLDER_train_8x3.json").read_text())
    assert about["crc32"] == zlib.crc32(expected.tobytes()) and about["checksums"] == checksums(expected, 4)
    elsewhere = load(image_folder / "mine.py", {"data.prepared": str(copy), "data.dir": "elsewhere"})
    with pytest.raises(ConfigError, match="name another data.prepared"):
        pipeline.load(elsewhere, "train")
