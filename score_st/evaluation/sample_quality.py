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

from score_st import strict_json
from score_st.array_types import Float, Shaped, UInt8
from score_st.config import ConfigError
from score_st.data import identity, pipeline
from score_st.data.images import Images
from score_st.evaluation import distances, inception, provenance
from score_st.evaluation.distances import Moments
from score_st.evaluation.extractors import EXTRACTORS, Extractor, Features
from score_st.runtime import mirror, places, sharding
from score_st.runtime.workdir import check_same, write_text

LEAST = 10  # images
OF_IMAGES = ("data.image_size", "data.num_channels", "data.num_levels")  # keys that must be those of the run
OF_REFERENCE = ("data.dataset", "data.category", "data.tfrecords_path")  # likewise, where it is the training images
METRICS = ("fid", "is", "kid", "precision_recall")
PER_IMAGE = {"kid", "precision_recall"}  # metrics of single features, not of their moments
# arrays of an npz: images of ours, score_sde and guided-diffusion; features of score_sde and clean-fid; statistics
KEYS = dict(samples="images", arr_0="images", pool_3="features", feats="features", mu="mean", sigma="covariance")


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
    """

    metrics: tuple[str, ...]
    samples: str | None = None
    reference: str | None = None
    extractor: Extractor = EXTRACTORS["inception"]
    resize: str | None = None
    weights: str | None = None

    def check(self) -> None:
        """Raises ConfigError for a metric that is unknown or can't be had of these features."""
        known = [metric for metric in METRICS if metric != "is" or self.extractor.classifies]
        if unknown := [metric for metric in self.metrics if metric not in known]:
            with_features = f"with --features {self.extractor.name}; choose from {', '.join(known)}"
            raise ConfigError(f"--metrics {unknown[0]}: unknown {with_features}")


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
        help="an npz, or a folder of them; by default those in the workdir",
    )
    option(
        "--reference",
        type=places.source,
        metavar="FILE",
        help="npz of images, pool_3 or mu, sigma; by default the training images",
    )
    option("--features", choices=EXTRACTORS, default="inception", help="the network (default inception)")
    option("--resize", choices=inception.RESIZINGS, help="by default tf1 for inception, clean for efficientnet-lite0")
    option(
        "--weights",
        type=places.source,
        metavar="FILE",
        help="of the network; by default SCORE_ST_INCEPTION or the installed ones",
    )


def from_arguments(arguments: argparse.Namespace, mesh: Mesh, show: Callable[[dict, int], None]) -> dict:
    """Evaluates what the options of `add_options` ask for; see `evaluate`."""
    extractor, metrics = EXTRACTORS[arguments.features], tuple(arguments.metrics.split(","))
    paths = arguments.samples, arguments.reference, arguments.weights
    samples, reference, weights = (None if path is None else str(path) for path in paths)
    request = Request(metrics, samples, reference, extractor, arguments.resize, weights)
    return evaluate(arguments.config, arguments.workdir, request, mesh, show)


