"""Training of a cell's seeds: one program serves all of them, and a killed seed resumes at its last measured step."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.data.images import Images
from score_st.model import DiffusionModel
from score_st.runtime import progress, resumable
from score_st.training import loop
from score_st.training import step as stepping
from score_st.training.state import TrainState

LOGGED = ("loss", "gradient_norm")  # metrics of every step that are kept


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

    def start(self, seed: int) -> TrainState:
        """Returns the state before the first step."""
        return self._start(jax.random.key(seed))

    def train(self, current: TrainState, seed: int, stop: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Trains up to the step `stop`.

        Args:
          current: the state to begin with, which is used up.
          seed: of the run; all randomness of a step is a function of it and the step.
          stop: the last step.

        Returns:
          The state after it, and for each of LOGGED its values at the steps in between.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.seed = seed
        key, start = jax.random.key(seed), int(current.step)
        step = start
        batches = loop.stream(config, self.images["train"]).batches(start, stop)
        bar, logged = progress.Loop(f"seed {seed}", start, stop, "steps", seconds=10), []
        for count in loop.dispatches(start, stop, config.training.n_jitted_steps, ()):
            current, metrics = self._steps(current, [next(batches) for _ in range(count)], key)
            logged.append([metrics[name] for name in LOGGED])
            step += count
            if len(logged) % 100 == 0 or step == stop:  # waits for the device, so that it does not fall behind
                bar(step, f"loss {float(np.mean(logged[-1][0])):.4f}")
        columns = zip(*jax.device_get(logged), strict=True)
        return current, {name: np.hstack(column) for name, column in zip(LOGGED, columns, strict=True)}


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
        before = self.steps.index(step) - 1
        if before < 0:
            state, logged = self.trainer.start(self.seed), {name: np.empty(0, np.float32) for name in LOGGED}
        else:
            state, logged = self._at(self.steps[before])
        state, new = self.trainer.train(state, self.seed, step)
        leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        return leaves | {name: np.concatenate([logged[name], new[name]]) for name in LOGGED}

    def clear(self) -> None:
        """Removes the states, once everything is measured."""
        for step in self.steps:
            self.states.path((step,)).unlink(missing_ok=True)
