"""What is installed: the configurations, the types, and a wheel that works without the checkout."""

import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]


def test_every_configuration_is_in_the_package(monkeypatch):
    """As setup.py says it: each folder that has one is a package, in its place under score_st."""
    said = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py")}
    assert {"score_st." + ".".join(folder.parts) for folder in folders} <= set(said["packages"])
    assert said["package_dir"]["score_st.configs"] == "configs" and len(folders) > 5
    assert {"test", "fid", "tpu", "gpu", "gcs", "s3"} <= said["extras_require"].keys()


@pytest.mark.slow
def test_types(tmp_path):
    """`mypy` of the public surface, and of somebody's use of it."""
    run = lambda *words: subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert run().returncode == 0, run().stdout
    (tmp_path / "use.py").write_text(
        "import score_st\nreveal_type(score_st.load('a').sample)\nscore_st.VP().beto(1)\n"
    )
    found = run(str(tmp_path / "use.py")).stdout
    assert "n: int" in found and '"VP" has no attribute "beto"' in found, found


@pytest.mark.slow
def test_a_wheel_trains_without_the_checkout(tmp_path):
    """By the name of a configuration, from an empty folder."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", "wheels", "./source"]
    subprocess.run(pip, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.stat().st_size < 1e6
    with zipfile.ZipFile(wheel) as archive:
        configs = [name for name in archive.namelist() if name.startswith("score_st/configs/")]
        assert len(configs) == 54 and "score_st/py.typed" in archive.namelist()
        page = {f"score_st/reporting/templates/{name}" for name in ("run.html", "blocks.html", "run.css")}
        assert page <= set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    small = {"training.n_iters": 3, "model.nf": 8, "eval.enable_bpd": False, "training.snapshot_sampling": False}
    command = [sys.executable, "-m", "score_st.train", "--config", "vp/DIGITS/ddpmpp_nll_st", "--workdir", "run"]
    command += [f"--config.{key}={value}" for key, value in small.items()]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")})
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3 and 0 < last["loss"] < 1e4
