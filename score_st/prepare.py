"""`python -m score_st.data`: reads a data set once, and says what is in it and how fast it is."""

import collections
import json
import time
import zlib
from pathlib import Path

import jax
import numpy as np

from score_st import cli, data, pictures, report
from score_st.config import ConfigError

EXAMPLES = """\
  python -m score_st.data --config configs/vp/DIGITS/ddpmpp_nll_st.py
  python -m score_st.data --config configs/vp/CELEBA/ddpmpp_nll_st.py --config.data.dir=celeba --workdir runs/celeba
  python -m score_st.data --config mine.py --config.data.dataset=FOLDER --config.data.dir=photographs"""
CHUNK = 256


def survey(images: np.ndarray | pictures.Encoded, label: str, levels: int) -> dict:
    """Counts, statistics, remarks and CRC-32 of all images uint8 [N, H, W, C], in order, with progress.

    Raises:
      ConfigError: some can't be read; it names the first and says how many.
    """
    n, clock, shown = len(images), cli.Clock(0, len(images)), time.perf_counter()
    histogram = np.zeros((images.shape[3], 256), np.int64)
    seen, remarks, broken, crc = collections.Counter(), collections.Counter(), [], 0
    began = time.perf_counter()
    for first in range(0, n, CHUNK):
        for i in range(first, min(first + CHUNK, n)):
            try:
                image = images[i]
            except ConfigError as error:
                broken.append(str(error))
                continue
            crc = zlib.crc32(image.tobytes(), crc)
            seen[hash(image.tobytes())] += 1
            histogram += [np.bincount(channel, minlength=256) for channel in image.reshape(-1, len(histogram)).T]
            if isinstance(images, pictures.Encoded):
                remarks.update(pictures.remarks(images.read(i), images.shape[1]))
        if time.perf_counter() - shown > 5:
            shown, (speed, left) = time.perf_counter(), clock.lap(min(first + CHUNK, n))
            print(f"{label} {min(first + CHUNK, n)}/{n}  {speed:.0f} images/s  {left} left", flush=True)
    if broken:
        raise ConfigError(f"{len(broken)} of {n} images of {label} are broken: {'; '.join(broken[:3])}")
    values, pixels = np.arange(256), histogram.sum(1)
    mean = histogram @ values / pixels
    present = np.flatnonzero(histogram.sum(0))
    return {
        "count": n,
        "shape": list(images.shape[1:]),
        "mean": mean.tolist(),
        "std": np.sqrt(histogram @ values**2 / pixels - mean**2).tolist(),
        "min": int(present[0]),
        "max": int(present[-1]),
        "levels": levels,
        "crc32": f"{crc:08x}",
        "repeated": n - len(seen),
        "remarks": dict(remarks),
        "seconds": round(time.perf_counter() - began, 2),
    }


def speed(stream: data.Stream, batches: int) -> float:
    """Images a second of the first batches, as training reads them."""
    began = time.perf_counter()
    read = sum(len(batch) for batch in stream.batches(0, batches))
    return read / (time.perf_counter() - began)


def main(argv: list[str] | None = None):
    parser = cli.parser("data", "Reads a data set: statistics, speed, a picture.", EXAMPLES, workdir=".")
    arguments = cli.parse(parser, argv)
    config, out = arguments.config, Path(arguments.workdir) / f"data_{arguments.config.data.dataset}"
    images = {split: data.load(config, split) for split in ("train", "test")}
    result = {split: survey(array, split, config.data.num_levels) for split, array in images.items()}
    batch = config.training.batch_size
    stream = data.Stream(images["train"], batch, config.seed, threads=config.data.num_threads)
    result["images_per_second"] = round(speed(stream, max(2, min(50, len(images["train"]) // batch))), 1)
    examples = jax.numpy.asarray(data.Stream(images["train"], 64, config.seed).batch(0))
    keys = jax.random.split(jax.random.key(config.seed))
    flipped = data.random_flip(examples, keys[0]) if config.data.random_flip else examples
    x = data.scaler_from_config(config).forward(flipped, jax.random.uniform(keys[1], flipped.shape))
    unit = (x + 1) / 2 if config.data.centered else x
    try:
        report.grid(np.asarray(jax.numpy.round(unit * 255)).astype(np.uint8), 256, out.with_suffix(".png"))
        cli.write(out.with_suffix(".json"), json.dumps(result, indent=1))
    except OSError as error:
        raise ConfigError(f"--workdir {arguments.workdir}: can't be written ({error.strerror})") from error
    for split in images:
        found = result[split]
        size = "x".join(map(str, found["shape"]))
        mean, std = (", ".join(f"{value:.2f}" for value in found[key]) for key in ("mean", "std"))
        print(
            f"{split}: {found['count']} images of {size}, values {found['min']} to {found['max']}, mean {mean}, "
            f"std {std}, {found['repeated']} repeated, CRC-32 {found['crc32']}, read in {found['seconds']} s"
        )
        for remark, count in found["remarks"].items():
            print(f"  {count} {remark}")
    print(f"{result['images_per_second']} images/s in batches of {batch}; wrote {out}.png and {out}.json")
