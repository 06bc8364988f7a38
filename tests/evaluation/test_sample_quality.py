"""`python -m score_st.quality`: its figures, and what it refuses."""

import dataclasses
import hashlib
import importlib
import json
import os

import numpy as np
import pytest
from support.commands import DIGITS, refused
from support.inception import pseudo_random_weights

from score_st import config, quality
from score_st import eval as eval_command
from score_st.data import identity, pipeline
from score_st.evaluation import distances, efficientnet, inception, sample_quality
from score_st.evaluation.extractors import EXTRACTORS, Extractor, Features
from score_st.pytorch import file as torch_file
from score_st.reporting import pictures

RNG = np.random.default_rng
SETTINGS = ["--config", DIGITS, "--config.eval.batch_size=104"]


@pytest.fixture
def folder(tmp_path):
    """With digits that are trained on as samples, and others and noise beside them."""
    images = pipeline.load(config.load(DIGITS), "train")
    np.savez(tmp_path / "samples.npz", samples=images[:56])
    np.savez(tmp_path / "others.npz", samples=images[104:160])
    np.savez(tmp_path / "noise.npz", samples=RNG(0).integers(0, 17, (56, 8, 8, 1), np.uint8))
    return tmp_path


def run(mesh, folder, metrics: str, *more) -> dict:
    argv = [*SETTINGS, "--workdir", folder, "--metrics", metrics, *more]
    return quality.main([str(word) for word in argv], mesh)


@pytest.mark.skipif(not efficientnet.find_weights(), reason="the extra fid is not installed")
def test_command_with_efficientnet(one_device, folder, capsys):
    """Other digits are near, noise is far; every figure says what it is."""
    for path in folder.glob("*.npz"):  # fewer, as each takes 0.2 s
        np.savez(path, samples=np.load(path)["samples"][:24])
    argv = ["--config.eval.batch_size=12", "--features", "efficientnet-lite0", "--reference", folder / "others.npz"]
    near = run(one_device, folder, "fid,kid,precision_recall", *argv)
    shown = capsys.readouterr()
    assert "features of samples 12/24" in shown.out and "images/s" in shown.out and "left" in shown.out
    assert "FD-efficientnet-lite0 of 24 samples" in shown.err and "singular" in shown.err
    assert json.loads((folder / "eval/quality.json").read_text()) == json.loads(json.dumps(near))
    names = ["FD-efficientnet-lite0", "KID-efficientnet-lite0", "precision-efficientnet-lite0"]
    assert list(near["figures"]) == [*names, "recall-efficientnet-lite0"]
    for figure in near["figures"].values():
        assert figure["features"] == "efficientnet-lite0" and figure["resizing"] == "clean"
        assert figure["samples"] == 24 and figure["reference"] == f"{folder / 'others.npz'} (24 images)"
    assert near["weights_sha256"].startswith("57934424") and near["versions"]["jax"]
    far = run(one_device, folder, "fid,kid,precision_recall", *argv, "--samples", folder / "noise.npz")
    near, far = ([figure["value"] for figure in result["figures"].values()] for result in (near, far))
    assert far[0] > 5 * near[0] and far[1] > 20 * abs(near[1]), (near, far)
    assert min(near[2:]) > 0.5 and max(far[2:]) < 0.1, (near, far)


