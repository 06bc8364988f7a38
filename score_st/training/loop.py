"""The training loop."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import strict_json
from score_st.array_types import Array, Key, Shaped
from score_st.config import flatten
from score_st.data import pipeline
from score_st.data.images import Images
from score_st.diffusion import time_sampling
from score_st.runtime import distributed, endings, exit_codes, profiling, progress, sharding
from score_st.runtime.goodput import Goodput
from score_st.runtime.workdir import write_text
from score_st.training import averages, checkpoints, keeping, loggers, saving, stored_weights
from score_st.training import step as stepping
from score_st.training.state import TrainState
from score_st.training.step import TrainStepConfig


@flax.struct.dataclass
class Means(clu.metrics.CollectingMetric):
    """The mean of each metric over the steps since the last line of the log.

    Values stay on their devices until `compute`, so that no step waits for the one before. NumPy's pairwise sum is
    more exact than the running float32 sum of `clu.metrics.Average`.
    """

    values: dict[str, tuple[Array, ...]]

    def add(self, metrics: Mapping[str, Array]) -> "Means":
        """Adds the metrics of one step, or of several."""
        return Means({name: (*self.values.get(name, ()), value) for name, value in metrics.items()})

    def compute(self) -> dict[str, float]:
        """Waits for the devices and returns the means."""
        return {name: float(np.mean(np.hstack(values))) for name, values in self.values.items()}


def complete_lines(path: Path, stop: int) -> list[str]:
    """Returns the lines of a log up to the step `stop`, without those that are torn, joined or binary."""
    kept = []
    for text in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError, TypeError, LookupError):
            if 0 <= strict_json.loads(text)["step"] <= stop:
                kept.append(text.decode())
    return kept


Figures = Callable[[float], Mapping[str, float | str]]  # what else the log says of a number of steps/s
# on the terminal
SHOWN = {"tflops_per_s": "{:.3g} TFLOP/s", "mfu": "MFU {:.1%}", "goodput": "goodput {:.1%}"}


class Log:
    """Writes `metrics.jsonl`, lines on the terminal and what training.loggers asks for, on process 0."""

    def __init__(
        self,
        workdir: Path,
        start: int,
        stop: int,
        figures: Figures = lambda steps_per_s: {},
        names: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the log of a run that begins or resumes at step `start` and ends at `stop`.

        Args:
          workdir: of the run.
          start: the steps that are done already.
          stop: the last step.
          figures: of the speed, such as tflops_per_s, mfu and goodput.
          names: of entries of `loggers.LOGGERS`.
          settings: the configuration, by dotted key.
        """
        self.progress, self.figures = progress.Loop("step", start, stop, "steps"), figures
        self.path, self.writes = workdir / "metrics.jsonl", jax.process_index() == 0
        # after a kill, the steps past the checkpoint are done again
        if not self.writes:
            return
        write_text(self.path, "".join(line + "\n" for line in complete_lines(self.path, start)))
        self.loggers = [loggers.LOGGERS[name](workdir, start, settings or {}) for name in names]

    def __call__(self, step: int, **values: Shaped[Array, ""] | float | str) -> None:
        """Appends a line to `metrics.jsonl`, and gives what is a finite number to the loggers."""
        if not self.writes:
            return
        line = {key: value if isinstance(value, str) else float(value) for key, value in values.items()}
        with self.path.open("a") as file:
            file.write(strict_json.dumps({"step": step, **line}) + "\n")
        numbers = {key: value for key, value in line.items() if not isinstance(value, str) and np.isfinite(value)}
        for logger in self.loggers:
            logger(step, numbers)

    def train(self, step: int, means: Mapping[str, float], waited: float, **values: float) -> None:
        """Logs the training since the last such line, with its speed, and shows it on the terminal.

        Args:
          step: steps done.
          means: of the metrics of the steps since the last line, with "loss".
          waited: seconds spent waiting for data since then, logged as a fraction of the time.
          **values: what else to log and show.
        """
        count, speed = step - self.progress.last[0], self.progress.speed(step)
        figures = self.figures(speed)
        shown = [f"{key} {value:.4f}" for key, value in {"loss": means["loss"], **values}.items()]
        shown += [text.format(figures[key]) for key, text in SHOWN.items() if key in figures]
        self.progress(step, "  ".join(shown))
        self(step, steps_per_s=speed, data_wait=waited * speed / count, **means, **values, **figures)

    def parameters(self, params: Any) -> None:
        """Writes the names, shapes and sizes of the network's parameters to `parameters.json`, and shows the first."""
        if not self.writes:
            return
        shapes = {name: list(leaf.shape) for name, leaf in sorted(parameter_overview.flatten_dict(params).items())}
        rows = [{"name": name, "shape": shape, "size": math.prod(shape)} for name, shape in shapes.items()]
        write_text(self.path.with_name("parameters.json"), strict_json.dumps(rows))
        if not progress.quiet:
            print(parameter_overview.get_parameter_overview(params, include_stats=False, max_lines=40), flush=True)


