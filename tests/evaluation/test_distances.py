"""Distances between sets of features, against direct formulas and torch-fidelity's."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from support.torch_fidelity import torch_fidelity

from score_st.evaluation import distances

RNG = np.random.default_rng


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated and positive, like pooled activations."""
    rng = RNG(seed)
    return np.abs(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + shift).astype(np.float32)


def statistics(x: np.ndarray) -> tuple:
    return x.astype(np.float64).mean(0), np.cov(x.astype(np.float64), rowvar=False)


def test_moments_of_a_stream():
    x = features(1000, 30, 0).astype(np.float64) + 1e5
    moments = distances.Moments()
    for batch in np.split(x, [1, 200, 210, 999]):
        moments = moments.add(batch)
    summary = moments.summary()
    assert moments.count == 1000
    np.testing.assert_allclose(summary["mean"], x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(summary["covariance"], np.cov(x - 1e5, rowvar=False), rtol=1e-7, atol=1e-9)


def test_frechet():
    """Against sqrtm, torch-fidelity's, a closed form, and zero."""
    one, two = statistics(features(500, 40, 0)), statistics(features(300, 40, 1, 0.3))
    wanted = np.sum((one[0] - two[0]) ** 2) + np.trace(one[1] + two[1] - 2 * sqrtm(one[1] @ two[1]).real)
    assert distances.frechet(*one, *two) == pytest.approx(wanted, rel=1e-9)
    assert distances.frechet(*two, *one) == pytest.approx(wanted, rel=1e-9)
    assert abs(distances.frechet(*one, *one)) < 1e-12 * np.trace(one[1])
    a, b = RNG(0).uniform(0, 2, (2, 9))
    closed = 9.0 + np.sum((a - b) ** 2)
    assert distances.frechet(np.zeros(9), np.diag(a**2), np.ones(9), np.diag(b**2)) == pytest.approx(closed, rel=1e-12)
    assert distances.frechet(np.zeros(2), np.zeros((2, 2)), np.ones(2), np.eye(2)) == pytest.approx(4.0)


def test_frechet_against_torch_fidelity():
    theirs, torch = torch_fidelity("metric_fid")
    x, y = features(500, 40, 0), features(300, 40, 1, 0.3)
    pair = [theirs.fid_features_to_statistics(torch.from_numpy(a.astype(np.float64))) for a in (x, y)]
    wanted = theirs.fid_statistics_to_metric(*pair, False)["frechet_inception_distance"]
    assert distances.frechet(*statistics(x), *statistics(y)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("n, m", [(20, 30), (20, 500), (65, 65)])
def test_frechet_of_singular_covariances(n, m):
    """Of fewer samples than dimensions: from the data, tr (C1 C2)^½ is the nuclear norm of X Yᵀ over √(n-1)(m-1)."""
    x, y = features(n, 64, 0).astype(np.float64), features(m, 64, 1, 0.3).astype(np.float64)
    dx, dy = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(dx @ dy.T, "nuc") / np.sqrt((n - 1) * (m - 1))
    wanted = np.sum((x.mean(0) - y.mean(0)) ** 2) + (dx**2).sum() / (n - 1) + (dy**2).sum() / (m - 1) - 2 * cross
    assert distances.frechet(*statistics(x), *statistics(y)) == pytest.approx(wanted, rel=1e-10)
    assert abs(distances.frechet(*statistics(x), *statistics(x))) < 1e-10 * wanted


def test_kid():
    """Of entire sets against the double sum, of subsets against their spread, and torch-fidelity's."""
    x, y = features(30, 10, 0), features(30, 10, 1, 0.3)
    k = lambda a, b: (np.dot(a.astype(np.float64), b) / 10 + 1) ** 3
    within = lambda s: np.mean([k(s[i], s[j]) for i in range(30) for j in range(30) if i != j])
    wanted = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert distances.kid(x, y) == (pytest.approx(wanted, rel=1e-12), None)
    mean, std = distances.kid(x, y, subsets=2000, size=15)
    assert abs(mean - wanted) < 4 * std / 2000**0.5 < 0.2 * wanted
    theirs, torch = torch_fidelity("metric_kid")
    pair = (torch.from_numpy(a.astype(np.float64)) for a in (x, y))
    result = theirs.kid_features_to_metric(*pair, kid_subsets=2, kid_subset_size=30)
    assert result["kernel_inception_distance_mean"] == pytest.approx(wanted, rel=1e-9)


def test_inception_score():
    logits = RNG(0).normal(0, 3, (103, 17)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    scores = []
    for i in range(10):
        part = p[i * 103 // 10 : (i + 1) * 103 // 10]
        scores.append(np.exp(np.mean([np.sum(q * np.log(q / part.mean(0))) for q in part])))
    wanted = pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    assert distances.inception_score(logits) == wanted
    certain = 1e4 * np.eye(10, dtype=np.float32)[np.arange(200) % 10]
    assert distances.inception_score(certain) == (pytest.approx(10), pytest.approx(0, abs=1e-9))
    theirs, torch = torch_fidelity("metric_isc")
    result = theirs.isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
    assert (result["inception_score_mean"], result["inception_score_std"]) == wanted


def test_precision_recall():
    """In several blocks, against all distances at once and torch-fidelity's."""
    x, y = features(150, 12, 0), 1.1 * features(210, 12, 0, 0.15)
    reach = lambda a: np.sort(cdist(a, a))[:, 3]
    precision = (cdist(x, y) <= reach(y)).any(1).mean()
    recall = (cdist(y, x) <= reach(x)).any(1).mean()
    assert 0.1 < precision < 0.95 and 0.1 < recall < 0.95 and precision != recall
    assert distances.precision_recall(x, y, block=64) == pytest.approx((precision, recall))
    assert distances.precision_recall(x, x) == (1.0, 1.0)
    assert distances.precision_recall(x, x + 1e3) == (0.0, 0.0)
    theirs, torch = torch_fidelity("metric_prc")
    pair = (torch.from_numpy(a.astype(np.float64)) for a in (x, y))
    result = theirs.calculate_precision_recall_full(*pair)
    assert result == pytest.approx((precision, recall), abs=1e-6)
