"""`python -m score_st.train`: trains with Soft Truncation, evaluates, and goes on where it was when started again."""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_st import checkpoints, cli, data, experiment, losses, progress, report, sample, state
from score_st import eval as evaluation
from score_st.config import ConfigError
from score_st.preemption import STOPPED, Preemption

EXAMPLES = """\
  python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
  python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/no_st --config.training.k=inf
  python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10"""


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """What a step does, besides the state and the batch.

    Attributes:
      loss: see `losses`.
      groups: draws of τ a batch.
      shards: devices that the batch lies on; micro-batches take an equal part of each.
    """

    experiment: experiment.Experiment
    loss: Callable
    random_flip: bool
    ema_rate: float
    groups: int
    shards: int
    micro_batches: int


def draw(recipe: Recipe, images, key):
    """The arguments of the loss for a batch of uint8 images [B, H, W, C]: (x, τ, u, z, z_rec), or for a discrete loss
    (x, u, z). All randomness of a step but dropout's is here."""
    keys = jax.random.split(key, 6)
    if recipe.random_flip:
        images = data.random_flip(images, keys[0])
    x = recipe.experiment.scaler.forward(images, jax.random.uniform(keys[1], images.shape))
    u = jax.random.uniform(keys[2], (len(x),))
    z, z_rec = (jax.random.normal(key, x.shape) for key in keys[3:5])
    if isinstance(recipe.loss, losses.Discrete):
        return x, u, z
    return x, recipe.experiment.truncation.sample(keys[5], recipe.groups, len(x)), u, z, z_rec


def micro_batches(recipe: Recipe, inputs):
    """Arrays [B, ...] as [micro-batches, B / micro-batches, ...], without moving images between devices."""

    def split(a):
        a = a.reshape(recipe.shards, recipe.micro_batches, -1, *a.shape[1:])
        return jnp.swapaxes(a, 0, 1).reshape(recipe.micro_batches, -1, *a.shape[3:])

    return jax.tree.map(split, inputs)


def mean_loss(recipe: Recipe, params, inputs, dropout_key):
    """The loss of a micro-batch, averaged over its images."""
    made = recipe.experiment
    discrete = isinstance(recipe.loss, losses.Discrete)
    function = made.apply(params, dropout_key) if discrete else made.score(params, dropout_key)
    return jnp.mean(recipe.loss(function, *inputs))


def train_step(train_state: state.TrainState, images, key, *, recipe: Recipe):
    """One update from a batch of uint8 images [B, H, W, C].

    A pure function: everything random follows from `key` and the step. Micro-batches share the τ of their device, and
    their gradients are averaged.

    Returns:
      The new state, and scalars: loss, gradient_norm (before clipping), tau (geometric mean).
    """
    data_key, dropout_key = jax.random.split(jax.random.fold_in(key, train_state.step))
    inputs = draw(recipe, images, data_key)
    gradient_of = jax.value_and_grad(functools.partial(mean_loss, recipe))

    def accumulate(total, part):
        index, inputs = part
        new = gradient_of(train_state.params, inputs, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, total, new), None

    if recipe.micro_batches == 1:
        loss, gradient = gradient_of(train_state.params, inputs, dropout_key)
    else:
        parts = jnp.arange(recipe.micro_batches), micro_batches(recipe, inputs)
        zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), train_state.params))
        total, _ = jax.lax.scan(accumulate, zero, parts)
        loss, gradient = jax.tree.map(lambda a: a / recipe.micro_batches, total)
    metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradient)}
    if not isinstance(recipe.loss, losses.Discrete):
        metrics["tau"] = jnp.exp(jnp.mean(jnp.log(inputs[1])))
    return state.update(train_state, gradient, recipe.experiment.optimizer, recipe.ema_rate), metrics


def eval_loss(params, images, key, *, recipe: Recipe):
    """The loss at τ = ε without dropout or flips, averaged over uint8 images [B, H, W, C]."""
    made = recipe.experiment
    without = dataclasses.replace(made, truncation=dataclasses.replace(made.truncation, k=float("inf")))
    recipe = dataclasses.replace(recipe, experiment=without, random_flip=False)
    return mean_loss(recipe, params, draw(recipe, images, key), None)


def recipe_from_config(config, shards: int) -> Recipe:
    """`shards` is the number of devices.

    Raises:
      ConfigError: a setting is unknown, or the batch can't be split as asked.
    """
    training, micro = config.training, config.optim.num_micro_batch
    made = experiment.from_config(config)
    groups = training.tau_groups or shards
    state.check_divisible("training.batch_size", training.batch_size, shards, "the number of devices")
    if micro < 1:
        raise ConfigError(f"config.optim.num_micro_batch={micro}: should be 1 or more")
    by, what = shards * micro, f"{shards} devices times {micro} micro-batches"
    state.check_divisible("training.batch_size", training.batch_size, by, what)
    state.check_divisible("training.batch_size", training.batch_size, groups, "training.tau_groups")
    if training.mixed and training.batch_size % (2 * groups * micro):
        raise ConfigError(
            f"config.training.batch_size={training.batch_size}: the mixture halves each of {groups} τ groups in "
            f"each of {micro} micro-batches; should be a multiple of {2 * groups * micro}"
        )
    loss = losses.from_config(config, made.sde, groups)
    return Recipe(made, loss, config.data.random_flip, config.model.ema_rate, groups, shards, micro)


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
        cli.write(self.path, "".join(line + "\n" for line in kept))
        self.board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def __call__(self, step: int, **values):
        if not self.writes:
            return
        values = {key: float(value) for key, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, step)
        self.board.flush()

    def train(self, step: int, recent: list[dict], **values):
        """The mean of the metrics since the last call, with speed and time left."""
        means = jax.tree.map(lambda *a: float(np.mean(a)), *recent)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in {"loss": means["loss"], **values}.items())
        self(step, steps_per_s=self.progress(step, shown), **means, **values)


