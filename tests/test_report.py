"""The command `report`."""

import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from support.workdirs import make_workdir

from score_st import report

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


def test_it_needs_no_jax():
    code = "import sys, score_st.report; print('jax' in sys.modules)"
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr
    assert time.perf_counter() - began < 3
