"""Made-up images."""

import numpy as np

from score_st import config
from score_st.benchmarking import subject


def test_synthetic_images_are_images_of_the_data_set():
    for name, most in (("vp/CIFAR10/ddpmpp_nll_st", 255), ("vp/DIGITS/ddpmpp_nll_st", 16)):
        settings = config.load(name)
        images = subject.synthetic(settings, "train")
        size, channels = settings.data.image_size, settings.data.num_channels
        assert images.shape == (8192, size, size, channels) and images.max() == most and images.min() == 0
        assert np.array_equal(images, subject.synthetic(settings, "train"))
        assert not np.array_equal(images, subject.synthetic(settings, "test"))
        flat = images.astype(float)
        beside = np.corrcoef(flat[:, :, 0].ravel(), flat[:, :, 1].ravel())[0, 1]
        apart = np.corrcoef(flat[:, :, 0].ravel(), flat[:, :, 5].ravel())[0, 1]
        assert beside > 0.8 and abs(apart) < 0.1  # blocks: not what a codec can do least with