def check_finite(step: int, loss):
    """Ends the program with exit code 1 before a broken state replaces a good checkpoint."""
    if not np.isfinite(loss):
        sys.exit(f"error: step {step}: the loss is {loss}; the last checkpoint is kept. A smaller optim.lr may do")


def fit(config, workdir: Path, recipe: Recipe, images: dict[str, np.ndarray]) -> state.TrainState:
    """Trains from the newest checkpoint, or from the start, to config.training.n_iters updates.

    SIGTERM saves, and ends the program with exit code 143.

    Args:
      images: uint8 [N, H, W, C] of "train" and "test".
    """
    training, made, mesh = config.training, recipe.experiment, state.mesh()
    whole, shared = state.replicated(mesh), state.sharded(mesh)
    key = jax.random.key(config.seed)
    manager = checkpoints.manager(workdir, training.snapshot_freq)
    current = checkpoints.restore(manager, made.abstract_state, whole)
    if current is None:
        current = jax.jit(made.create, out_shardings=whole)(jax.random.fold_in(key, 2**31 - 1))
    step_fn = jax.jit(functools.partial(train_step, recipe=recipe), donate_argnums=0, out_shardings=(whole, whole))
    loss_fn = jax.jit(functools.partial(eval_loss, recipe=recipe))
    start, stop = int(current.step), training.n_iters
    log, recent = Log(workdir, start, stop), []
    put = functools.partial(jax.make_array_from_process_local_data, shared)
    processes, threads = (jax.process_index(), jax.process_count()), config.data.num_threads
    stream = lambda array: data.Stream(array, training.batch_size, config.seed, *processes, threads)
    streams = {split: stream(array) for split, array in images.items()}
    due = lambda step: step == stop or step % training.snapshot_freq == 0
    done = workdir / "snapshot"
    if start and due(start) and not (done.exists() and done.read_text() == str(start)):
        snapshot(config, workdir, made, current, images["test"], log)
    preemption = Preemption(start)
    for step, batch in enumerate(streams["train"].batches(start, stop), start + 1):
        current, metrics = step_fn(current, put(batch), key)
        recent.append(metrics)
        last = step == stop
        if last or step == start + 1 or step % training.log_freq == 0:
            extra = {}
            if last or step % training.eval_freq == 0:
                extra["eval_loss"] = float(loss_fn(current.ema, put(streams["test"].batch(step)), key))
            log.train(step, recent, **extra)
            recent = []
        stopped = preemption.reached(step)
        if due(step) or stopped or step % training.snapshot_freq_for_preemption == 0:
            check_finite(step, metrics["loss"])
            checkpoints.save(manager, current)
        if stopped:
            manager.wait_until_finished()
            print(f"step {step}/{stop}  saved and stopped, as SIGTERM asked", flush=True)
            sys.exit(STOPPED)
        if due(step):
            manager.wait_until_finished()
            preemption.listen(False)  # what a snapshot has, it finds again
            snapshot(config, workdir, made, current, images["test"], log)
            preemption.listen()
    preemption.listen(False)
    manager.wait_until_finished()
    return current


def snapshot(config, workdir: Path, made: experiment.Experiment, current: state.TrainState, test_images, log: Log):
    """A picture of samples (training.snapshot_sampling) and bits/dim (eval.enable_bpd) of the average's weights."""
    step = int(current.step)
    if config.training.snapshot_sampling:
        path = workdir / f"snapshots/{step:08}.png"
        sample.picture(config, made, current.ema, path)
        if log.writes:
            shutil.copyfile(path, workdir / "samples.png")
    if config.eval.enable_bpd:
        result = evaluation.evaluate(config, made, current.ema, step, test_images, workdir)
        log(step, **{name: result[name] for name in evaluation.FIGURES if name in result})
    if log.writes:
        cli.write(workdir / "snapshot", str(step))
        report.refresh(workdir)


def train(config, workdir: str | Path, base: dict | None = None) -> state.TrainState:
    """Trains in `workdir`; all that can be wrong with the request is found before anything is written.

    Args:
      base: of `cli.parse`, for the report.

    Raises:
      ConfigError: what was asked for is not possible.
    """
    recipe = recipe_from_config(config, jax.device_count())
    images = {split: data.load(config, split) for split in ("train", "test")}
    if config.eval.enable_bpd:
        evaluation.from_config(config, recipe.experiment)
    return fit(config, cli.claim(workdir, config, base), recipe, images)


def main(argv: list[str] | None = None):
    codes = {1: "the loss is not finite; the last checkpoint is kept"}
    parser = cli.parser("train", "Trains a score model with Soft Truncation.", EXAMPLES, codes)
    arguments = cli.parse(parser, argv)
    train(arguments.config, arguments.workdir, arguments.base)


if __name__ == "__main__":
    cli.run(main)
