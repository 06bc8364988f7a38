"""Training of a cell's seeds: one program serves all of them, and a killed seed resumes at its last measured step.

On a CPU the seeds are trained one after the other. An accelerator, which so small a network does not fill, trains them
side by side.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.data import pipeline
from score_st.data.images import Images
from score_st.model import DiffusionModel
from score_st.runtime import progress, resumable
from score_st.training import loop
from score_st.training import step as stepping
from score_st.training.state import TrainState

LOGGED = ("loss", "gradient_norm")  # metrics of every step that are kept
STEPS = 10  # of a program that trains seeds side by side

Logged = Mapping[str, np.ndarray]  # for each of LOGGED, its values at each step


class Trainer:
    """Trains as `python -m score_st.train` does, to the bit, with a seed that is no part of the program.

    Attributes:
      config: of all seeds.
      images: by split, of which it trains on "train".
      step_config: the train step and its mesh.
      model: with the arithmetic of evaluation.
    """

    def __init__(self, config: ConfigDict, images: Mapping[str, Images], mesh: Mesh) -> None:
        """Compiles nothing yet."""
        self.config, self.images = config, images
        self.step_config, self.model = stepping.from_config(config, mesh), DiffusionModel.from_config(config)
        self._steps = loop.compiled_steps(self.step_config)
        self._start = loop.compiled_start(self.step_config)
        several = functools.partial(stepping.train_steps, config=self.step_config)
        self._side_by_side = jax.jit(jax.vmap(several), donate_argnums=0)

    def start(self, seed: int) -> TrainState:
        """Returns the state before the first step."""
        return self._start(jax.random.key(seed))

    def train(self, current: TrainState, seed: int, stop: int) -> tuple[TrainState, Logged]:
        """Trains up to the step `stop`.

        Args:
          current: the state to begin with, which is used up.
          seed: of the run; all randomness of a step is a function of it and the step.
          stop: the last step.

        Returns:
          The state after it, and for each of LOGGED its values at the steps in between.
        """
        key, start = jax.random.key(seed), int(current.step)
        batches = self._batches(seed, start, stop)
        steps = lambda current, count: self._steps(current, [next(batches) for _ in range(count)], key)
        return self._loop(current, start, stop, self.config.training.n_jitted_steps, steps, f"seed {seed}")

    def train_side_by_side(
        self, states: Sequence[TrainState], seeds: Sequence[int], stop: int
    ) -> list[tuple[TrainState, Logged]]:
        """Returns what `train` does for each seed, to rounding, from one program that trains all of them.

        Args:
          states: to begin with, after the same step.
          seeds: of the runs.
          stop: the last step.
        """
        start, keys = int(states[0].step), jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
        streams = [self._batches(seed, start, stop) for seed in seeds]
        current = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def steps(current: TrainState, count: int) -> tuple[TrainState, Mapping[str, Any]]:
            rows = [loop.stacked([next(batches) for _ in range(count)]) for batches in streams]
            return self._side_by_side(current, loop.stacked(rows), keys)

        ended, logged = self._loop(current, start, stop, STEPS, steps, f"{len(seeds)} seeds")
        return [
            (jax.tree.map(lambda leaf, i=i: leaf[i], ended), {name: values[i] for name, values in logged.items()})
            for i in range(len(seeds))
        ]

    def _batches(self, seed: int, start: int, stop: int) -> Iterator[pipeline.Batch]:
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.seed = seed
        return loop.stream(config, self.images["train"]).batches(start, stop)

    def _loop(
        self, current: TrainState, step: int, stop: int, most: int, steps: Callable[..., Any], what: str
    ) -> tuple[TrainState, Logged]:
        """Calls `steps` with the state and how many steps to do, at most `most`, up to the step `stop`."""
        bar, logged = progress.Loop(what, step, stop, "steps", seconds=10), []
        for count in loop.dispatches(step, stop, most, ()):
            current, metrics = steps(current, count)
            logged.append([metrics[name] for name in LOGGED])
            step += count
            if len(logged) % 100 == 0 or step == stop:  # waits for the device, so that it does not fall behind
                bar(step, f"loss {float(np.mean(logged[-1][0])):.4f}")
        parts = zip(*jax.device_get(logged), strict=True)
        columns = [np.concatenate([np.atleast_1d(part) for part in column], axis=-1) for column in parts]
        return current, dict(zip(LOGGED, columns, strict=True))


class Run:
    """The states of one seed at the steps of a cell, kept on disk until the seed is done."""

    def __init__(self, trainer: Trainer, seed: int, steps: tuple[int, ...], folder: Path) -> None:
        """Reads nothing yet.

        Args:
          trainer: of the cell.
          seed: of the run.
          steps: at which there are states.
          folder: for the states.
        """
        self.trainer, self.seed, self.steps = trainer, seed, steps
        self.states = resumable.JobFiles(folder, f"state-{seed}-{{}}.npz", resumable.NPZ)
        self._structure: Any = jax.tree.structure(trainer.step_config.abstract_state)
        self.at = functools.lru_cache(maxsize=1)(self._at)

    def _at(self, step: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Returns the state after a step, and what was logged at each step up to there."""
        stored = self.states((step,), functools.partial(self._train, step), self._is_state)
        leaves = [stored[str(i)] for i in range(self._structure.num_leaves)]
        state = jax.device_put(self._structure.unflatten(leaves), self.trainer.step_config.state_shardings)
        return state, {name: stored[name] for name in LOGGED}

    def _is_state(self, stored: Mapping[str, Any]) -> bool:
        return set(stored) == {*LOGGED, *map(str, range(self._structure.num_leaves))}

    def _train(self, step: int) -> dict[str, np.ndarray]:
        state, logged = self.before(step)
        return arrays(*self.trainer.train(state, self.seed, step), logged)

    def before(self, step: int) -> tuple[TrainState, Logged]:
        """Returns the state from which training goes on to `step`, and what was logged up to there."""
        before = self.steps.index(step) - 1
        if before < 0:
            return self.trainer.start(self.seed), {name: np.empty(0, np.float32) for name in LOGGED}
        return self._at(self.steps[before])

    def clear(self) -> None:
        """Removes the states, once everything is measured."""
        for step in self.steps:
            self.states.path((step,)).unlink(missing_ok=True)


def arrays(state: TrainState, new: Logged, logged: Logged) -> dict[str, np.ndarray]:
    """Returns what is kept of a state: its leaves, and what was logged before and since."""
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    return leaves | {name: np.concatenate([logged[name], new[name]]) for name in LOGGED}


def train_side_by_side(runs: Sequence[Run]) -> None:
    """Trains the seeds of a cell together, as far as several lack the state of a step, and stores their states."""
    for step in runs[0].steps if runs else ():
        lack = [run for run in runs if (step,) not in run.states]
        if len(lack) < 2:
            continue
        states, logged = zip(*(run.before(step) for run in lack), strict=True)
        ended = lack[0].trainer.train_side_by_side(states, [run.seed for run in lack], step)
        for run, (state, new), before in zip(lack, ended, logged, strict=True):
            run.states((step,), functools.partial(arrays, state, new, before))
