"""The table of data sets: what holds for every entry, and entries of a configuration file."""

import json

import numpy as np
import pytest
from support.image_files import settings

from score_st.config import ConfigError, load
from score_st.data import __main__ as data_command
from score_st.data import pipeline
from score_st.data.datasets import DATASETS, Dataset


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "DIGITS"])  # which has no files
def test_missing_files_are_one_line_that_says_where_to_get_them(tmp_path, name):
    config = settings(name, tmp_path / "none", tfrecords_path="x.tfrecords", category="bedroom")
    with pytest.raises(ConfigError) as error:
        pipeline.load(config, "train")
    message = str(error.value)
    assert str(tmp_path / "none") in message and "\n" not in message
    assert message.endswith(f"; {DATASETS[name].source}")


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match=r"config.data.dataset: unknown 'CIFAR'.*did you mean CIFAR10\?") as error:
        pipeline.load(settings("CIFAR", ""), "train")
    assert all(name in str(error.value) for name in DATASETS)


MINE = """
import numpy as np

from score_st.config import default
from score_st.data.datasets import DATASETS, Dataset


def read_ramps(config, split):
    images = np.load(f"{config.data.dir}/ramps.npy")
    return images[:12] if split == "train" else images[12:]


DATASETS["RAMPS"] = Dataset(read_ramps, "it comes with mine.py")


def get_config():
    config = default()
    config.data.update(dataset="RAMPS", image_size=4, num_channels=1)
    config.training.batch_size = 4
    return config
"""


@pytest.fixture
def own_entries():
    """Removes from the table, after the test, what the test added."""
    before = set(DATASETS)
    yield
    for name in set(DATASETS) - before:
        del DATASETS[name]


def test_a_data_set_of_a_configuration_file(tmp_path, own_entries):
    """It is read by the stream and by the command; without its file the error says where to get it."""
    images = np.arange(16 * 16, dtype=np.uint8).reshape(16, 4, 4, 1)
    np.save(tmp_path / "ramps.npy", images)
    (tmp_path / "mine.py").write_text(MINE)
    config = load(tmp_path / "mine.py", {"data.dir": str(tmp_path)})
    batches = np.concatenate(list(pipeline.Stream(pipeline.load(config, "train"), 4, 0).batches(0, 3)))
    np.testing.assert_array_equal(np.sort(batches, axis=0), images[:12])
    argv = ["--config", str(tmp_path / "mine.py"), f"--config.data.dir={tmp_path}", "--workdir", str(tmp_path)]
    data_command.main(argv)
    figures = json.loads((tmp_path / "data_RAMPS.json").read_text())
    assert [figures[split]["count"] for split in ("train", "test")] == [12, 4]
    (tmp_path / "ramps.npy").unlink()
    with pytest.raises(ConfigError, match="No such file.*ramps.npy.*; it comes with mine.py$"):
        pipeline.load(config, "train")


def test_an_entry_of_the_package_is_not_replaced():
    with pytest.raises(ConfigError, match="'CIFAR10' is an entry of the package"):
        DATASETS["CIFAR10"] = DATASETS["SVHN"]


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 4, 4, 1)), r"its images are float64\[2, 4, 4, 1\]; should be uint8"),
        (np.zeros((2, 4, 4), np.uint8), r"its images are uint8\[2, 4, 4\]; should be uint8 \[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 1), np.uint8), r".*N > 0"),
    ],
)
def test_images_that_break_the_contract(own_entries, images, message):
    DATASETS["BROKEN"] = Dataset(lambda config, split: images, "it comes with this test")
    with pytest.raises(ConfigError, match=f"config.data.dataset=BROKEN: {message}"):
        pipeline.load(settings("BROKEN", ""), "train")
