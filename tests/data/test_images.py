"""Decoding, resizing and cropping, and lazily decoded images."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support.image_files import encode, noise, settings, write_files

from score_st.config import ConfigError
from score_st.data import datasets, pipeline
from score_st.data.images import (
    central_square,
    decode_as_tensorflow,
    decode_image,
    remarks,
    resize,
    resize_celeba,
    resize_lsun,
    resize_square,
)


def test_resize_has_the_bits_of_tensorflow(reference):
    """Against tf.image.resize(antialias=True) of TensorFlow 2.21, called as the official datasets.py calls it."""
    stored = reference("resize")
    image = decode_image(stored["celeba_file"].tobytes(), 3)
    unit = np.asarray(image)[39:179, 19:159] * np.float32(1 / 255)
    np.testing.assert_array_equal(resize(unit, 64, "bilinear"), stored["celeba_64"])
    np.testing.assert_array_equal(resize_celeba(image, 64), np.rint(stored["celeba_64"] * 255).astype(np.uint8))
    for case in ("wide", "tall", "small", "same"):
        image = decode_image(stored[f"lsun_{case}_file"].tobytes(), 3)
        expected = stored[f"lsun_{case}"]
        np.testing.assert_array_equal(resize_lsun(image, len(expected)), expected)
    image = decode_image(stored["lsun_wide_file"].tobytes(), 3)
    pixels = np.asarray(image.crop(central_square(image)))
    np.testing.assert_array_equal(resize(pixels, 32, "bicubic"), stored["lsun_wide_float"])
    for name, arrange in (("celeba_jpeg", resize_celeba), ("lsun_jpeg", resize_lsun)):
        image = decode_as_tensorflow(stored[f"{name}_file"].tobytes(), 3)
        np.testing.assert_array_equal(arrange(image, len(stored[name])), stored[name])
        other = arrange(decode_image(stored[f"{name}_file"].tobytes(), 3), len(stored[name]))
        assert (other != stored[name]).mean() > 0.5  # Pillow's accurate DCT
    assert stored["lsun_wide_float"].min() < 0 and stored["lsun_wide_float"].max() > 255  # it overshoots


def test_image_files_of_every_kind():
    """One scene in every mode: to 8 bits, upright, on white."""
    scene = np.zeros((8, 8, 3), np.uint8)
    scene[:4] = 200
    scene[:, :4, 0] = 100
    gray = scene[..., 1]
    clear = np.dstack([scene, np.full((8, 8), 255, np.uint8)])
    clear[0, 0, 3] = 0
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise
    cases = {
        "RGB": (encode(scene), scene),
        "L": (encode(gray), np.dstack([gray] * 3)),
        "16 bits": (encode(Image.fromarray(gray.astype(np.uint16) * 257)), np.dstack([gray] * 3)),
        "RGBA": (encode(clear), np.where(clear[..., 3:] == 0, 255, scene).astype(np.uint8)),
        "P": (encode(Image.fromarray(scene).quantize(4)), scene),
        "1": (encode(Image.fromarray(gray > 100)), np.dstack([(gray > 100) * np.uint8(255)] * 3)),
        "CMYK": (encode(Image.fromarray(scene).convert("CMYK"), "TIFF"), scene),
        "EXIF": (encode(np.rot90(scene).copy(), exif=turned), scene),
    }
    for name, (content, expected) in cases.items():
        np.testing.assert_array_equal(np.asarray(decode_image(content, 3)), expected, name)
        assert decode_image(content, 1).mode == "L"
        assert bool(remarks(content, 8)) == (name != "RGB")
    jpeg = decode_image(encode(Image.fromarray(scene).convert("CMYK"), "JPEG", quality=95), 3)
    assert np.abs(np.asarray(jpeg).astype(int) - scene).mean() < 10
    pixel = encode(scene[:1, :1])
    np.testing.assert_array_equal(resize_square(decode_image(pixel, 3), 4), np.full((4, 4, 3), scene[0, 0]))
    assert remarks(pixel, 8) == ["smaller than 8 pixels"]
    assert remarks(b"no image", 8) == []
    cut = encode(noise(99, 99, 3))[:5000], encode(noise(99, 99, 3), "JPEG")[:2000]
    for content in (b"", b"no image", *cut):
        with pytest.raises((ValueError, OSError, SyntaxError)):
            decode_image(content, 3)
    with pytest.raises(ValueError, match="32 bits a channel"):
        decode_image(encode(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), 3)


def test_a_broken_or_missing_file_is_named(tmp_path):
    write_files(tmp_path / "train", {f"{i}.png": encode(noise(8, 8, 3)) for i in range(4)} | {"a\nb.png": b"broken"})
    write_files(tmp_path / "test", {"0.png": encode(noise(8, 8, 3))})
    config = settings("FOLDER", tmp_path, image_size=8)
    images = pipeline.load(config, "train")
    with pytest.raises(ConfigError, match=r"a\\nb.png': can't be read \(not an image") as error:
        images[:]
    assert "\n" not in str(error.value)
    images = pipeline.load(config, "train")
    (tmp_path / "train/2.png").unlink()
    with pytest.raises(ConfigError, match=r"2.png': can't be read \(.*No such file"):
        images[[0, 2]]


def test_images_are_kept_where_they_fit(tmp_path):
    contents = [noise(8, 8, 3) for _ in range(5)]
    write_files(tmp_path / "train", {f"{i}.png": encode(image) for i, image in enumerate(contents)})
    write_files(tmp_path / "test", {"0.png": encode(contents[0])})
    config = settings("FOLDER", tmp_path, image_size=8)
    for memory_gb, kept in ((4.0, True), (8 * 8 * 3 * 4.9 / 1e9, False)):
        config.data.memory_gb = memory_gb
        images, numbers = datasets.read(config, "train"), []
        counted = lambda i, images=images, numbers=numbers: numbers.append(i) or images.read(i)
        images = dataclasses.replace(images, read=counted)
        np.testing.assert_array_equal(images[[1, 0, 1]], np.stack([contents[i] for i in (1, 0, 1)]))
        np.testing.assert_array_equal(images[-1], contents[-1])
        np.testing.assert_array_equal(images[1:3], np.stack(contents[1:3]))
        np.testing.assert_array_equal(images[np.array([True, False, False, False, True])], np.stack(contents[::4]))
        np.testing.assert_array_equal(np.asarray(images), np.stack(contents))
        assert images[:0].shape == (0, 8, 8, 3)
        assert len(numbers) == 4 if kept else len(numbers) > 10
    with pytest.raises(IndexError):
        images[5]
