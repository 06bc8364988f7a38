"""What is refused at construction and of arrays, and that what is right passes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_st import checks
from score_st.config import ConfigError
from score_st.data.preprocessing import Scaler
from score_st.diffusion import correctors, guidance, predictors, samplers, time_sampling, truncation, weighting
from score_st.diffusion.linear_sde import Prior
from score_st.diffusion.probability_flow import Solver
from score_st.diffusion.sde import RVE, VE, VP, SubVP
from score_st.ranges import Number

DENSITY = weighting.Lognormal(0.0, 1.0)
# what is constructed with one field, a value inside its range, and values outside
FIELDS = [
    (lambda x: VP(eps=x), 1e-3, (-1, 0, 1, 2, math.nan)),
    (lambda x: SubVP(beta_min=x), 0.0, (-0.1, 20.1, math.inf, math.nan)),
    (lambda x: VP(beta_max=x), 0.1, (0, -1, 0.09, math.inf)),
    (lambda x: VE(sigma_min=x), 1e-6, (60, 50, 0, -1, math.nan)),
    (lambda x: VE(sigma_max=x), 1e6, (0.01, math.inf)),
    (lambda x: RVE(eta=x), 0.02, (0, -1, 50, math.nan)),
    (Prior, 2.0, (0, -1, math.nan)),
    (lambda x: truncation.Truncation(x, 1e-5), math.inf, (-1, -1e-9, math.nan)),
    (lambda x: truncation.Truncation(1.0, x), 0.5, (0, 1, -1, math.nan)),
    (time_sampling.IDODE, 0.5, (0, -1, math.inf)),
    (weighting.SignalFraction, 0.5, (0, -1, math.nan)),
    (weighting.Sigmoid, -2.0, (math.inf, math.nan)),
    (weighting.MinSNR, 5.0, (0, -1, math.inf)),
    (lambda x: weighting.Lognormal(x, 1.0), -1.2, (math.inf, math.nan)),
    (lambda x: weighting.Lognormal(0.0, x), 1.2, (0, -1, math.inf)),
    (lambda x: weighting.EDM(DENSITY, x), 0.5, (0, -1)),
    (predictors.EulerMaruyama, 0.0, (-1, math.inf, math.nan)),
    (predictors.ReverseDiffusion, 0.5, (-1, math.nan)),
    (predictors.DDIM, 1.0, (-0.1, math.nan)),
    (predictors.Heun, 0.0, (-1, math.inf)),
    (correctors.Langevin, 0.16, (0, -1, math.nan)),
    (correctors.AnnealedLangevin, 0.16, (0, -1)),
    (lambda x: samplers.PredictorCorrector(None, steps=x), 1, (0, -1)),
    (lambda x: samplers.PredictorCorrector(None, corrections=x), 0, (-1,)),
    (lambda x: Solver(rtol=x), 1e-9, (0, -1, math.nan)),
    (lambda x: Solver(atol=x), 1e-9, (0, -1, math.inf)),
    (lambda x: Solver(max_steps=x), 1, (0, -1)),
    (lambda x: Solver(method=x), "Tsit5", ("dopri", "")),
    (guidance.Autoguidance, -1.0, (math.inf, math.nan)),
    (lambda x: Scaler(x, True, "none"), 2, (1, 0, -1, 257)),
    (lambda x: VP().noise_levels(x), 21, (20, 1, 0, -1)),
]


@pytest.mark.parametrize("number", range(len(FIELDS)))
def test_ranges_of_fields(number):
    build, right, wrong = FIELDS[number]
    build(right)
    for value in wrong:
        with pytest.raises(ConfigError, match="should be|choose from"):
            build(value)


def test_a_message_says_what_would_be_right():
    for build, message in (
        (lambda: VP(eps=-1), r"VP\(eps=-1\): should be above 0 and below 1"),
        (lambda: VE(sigma_min=60.0), r"VE\(sigma_max=50.0\): should be above 60$"),
        (lambda: truncation.Truncation(-1, 1e-5), r"Truncation\(k=-1\): should be 0 or more, or inf$"),
        (lambda: VP(beta_max=0.05), r"VP\(beta_max=0.05\): should be 0.1 or more$"),
        (lambda: Scaler(300, True, "none"), r"Scaler\(num_levels=300\): should be from 2 to 256"),
    ):
        with pytest.raises(ConfigError, match=message):
            build()


def test_traced_fields_pass():
    """As in a gradient with respect to a diffusion's own numbers; others of the same object are still checked."""

    @dataclasses.dataclass
    class Line:
        slope: float
        end: float = 1.0

        def __post_init__(self):
            checks.check_fields(self, end=checks.POSITIVE, slope=Number(float, 0, self.end, "()"))

    assert jax.grad(lambda slope: Line(slope).slope * 3)(-2.0) == 3
    with pytest.raises(ConfigError, match="end=-1"):
        jax.grad(lambda slope: Line(slope, -1.0).slope)(0.5)


