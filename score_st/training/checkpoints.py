"""Checkpoints in `<workdir>/checkpoints/<step>`: Orbax, written in the background."""

from pathlib import Path
from typing import TYPE_CHECKING

import jax

from score_st.config import MEANING, ConfigError
from score_st.model import DiffusionModel
from score_st.runtime import sharding
from score_st.runtime.workdir import check_same
from score_st.training import state
from score_st.training.optimizer import optimizer_from_config

if TYPE_CHECKING:  # elsewhere where it is needed, as it takes long to import
    import orbax.checkpoint as ocp


def manager(workdir: str | Path, keep_period: int | None = None, read_only: bool = False) -> "ocp.CheckpointManager":
    """Keeps the newest checkpoint and every one at a multiple of `keep_period`."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, keep_period=keep_period, read_only=read_only, create=not read_only
    )
    return ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)


def save(manager: "ocp.CheckpointManager", current):
    """Starts to write the state under its step; a step that is there already is left alone."""
    import orbax.checkpoint as ocp

    step = int(current.step)
    if step != manager.latest_step():
        manager.save(step, args=ocp.args.StandardSave(current))


def restore(manager: "ocp.CheckpointManager", abstract, mesh, step: int | None = None):
    """The state at `step`, by default the newest, laid out on `mesh`; None where there is none.

    Args:
      abstract: a state of ShapeDtypeStructs.
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    target = jax.tree.map(place, abstract, sharding.shardings(mesh, abstract))
    return manager.restore(step, args=ocp.args.StandardRestore(target))


def open_for_reading(workdir: str | Path, config, model: DiffusionModel, mesh, step: int | None = None):
    """The state in `workdir` for evaluation or sampling, on all devices.

    Raises:
      ConfigError: no such checkpoint, or one of a network that `config` does not describe.
    """
    workdir = Path(workdir)
    check_same(workdir, config, lambda key: key.startswith(MEANING))
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"--workdir {workdir}: no checkpoint there; `python -m score_st.train` makes them")
    with manager(workdir, read_only=True) as opened:
        steps = opened.all_steps()
        if not steps or (step is not None and step not in steps):
            there = f"has steps {', '.join(map(str, sorted(steps)))}" if steps else "has no finished checkpoint yet"
            raise ConfigError(f"--workdir {workdir}: {there}" + ("" if step is None else f", not {step}"))
        abstract = state.abstract(model, optimizer_from_config(config))
        return restore(opened, abstract, mesh, step)
