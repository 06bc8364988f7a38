"""How long the cells of a study take."""

from collections.abc import Sequence
from pathlib import Path

from score_st.studies.definition import Cell


def show(cells: Sequence[Cell], out: Path) -> None:
    """Prints each cell."""
