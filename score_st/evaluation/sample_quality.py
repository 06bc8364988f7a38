"""Sample quality, for `python -m score_st.eval --metrics`: distances between features [N, D] of two sets of images."""

import dataclasses
import functools
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from score_st.config import MEANING, ConfigError
from score_st.data import pipeline
from score_st.data.images import LazyImages
from score_st.evaluation import efficientnet, inception, provenance
from score_st.pytorch import file as torch_file
from score_st.runtime import progress, sharding
from score_st.runtime.workdir import check_same, write_text

K, BLOCK = 3, 1000  # nearest neighbours of precision and recall, and rows of distances computed at once
LEAST = 10  # images
METRICS, EACH = ("fid", "is", "kid", "precision_recall"), {"kid", "precision_recall"}  # EACH: of single features
EXTRACTORS = {"inception": inception, "efficientnet-lite0": efficientnet}


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean [D] and scatter [D, D] about the mean, in float64, of features seen batch by batch."""

    count: int = 0
    mean: np.ndarray | float = 0.0
    scatter: np.ndarray | float = 0.0

    def add(self, features: np.ndarray) -> "Moments":
        """With the features [B, D] too, without the cancellation of sums of squares (Chan et al. 1979)."""
        x = np.asarray(features, np.float64)
        mean, count = x.mean(0), self.count + len(x)
        delta, centred = mean - self.mean, x - mean
        between = np.outer(delta, delta) * (self.count * len(x) / count)
        return Moments(count, self.mean + delta * (len(x) / count), self.scatter + centred.T @ centred + between)

    def summary(self) -> dict:
        return {"mean": self.mean, "covariance": self.scatter / (self.count - 1)}


def _root(covariance):
    """A [D, R] with A Aᵀ = covariance, R its numerical rank."""
    values, vectors = np.linalg.eigh(covariance)
    real = values > len(values) * np.finfo(np.float64).eps * values.max()
    return vectors[:, real] * np.sqrt(values[real])


def frechet(mean1, covariance1, mean2, covariance2) -> float:
    """The squared Fréchet distance of two normal distributions (Dowson and Landau 1982, eq. 16).

    tr (C1 C2)^½ is the sum of the singular values of C1^½ C2^½, which are real and exact to rounding for singular
    covariances too, where the square root of C1 C2 is neither.
    """
    cross = np.linalg.svd(_root(covariance1).T @ _root(covariance2), compute_uv=False).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)


def kid(samples, reference, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float | None]:
    """Mean and standard deviation over subsets of the unbiased squared MMD with (x·y/D + 1)³ (Bińkowski et al. 2018).

    Subsets are as large as the smaller set where that has fewer than `size`; of one alone there is no deviation.
    """
    size = min(size, len(samples), len(reference))
    rng, found = np.random.default_rng(seed), []
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    apart = lambda k: (k.sum() - np.trace(k)) / (size * (size - 1))
    for _ in range(subsets if size < max(len(samples), len(reference)) else 1):
        x, y = (a[rng.choice(len(a), size, replace=False)].astype(np.float64) for a in (samples, reference))
        found.append(apart(kernel(x, x)) + apart(kernel(y, y)) - 2 * kernel(x, y).mean())
    return float(np.mean(found)), float(np.std(found)) if len(found) > 1 else None


def inception_score(logits, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp E KL(p(y|x) ‖ p(y)), from [N, K] (Salimans et al. 2016)."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    parts = [log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits] for i in range(splits)]
    scores = [np.exp(np.sum(np.exp(x) * (x - np.log(np.exp(x).mean(0))), axis=1).mean()) for x in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _squared(a, b):
    return jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * jnp.matmul(a, b.T, precision="highest")


_radii = jax.jit(lambda a, b: -jax.lax.top_k(-_squared(a, b), K + 1)[0][:, K])  # each is its own nearest
_covered = jax.jit(lambda a, b, radii: jnp.any(_squared(a, b) <= radii, axis=1))


def precision_recall(samples, reference) -> tuple[float, float]:
    """The share of samples within reach of the reference, and the reverse (Kynkäänniemi et al. 2019, eq. 1).

    A point reaches as far as its third nearest neighbour. Distances are computed in float32, in blocks of rows.
    """
    centre = np.mean(reference, axis=0, dtype=np.float64)  # differences of large squares would lose digits
    samples, reference = ((a - centre).astype(np.float32) for a in (samples, reference))

    def blockwise(function, rows, *rest):
        rest = jax.device_put(rest)
        blocks = pipeline.padded(rows, min(BLOCK, len(rows)))
        return np.concatenate([np.asarray(function(block, *rest))[mask] for block, mask in blocks])

    reach = lambda a: blockwise(_radii, a, a)
    precision = blockwise(_covered, samples, reference, reach(reference))
    return float(precision.mean()), float(blockwise(_covered, reference, samples, reach(samples)).mean())


def on_devices(network, params: dict, mesh):
    """The function from a batch uint8 [B, H, W, C] to the network's outputs, computed in shares on all devices."""
    everywhere, shares = sharding.replicated(mesh), sharding.sharded(mesh)
    apply = jax.jit(lambda params, x: network.apply({"params": params}, x), out_shardings=everywhere)
    params = jax.device_put(params, everywhere)
    return lambda batch: apply(params, jax.device_put(batch, shares))