def log_of(config: ConfigDict, workdir: Path, start: int, figures: Figures, params: Any) -> Log:
    """Returns the log of a run, with what training.loggers names and the parameters; see `Log`."""
    log = Log(workdir, start, config.training.n_iters, figures, loggers.names(config), flatten(config))
    log.parameters(params)
    return log


Splits = Mapping[str, Images]
Snapshot = Callable[[TrainState, Log], None]


class Batches:
    """An iterator over batches that measures how long `next` takes.

    That is the longest that devices can have waited for data, since they may have been busy meanwhile.
    """

    def __init__(self, batches: Iterator[pipeline.Batch]) -> None:
        """Wraps `batches`."""
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> pipeline.Batch:
        """Returns the next batch."""
        began = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - began
        return batch

    def waited(self) -> float:
        """Returns the seconds spent in `next` since the last call of this method."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def dispatches(
    start: int, stop: int, several: int, periods: Sequence[int], marks: Collection[int] = ()
) -> Iterator[int]:
    """Divides the steps from `start` to `stop` into programs.

    Yields:
      The number of steps of each program: `several`, or 1 where one of the `marks` or a multiple of one of the
      `periods` comes before.
    """
    step = start
    while step < stop:
        fits = step + several <= stop and all((step + several - 1) // n == step // n for n in periods)
        fits = fits and not any(step < mark < step + several for mark in marks)
        yield (count := several if fits else 1)
        step += count


def resume(manager: Any, step_config: TrainStepConfig, key: Key[Array, ""]) -> TrainState:
    """Returns the state of the newest checkpoint, or a new one, on the mesh of the train step."""
    current = checkpoints.restore(manager, step_config.abstract_state, step_config.mesh)
    if current is not None:
        return current
    return compiled_start(step_config)(key)


def compiled_start(step_config: TrainStepConfig) -> Callable[[Key[Array, ""]], TrainState]:
    """Returns a function of a run's key: the state before the first step, on the mesh of the train step."""
    create = jax.jit(step_config.create, out_shardings=step_config.state_shardings)
    return lambda key: create(jax.random.fold_in(key, 2**31 - 1))  # steps fold in their numbers, which are smaller


def place(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
    """Shards a batch, an array or a tuple of them of which every process has its part, along `axis` over the mesh."""
    target = sharding.sharded(mesh, axis)
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(target, part), batch)


def stacked(batches: Sequence[Any]) -> Any:
    """Returns batches, of arrays or of tuples of them, as one with a new first axis."""
    return jax.tree.map(lambda *parts: np.stack(parts), *batches)


def stream(config: ConfigDict, images: Images) -> pipeline.Stream:
    """Returns this process's stream of batches of a split."""
    part, parts = jax.process_index(), jax.process_count()
    size, labeled = config.training.batch_size, config.model.num_classes > 0
    return pipeline.Stream(images, size, config.seed, part, parts, config.data.num_threads, labeled)


