"""Images from a model: drawn in groups, written in shards from which a killed run resumes."""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import ranges, strict_json
from score_st.array_types import Array, Int, UInt8
from score_st.config import ConfigError, check, default, differences, flatten
from score_st.diffusion import guidance, samplers
from score_st.diffusion.parametrization import Score
from score_st.evaluation.runner import BatchRunner
from score_st.model import DiffusionModel, by_image
from score_st.reporting import image_grid
from score_st.runtime import cli, endings, memory, numpy_files, profiling, progress, resumable
from score_st.runtime.workdir import write_text

DIVERGED = "the sampler diverged; more steps or another config.sampling.method may help"
SHARDS = "samples_{:07d}.npz"  # the number of the first image


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all commands with a sampler share."""
    option = parser.add_argument_group("sampler").add_argument
    option(
        "--seed", type=cli.within(ranges.SEED), default=0, help="image i is a function of the seed and i (default 0)"
    )
    option("--step", type=cli.within(ranges.COUNT_OR_0), help="the checkpoint's step; the newest by default")
    names = ", ".join(samplers.PREDICTORS)
    option("--sampler", metavar="NAME", help=f"ode, or a predictor ({names}) with or without +corrector")
    option(
        "--steps",
        type=cli.within(ranges.COUNT),
        metavar="N",
        help="steps of the predictor, short for --config.sampling.steps",
    )


def with_sampler(config: ConfigDict, sampler: str | None, steps: int | None) -> ConfigDict:
    """Changes `config` to what --sampler ("ode", "heun", "reverse_diffusion+langevin") and --steps say; returns it.

    Raises:
      ConfigError: steps for the adaptive solver, which chooses its own.
    """
    with config.unlocked():
        if sampler == "ode":
            config.sampling.method = "ode"
        elif sampler:
            predictor, _, corrector = sampler.partition("+")
            config.sampling.update(method="pc", predictor=predictor, corrector=corrector or "none")
        if steps is not None:
            if config.sampling.method == "ode":
                raise ConfigError(
                    f"--steps {steps}: the sampler ode chooses its own; another one can have them, such as heun"
                )
            config.sampling.steps = steps
    check(config)
    return config


def check_memory(config: ConfigDict, model: DiffusionModel, mesh: Mesh) -> None:
    """Raises ConfigError if the devices of the mesh have no room for sampling.group images."""
    group = config.sampling.group
    needs = {f"{group:,} images at a time": model.least_bytes(group)}
    memory.check(mesh, f"config.sampling.group={group}", needs)


def classes(config: ConfigDict, model: DiffusionModel, indices: Int[Array, " B"]) -> Int[Array, " B"] | None:
    """Returns the classes of samples, -1 for none, as sampling.label says; None for a network without classes.

    Raises:
      ConfigError: there is no such class.
    """
    label, count = config.sampling.label, model.num_classes
    if label.isdecimal() and int(label) >= count:
        has = f"has classes 0 ... {count - 1}" if count else "has no classes"
        raise ConfigError(f"config.sampling.label={label}: the network {has}")
    if not count:
        return None
    return indices % count if label == "all" else jnp.full(len(indices), -1 if label == "none" else int(label))


def score_given(config: ConfigDict, model: DiffusionModel, params: Any, labels: Any) -> Score:
    """Returns the score given classes, with the guidance of sampling.class_guidance.

    Raises:
      ConfigError: guidance without classes.
    """
    sampling, score = config.sampling, model.score(params, labels=labels)
    if sampling.class_guidance == 1:
        return score
    if not model.num_classes:
        raise ConfigError(f"config.sampling.class_guidance={sampling.class_guidance}: the network has no classes")
    if labels is None:
        return score
    edges = sampling.class_guidance_from, sampling.class_guidance_to
    return guidance.ClassifierFree(sampling.class_guidance, *edges)(model.sde, score, model.score(params))


def generator(config: ConfigDict, model: DiffusionModel, seed: int, frames: int = 1) -> jax.stages.Wrapped:
    """Returns a jitted function that draws images.

    Args:
      config: `sampling` of it is the sampler.
      model: the diffusion model.
      seed: image i is a function of the seed and i.
      frames: more than 1 for pictures of x_t, too, at that many times.

    Returns:
      A function (params, indices [B]) -> samples uint8 [B, H, W, C], nfe [B], finite [B], and with frames uint8
      [B, F, H, W, C]: x_t brought to the spread of images.
    """
    sampler, sde, scaler = samplers.from_config(config), samplers.sampling_sde(config, model.sde), model.scaler
    shape = model.image_shape

    def draw(params: Any, labels: Any, keys: Any) -> tuple[Array, ...]:
        x, nfe, *states = sampler(score_given(config, model, params, labels), sde, keys, shape, frames)
        if not states:
            return x, nfe
        return x, nfe, states[0].swapaxes(0, 1), jnp.broadcast_to(states[1], (len(x), frames))  # images first

    @jax.jit
    def generate(params: Any, indices: Any) -> dict[str, Array]:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        labels = classes(config, model, indices)
        x, nfe, *states = by_image(functools.partial(draw, params), labels, keys)
        result = {"samples": scaler.inverse(x), "nfe": nfe, "finite": jnp.all(jnp.isfinite(x), axis=(1, 2, 3))}
        if states:
            alpha, sigma = (f(states[1])[..., None, None, None] for f in (sde.alpha, sde.sigma))
            scale = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
            pictures = scaler.center + (states[0] - alpha * scaler.center) / scale
            result["frames"] = scaler.inverse(pictures)
        return result

    return generate


def runner(config: ConfigDict, params: Any, mesh: Mesh, trace: profiling.BatchTrace | None = None) -> BatchRunner:
    """Returns the runner for `batches`: sampling.group images on each device at a time; `trace` is for --profile."""
    group = config.sampling.group
    return BatchRunner(params, mesh.size * group, mesh, group, trace)


def batches(run: BatchRunner, generate: Callable, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of images `first` ... `stop` - 1, batch by batch, computed by all devices.

    Image i is always computed with its neighbors of the same sampling.group, by the same program, so that its bits
    are the same for any batch size and number of devices and processes.

    Raises:
      ConfigError: an image is not finite.
    """
    for start in range(first - first % run.group, stop, run.batch_size):
        arrays = run.batch(generate, [np.arange(start, start + run.batch_size)])
        inside = slice(max(first - start, 0), stop - start)
        arrays = {name: array[inside] for name, array in arrays.items()}
        if diverged := int((~arrays.pop("finite")).sum()):
            raise ConfigError(f"{diverged} of {len(arrays['nfe'])} images are not finite: {DIVERGED}")
        yield arrays


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def draw(
    config: ConfigDict,
    model: DiffusionModel,
    params: Any,
    num: int,
    seed: int,
    mesh: Mesh,
    generate: Callable | None = None,
) -> tuple[UInt8[np.ndarray, "N H W C"], float]:
    """Returns `num` images and the mean number of network evaluations; `generate`, if given, is their `generator`."""
    run, generate = runner(config, params, mesh), generate or generator(config, model, seed)
    arrays = _concatenate(list(batches(run, generate, 0, num)))
    return arrays["samples"], float(arrays["nfe"].mean())