@pytest.mark.slow
def test_inception(folder, one_device, photographs, monkeypatch, capsys):
    """Pseudo-random weights from a file with a checksum; score_sde's features, FID's statistics, shards of samples."""
    weights = pseudo_random_weights()
    torch_file.write(folder / "weights.pth", weights)
    monkeypatch.setenv("SCORE_ST_INCEPTION", str(folder / "weights.pth"))
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    images = photographs(24) // 16
    (folder / "samples").mkdir()
    np.savez(folder / "samples/0.npz", samples=images[:10])
    np.savez(folder / "samples/1.npz", samples=images[10:])
    size = ["--config.data.image_size=32", "--config.data.num_channels=3"]
    argv = [*SETTINGS, *size, "--workdir", folder, "--config.eval.batch_size=8", "--metrics"]
    assert f"its SHA-256 is {digest[:8]}…, so it is not pt_in" in refused(capsys, quality.main, [*argv, "fid"])
    extractor = dataclasses.replace(EXTRACTORS["inception"], file=f"random-{digest[:8]}.pth")
    features = Features.on_devices(inception.Network(), inception.from_torch(weights), one_device, 8)
    settings = config.load(DIGITS, {"eval.batch_size": "8", "data.image_size": "32", "data.num_channels": "3"})

    def figures(metrics, reference, resize=None):
        request = sample_quality.Request(tuple(metrics.split(",")), None, str(reference), extractor, resize)
        return sample_quality.evaluate(settings, folder, request, one_device, features=features)["figures"]

    shown = np.round(np.arange(17) * 255 / 16).astype(np.uint8)[images]
    pool = np.concatenate([np.asarray(features.apply(batch)["features"]) for batch in np.split(shown, 3)])
    np.savez(folder / "stats.npz", pool_3=pool[::-1], logits=pool)
    mean, covariance = pool.astype(np.float64).mean(0), np.cov(pool.astype(np.float64), rowvar=False)
    np.savez(folder / "fid.npz", mu=mean + 0.1, sigma=covariance)
    result = figures("fid,is,kid,precision_recall", folder / "stats.npz")
    assert list(result) == ["fid", "kid", "precision", "recall", "is"]
    assert [result[name]["samples"] for name in result] == [24] * 5 and result["is"]["reference"] is None
    assert result["fid"]["reference"].endswith("stats.npz (24 images)") and result["fid"]["resizing"] == "tf1"
    assert abs(result["fid"]["value"]) < 1e-9 * np.trace(covariance) and result["precision"]["value"] == 1
    assert 1 < result["is"]["value"] < 1008 and result["is"]["std"] > 0
    result = figures("fid", folder / "fid.npz", "pytorch-fid")
    assert result["fid"]["value"] == pytest.approx(0.01 * 2048, rel=1e-6)
    assert result["fid"]["resizing"] == "pytorch-fid"


