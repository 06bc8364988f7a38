"""Checkpoints in `<workdir>/checkpoints/<step>`, written by Orbax in the background.

On gs:// Orbax writes to the bucket. On s3://, which it can't write, it writes to the workdir's mirror.
"""

import contextlib
import gc
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
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


class Saver:
    """Writes one folder of checkpoints, and tries again what a bucket does not take.

    On a local disk it adds nothing to Orbax. In a bucket, everything that the run has written up to a step is there
    before its checkpoint counts.
    """

    def __init__(
        self,
        workdir: Path,
        settings: ConfigDict,
        stop: Callable[[], bool],
        open: Callable[[], "ocp.CheckpointManager"],
        may_write: Callable[..., None] = lambda stop: None,
    ) -> None:
        """See `save` and `wait`.

        Args:
          workdir: of the run.
          settings: config.storage.
          stop: asked while it waits; True: it waits no longer unless the bucket answers.
          open: returns a new manager of the folder.
          may_write: called with the method `stop` before each checkpoint; see `lease.Lease.check`.
        """
        self.workdir, self.settings, self.open, self.manager = workdir, settings, open, open()
        self.mirror, self.overdue, self.may_write = mirror.of(workdir), stop, may_write
        self.failed = False  # whether the last save did
        self.waited = 0.0  # seconds that training waited for storage

    def save(self, step: int, item: Any) -> None:
        """Starts to write a tree of arrays under a step, once the checkpoint before is written.

        If that failed, this one is written before the method returns.

        Raises:
          storage.Unreachable: the bucket does not answer.
          storage.Interrupted: `stop` has returned True.
          lease.Taken: another process has taken the run over.
        """
        if self.mirror is None:
            self.may_write(self.stop)
            save_item(self.manager, step, item)
            return
        with self._timed():
            self.may_write(self.stop)
            before = self._is_written()
            self._start(step, item)
            if not before:
                self._finish(step, item)

    def wait(self, step: int, item: Any) -> None:
        """Waits until the newest checkpoint is written; if that fails, writes `item` under `step`. See `save`."""
        if self.mirror is None:
            self.manager.wait_until_finished()
            return
        with self._timed():
            self._finish(step, item)
            self.mirror.flush(self.stop, self.settings.patience)

    @contextlib.contextmanager
    def rescuing(self, current: TrainState) -> Iterator[None]:
        """Writes the state to storage.rescue if what is inside can't write to the bucket.

        Raises:
          storage.Unreachable: the bucket does not answer. The message has the last step that is saved there.
          storage.Interrupted: SIGTERM came meanwhile; likewise.
        """
        try:
            yield
        except (storage.Unreachable, storage.Interrupted) as error:
            where, steps = mirror.shown(self.workdir), self.steps()
            saved = f"the last checkpoint there is of step {max(steps)}" if steps else "there is no checkpoint yet"
            try:
                line = rescue(self.settings.rescue, self.workdir, current)
            except OSError as failure:
                line = f"step {int(current.step)} can't be written to {failure.filename}: {failure.strerror}"
            message = "; ".join(filter(None, (str(error) or f"{where}: does not answer", saved, line)))
            stopped = isinstance(error, storage.Interrupted)
            raise type(error)(f"stopped on SIGTERM, but {message}" if stopped else message) from error

    def settle(self) -> None:
        """Waits until what is being written is, or has failed."""
        if self.mirror is None:
            self.manager.wait_until_finished()
        else:
            self._is_written()
            self.mirror.flush(self.stop, self.settings.patience)

    def figures(self) -> dict[str, float]:
        """Returns what the log has of a run in a bucket: the seconds that training waited for it so far."""
        return {} if self.mirror is None else {"storage_wait": self.waited}

    def stop(self) -> bool:
        """Whether to wait no longer."""
        return self.overdue() and (self.mirror is None or not storage.answers(self.mirror.url))

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that count, in ascending order."""
        if self.mirror is not None and self.mirror.url.startswith("s3://"):
            return self.mirror.saved_steps()
        return sorted(self.manager.all_steps())

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - began

    def _is_written(self) -> bool:
        """Waits for the checkpoint that is being written; returns whether it was, or there was none."""
        assert self.mirror
        try:
            storage.attempt(self.manager.wait_until_finished, self.settings.patience, self.stop)
            return True
        except storage.Interrupted:
            raise
        except Exception as error:
            self._check(error)
            self.mirror.outage.failed(error)
            self.failed = True
            return False

    def _start(self, step: int, item: Any) -> None:
        assert self.mirror
        self.mirror.flush(self.stop, self.settings.patience)
        url, outage = self.mirror.url, self.mirror.outage

        def start() -> None:
            if self.failed:  # Orbax's manager raises the error of a failed save again and again
                self.manager, self.failed = self.open(), False
            save_item(self.manager, step, item)

        storage.patiently(url, start, self.settings.patience, self.stop, outage, self._check)

    def _finish(self, step: int, item: Any) -> None:
        end = time.monotonic() + self.settings.patience
        for pause in storage.pauses():
            if self._is_written():
                return
            if time.monotonic() + pause > end:
                assert self.mirror
                raise storage.Unreachable(f"{self.mirror.url}: takes no checkpoint for {self.settings.patience:.0f} s")
            storage.wait(pause, self.stop)
            self._start(step, item)

    def _check(self, error: Exception) -> None:
        """Raises `Unreachable` where several processes would have to begin again together."""
        if jax.process_count() > 1:
            assert self.mirror
            raise storage.Unreachable(f"{self.mirror.url}: {storage.reason(error)}") from error


def rescue(folder: str, workdir: Path, current: TrainState) -> str:
    """Writes a checkpoint that did not reach its bucket to a local folder.

    Args:
      folder: storage.rescue; empty: a new temporary folder.
      workdir: the mirror of the run, whose other files are copied.
      current: the state.

    Returns:
      One line: what to do with it. Empty where this process has only a part of the state.
    """
    if not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(current)):
        return ""
    target = Path(folder or tempfile.mkdtemp(prefix="score_st-rescue-")).absolute()
    shutil.copytree(workdir, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", *saved_steps.FOLDERS))
    with manager(target, alone=True) as local:
        save(local, jax.tree.map(np.asarray, current))
    command = f"python -m score_st.copy --from {target} --to {mirror.shown(workdir)}"
    return f"step {int(current.step)} is in {target}; `{command}` uploads it"


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