def extract(apply, batch_size: int, images: np.ndarray | LazyImages, label: str, keep: list[str]) -> dict:
    """`mean` and `covariance` of the features of images [N, H, W, C], and all of those outputs that `keep` names.

    `apply` maps a batch to a dictionary of arrays, `features` [B, D] and perhaps `logits` [B, K].
    """
    batch_size = min(batch_size, -(-len(images) // jax.device_count()) * jax.device_count())
    moments, kept, loop = Moments(), {name: [] for name in keep}, progress.Loop(label, 0, len(images), "images")
    for batch, mask in pipeline.padded(images, batch_size):
        output = {name: np.asarray(value)[mask] for name, value in apply(batch).items()}
        moments = moments.add(output["features"])
        for name in keep:
            kept[name].append(output[name])
        loop(moments.count)
    return moments.summary() | {name: np.concatenate(parts) for name, parts in kept.items()}


def measured(metrics: list[str], suffix: str, samples: dict, reference: dict) -> dict[str, tuple]:
    """Value and standard deviation, or None, of each figure, of what `extract` gives of both."""
    found, (fd, mmd) = {}, ("FD", "KID") if suffix else ("fid", "kid")
    if "fid" in metrics:
        found[fd] = frechet(*(side[name] for side in (samples, reference) for name in ("mean", "covariance"))), None
    if "kid" in metrics:
        found[mmd] = kid(samples["features"], reference["features"])
    if "precision_recall" in metrics:
        pair = precision_recall(samples["features"], reference["features"])
        found["precision"], found["recall"] = ((value, None) for value in pair)
    if "is" in metrics:
        found["is"] = inception_score(samples["logits"])
    return {name + suffix: value for name, value in found.items()}


def weights(module, given: str | None) -> tuple[dict, str]:
    """Parameters of the module's network and the SHA-256 of their file, the one `given` or the one at hand.

    Raises ConfigError where there is none, or where it is another one.
    """
    path = given or module.at_hand()
    if not path:
        raise ConfigError(f"no weights {module.FILE}: {module.HINT}")
    tensors, digest = torch_file.read(path), hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if not digest.startswith(module.FILE[-12:-4]):
        raise ConfigError(f"{path}: its SHA-256 is {digest[:8]}…, so it is not {module.FILE}: {module.HINT}")
    return module.from_torch(tensors), digest


# arrays of an npz: images of ours, score_sde and guided-diffusion; features of score_sde and clean-fid; statistics
KEYS = dict(samples="images", arr_0="images", pool_3="features", feats="features", mu="mean", sigma="covariance")


def read(path: str | Path, levels: int) -> dict[str, np.ndarray]:
    """`images` uint8 [N, H, W, 1 or 3] from 0 to 255, or `features` [N, D], or `mean` [D] and `covariance` [D, D].

    Raises ConfigError where the file has none of them, or images that are not of levels 0 ... levels - 1.
    """
    try:
        with np.load(path) as file:
            found = {role: file[key] for key, role in KEYS.items() if key in file.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        what = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise ConfigError(f"{path}: can't be read as an npz ({what}); name one with an array samples") from error
    if "images" in found:
        return {"images": to_bytes(found["images"], levels, path)}
    shapes = {role: a.shape for role, a in found.items() if a.dtype.kind == "f" and np.isfinite(a).all()}
    if len(shapes.get("features", ())) == 2 and len(found["features"]) >= LEAST:
        return {"features": found["features"]} | Moments().add(found["features"]).summary()
    if "mean" in shapes and shapes.get("covariance") == 2 * shapes["mean"]:
        return found
    what = ", ".join(f"{role} {a.dtype}{list(a.shape)}" for role, a in found.items()) or "none of them"
    raise ConfigError(
        f"{path}: has {what}; should have samples, or finite pool_3 [N ≥ {LEAST}, D] or mu, sigma [D, D]"
    )


def to_bytes(images: np.ndarray | LazyImages, levels: int, where) -> np.ndarray | LazyImages:
    """Images from 0 ... levels - 1 to 0 ... 255, or a ConfigError that names `where`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise ConfigError(f"{where}: images are {images.dtype}{list(images.shape)}; should be uint8 [N, H, W, 1 or 3]")
    if images.max() >= levels:
        raise ConfigError(f"{where}: has values up to {images.max()}; should be below config.data.num_levels={levels}")
    table = np.round(np.arange(levels) * (255 / (levels - 1))).astype(np.uint8)
    return images if levels == 256 else table[images]  # encoded ones stay so


def sampled(workdir: Path, given: str | None, levels: int) -> tuple[Path, np.ndarray]:
    """What --samples names, a file or a folder of them; by default workdir/samples/, or else workdir/samples.npz."""
    path = Path(given or workdir / "samples")
    if not given and not any(path.glob("*.npz")):
        path = workdir / "samples.npz"
        if not path.exists():
            raise ConfigError(f"--workdir {workdir}: no samples.npz there; `python -m score_st.sample` makes it")
    parts = [read(file, levels).get("images") for file in (sorted(path.glob("*.npz")) if path.is_dir() else [path])]
    if not parts or any(part is None or part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise ConfigError(f"--samples {path}: should have an array samples, images of one size")
    return path, np.concatenate(parts)


def compared(path: str | None, config, dimension: int, metrics: list[str]) -> tuple[str | None, dict]:
    """What --reference names, or the training images, and what `read` gives of it; nothing for the Inception score."""
    if metrics == ["is"]:
        return None, {}
    if path is None:
        path, images = f"{config.data.dataset.lower()} train", pipeline.load(config, "train")
        found = {"images": to_bytes(images, config.data.num_levels, config.data.dataset)}
    else:
        found = read(path, config.data.num_levels)
    counts = [len(found[role]) for role in ("images", "features") if role in found]
    if not counts and (each := [metric for metric in metrics if metric in EACH]):
        raise ConfigError(f"--reference {path}: has mu and sigma alone; {each[0]} needs images or features")
    if "mean" in found and len(found["mean"]) != dimension:
        raise ConfigError(f"--reference {path}: features of {len(found['mean'])} dimensions; should be {dimension}")
    return f"{path} ({counts[0]} images)" if counts else path, found


def add_options(parser):
    """What `evaluate` wants of the command line besides --config and --workdir."""
    option = parser.add_argument_group("sample quality").add_argument
    option("--metrics", metavar="A,B", help=f"sample quality instead of bits/dim: of {','.join(METRICS)}")
    option("--samples", metavar="FILE", help="an npz, or a folder of them; by default those in the workdir")
    option("--reference", metavar="FILE", help="npz of images, pool_3 or mu, sigma; by default the training images")
    option("--features", choices=EXTRACTORS, default="inception", help="the network (default inception)")
    option("--resize", choices=inception.RESIZINGS, help="how; by default tf1 for inception, clean for the other")
    option("--weights", metavar="FILE", help="of the network; by default SCORE_ST_INCEPTION or the installed ones")


def show(result: dict, dimension: int):
    """The figures as a table, and a warning where a Fréchet distance is of few images (Chong and Forsyth 2020)."""
    table = rich.table.Table("", "value", "± std")
    for name, figure in result["figures"].items():
        table.add_row(name, *("" if figure[key] is None else f"{figure[key]:.5g}" for key in ("value", "std")))
        if name.startswith(("fid", "FD")) and (count := figure["samples"]) < 10000:
            singular = f", and their covariance in {dimension} dimensions singular" if count <= dimension else ""
            print(f"warning: {name} of {count} samples, below 10000, is biased upwards{singular}", file=sys.stderr)
    what = "{features} features, resizing {resizing}, {samples} samples, reference {reference}"
    print(what.format(**next(iter(result["figures"].values()))))
    rich.print(table)


def evaluate(arguments, mesh) -> dict:
    """Writes eval/quality.json of the workdir, shows and returns it; ConfigError before anything is computed."""
    config, workdir, name = arguments.config, Path(arguments.workdir), arguments.features
    module, metrics = EXTRACTORS[name], arguments.metrics.split(",")
    suffix, resizing = "" if name == "inception" else f"-{name}", arguments.resize or module.RESIZING
    known = [metric for metric in METRICS if metric != "is" or not suffix]
    if wrong := [metric for metric in metrics if metric not in known]:
        raise ConfigError(f"--metrics {wrong[0]}: unknown with --features {name}; choose from {', '.join(known)}")
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, jax.device_count(), "the number of devices")
    check_same(workdir, config, lambda key: key.startswith((*MEANING, "data.")))
    path, images = sampled(workdir, arguments.samples, config.data.num_levels)
    about, reference = compared(arguments.reference, config, module.DIMENSION, metrics)
    if (least := min(len(images), len(reference.get("images", images)))) < LEAST:
        raise ConfigError(f"--metrics {arguments.metrics}: {least} images are too few; {LEAST} would do")
    params, digest = weights(module, arguments.weights)
    sums = {"samples_crc32": provenance.checksum(images), "reference_crc32": provenance.checksum(reference)}
    with jax.default_matmul_precision("highest"):
        of = functools.partial(extract, on_devices(module.Network(resizing), params, mesh), config.eval.batch_size)
        keep = [] if EACH.isdisjoint(metrics) else ["features"]
        samples = of(images, "features of samples", keep + ["logits"] * ("is" in metrics))
        if "images" in reference:
            reference = of(reference["images"], "features of reference", keep)
        values = measured(metrics, suffix, samples, reference)
    what = {"features": name, "resizing": resizing, "samples": len(images), "reference": about}
    said = lambda key: {**what, "reference": None} if key == "is" else what
    figures = {key: {"value": value, "std": std, **said(key)} for key, (value, std) in values.items()}
    sums = sums | {"samples": str(path), "weights": module.FILE, "weights_sha256": digest}
    result = {"figures": figures, **sums, "config": config.to_dict(), **provenance.software()}
    if jax.process_index() == 0:
        write_text(workdir / "eval/quality.json", json.dumps(result, indent=2) + "\n")
        show(result, module.DIMENSION)
    return result
