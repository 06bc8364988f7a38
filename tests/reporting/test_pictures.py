"""Images as PNG files."""

import numpy as np
import pytest
from PIL import Image

from score_st.config import ConfigError
from score_st.reporting import pictures


def test_a_folder_and_a_zip_have_the_same_files(tmp_path):
    """In the order of the batches, stretched to 255; written twice, they have the same bytes."""
    images = np.random.default_rng(0).integers(0, 17, (5, 4, 6, 3), np.uint8)
    for name in ("folder", "a.zip", "b.ZIP"):
        pictures.check("--png", tmp_path / name, 5)
        pictures.write([images[:2], images[2:]], 17, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.ZIP").read_bytes()
    for i, path in enumerate(sorted((tmp_path / "folder").iterdir())):
        assert path.name == f"{i:06d}.png"
        np.testing.assert_array_equal(Image.open(path), np.round(images[i] * (255 / 16)))
    assert not list(tmp_path.glob(".*"))


def test_folders_with_other_files_are_refused(tmp_path):
    pictures.write([np.zeros((3, 4, 4, 1), np.uint8)], 256, tmp_path / "three")
    (tmp_path / "c.zip").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others/1.png").touch()
    pictures.check("--png", tmp_path / "three", 3)
    pictures.check("--png", tmp_path / "new", 3)
    for name, message in (
        ("three", "has other files, such as 000002.png; name a new folder"),
        ("others", "such as 1.png"),
        ("c.zip", "is a folder"),
        ("file", "should be a folder, or a file that ends in .zip"),
    ):
        with pytest.raises(ConfigError, match=f"--png {tmp_path / name}: .*{message}"):
            pictures.check("--png", tmp_path / name, 2)
