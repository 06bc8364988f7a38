"""The parts of the gradient's variance, of made-up gradients whose parts are known."""

import numpy as np
import pytest

from score_st.studies import gradients


def made_up(between: float, within: float, mean: float, groups: int = 400, dims: int = 30) -> np.ndarray:
    """Gradients with these variances a dimension, two for each draw of τ."""
    rng = np.random.default_rng(0)
    of_tau = np.repeat(rng.normal(size=(groups, dims)) * between**0.5, gradients.EACH, axis=0)
    return mean + of_tau + rng.normal(size=of_tau.shape) * within**0.5


def test_the_parts_of_the_variance():
    found = gradients.figures(made_up(0.5, 2.0, 0.7), None)
    assert found["E Var(g|τ)"] == pytest.approx(60.0, rel=0.03)
    assert found["Var E(g|τ)"] == pytest.approx(15.0, rel=0.1)
    assert found["variance"] == found["E Var(g|τ)"] + found["Var E(g|τ)"]
    assert found["squared mean"] == pytest.approx(30 * 0.49, rel=0.1)


def test_the_parts_are_without_bias():
    """Averaged over many small samples, the parts are exact, also the squared mean, which is 0."""
    samples = made_up(0.5, 2.0, 0.0).reshape(-1, 8, 30)
    found = [gradients.figures(sample, None) for sample in samples]
    mean = {name: np.mean([one[name] for one in found]) for name in found[0]}
    assert mean["E Var(g|τ)"] == pytest.approx(60.0, rel=0.05)
    assert mean["Var E(g|τ)"] == pytest.approx(15.0, rel=0.15)
    assert abs(mean["squared mean"]) < 1


@pytest.mark.parametrize(("shift", "distance"), [(0.0, 0.0), (0.35, 0.25)])
def test_the_distance_of_means(shift, distance):
    """In units of the squared mean; a shift of half the mean is a quarter, and many standard errors."""
    rows = made_up(0.5, 2.0, 0.7)
    differences = made_up(0.1, 1.0, shift)
    found = gradients.figures(rows, differences)
    assert found["distance of means"] == pytest.approx(distance, abs=0.02)
    assert (found["in standard errors"] > 20) == bool(shift) and (shift or abs(found["in standard errors"]) < 4)


def test_products_are_summed_in_parts():
    rows = np.random.default_rng(1).normal(size=(4, 50)).astype(np.float32)
    exact = rows.astype(np.float64) @ rows.astype(np.float64).T
    np.testing.assert_allclose(gradients.products(rows, width=7), exact, rtol=1e-12)
