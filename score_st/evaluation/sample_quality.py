"""Sample quality of a workdir: what is compared with what, and the figures with their provenance."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import ranges, strict_json
from score_st.array_types import Float, Shaped
from score_st.config import ConfigError
from score_st.data import containers, identity, pipeline
from score_st.data.images import Images, LazyImages
from score_st.evaluation import distances, extractors, inception, provenance, sample_files
from score_st.evaluation.distances import Moments
from score_st.evaluation.extractors import EXTRACTORS, Extractor, Features
from score_st.reporting import pictures
from score_st.runtime import cli, mirror, numpy_files, places, resumable, sharding
from score_st.runtime.workdir import check_same, check_writable, write_text

LEAST = 10  # images
OF_IMAGES = ("data.image_size", "data.num_channels", "data.num_levels")  # keys that must be those of the run
OF_REFERENCE = ("data.dataset", "data.category", "data.tfrecords_path")  # likewise, where it is the training images
METRICS = ("fid", "is", "kid", "precision_recall")
PER_IMAGE = {"kid", "precision_recall"}  # metrics of single features, not of their moments
# arrays of an npz beside sample_files.KEYS: features of score_sde and clean-fid; statistics
KEYS = dict(pool_3="features", feats="features", mu="mean", sigma="covariance")


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compute.

    Attributes:
      metrics: some of METRICS.
      samples: an npz or a folder of them; by default those in the workdir.
      reference: an npz of images, features or statistics; by default the training images.
      extractor: the network of the features.
      resize: how images are resized for it; by default in its own way.
      weights: its file of weights; by default the installed one.
      repeats: into how many disjoint sets the samples are divided, for the spread of the FID.
      statistics: an npz to write with the reference's statistics.
    """

    metrics: tuple[str, ...]
    samples: str | None = None
    reference: str | None = None
    extractor: Extractor = EXTRACTORS["inception"]
    resize: str | None = None
    weights: str | None = None
    repeats: int = 1
    statistics: Path | None = None

    @property
    def resizing(self) -> str:
        """How images are resized."""
        return self.resize or self.extractor.resizing

    @property
    def keep(self) -> list[str]:
        """The outputs that samples and reference keep for all images."""
        return ["features"] if PER_IMAGE.intersection(self.metrics) else []

    def check(self) -> None:
        """Raises ConfigError for a metric that is unknown or needs other features, or for an option without its use.

        Repeats are for FID; statistics are of a reference, and go to a file that can be written.
        """
        known = [metric for metric in METRICS if metric != "is" or self.extractor.classifies]
        if unknown := [metric for metric in self.metrics if metric not in known]:
            with_features = f"with --features {self.extractor.name}; choose from {', '.join(known)}"
            raise ConfigError(f"--metrics {unknown[0]}: unknown {with_features}")
        if self.resize and self.extractor.variables is not None:
            raise ConfigError(f"--resize {self.resize}: {self.extractor.name} resizes images itself; leave it out")
        if self.repeats > 1 and "fid" not in self.metrics:
            raise ConfigError(f"--repeats {self.repeats}: divides the samples for fid, which --metrics lacks")
        if self.statistics:
            if self.metrics == ("is",):
                raise ConfigError(f"--statistics {self.statistics}: are the reference's, which --metrics is has not")
            if self.statistics.suffix != ".npz" or self.statistics.is_dir():
                raise ConfigError(f"--statistics {self.statistics}: should be a file that ends in .npz")
            check_writable(self.statistics.parent, "name another file with --statistics")


def add_options(parser: argparse.ArgumentParser, title: str, metrics: str | None = None) -> None:
    """Adds the options of sample quality.

    Args:
      parser: of a command.
      title: of the group of options.
      metrics: the default of --metrics.
    """
    option = parser.add_argument_group(title).add_argument
    default = f" (default {metrics})" if metrics else ""
    option("--metrics", default=metrics, metavar="A,B", help=f"some of {','.join(METRICS)}{default}")
    option(
        "--samples",
        type=places.source,
        metavar="FILE",
        help="an npz, a folder of them, or a folder or zip of pictures; by default those in the workdir",
    )
    option(
        "--reference",
        type=places.source,
        metavar="FILE",
        help="pictures, or an npz of images, pool_3 or mu, sigma; by default the training images",
    )
    names = " or ".join(EXTRACTORS)
    about = f"the network: {names}, or module:function for one of Flax (default inception)"
    option("--features", type=extractors.known_name, default="inception", metavar="NAME", help=about)
    about = "FID of each of N disjoint, equal sets of the samples: their mean and standard deviation"
    option("--repeats", type=cli.within(ranges.COUNT), default=1, metavar="N", help=about)
    about = "also write mu and sigma of the reference's features, as pytorch-fid and clean-fid read them"
    option("--statistics", type=places.file, metavar="FILE.npz", help=about)
    option("--resize", choices=inception.RESIZINGS, help="by default tf1 for inception, clean for efficientnet-lite0")
    option(
        "--weights",
        type=places.source,
        metavar="FILE",
        help="of the network; by default SCORE_ST_INCEPTION or the installed ones",
    )


