"""Each data set from small files made as its release has them, and pictures of every kind."""

import dataclasses
import hashlib
import io
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.image_files import crc32c, field, file, progressive_gan, settings

from score_st import config
from score_st.data import datasets, pipeline
from score_st.data import images as pictures

RNG = np.random.default_rng(0)


def noise(*shape) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def both(made):
    return [np.asarray(pipeline.load(made, split)) for split in ("train", "test")]


def rows(images: np.ndarray) -> np.ndarray:
    """[N, 3072], red, green and blue one after the other."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


# ---- resizing


def test_resize_has_the_bits_of_tensorflow(reference):
    """Of tf.image.resize(antialias=True) in TensorFlow 2.21, called as datasets.py does, from the decoded pixels."""
    stored = reference("resize")
    image = pictures.picture(stored["celeba_file"].tobytes(), 3)
    unit = np.asarray(image)[39:179, 19:159] * np.float32(1 / 255)
    np.testing.assert_array_equal(pictures.resize(unit, 64, "bilinear"), stored["celeba_64"])
    np.testing.assert_array_equal(pictures.celeba(image, 64), np.rint(stored["celeba_64"] * 255).astype(np.uint8))
    for case in ("wide", "tall", "small", "same"):
        image = pictures.picture(stored[f"lsun_{case}_file"].tobytes(), 3)
        expected = stored[f"lsun_{case}"]
        np.testing.assert_array_equal(pictures.lsun(image, len(expected)), expected)
    image = pictures.picture(stored["lsun_wide_file"].tobytes(), 3)
    pixels = np.asarray(image.crop(pictures.square(image)))
    np.testing.assert_array_equal(pictures.resize(pixels, 32, "bicubic"), stored["lsun_wide_float"])
    for name, arrange in (("celeba_jpeg", pictures.celeba), ("lsun_jpeg", pictures.lsun)):
        image = pictures.as_tensorflow(stored[f"{name}_file"].tobytes(), 3)
        np.testing.assert_array_equal(arrange(image, len(stored[name])), stored[name])
        other = arrange(pictures.picture(stored[f"{name}_file"].tobytes(), 3), len(stored[name]))
        assert (other != stored[name]).mean() > 0.5  # Pillow's accurate DCT
    assert stored["lsun_wide_float"].min() < 0 and stored["lsun_wide_float"].max() > 255  # it overshoots


# ---- the formats of the releases


def python2_pickle(images, name="data") -> bytes:
    """As Python 2 with protocol 2 wrote CIFAR-10: module names of old NumPy, strings that are bytes."""
    raw = pickle.dumps({b"batch_label": b"x", b"labels": [0] * len(images), name.encode(): rows(images)}, 2)
    return raw.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


@pytest.mark.parametrize("version", ["py", "bin"])
def test_cifar10(tmp_path, version):
    images = noise(12, 32, 32, 3)
    folder = tmp_path / f"cifar-10-batches-{version}"
    folder.mkdir()
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        part = images[2 * i : 2 * i + 2]
        labelled = np.concatenate([np.full((2, 1), i, np.uint8), rows(part)], axis=1)
        path, content = (name, python2_pickle(part)) if version == "py" else (f"{name}.bin", labelled.tobytes())
        (folder / path).write_bytes(content)
    train, test = both(settings("CIFAR10", tmp_path))
    np.testing.assert_array_equal(train, images[:10])
    np.testing.assert_array_equal(test, images[10:])


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
    for content in contents:
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(config.ConfigError, match="test_batch: can't be read"):
            pipeline.load(settings("CIFAR10", tmp_path), "test")
    assert not (tmp_path / "ran").exists()


def test_svhn(tmp_path):
    import scipy.io

    images = {"train": noise(3, 32, 32, 3), "test": noise(2, 32, 32, 3)}
    for split, array in images.items():
        labels = np.ones((len(array), 1), np.uint8)
        matrix = {"X": np.moveaxis(array, 0, 3), "y": labels}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", matrix, do_compression=True)
    train, test = both(settings("SVHN", tmp_path))
    np.testing.assert_array_equal(train, images["train"])
    np.testing.assert_array_equal(test, images["test"])
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(config.ConfigError, match="test_32x32.mat: can't be read"):
        pipeline.load(settings("SVHN", tmp_path), "test")


def test_celeba(tmp_path, reference):
    stored = reference("resize")
    (tmp_path / "img_align_celeba").mkdir()
    for i in range(1, 6):
        content = stored["celeba_jpeg_file"].tobytes() if i == 1 else file(noise(218, 178, 3), "JPEG")
        (tmp_path / f"img_align_celeba/{i:06d}.jpg").write_bytes(content)
    lines = "".join(f"{i:06d}.jpg {part}\n" for i, part in enumerate([0, 0, 1, 2, 0], 1))
    (tmp_path / "list_eval_partition.txt").write_text(lines)
    train, test = both(settings("CELEBA", tmp_path, image_size=64))
    assert train.shape == (3, 64, 64, 3) and test.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(train[0], stored["celeba_jpeg"])


def test_imagenet32_as_folder_and_tar(tmp_path):
    images = noise(4, 32, 32, 3)
    with tarfile.open(tmp_path / "train_32x32.tar", "w") as tar:
        folder = tarfile.TarInfo("train_32x32/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, image in enumerate(images[:3]):
            info, content = tarfile.TarInfo(f"train_32x32/{i:07d}.png"), file(image)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "valid_32x32").mkdir()
    (tmp_path / "valid_32x32/00001.png").write_bytes(file(images[3]))
    train, test = both(settings("IMAGENET32", tmp_path))
    np.testing.assert_array_equal(np.concatenate([train, test]), images)


def test_imagenet32_of_2017(tmp_path):
    images = noise(11, 32, 32, 3)
    for i in range(10):
        labels = np.ones(1, np.int64)
        np.savez(
            tmp_path / f"train_data_batch_{i + 1}.npz", data=rows(images[i : i + 1]), labels=labels, mean=np.ones(3072)
        )
    np.savez(tmp_path / "val_data.npz", data=rows(images[10:]), labels=labels)
    train, test = both(settings("IMAGENET32_RESIZED", tmp_path))
    np.testing.assert_array_equal(np.concatenate([train, test]), images)


def test_stl10(tmp_path):
    """48x48 as torchvision's Resize(48) makes it, Pillow's bilinear filter; columns come first in the file."""
    images, folder = noise(6, 96, 96, 3), tmp_path / "stl10_binary"
    folder.mkdir()
    for name, part in (("train", images[:1]), ("unlabeled", images[1:4]), ("test", images[4:])):
        (folder / f"{name}_X.bin").write_bytes(part.transpose(0, 3, 2, 1).tobytes())
    expected = np.stack([np.asarray(Image.fromarray(image).resize((48, 48), Image.BILINEAR)) for image in images])
    train, test = both(settings("STL10", tmp_path, image_size=48))
    np.testing.assert_array_equal(np.concatenate([train, test]), expected)
    with (folder / "test_X.bin").open("ab") as cut:
        cut.write(b"1234")
    with pytest.raises(config.ConfigError, match="test_X.bin, image 2': can't be read"):
        np.asarray(pipeline.load(settings("STL10", tmp_path, image_size=48), "test"))


def test_lsun(tmp_path, reference):
    lmdb = pytest.importorskip("lmdb")
    stored = reference("resize")
    files = {name: stored[f"lsun_{name}_file"].tobytes() for name in ("small", "wide", "jpeg")}
    files["webp"] = file(noise(40, 50, 3), "WEBP", lossless=True)
    for split, names in (("train", ("small", "webp", "jpeg")), ("val", ("wide",))):
        with lmdb.open(str(tmp_path / f"church_outdoor_{split}_lmdb"), map_size=1 << 20) as base:
            with base.begin(write=True) as transaction:
                for name in names:
                    transaction.put(hashlib.sha1(name.encode()).hexdigest().encode(), files[name])
    made = settings("LSUN", tmp_path, category="church_outdoor", image_size=40)
    train, test = both(made)
    assert (train.shape, test.shape) == ((3, 40, 40, 3), (1, 40, 40, 3))
    order = sorted(("small", "webp", "jpeg"), key=lambda name: hashlib.sha1(name.encode()).hexdigest())
    for name in ("small", "jpeg"):
        np.testing.assert_array_equal(train[order.index(name)], stored[f"lsun_{name}"])
    twice = [pipeline.load(made, "test") for _ in range(2)]  # lmdb itself opens nothing twice
    np.testing.assert_array_equal(*twice)
    with pytest.raises(config.ConfigError) as error:
        pipeline.load(settings("LSUN", tmp_path, category="bedroom", image_size=40), "train")
    assert "bedroom_train_lmdb" in str(error.value) and "dl.yf.io/lsun/scenes" in str(error.value)


def test_tfrecords(tmp_path):
    assert crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    images, path = noise(3, 16, 16, 3), tmp_path / "FFHQ/ffhq-r04.tfrecords"
    path.parent.mkdir()
    whole = b"".join(progressive_gan(image, packed) for image, packed in zip(images, (True, False, True), strict=True))
    path.write_bytes(whole)
    for name in ("FFHQ", "CelebAHQ"):
        made = settings(name, tmp_path, image_size=16, tfrecords_path="FFHQ/ffhq-r04.tfrecords")
        train, test = both(made)
        np.testing.assert_array_equal(train, images)
        np.testing.assert_array_equal(test, images)
    changed = bytearray(whole)
    changed[-100] ^= 1
    for content, message in (
        (whole[:-1], "can't be read .cut off in record 2"),
        (whole + b"x", "no TFRecord, or a broken one, at byte"),
        (b"PK\3\4" * 9, "at byte 0"),
        (bytes(changed), "image 2': can't be read .its checksum is wrong"),
    ):
        path.write_bytes(content)
        with pytest.raises(config.ConfigError, match=message):
            both(made)
    path.write_bytes(whole)
    with pytest.raises(config.ConfigError, match=r"is \[16, 16, 3\]; should be \[32, 32, 3\]"):
        pipeline.load(settings("FFHQ", tmp_path, tfrecords_path=str(path)), "train")


# ---- anyone's own


def test_arrays(tmp_path):
    images = noise(30, 8, 8, 3)
    np.save(tmp_path / "all.npy", images)
    train, test = both(settings("NPY", tmp_path / "all.npy", image_size=8))
    assert (len(train), len(test)) == (27, 3)
    np.testing.assert_array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(images, axis=0))
    np.savez(tmp_path / "two.npz", x_train=images[:20], x_test=images[20:])
    train, test = both(settings("NPZ", tmp_path / "two.npz", image_size=8))
    np.testing.assert_array_equal(np.concatenate([train, test]), images)
    for name, part in (("train", images[:20, ..., 0]), ("val", images[20:, ..., 0])):
        np.save(tmp_path / f"{name}.npy", part)
    train, test = both(settings("NPY", tmp_path, image_size=8, num_channels=1))
    np.testing.assert_array_equal(np.concatenate([train, test]), images[..., :1])


def test_arrays_that_are_none(tmp_path):
    path = tmp_path / "mine.npz"
    for save, array, message in (
        (np.savez, dict(images=np.array([{}, {}])), "allow_pickle=False"),
        (np.savez, dict(pictures=noise(3, 8, 8)), "can't be read .has pictures; should have one of test, x_test"),
        (np.savez, dict(images=np.zeros((3, 8, 8))), "is float64"),
        (np.savez, dict(images=noise(3, 3, 8, 8)), "should be uint8"),
        (np.savez, dict(images=noise(1, 8, 8, 3)), "only 1 images, none for a test set"),
    ):
        save(path, **array)
        with pytest.raises(config.ConfigError, match=message):
            pipeline.load(settings("NPZ", path, image_size=8), "test")
    for content in (b"", b"PK\3\4", path.read_bytes()[:-60], pickle.dumps({})):
        path.write_bytes(content)
        with pytest.raises(config.ConfigError, match="can't be read"):
            pipeline.load(settings("NPZ", path, image_size=8), "test")


@pytest.mark.parametrize("split_in_names", [True, False])
def test_array_records(tmp_path, split_in_names):
    """Plain files, and the examples that TensorFlow Datasets writes with --file_format=array_record."""
    from array_record.python.array_record_module import ArrayRecordWriter

    images = noise(10, 8, 8, 3)
    names = ["my-train.array_record-00000-of-00001", "my-validation.array_record-00000-of-00001"]
    names = names if split_in_names else ["a.array_record", "b.array_record"]
    for name, part in zip(names, (images[:7], images[7:]), strict=True):
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for i, image in enumerate(part):
            entry = field(1, b"image") + field(2, field(1, field(1, file(image))))
            label = field(1, b"label") + field(2, field(3, field(1, b"\x05")))
            writer.write(field(1, field(1, label) + field(1, entry)) if i % 2 else file(image))
        writer.close()
    train, test = both(settings("ARRAYRECORD", tmp_path, image_size=8))
    assert len(train) == (7 if split_in_names else 9)
    np.testing.assert_array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(images, axis=0))


def test_photographs():
    """Both splits always the same, and from different parts of the photographs."""
    made = settings("PHOTOS", "")
    train, test = both(made)
    assert (train.shape, test.shape) == ((10000, 32, 32, 3), (1000, 32, 32, 3))
    np.testing.assert_array_equal(train, pipeline.load(made, "train"))
    keys = [{image[:, :1].tobytes() for image in part} for part in (train, test)]
    assert not keys[0] & keys[1]
    assert train.std() > 40


# ---- folders and pictures


def write(folder, files: dict[str, bytes]):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_folders(tmp_path):
    """With classes or not, with their own split or not; odd names; hidden files and other files are left out."""
    images = noise(6, 8, 8, 3)
    names = ["cats/1.png", "dogs/1.png", "a b.PNG", "new\nline.png", "ünï.bmp", "dogs/deep/er/2.png"]
    kinds = ["PNG", "PNG", "PNG", "PNG", "BMP", "PNG"]
    files = {name: file(image, kind) for name, image, kind in zip(names, images, kinds, strict=True)}
    write(tmp_path / "one", files | {"notes.txt": b"x", ".hidden.png": b"x", ".cache/x.png": b"x"})
    train, test = both(settings("FOLDER", tmp_path / "one", image_size=8))
    assert (len(train), len(test)) == (5, 1)
    np.testing.assert_array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(images, axis=0))
    for split, part in (("train", names[:4]), ("valid", names[4:])):
        write(tmp_path / "two" / split, {name: files[name] for name in part})
    train, test = both(settings("FOLDER", tmp_path / "two", image_size=8))
    order = [*sorted(names[:4]), *sorted(names[4:])]
    np.testing.assert_array_equal(np.concatenate([train, test]), images[[names.index(name) for name in order]])
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no images there"), (tmp_path / "none", "no file there")):
        with pytest.raises(config.ConfigError, match=message):
            pipeline.load(settings("FOLDER", folder), "train")


def test_pictures_of_every_kind():
    """One scene in every mode: to 8 bits, upright, on white."""
    scene = np.zeros((8, 8, 3), np.uint8)
    scene[:4] = 200
    scene[:, :4, 0] = 100
    grey = scene[..., 1]
    clear = np.dstack([scene, np.full((8, 8), 255, np.uint8)])
    clear[0, 0, 3] = 0
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise
    cases = {
        "RGB": (file(scene), scene),
        "L": (file(grey), np.dstack([grey] * 3)),
        "16 bits": (file(Image.fromarray(grey.astype(np.uint16) * 257)), np.dstack([grey] * 3)),
        "RGBA": (file(clear), np.where(clear[..., 3:] == 0, 255, scene).astype(np.uint8)),
        "P": (file(Image.fromarray(scene).quantize(4)), scene),
        "1": (file(Image.fromarray(grey > 100)), np.dstack([(grey > 100) * np.uint8(255)] * 3)),
        "CMYK": (file(Image.fromarray(scene).convert("CMYK"), "TIFF"), scene),
        "EXIF": (file(np.rot90(scene).copy(), exif=turned), scene),
    }
    for name, (content, expected) in cases.items():
        np.testing.assert_array_equal(np.asarray(pictures.picture(content, 3)), expected, name)
        assert pictures.picture(content, 1).mode == "L"
        assert bool(pictures.remarks(content, 8)) == (name != "RGB")
    jpeg = np.asarray(pictures.picture(file(Image.fromarray(scene).convert("CMYK"), "JPEG", quality=95), 3)).astype(
        int
    )
    assert np.abs(jpeg - scene).mean() < 10
    np.testing.assert_array_equal(
        pictures.fit(pictures.picture(file(scene[:1, :1]), 3), 4), np.full((4, 4, 3), scene[0, 0])
    )
    assert pictures.remarks(file(scene[:1, :1]), 8) == ["smaller than 8 pixels"]
    assert pictures.remarks(b"no picture", 8) == []
    for content in (
        b"",
        b"no picture",
        file(noise(99, 99, 3))[:5000],
        file(noise(99, 99, 3), "JPEG")[:2000],
    ):
        with pytest.raises((ValueError, OSError, SyntaxError)):
            pictures.picture(content, 3)
    with pytest.raises(ValueError, match="32 bits a channel"):
        pictures.picture(file(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), 3)


def test_a_broken_or_missing_picture_is_named(tmp_path):
    write(tmp_path / "train", {f"{i}.png": file(noise(8, 8, 3)) for i in range(4)} | {"a\nb.png": b"broken"})
    write(tmp_path / "test", {"0.png": file(noise(8, 8, 3))})
    made = settings("FOLDER", tmp_path, image_size=8)
    images = pipeline.load(made, "train")
    with pytest.raises(config.ConfigError, match=r"a\\nb.png': can't be read \(no picture") as error:
        images[:]
    assert "\n" not in str(error.value)
    images = pipeline.load(made, "train")
    (tmp_path / "train/2.png").unlink()
    with pytest.raises(config.ConfigError, match=r"2.png': can't be read \(.*No such file"):
        images[[0, 2]]
    with pytest.raises(config.ConfigError, match=r"num_channels=2: should be 1 or 3"):
        pipeline.load(settings("FOLDER", tmp_path, num_channels=2), "train")


def test_images_are_kept_where_they_fit(tmp_path):
    contents = [noise(8, 8, 3) for _ in range(5)]
    write(tmp_path / "train", {f"{i}.png": file(image) for i, image in enumerate(contents)})
    made = settings("FOLDER", tmp_path, image_size=8)
    for memory, kept in ((4.0, True), (8 * 8 * 3 * 4.9 / 1e9, False)):
        made.data.memory_gb = memory
        images, read = datasets.read(made, "train"), []
        counted = lambda i, images=images, read=read: read.append(i) or images.read(i)
        images = dataclasses.replace(images, read=counted)
        np.testing.assert_array_equal(images[[1, 0, 1]], np.stack([contents[i] for i in (1, 0, 1)]))
        np.testing.assert_array_equal(images[-1], contents[-1])
        np.testing.assert_array_equal(images[1:3], np.stack(contents[1:3]))
        np.testing.assert_array_equal(images[np.array([True, False, False, False, True])], np.stack(contents[::4]))
        np.testing.assert_array_equal(np.asarray(images), np.stack(contents))
        assert images[:0].shape == (0, 8, 8, 3)
        assert len(read) == 4 if kept else len(read) > 10
    with pytest.raises(IndexError):
        images[5]


@pytest.mark.parametrize("name", sorted(set(datasets.SOURCES) - {"DIGITS", "FASHION_MNIST", "PHOTOS", "LSUN"}))
def test_what_is_missing_is_said_in_one_line(tmp_path, name):
    made = settings(name, tmp_path / "none", tfrecords_path="x.tfrecords", category="bedroom")
    with pytest.raises(config.ConfigError) as error:
        pipeline.load(made, "train")
    message = str(error.value)
    assert str(tmp_path / "none") in message and datasets.SOURCES[name][1] in message and "\n" not in message


@pytest.mark.parametrize("name, package", [("LSUN", "lmdb"), ("FFHQ", "google-crc32c"), ("CELEBA", "simplejpeg")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    (tmp_path / "x.tfrecords").write_bytes(b"123456789012")
    write(
        tmp_path, {"img_align_celeba/1.jpg": file(noise(218, 178, 3), "JPEG"), "list_eval_partition.txt": b"1.jpg 0\n"}
    )
    (tmp_path / "bedroom_train_lmdb").mkdir()
    with pytest.raises(config.ConfigError, match=f"config.data.dataset={name}: needs pip install {package}"):
        pipeline.load(settings(name, tmp_path, tfrecords_path="x.tfrecords", category="bedroom"), "train")
