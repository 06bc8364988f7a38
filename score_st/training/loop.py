"""The training loop."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from score_st.data import pipeline
from score_st.data.images import Images
from score_st.runtime import distributed, progress, sharding
from score_st.runtime.preemption import STOPPED, Preemption
from score_st.runtime.workdir import write_text
from score_st.training import checkpoints, state
from score_st.training import step as stepping


class Log:
    """`metrics.jsonl`, TensorBoard events and lines on the terminal, of process 0."""

    def __init__(self, workdir: Path, start: int, stop: int):
        import tensorboardX

        self.progress = progress.Loop("step", start, stop, "steps")
        self.path, self.writes = workdir / "metrics.jsonl", jax.process_index() == 0
        # after a kill, lines past the checkpoint are written again
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
        if not self.writes:
            return
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def __call__(self, step: int, **values):
        if not self.writes:
            return
        values = {key: float(value) for key, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for key, value in values.items():
            if np.isfinite(value):  # others it warns of
                self.board.add_scalar(key, value, step)
        self.board.flush()

    def train(self, step: int, recent: list[dict], waited: float, **values):
        """The mean of the metrics since the last call, with speed, time left, and the share of the time that `waited`
        seconds for data are."""
        count = step - self.progress.last[0]
        means = jax.tree.map(lambda *a: float(np.mean(np.hstack(a))), *recent)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in {"loss": means["loss"], **values}.items())
        speed = self.progress(step, shown)
        self(step, steps_per_s=speed, data_wait=waited * speed / count, **means, **values)


class Batches:
    """Batches, and the seconds since these were last asked for that `next` took; devices may have been busy meanwhile,
    so it is the most that they waited."""

    def __init__(self, batches: Iterator[np.ndarray]):
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> np.ndarray:
        began = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - began
        return batch

    def waited(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def check_finite(step: int, loss, wait: Callable[[], None]):
    """Ends the program with exit code 1 before a broken state replaces a good checkpoint, for which it `wait`s."""
    loss = np.ravel(loss)[-1]
    if not np.isfinite(loss):
        wait()
        said = f"error: step {step}: the loss is {loss}; the last checkpoint is kept. A smaller optim.lr may do"
        distributed.leave(1, said)


def dispatches(start: int, stop: int, several: int, marks: list[int]) -> Iterator[int]:
    """The numbers of steps that one program each does, from `start` to `stop`: `several`, or 1 where a multiple of one
    of `marks` is nearer."""
    step = start
    while step < stop:
        whole = step + several <= stop and all((step + several - 1) // m == step // m for m in marks)
        yield (count := several if whole else 1)
        step += count


def fit(
    config, workdir: Path, setup: stepping.TrainStepConfig, images: dict[str, Images], snapshot: Callable
) -> state.TrainState:
    """Trains from the newest checkpoint, or from the start, to config.training.n_iters updates.

    SIGTERM saves, and ends the program with exit code 143.

    Args:
      images: uint8 [N, H, W, C] of "train" and "test".
      snapshot: (state, log), what to do at each snapshot.
    """
    training, mesh = config.training, setup.mesh
    key = jax.random.key(config.seed)
    manager = checkpoints.manager(workdir, training.snapshot_freq)
    current = checkpoints.restore(manager, setup.abstract_state, mesh)
    if current is None:
        create = jax.jit(setup.create, out_shardings=setup.state_shardings)
        current = create(jax.random.fold_in(key, 2**31 - 1))
    one, several, loss_fn = stepping.jitted(setup), stepping.jitted(setup, True), stepping.jitted_eval_loss(setup)
    start, stop = int(current.step), training.n_iters
    log, recent = Log(workdir, start, stop), []
    put = lambda batch, axis=0: jax.make_array_from_process_local_data(sharding.sharded(mesh, axis), batch)
    processes, threads = (jax.process_index(), jax.process_count()), config.data.num_threads
    stream = lambda array: pipeline.Stream(array, training.batch_size, config.seed, *processes, threads)
    streams = {split: stream(array) for split, array in images.items()}
    due = lambda step: step == stop or step % training.snapshot_freq == 0
    done = workdir / "snapshot"
    if start and due(start) and not (done.exists() and done.read_text() == str(start)):
        snapshot(current, log)
    preemption, step = Preemption(start), start
    batches = Batches(streams["train"].batches(start, stop))
    marks = [training[f"{name}_freq"] for name in ("log", "eval", "snapshot")]
    marks.append(training.snapshot_freq_for_preemption)
    for count in dispatches(start, stop, training.n_jitted_steps, marks):
        if count == 1:
            current, metrics = one(current, put(next(batches)), key)
        else:
            current, metrics = several(current, put(np.stack([next(batches) for _ in range(count)]), 1), key)
        first, step = step == start, step + count
        recent.append(metrics)
        last = step == stop
        if last or first or step % training.log_freq == 0:
            extra = {}
            if last or step % training.eval_freq == 0:
                extra["eval_loss"] = float(loss_fn(current.ema, put(streams["test"].batch(step)), key))
            log.train(step, recent, batches.waited(), **extra)
            check_finite(step, metrics["loss"], manager.wait_until_finished)
            recent = []
        stopped = preemption.reached(step)
        if due(step) or stopped or step % training.snapshot_freq_for_preemption == 0:
            check_finite(step, metrics["loss"], manager.wait_until_finished)
            checkpoints.save(manager, current)
        if stopped:
            manager.wait_until_finished()
            preemption.close()
            print(f"step {step}/{stop}  saved and stopped, as SIGTERM asked", flush=True)
            sys.exit(STOPPED)
        if due(step):
            manager.wait_until_finished()
            preemption.listen(False)  # what a snapshot has, it finds again
            snapshot(current, log)
            preemption.listen()
    preemption.close()
    manager.wait_until_finished()
    return current
