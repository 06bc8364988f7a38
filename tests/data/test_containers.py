"""Images as zip files, tar shards, Parquet files and folders: the same images, with the same classes."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from support.image_files import encode, load_splits, noise, settings, write_files, write_records

from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.labels import labels_of

LABELS = [3, 0, 0, 12, 5, 3, 1]
NAMES = [f"{i // 4:05d}/img{i:08d}.png" for i in range(7)]  # as StyleGAN's tools name them
SPLITS = {"train": range(5), "test": range(5, 7)}


def dataset_json(numbers, labels=LABELS) -> bytes:
    return json.dumps({"labels": labels and [[NAMES[i], labels[i]] for i in numbers]}).encode()


def write_zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_parquet(path, images, labels, group=2):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": images, "label": labels})
    parquet.write_table(table, path, row_group_size=group, compression="none", write_page_checksum=True)


def as_folder(root, contents):
    for split, numbers in SPLITS.items():
        files = {NAMES[i]: contents[i] for i in numbers} | {"dataset.json": dataset_json(numbers)}
        write_files(root / split, files)
    return "FOLDER"


def as_zips(root, contents):
    for split, numbers in SPLITS.items():
        files = {NAMES[i]: contents[i] for i in numbers} | {"dataset.json": dataset_json(numbers)}
        write_zip(root / f"cifar10-{split}-40x40.zip", files)
    return "ZIP"


def as_one_zip(root, contents):
    """Compressed, in a folder of its own, with what macOS adds, and the splits as folders."""
    files = {"mine/__MACOSX/._x.png": b"x", "mine/notes.txt": b"x"}
    for split, numbers in {"train": SPLITS["train"], "Val": SPLITS["test"]}.items():
        files |= {f"mine/{split}/{NAMES[i]}": contents[i] for i in numbers}
        files[f"mine/{split}/dataset.json"] = dataset_json(numbers)
    write_zip(root / "mine.zip", files, zipfile.ZIP_DEFLATED)
    return "ZIP"


def as_shards(root, contents):
    for split, numbers in SPLITS.items():
        for shard in range(2):
            part = list(numbers)[shard::2] if split == "none" else np.array_split(list(numbers), 2)[shard]
            files = {}
            for i in part:
                label = f"{LABELS[i]}\n".encode() if i % 2 else json.dumps({"label": LABELS[i]}).encode()
                files |= {f"./{i:04d}.jpg.txt": b"a cat", f"./{i:04d}.{'cls' if i % 2 else 'json'}": label}
                files[f"./{i:04d}.png"] = contents[i]
            write_tar(root / f"mine-{'validation' if split == 'test' else split}-{shard:06d}.tar", files)
    return "WEBDATASET"


def as_parquet(root, contents):
    for split, numbers in SPLITS.items():
        images = [{"bytes": contents[i], "path": NAMES[i]} for i in numbers]
        name = f"data/{split}-00000-of-00001-0123456789abcdef.parquet"
        write_parquet(root / name, images, [LABELS[i] for i in numbers])
    return "PARQUET"


@pytest.mark.parametrize("write", [as_folder, as_zips, as_one_zip, as_shards, as_parquet])
def test_the_same_images_with_the_same_classes(tmp_path, write):
    """PNG, JPEG and others, not square, gray and of another size: the bits are those of the folder."""
    images = noise(7, 50, 40, 3)
    kinds = ["PNG", "JPEG", "PNG", "PNG", "BMP", "PNG", "PNG"]
    contents = [encode(image, kind) for image, kind in zip(images, kinds, strict=True)]
    contents[2] = encode(images[2][:, :, 0])
    for name in ("folder", "other"):
        (tmp_path / name).mkdir()
    expected = load_splits(settings(as_folder(tmp_path / "folder", contents), tmp_path / "folder", image_size=40))
    np.testing.assert_array_equal(expected[0][0], images[0, 5:45])
    config = settings(write(tmp_path / "other", contents), tmp_path / "other", image_size=40, memory_gb=0.0)
    for split, images in zip(("train", "test"), expected, strict=True):
        loaded = pipeline.load(config, split)
        np.testing.assert_array_equal(np.asarray(loaded), images)
        assert labels_of(loaded).tolist() == [LABELS[i] for i in SPLITS[split]]
        assert labels_of(loaded.select(np.array([1, 0]))).tolist() == [LABELS[i] for i in SPLITS[split]][1::-1]


def test_without_splits_the_same_tenth_is_held_out(tmp_path):
    contents = [encode(image) for image in noise(20, 8, 8, 3)]
    names = [f"{'cat' if i < 15 else 'dog'}/{i:02d}.png" for i in range(20)]
    files = dict(zip(names, contents, strict=True))
    write_files(tmp_path / "folder", files)
    write_zip(tmp_path / "one.zip", files)
    (tmp_path / "shards").mkdir()
    (tmp_path / "zips").mkdir()
    for k in range(2):
        write_zip(tmp_path / f"zips/{k}.zip", dict(list(files.items())[10 * k : 10 * k + 10]))
        part = {f"{i:02d}.{kind}": x for i in range(10 * k, 10 * k + 10)
                for kind, x in (("png", contents[i]), ("cls", b"%d" % (i >= 15)))}  # fmt: skip
        write_tar(tmp_path / f"shards/{k}.tar", part)
    write_parquet(tmp_path / "p/train.parquet", contents, [int(i >= 15) for i in range(20)])
    expected = load_splits(settings("FOLDER", tmp_path / "folder", image_size=8))
    assert [len(part) for part in expected] == [18, 2]
    for name, place in (("FOLDER", "folder"), ("ZIP", "one.zip"), ("ZIP", "zips"), ("WEBDATASET", "shards"),
                        ("PARQUET", "p"), ("PARQUET", "p/train.parquet")):  # fmt: skip
        config = settings(name, tmp_path / place, image_size=8)
        for split, images in zip(("train", "test"), expected, strict=True):
            loaded = pipeline.load(config, split)
            np.testing.assert_array_equal(np.asarray(loaded), images)
            of_content = {np.asarray(image).tobytes(): i >= 15 for i, image in enumerate(_decoded(contents))}
            assert labels_of(loaded).tolist() == [of_content[image.tobytes()] for image in images], (name, place)


def test_of_train_alone_a_tenth_is_held_out(tmp_path):
    """In every format, the same one as without splits."""
    contents = [encode(image) for image in noise(20, 8, 8, 3)]
    files = {f"{i:02d}.png": content for i, content in enumerate(contents)}
    write_files(tmp_path / "all", files)
    write_files(tmp_path / "folder/Train", files)
    write_zip(tmp_path / "one.zip", {f"train/{name}": content for name, content in files.items()})
    for name in ("zips", "shards", "records"):
        (tmp_path / name).mkdir()
    write_zip(tmp_path / "zips/my_train.zip", files)
    write_tar(tmp_path / "shards/train-000000.tar", files)
    write_parquet(tmp_path / "p/default/train/0000.parquet", contents, [0] * 20)
    write_records(tmp_path / "records/train.array_record", contents)
    expected = load_splits(settings("FOLDER", tmp_path / "all", image_size=8))
    for name, place in (("FOLDER", "folder"), ("ZIP", "one.zip"), ("ZIP", "zips"), ("WEBDATASET", "shards"),
                        ("PARQUET", "p"), ("ARRAYRECORD", "records")):  # fmt: skip
        for part, images in zip(load_splits(settings(name, tmp_path / place, image_size=8)), expected, strict=True):
            np.testing.assert_array_equal(part, images, err_msg=name)
    (tmp_path / "zips/my_train.zip").rename(tmp_path / "zips/my_val.zip")
    with pytest.raises(ConfigError, match="zips: has val, but no train; should be a zip file"):
        pipeline.load(settings("ZIP", tmp_path / "zips", image_size=8), "test")


def _decoded(contents):
    from PIL import Image

    return [Image.open(io.BytesIO(content)) for content in contents]


@pytest.mark.parametrize("listed, expected", [
    (None, None),  # the folders are numbered by a tool: they are no classes
    (dataset_json(range(7), None), None),
    (b"{}", None),
    (dataset_json(range(6)), [*LABELS[:6], -1]),
    (dataset_json(range(7)).replace(b"/img", b"\\\\img"), LABELS),
])  # fmt: skip
def test_labels_of_dataset_json(tmp_path, listed, expected):
    files = {name: encode(noise(4, 4, 3)) for name in NAMES} | ({"dataset.json": listed} if listed else {})
    write_zip(tmp_path / "train.zip", files)
    write_zip(tmp_path / "test.zip", {"a.png": encode(noise(4, 4, 3))})
    labels = labels_of(pipeline.load(settings("ZIP", tmp_path, image_size=4), "train"))
    assert (None if labels is None else labels.tolist()) == expected
    assert labels_of(pipeline.load(settings("ZIP", tmp_path, image_size=4), "test")) is None


def test_folders_that_are_classes_have_the_same_number_in_both_splits(tmp_path):
    """Also where a split lacks one."""
    folders = {"train": ["ant", "bee", "cow"], "test": ["ant", "cow"]}
    files = {
        f"{split}/{name}/{i}.png": encode(noise(4, 4, 3)) for split in folders for name in folders[split] for i in "01"
    }
    write_files(tmp_path / "folder", files)
    write_zip(tmp_path / "one.zip", files)
    (tmp_path / "two").mkdir()
    for split in folders:
        part = {name.removeprefix(f"{split}/"): x for name, x in files.items() if name.startswith(split)}
        write_zip(tmp_path / f"two/{split}.zip", part)
    for name, place in (("FOLDER", "folder"), ("ZIP", "one.zip"), ("ZIP", "two")):
        config = settings(name, tmp_path / place, image_size=4)
        assert labels_of(pipeline.load(config, "train")).tolist() == [0, 0, 1, 1, 2, 2]
        assert labels_of(pipeline.load(config, "test")).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("kind", ["bytes", "struct", "nested", "gray", "flat", "planes"])
def test_cells_of_parquet(tmp_path, kind):
    """Bytes, structs and lists of numbers, as the hub has them."""
    images = noise(4, 8, 8, 1 if kind == "gray" else 3)
    cells = {
        "bytes": lambda image: encode(image),
        "struct": lambda image: {"path": None, "bytes": encode(image)},
        "nested": lambda image: image.tolist(),
        "gray": lambda image: image[..., 0].tolist(),
        "flat": lambda image: image.ravel().tolist(),
        "planes": lambda image: image.transpose(2, 0, 1).tolist(),
    }
    write_parquet(tmp_path / "train/0000.parquet", [cells[kind](image) for image in images[:3]], [1, None, 0])
    write_parquet(tmp_path / "test/0000.parquet", [cells[kind](image) for image in images[3:]], ["cat"])
    config = settings("PARQUET", tmp_path, image_size=8, num_channels=images.shape[-1])
    np.testing.assert_array_equal(np.concatenate(load_splits(config)), images)
    assert labels_of(pipeline.load(config, "train")).tolist() == [1, -1, 0]
    assert labels_of(pipeline.load(config, "test")) is None


@pytest.mark.parametrize("name, write", [("ZIP", as_zips), ("WEBDATASET", as_shards), ("PARQUET", as_parquet)])
def test_cut_and_changed_files_are_named(tmp_path, name, write):
    contents = [encode(image) for image in noise(7, 40, 40, 3)]
    write(tmp_path, contents)
    config = settings(name, tmp_path, image_size=40, memory_gb=0.0)
    path = max(tmp_path.rglob("*train*"))
    intact = path.read_bytes()
    for content in (intact[: len(intact) // 2], intact[:100], b"text"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{path.name}: can't be read") as error:
            pipeline.load(config, "train")
        assert "\n" not in str(error.value)
    changed = bytearray(intact)
    start = intact.index(contents[4]) + 200
    changed[start : start + 40] = bytes(40)
    path.write_bytes(changed)
    with pytest.raises(ConfigError, match=f"{path.name}.*can't be read"):
        np.asarray(pipeline.load(config, "train"))


def test_files_that_do_not_fit_are_one_line(tmp_path):
    picture = encode(noise(4, 4, 3))
    write_files(tmp_path, {"a/notes.txt": b"x", "c/x.tar.gz": b"x", "d/dataset.json": b"[]", "d/1.png": picture})
    write_parquet(tmp_path / "e/x.parquet", [0.5, 1.5], [1, 1])
    write_parquet(tmp_path / "h/x.parquet", [[-1, 2], [3, 256]], [1, 1])
    write_parquet(tmp_path / "f/train-00001-of-00003.parquet", [b"x"], [1])
    write_zip(tmp_path / "g.zip", {"train/1.png": picture})
    write_zip(tmp_path / "empty.zip", {"notes.txt": b"x"})
    for name, place, message in (
        ("ZIP", "a", r"no \*.zip there; should be a zip file of images"),
        ("WEBDATASET", "c", r"no \*.tar there; should be a folder of tar files \(not compressed\)"),
        ("FOLDER", "d", r'dataset.json: should be {"labels": '),
        ("PARQUET", "e", r"x.parquet, row group 0, row .': can't be read \(double has no bytes of an image"),
        ("PARQUET", "h", r"2 numbers of type int64; should be whole numbers from 0 to 255"),
        ("PARQUET", "f", r"train: 2 of 3 files are missing, the first is number 0"),
        ("ZIP", "empty.zip", "no images there; should be a zip file of images"),
        ("ZIP", "g.zip", r"too few images to hold out a test set: 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.load(settings(name, tmp_path / place, image_size=4), "train")
