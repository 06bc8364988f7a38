"""Running cells: each is claimed by a lease, its seeds are trained and measured one after the other, and stored."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.data import pipeline
from score_st.runtime import lease, resumable, sharding
from score_st.studies.definition import Cell
from score_st.studies.measures import LEASE_SECONDS, Measure, Rows, Setting
from score_st.studies.training import Run, Trainer, train_side_by_side
from score_st.training.state import TrainState

TRAINING = "training"  # what is said of training itself is stored like a measure
LARGEST_GROUP = 500  # images that an accelerator measures together
CLIP = 1.0  # the official norm to which gradients are clipped


class Results:
    """The results of a cell: a line of JSON for each seed, step and measure."""

    def __init__(self, cell: Cell, out: Path, writes: bool = False) -> None:
        """Reads them.

        Args:
          cell: whose results.
          out: folder of the study's results.
          writes: whether this process adds to them.
        """
        self.cell, self.folder = cell, out / cell.name
        measures: Sequence[Any] = cell.measures  # dataclasses
        described: dict[str, Any] = {TRAINING: {}} | {m.name: dataclasses.asdict(m) for m in measures}
        self.lines = {
            name: resumable.JsonLines(
                self.folder / "results.jsonl", {"config": cell.changes, "measure": {"name": name} | fields}, writes
            )
            for name, fields in described.items()
        }

    def jobs(self, seed: int) -> list[tuple[str, tuple[int, int]]]:
        """Returns what is done for a seed: (measure, (seed, step))."""
        return [(name, (seed, step)) for step in self.cell.steps for name in self.lines]

    def is_complete(self, seed: int | None = None) -> bool:
        """Whether everything is stored, of one seed or of all."""
        seeds = range(self.cell.seeds) if seed is None else [seed]
        return all(job in self.lines[name] for seed in seeds for name, job in self.jobs(seed))

    def seconds(self) -> list[float]:
        """Returns how long each complete seed took."""
        seeds = [seed for seed in range(self.cell.seeds) if self.is_complete(seed)]
        return [sum(self.lines[name].seconds[job] for name, job in self.jobs(seed)) for seed in seeds]

    def values(self) -> dict[tuple[int, str, str], dict[int, float]]:
        """Returns the figures by (step, row, figure): the value of each seed that has one."""
        values: dict[tuple[int, str, str], dict[int, float]] = {}
        for seed in range(self.cell.seeds):
            for name, job in self.jobs(seed):
                result = self.lines[name](job, dict) if job in self.lines[name] else {}
                for key, value in result.items():
                    row, _, figure = key.rpartition("/")
                    values.setdefault((job[1], row, figure), {})[seed] = float(value)
        return values


def flattened(rows: Rows) -> dict[str, float]:
    """Returns rows as one dictionary, with "row/figure" as keys, without figures that are not finite."""
    pairs = ((row, name, value) for row, figures in rows.items() for name, value in figures.items())
    return {f"{row}/{name}": value for row, name, value in pairs if np.isfinite(value)}


def of_training(logged: dict[str, np.ndarray]) -> Rows:
    """Returns what is said of training up to a step: the loss of its last tenth, and the clipped share of steps."""
    recent = logged["loss"][-max(len(logged["loss"]) // 10, 1) :]
    share = float(np.mean(logged["gradient_norm"] > CLIP))
    return {TRAINING: {"loss": float(np.mean(recent)), "share above 1": share}}


class CellRunner:
    """Trains and measures the seeds of a cell, with programs that are compiled once."""

    def __init__(self, cell: Cell, out: Path, mesh: Mesh) -> None:
        """Reads the data.

        Args:
          cell: the cell.
          out: folder of the study's results.
          mesh: the devices.
        """
        images = {split: pipeline.load(cell.config, split) for split in ("train", "test")}
        self.on_accelerator = sharding.platform(mesh) != "cpu"
        self.trainer = Trainer(cell.config, images, mesh)
        config = with_large_groups(cell.config, len(images["test"])) if self.on_accelerator else cell.config
        self.setting = Setting(config, self.trainer.model, images, mesh, out / ".cache")
        self.cell, self.results = cell, Results(cell, out, writes=True)
        self._measure = functools.cache(lambda measure_name: self._measures[measure_name].prepare(self.setting))
        self._measures: dict[str, Measure] = {measure.name: measure for measure in cell.measures}

    def __call__(self, keep_going: Callable[[], None] = lambda: None) -> None:
        """Does what is missing; `keep_going` raises where the cell is no longer ours."""
        seeds = [seed for seed in range(self.cell.seeds) if not self.results.is_complete(seed)]
        runs = [Run(self.trainer, seed, self.cell.steps, self.results.folder) for seed in seeds]
        if self.on_accelerator:
            keep_going()
            train_side_by_side(runs)
        for run in runs:
            for name, job in self.results.jobs(run.seed):
                keep_going()
                self.results.lines[name](job, functools.partial(self._compute, name, run, job[1]))
            run.clear()

    def _compute(self, name: str, run: Run, step: int) -> dict[str, float]:
        state, logged = run.at(step)
        if name == TRAINING:
            return flattened(of_training(logged))
        return flattened(self._measure(name)(state)) if is_finite(state) else {}


def with_large_groups(config: ConfigDict, count: int) -> ConfigDict:
    """Returns a configuration that measures many images at a time, up to `count`, which may change the last bits."""
    config, size = config.copy_and_resolve_references(), min(count, LARGEST_GROUP)
    with config.unlocked():
        config.eval.update(batch_size=size, group=size)
        config.sampling.group = LARGEST_GROUP
    return config


def is_finite(state: TrainState) -> bool:
    """Whether all weights are; where they are not, a cell has no figures for the seed."""
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves((state.params, state.ema)))


def claimed(
    cells: Sequence[Cell], out: Path, seconds: float = LEASE_SECONDS, stop: Callable[[], bool] = lambda: False
) -> Generator[tuple[Cell, lease.Lease]]:
    """Yields cells that are not complete, each while this process has its lease, until all are complete.

    Cells that nobody seems to have come first. The leases of others have been watched since the beginning of a round,
    so that those of processes that are gone are soon taken over.
    """
    while not stop():
        watched = [
            (cell, lease.Lease(out / cell.name, seconds)) for cell in cells if not Results(cell, out).is_complete()
        ]
        if not watched:
            return
        for cell, claim in sorted(watched, key=lambda pair: pair[1].seen is not None):
            if stop():
                return
            try:
                claim.acquire()
            except lease.Taken:
                continue
            try:
                if not Results(cell, out).is_complete():  # it may have been done meanwhile
                    yield cell, claim
            finally:
                claim.release()
        time.sleep(min(1.0, seconds / 10))


def work(cells: Sequence[Cell], out: Path, mesh: Mesh, after: Callable[[Cell], None], stop: threading.Event) -> None:
    """Runs cells on the devices of a mesh until all are complete, and calls `after` for each."""
    with contextlib.closing(claimed(cells, out, stop=stop.is_set)) as ours:  # however it ends, leases are released
        for cell, claim in ours:

            def keep_going(claim: lease.Lease = claim) -> None:
                claim.check()
                if stop.is_set():
                    raise KeyboardInterrupt

            with contextlib.suppress(lease.Taken):  # it was stopped for so long that another process has the cell
                CellRunner(cell, out, mesh)(keep_going)
                after(cell)
