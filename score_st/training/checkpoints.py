"""Checkpoints in `<workdir>/checkpoints/<step>`, written by Orbax in the background.

On gs:// Orbax writes to the bucket. On s3://, which it can't write, it writes to the workdir's mirror.
"""

import contextlib
import gc
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from score_st.config import MEANING, ConfigError
from score_st.model import DiffusionModel
from score_st.runtime import mirror, sharding, storage
from score_st.runtime.workdir import check_same
from score_st.training import hashes, saved_steps, state
from score_st.training.optimizer import optimizer_from_config
from score_st.training.state import TrainState

if TYPE_CHECKING:  # it takes long to import
    import orbax.checkpoint as ocp

_noted: set[str] = set()  # checkpoints without hashes


class Damaged(ConfigError):
    """A checkpoint that can't be read, or does not have what was saved."""


def manager(
    workdir: str | Path,
    keep_period: int | None = None,
    read_only: bool = False,
    folder: str = "checkpoints",
    newest: int | None = 1,
    alone: bool = False,
) -> "ocp.CheckpointManager":
    """Returns a manager that keeps the `newest` checkpoints (None: all) and those at multiples of `keep_period`.

    It also keeps those of `keep_snapshots`. With `alone` this process writes without the others.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    place, processes = saved_steps.root(workdir, folder), {}
    if alone:
        place.mkdir(parents=True, exist_ok=True)  # which Orbax then leaves to its caller
        processes = dict(primary_host=jax.process_index(), active_processes={jax.process_index()})

    keep: list[policies.PreservationPolicy] = [policies.LatestN(newest)]
    if keep_period:
        keep += [policies.EveryNSteps(keep_period), policies.CustomSteps(sorted(saved_steps.kept_snapshots(workdir)))]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else policies.AnyPreservationPolicy(keep),
        read_only=read_only,
        create=not read_only and not alone,
        # processes wait for each other under names that have the step: two managers may write the same one at once
        multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder, **processes),
    )
    return ocp.CheckpointManager(place, options=options)


def remove_unfinished(workdir: str | Path) -> None:
    """Deletes what a write that failed has left on a local disk, which takes room and is never read."""
    for folder in saved_steps.FOLDERS:
        for path in Path(workdir, folder).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def save(manager: "ocp.CheckpointManager", current: TrainState) -> None:
    """Starts to write the state under its step, unless that has a checkpoint already."""
    save_item(manager, int(current.step), current)


def parts_of(item: Any) -> dict[str, Any]:
    """Returns the parts of a tree by name: of a dataclass its attributes."""
    return {field.name: getattr(item, field.name) for field in fields(item)} if is_dataclass(item) else dict(item)


def save_item(manager: "ocp.CheckpointManager", step: int, item: Any) -> None:
    """Starts to write a tree of arrays and their hashes under a step, unless that is the newest checkpoint already."""
    import orbax.checkpoint as ocp

    if step != manager.latest_step():
        parts = parts_of(item)
        manager.save(step, args=ocp.args.PyTreeSave({**parts, hashes.KEY: hashes.of(parts)}))


def restore(
    manager: "ocp.CheckpointManager", abstract: TrainState, mesh: Mesh, step: int | None = None
) -> TrainState | None:
    """Reads a state, sharded over `mesh`.

    Without `step` it is the newest that can be read. Others after it are set aside, with a line on stderr: what
    follows writes these steps again.

    Args:
      manager: of the workdir.
      abstract: a state of ShapeDtypeStructs.
      mesh: may differ from the one that the state was saved on.
      step: by default the newest.

    Returns:
      The state, or None if there is no checkpoint.

    Raises:
      Damaged: `step`, or each checkpoint, can't be read; nothing is set aside.
    """
    target, place = placed(abstract, mesh), manager.directory
    if step is not None:
        return read_item(manager, step, target)
    wrong = saved_steps.unfinished(manager)
    for step in reversed(saved_steps.finished(place)):
        if remote := mirror.of(place):
            remote.bring(f"{place.name}/{step}")
        try:
            current = read_item(manager, step, target)
        except Damaged as error:
            wrong[step] = str(error)
            continue
        saved_steps.set_aside(manager, wrong, f", and step {step} is taken")
        return current
    if wrong:
        raise Damaged(f"{wrong[max(wrong)]}, and there is no other; delete it to train from the start")
    return None


def placed(abstract: Any, mesh: Mesh) -> Any:
    """Returns ShapeDtypeStructs that also say how arrays are sharded over `mesh`."""

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, abstract, sharding.shardings(mesh, abstract))


def read_item(manager: "ocp.CheckpointManager", step: int, target: Any) -> Any:
    """Reads a checkpoint into the form of `target`, see `placed`, and compares the hashes of what was read.

    There may be more in it than `target` has. One without hashes is read, with a note on stderr.

    Raises:
      Damaged: it can't be read, or is not what was saved.
    """
    import orbax.checkpoint as ocp

    parts, where = parts_of(target), saved_steps.shown(manager, step)
    mesh = jax.tree.leaves(parts)[0].sharding.mesh
    wanted = {**parts, hashes.KEY: placed(hashes.abstract(parts), mesh)}
    how = ocp.checkpoint_utils.construct_restore_args(wanted)
    arguments = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
    problem = ""
    with _quiet():
        try:
            read = manager.restore(step, args=arguments)
        except (MemoryError, ConfigError):
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            problem = storage.reason(error).partition(" See full")[0]
        if problem:
            gc.collect()  # tracebacks are printed as what failed is deleted
    if problem:
        _check_answers(manager)
        raise Damaged(f"{where} is damaged ({problem})")
    stored, is_missing = read.pop(hashes.KEY), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    if any(map(is_missing, jax.tree.leaves(read))):
        raise Damaged(f"{where} is damaged (arrays are missing)")
    if any(map(is_missing, jax.tree.leaves(stored))):
        if jax.process_index() == 0 and where not in _noted:
            print(f"note: {where} has no checksums: an older version wrote it", file=sys.stderr, flush=True)
        _noted.add(where)
    elif changed := hashes.changed(read, stored):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Damaged(f"{where} is damaged (the checksum of {changed[0]}{more} differs)")
    return type(target)(**read)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Python from printing a traceback for each of the hundreds of reads that fail with a damaged file."""
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        log.setLevel(level)
        sys.unraisablehook = hook


