"""`python -m score_st.train`: trains with Soft Truncation, evaluates, and resumes when started again."""

import argparse
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st.config import FREE, ConfigError, check
from score_st.data import identity, pipeline
from score_st.data.images import Images
from score_st.evaluation import bits_per_dim, generation, image_terms, tables
from score_st.model import DiffusionModel
from score_st.planning import utilization
from score_st.reporting import page
from score_st.runtime import cli, endings, lease, memory, mirror, places, sharding, storage
from score_st.runtime.workdir import CONVERTED, check_same, claim_workdir, write_text
from score_st.training import checkpoints, loggers, loop, optimizer, saved_steps
from score_st.training import step as stepping
from score_st.training.state import TrainState

EXAMPLES = """\
  python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
  python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/no_st --config.training.k=inf
  python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10"""


def snapshot(
    config: ConfigDict,
    workdir: Path,
    model: DiffusionModel,
    test_images: Images,
    mesh: Mesh,
    current: TrainState,
    log: loop.Log,
) -> None:
    """Evaluates the averaged weights: an image of samples (training.snapshot_sampling), bits/dim (eval.enable_bpd).

    Each is done only if its key asks for it. Then the report is brought up to date. What can't be drawn or evaluated
    is said, and left out; a run that is started again at this step tries it again.
    """
    step, complete = int(current.step), 0
    needs_weights = config.training.snapshot_sampling or config.eval.enable_bpd
    weights = sharding.all_gather(current.ema) if needs_weights else None
    # a ConfigError, as of a sampler that diverged, is one on all processes; after others they would not be in step
    alone = lambda error: jax.process_count() > 1 and not isinstance(error, ConfigError)
    with endings.said(f"step {step}: no image of samples", unless=alone):
        if config.training.snapshot_sampling:
            path = workdir / f"snapshots/{step:08}.png"
            generation.write_picture(config, model, weights, path, mesh)
            if log.writes and path.exists():
                shutil.copyfile(path, workdir / "samples.png")
        complete += 1
    with endings.said(f"step {step}: no bits/dim", unless=alone):
        if config.eval.enable_bpd:
            show = tables.show_bits_per_dim
            figures = bits_per_dim.evaluate(config, model, weights, step, test_images, workdir, mesh, show)
            log(step, **{name: figures[name] for name in bits_per_dim.FIGURES if name in figures})
        complete += 1
    if log.writes:
        if complete == 2:
            write_text(workdir / "snapshot", str(step))
        page.refresh(workdir)


def keep_programs(workdir: Path, platform: str) -> None:
    """Keeps compiled programs in the workdir for the next start, unless JAX_COMPILATION_CACHE_DIR names a folder.

    Not on CPUs, as a program compiled on one may not run on another.
    """
    if not jax.config.values["jax_compilation_cache_dir"] and platform != "cpu":
        url = mirror.url_of(workdir)  # JAX opens gs:// itself
        place = storage.join(url, "compiled") if url.startswith("gs://") else str(workdir / "compiled")
        jax.config.update("jax_compilation_cache_dir", place)


def check_length(config: ConfigDict, workdir: str | Path) -> None:
    """Raises ConfigError if more steps are done than training.n_iters."""
    done = checkpoints.newest(workdir)
    if config.training.n_iters < done:
        wanted = f"config.training.n_iters={config.training.n_iters}"
        raise ConfigError(f"{wanted}: {done} steps are done in {workdir}; should be {done} or more")


def train(
    config: ConfigDict,
    workdir: str | Path,
    base: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    chips: Mapping[str, utilization.Peaks] = utilization.CHIPS,
) -> TrainState:
    """Trains in `workdir`. Whatever can be wrong with the request is found before anything is written.

    Args:
      config: of the run.
      workdir: where it is, or will be.
      base: the configuration file, see `cli.parse`.
      mesh: the devices, by default all.
      chips: peak FLOP/s of devices, by a pattern of their kind.

    Returns:
      The final state.

    Raises:
      ConfigError: the request can't be met.
    """
    devices, workdir = None if mesh is None else list(mesh.devices.flat), places.meant(workdir)
    check(config)
    loggers.names(config)
    step_config = stepping.from_config(config, sharding.mesh(config.training.fsdp, devices))
    asked = f"config.training.batch_size={config.training.batch_size} with config.model.nf={config.model.nf}"
    memory.check(step_config.mesh, asked, step_config.least_bytes(config.training.batch_size))
    eval_mesh = sharding.mesh(devices=devices)
    model = DiffusionModel.from_config(config)  # in its own arithmetic, not that of training
    if jax.process_count() > 1 and mirror.url_of(workdir).startswith("s3://"):
        message = "several processes can't write checkpoints there; use gs://bucket/folder or a folder that they share"
        raise ConfigError(f"--workdir {workdir}: {message}")
    if (Path(workdir) / CONVERTED).exists() and not saved_steps.steps(workdir):
        message = "was made by `python -m score_st.convert` and has no complete checkpoint; convert again into it"
        raise ConfigError(f"--workdir {workdir}: {message}")
    if config.training.snapshot_sampling:
        generation.check_memory(config, model, eval_mesh)
    if config.eval.enable_bpd:
        image_terms.check_batch_size(config, model, eval_mesh)
        image_terms.from_config(config, model)
    fixed = ("training.n_iters",) if optimizer.depends_on_length(config) else ()
    must_agree = lambda key: key in fixed or not key.startswith(FREE)
    with lease.watching(Path(workdir), config.storage.lease, config.storage.patience) as held:
        images = {split: pipeline.load(config, split) for split in ("train", "test")}
        pipeline.require_classes(config, images["train"])
        check_length(config, workdir)
        check_same(Path(workdir), config, must_agree)
        identity.check(Path(workdir), images)
        held.acquire()
        saved_steps.keep_snapshots(Path(workdir), config.training.snapshot_freq)
        workdir = claim_workdir(workdir, config, must_agree, base)
        if jax.process_index() == 0:
            checkpoints.remove_unfinished(workdir)
            identity.record(workdir, images)
        keep_programs(workdir, jax.default_backend())
        at_snapshot = functools.partial(snapshot, config, workdir, model, images["test"], eval_mesh)
        used = utilization.of_training(step_config.model, config.training.batch_size, step_config.mesh, chips)
        return loop.fit(config, workdir, step_config, images, loop.Beside(at_snapshot, used, held.check))


def parser() -> cli.Parser:
    """Returns the command's parser."""
    codes = {1: "the loss is not finite; the last checkpoint is kept"}
    return cli.parser("train", "Trains a score model with Soft Truncation.", EXAMPLES, codes)


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> None:
    """Runs the command on the devices of a mesh, by default on all."""
    train(arguments.config, arguments.workdir, arguments.base, mesh)


if __name__ == "__main__":
    cli.run(main)
