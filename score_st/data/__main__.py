"""`python -m score_st.data`: reads a data set once and reports what is in it and how fast it is read."""

import argparse
import collections
import sys
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st import strict_json
from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.data import decoded_cache, pipeline, preprocessing
from score_st.data.images import Images, LazyImages, remarks
from score_st.data.labels import labels_of
from score_st.reporting import image_grid
from score_st.runtime import cli, mirror, places, progress
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.data --config configs/vp/DIGITS/ddpmpp_nll_st.py
  python -m score_st.data --config configs/vp/CELEBA/ddpmpp_nll_st.py --config.data.dir=celeba --workdir runs/celeba
  python -m score_st.data --config configs/vp/CELEBA/ddpmpp_nll_st.py --config.data.dir=celeba \\
      --config.data.prepared=celeba64 --config.data.download=True
  python -m score_st.data --config configs/vp/CELEBA/ddpmpp_nll_st.py --config.data.dir=celeba --to gs://bucket/celeba64
  python -m score_st.data --config mine.py --config.data.dataset=FOLDER --config.data.dir=photographs"""


def survey(images: Images, label: str) -> dict[str, Any]:
    """Reads all images in order and returns counts, statistics by channel, remarks and their CRC-32.

    Broken images are named on stderr as they are met.

    Args:
      images: those of a split.
      label: their name in the progress and in errors.

    Raises:
      ConfigError: some images are broken; the message counts them and names three.
    """
    start, crc = time.perf_counter(), 0
    histogram = np.zeros((images.shape[3], 256), np.int64)
    hashes, counts, broken = set(), collections.Counter[str](), []
    loop = progress.Loop(label, 0, len(images), "images", seconds=2)
    for i in range(len(images)):
        loop(i)
        try:
            image = images[i]
        except ConfigError as error:
            broken.append(str(error))
            print(f"broken: {error}", file=sys.stderr)
            continue
        crc = zlib.crc32(image.tobytes(), crc)
        hashes.add(hash(image.tobytes()))
        histogram += [np.bincount(channel, minlength=256) for channel in image.reshape(-1, len(histogram)).T]
        if isinstance(images, LazyImages):
            counts.update(remarks(images.read(i), images.shape[1]))
    loop(len(images))
    if broken:
        raise ConfigError(f"{len(broken)} of {len(images)} images of {label} are broken: {'; '.join(broken[:3])}")
    values, share = np.arange(256), histogram / histogram.sum(1, keepdims=True)
    mean, present = share @ values, np.flatnonzero(histogram.sum(0))
    labels = labels_of(images)
    classes = {} if labels is None else {"classes": int(labels.max()) + 1, "without_class": int((labels < 0).sum())}
    return {
        "count": len(images),
        "shape": list(images.shape[1:]),
        "mean": np.round(mean, 4).tolist(),
        "std": np.round(np.sqrt(share @ values**2 - mean**2), 4).tolist(),
        "min": int(present[0]),
        "max": int(present[-1]),
        "crc32": f"{crc:08x}",
        "repeated": len(images) - len(hashes),
        "remarks": dict(counts),
        **classes,
        "seconds": round(time.perf_counter() - start, 2),
    }


def preview(config: ConfigDict, images: Images, count: int = 64) -> UInt8[np.ndarray, "count H W C"]:
    """Returns the first training examples flipped and dequantized as for the network, from 0 to 255."""
    keys = jax.random.split(jax.random.key(config.seed))
    batch = pipeline.Stream(images, count, config.seed).batch(0)
    flipped = preprocessing.random_flip(batch, keys[0]) if config.data.random_flip else jnp.asarray(batch)
    x = preprocessing.scaler_from_config(config).forward(flipped, jax.random.uniform(keys[1], batch.shape))
    return np.asarray(jnp.round(255 * ((x + 1) / 2 if config.data.centered else x))).astype(np.uint8)


def scaled_moments(config: ConfigDict, survey: dict[str, Any]) -> dict[str, float]:
    """Returns model.data_mean and model.data_std: of the images of a survey over all pixels, as the network gets them.

    Uniform dequantization adds half a level to the mean and 1/12 of a squared level to the variance.
    """
    mean, std = np.asarray(survey["mean"]), np.asarray(survey["std"])
    total = np.sqrt(np.mean(std**2 + mean**2) - np.mean(mean) ** 2), np.mean(mean)
    uniform, levels = config.data.dequantization == "uniform", config.data.num_levels
    width = (2 if config.data.centered else 1) / (levels if uniform else levels - 1)
    std, mean = np.sqrt(total[0] ** 2 + uniform / 12) * width, (total[1] + uniform / 2) * width
    return {"model.data_mean": round(float(mean - config.data.centered), 4), "model.data_std": round(float(std), 4)}


def surveys(images: Mapping[str, Images]) -> dict[str, dict[str, Any]]:
    """Returns the survey of each split; raises ConfigError after all of them if images are broken."""
    results, errors = {}, []
    for split in images:
        try:
            results[split] = survey(images[split], split)
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("; ".join(errors))
    return results


def prepare(config: ConfigDict, images: Mapping[str, Images]) -> dict[str, Images]:
    """Returns the prepared copies of lazy images, written first if there are none; arrays are returned as they are."""
    write = lambda split, part: decoded_cache.write_copy(config, split, part) if isinstance(part, LazyImages) else part
    try:
        return {split: write(split, part) for split, part in images.items()}
    except ConfigError:
        surveys(images)  # if images are broken, its error counts and names them
        raise


def reading_speed(config: ConfigDict, images: Images) -> float:
    """Returns images per second, read as training reads them: two to 50 batches of the stream."""
    size, start = config.training.batch_size, time.perf_counter()
    stream = pipeline.Stream(images, size, config.seed, threads=config.data.num_threads)
    count = sum(map(len, stream.batches(0, max(2, min(50, len(images) // size)))))
    return round(count / (time.perf_counter() - start), 1)


def parser() -> cli.Parser:
    """Returns the parser of the command line."""
    about = "Checks a data set: statistics, reading speed, a picture of examples. Prepares copies (data.prepared)."
    parser = cli.parser("data", about, EXAMPLES, workdir=".")
    help = "folder or bucket for prepared copies, to be named by data.prepared later"
    parser.add_argument_group("copies").add_argument("--to", type=places.folder, metavar="DIR", help=help)
    return parser


@cli.command(parser)
def main(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      ConfigError: the data set can't be read, or the results can't be written.
    """
    config, out = arguments.config, arguments.workdir / f"data_{arguments.config.data.dataset}"
    if arguments.to:
        if config.data.prepared:
            raise ConfigError(f"--to {arguments.to}: data.prepared names a folder, too; leave one of them out")
        with config.unlocked():
            config.data.prepared = str(arguments.to)
    images = {split: pipeline.load(config, split, strict=False) for split in ("train", "test")}
    if config.data.prepared and jax.process_index() == 0:
        images = prepare(config, images)
    about = surveys(images)
    speed, moments = reading_speed(config, images["train"]), scaled_moments(config, about["train"])
    if jax.process_index():
        return
    try:
        image_grid.grid(preview(config, images["train"]), 256, out.with_suffix(".png"))
        figures = about | {"scaled": moments, "images_per_second": speed}
        write_text(out.with_suffix(".json"), strict_json.dumps(figures, indent=1))
    except OSError as error:
        raise ConfigError(f"--workdir {arguments.workdir}: can't be written ({error.strerror})") from error
    for split, numbers in about.items():
        print(f"{split}: " + ", ".join(f"{key} {value}" for key, value in numbers.items()))
    print("scaled for the network: " + ", ".join(f"{key}={value}" for key, value in moments.items()))
    print(f"{speed} images/s in batches of {config.training.batch_size}; wrote {mirror.shown(out)}.png and .json")


if __name__ == "__main__":
    cli.run(main)