LEVELS = np.zeros((2, 8, 4, 1), np.uint8)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_images(array):
    check = lambda images, **options: checks.check_images(array(images), (8, 4, 1), 17, **options)
    for right in (LEVELS, LEVELS + 16, LEVELS.astype(np.int32), LEVELS - 0.5, LEVELS[:0]):
        check(right)
    check(LEVELS[0], batch=False)
    for wrong, message in (
        (LEVELS.swapaxes(1, 2), r"is \[2, 4, 8, 1\]; should be \[B, 8, 4, 1\]"),
        (LEVELS[0], r"is \[8, 4, 1\]; should be \[B"),
        (LEVELS[None], r"should be \[B"),
        (np.repeat(LEVELS, 3, 3), r"is \[2, 8, 4, 3\]"),
        (LEVELS + 17, "from 17 to 17; should be 0 ... 16"),
        (LEVELS.astype(int) - 1, "from -1 to -1"),
        (LEVELS > 0, "of type bool; should be integers"),
        (LEVELS * 1j, "of type complex"),
        (LEVELS * np.nan, "not finite"),
        (LEVELS - np.inf, "not finite"),
    ):
        with pytest.raises(ConfigError, match=f"images: .*{message}"):
            check(wrong)
    with pytest.raises(ConfigError, match=r"\[..., 8, 4, 1\]"):
        check(LEVELS[:, :4], batch=False)


def test_large_integers_are_seen_before_jax_wraps_them():
    with pytest.raises(ConfigError, match=r"should be 0 \.\.\. 255"):
        checks.check_images(np.full((1, 2, 2, 1), 2**32 + 3), (2, 2, 1), 256)


def test_levels_given_as_floats():
    x = np.zeros((1, 2, 2, 1), np.float32)
    for right in (x - 1.2, x + 1.2, x.astype(np.uint8) + np.uint8(16)):
        checks.check_scaled(right, True)
    for wrong, centered in ((x + 16, True), (x - 9, True), (x + 5, False)):
        with pytest.raises(ConfigError, match="or levels as integers"):
            checks.check_scaled(wrong, centered)


def test_times():
    for right in (1e-5, 1.0, 1, np.float32(1e-5), jnp.array([1e-5, 1.0, 0.5]), np.ones(1)):
        checks.check_times(right, 3, 1e-5, 1.0)
    for wrong, message in (
        (0.0, "from 0 to 0; should be from ε = 1e-05 to 1"),
        (1.001, "1.001"),
        (-0.5, "-0.5"),
        (math.nan, "nan"),
        (np.array([0.5, 2.0, 0.1]), "from 0.1 to 2"),
        (np.ones(2), r"is \[2\]; should be a number or \[3\]"),
        (np.ones((3, 1)), r"is \[3, 1\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            checks.check_times(wrong, 3, 1e-5, 1.0)


def test_masks():
    shape = (2, 8, 8, 1)
    half = (np.arange(8) < 4)[:, None, None]
    for right in (1.0, half, half * 1.0, jnp.asarray(half), np.full(shape, 0.5)):
        checks.check_mask(right, shape)
    for wrong, message in (
        (half * np.uint8(255), "from 0 to 255; should be from 0 to 1; divide a picture's 0 ... 255 by 255"),
        (half * -1.0, "from -1 to -0; should be from 0 to 1$"),
        (np.full(shape, np.nan), "nan"),
        (np.zeros((8, 8)), r"is \[8, 8\]; should broadcast to \[2, 8, 8, 1\], as \[H, W, 1\] does"),
        (np.zeros((4, 8, 1)), r"is \[4, 8, 1\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            checks.check_mask(wrong, shape)
    sde, x = VP(), jnp.zeros(shape)
    with pytest.raises(ConfigError, match="divide a picture's"):
        guidance.inpaint(sde, x, 255.0 * half)
