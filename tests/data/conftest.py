"""A small folder of images, with its configuration file."""

from pathlib import Path

import pytest
from support.image_files import encode, noise, write_files

CONFIG = """
from score_st.config import default


def get_config():
    config = default()
    config.data.update(dataset="FOLDER", dir={folder!r}, image_size=8)
    config.training.batch_size = 8
    return config
"""


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder with mine.py and, in photographs/, 20 PNG files of 8x8 to train and 4 to test."""
    names = [f"photographs/{'train' if i < 20 else 'test'}/{i:02d}.png" for i in range(24)]
    write_files(tmp_path, {name: encode(noise(8, 8, 3)) for name in names})
    (tmp_path / "mine.py").write_text(CONFIG.format(folder=str(tmp_path / "photographs")))
    return tmp_path
