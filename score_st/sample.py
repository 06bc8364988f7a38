"""`python -m score_st.sample`: images from a checkpoint's EMA weights."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st import checkpoints, cli, experiment, ledger, pictures, progress, sampling, state
from score_st.config import ConfigError, differences

EXAMPLES = """\
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64 --seed 1 \\
      --sampler dpm_solver_2m --steps 20 --config.sampling.grid=logsnr --out runs/digits/dpm --trajectory
  python -m score_st.sample --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000

killed and started again, it goes on after the last shard that was written"""
FRAMES = 40  # of a trajectory
DIVERGED = "the sampler diverged; more steps or another config.sampling.method may do"


def generator(config, made: experiment.Experiment, seed: int, frames: int = 1):
    """A jitted function (params, indices [B]) -> samples uint8, nfe [B], finite [B]; with frames also pictures of x_t.

    `frames` is uint8 [B, F, H, W, C]: x_t brought to the spread of images.
    """
    sampler, sde, scaler = sampling.from_config(config), sampling.sampling_sde(config, made.sde), made.scaler

    @jax.jit
    def generate(params, indices):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        x, nfe, *states = sampler(made.score(params), sde, keys, made.image_shape, frames)
        found = {"samples": scaler.inverse(x), "nfe": nfe, "finite": jnp.all(jnp.isfinite(x), axis=(1, 2, 3))}
        if states:
            alpha, sigma = (f(states[1])[:, None, None, None, None] for f in (sde.alpha, sde.sigma))
            shown = scaler.centre + (states[0] - alpha * scaler.centre) / jnp.sqrt(
                jnp.square(alpha) + jnp.square(sigma)
            )
            found["frames"] = scaler.inverse(shown).swapaxes(0, 1)
        return found

    return generate


def runner(config, params) -> ledger.Runner:
    """For `batches`: sampling.group images on each device at a time."""
    group = config.sampling.group
    return ledger.Runner(params, np.empty(0), state.mesh().size * group, 0, None, group)


def batches(run: ledger.Runner, generate, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of images `first` ... `stop` - 1, piece by piece, by all devices.

    Image i is always computed with its neighbours of the same sampling.group, by the same program, so that its bits
    are the same for any batch size and number of devices and processes.

    Raises:
      ConfigError: an image is not finite.
    """
    for start in range(first - first % run.group, stop, run.batch_size):
        found = run.batch(generate, [np.arange(start, start + run.batch_size)])
        kept = slice(max(first - start, 0), stop - start)
        found = {name: array[kept] for name, array in found.items()}
        if lost := int((~found.pop("finite")).sum()):
            raise ConfigError(f"{lost} of {len(found['nfe'])} images are not finite: {DIVERGED}")
        yield found


def draw(config, made: experiment.Experiment, params, num: int, seed: int) -> tuple[np.ndarray, float]:
    """`num` images uint8 [num, H, W, C] and the mean number of evaluations of the network."""
    found = list(batches(runner(config, params), generator(config, made, seed), 0, num))
    return np.concatenate([f["samples"] for f in found]), float(np.concatenate([f["nfe"] for f in found]).mean())


def picture(config, made: experiment.Experiment, params, path: Path, num: int = 64):
    """A picture of `num` samples."""
    images, _ = draw(config, made, params, num, config.seed)
    if jax.process_index() == 0:
        pictures.grid(images, config.data.num_levels, path)


def check(config):
    """Raises ConfigError for numbers that can't be."""
    for key in ("batch_size", "group"):
        if config.sampling[key] < 1:
            raise ConfigError(f"config.sampling.{key}={config.sampling[key]}: should be 1 or more")


def claim(out: Path, settings: dict):
    """The folder, for samples of `settings` alone.

    Raises:
      ConfigError: it holds others, or can't be written.
    """
    about = out / "samples.json"
    try:
        if about.exists():
            old = json.loads(about.read_text())["settings"]
            if shown := differences(old, settings, settings):
                raise ConfigError(f"--out {out}: holds samples of {shown}; name another folder")
        elif list(out.glob("*.npz")):
            raise ConfigError(f"--out {out}: holds .npz files that are not of this command; name another folder")
        if jax.process_index() == 0:
            cli.write(about, json.dumps({"settings": settings}, indent=1))
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--out {out}: can't be used ({error}); name another folder") from error


