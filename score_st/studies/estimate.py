"""How long the cells of a study take: what stored results say, or else a trial of each kind of cell."""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from score_st.runtime import progress
from score_st.runtime.progress import clock
from score_st.studies.cells import CellRunner, Results
from score_st.studies.definition import Cell

STEPS = 10  # of the trial
# settings that hardly change how long a step or a measure takes
FREE = ("optim.", "training.k", "training.st", "training.tau", "training.trunc", "training.time_s", "training.weight")


def kind(cell: Cell) -> str:
    """Returns what is the same for cells that take the same time."""
    return str([(key, value) for key, value in cell.changes.items() if not key.startswith(FREE)]) + str(cell.measures)


def timed(function: Callable[[], Any]) -> float:
    """Returns how many seconds the second call takes; the first one compiles."""
    function()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Shows no progress meanwhile."""
    before, progress.quiet = progress.quiet, True
    try:
        yield
    finally:
        progress.quiet = before


def seconds_of_a_seed(cell: Cell, mesh: Mesh) -> float:
    """Returns about how long a seed takes, from a few steps and a small part of each measure."""
    with tempfile.TemporaryDirectory() as folder, silent():
        runner = CellRunner(cell, Path(folder), mesh)
        state = runner.trainer.start(0)

        def train() -> None:
            nonlocal state
            state, _ = runner.trainer.train(state, 0, int(state.step) + STEPS)

        seconds = timed(train) / STEPS * cell.steps[-1]
        for measure in cell.measures:
            small, times = measure.smaller(runner.setting)
            function = small.prepare(runner.setting)
            again = lambda function=function: function(dataclasses.replace(state))  # what a state has drawn is kept
            seconds += timed(again) * times * len(cell.steps)
    return seconds


def show(cells: Sequence[Cell], out: Path, mesh: Mesh) -> None:
    """Prints each cell with its complete seeds and about how long the others take, and the sum."""
    known: dict[str, list[float]] = {}
    results = {cell.name: Results(cell, out) for cell in cells}
    for cell in cells:
        known.setdefault(kind(cell), []).extend(results[cell.name].seconds())
    total, width = 0.0, max(len(cell.name) for cell in cells)
    for cell in cells:
        done = sum(results[cell.name].is_complete(seed) for seed in range(cell.seeds))
        if done < cell.seeds and not known[kind(cell)]:
            if not progress.quiet:
                print(f"{cell.name}: a trial of {STEPS} steps and a small part of each measure", flush=True)
            known[kind(cell)] = [seconds_of_a_seed(cell, mesh)]
        left = (cell.seeds - done) * float(np.mean(known[kind(cell)] or [0.0]))
        total += left
        print(f"{cell.name:<{width}}  {done} of {cell.seeds} seeds done  {clock(left)} left", flush=True)
    print(f"{len(cells)} cells, {clock(total)} left on one device like this one ({os.cpu_count()} CPU cores)")
