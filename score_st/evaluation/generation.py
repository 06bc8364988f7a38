"""Images from a model: drawn in groups, written in shards that a killed run resumes."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st.config import ConfigError, differences
from score_st.diffusion import samplers
from score_st.evaluation.runner import BatchRunner
from score_st.model import DiffusionModel
from score_st.reporting import image_grid
from score_st.runtime import progress, resumable
from score_st.runtime.workdir import write_text

DIVERGED = "the sampler diverged; more steps or another config.sampling.method may do"


def generator(config, made: DiffusionModel, seed: int, frames: int = 1):
    """A jitted function (params, indices [B]) -> samples uint8, nfe [B], finite [B]; with frames also pictures of x_t.

    `frames` is uint8 [B, F, H, W, C]: x_t brought to the spread of images.
    """
    sampler, sde, scaler = samplers.from_config(config), samplers.sampling_sde(config, made.sde), made.scaler

    @jax.jit
    def generate(params, indices):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        x, nfe, *states = sampler(made.score(params), sde, keys, made.image_shape, frames)
        found = {"samples": scaler.inverse(x), "nfe": nfe, "finite": jnp.all(jnp.isfinite(x), axis=(1, 2, 3))}
        if states:
            alpha, sigma = (f(states[1])[:, None, None, None, None] for f in (sde.alpha, sde.sigma))
            shown = scaler.center + (states[0] - alpha * scaler.center) / jnp.sqrt(
                jnp.square(alpha) + jnp.square(sigma)
            )
            found["frames"] = scaler.inverse(shown).swapaxes(0, 1)
        return found

    return generate


def runner(config, params, mesh) -> BatchRunner:
    """For `batches`: sampling.group images on each device at a time."""
    group = config.sampling.group
    return BatchRunner(params, mesh.size * group, mesh, group)


def batches(run: BatchRunner, generate, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
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


def draw(config, made: DiffusionModel, params, num: int, seed: int, mesh) -> tuple[np.ndarray, float]:
    """`num` images uint8 [num, H, W, C] and the mean number of evaluations of the network."""
    found = list(batches(runner(config, params, mesh), generator(config, made, seed), 0, num))
    return np.concatenate([f["samples"] for f in found]), float(np.concatenate([f["nfe"] for f in found]).mean())


def picture(config, made: DiffusionModel, params, path: Path, mesh, num: int = 64):
    """A picture of `num` samples."""
    images, _ = draw(config, made, params, num, config.seed, mesh)
    if jax.process_index() == 0:
        image_grid.grid(images, config.data.num_levels, path)


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
            write_text(about, json.dumps({"settings": settings}, indent=1))
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--out {out}: can't be used ({error}); name another folder") from error


def shards(config, run: BatchRunner, generate, num: int, out: Path) -> float:
    """Writes `num` images to `out` in shards of sampling.batch_size images; what is there is kept.

    Returns:
      The mean number of evaluations of the network.
    """
    size, evaluations = config.sampling.batch_size, []
    loop = progress.Loop("samples", 0, num, "images", seconds=2)
    drawn: set[int] = set()
    results = resumable.JobFiles(out, "samples_{:07d}.npz", resumable.NPZ, writes=jax.process_index() == 0)
    for first in range(0, num, size):
        stop = min(first + size, num)

        def compute(first=first, stop=stop):
            parts, done = [], first
            drawn.add(first)
            for part in batches(run, generate, first, stop):
                parts.append(part)
                done += len(part["nfe"])
                loop(done, f"{part['nfe'].mean():.0f} evaluations")
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        shard = results((first,), compute, valid=lambda stored, n=stop - first: len(stored["nfe"]) >= n)
        evaluations.append(shard["nfe"][: stop - first])
        if first not in drawn:
            loop.skip(stop)
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
