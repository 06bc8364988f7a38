"""Files of each kind, as the benchmark writes them."""

import numpy as np
import pytest

from score_st.benchmarking import formats

LOSSLESS = (
    "array (NPY; CIFAR-10 and other arrays)",
    "folder of PNG",
    "zip of PNG (StyleGAN, EDM)",
    "tar shards of PNG (WebDataset)",
    "Parquet of PNG (row groups of 100)",
    "ArrayRecord of PNG",
    "TFRecord (FFHQ, CelebA-HQ)",
)


@pytest.mark.parametrize("name", formats.WRITERS)
def test_what_is_written_is_read(name, tmp_path):
    """Of 100 images at least 64 are for training: those that were written, where the format loses nothing."""
    stream = formats.stream(formats.WRITERS[name], str(tmp_path), 32, 100, 2)
    images, written = np.asarray(stream.images[np.arange(len(stream.images))]), formats.crops(100, 32, 32)
    assert 90 <= len(images) <= 100 and stream.batch(0).shape == (64, 32, 32, 3)
    if name in LOSSLESS:
        assert {image.tobytes() for image in images} <= {image.tobytes() for image in written}
    assert abs(images.mean() - written.mean()) < 20  # CelebA and LSUN have crops of their own
