"""`python -m score_st.edit`: test images completed, colored or interpolated, as a picture."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from score_st import ranges, weights
from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.labels import labels_of
from score_st.evaluation import editing, generation
from score_st.model import DiffusionModel
from score_st.reporting import image_grid
from score_st.runtime import cli, mirror, places, sharding
from score_st.runtime.workdir import check_writable

EXAMPLES = """\
  python -m score_st.edit --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --task inpaint
  python -m score_st.edit --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --task colorize \\
      --sampler reverse_diffusion+langevin --steps 1000
  python -m score_st.edit --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --task interpolate"""
TASKS = {"inpaint": "the lower half", "colourise": "colors from gray", "interpolate": "between neighbors"}
ALIASES = {"colorize": "colourise"}


def parser() -> cli.Parser:
    """Returns the command's parser."""
    parser = cli.parser("edit", "Test images completed, colored or interpolated, as a PNG of rows.", EXAMPLES)
    option = parser.add_argument_group("pictures").add_argument
    tasks = ", ".join(f"{name} ({meaning})" for name, meaning in TASKS.items())
    option("--task", required=True, choices=[*TASKS, *ALIASES], help=f"{tasks}; colorize is colourise")
    option("--num", type=cli.within(ranges.COUNT), default=8, help="how many test images (default 8)")
    option(
        "--out", type=places.file, help="the picture (default WORKDIR/edit/TASK.png; other weights: a folder there)"
    )
    generation.add_options(parser)
    weights.add_options(parser)
    return parser


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> None:
    """Runs the command on the devices of a mesh, by default on all."""
    task, mesh = ALIASES.get(arguments.task, arguments.task), mesh or sharding.mesh()
    sampler = "ode" if task == "interpolate" else arguments.sampler or "reverse_diffusion+langevin"
    config = generation.with_sampler(arguments.config, sampler, arguments.steps)
    if arguments.num < 1:
        raise ConfigError(f"--num {arguments.num}: should be 1 or more")
    if arguments.out:
        image_grid.check_path("--out", arguments.out, config.data.num_channels)
    if task != "interpolate" and config.sampling.method == "ode":
        raise ConfigError(
            f"--sampler ode: can't keep what is known; --task {task} needs a predictor, with a corrector"
        )
    if task == "colourise" and config.data.num_channels != 3:
        raise ConfigError(f"--task colourise: {config.data.dataset} has {config.data.num_channels} channels, not 3")
    model = DiffusionModel.from_config(config)
    loaded = pipeline.load(config, "test")
    images, labels = loaded[: arguments.num], labels_of(loaded)
    check_writable((arguments.out or arguments.workdir / "edit").parent, "--out names another file")
    chosen = weights.from_arguments(arguments, config, model, mesh)
    model, params = chosen.model, chosen.params
    x = model.scaler.forward(jnp.asarray(images), jnp.full(images.shape, 0.5))
    if task == "interpolate":
        rows = editing.interpolate(config, model, params, x)
    else:
        classes = None if labels is None else jnp.asarray(labels[: arguments.num])
        rows = editing.complete(config, model, params, x, arguments.seed, task == "colourise", classes)
    path = arguments.out or chosen.folder(arguments.workdir / "edit") / f"{task}.png"
    pixels = np.asarray(model.scaler.inverse(rows))
    if jax.process_index() == 0:
        image_grid.grid(pixels.reshape(-1, *pixels.shape[2:]), config.data.num_levels, path, columns=pixels.shape[1])
    print(f"wrote {mirror.shown(path)}: {len(pixels)} rows")


if __name__ == "__main__":
    cli.run(main)
