"""Averages of any width, made of stored ones: their mathematics against numerical integrals and direct averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_st import config
from score_st.runtime import sharding
from score_st.training import averages, saving, state, stored_weights

TABLE_WIDTHS = 0.02, 0.03, 0.075, 0.15, 0.20, 0.25
# relative errors of the profile that least squares leave with n pairs of averages, stored evenly
TABLE = {
    1: "0.34 0.17 0.04 0.18 0.4 0.6",
    16: "0.12 0.04 0.004 0.009 0.02 0.08",
    64: "0.011 0.003 0.0002 0.0006 0.002 0.015",
}


def test_exponents():
    """Those of the paper, and the width of the profile that they give."""
    assert averages.exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert averages.exponent(0.10) == pytest.approx(6.94, abs=0.005)
    t = (np.arange(200000) + 0.5) / 200000
    for width in (0.02, 0.07, 0.25):
        gamma = averages.exponent(width)
        density = (gamma + 1) * t**gamma
        mean = np.mean(density * t)
        assert np.mean(density * (t - mean) ** 2) ** 0.5 == pytest.approx(width, rel=1e-5)


def test_products_are_integrals():
    t = (np.arange(400000) + 0.5) / 400000
    profile = lambda end, gamma: np.where(t <= end, (gamma + 1) * (t / end) ** gamma / end, 0.0)
    for a, b in (((0.5, 16.97), (1.0, 6.94)), ((1.0, 6.94), (0.25, 1.4)), ((0.75, 3.0), (0.75, 5.0))):
        expected = np.mean(profile(*a) * profile(*b))
        assert averages.product(*a, *b) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("n", TABLE)
def test_errors_of_profiles(n):
    """The table of the reference; with coefficients that add up to 1 only what is bad anyway is worse."""
    gamma = np.tile([averages.exponent(width) for width in averages.WIDTHS], n)
    t = np.repeat(np.arange(1, n + 1) / n, 2)
    for width, text in zip(TABLE_WIDTHS, TABLE[n].split(), strict=True):
        expected = pytest.approx(float(text), abs=10.0 ** -len(text.split(".")[1]))  # to the last digit
        wanted = averages.exponent(width)
        gram, right = averages.product(t[:, None], gamma[:, None], t, gamma), averages.product(t, gamma, 1.0, wanted)
        norm = averages.product(1.0, wanted, 1.0, wanted)
        free = (1 - right @ np.linalg.solve(gram, right) / norm) ** 0.5
        assert free == expected
        values, error = averages.coefficients(range(1, n + 1), width)
        assert values.sum() == pytest.approx(1, abs=1e-12) and error >= free - 1e-9
        if n > 1:
            assert error == expected


def test_the_error_is_that_of_the_profile():
    """Against the profile itself, on a grid."""
    values, error = averages.coefficients([100, 200, 300, 450], 0.15)
    t = (np.arange(450000) + 0.5) / 1000
    profile = lambda end, width: (
        g := averages.exponent(width),
        np.where(t <= end, (g + 1) * (t / end) ** g / end, 0),
    )[1]
    pairs = zip([100, 200, 300, 450], values, strict=True)
    made = sum(c * profile(end, w) for end, row in pairs for c, w in zip(row, averages.WIDTHS, strict=True))
    wanted = profile(450, 0.15)
    assert np.linalg.norm(made - wanted) / np.linalg.norm(wanted) == pytest.approx(error, rel=1e-3)


def test_steps_are_spread_over_training():
    steps = averages.stored_steps
    assert steps(0, 100) == () and steps(3, 10) == (3, 6, 10)
    assert len(set(steps(64, 1300001))) == 64 and steps(64, 1300001)[-1] == 1300001


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """330 steps of Adam with noisy gradients: the workdir, the final state, and other widths that were kept."""
    workdir, optimizer, stop = tmp_path_factory.mktemp("runs"), optax.adam(0.02), 330
    params = {"a": jnp.ones((6, 5)), "b": {"c": jnp.full(20, 3.0)}, "fixed": jnp.asarray([0.1, 1 / 3, 70.7])}
    current = state.create(params, optimizer, averaged=True)
    steps = averages.stored_steps(64, stop)

    @jax.jit
    def update(current, kept, key):
        leaves, tree = jax.tree.flatten(current.params)
        noise = [jax.random.normal(k, leaf.shape) for k, leaf in zip(jax.random.split(key, 3), leaves, strict=True)]
        gradient = jax.tree.map(lambda p, z: 0.3 * p + z, current.params, jax.tree.unflatten(tree, noise))
        gradient["fixed"] = jnp.zeros(3)
        current = state.update(current, gradient, optimizer, 0.99)
        return current, averages.updated(kept, current.params, current.step)

    saver = functools.partial(saving.Saver, workdir, config.default().storage, lambda: False)
    store = stored_weights.Store(workdir, steps, current, saver)
    kept = {width: jax.tree.map(jnp.zeros_like, params) for width in ("0.03", "0.075", "0.2")}
    for i, key in enumerate(jax.random.split(jax.random.key(0), stop), 1):
        current, kept = update(current, kept, key)
        store(i, current)
    store.wait()
    return workdir, current, kept


@pytest.mark.parametrize("width", ["0.03", "0.075", "0.2"])
def test_widths_are_those_kept_during_training(noisy, width):
    workdir, current, kept = noisy
    shapes = jax.eval_shape(lambda: current.params)
    terms = stored_weights.plan(workdir, None, float(width))
    made = stored_weights.combine(workdir, shapes, sharding.mesh(), terms)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    error, size = (
        np.linalg.norm(flat(made) - flat(kept[width])),
        np.linalg.norm(flat(kept[width]) - flat(current.params)),
    )
    assert max(terms) == 330 and error < 0.001 * size
    np.testing.assert_array_equal(made["fixed"], current.params["fixed"])


def test_a_stored_width_is_read_as_it_is(noisy):
    workdir, current, _ = noisy
    shapes = jax.eval_shape(lambda: current.params)
    made = stored_weights.combine(workdir, shapes, sharding.mesh(), stored_weights.plan(workdir, None, 0.05))
    jax.tree.map(np.testing.assert_array_equal, made, current.averages["0.05"])


def test_updates_are_weighted_sums():
    """After n steps the weights of step i count (i^(γ + 1) − (i − 1)^(γ + 1)) / n^(γ + 1)."""
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    kept = averages.start({"p": jnp.float32(9.0)})
    for i, value in enumerate(values, 1):
        kept = averages.updated(kept, {"p": jnp.float32(value)}, jnp.int32(i))
    for width in averages.WIDTHS:
        power = (np.arange(51) / 50) ** (averages.exponent(width) + 1)
        assert float(kept[str(width)]["p"]) == pytest.approx(np.diff(power) @ values, abs=2e-6)
