"""The weights of a run: averages that training stores in `<workdir>/averages/<step>`, and what is read with --ema."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.config import MEANING, ConfigError
from score_st.model import DiffusionModel
from score_st.runtime.workdir import check_same
from score_st.training import averages, checkpoints, saved_steps, saving
from score_st.training.state import AveragedState, TrainState

FOLDER = "averages"
HELP = "the weights: a width from 0.02 to 0.25 (docs: averages), raw, or ema, the default (model.ema_rate)"
LARGEST_ERROR = 0.1  # of a profile, relative
NEGLIGIBLE = 1e-7  # coefficients, relative to the precision of float32


class Store:
    """Writes the averages of a run in the background, one Orbax checkpoint for each stored step."""

    def __init__(
        self, workdir: Path, steps: Sequence[int], current: TrainState, saver: Callable[[Any], saving.Saver]
    ) -> None:
        """Drops what is stored of steps past `current`, which are done again, and stores `current` if it is missing.

        Args:
          workdir: of the run.
          steps: at which to store; none: nothing is ever done.
          current: the state that training begins or resumes with.
          saver: makes a `Saver`, from a function that opens its manager.
        """
        self.steps, self.latest = frozenset(steps), (0, None)
        if not steps:
            return
        self.saver = saver(functools.partial(checkpoints.manager, workdir, folder=FOLDER, newest=None))
        saved_steps.set_aside(self.saver.manager, saved_steps.unfinished(self.saver.manager))
        past = [step for step in self.saver.manager.all_steps() if step > int(current.step)]
        multihost_utils.sync_global_devices("averages listed")  # no process deletes before all have listed them
        for step in past:
            self.saver.manager.delete(step)
        self(int(current.step), current)

    def __call__(self, step: int, current: TrainState) -> None:
        """Starts to write the averages of the state after `step`, if they are to be stored and are not yet."""
        if step in self.steps and step not in self.saver.manager.all_steps():
            assert isinstance(current, AveragedState)
            item = current.averages
            if self.saver.mirror:  # kept until they are in the bucket; training goes on in the memory of `current`
                item = jax.tree.map(jnp.copy, item)
                self.latest = step, item
            self.saver.save(step, item)

    def wait(self) -> None:
        """Waits until the averages are written."""
        if self.steps:
            self.saver.wait(*self.latest)

    def settle(self) -> None:
        """Waits until what is being written is, or has failed."""
        if self.steps:
            self.saver.settle()


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights to evaluate or to sample with.

    Attributes:
      params: replicated over the mesh that has read them.
      step: of training, at which the average ends.
      name: ema, raw, or ema_0.05 for the width 0.05.
      width: of the profile, if it was chosen.
    """

    params: Any
    step: int
    name: str
    width: float | None = None


def parse(ema: str | float) -> str | float:
    """What --ema says: a width, "raw" or "ema".

    Raises:
      ConfigError: it is none of them.
    """
    if ema in ("raw", "ema"):
        return ema
    try:
        width = float(ema)
    except ValueError:
        width = np.nan
    if not averages.NARROWEST <= width <= averages.WIDEST:
        choices = f"a width from {averages.NARROWEST} to {averages.WIDEST}, raw or ema"
        raise ConfigError(f"--ema {ema}: should be {choices}")
    return width


def plan(workdir: str | Path, step: int | None, width: float) -> dict[int, np.ndarray]:
    """The coefficients of the stored averages, by step, that give the average of a width.

    Args:
      workdir: of the run.
      step: at which the average ends; by default the newest that is stored.
      width: of its profile.

    Raises:
      ConfigError: nothing is stored, or not at this step, or too little before it.
    """
    option = f"--ema {width:g}: {workdir}"
    steps = saved_steps.steps(workdir, FOLDER)
    if not steps:
        raise ConfigError(f"{option} has no stored averages; train with --config.training.averages=64")
    if step is not None and step not in steps:
        near = ", ".join(map(str, sorted(sorted(steps, key=lambda s: abs(s - step))[:3])))
        raise ConfigError(f"{option} has no averages of --step {step}; the nearest that are stored are {near}")
    used = [s for s in steps if step is None or s <= step]
    values, error = averages.coefficients(used, width)
    if error > LARGEST_ERROR:
        count = f"{len(used)} stored up to step {used[-1]}"
        raise ConfigError(
            f"{option} has too few averages, {count}: the profile would be off by {error:.0%}; "
            f"widths near {averages.WIDTHS[0]} to {averages.WIDTHS[1]} take fewer, or a later --step"
        )
    return dict(zip(used, values, strict=True))


def check(workdir: str | Path, step: int | None, names: Iterable[str]) -> None:
    """Raises ConfigError where `read` would for one of these weights, without reading any."""
    for name in names:
        if isinstance(width := parse(name), float):
            plan(workdir, step, width)
        else:
            checkpoints.find_step(workdir, step)


def read(
    workdir: str | Path,
    config: ConfigDict,
    model: DiffusionModel,
    mesh: Mesh,
    step: int | None = None,
    ema: str | float = "ema",
) -> Weights:
    """Reads the weights that --ema names.

    Args:
      workdir: of the run.
      config: all settings.
      model: of `config`.
      mesh: the devices.
      step: of a checkpoint, or for a width a step at which averages are stored; the newest by default.
      ema: a width, "raw" or "ema".

    Raises:
      ConfigError: see `parse`, `plan` and `checkpoints.open_for_reading`.
    """
    chosen = parse(ema)
    if not isinstance(chosen, float):
        restored = checkpoints.open_for_reading(workdir, config, model, mesh, step)
        return Weights(restored.params if chosen == "raw" else restored.ema, int(restored.step), chosen)
    check_same(Path(workdir), config, lambda key: key.startswith(MEANING))
    terms = plan(workdir, step, chosen)
    return Weights(combine(workdir, model.abstract_params, mesh, terms), max(terms), f"ema_{chosen:g}", chosen)


def combine(workdir: str | Path, params: Any, mesh: Mesh, terms: dict[int, np.ndarray]) -> Any:
    """Adds up stored averages, float32, with one stored step in memory at a time.

    The sum is taken of differences from the newest average. As the coefficients add up to 1 that changes nothing, but
    for rounding: what training leaves as it is keeps its bits.

    Args:
      workdir: of the run.
      params: the parameters as a tree of ShapeDtypeStructs.
      mesh: the devices.
      terms: coefficients [2] by step, for averages.WIDTHS.
    """
    names = [str(width) for width in averages.WIDTHS]
    abstract = checkpoints.placed(dict.fromkeys(names, params), mesh)
    base = total = None
    with checkpoints.manager(workdir, read_only=True, folder=FOLDER) as opened:
        for step in sorted(terms, reverse=True):
            if base is not None and np.all(np.abs(terms[step]) < NEGLIGIBLE):
                continue
            stored = checkpoints.read_item(opened, step, abstract)
            pair = [stored[name] for name in names]
            if base is None:
                base, total = pair[0], jax.tree.map(jnp.copy, pair[0])
            total = _added(total, base, pair, terms[step].astype(np.float32))
    return total


@functools.partial(jax.jit, donate_argnums=0)
def _added(total: Any, base: Any, pair: Any, factors: Any) -> Any:
    add = lambda t, b, first, second: t + factors[0] * (first - b) + factors[1] * (second - b)
    return jax.tree.map(add, total, base, *pair)
