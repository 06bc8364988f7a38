"""docs/mathematics.md: the table of the paper's statements, and the functions that compute them."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs/mathematics.md").read_text()
ROWS = re.findall(r"^\| ([\d.]+(?:, [^|]+)?) \| ([^|]*(?:\|[^|`]*)*?) \| `(score_st[\w.]+)` \|$", PAGE, re.MULTILINE)


def test_the_sections_of_the_paper():
    """Those that are computed have a row, Lemma 1 and Theorem 1 among them."""
    assert [row[0] for row in ROWS] == sorted((row[0] for row in ROWS), key=lambda section: section.split(",")[0])
    assert {row[0].split(",")[0] for row in ROWS} == {"2", "3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "4.4", "4.5"}
    assert sum("Theorem 1" in row[0] for row in ROWS) == 1
    assert sum("Lemma 1" in row[0] for row in ROWS) == 3


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(score_st\.[\w.]+)`", PAGE))))
def test_every_function_exists(name):
    """And its docstring is there to name the source."""
    module, parts = name.split("."), []
    while True:
        try:
            value = importlib.import_module(".".join(module))
            break
        except ModuleNotFoundError:
            parts.insert(0, module.pop())
    for part in parts:
        value = getattr(value, part)
    assert value.__doc__
