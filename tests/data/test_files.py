"""Folders of pictures: which files are read, by which names, and what is said of the others."""

import os
import socket

import numpy as np
import pytest
from PIL import Image
from support.image_files import encode, load_splits, noise, settings, write_files

from score_st.config import ConfigError
from score_st.data import files, images, pipeline


def pictures(*names: str) -> dict[str, bytes]:
    return {name: encode(noise(8, 8, 3)) for name in names}


@pytest.mark.parametrize(
    "train, test", [("Train", "Test"), ("TRAIN", "VALIDATION"), ("train", "Val"), ("train", "valid")]
)
def test_splits_in_any_case(tmp_path, capsys, train, test):
    """They are the splits; what lies beside them is ignored, and that is said."""
    write_files(tmp_path, pictures(f"{train}/a.png", f"{train}/b.png", f"{test}/c.png", "d.png", "cats/e.png"))
    config = settings("FOLDER", tmp_path, image_size=8)
    names = {split: pipeline.load(config, split) for split in ("train", "test")}
    names = {split: [part.name(i) for i in range(len(part))] for split, part in names.items()}
    paths = [str(tmp_path / name) for name in (f"{train}/a.png", f"{train}/b.png", f"{test}/c.png")]
    assert names == {"train": paths[:2], "test": paths[2:]}
    assert f"note: {tmp_path}: ignored cats, d.png beside {train} and {test}" in capsys.readouterr().err


def test_splits_that_are_ambiguous_or_alone(tmp_path):
    write_files(tmp_path, pictures("one/Train/a.png", "one/train/b.png", "one/test/c.png", "two/Test/a.png"))
    with pytest.raises(ConfigError, match="one: has Train and train; should have one of them"):
        pipeline.load(settings("FOLDER", tmp_path / "one", image_size=8), "train")
    for split in ("train", "test"):
        with pytest.raises(ConfigError, match="two: has Test, but no train; should be a folder of images"):
            pipeline.load(settings("FOLDER", tmp_path / "two", image_size=8), split)


def test_arrays_of_splits_in_any_case(tmp_path):
    arrays = noise(4, 8, 8, 3), noise(2, 8, 8, 3)
    np.save(tmp_path / "Train.npy", arrays[0])
    np.savez(tmp_path / "VALIDATION.npz", images=arrays[1])
    for read, expected in zip(load_splits(settings("NPY", tmp_path, image_size=8)), arrays, strict=True):
        np.testing.assert_array_equal(read, expected)


def test_linked_folders(tmp_path, capsys):
    """Those elsewhere are followed, and so are links in them; a folder is read once, and no loop is endless."""
    write_files(tmp_path / "store", pictures("dog/1.png", "dog/2.png", "deep/3.png"))
    write_files(tmp_path / "root", pictures("cat/4.png"))
    link = lambda name, to: (tmp_path / name).symlink_to(tmp_path / to)
    link("root/dog", "store/dog")
    link("store/dog/deep", "store/deep")
    link("store/deep/back", "store/dog")  # a loop elsewhere
    link("root/cat/up", "root")  # a loop to the top
    link("root/a", "root/cat")  # the same folder, by a name that comes first
    link("root/5.png", "store/dog/1.png")
    expected = ["5.png", "cat/4.png", "dog/1.png", "dog/2.png", "dog/deep/3.png"]
    assert files.image_files(tmp_path / "root") == expected
    assert "root: 5 pictures; ignored: 3 links to folders that are read already" in capsys.readouterr().err
    train, test = load_splits(settings("FOLDER", tmp_path / "root", image_size=8))
    assert (len(train), len(test)) == (4, 1)
    (tmp_path / "links").mkdir()
    link("links/dog", "store/dog")
    assert files.image_files(tmp_path / "links") == ["dog/1.png", "dog/2.png", "dog/deep/3.png"]


