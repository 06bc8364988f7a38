"""The command `bench`: a real run on the digits with a tiny network, its files, comparisons, refusals."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.commands import ROOT, SMALL, refused, run

from score_st import bench, config
from score_st.benchmarking import official
from score_st.data import pipeline
from score_st.evaluation import bits_per_dim, image_terms, runner
from score_st.model import DiffusionModel
from score_st.planning import planner

LOOSE = ["--config.eval.rtol=1e-2", "--config.eval.atol=1e-2", "--config.sampling.rtol=1e-2"]
LOOSE += ["--config.sampling.atol=1e-2", "--seconds", "0.3", "--images", "6"]
PEAK = 2e9


@pytest.fixture(scope="module")
def result(one_device, tmp_path_factory):
    """What a run returns, with the folder of its files."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["--config", SMALL, *LOOSE, "--out", str(folder), "--parts", "step,nll,samples,reading", "--quiet"]
    command += ["--samplers", "ode,dpm_solver_2m@3,ddim@quadratic@2"]
    return bench.main(command, one_device, chips={"cpu": {"float32": PEAK}}), folder


def test_numbers_agree_with_each_other(result):
    settings = config.load(SMALL)
    step = result[0]["numbers"]["step"]
    assert step["images_per_s"]["median"] * step["seconds"]["median"] == pytest.approx(16)
    assert step["images_per_s"]["low"] * step["seconds"]["high"] == pytest.approx(16)
    flops = 3 * planner.forward_flops(DiffusionModel.from_config(settings), 16)
    assert step["tflops_per_s"]["median"] * step["seconds"]["median"] == pytest.approx(flops / 1e12)
    assert step["mfu"]["median"] == pytest.approx(step["tflops_per_s"]["median"] * 1e12 / PEAK)
    assert step["seconds"]["count"] >= 3 and step["seconds"]["low"] <= step["seconds"]["median"]
    for numbers, name in ((result[0]["numbers"]["nll"], ""), (result[0]["numbers"]["samples"], "ode ")):
        get = lambda key, numbers=numbers, name=name: numbers[name + key]["median"]
        assert get("seconds_per_image") * get("images_per_s") == pytest.approx(1)
        assert get("evaluations_per_s") * get("seconds_per_image") == pytest.approx(get("nfe_mean"))


def test_nfe_is_that_of_the_evaluation(result, one_device, tmp_path):
    settings = config.load(SMALL, {"eval.rtol": "1e-2", "eval.atol": "1e-2", "eval.from_x0": "False"})
    settings.eval.nelbo_iter = 0
    model = DiffusionModel.from_config(settings)
    params = jax.jit(model.init)(jax.random.key(settings.seed))
    images = pipeline.load(settings, "test")[:6]
    with jax.default_matmul_precision("highest"):
        results = runner.open_results(tmp_path / "bpd.jsonl", {})
        run = runner.ImageRunner(params, images, 6, settings.seed, results, one_device, settings.eval.group)
        figures = bits_per_dim.compute(image_terms.from_config(settings, model), run, settings.eval)
    assert result[0]["numbers"]["nll"]["nfe_mean"]["median"] == figures["nll_nfe"]


def test_nfe_of_samplers_is_known(result):
    samples = result[0]["numbers"]["samples"]
    assert samples["dpm_solver_2m@3 nfe"]["median"] == 3 + 1  # and one to denoise
    assert samples["ddim@quadratic@2 nfe"]["median"] == 2 + 1


def test_files(result):
    content, folder = result
    assert json.loads((folder / "bench.json").read_text()) == content
    machine = content["machine"]
    assert machine["device_kind"] == "cpu" and machine["devices"] == 1 and machine["peak_flops_per_s"] == PEAK
    assert machine["arithmetic"]["step"] == "float32" and machine["versions"]["jax"] == jax.__version__
    assert content["subject"]["images"] == "DIGITS" and content["subject"]["weights"] == "random"
    page = (folder / "bench.html").read_text()
    assert re.findall("<h2[^>]*>([^<]*)", page) == [
        *("The train step", "The likelihood of test images", "Images of each sampler", "Batches of training data"),
        "Machine and subject",
    ]
    assert (
        page.isascii() and page.count("<svg") == 1 and "dpm_solver_2m@3" in page and "The weights are random" in page
    )
    median = content["numbers"]["nll"]["nfe"]["median"]
    assert f'<th scope="row">nfe</th>\n<td class="n">{median:.4g}</td>' in page


