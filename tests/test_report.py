"""The command `report`."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from support.workdirs import make_workdir

from score_st import report
from score_st.config import ConfigError

ROOT = Path(__file__).parents[1]


def test_several_runs(tmp_path, capsys):
    runs = [str(make_workdir(tmp_path / name)) for name in ("a", "b")]
    report.main(["--workdir", *runs, "--out", str(tmp_path / "new/page.html")])
    assert "<h1>a | b</h1>" in (tmp_path / "new/page.html").read_text()
    report.main(["--workdir", *runs, "--out", str(tmp_path / "new/loss.png")])
    with Image.open(tmp_path / "new/loss.png") as image:
        assert image.width > 1.5 * image.height
    report.main(["--workdir", runs[0]])
    assert (tmp_path / "a/report.html").exists() and capsys.readouterr().out.count("wrote ") == 3


@pytest.mark.parametrize("content", ["", "[]", "[" * 10**5, '{"t": [1]}', '{"t": [1, 2], "loss": [1], "std": [0]}'])
def test_a_curve_that_is_none_is_one_line(tmp_path, content):
    workdir = make_workdir(tmp_path / "a")
    (workdir / "eval/loss_by_time.json").write_text(content)
    with pytest.raises(ConfigError, match="a: no eval/loss_by_time.json"):
        report.main(["--workdir", str(workdir), "--out", str(tmp_path / "loss.png")])
    assert not (tmp_path / "loss.png").exists()


def test_it_needs_no_jax():
    code = "import sys, score_st.report; print('jax' in sys.modules)"
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr
    assert time.perf_counter() - began < 3