def _check_answers(manager: "ocp.CheckpointManager") -> None:
    """Raises `storage.Unreachable` if the bucket of a manager does not answer."""
    place = str(manager.directory)
    if place.startswith("gs://"):
        try:
            storage.attempt(lambda: storage.listing(place))
        except Exception as error:
            raise storage.Unreachable(f"{place}: does not answer ({storage.reason(error)})") from error


def open_for_reading(
    workdir: str | Path, config: ConfigDict, model: DiffusionModel, mesh: Mesh, step: int | None = None
) -> TrainState:
    """Reads the state in `workdir` for evaluation or sampling, see `restore`.

    If the newest checkpoint is deleted meanwhile, as a run in progress does, the one after it is read.

    Raises:
      ConfigError: there is no such checkpoint, it is damaged, or its network is not the one that `config` describes.
    """
    check_same(Path(workdir), config, lambda key: key.startswith(MEANING))
    abstract = state.abstract(model, optimizer_from_config(config, model.network))  # without averages
    while True:
        chosen = find_step(workdir, step)
        try:
            with manager(workdir, read_only=True) as opened:
                return read_item(opened, chosen, placed(abstract, mesh))
        except Damaged as error:
            left = saved_steps.steps(workdir)
            if step is None and chosen not in left:
                continue
            before = max((s for s in left if s < chosen), default=None)
            offer = "" if before is None else f"; --step {before} takes the one before"
            raise Damaged(f"{error}{offer}") from None


def newest(workdir: str | Path) -> int:
    """Returns the step of the newest complete checkpoint, or 0 if there is none."""
    return max(saved_steps.steps(workdir), default=0)


def find_step(workdir: str | Path, step: int | None) -> int:
    """Returns the step of a checkpoint, by default of the newest.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    if step is not None and (remote := mirror.of(workdir)):
        remote.bring(f"checkpoints/{step}")
    found = saved_steps.steps(workdir)
    if not found and not mirror.exists_below(Path(workdir) / "checkpoints"):
        raise ConfigError(f"--workdir {workdir}: no checkpoint there; `python -m score_st.train` writes them")
    if not found or (step is not None and step not in found):
        state_of_it = f"has steps {', '.join(map(str, found))}" if found else "has no complete checkpoint yet"
        raise ConfigError(f"--workdir {workdir}: {state_of_it}" + ("" if step is None else f", not {step}"))
    return found[-1] if step is None else step
