"""Distances between features [N, D] of two sets of images, and the Inception score."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Float
from score_st.data import pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter about the mean, in float64, of features that come batch by batch.

    Attributes:
      count: how many there were.
      mean: [D].
      scatter: the sum of the outer products of what differs from the mean [D, D].
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    scatter: np.ndarray | float = 0.0

    def add(self, features: Float[np.ndarray, "B D"]) -> "Moments":
        """Returns the moments with the features, without the cancellation of sums of squares (Chan et al. 1979)."""
        x = np.asarray(features, np.float64)
        mean, count = x.mean(0), self.count + len(x)
        delta, centered = mean - self.mean, x - mean
        between = np.outer(delta, delta) * (self.count * len(x) / count)
        return Moments(count, self.mean + delta * (len(x) / count), self.scatter + centered.T @ centered + between)

    def summary(self) -> dict[str, np.ndarray]:
        """Returns `mean` [D] and the unbiased `covariance` [D, D]."""
        return {"mean": np.asarray(self.mean), "covariance": np.asarray(self.scatter / (self.count - 1))}


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns A [D, R] with A Aᵀ = covariance, R its numerical rank."""
    values, vectors = np.linalg.eigh(covariance)
    nonzero = values > len(values) * np.finfo(np.float64).eps * values.max()
    return vectors[:, nonzero] * np.sqrt(values[nonzero])


def frechet(
    mean1: Float[np.ndarray, " D"],
    covariance1: Float[np.ndarray, "D D"],
    mean2: Float[np.ndarray, " D"],
    covariance2: Float[np.ndarray, "D D"],
) -> float:
    """Returns the squared Fréchet distance of two normal distributions (Dowson and Landau 1982, eq. 16).

    tr (C1 C2)^½ is the sum of the singular values of C1^½ C2^½, which are real and exact to rounding for singular
    covariances too, where the square root of C1 C2 is neither.
    """
    cross = np.linalg.svd(_root(covariance1).T @ _root(covariance2), compute_uv=False).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)


def kid(
    samples: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Returns the unbiased squared MMD with the kernel (x·y/D + 1)³ (Bińkowski et al. 2018).

    Args:
      samples: features.
      reference: features.
      subsets: how many random subsets are compared.
      size: of a subset; that of the smaller set if it has fewer.
      seed: draws the subsets.

    Returns:
      Mean and standard deviation over subsets; no deviation if there is only one subset.
    """
    size = min(size, len(samples), len(reference))
    rng, distances = np.random.default_rng(seed), []
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    off_diagonal = lambda k: (k.sum() - np.trace(k)) / (size * (size - 1))
    for _ in range(subsets if size < max(len(samples), len(reference)) else 1):
        x, y = (a[rng.choice(len(a), size, replace=False)].astype(np.float64) for a in (samples, reference))
        distances.append(off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())
    return float(np.mean(distances)), float(np.std(distances)) if len(distances) > 1 else None


def inception_score(logits: Float[np.ndarray, "N K"], splits: int = 10) -> tuple[float, float]:
    """Returns mean and standard deviation over splits of exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016)."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    parts = [log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits] for i in range(splits)]
    scores = [np.exp(np.sum(np.exp(x) * (x - np.log(np.exp(x).mean(0))), axis=1).mean()) for x in parts]
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    samples: Float[np.ndarray, "N D"], reference: Float[np.ndarray, "M D"], neighbors: int = 3, block: int = 1000
) -> tuple[float, float]:
    """Returns improved precision and recall (Kynkäänniemi et al. 2019, eq. 1).

    Precision is the fraction of samples within reach of the reference, recall that of the reference within reach of
    the samples. A point reaches as far as its nearest neighbor of number `neighbors`. Distances are computed in
    float32.

    Args:
      samples: features.
      reference: features.
      neighbors: 3 in the paper.
      block: rows of distances that are computed at once.
    """
    center = np.mean(reference, axis=0, dtype=np.float64)  # differences of large squares would lose digits
    samples, reference = ((a - center).astype(np.float32) for a in (samples, reference))

    def squares(a: Any, b: Any) -> Any:
        return jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * jnp.matmul(a, b.T, precision="highest")

    # each point is its own nearest neighbor
    radii = jax.jit(lambda a, b: -jax.lax.top_k(-squares(a, b), neighbors + 1)[0][:, neighbors])
    covered = jax.jit(lambda a, b, radii: jnp.any(squares(a, b) <= radii, axis=1))

    def blockwise(function: Callable, rows: np.ndarray, *others: np.ndarray) -> np.ndarray:
        arrays = jax.device_put(others)
        blocks = pipeline.padded(rows, min(block, len(rows)))
        return np.concatenate([np.asarray(function(part, *arrays))[mask] for part, mask in blocks])

    reach = lambda features: blockwise(radii, features, features)
    precision = blockwise(covered, samples, reference, reach(reference))
    return float(precision.mean()), float(blockwise(covered, reference, samples, reach(samples)).mean())