def read(path: str | Path, levels: int) -> dict[str, Any]:
    """Reads an npz of images, features or statistics.

    Args:
      path: the file.
      levels: what images count from 0 to levels - 1.

    Returns:
      `images` uint8 [N, H, W, 1 or 3] from 0 to 255; or `features` [N, D] with their `mean` [D] and `covariance`
      [D, D]; or these two alone.

    Raises:
      ConfigError: the file has none of them, or images of other levels.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        file = np.load(path)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(f"it is one array, {file.dtype}{list(file.shape)}")
        with file:
            arrays = {role: file[key] for key, role in KEYS.items() if key in file.files}
    except Exception as error:  # a damaged zip archive raises almost anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise ConfigError(f"{path}: can't be read as an npz ({reason}); name one with an array samples") from error
    if "images" in arrays:
        return {"images": to_bytes(arrays["images"], levels, path)}
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
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        kind = f"{images.dtype}{list(images.shape)}"
        raise ConfigError(f"{source}: images are {kind}; should be uint8 [N, H, W, 1 or 3]")
    if images.max() >= levels:
        limit = f"should be below config.data.num_levels={levels}"
        raise ConfigError(f"{source}: has values up to {images.max()}; {limit}")
    table = np.round(np.arange(levels) * (255 / (levels - 1))).astype(np.uint8)
    return images if levels == 256 else table[np.asarray(images)]


def read_samples(workdir: Path, path: str | None, levels: int) -> tuple[Path, UInt8[np.ndarray, "N H W C"]]:
    """Reads the samples of a file or of a folder of them.

    Args:
      workdir: of the run.
      path: as --samples has it; by default workdir/samples/, or else workdir/samples.npz.
      levels: what images count from 0 to levels - 1.

    Returns:
      The path, and the images.
    """
    source = Path(path or workdir / "samples")
    shards = [file for file in sorted(source.glob("*.npz")) if not file.name.startswith(".")]  # as unfinished ones do
    if not path and not shards:
        source = workdir / "samples.npz"
        if not source.exists():
            raise ConfigError(f"--workdir {workdir}: no samples.npz there; `python -m score_st.sample` writes it")
    files = shards if source.is_dir() else [source]
    parts = [read(file, levels).get("images", np.empty(0)) for file in files]
    if not parts or any(part.ndim != 4 or part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise ConfigError(f"--samples {source}: should have an array samples, images of one size")
    return source, np.concatenate(parts)


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
        reference = read(name, levels)
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
    request: Request, features: Features, images: UInt8[np.ndarray, "N H W C"], reference: dict[str, Any]
) -> dict[str, tuple[float, float | None]]:
    """Returns value and standard deviation, or None, of each figure.

    Args:
      request: names the metrics.
      features: of images.
      images: the samples.
      reference: what `read_reference` returns.
    """
    metrics, figures = request.metrics, dict[str, tuple[float, float | None]]()
    keep = ["features"] if PER_IMAGE.intersection(metrics) else []
    samples = features(images, "features of samples", keep + ["logits"] * ("is" in metrics))
    if "images" in reference:
        reference = features(reference["images"], "features of reference", keep)
    if "fid" in metrics:
        moments = [side[name] for side in (samples, reference) for name in ("mean", "covariance")]
        figures["fid"] = distances.frechet(*moments), None
    if "kid" in metrics:
        figures["kid"] = distances.kid(samples["features"], reference["features"])
    if "precision_recall" in metrics:
        precision, recall = distances.precision_recall(samples["features"], reference["features"])
        figures["precision"], figures["recall"] = (precision, None), (recall, None)
    if "is" in metrics:
        figures["is"] = distances.inception_score(samples["logits"])
    return figures


def evaluate(
    config: ConfigDict,
    workdir: Path,
    request: Request,
    mesh: Mesh,
    show: Callable[[dict, int], None] = lambda result, dimension: None,
    features: Features | None = None,
) -> dict[str, Any]:
    """Computes the figures of a request and writes them to eval/quality.json of the workdir.

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
    extractor, levels, batch_size = request.extractor, config.data.num_levels, config.eval.batch_size
    resizing = request.resize or extractor.resizing
    sharding.check_divisible("eval.batch_size", batch_size, mesh.size, "the number of devices")
    keys = OF_IMAGES if request.reference else OF_IMAGES + OF_REFERENCE
    check_same(workdir, config, lambda key: key in keys)
    path, images = read_samples(workdir, request.samples, levels)
    check_size(config, path, {"images": images})
    description, reference = read_reference(config, request, workdir)
    if (least := min(len(images), len(reference.get("images", images)))) < LEAST:
        metrics = ",".join(request.metrics)
        raise ConfigError(f"--metrics {metrics}: {least} images are too few; it takes at least {LEAST}")
    params, digest = extractor.weights(request.weights)
    sums = {"samples_crc32": provenance.checksum(images), "reference_crc32": provenance.checksum(reference)}
    with jax.default_matmul_precision("highest"):
        features = features or Features.on_devices(extractor.network(resizing), params, mesh, batch_size)
        values = compute(request, features, images, reference)
    about: dict[str, Any] = {"features": extractor.name, "resizing": resizing, "samples": len(images)}
    figures = {
        extractor.figure(name): {
            "value": value,
            "std": std,
            **about,
            "reference": None if name == "is" else description,
        }
        for name, (value, std) in values.items()
    }
    sources = {"samples": mirror.shown(path), "weights": extractor.file, "weights_sha256": digest}
    result = {"figures": figures, **sums, **sources, "config": config.to_dict(), **provenance.software()}
    if jax.process_index() == 0:
        write_text(workdir / "eval/quality.json", strict_json.dumps(result, indent=2) + "\n")
        show(result, extractor.dimension)
    return result
