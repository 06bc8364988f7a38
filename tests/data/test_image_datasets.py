"""Each data set of encoded images, from small files like those of its release."""

import hashlib
import io
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.image_files import (
    crc32c,
    encode,
    example,
    field,
    load_splits,
    noise,
    progressive_gan,
    settings,
    write_files,
    write_records,
)

from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.labels import labels_of


def test_celeba(tmp_path, reference):
    stored = reference("resize")
    (tmp_path / "img_align_celeba").mkdir()
    for i in range(1, 6):
        content = stored["celeba_jpeg_file"].tobytes() if i == 1 else encode(noise(218, 178, 3), "JPEG")
        (tmp_path / f"img_align_celeba/{i:06d}.jpg").write_bytes(content)
    lines = "".join(f"{i:06d}.jpg {part}\n" for i, part in enumerate([0, 0, 1, 2, 0], 1))
    (tmp_path / "list_eval_partition.txt").write_text(lines)
    train, test = load_splits(settings("CELEBA", tmp_path, image_size=64))
    assert train.shape == (3, 64, 64, 3) and test.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(train[0], stored["celeba_jpeg"])


def test_imagenet32_as_folder_and_tar(tmp_path):
    images = noise(4, 32, 32, 3)
    with tarfile.open(tmp_path / "train_32x32.tar", "w") as tar:
        folder = tarfile.TarInfo("train_32x32/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, image in enumerate(images[:3]):
            info, content = tarfile.TarInfo(f"train_32x32/{i:07d}.png"), encode(image)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "valid_32x32").mkdir()
    (tmp_path / "valid_32x32/00001.png").write_bytes(encode(images[3]))
    train, test = load_splits(settings("IMAGENET32", tmp_path))
    np.testing.assert_array_equal(np.concatenate([train, test]), images)


def test_stl10(tmp_path):
    """48x48 as torchvision's Resize(48) makes it, Pillow's bilinear filter; stored column by column."""
    images, folder = noise(6, 96, 96, 3), tmp_path / "stl10_binary"
    folder.mkdir()
    for name, part in (("train", images[:1]), ("unlabeled", images[1:4]), ("test", images[4:])):
        (folder / f"{name}_X.bin").write_bytes(part.transpose(0, 3, 2, 1).tobytes())
    (folder / "train_y.bin").write_bytes(b"\x0a")
    (folder / "test_y.bin").write_bytes(b"\x01\x03")
    expected = np.stack([np.asarray(Image.fromarray(image).resize((48, 48), Image.BILINEAR)) for image in images])
    config = settings("STL10", tmp_path, image_size=48)
    labels = [labels_of(pipeline.load(config, split)).tolist() for split in ("train", "test")]
    assert labels == [[9, -1, -1, -1], [0, 2]]
    (folder / "test_y.bin").unlink()
    train, test = load_splits(settings("STL10", tmp_path, image_size=48))
    np.testing.assert_array_equal(np.concatenate([train, test]), expected)
    with (folder / "test_X.bin").open("ab") as cut:
        cut.write(b"1234")
    with pytest.raises(ConfigError, match="test_X.bin, image 2': can't be read"):
        np.asarray(pipeline.load(settings("STL10", tmp_path, image_size=48), "test"))


def test_lsun(tmp_path, reference):
    lmdb = pytest.importorskip("lmdb")
    stored = reference("resize")
    files = {name: stored[f"lsun_{name}_file"].tobytes() for name in ("small", "wide", "jpeg")}
    files["webp"] = encode(noise(40, 50, 3), "WEBP", lossless=True)
    for split, names in (("train", ("small", "webp", "jpeg")), ("val", ("wide",))):
        with lmdb.open(str(tmp_path / f"church_outdoor_{split}_lmdb"), map_size=1 << 20) as base:
            with base.begin(write=True) as transaction:
                for name in names:
                    transaction.put(hashlib.sha1(name.encode()).hexdigest().encode(), files[name])
    config = settings("LSUN", tmp_path, category="church_outdoor", image_size=40)
    train, test = load_splits(config)
    assert (train.shape, test.shape) == ((3, 40, 40, 3), (1, 40, 40, 3))
    order = sorted(("small", "webp", "jpeg"), key=lambda name: hashlib.sha1(name.encode()).hexdigest())
    for name in ("small", "jpeg"):
        np.testing.assert_array_equal(train[order.index(name)], stored[f"lsun_{name}"])
    np.testing.assert_array_equal(pipeline.load(config, "test"), test)  # lmdb itself opens nothing twice
    with pytest.raises(ConfigError) as error:
        pipeline.load(settings("LSUN", tmp_path, category="bedroom", image_size=40), "train")
    assert "bedroom_train_lmdb" in str(error.value) and "dl.yf.io/lsun/scenes" in str(error.value)


