"""`python -m score_st.sample`: images from a checkpoint's EMA weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st import checkpoints, cli, experiment, report, sampling, state
from score_st.config import ConfigError

EXAMPLES = """\
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64 --seed 1 \\
      --sampler dpm_solver_2m --steps 20 --config.sampling.grid=logsnr
  python -m score_st.sample --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000"""


def draw(config, made: experiment.Experiment, params, num: int, seed: int) -> tuple[np.ndarray, float]:
    """`num` images uint8 [num, H, W, C] and the mean number of evaluations of the network.

    Image i is a function of (seed, i), whatever the batch size or the number of devices.
    """
    sampler, sde = sampling.from_config(config), sampling.sampling_sde(config, made.sde)
    mesh = state.mesh()
    params = jax.device_put(params, state.replicated(mesh))
    devices = jax.device_count()
    batch = min(config.sampling.batch_size, -(-num // devices) * devices)

    @jax.jit
    def generate(params, indices):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        x, evaluations = sampler(made.score(params), sde, keys, made.image_shape)
        finite = jnp.all(jnp.isfinite(x), axis=(1, 2, 3))
        return made.scaler.inverse(x), evaluations, finite

    images, evaluations, clock = [], [], cli.Clock(0, num)
    for first in range(0, num, batch):
        indices = jax.device_put(np.arange(first, first + batch), state.sharded(mesh))
        x, nfe, finite = (np.asarray(a)[: num - first] for a in generate(params, indices))
        if not finite.all():
            raise ConfigError(
                f"{(~finite).sum()} of {len(finite)} images are not finite: the sampler diverged; more steps "
                "or another config.sampling.method may do"
            )
        images.append(x)
        evaluations.append(nfe)
        speed, left = clock.lap(first + len(x))
        print(
            f"samples {first + len(x)}/{num}  {nfe.mean():.0f} evaluations  {speed:.2f} images/s  {left} left",
            flush=True,
        )
    return np.concatenate(images), float(np.concatenate(evaluations).mean())


def picture(config, made: experiment.Experiment, params, path: Path, num: int = 64):
    """A picture of `num` samples."""
    images, _ = draw(config, made, params, num, config.seed)
    report.grid(images, config.data.num_levels, path)


def chosen(config, sampler: str | None, steps: int | None):
    """The configuration with what --sampler ("ode", "heun", "reverse_diffusion+langevin") and --steps say."""
    with config.unlocked():
        if sampler == "ode":
            config.sampling.method = "ode"
        elif sampler:
            predictor, _, corrector = sampler.partition("+")
            config.sampling.update(method="pc", predictor=predictor, corrector=corrector or "none")
        if steps is not None:
            config.sampling.steps = steps
    return config


def main(argv: list[str] | None = None):
    parser = cli.parser(
        "sample", "Images from a checkpoint's EMA weights: samples.npz (uint8) and samples.png.", EXAMPLES
    )
    parser.add_argument("--num", type=int, default=64, help="how many images (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    parser.add_argument("--step", type=int, help="the checkpoint's step; the newest by default")
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"ode, or a predictor ({', '.join(sampling.PREDICTORS)}) with or without +corrector",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the predictor, for --config.sampling.steps")
    arguments = cli.parse(parser, argv)
    config = chosen(arguments.config, arguments.sampler, arguments.steps)
    if arguments.num < 1:
        raise ConfigError(f"--num {arguments.num}: should be 1 or more")
    state.check_divisible(
        "sampling.batch_size", config.sampling.batch_size, jax.device_count(), "the number of devices"
    )
    made = experiment.from_config(config)
    restored = checkpoints.open_for_reading(arguments.workdir, config, made, arguments.step)
    images, evaluations = draw(config, made, restored.ema, arguments.num, arguments.seed)
    workdir = Path(arguments.workdir)
    np.savez_compressed(workdir / "samples.npz", samples=images, nfe=evaluations, step=int(restored.step))
    report.grid(images, config.data.num_levels, workdir / "samples.png")
    print(f"wrote {workdir / 'samples.npz'} and samples.png: {len(images)} images, {evaluations:.0f} evaluations each")


if __name__ == "__main__":
    cli.run(main)
