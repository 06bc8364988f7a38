"""Style, types and the direction of imports, as CONTRIBUTING.md has them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CHECKS = {
    "ruff check": [BIN / "ruff", "check", "."],
    "ruff format": [BIN / "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import contracts": [BIN / "lint-imports"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_checks(name):
    ran = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_private_parts_of_jax_are_for_jax():
    files = [path for path in (ROOT / "score_st").rglob("*.py") if re.search(r"jax\._src", path.read_text())]
    assert not files


def test_modules_and_functions_are_short():
    """A module has at most 450 lines, a function at most 60."""
    long = []
    for path in sorted((ROOT / "score_st").rglob("*.py")):
        text = path.read_text()
        if text.count("\n") > 450:
            long.append((str(path.relative_to(ROOT)), text.count("\n")))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append((f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1))
    assert not long