def test_against_an_earlier_result(result, one_device, tmp_path, capsys):
    """Its numbers of the reading a hundred times as large, and on another device."""
    earlier = json.loads(json.dumps(result[0]))
    for key in ("median", "low", "high"):
        earlier["numbers"]["reading"]["images_per_s"][key] *= 100
    earlier["machine"]["device_kind"] = "TPU v4"
    (tmp_path / "old.json").write_text(json.dumps(earlier))
    command = ["--config", SMALL, *LOOSE, "--parts", "reading", "--out", str(tmp_path / "new")]
    command += ["--config.training.k=2.0", "--against", str(tmp_path / "old.json")]
    against = bench.main(command, one_device)["against"]
    printed, page = capsys.readouterr().out, (tmp_path / "new/bench.html").read_text()
    ratio = against["ratios"]["reading"]["images_per_s"]
    assert ratio["verdict"] == "worse" and ratio["low"] <= ratio["median"] <= ratio["high"] < 0.1
    for text in (printed.replace("'", ""), page.replace("&#39;", "")):
        assert "worse" in text and "device_kind=cpu (not TPU v4)" in text
        assert "training.k=2.0 (not 1.0)" in text and "this result lacks nll: evaluations_per_s" in text


def test_synthetic_images_where_the_files_are_missing(one_device, tmp_path, capsys):
    command = ["--config", "vp/CIFAR10/ddpmpp_nll_st", f"--config.data.dir={tmp_path}", "--parts", "reading"]
    content = bench.main([*command, "--seconds", "0.2", "--out", str(tmp_path)], one_device)
    assert content["subject"]["images"] == "synthetic (CIFAR10 is not here)"
    assert content["numbers"]["reading"]["images_per_s"]["median"] > 100
    assert "The images are synthetic" in capsys.readouterr().out


def test_compile_times_in_a_process_of_its_own(tmp_path):
    done = run("score_st.bench", "--config", SMALL, *LOOSE, "--parts", "compile", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "bench.json").read_text())["numbers"]["compile"]
    for name in ("step", "nll"):
        assert 0 < numbers[f"{name} cached"]["median"] < numbers[f"{name} cold"]["median"]
        assert 0 < numbers[f"{name} program memory"]["median"] < 1
    assert "compile the step 1/5  cold" in done.stdout and "note: The weights are random" in done.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--parts", "step,fid"], "--parts step,fid: unknown 'fid'; choose from step, nll"),
        (["--parts", ""], "nothing to measure"),
        (["--seconds", "0"], "argument --seconds: 0: should be above 0"),
        (["--images", "-1"], "argument --images: -1: should be 0 or more"),
        (["--samplers", "ode@x@y"], "--samplers ode@x@y: should be a sampler"),
        (["--samplers", "eular"], "config.sampling.predictor: unknown 'eular'"),
        (["--samplers", "ddim@cubic"], "config.sampling.grid: unknown 'cubic'"),
        (["--config.training.dtype=float8"], "training.dtype"),
        (["--against", "nowhere.json"], "--against nowhere.json: can't be read"),
        (["--against", str(ROOT / "pyproject.toml")], "not a bench.json of this command"),
        (["--against", str(ROOT / "tests/fixtures/param_counts.json")], "not a bench.json of this command"),
        (["--torch-compile"], "--torch-compile: needs --official"),
        (["--official", "nowhere"], "no checkout of github.com/Kim-Dongjun/Soft-Truncation (no sde_lib.py there)"),
        (["--workdir", "nowhere"], "--workdir nowhere"),
        (["--out", str(ROOT / "pyproject.toml")], "can't be written"),
    ],
)
def test_bad_requests(options, expected, capsys, one_device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, lambda argv: bench.main(argv, one_device), ["--config", SMALL, *options])
    assert not list(tmp_path.iterdir())


def test_official_needs_pytorch_and_an_official_network(capsys, one_device, tmp_path, monkeypatch):
    for name in official.FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ask = lambda name: refused(
        capsys, lambda argv: bench.main(argv, one_device), ["--config", name, "--official", tmp_path]
    )
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert "needs PyTorch: pip install torch" in ask("vp/CIFAR10/ddpmpp_nll_st")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(str(_pytorch(tmp_path / "installed")))
    assert "config.model.parametrization=edm" in ask("vp/DIGITS/ddpmpp_nll_st")


def _pytorch(folder: Path) -> Path:
    """A package that can be found, for the checks that come before PyTorch is imported."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/__init__.py").touch()
    return folder


def test_no_array_of_zeros_is_left():
    params = {"a": np.zeros((3, 4), np.float32), "b": np.ones(2, np.float32)}
    drawn = official.never_zero(jax.tree.map(jax.numpy.asarray, params), jax.random.key(0))
    assert 0.005 < np.std(drawn["a"]) < 0.05 and np.all(drawn["b"] == 1)
