"""README and docs/: links, code, and commands that exist as they are written."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import TINY

from score_st import plan
from score_st.runtime import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {"data": "prepare"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """All commands of the shell blocks as words, comments left out."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in re.split(r"\s&&\s", line))
    return [words for part in parts if (words := shlex.split(part, comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Relative links lead to files, and to headings of their page."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    named = re.findall(r"`((?:docs|tests|configs|launch|colab)/[\w/.]+\.\w+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", ["extend.md", "data.md"])
def test_code(page):
    """The blocks of a page, one after the other."""
    scope: dict = {}
    code = blocks(ROOT / "docs" / page, "python")
    for block in code:
        exec(compile(block, page, "exec"), scope)
    assert code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page, monkeypatch):
    """Each is taken by the command's own parser with its configuration, or by a launcher that only prints."""
    found = commands(page)
    original = cli.parse

    def parse(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", parse)
    monkeypatch.setattr(plan.tpu, "topology", lambda name: name)  # that takes the TPU's compiler
    monkeypatch.setattr(plan, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.chdir(ROOT)
    for words in found:
        words = [DIGITS if word == "C" else word for word in words]
        if words[:2] == ["python", "-m"]:
            name = words[2].removeprefix("score_st.")
            if name == "report":
                continue
            with pytest.raises(KeyboardInterrupt):
                importlib.import_module(f"score_st.{MODULES.get(name, name)}").main(words[3:])
        elif words[0].startswith("launch/"):
            at = 2 if words[1:2] and not words[1].startswith("-") else 1
            environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            shown = subprocess.run(
                ["bash", *words[:at], "--dry-run", *words[at:]], capture_output=True, text=True, env=environment
            )
            assert shown.returncode == 0 and shown.stdout, shown.stderr
        else:
            assert words[0] in ("pip", "pytest", "ruff", "mypy", "mkdocs"), words
    assert found or page.name in ("index.md", "mathematics.md", "extend.md", "api.md", "python.md", "plans.md")


DIGITS = "configs/vp/DIGITS/ddpmpp_nll_st.py"
QUICK = TINY | {"training.n_iters": "20", "training.snapshot_freq": "20", "training.log_freq": "10"}
QUICK |= {"optim.warmup": "2", "eval.rtol": "1e-2", "eval.atol": "1e-2", "sampling.rtol": "1e-2"}
QUICK |= {"sampling.atol": "1e-2", "sampling.batch_size": "32", "eval.gradient_images": "0", "eval.batch_size": "104"}


@pytest.mark.slow
def test_the_readme_in_order(tmp_path):
    """Every command of the README that needs nothing but the digits, in a folder of its own, with a tiny network."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    changes = [f"--config.{key}={value}" for key, value in QUICK.items()]
    run = 0
    for words in commands(ROOT / "README.md"):
        ours = words[:2] == ["python", "-m"]
        if not ours or not (DIGITS in words or words[2] == "score_st.report"):
            continue
        words = [sys.executable, *words[1:]]
        if "--num" in words:
            words[words.index("--num") + 1] = "16"
        changed = [] if "score_st.report" in words else changes
        changed = changed + (["--nfe", "3", "--samplers", "ddim"] if "score_st.sweep" in words else [])
        done = subprocess.run([*words, *changed], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        run += 1
    assert run >= 10 and (tmp_path / "runs/digits/report.html").exists()