def from_arguments(arguments: argparse.Namespace, mesh: Mesh, show: Callable[[dict, int], None]) -> dict:
    """Evaluates what the options of `add_options` ask for; see `evaluate`."""
    data, metrics = arguments.config.data, tuple(arguments.metrics.split(","))
    extractor = extractors.choose(arguments.features, (data.image_size, data.image_size, data.num_channels))
    paths = arguments.samples, arguments.reference, arguments.weights
    samples, reference, weights = (None if path is None else str(path) for path in paths)
    request = Request(
        metrics, samples, reference, extractor, arguments.resize, weights, arguments.repeats, arguments.statistics
    )
    return evaluate(arguments.config, arguments.workdir, request, mesh, show)


def read(path: str | Path, levels: int) -> dict[str, Any]:
    """Reads an npz of images, features or statistics.

    Args:
      path: the file.
      levels: what images count from 0 to levels - 1.

    Returns:
      `images` [N, H, W, 1 or 3] from 0 to 255, see `sample_files.Shards`; or `features` [N, D] with their `mean` [D]
      and `covariance` [D, D]; or these two alone.

    Raises:
      ConfigError: the file has none of them.
    """
    if images := sample_files.shards([Path(path)], levels):
        return {"images": images}
    try:
        arrays = {KEYS[key]: array for key, array in numpy_files.read_npz(path, KEYS).items()}
    except (OSError, ValueError) as error:
        raise sample_files.unreadable(path, error) from error
    shapes = {role: a.shape for role, a in arrays.items() if a.dtype.kind == "f" and np.isfinite(a).all()}
    if len(shapes.get("features", ())) == 2 and len(arrays["features"]) >= LEAST:
        return {"features": arrays["features"]} | Moments().add(arrays["features"]).summary()
    if "mean" in shapes and len(shapes["mean"]) == 1 and shapes.get("covariance") == 2 * shapes["mean"]:
        check_covariance(arrays["covariance"], path)
        return {role: arrays[role].astype(np.float64) for role in ("mean", "covariance")}
    content = ", ".join(f"{role} {a.dtype}{list(a.shape)}" for role, a in arrays.items()) or "none of them"
    raise ConfigError(
        f"{path}: has {content}; should have samples, or finite pool_3 [N ≥ {LEAST}, D] or mu, sigma [D, D]"
    )


def check_covariance(matrix: Float[np.ndarray, "D D"], source: Any) -> None:
    """Raises ConfigError unless a matrix is symmetric and positive semi-definite, to the precision of its type."""
    exact = matrix.astype(np.float64)
    values = np.linalg.eigvalsh((exact + exact.T) / 2)
    scale, tolerance = np.abs(values).max(), max(1e-6, len(values) ** 0.5 * float(np.finfo(matrix.dtype).eps))
    if (asymmetry := np.abs(exact - exact.T).max()) > tolerance * scale:
        raise ConfigError(f"{source}: sigma is not symmetric (it differs by {asymmetry:.3g}), so it is no covariance")
    if values[0] < -tolerance * scale:
        raise ConfigError(f"{source}: sigma has the eigenvalue {values[0]:.3g}, so it is no covariance")


def to_bytes(images: Shaped[np.ndarray, "..."] | Images, levels: int, source: Any) -> Images:
    """Returns images from 0 ... levels - 1 as 0 ... 255.

    Args:
      images: uint8 [N, H, W, 1 or 3]; lazily decoded ones stay so.
      levels: how many there are.
      source: names the images in errors.

    Raises:
      ConfigError: they are no such images.
    """
    sample_files.check_images(images.shape, images.dtype, source)
    sample_files.check_levels(images, levels, source)
    return images if levels == 256 else pictures.to_bytes(np.asarray(images), levels)


