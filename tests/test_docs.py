"""README and docs/: links, names, code, and commands that exist as they are written."""

import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import TINY

from score_st import config
from score_st.diffusion import sde, time_sampling, weighting
from score_st.runtime import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "score_st|docs|tests|configs|launch|colab|studies"
DIGITS = "configs/vp/DIGITS/ddpmpp_nll_st.py"
OFFICIAL = "configs/vp/DIGITS/ddpmpp_nll_st_official.py"
TRAINING, BOUNDED = ROOT / "docs/training.md", {"training.unbounded_parametrization": "False"}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """All commands of the shell blocks as words, without comments."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in re.split(r"\s&&\s", line))
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or a chain of attributes of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[end:]:
                value = getattr(value, part)
        except AttributeError:
            return False
        return True
    return False


@EVERY_PAGE
def test_links_and_paths(page):
    """Relative links and paths in backticks lead to files and folders."""
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(rf"`((?:{FOLDERS})/[^`\s*]*)`", text)
    assert not [path for path in paths if not (ROOT / path).exists()]


@EVERY_PAGE
def test_names(page):
    """Every dotted name of the package exists."""
    names = set(re.findall(r"\bscore_st(?:\.[A-Za-z_]\w*)+", page.read_text()))
    assert not [name for name in sorted(names) if not exists(name)]


@EVERY_PAGE
def test_american_spelling(page):
    stems = r"quantis|timis|tialis|metris|ormalis|cretis|ecognis|colour|centre|labell|grey\b"
    words = re.findall(rf"\b\w*(?:{stems})\w*", page.read_text())
    assert set(words) <= {"colourise", "D_unlabelled"}  # names of a task and of an array


@pytest.mark.parametrize("page", ["extend.md", "data.md"])
def test_code(page):
    """The blocks of a page, one after the other."""
    scope: dict = {}
    code = blocks(ROOT / "docs" / page, "python")
    for block in code:
        exec(compile(block, page, "exec"), scope)
    assert code


def check(words: list[str]) -> None:
    """One of our commands, by its own parser, with a configuration that loads as it is changed."""
    module = "score_st.data.__main__" if words[2] == "score_st.data" else words[2]
    written = lambda word: word == "C" or re.fullmatch(r"runs/\w+/config\.py", word)  # the latter by `convert`
    changes, rest = cli.overrides([DIGITS if written(word) else word for word in words[3:]])
    arguments = importlib.import_module(module).parser().parse_args(rest)
    files = getattr(arguments, "config", [])
    for file in [files] if isinstance(files, str) else files or []:
        config.load(file, changes)


def dry_run(words: list[str]) -> None:
    """A launcher, which only prints."""
    at = 2 if words[1:2] and not words[1].startswith("-") else 1
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", *words[:at], "--dry-run", *words[at:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout, done.stderr


@EVERY_PAGE
def test_commands(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[:2] == ["python", "-m"]:
            check(words)
        elif words[0].startswith("launch/"):
            dry_run(words)
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), words
        else:
            ours = ("pip", "pytest", "ruff", "mypy", "lint-imports", "mkdocs")
            assert words[0] in (*ours, "gcloud", "kubectl"), words


def test_pages_have_commands():
    without = {page.name for page in PAGES if not commands(page)}
    assert without == {
        *("CHANGELOG.md", "api.md", "departures.md", "extend.md", "index.md", "layout.md", "mathematics.md"),
        *("plans.md", "python.md", "any_score.md"),
    }


def test_the_table_of_official_keys():
    """docs/training.md has the time sampler and the weighting that the official keys mean."""
    rows = re.findall(
        r"^\| (VP.*|RVE) \| (`.*`) \| (`.*`) \| `(\w+)` \| `(\w+)` \|$", TRAINING.read_text(), re.MULTILINE
    )
    assert len(rows) == 6
    named = {"VP, sub-VP, VE": ("vpsde", "subvpsde", "vesde"), "RVE": ("reciprocal_vesde",)}
    for family, importance, likelihood, sampler, weight in rows:
        choices = itertools.product(
            named[family], *(re.findall("True|False", cell) for cell in (importance, likelihood))
        )
        for name, *values in choices:
            keys = dict(zip(("importance_sampling", "likelihood_weighting"), values, strict=True), sde=name)
            settings = config.load(OFFICIAL, {f"training.{key}": value for key, value in keys.items()} | BOUNDED)
            diffusion = sde.from_config(settings)
            assert time_sampling.from_config(settings, diffusion) == time_sampling.TIME_SAMPLERS[sampler](settings)
            assert weighting.from_config(settings, diffusion) == weighting.WEIGHTINGS[weight](settings)


QUICK = TINY | {"training.n_iters": "20", "training.snapshot_freq": "20", "training.log_freq": "10"}
QUICK |= {"optim.warmup": "2", "eval.rtol": "1e-2", "eval.atol": "1e-2", "sampling.rtol": "1e-2"}
QUICK |= {"sampling.atol": "1e-2", "sampling.batch_size": "32", "eval.gradient_images": "0", "eval.batch_size": "104"}


@pytest.mark.slow
def test_the_readme_in_order(tmp_path):
    """The README's commands and those of the pages on sampling and quality that need nothing but the digits.

    They run in a folder of their own, with a tiny network.
    """
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    changes = [f"--config.{key}={value}" for key, value in QUICK.items()]
    pages = (ROOT / "README.md", ROOT / "docs/sampling.md", ROOT / "docs/quality.md")
    runs = 0
    for words in (words for page in pages for words in commands(page)):
        report = words[:3] == ["python", "-m", "score_st.report"]
        if not report and (words[:2] != ["python", "-m"] or DIGITS not in words):
            continue
        words = [sys.executable, *words[1:]]
        if "--num" in words:
            words[words.index("--num") + 1] = "16"
        words += [] if report else changes
        words += ["--nfe", "3", "--samplers", "ddim"] if "score_st.sweep" in words else []
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        runs += 1
    assert runs >= 11 and (tmp_path / "runs/digits/report.html").exists()
