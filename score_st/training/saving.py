"""Saving checkpoints where a bucket may not answer: what failed is tried again, or rescued to a local folder."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_st.runtime import mirror, storage
from score_st.training import checkpoints, saved_steps
from score_st.training.state import TrainState

if TYPE_CHECKING:  # it takes long to import
    import orbax.checkpoint as ocp


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
            checkpoints.save_item(self.manager, step, item)
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
            checkpoints.save_item(self.manager, step, item)

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
    with checkpoints.manager(target, alone=True) as local:
        checkpoints.save(local, jax.tree.map(np.asarray, current))
    command = f"python -m score_st.copy --from {target} --to {mirror.shown(workdir)}"
    return f"step {int(current.step)} is in {target}; `{command}` uploads it"
