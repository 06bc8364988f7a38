"""`python -m score_st.train`: trains with Soft Truncation, evaluates, and goes on where it was when started again."""

import functools
import shutil
from pathlib import Path

import jax

from score_st.data import pipeline
from score_st.evaluation import bits_per_dim, generation, image_terms, tables
from score_st.model import DiffusionModel
from score_st.reporting import page
from score_st.runtime import cli, sharding
from score_st.runtime.workdir import claim_workdir, write_text
from score_st.training import loop, state
from score_st.training import step as stepping

EXAMPLES = """\
  python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
  python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/no_st --config.training.k=inf
  python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10"""


def snapshot(config, workdir: Path, made: DiffusionModel, test_images, mesh, current: state.TrainState, log: loop.Log):
    """A picture of samples (training.snapshot_sampling) and bits/dim (eval.enable_bpd) of the average's weights."""
    step, shown = int(current.step), config.training.snapshot_sampling or config.eval.enable_bpd
    weights = sharding.whole(current.ema) if shown else None
    if config.training.snapshot_sampling:
        path = workdir / f"snapshots/{step:08}.png"
        generation.write_picture(config, made, weights, path, mesh)
        if log.writes:
            shutil.copyfile(path, workdir / "samples.png")
    if config.eval.enable_bpd:
        show = tables.show_bits_per_dim
        result = bits_per_dim.evaluate(config, made, weights, step, test_images, workdir, mesh, show)
        log(step, **{name: result[name] for name in bits_per_dim.FIGURES if name in result})
    if log.writes:
        write_text(workdir / "snapshot", str(step))
        page.refresh(workdir)


def keep_programs(workdir: Path):
    """Compiled programs stay in the workdir for the next start, unless JAX_COMPILATION_CACHE_DIR names another place.

    Not on CPUs, where a program of one machine may be none of another's.
    """
    if not jax.config.jax_compilation_cache_dir and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def train(config, workdir: str | Path, base: dict | None = None) -> state.TrainState:
    """Trains in `workdir`; all that can be wrong with the request is found before anything is written.

    Args:
      base: of `cli.parse`, for the report.

    Raises:
      ConfigError: what was asked for is not possible.
    """
    setup = stepping.from_config(config, sharding.mesh(config.training.fsdp))
    model = DiffusionModel.from_config(config)  # in its own arithmetic, not that of training
    images = {split: pipeline.load(config, split) for split in ("train", "test")}
    mesh = sharding.mesh()
    if config.eval.enable_bpd:
        image_terms.check_batch_size(config, mesh)
        image_terms.from_config(config, model)
    workdir = claim_workdir(workdir, config, base)
    keep_programs(workdir)
    at_snapshot = functools.partial(snapshot, config, workdir, model, images["test"], mesh)
    return loop.fit(config, workdir, setup, images, at_snapshot)


def main(argv: list[str] | None = None):
    codes = {1: "the loss is not finite; the last checkpoint is kept"}
    parser = cli.parser("train", "Trains a score model with Soft Truncation.", EXAMPLES, codes)
    arguments = cli.parse(parser, argv)
    train(arguments.config, arguments.workdir, arguments.base)


if __name__ == "__main__":
    cli.run(main)