def test_impossible_requests(folder, monkeypatch, capsys):
    """One line each, and nothing is written."""
    monkeypatch.delenv("SCORE_ST_INCEPTION", raising=False)
    few = np.zeros((9, 8, 8, 1), np.uint8)
    files = {
        "float": {"samples": np.zeros((20, 8, 8, 1))},
        "levels": {"samples": np.full((20, 8, 8, 1), 17, np.uint8)},
        "few": {"samples": few},
        "other": {"x": few},
        "moments": {"mu": np.zeros(2048), "sigma": np.eye(2048, dtype=np.float32)},
        "nan": {"mu": np.full(2, np.nan), "sigma": np.eye(2)},
        "narrow": {"pool_3": np.zeros((20, 7))},
        "wide": {"samples": np.zeros((20, 8, 12, 1), np.uint8)},
        "colors": {"samples": np.zeros((20, 8, 8, 3), np.uint8)},
        "negative": {"mu": np.zeros(3), "sigma": np.diag([1.0, 2.0, -0.5])},
        "skew": {"mu": np.zeros(3, np.float32), "sigma": np.triu(np.ones((3, 3), np.float32))},
        "objects": {"samples": np.array([None] * 20)},
    }
    for name, arrays in files.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "text.npz").write_text("text")
    np.save(folder / "array.npy", few)
    os.mkfifo(folder / "pipe.npz")
    content = bytearray((folder / "samples.npz").read_bytes())
    content[100:1000] = bytes(900)
    (folder / "damaged.npz").write_bytes(content)
    np.savez(folder / "small.npz", samples=np.zeros((5, 9, 8, 1), np.uint8))
    (folder / "mixed").mkdir()
    for name in ("small", "few"):
        (folder / "mixed" / f"{name}.npz").write_bytes((folder / f"{name}.npz").read_bytes())
    path = lambda name: folder / f"{name}.npz"
    bad = [
        (["fit"], "--metrics fit: unknown with --features inception; choose from fid, is, kid, precision_recall"),
        (["is", "--features", "efficientnet-lite0"], "choose from fid, kid, precision_recall"),
        (["fid"], "no weights pt_inception-2015-12-05-6726825d.pth: get it at"),
        (["fid", "--features", "resnet"], "invalid choice: 'resnet'"),
        (
            ["fid", "--features", "none:network"],
            "--features none:network: ModuleNotFoundError: No module named 'none'",
        ),
        (["fid", "--features", "json:loads"], "--features json:loads: TypeError: "),
        (["fid", "--samples", folder / "none.zip"], "none.zip: can't be read ([Errno 2] No such file"),
        (["fid", "--repeats", "6"], "9 images are too few; it takes at least 10"),
        (["kid", "--repeats", "2"], "--repeats 2: divides the samples for fid, which --metrics lacks"),
        (["is", "--statistics", path("new")], "new.npz: are the reference's, which --metrics is has not"),
        (["fid", "--statistics", folder / "new"], "new: should be a file that ends in .npz"),
        (["fid", "--resize", "bilinear"], "invalid choice: 'bilinear'"),
        (["fid", "--weights", folder / "none.pth"], "can't be read"),
        (["fid", "--weights", path("text")], "not a file of torch.save"),
        (["fid", "--samples", path("none")], "No such file"),
        (["fid", "--samples", path("text")], "can't be read as an npz"),
        (["fid", "--samples", path("float")], "should be uint8 [N, H, W, 1 or 3]"),
        (["fid", "--samples", path("levels")], "should be below config.data.num_levels=17"),
        (["fid", "--samples", path("few")], "9 images are too few; it takes at least 10"),
        (["fid", "--samples", path("other")], "has none of them; should have samples"),
        (["fid", "--samples", path("moments")], "should have an array samples"),
        (["fid", "--samples", folder / "mixed"], "images of one size"),
        (["kid", "--reference", path("moments")], "has mu and sigma alone; kid needs images or features"),
        (["fid", "--reference", path("nan")], "finite"),
        (["fid", "--reference", path("narrow")], "features of 7 dimensions; should be 2048"),
        (["fid", "--config.eval.batch_size=7"], "should be a multiple of 8"),
        (["fid", "--config.eval.batch_size=0"], "config.eval.batch_size=0: should be 1 or more"),
        (["fid", "--samples", path("wide")], "images are [20, 8, 12, 1]; should be [N, 8, 8, 1] as config.data says"),
        (["fid", "--reference", path("colors")], "images are [20, 8, 8, 3]; should be [N, 8, 8, 1]"),
        (["fid", "--reference", path("negative")], "sigma has the eigenvalue -0.5, so it is no covariance"),
        (["fid", "--reference", path("skew")], "sigma is not symmetric (it differs by 1), so it is no covariance"),
        (["fid", "--reference", folder / "array.npy"], "can't be read as an npz (it is one array, uint8[9, 8, 8, 1])"),
        (["fid", "--samples", folder / "array.npy"], "can't be read as an npz (it is one array"),
        (["fid", "--samples", path("objects")], "can't be read as an npz"),
        (["fid", "--samples", path("damaged")], "can't be read as an npz"),
        (["fid", "--reference", path("pipe")], "can't be read as an npz (it is no file)"),
    ]
    for argv, message in bad:
        error = refused(capsys, quality.main, [*SETTINGS, "--workdir", folder, "--metrics", *argv])
        assert message in error, error
    error = refused(capsys, quality.main, [*SETTINGS, "--workdir", folder / "new"])
    assert "no samples.npz there; `python -m score_st.sample` writes it" in error
    assert not (folder / "eval").exists() and not (folder / "new").exists()