def test_only_what_pillow_can_open_is_a_picture(tmp_path, capsys):
    """Other files are ignored, a pipe does not hang, and a link that leads nowhere is a picture that is missing."""
    others = ["features.h5", "clip.mpg", "readme.pdf", "scene.eps", "w.wmf", "notes.txt", "LICENSE", ".hidden.png"]
    names = ["a.png", "b.JPG", "c.tiff", "d.webp", "e.mpo", "f.bmp"]
    write_files(tmp_path, pictures(*names) | dict.fromkeys(others, b"x"))
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        (tmp_path / "null.png").symlink_to("/dev/null")
        assert files.image_files(tmp_path) == names
    ignored = (
        "1 .eps, 1 .h5, 1 .mpg, 1 .pdf, 1 .txt, 1 .wmf, 1 hidden, 3 pipes, sockets or devices, 1 without an ending"
    )
    assert f"6 pictures; ignored: {ignored}" in capsys.readouterr().err
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert files.image_files(tmp_path) == sorted([*names, "gone.png"])


def test_no_file_reaches_ghostscript():
    """Whatever it is called: PostScript is no picture, nor are other formats that Pillow can't decode itself."""
    with pytest.raises(ValueError, match="not an image of a format that Pillow reads"):
        images.decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", 3)
    assert not {"EPS", "HDF5", "MPEG", "GRIB"} & set(files.formats()) and len(files.formats()) > 30
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "JPEG2000"):
        content = encode(Image.fromarray(noise(32, 32, 3)), kind)
        assert images.decode_image(content, 3).size == (32, 32), kind


def test_pipes_in_place_of_files(tmp_path):
    """Nothing waits for what never comes."""
    for name in ("all.npy", "train-images-idx3-ubyte", "picture.png"):
        os.mkfifo(tmp_path / name)
    for config in (
        settings("NPY", tmp_path / "all.npy"),
        settings("NPY", "/dev/zero"),
        settings("FASHION_MNIST", tmp_path),
    ):
        with pytest.raises(ConfigError, match="should be a file or a folder, not a pipe"):
            pipeline.load(config, "train")
    with pytest.raises(OSError, match="not a regular file"):
        files.read_bytes(tmp_path / "picture.png")
    (tmp_path / "img_align_celeba").mkdir()
    os.mkfifo(tmp_path / "img_align_celeba/1.jpg")
    (tmp_path / "list_eval_partition.txt").write_text("1.jpg 0\n")
    with pytest.raises(ConfigError, match="1.jpg': can't be read .not a regular file"):
        pipeline.load(settings("CELEBA", tmp_path), "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    write_files(tmp_path, pictures("a.png", "secret/b.png"))
    (tmp_path / "secret").chmod(0)
    with pytest.raises(ConfigError, match="can't be read .*Permission denied"):
        pipeline.load(settings("FOLDER", tmp_path, image_size=8), "train")


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_unreadable_images_are_left_out(tmp_path, capsys, memory_gb):
    """The rest keeps its order and its split, also of a stream; how many are left out is said."""
    write_files(tmp_path, pictures(*(f"{i:02d}.png" for i in range(20))))
    config = settings("FOLDER", tmp_path, image_size=8, memory_gb=memory_gb)
    before = pipeline.load(config, "train")
    names, expected = [before.name(i) for i in range(18)], np.asarray(before)
    wrong = [0, 5, 17]
    for i in wrong:
        with open(names[i], "wb") as file:
            file.write(b"broken")
    hint = "data.skip_unreadable=True leaves them out"
    with pytest.raises(ConfigError, match=f"can't be read .*{hint}"):
        pipeline.load(config, "train")
    config.data.skip_unreadable = True
    part, rest = pipeline.load(config, "train"), np.delete(expected, wrong, axis=0)
    assert f"FOLDER train: 3 of 18 images can't be read and are left out: {names[0]!r}" in capsys.readouterr().err
    np.testing.assert_array_equal(part, rest)
    np.testing.assert_array_equal(part[[14, 0, 7]], rest[[14, 0, 7]])
    assert part.name(0) == names[1] and len(pipeline.load(config, "test")) == 2
    batch = pipeline.Stream(part, 15, 0).batch(0)
    np.testing.assert_array_equal(np.unique(batch, axis=0), np.unique(rest, axis=0))
    for name in names:
        with open(name, "wb") as file:
            file.write(b"broken")
    with pytest.raises(ConfigError, match="FOLDER train: none of 18 images can be read"):
        pipeline.load(config, "train")