def pictures_at(data: ConfigDict, path: str | Path) -> LazyImages | None:
    """Returns the images of a folder or zip file of pictures, of the size of config.data; None for an npz."""
    if not sample_files.is_pictures(Path(path)):
        return None
    return containers.pictures(Path(path), data.image_size, data.num_channels)


def read_samples(workdir: Path, path: str | None, data: ConfigDict) -> tuple[Path, sample_files.Images]:
    """Opens samples: npz files, or a folder or zip file of pictures.

    Args:
      workdir: of the run.
      path: as --samples has it; by default workdir/samples/, or else workdir/samples.npz.
      data: config.data.

    Returns:
      The path, and the images, which are read as they are needed.
    """
    source = Path(path or workdir / "samples")
    shards = [file for file in sorted(source.glob("*.npz")) if not file.name.startswith(".")]  # as unfinished ones do
    if not path and not shards:
        source = workdir / "samples.npz"
        if not source.exists():
            raise ConfigError(f"--workdir {workdir}: no samples.npz there; `python -m score_st.sample` writes it")
    if images := pictures_at(data, source):
        return source, images
    files = shards if source.is_dir() else [source]
    if files and (opened := sample_files.shards(files, data.num_levels)):
        return source, opened
    for file in files:
        read(file, data.num_levels)  # which says what it has
    raise ConfigError(f"--samples {source}: should have an array samples, images of one size")


def check_size(config: ConfigDict, source: Any, arrays: dict[str, Any]) -> None:
    """Raises ConfigError for images whose height, width or channels are not those of config.data."""
    size, channels = config.data.image_size, config.data.num_channels
    if "images" in arrays and arrays["images"].shape[1:] != (size, size, channels):
        shape = list(arrays["images"].shape)
        raise ConfigError(
            f"{source}: images are {shape}; should be [N, {size}, {size}, {channels}] as config.data says"
        )


def read_reference(config: ConfigDict, request: Request, workdir: Path) -> tuple[str | None, dict[str, Any]]:
    """Reads what samples are compared with, `request.reference` or the training images.

    Returns:
      A description, and what `read` returns; nothing for the Inception score alone, which needs no reference.
    """
    if request.metrics == ("is",):
        return None, {}
    name, levels = request.reference, config.data.num_levels
    if name is None:
        name, images = f"{config.data.dataset.lower()} train", pipeline.load(config, "train")
        identity.warn(workdir, {"train": images})
        reference = {"images": to_bytes(images, levels, config.data.dataset)}
    else:
        opened = pictures_at(config.data, name)
        reference = {"images": opened} if opened else read(name, levels)
    check_size(config, name, reference)
    counts = [len(reference[role]) for role in ("images", "features") if role in reference]
    per_image = [metric for metric in request.metrics if metric in PER_IMAGE]
    if not counts and per_image:
        raise ConfigError(f"--reference {name}: has mu and sigma alone; {per_image[0]} needs images or features")
    dimension = request.extractor.dimension
    if "mean" in reference and len(reference["mean"]) != dimension:
        raise ConfigError(
            f"--reference {name}: features of {len(reference['mean'])} dimensions; should be {dimension}"
        )
    name = name and mirror.shown(name)
    return f"{name} ({counts[0]} images)" if counts else name, reference


def compute(
    request: Request, features: Features, images: sample_files.Images, reference: dict[str, Any]
) -> dict[str, tuple[float, float | None]]:
    """Returns value and standard deviation, or None, of each figure.

    Args:
      request: names the metrics.
      features: of images.
      images: the samples.
      reference: what `read_reference` returns, with the features of its images.
    """
    metrics, figures = request.metrics, dict[str, tuple[float, float | None]]()
    sets, count = list[dict[str, np.ndarray]](), len(images) // request.repeats
    for number in range(request.repeats):
        part = images if request.repeats == 1 else sample_files.Part(images, number * count, count)
        label = f"features of set {number + 1} of {request.repeats}" if request.repeats > 1 else "features of samples"
        sets.append(features(part, label, request.keep + ["logits"] * ("is" in metrics)))
    samples = {
        name: np.concatenate([part[name] for part in sets]) for name in ("features", "logits") if name in sets[0]
    }
    if "fid" in metrics:
        known = reference["mean"], reference["covariance"]
        values = [distances.frechet(part["mean"], part["covariance"], *known) for part in sets]
        figures["fid"] = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    if "kid" in metrics:
        figures["kid"] = distances.kid(samples["features"], reference["features"])
    if "precision_recall" in metrics:
        precision, recall = distances.precision_recall(samples["features"], reference["features"])
        figures["precision"], figures["recall"] = (precision, None), (recall, None)
    if "is" in metrics:
        figures["is"] = distances.inception_score(samples["logits"])
    return figures