def shards(config, run: ledger.Runner, generate, num: int, out: Path) -> float:
    """Writes `num` images to `out` in shards of sampling.batch_size images; what is there is kept.

    Returns:
      The mean number of evaluations of the network.
    """
    size, evaluations = config.sampling.batch_size, []
    loop = progress.Loop("samples", 0, num, "images", seconds=2)
    for first in range(0, num, size):
        path, stop = out / f"samples_{first:07d}.npz", min(first + size, num)
        if path.exists():
            nfe = np.load(path)["nfe"]
            if len(nfe) >= stop - first:
                evaluations.append(nfe[: stop - first])
                loop.skip(stop)
                continue
        found, done = [], first
        for piece in batches(run, generate, first, stop):
            found.append(piece)
            done += len(piece["nfe"])
            loop(done, f"{piece['nfe'].mean():.0f} evaluations")
        whole = {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}
        if jax.process_index() == 0:
            temporary = path.with_name(f".{path.name}")
            np.savez_compressed(temporary, **whole)
            temporary.replace(path)
        evaluations.append(whole["nfe"])
    return float(np.concatenate(evaluations).mean())


def read_shards(folder: Path, num: int | None = None) -> np.ndarray:
    """The first `num` images of a folder of shards, uint8 [num, H, W, C]."""
    images, have = [], 0
    for path in sorted(folder.glob("samples_*.npz")):
        if num is None or have < num:
            images.append(np.load(path)["samples"])
            have += len(images[-1])
    return np.concatenate(images)[:num]


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


def arguments_of(parser):
    """What this and the other commands that sample share."""
    option = parser.add_argument_group("sampler").add_argument
    option("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    option("--step", type=int, help="the checkpoint's step; the newest by default")
    names = ", ".join(sampling.PREDICTORS)
    option("--sampler", metavar="NAME", help=f"ode, or a predictor ({names}) with or without +corrector")
    option("--steps", type=int, metavar="N", help="steps of the predictor, for --config.sampling.steps")


def main(argv: list[str] | None = None):
    parser = cli.parser(
        "sample", "Images from a checkpoint's EMA weights: shards of uint8 arrays in samples/, and grid.png.", EXAMPLES
    )
    option = parser.add_argument_group("images").add_argument
    option("--num", type=int, default=64, help="how many images (default 64)")
    option("--out", type=Path, help="folder for the images (default WORKDIR/samples)")
    option("--trajectory", action="store_true", help="trajectory.gif of the first 16, from noise to image")
    arguments_of(parser)
    arguments = cli.parse(parser, argv)
    config = chosen(arguments.config, arguments.sampler, arguments.steps)
    if arguments.num < 1:
        raise ConfigError(f"--num {arguments.num}: should be 1 or more")
    check(config)
    made = experiment.from_config(config)
    restored = checkpoints.open_for_reading(arguments.workdir, config, made, arguments.step)
    out, step = arguments.out or Path(arguments.workdir) / "samples", int(restored.step)
    settings = {"seed": arguments.seed, "step": step, "weights_crc32": ledger.checksum(restored.ema)}
    settings |= {f"sampling.{key}": value for key, value in config.sampling.to_dict().items()}
    claim(out, settings)
    began = time.perf_counter()
    run = runner(config, restored.ema)
    nfe = shards(config, run, generator(config, made, arguments.seed), arguments.num, out)
    seconds = time.perf_counter() - began
    few = None
    if arguments.trajectory:
        few = next(batches(run, generator(config, made, arguments.seed, FRAMES), 0, 16))
    if jax.process_index() > 0:
        return
    pictures.grid(read_shards(out, 256), config.data.num_levels, out / "grid.png")
    if few:
        frames = few["frames"][: arguments.num].swapaxes(0, 1)
        pictures.animation(frames, config.data.num_levels, out / "trajectory.gif")
    about = {"settings": settings, "images": arguments.num, "nfe": nfe, "seconds": round(seconds, 2)}
    cli.write(out / "samples.json", json.dumps(about | ledger.provenance(), indent=1))
    print(f"wrote {out}: {arguments.num} images, {nfe:.0f} evaluations each")


if __name__ == "__main__":
    cli.run(main)
