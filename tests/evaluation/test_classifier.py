"""The small classifiers: their files, and that they know what they were trained for."""

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from score_st.config import load
from score_st.data import pipeline
from score_st.data.labels import labels_of
from score_st.evaluation import classifier
from score_st.evaluation.extractors import EXTRACTORS
from score_st.evaluation.sample_quality import to_bytes

DEBIAN = Path("/usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz")


def outputs(name: str, images) -> dict[str, np.ndarray]:
    extractor = EXTRACTORS[name]
    params, _ = extractor.weights(None)
    return jax.jit(extractor.network(extractor.resizing).apply)({"params": params}, images)


@pytest.mark.parametrize("name", classifier.SIZES)
def test_the_files(name):
    """Small, and named by their SHA-256."""
    content = classifier.find_weights(name).read_bytes()
    assert len(content) < 300_000 and classifier.file(name) == f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.npz"


def test_the_digits_are_recognized(digits):
    """Of those that it was not trained on, 95 of 100 at least; twice as large, too."""
    config = load("vp/DIGITS/ddpmpp_nll_st_official")
    order = np.random.RandomState(0).permutation(1797)[1500:]
    data = load_digits()
    test = pipeline.load(config, "test")
    np.testing.assert_array_equal(test[..., 0], data.images[order])
    images = to_bytes(test, 17, "digits")
    found = outputs("digits", images)
    assert found["features"].shape == (297, classifier.DIMENSION)
    assert np.mean(np.argmax(found["logits"], 1) == data.target[order]) > 0.95
    larger = outputs("digits", images.repeat(2, 1).repeat(2, 2).repeat(3, 3))
    assert np.mean(np.argmax(larger["logits"], 1) == data.target[order]) > 0.9


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_clothes_are_recognized():
    config = load("vp/FASHION_MNIST/ddpmpp_nll_st_official", {"data.image_size": "16"})
    test = pipeline.load(config, "test")
    found = outputs("fashion-mnist", test[:1000])
    assert np.mean(np.argmax(found["logits"], 1) == labels_of(test)[:1000]) > 0.85
    assert np.linalg.matrix_rank(np.cov(found["features"].T)) > 32
