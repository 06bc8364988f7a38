"""Checkpoints in `<workdir>/checkpoints/<step>`, written by Orbax in the background."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from score_st.config import MEANING, ConfigError
from score_st.model import DiffusionModel
from score_st.runtime import sharding
from score_st.runtime.workdir import check_same
from score_st.training import state
from score_st.training.optimizer import optimizer_from_config
from score_st.training.state import TrainState

if TYPE_CHECKING:  # it takes long to import
    import orbax.checkpoint as ocp


def manager(
    workdir: str | Path,
    keep_period: int | None = None,
    read_only: bool = False,
    folder: str = "checkpoints",
    newest: int | None = 1,
) -> "ocp.CheckpointManager":
    """Returns a manager that keeps the `newest` checkpoints (None: all) and those at multiples of `keep_period`."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=newest,
        keep_period=keep_period,
        read_only=read_only,
        create=not read_only,
        # processes wait for each other under names that have the step: two managers may write the same one at once
        multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder),
    )
    return ocp.CheckpointManager(Path(workdir).absolute() / folder, options=options)


def save(manager: "ocp.CheckpointManager", current: TrainState) -> None:
    """Starts to write the state under its step, unless that has a checkpoint already."""
    import orbax.checkpoint as ocp

    step = int(current.step)
    if step != manager.latest_step():
        manager.save(step, args=ocp.args.StandardSave(current))


def restore(
    manager: "ocp.CheckpointManager", abstract: TrainState, mesh: Mesh, step: int | None = None
) -> TrainState | None:
    """Reads a state, sharded over `mesh`.

    Args:
      manager: of the workdir.
      abstract: a state of ShapeDtypeStructs.
      mesh: may differ from the one that the state was saved on.
      step: by default the newest.

    Returns:
      The state, or None if there is no checkpoint.
    """
    step = manager.latest_step() if step is None else step
    return None if step is None else read_item(manager, step, placed(abstract, mesh))


def placed(abstract: Any, mesh: Mesh) -> Any:
    """Returns ShapeDtypeStructs that also say how arrays are sharded over `mesh`."""

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, abstract, sharding.shardings(mesh, abstract))


def read_item(manager: "ocp.CheckpointManager", step: int, target: Any, partial: bool = False) -> Any:
    """Reads a checkpoint into the form of `target`, see `placed`; with `partial` there may be more in it."""
    import orbax.checkpoint as ocp

    if not partial:
        return manager.restore(step, args=ocp.args.StandardRestore(target))
    how = ocp.checkpoint_utils.construct_restore_args(target)
    return manager.restore(step, args=ocp.args.PyTreeRestore(target, restore_args=how, partial_restore=True))


def open_for_reading(
    workdir: str | Path, config: ConfigDict, model: DiffusionModel, mesh: Mesh, step: int | None = None
) -> TrainState:
    """Reads the state in `workdir` for evaluation or sampling, see `restore`.

    Raises:
      ConfigError: there is no such checkpoint, or its network is not the one that `config` describes.
    """
    check_same(Path(workdir), config, lambda key: key.startswith(MEANING))
    step = find_step(workdir, step)
    abstract = state.abstract(model, optimizer_from_config(config, model.network))
    with manager(workdir, read_only=True) as opened:
        return read_item(opened, step, placed(abstract, mesh), partial=True)  # without averages, see `stored_weights`


def find_step(workdir: str | Path, step: int | None) -> int:
    """Returns the step of a checkpoint, by default of the newest.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    workdir = Path(workdir)
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"--workdir {workdir}: no checkpoint there; `python -m score_st.train` writes them")
    with manager(workdir, read_only=True) as opened:
        steps = opened.all_steps()
    if not steps or (step is not None and step not in steps):
        state_of_it = f"has steps {', '.join(map(str, sorted(steps)))}" if steps else "has no complete checkpoint yet"
        raise ConfigError(f"--workdir {workdir}: {state_of_it}" + ("" if step is None else f", not {step}"))
    return max(steps) if step is None else step