def write_picture(
    config: ConfigDict, model: DiffusionModel, params: Any, path: Path, mesh: Mesh, num: int = 64
) -> None:
    """Writes a picture of `num` samples."""
    images, _ = draw(config, model, params, num, config.seed, mesh)
    if jax.process_index() == 0:
        with endings.said(f"{path} was not drawn"):
            image_grid.grid(images, config.data.num_levels, path)


def claim_folder(folder: Path, settings: dict) -> None:
    """Marks the folder as that of samples of `settings` alone.

    Raises:
      ConfigError: it holds others, or can't be written.
    """
    about = folder / "samples.json"
    try:
        if about.exists():
            keys = flatten(default()).items()  # those that an older file lacks count as their default
            stored = dict(strict_json.loads(about.read_bytes())["settings"])
            old = {key: value for key, value in keys if key in settings} | stored
            if changes := differences(old, settings, settings | old):
                raise ConfigError(f"--out {folder}: holds samples of {changes}; name another folder")
        elif list(folder.glob("[!.]*.npz")):
            raise ConfigError(f"--out {folder}: holds .npz files that are not of this command; name another folder")
        if jax.process_index() == 0:
            write_text(about, strict_json.dumps({"settings": settings}, indent=1))
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--out {folder}: can't be used ({error}); name another folder") from error


def _holds(num: int, shape: tuple[int, ...], shard: resumable.Result) -> bool:
    """Whether a shard has `num` images [H, W, C] = `shape`, and no more of one thing than of another."""
    samples, nfe = shard["samples"], shard["nfe"]
    fits = samples.dtype == np.uint8 and samples.shape == (len(nfe), *shape) and nfe.ndim == 1
    return fits and len(nfe) >= num and nfe.dtype.kind in "if" and bool(np.isfinite(nfe).all())


def write_shards(config: ConfigDict, run: BatchRunner, generate: Callable, num: int, folder: Path) -> float:
    """Writes `num` images in shards of sampling.batch_size images; shards that are there stay.

    Returns:
      The mean number of network evaluations.
    """
    size, evaluations, data = config.sampling.batch_size, [], config.data
    shape = (data.image_size, data.image_size, data.num_channels)
    loop = progress.Loop("samples", 0, num, "images", seconds=2)
    results = resumable.JobFiles(folder, SHARDS, resumable.NPZ, writes=jax.process_index() == 0)
    drawn: set[int] = set()
    if run.trace:
        firsts = (first for first in range(0, num, size) if (first,) not in results)
        starts = lambda first: range(first - first % run.group, min(first + size, num), run.batch_size)
        run.trace.expect(sum(len(starts(first)) for first in firsts))
    for first in range(0, num, size):
        stop = min(first + size, num)

        def compute(first: int = first, stop: int = stop) -> dict[str, np.ndarray]:
            drawn.add(first)
            parts, done = [], first
            for part in batches(run, generate, first, stop):
                parts.append(part)
                done += len(part["nfe"])
                loop(done, f"{part['nfe'].mean():.0f} evaluations")
            return _concatenate(parts)

        shard = results((first,), compute, valid=functools.partial(_holds, stop - first, shape))
        evaluations.append(shard["nfe"][: stop - first])
        if first not in drawn:
            loop.skip(stop)
    return float(np.concatenate(evaluations).mean())


def shards(folder: Path, num: int | None = None) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
    """Yields the images of each file of a folder of shards, up to the first `num` in all."""
    count = 0
    for path in sorted(folder.glob("samples_*.npz")):
        if num is None or count < num:
            images = numpy_files.read_npz(path, ["samples"])["samples"][: None if num is None else num - count]
            count += len(images)
            yield images


def read_shards(folder: Path, num: int | None = None) -> UInt8[np.ndarray, "N H W C"]:
    """Returns the images of a folder of shards, or the first `num` of them."""
    return np.concatenate(list(shards(folder, num)))
