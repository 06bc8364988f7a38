"""What a training run keeps, and how it ends."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Shaped
from score_st.runtime import distributed, endings, lease, storage
from score_st.runtime.goodput import Goodput
from score_st.training import checkpoints, saving, stored_weights
from score_st.training.state import TrainState


def check_finite(
    step: int, loss: Shaped[Array, "..."] | float, wait: Callable[[], object], current: TrainState | None = None
) -> None:
    """Ends the program with exit code 1 if something is NaN or infinite, before a checkpoint of it is written.

    Args:
      step: for the message.
      loss: of the last step, or of several.
      wait: waits until the last checkpoint has been written.
      current: the state, to look at the weights and their averages as well.
    """
    if what := not_finite(loss, current):
        wait()
        message = f"error: step {step}: {what}; the last checkpoint is kept. A smaller optim.lr may help"
        distributed.leave(1, message)


def not_finite(loss: Shaped[Array, "..."] | float, current: TrainState | None = None) -> str:
    """Returns which of loss, weights and averages is NaN or infinite, in words; "" if none is."""
    last = np.ravel(loss)[-1]
    if not np.isfinite(last):
        return f"the loss is {last}"
    if current is None:
        return ""
    parts = {"weights are": current.params, "average of the weights is": current.ema}
    finite = jax.device_get(all_finite(parts | {"averages of the weights are": getattr(current, "averages", {})}))
    return next((f"the {name} not finite" for name in finite if not finite[name]), "")


@jax.jit
def all_finite(parts: dict[str, Any]) -> dict[str, Array]:
    """Returns for each of several trees of arrays whether it has neither NaN nor infinity."""
    return {
        name: jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
        for name, tree in parts.items()
    }


class Keeper(contextlib.AbstractContextManager):
    """Writes what a run keeps, and sees to it when training ends, however it ends.

    Attributes:
      latest: the last step, its state and its loss.
    """

    def __init__(
        self,
        workdir: Path,
        checkpoint: saving.Saver,
        store: stored_weights.Store,
        goodput: Goodput,
        preemption: distributed.Preemption,
    ) -> None:
        """Writes nothing yet.

        Args:
          workdir: of the run.
          checkpoint: writes the state.
          store: writes its averages, where they are due.
          goodput: of the run, which keeps the results of the steps with a checkpoint.
          preemption: has the time to end in.
        """
        self.workdir, self.checkpoint, self.store = workdir, checkpoint, store
        self.goodput, self.preemption = goodput, preemption
        self.place = os.stat(workdir).st_ino
        self.latest: tuple[int, TrainState, Any] | None = None

    def __enter__(self) -> "Keeper":
        """Takes note of signals from now on."""
        self.preemption.listen()
        return self

    def keep(self, step: int, current: TrainState, saves: bool, wait: bool) -> None:
        """Starts to write what is due after a step.

        Args:
          step: of the state.
          current: the state.
          saves: whether a checkpoint is due.
          wait: whether to wait until all is written.

        Raises:
          OSError: the workdir is gone, or can't be written.
        """
        if saves:
            if self.is_gone():
                raise OSError(errno.ESTALE, "is gone", str(self.workdir))
            self.goodput.keep(step)
        with self.goodput.aside(), self.checkpoint.rescuing(current):
            if saves:
                # a run that resumes has all averages of earlier steps; those of its own it stores again
                self.store.wait()
                self.checkpoint.save(step, current)
            self.store(step, current)
            if wait:
                self.store.wait()
                self.checkpoint.wait(step, current)

    def settle(self) -> bool:
        """Waits until what is being written is, at most training.grace; returns whether it was."""

        def wait() -> None:
            self.checkpoint.settle()
            self.store.settle()

        try:
            storage.attempt(wait, self.preemption.grace)
            return True
        except Exception:
            return False

    def is_gone(self) -> bool:
        """Whether the workdir was deleted, or another was put in its place."""
        try:
            return os.stat(self.workdir).st_ino != self.place
        except FileNotFoundError:
            return True

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Saves what is good, as when a file of the data has vanished, and waits for what is being written."""
        self.preemption.listen(False)
        if error is None:
            return self.goodput.end()
        if isinstance(error, lease.Taken):  # what is here belongs to another process
            return None
        failure = endings.storage_failure(error)
        if isinstance(error, OSError) and not failure and self.is_gone():
            failure = OSError(errno.ESTALE, "is gone", str(self.workdir))
        if isinstance(error, Exception) and not failure and self.latest and jax.process_count() == 1:
            step, current, loss = self.latest
            with contextlib.suppress(Exception):
                if not not_finite(loss, current):
                    self.keep(step, current, saves=True, wait=True)
        self.settle()
        if failure and jax.process_index() == 0:
            checkpoints.remove_unfinished(self.workdir)
        if failure:
            failure.filename = failure.filename or str(self.workdir)
            if failure is not error:
                raise failure from error
        if isinstance(error, storage.Interrupted):
            error.code = self.preemption.code or error.code
