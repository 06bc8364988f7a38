"""Readers of files and their hostile inputs, by group of formats, for `tests/fuzz.py`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import hostile

from score_st.config import ConfigError

Read = Callable[[Path], Any]


class Silent(Exception):
    """An input is accepted that should not be."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
      name: of the reader.
      file: the path of its file, below a folder.
      valid: contents that it accepts.
      read: reads the file.
      built: draws inputs that are no damaged copies.
      checksum: whether the format promises that a damaged copy is refused, or read as if intact.
      refusals: what the reader raises for a file that it refuses.
      others: files that have to be beside it.
    """

    name: str
    file: str
    valid: list[bytes]
    read: Read
    built: st.SearchStrategy[bytes] | None = None
    checksum: bool = False
    refusals: tuple[type[Exception], ...] = (ConfigError,)
    others: Callable[[Path], None] = lambda folder: None

    def inputs(self) -> st.SearchStrategy[tuple[bool, bytes]]:
        """Draws whether an input is a damaged copy, and the input."""
        copies = st.tuples(st.just(True), hostile.mutated(self.valid))
        return copies if self.built is None else st.one_of(copies, st.tuples(st.just(False), self.built))


def sound(condition: Any, what: str) -> None:
    if not condition:
        raise Silent(what)


def touch(tree: Any) -> None:
    """Reads every number of a tree, and refuses what no checkpoint has."""
    if isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            touch(item)
    elif isinstance(tree, np.ndarray):
        tree.tobytes()
    else:
        sound(tree is None or isinstance(tree, bool | int | float | str | bytes), f"a {type(tree).__name__}")
