"""Weightings against their formulas, written in SNR = α²/σ² and with SciPy."""

import math

import numpy as np
import pytest
from scipy import special, stats
from support.gaussian import SDES, settings_of

from score_st.diffusion import truncation, weighting

FORMULAS = {  # c as a function of t, g²/σ² and SNR
    "variance": lambda t, g2, snr: np.ones_like(t),
    "likelihood": lambda t, g2, snr: g2,
    "reciprocal": lambda t, g2, snr: 1 / t**2,
    "reciprocal_likelihood": lambda t, g2, snr: g2 / t**2,
    "softened": lambda t, g2, snr: g2 * (1e5 - 1 / t) / (1e5 - 1),
    "sigmoid": lambda t, g2, snr: g2 * special.expit(-1.0 - np.log(snr)),
    "min_snr": lambda t, g2, snr: np.minimum(1, 3.0 / snr),
    "raised_variance": lambda t, g2, snr: g2 * np.maximum.accumulate(1 / g2),
    "edm": lambda t, g2, snr: 0.5 * g2 * stats.norm.pdf(-0.5 * np.log(snr), -0.7, 1.5) * (1 + 1 / (0.09 * snr)),
}


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("weights", weighting.WEIGHTINGS)
def test_formulas(name, weights):
    """With other settings than the defaults; data in [0, 1] shift the mean of edm by −ln 2."""
    c, diffusion = settings_of(name, weighting=weights, k=2.0, sigmoid_bias=-1.0, min_snr_gamma=3.0), SDES[name]
    c.training.update(lognormal_mean=math.log(2) - 0.7, lognormal_std=1.5)
    c.model.data_std = 0.3
    t = np.geomspace(2e-5, 1, 2000, dtype=np.float32)
    alpha, sigma, g2 = (np.float64(f(t)) for f in (diffusion.alpha, diffusion.sigma, diffusion.diffusion2))
    exact = FORMULAS[weights](np.float64(t), g2 / sigma**2, (alpha / sigma) ** 2)
    np.testing.assert_allclose(weighting.WEIGHTINGS[weights](c)(diffusion, t), exact, rtol=1e-4)
    c.data.centered = True
    shifted = weighting.WEIGHTINGS[weights](c)(diffusion, t)
    assert np.allclose(shifted, exact, rtol=1e-4) == (weights != "edm")


def test_the_raised_variance_is_the_smallest_that_theorem_1_allows():
    """VP's σ²/g² falls from t = 0.350 to 0.494 of its highest; that of VE is constant."""
    vp = SDES["vpsde"]
    t = np.array([1e-4, 0.1, 0.3, 0.35, 0.6, 1.0], np.float32)
    c = np.asarray(weighting.raised_variance(vp)(vp, t))
    np.testing.assert_allclose(c[:3], 1.0, rtol=1e-6)
    assert c[3] == pytest.approx(1, abs=1e-3) and 1 < c[4] < c[5] == pytest.approx(1 / 0.494, rel=2e-3)
    prior = truncation.of_weighting(weighting.raised_variance(vp), vp)
    t = np.array([0.1, 0.351], np.float32)
    ratio = np.asarray(vp.sigma(t) ** 2 / vp.diffusion2(t))
    np.testing.assert_allclose(prior.cdf(t), [ratio[0] / peak(vp), 1], rtol=1e-3)  # no τ is larger than 0.350


def peak(diffusion) -> float:
    t = np.linspace(0.3, 0.4, 1001)
    return float(np.max(diffusion.sigma(t) ** 2 / diffusion.diffusion2(t)))