def test_tfrecords(tmp_path):
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF  # of the standard's test vector
    assert crc32c(b"123456789") == masked.to_bytes(4, "little")
    images, path = noise(3, 16, 16, 3), tmp_path / "FFHQ/ffhq-r04.tfrecords"
    path.parent.mkdir()
    records = zip(images, (True, False, True), strict=True)
    intact = b"".join(progressive_gan(image, packed) for image, packed in records)
    path.write_bytes(intact)
    for name in ("FFHQ", "CelebAHQ"):
        config = settings(name, tmp_path, image_size=16, tfrecords_path="FFHQ/ffhq-r04.tfrecords")
        train, test = load_splits(config)
        np.testing.assert_array_equal(train, images)
        np.testing.assert_array_equal(test, images)
    changed = bytearray(intact)
    changed[-100] ^= 1
    for content, message in (
        (intact[:-1], "can't be read .truncated in record 2"),
        (intact + b"x", "not a TFRecord, or a broken one, at byte"),
        (b"PK\3\4" * 9, "at byte 0"),
        (bytes(changed), "image 2': can't be read .its checksum is wrong"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_splits(config)
    path.write_bytes(intact)
    with pytest.raises(ConfigError, match=r"is \[16, 16, 3\]; should be \[32, 32, 3\]"):
        pipeline.load(settings("FFHQ", tmp_path, tfrecords_path=str(path)), "train")


NAMES_OF_RECORDS = {
    "hyphens": ["my-train.array_record-00000-of-00001", "my-validation.array_record-00000-of-00001"],
    "other": ["my_train.array_record", "VAL.array_record"],
    "folders": ["train/0000.array_record", "test/0000.array_record"],
    "none": ["a.array_record", "b.array_record"],
}


@pytest.mark.parametrize("names", NAMES_OF_RECORDS)
def test_array_records(tmp_path, names):
    """Plain files, and the examples that TensorFlow Datasets writes with --file_format=array_record."""
    images = noise(10, 8, 8, 3)
    for name, part in zip(NAMES_OF_RECORDS[names], (images[:7], images[7:]), strict=True):
        contents = [encode(image) for image in part]
        records = [example(x, 3, field(1, b"\x05")) if i % 2 else x for i, x in enumerate(contents)]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_records(tmp_path / name, records)
    train, test = load_splits(settings("ARRAYRECORD", tmp_path, image_size=8))
    assert len(train) == (9 if names == "none" else 7)
    np.testing.assert_array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(images, axis=0))


def test_classes_of_array_records(tmp_path):
    """One integer of an example's label, packed or not; other kinds, several, negative ones and plain files: none."""
    minus_one = b"\xff" * 9 + b"\x01"
    labels = [(3, field(1, b"\x05")), (3, b"\x08\xac\x02"), (3, field(1, minus_one)), (3, field(1, b"\x01\x02"))]
    labels += [(1, field(1, b"\x03")), (2, field(1, bytes(4)))]
    contents = [encode(image) for image in noise(8, 8, 8, 3)]
    records = [example(x, *label) for x, label in zip(contents, labels, strict=False)]
    records += [contents[6], example(contents[7], 3, field(1, b"\x02"), b"fine_label")]
    for split, part in (("train", records), ("test", records[::-1])):
        write_records(tmp_path / f"my-{split}.array_record-00000-of-00001", part)
    config = settings("ARRAYRECORD", tmp_path, image_size=8)
    assert labels_of(pipeline.load(config, "train")) is None  # which takes no reading of all records
    config.model.num_classes = 301
    expected = [5, 300, -1, -1, -1, -1, -1, 2]
    assert labels_of(pipeline.load(config, "train")).tolist() == expected
    assert labels_of(pipeline.load(config, "test")).tolist() == expected[::-1]
    (tmp_path / "my-test.array_record-00000-of-00001").unlink()
    train = pipeline.load(config, "train")  # without the image that is held out
    numbers = [int(train.name(i).rpartition(" ")[2]) for i in range(7)]
    assert labels_of(train).tolist() == [expected[i] for i in numbers]
    config.model.num_classes = 0
    config.data.prepared = str(tmp_path / "prepared")
    assert labels_of(pipeline.load(config, "train")) is not None


def test_damaged_array_records(tmp_path):
    """Of a cut file its reader says 0 records, and nothing else; a missing file of a set is only seen in the names."""
    names = [f"my-Train.array_record-{i:05d}-of-00002" for i in range(2)] + ["my-Test.array_record-00000-of-00001"]
    contents = [encode(image) for image in noise(9, 64, 64, 3)]
    for i, name in enumerate(names):
        write_records(tmp_path / name, contents[3 * i : 3 * i + 3])
    config = settings("ARRAYRECORD", tmp_path, image_size=64)
    assert [len(part) for part in load_splits(config)] == [6, 3]
    second = tmp_path / names[1]
    content = second.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"", b"text" * 40000):
        second.write_bytes(damaged)
        with pytest.raises(ConfigError, match="-00001-of-00002: can't be read .it is damaged, truncated or empty"):
            pipeline.load(config, "train")
        assert len(pipeline.load(config, "test")) == 3
    second.unlink()
    with pytest.raises(ConfigError, match="my-Train.array_record: 1 of 2 files are missing, the first is number 1"):
        pipeline.load(config, "train")


