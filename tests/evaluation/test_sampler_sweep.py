"""Quality by evaluations: a sweep's points are those of `sample` and of the Fréchet distance."""

import json

import jax
import numpy as np
import pytest
from support.commands import refused
from support.runs import DIGITS, SETTINGS

from score_st import config, sample, sweep
from score_st.data import pipeline
from score_st.evaluation import distances, efficientnet, generation, runner, sample_quality, sampler_sweep
from score_st.evaluation.extractors import Features
from score_st.model import DiffusionModel
from score_st.training import checkpoints


def test_configurations_have_the_evaluations():
    digits = config.load(DIGITS)
    with_evaluations = lambda name, nfe: sampler_sweep.with_evaluations(digits, name, nfe).sampling
    assert [with_evaluations(name, 20).steps for name in ("ddim", "heun@edm")] == [20, 10]
    corrected = with_evaluations("reverse_diffusion+langevin", 20)
    assert (corrected.steps, corrected.corrector, corrected.predictor) == (10, "langevin", "reverse_diffusion")
    assert with_evaluations("heun@edm", 20).grid == "edm" and digits.sampling.grid == "uniform"
    assert with_evaluations("ode", 1e-2).rtol == 1e-2
    assert sampler_sweep.with_evaluations(digits, "ddim", 20, networks=2).sampling.steps == 10
    with pytest.raises(config.ConfigError, match="unknown 'newton'"):
        with_evaluations("newton", 20)


def statistics(batch):
    """Two features of each image, which take no network."""
    images = np.asarray(batch)
    return {"features": np.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], axis=1).astype(np.float64)}


def test_points(workdir, arguments, one_device, tmp_path):
    """They are those of `sample` and of the Fréchet distance; a second sweep computes nothing."""
    settings = config.load(DIGITS, SETTINGS)
    model = DiffusionModel.from_config(settings)
    params = checkpoints.open_for_reading(workdir, settings, model, one_device).ema
    distance = sampler_sweep.distance_to_data(settings, Features(statistics, 128), None)
    variants = sampler_sweep.variants(settings, ["ddim", "ode"], [3, 6], tolerances=[1e-1])

    def points(distance):
        run = sampler_sweep.Sweep(model, params, 12, 0, distance, one_device)
        return run(variants, runner.open_results(tmp_path / "samplers.jsonl", {"num": 12}), "FD")

    swept = points(distance)
    assert [point["nfe"] for point in swept["ddim"]] == [4, 7]  # one more to denoise
    assert len(swept["ode"]) == 1 and np.isfinite([p["distance"] for row in swept.values() for p in row]).all()
    sample.main(arguments("--num", 12, "--out", tmp_path / "b", "--sampler", "ddim", "--steps", 6), one_device)
    pixels = lambda images: statistics(sample_quality.to_bytes(images, 17, "here"))["features"]
    sides = [pixels(generation.read_shards(tmp_path / "b")), pixels(pipeline.load(settings, "train"))]
    moments = [moment for x in sides for moment in (x.mean(0), np.cov(x.T))]
    assert swept["ddim"][1]["distance"] == pytest.approx(distances.frechet(*moments), rel=1e-6)
    np.testing.assert_array_equal(swept["ddim"][1]["images"], generation.read_shards(tmp_path / "b")[:4])
    again = points(lambda images: 1 / 0)
    assert [p["distance"] for p in again["ddim"]] == [p["distance"] for p in swept["ddim"]]


def test_a_sampler_that_diverges_has_no_distance(workdir, one_device):
    """Its point is NaN, and the sweep continues."""
    settings = config.load(DIGITS, SETTINGS)
    model = DiffusionModel.from_config(settings)
    params = checkpoints.open_for_reading(workdir, settings, model, one_device).ema
    run = sampler_sweep.Sweep(model, jax.tree.map(lambda a: a * np.nan, params), 12, 0, lambda images: 0.0, one_device)
    point = run.point(sampler_sweep.with_evaluations(settings, "ddim", 2))
    assert np.isnan([point["nfe"], point["distance"]]).all() and point["images"].shape == (4, 8, 8, 1)


@pytest.mark.skipif(not efficientnet.find_weights(), reason="the extra fid is not installed")
def test_command(workdir, arguments, one_device):
    """Figures in a file, a plot and images; what it refuses."""
    flags = ["--num", 12, "--samplers", "ddim", "--nfe", 3, "--features", "efficientnet-lite0", "--reference", 12]
    argv = arguments(*flags, "--config.eval.batch_size=12")
    sweep.main(argv, one_device)
    result = json.loads((workdir / "eval/samplers.json").read_text())
    assert result["figure"] == "FD-efficientnet-lite0" and (result["num"], result["reference"]) == (12, 12)
    (point,) = result["samplers"]["ddim"]
    assert point["nfe"] == 4 and np.isfinite(point["distance"])
    for name in ("samplers.png", "samplers_images.png"):
        assert (workdir / "eval" / name).stat().st_size > 500


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--nfe", "10,ten"], "argument --nfe: ten: should be a whole number"),
        (["--nfe", "0"], "argument --nfe: 0: should be 1 or more"),
        (["--tolerances", "1e-3,"], "argument --tolerances: : should be a number"),
        (["--tolerances", "0"], "argument --tolerances: 0: should be above 0"),
    ],
)
def test_numbers_that_are_none(arguments, capsys, option, message):
    assert message in refused(capsys, sweep.main, arguments(*option))


def test_numbers_of_the_samplers():
    parse = lambda *options: sweep.parser().parse_args(["--config", DIGITS, "--workdir", "runs/a", *options])
    assert parse("--tolerances", "1e-5,0.5").tolerances == [1e-5, 0.5] and parse("--nfe", "7").nfe == [7]