def compiled_steps(step_config: TrainStepConfig) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Returns a function of a state, a list of batches and a key: one program that does a step for each batch.

    On a CPU it is one program per step, as gradients of convolutions are slow there inside a loop.
    """
    mesh, one, several = step_config.mesh, stepping.jitted(step_config), stepping.jitted(step_config, several=True)

    def steps(current: TrainState, batches: list[pipeline.Batch], key: Array) -> tuple[TrainState, dict[str, Array]]:
        if len(batches) > 1 and sharding.platform(mesh) != "cpu":
            return several(current, place(mesh, stacked(batches), axis=1), key)
        metrics = []
        for batch in batches:
            current, new = one(current, place(mesh, batch), key)
            metrics.append(new)
        return current, jax.tree.map(lambda *values: jnp.stack(values) if len(values) > 1 else values[0], *metrics)

    return steps


def compiled_nelbo(config: ConfigDict, mesh: Mesh, bound: Callable, images: Images) -> Callable[[Any], float]:
    """Returns a function of weights: their NELBO in bits/dim on training.eval_images held-out images.

    Images, times and noise are the same at each call and whatever the seed of the run, so that runs with different
    losses can be compared while they train. The times are stratified.

    Args:
      config: of the run.
      mesh: of the train step.
      bound: `step.jitted_nelbo`.
      images: those of "test".
    """
    size, part, parts = config.training.batch_size, jax.process_index(), jax.process_count()
    stream = pipeline.Stream(images, size, 0, part, parts, labeled=config.model.num_classes > 0)
    keys = jax.random.split(jax.random.key(0), -(-config.training.eval_images // size))
    u = np.asarray(time_sampling.stratified(jax.random.key(1), (len(keys) * size,)))
    u = u.reshape(len(keys), parts, size // parts)

    def mean(params: Any) -> float:
        batches = ((place(mesh, stream.inputs(i)), place(mesh, u[i, part]), key) for i, key in enumerate(keys))
        return float(np.mean([bound(params, *batch) for batch in batches]))

    return mean


def compiled_eval(config: ConfigDict, step_config: TrainStepConfig, images: Images) -> Callable[..., dict[str, float]]:
    """Returns a function of a state, a step and a key: what the log has of the averaged weights on held-out images.

    `eval_loss` is the loss on the step's batch, and `eval_nelbo` that of `compiled_nelbo`.
    """
    mesh, loss, batches = step_config.mesh, stepping.jitted_eval_loss(step_config), stream(config, images)
    nelbo = compiled_nelbo(config, mesh, stepping.jitted_nelbo(step_config), images)

    def figures(current: TrainState, step: int, key: Key[Array, ""]) -> dict[str, float]:
        result = {"eval_loss": float(loss(current.ema, place(mesh, batches.inputs(step)), key))}
        return result | ({"eval_nelbo": nelbo(current.ema)} if config.training.eval_images else {})

    return figures


class Beside(NamedTuple):
    """What a run does beside training.

    Attributes:
      snapshot: called every training.snapshot_freq steps and at the end, until it has written the step to
        `<workdir>/snapshot`.
      speed: what else the log says of it.
      may_write: called before each line of the log, and with the saver's `stop` before each checkpoint; it raises
        where another process has taken the run over.
    """

    snapshot: Snapshot
    speed: Figures
    may_write: Callable[..., None] = lambda stop=None: None


def fit(config: ConfigDict, workdir: Path, step_config: TrainStepConfig, images: Splits, beside: Beside) -> TrainState:
    """Trains from the newest checkpoint, or from the start, and saves however it ends, see `keeping.Keeper`.

    After SIGTERM and SIGHUP the program ends, and Ctrl-C raises KeyboardInterrupt.

    Args:
      config: of the run, with training.n_iters, where it ends.
      workdir: for checkpoints and logs.
      step_config: the train step and its mesh.
      images: those of "train" and of "test", uint8 [N, H, W, C].
      beside: what else there is to do.
    """
    snapshot, speed, may_write = beside
    # state, data, log
    training, stop = config.training, config.training.n_iters
    key, preemption = jax.random.key(config.seed), distributed.Preemption(step_config.mesh, training.grace)
    saver = functools.partial(saving.Saver, workdir, config.storage, preemption.is_overdue, may_write=may_write)
    checkpoint = saver(functools.partial(checkpoints.manager, workdir, training.snapshot_freq))
    current = resume(checkpoint.manager, step_config, key)
    start = step = int(current.step)
    goodput = Goodput(workdir, start, jax.process_index() == 0)
    store = stored_weights.Store(workdir, averages.stored_steps(training.averages, stop), current, saver)
    steps = profiling.traced(compiled_steps(step_config), workdir, training.profile_steps, start, stop, goodput.aside)
    steps, held_out = goodput.timed(steps), goodput.aside()(compiled_eval(config, step_config, images["test"]))
    about = lambda rate: {**speed(rate), "goodput": goodput.share()}
    log, means = log_of(config, workdir, start, about, step_config.abstract_state.params), Means.empty()
    due = lambda period: step == stop or step % period == 0
    batches = Batches(stream(config, images["train"]).batches(start, stop))
    periods = training.log_freq, training.eval_freq, training.snapshot_freq, training.snapshot_freq_for_preemption
    if start and due(training.snapshot_freq) and not snapshot_is_done(workdir, start):
        snapshot(current, log)
    with keeping.Keeper(workdir, checkpoint, store, goodput, preemption) as keeper:
        for count in dispatches(start, stop, training.n_jitted_steps, periods, store.steps):
            # one or several updates
            current, metrics = steps(current, [next(batches) for _ in range(count)], key)
            first, step, means = step == start, step + count, means.add(metrics)
            keeper.latest = step, current, metrics["loss"]

            # a line of the log
            if first or due(training.log_freq):
                logged = means.compute()  # waits for the steps
                may_write()
                extra = checkpoint.figures() | (held_out(current, step, key) if due(training.eval_freq) else {})
                log.train(step, logged, batches.waited(), **extra)
                keeping.check_finite(step, metrics["loss"], keeper.settle)
                means = Means.empty()

            # a checkpoint
            at_snapshot = due(training.snapshot_freq)
            code = preemption.reached(wait=at_snapshot)
            if saves := at_snapshot or bool(code) or due(training.snapshot_freq_for_preemption):
                keeping.check_finite(step, metrics["loss"], keeper.settle, current)
            keeper.keep(step, current, saves, wait=at_snapshot or bool(code))
            end_saved(f"step {step}/{stop}", code)
            if at_snapshot:
                with goodput.aside(), ended_at_once(preemption):
                    snapshot(current, log)
    return current


def snapshot_is_done(workdir: Path, step: int) -> bool:
    """Whether the last complete snapshot was that of `step`."""
    path = workdir / "snapshot"
    return path.exists() and path.read_bytes() == str(step).encode()


@contextlib.contextmanager
def ended_at_once(preemption: distributed.Preemption) -> Iterator[None]:
    """Lets signals end the program at once during what is inside, as nothing would be lost."""
    preemption.pause()
    yield
    preemption.listen()


def end_saved(progress: str, code: int) -> None:
    """Ends the program if there is a code, see `Preemption.reached`; for that of Ctrl-C, raises KeyboardInterrupt."""
    if not code:
        return
    name = next(number.name for number, value in endings.CODES.items() if value == code)
    print(f"{progress}  saved and stopped on {name}", flush=True)
    if code == exit_codes.INTERRUPTED:
        raise KeyboardInterrupt
    sys.exit(code)