def describe(
    request: Request, values: dict[str, tuple[float, float | None]], samples: int, reference: str | None
) -> dict[str, dict[str, Any]]:
    """Returns the figures by the names that say of which features they are.

    Args:
      request: what was computed.
      values: what `compute` returns.
      samples: how many there are.
      reference: its description.
    """
    extractor, repeats = request.extractor, request.repeats
    about = {"features": extractor.name, "resizing": request.resizing, "samples": samples}
    of_sets = {"samples": samples // repeats, "sets": repeats} if repeats > 1 else {}
    return {
        extractor.figure(name): {
            "value": value,
            "std": std,
            **about,
            **(of_sets if name == "fid" else {}),
            "reference": None if name == "is" else reference,
        }
        for name, (value, std) in values.items()
    }


def write_statistics(path: Path, reference: dict[str, Any]) -> None:
    """Writes `mu` [D] and the unbiased `sigma` [D, D], in float64, of a reference's features as an npz."""
    resumable.NPZ.write(path, {"mu": reference["mean"], "sigma": reference["covariance"]})
    print(f"wrote {mirror.shown(path)}: mu and sigma of the reference")


def append(path: Path, result: dict[str, Any]) -> None:
    """Appends a result to a file of one a line, unless the same figures of the same samples are there."""
    line = strict_json.dumps(result)
    text = path.read_text() if path.exists() else ""
    if line not in text.splitlines():
        with path.open("a") as file:
            file.write("\n" * bool(text and text[-1] != "\n") + line + "\n")


def evaluate(
    config: ConfigDict,
    workdir: Path,
    request: Request,
    mesh: Mesh,
    show: Callable[[dict, int], None] = lambda result, dimension: None,
    features: Features | None = None,
) -> dict[str, Any]:
    """Computes the figures of a request, writes them to eval/quality.json and appends them to eval/quality.jsonl.

    Args:
      config: all settings.
      workdir: of the run.
      request: what to compute.
      mesh: the devices.
      show: called on one process with the result and the dimension of the features.
      features: by default those of the extractor's network on the mesh.

    Returns:
      What is in eval/quality.json.

    Raises:
      ConfigError: the request is not possible; nothing was computed or written.
    """
    request.check()
    extractor, batch_size = request.extractor, config.eval.batch_size
    sharding.check_divisible("eval.batch_size", batch_size, mesh.size, "the number of devices")
    keys = OF_IMAGES if request.reference else OF_IMAGES + OF_REFERENCE
    check_same(workdir, config, lambda key: key in keys)
    path, images = read_samples(workdir, request.samples, config.data)
    check_size(config, path, {"images": images})
    description, reference = read_reference(config, request, workdir)
    if (least := min(len(images) // request.repeats, len(reference.get("images", images)))) < LEAST:
        metrics = ",".join(request.metrics)
        raise ConfigError(f"--metrics {metrics}: {least} images are too few; it takes at least {LEAST}")
    sums = {"samples_crc32": provenance.checksum(images), "reference_crc32": provenance.checksum(reference)}
    params, digest = extractor.weights(request.weights)
    with jax.default_matmul_precision("highest"):
        features = features or Features.on_devices(extractor.network(request.resizing), params, mesh, batch_size)
        if "images" in reference:
            reference |= features(reference["images"], "features of reference", request.keep)
        values = compute(request, features, images, reference)
    figures = describe(request, values, len(images), description)
    sources = {"samples": mirror.shown(path), "weights": extractor.file, "weights_sha256": digest}
    result = {"figures": figures, **sums, **sources, "config": config.to_dict(), **provenance.software()}
    if jax.process_index() == 0:
        write_text(workdir / "eval/quality.json", strict_json.dumps(result, indent=2) + "\n")
        append(workdir / "eval/quality.jsonl", result)
        show(result, extractor.dimension)
        if request.statistics:
            write_statistics(request.statistics, reference)
    return result
