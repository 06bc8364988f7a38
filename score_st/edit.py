"""`python -m score_st.edit`: test images completed, coloured, or joined through their latents, as a picture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from score_st import sample
from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.diffusion import guidance, samplers
from score_st.evaluation import generation
from score_st.model import DiffusionModel
from score_st.reporting import image_grid
from score_st.runtime import cli, sharding
from score_st.training import checkpoints

EXAMPLES = """\
  python -m score_st.edit --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --task inpaint
  python -m score_st.edit --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --task colourise \\
      --sampler reverse_diffusion+langevin --steps 1000
  python -m score_st.edit --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --task interpolate"""
DRAWS = 4  # samples an image


def known(made, x, mask, grey: bool):
    """What is kept of x [B, H, W, C]: the pixels of the mask on middle grey, or the grey values."""
    if grey:
        return jnp.broadcast_to(jnp.mean(x, axis=-1, keepdims=True), x.shape)
    return jnp.where(mask > 0, x, made.scaler.center)


def complete(config, made: DiffusionModel, params, x, seed: int, grey: bool):
    """Rows of a picture [B, 2 + DRAWS, H, W, C]: the images, what was kept of them, and draws of the rest.

    The lower half is left out, or (grey) the colours.
    """
    sampler, sde = samplers.from_config(config), samplers.sampling_sde(config, made.sde)
    height = made.image_shape[0]
    mask = (jnp.arange(height) < height // 2).astype(x.dtype)[:, None, None]

    @jax.jit
    def draw(params, x, keys):
        project = guidance.colourise(sde, x) if grey else guidance.inpaint(sde, x, mask)
        return sampler(made.score(params), sde, keys, made.image_shape, project=project)[0]

    keys = jax.random.split(jax.random.key(seed), (DRAWS, len(x)))
    drawn = [draw(params, x, k) for k in keys]
    return jnp.stack([x, known(made, x, mask, grey), *drawn], axis=1)


def interpolate(config, made: DiffusionModel, params, x, seed: int, steps: int = 8):
    """Rows of a picture [B, 2 + steps, H, W, C]: from each image to the next through the flow's latents."""
    sde = samplers.sampling_sde(config, made.sde)
    sampler = samplers.from_config(config)

    @jax.jit
    def run(params, x):
        score = made.score(params)
        start = sde.alpha(sde.eps) * x  # the mean of x_ε
        latent = sampler.encode(score, sde, start)[0]
        between = jax.vmap(lambda a, b: samplers.interpolate(a, b, jnp.linspace(0, 1, steps)))
        path = between(latent, jnp.roll(latent, -1, axis=0))
        decoded = sampler.decode(score, sde, path.reshape(-1, *x.shape[1:]))[0]
        return jnp.concatenate([x[:, None], decoded.reshape(path.shape), jnp.roll(x, -1, axis=0)[:, None]], axis=1)

    return run(params, x)


TASKS = {"inpaint": "the lower half", "colourise": "colours from grey", "interpolate": "between neighbours"}


def main(argv: list[str] | None = None, mesh: Mesh | None = None):
    parser = cli.parser("edit", "Test images completed, coloured or interpolated, as a PNG of rows.", EXAMPLES)
    what = ", ".join(f"{name} ({what})" for name, what in TASKS.items())
    option = parser.add_argument_group("pictures").add_argument
    option("--task", required=True, choices=TASKS, help=what)
    option("--num", type=int, default=8, help="how many test images (default 8)")
    option("--out", type=Path, help="the picture (default WORKDIR/edit/TASK.png)")
    sample.arguments_of(parser)
    arguments = cli.parse(parser, argv)
    mesh = mesh or sharding.mesh()
    task = arguments.task
    sampler = "ode" if task == "interpolate" else arguments.sampler or "reverse_diffusion+langevin"
    config = generation.chosen(arguments.config, sampler, arguments.steps)
    if task != "interpolate" and config.sampling.method == "ode":
        raise ConfigError(
            f"--sampler ode: can't keep what is known; --task {task} needs a predictor, with a corrector"
        )
    if task == "colourise" and config.data.num_channels != 3:
        raise ConfigError(f"--task colourise: {config.data.dataset} has {config.data.num_channels} channels, not 3")
    made = DiffusionModel.from_config(config)
    images = pipeline.load(config, "test")[: arguments.num]
    params = checkpoints.open_for_reading(arguments.workdir, config, made, mesh, arguments.step).ema
    x = made.scaler.forward(jnp.asarray(images), jnp.full(images.shape, 0.5))
    if task == "interpolate":
        rows = interpolate(config, made, params, x, arguments.seed)
    else:
        rows = complete(config, made, params, x, arguments.seed, task == "colourise")
    out = arguments.out or Path(arguments.workdir) / f"edit/{task}.png"
    pixels = np.asarray(made.scaler.inverse(rows))
    if jax.process_index() == 0:
        image_grid.grid(pixels.reshape(-1, *pixels.shape[2:]), config.data.num_levels, out, columns=pixels.shape[1])
    print(f"wrote {out}: {len(pixels)} rows")


if __name__ == "__main__":
    cli.run(main)