FLAX = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Projection(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(5, use_bias=False)(images.reshape(len(images), -1) / 255)


def network():
    module = Projection()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
"""


def test_files_of_every_kind_and_a_network_of_the_users(folder, one_device, monkeypatch, capsys):
    """Npz shards, a folder and a zip of pictures have the same figures, those of NumPy; all are in one file."""
    monkeypatch.chdir(folder)
    (folder / "own_features.py").write_text(FLAX)
    images = np.load(folder / "samples.npz")["samples"]
    (folder / "shards").mkdir()
    for i in range(3):
        np.savez(folder / f"shards/{i}.npz", samples=images[[0, 19, 38][i] : [19, 38, 56][i]])
    pictures.write([images], 17, folder / "pictures")
    pictures.write([images[:1], images[1:]], 17, folder / "pictures.zip")
    pictures.write([np.load(folder / "others.npz")["samples"]], 17, folder / "others.zip")
    argv = ["--config.eval.batch_size=16", "--features", "own_features:network", "--repeats", 4, "--reference"]
    results = [
        run(one_device, folder, "fid,kid", *argv, folder / reference, "--samples", folder / name)
        for name, reference in (("shards", "others.npz"), ("pictures", "others.zip"), ("pictures.zip", "others.npz"))
    ]
    first, name = results[0]["figures"], "FD-own_features:network"
    assert [result["figures"][name]["value"] for result in results] == [first[name]["value"]] * 3
    assert len({result["samples_crc32"] for result in results}) == 1
    kernel = np.asarray(
        importlib.import_module("own_features").network()[1]["params"]["Dense_0"]["kernel"], np.float64
    )
    stretch = lambda images: np.round(images.reshape(len(images), -1) * (255 / 16)) / 255
    features = [stretch(part) @ kernel for part in (images, np.load(folder / "others.npz")["samples"])]
    moments = lambda part: (part.mean(0), np.cov(part, rowvar=False))
    values = [distances.frechet(*moments(part), *moments(features[1])) for part in np.split(features[0], 4)]
    figure = first[name]
    assert figure["value"] == pytest.approx(np.mean(values), rel=1e-4)
    assert figure["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-3)
    assert (figure["samples"], figure["sets"], first["KID-own_features:network"]["samples"]) == (14, 4, 56)
    lines = (folder / "eval/quality.jsonl").read_text().splitlines()
    assert [json.loads(line)["figures"] for line in lines] == [result["figures"] for result in results]
    assert json.loads((folder / "eval/quality.json").read_text())["figures"] == results[2]["figures"]
    more = ["--samples", folder / "pictures.zip", "--statistics", folder / "new/statistics.npz"]
    run(one_device, folder, "fid,kid", *argv, folder / "others.npz", *more)
    for words in (["--resize", "tf1"], ["--weights", folder / "own_features.py"]):
        with pytest.raises(config.ConfigError, match="network (resizes images itself|brings its own); leave"):
            run(one_device, folder, "fid", *argv, folder / "others.npz", *words)
    assert len((folder / "eval/quality.jsonl").read_text().splitlines()) == 3  # the same again
    with np.load(folder / "new/statistics.npz") as written:
        assert sorted(written) == ["mu", "sigma"] and {written[key].dtype for key in written} == {np.dtype(float)}
        for actual, wanted in zip((written["mu"], written["sigma"]), moments(features[1]), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    again = run(one_device, folder, "fid", *argv, folder / "new/statistics.npz", "--samples", folder / "shards")
    assert again["figures"][name]["value"] == first[name]["value"]


def request(**options) -> sample_quality.Request:
    return sample_quality.Request(("fid",), **options)


PIXELS = Features(lambda batch: {"features": np.asarray(batch, np.float64).reshape(len(batch), -1)[:, 8:24]}, 104)


def test_unfinished_samples_are_not_read(folder):
    """As a killed `sample` leaves them: hidden, with another size or cut."""
    images = np.load(folder / "samples.npz")["samples"]
    (folder / "samples").mkdir()
    np.savez(folder / "samples/samples_0000000.npz", samples=images[:20])
    np.savez(folder / "samples/.samples_0000020.npz", samples=images[20:])
    (folder / "samples/.samples_0000040.npz").write_bytes(b"PK")
    data = config.load(DIGITS, {"data.num_levels": "256"}).data
    for path in (None, str(folder / "samples")):
        np.testing.assert_array_equal(sample_quality.read_samples(folder, path, data)[1], images[:20])
    (folder / "samples/samples_0000000.npz").unlink()
    source, read = sample_quality.read_samples(folder, None, config.load(DIGITS).data)
    assert source == folder / "samples.npz" and len(read) == 56


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_statistics_of_any_precision(folder, kind):
    """They are read as float64; rounding makes no covariance one that is none, also of a singular one."""
    features = RNG(0).normal(2, 3, (40, 100))  # of rank 39
    mean, covariance = features.mean(0), np.cov(features, rowvar=False)
    np.savez(folder / "fid.npz", mu=mean.astype(kind), sigma=covariance.astype(kind))
    arrays = sample_quality.read(folder / "fid.npz", 17)
    assert arrays["mean"].dtype == arrays["covariance"].dtype == np.float64
    np.testing.assert_allclose(arrays["covariance"], covariance, atol=20 * float(np.finfo(kind).eps))
    assert abs(distances.frechet(*arrays.values(), mean, covariance)) < 3e4 * float(np.finfo(kind).eps)


def test_settings_that_can_not_matter_are_not_compared(folder, one_device, capsys):
    """Those of the network, of reading ahead, of training; images and data set have to be those of the run."""
    (folder / "config.json").write_text(config.to_json(config.load(DIGITS)))

    class WithoutWeights(Extractor):
        def weights(self, path):
            return {}, "none"

    extractor = WithoutWeights(**vars(EXTRACTORS["inception"]))
    evaluate = lambda request, **changes: sample_quality.evaluate(
        config.load(DIGITS, {key.replace("__", "."): value for key, value in changes.items()}),
        folder,
        dataclasses.replace(request, extractor=extractor),
        one_device,
        features=PIXELS,
    )["figures"]["fid"]["value"]
    plain = evaluate(request())
    free = dict(data__num_threads="4", data__memory_gb="1", data__dir=str(folder), data__random_flip="True")
    free |= dict(model__nf="8", training__k="2", eval__n_probes="2")
    assert plain > 0 and evaluate(request(), **free) == plain
    with pytest.raises(config.ConfigError, match="was made with data.dataset='DIGITS' .not 'NPY'"):
        evaluate(request(), data__dataset="NPY", data__dir=str(folder))
    others = request(reference=str(folder / "others.npz"))
    assert evaluate(others, data__dataset="NPY") == evaluate(others) != plain
    with pytest.raises(config.ConfigError, match="was made with data.num_levels=17 .not 256"):
        evaluate(others, data__num_levels="256")
    assert "warning" not in capsys.readouterr().err
    images = {"train": np.zeros((12, 8, 8, 1), np.uint8), "test": np.zeros((3, 8, 8, 1), np.uint8)}
    identity.record(folder, images)
    assert evaluate(request()) == plain
    message = (
        "train has other images than at the beginning (12 images then, 1500 now), so some may have been trained on"
    )
    assert message in capsys.readouterr().err


def test_alias(folder, one_device, monkeypatch, capsys):
    """`eval --metrics` is the same command, and says in one line that it is an alias."""
    monkeypatch.delenv("SCORE_ST_INCEPTION", raising=False)
    with pytest.raises(config.ConfigError, match="no weights pt_inception"):
        eval_command.main([*SETTINGS, "--workdir", str(folder), "--metrics", "fid"], one_device)
    assert capsys.readouterr().err == "note: eval --metrics is now `python -m score_st.quality --metrics`\n"