def test_folders(tmp_path):
    """With and without subfolders and a split; odd names; hidden files and other files are ignored."""
    images = noise(6, 8, 8, 3)
    names = ["cats/1.png", "dogs/1.png", "a b.PNG", "new\nline.png", "ünï.bmp", "dogs/deep/er/2.png"]
    kinds = ["PNG", "PNG", "PNG", "PNG", "BMP", "PNG"]
    files = {name: encode(image, kind) for name, image, kind in zip(names, images, kinds, strict=True)}
    write_files(tmp_path / "one", files | {"notes.txt": b"x", ".hidden.png": b"x", ".cache/x.png": b"x"})
    train, test = load_splits(settings("FOLDER", tmp_path / "one", image_size=8))
    assert (len(train), len(test)) == (5, 1)
    np.testing.assert_array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(images, axis=0))
    for split, part in (("train", names[:4]), ("valid", names[4:])):
        write_files(tmp_path / "two" / split, {name: files[name] for name in part})
    train, test = load_splits(settings("FOLDER", tmp_path / "two", image_size=8))
    order = [*sorted(names[:4]), *sorted(names[4:])]
    np.testing.assert_array_equal(np.concatenate([train, test]), images[[names.index(name) for name in order]])
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no images there"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(ConfigError, match=message):
            pipeline.load(settings("FOLDER", folder), "train")


@pytest.mark.parametrize("name, package", [("LSUN", "lmdb"), ("FFHQ", "google-crc32c"), ("CELEBA", "simplejpeg")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    (tmp_path / "x.tfrecords").write_bytes(b"123456789012")
    image = encode(noise(218, 178, 3), "JPEG")
    write_files(tmp_path, {"img_align_celeba/1.jpg": image, "list_eval_partition.txt": b"1.jpg 0\n"})
    (tmp_path / "bedroom_train_lmdb").mkdir()
    with pytest.raises(ConfigError, match=f"config.data.dataset={name}: needs pip install {package}"):
        pipeline.load(settings(name, tmp_path, tfrecords_path="x.tfrecords", category="bedroom"), "train")
