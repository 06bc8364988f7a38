"""`python -m score_st.data`: reads a data set once, and says what is in it and how fast it is."""

import collections
import json
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_st.config import ConfigError
from score_st.data import decoded_cache, pipeline, preprocessing
from score_st.data import images as pictures
from score_st.reporting import image_grid
from score_st.runtime import cli, progress
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.data --config configs/vp/DIGITS/ddpmpp_nll_st.py
  python -m score_st.data --config configs/vp/CELEBA/ddpmpp_nll_st.py --config.data.dir=celeba --workdir runs/celeba
  python -m score_st.data --config configs/vp/CELEBA/ddpmpp_nll_st.py --config.data.dir=celeba \\
      --config.data.prepared=celeba64 --config.data.download=True
  python -m score_st.data --config mine.py --config.data.dataset=FOLDER --config.data.dir=photographs"""


def survey(images: np.ndarray | pictures.Encoded, label: str) -> dict:
    """Counts, statistics by channel, remarks and CRC-32 of all images uint8 [N, H, W, C] in order, with progress.

    Raises:
      ConfigError: some can't be read; it says how many, and names three.
    """
    began, crc = time.perf_counter(), 0
    histogram = np.zeros((images.shape[3], 256), np.int64)
    seen, remarks, broken = set(), collections.Counter(), []
    loop = progress.Loop(label, 0, len(images), "images", seconds=2)
    for i in range(len(images)):
        loop(i)
        try:
            image = images[i]
        except ConfigError as error:
            broken.append(str(error))
            continue
        crc = zlib.crc32(image.tobytes(), crc)
        seen.add(hash(image.tobytes()))
        histogram += [np.bincount(channel, minlength=256) for channel in image.reshape(-1, len(histogram)).T]
        if isinstance(images, pictures.Encoded):
            remarks.update(pictures.remarks(images.read(i), images.shape[1]))
    loop(len(images))
    if broken:
        raise ConfigError(f"{len(broken)} of {len(images)} images of {label} are broken: {'; '.join(broken[:3])}")
    values, share = np.arange(256), histogram / histogram.sum(1, keepdims=True)
    mean, present = share @ values, np.flatnonzero(histogram.sum(0))
    return {
        "count": len(images),
        "shape": list(images.shape[1:]),
        "mean": np.round(mean, 4).tolist(),
        "std": np.round(np.sqrt(share @ values**2 - mean**2), 4).tolist(),
        "min": int(present[0]),
        "max": int(present[-1]),
        "crc32": f"{crc:08x}",
        "repeated": len(images) - len(seen),
        "remarks": dict(remarks),
        "seconds": round(time.perf_counter() - began, 2),
    }


def shown(config, images, count: int = 64) -> np.ndarray:
    """The first examples uint8 [count, H, W, C] as the network gets them: flipped, dequantised, values 0 to 255."""
    keys = jax.random.split(jax.random.key(config.seed))
    batch = jnp.asarray(pipeline.Stream(images, count, config.seed).batch(0))
    batch = preprocessing.random_flip(batch, keys[0]) if config.data.random_flip else batch
    x = preprocessing.scaler_from_config(config).forward(batch, jax.random.uniform(keys[1], batch.shape))
    return np.asarray(jnp.round(255 * ((x + 1) / 2 if config.data.centered else x))).astype(np.uint8)


def decoded(config, split: str, images: np.ndarray | pictures.Encoded) -> np.ndarray:
    """The prepared copy of encoded images, made if need be; other images as they are."""
    if not isinstance(images, pictures.Encoded):
        return images
    try:
        decoded_cache.make(config, split, images)
    except ConfigError:
        survey(images, split)  # if images are broken, it counts and names them
        raise
    return decoded_cache.opened(config, split)


def main(argv: list[str] | None = None):
    parser = cli.parser("data", "Reads a data set: statistics, speed, a picture.", EXAMPLES, workdir=".")
    arguments = cli.parse(parser, argv)
    config, out = arguments.config, Path(arguments.workdir) / f"data_{arguments.config.data.dataset}"
    images = {split: pipeline.load(config, split) for split in ("train", "test")}
    if config.data.prepared and jax.process_index() == 0:
        images = {split: decoded(config, split, array) for split, array in images.items()}
    result = {split: survey(array, split) for split, array in images.items()}
    batch, began = config.training.batch_size, time.perf_counter()
    stream = pipeline.Stream(images["train"], batch, config.seed, threads=config.data.num_threads)
    read = sum(map(len, stream.batches(0, max(2, min(50, len(images["train"]) // batch)))))
    result["images_per_second"] = round(read / (time.perf_counter() - began), 1)
    if jax.process_index():
        return
    try:
        image_grid.grid(shown(config, images["train"]), 256, out.with_suffix(".png"))
        write_text(out.with_suffix(".json"), json.dumps(result, indent=1))
    except OSError as error:
        raise ConfigError(f"--workdir {arguments.workdir}: can't be written ({error.strerror})") from error
    for split in images:
        print(f"{split}: " + ", ".join(f"{key} {value}" for key, value in result[split].items()))
    print(f"{result['images_per_second']} images/s in batches of {batch}; wrote {out}.png and {out}.json")


if __name__ == "__main__":
    cli.run(main)
