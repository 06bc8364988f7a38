"""The train step: what devices exchange, τ by device, and the same curve however the work is divided."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats
from support.commands import tiny

from score_st.config import ConfigError
from score_st.networks.layers import Dropout
from score_st.runtime import sharding
from score_st.training import loop, step


def setup_on(devices: int, fsdp: int = 1, **more):
    return step.from_config(tiny(**more), sharding.mesh(fsdp, jax.devices()[:devices]))


def compiled_step(setup):
    images, key = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.uint8), jax.eval_shape(jax.random.key, 0)
    return step.jitted(setup).lower(setup.abstract_state, images, key).compile()


def test_a_step_on_eight_devices_communicates_gradients_and_metrics_alone():
    """All collectives are all-reduces; together they carry the gradient and a few scalars, each once."""
    setup = setup_on(8)
    program = compiled_step(setup).as_text()
    kinds = set(
        re.findall(r"= .*? (all-[a-z]+|collective-[a-z]+|reduce-scatter|ragged-all-to-all)(?:-start)?\(", program)
    )
    assert kinds == {"all-reduce"}
    results = [
        line.split(" = ", 1)[1].split(" all-reduce")[0] for line in program.splitlines() if " all-reduce" in line
    ]
    shapes = [dims for result in results for dims in re.findall(r"\w\d+\[([\d,]*)\]", result)]
    sizes = [math.prod(int(d) for d in dims.split(",") if d) for dims in shapes]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(setup.model.abstract_params))
    assert parameters <= sum(sizes) <= parameters + 8


@pytest.mark.parametrize("k", [0.0, 0.9, 1.0, 2.0])
def test_each_device_has_its_own_tau(digits, k):
    """Eight τ a step, each constant on one device's share of the batch; over 400 steps their law is P_k."""
    setup = setup_on(8, training__k=k)
    shared = sharding.sharded(sharding.mesh())

    @jax.jit
    def taus(count):
        data_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), count))
        return step.draw(setup, jnp.asarray(digits[:16]), data_key)["tau"]

    tau = jax.device_put(taus(0), shared)
    shares = [np.asarray(shard.data) for shard in tau.addressable_shards]
    assert all(len(set(share.tolist())) == 1 for share in shares)
    assert len({float(share[0]) for share in shares}) == 8
    draws = np.asarray(jax.vmap(taus)(jnp.arange(400)))[:, ::2].ravel()
    cdf = np.asarray(setup.truncation.cdf(jnp.asarray(draws)))
    assert stats.kstest(cdf, "uniform").pvalue > 1e-3


def test_times_lie_above_the_tau_of_their_device(digits):
    setup = setup_on(8)
    inputs = step.draw(setup, jnp.asarray(digits[:16]), jax.random.key(0))
    x, tau, u = (inputs[name] for name in ("x", "tau", "u"))
    t, _ = setup.loss.time_sampler(setup.model.sde, tau, u)
    assert np.all(t >= tau) and np.all(x >= -1) and np.all(x <= 1)


@pytest.mark.parametrize("mixed", [False, True])
def test_stratified_times(digits, mixed):
    """One u in each of n equal parts of every share with a τ, one τ in each part of its prior, both still uniform."""
    more = dict(training__mixed=True, training__likelihood_weighting=False) if mixed else {}
    setup = setup_on(8, training__stratified=True, training__tau_groups=4, training__batch_size=32, **more)

    @jax.jit
    def draws(count):
        inputs = step.draw(setup, jnp.asarray(digits[:32]), jax.random.fold_in(jax.random.key(0), count))
        return inputs["u"].reshape(4, 8), setup.truncation.cdf(inputs["tau"].reshape(4, 8)[:, 0])

    u, v = (np.asarray(a) for a in jax.vmap(draws)(jnp.arange(300)))
    np.testing.assert_array_equal(np.sort(np.floor(8 * u)), np.broadcast_to(np.arange(8), u.shape))
    np.testing.assert_array_equal(np.sort(np.floor(4 * v + 1e-4)), np.broadcast_to(np.arange(4), v.shape))
    for sample in (u[:, :, 0], u[:, 2], v[:, 1]):  # a fixed place is uniform
        assert stats.kstest(sample.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:, 0, 0], u[:, 1, 0])[0, 1]) < 0.2  # shares are independent
    plain = step.draw(setup_on(8), jnp.asarray(digits[:16]), jax.random.key(0))["u"]
    assert len(np.unique(np.floor(16 * plain))) < 16


def test_nelbo_of_held_out_images(digits):
    """In bits/dim, whatever the loss, and on any number of devices: that of a score which is exact, in closed form."""
    values, images, u = [], jnp.asarray(digits[:16]), (jnp.arange(16) + 0.5) / 16
    for devices, more in ((1, {}), (8, {}), (1, dict(training__mixed=True, training__likelihood_weighting=False))):
        setup = setup_on(devices, **more)
        params = jax.jit(setup.create)(jax.random.key(0)).ema
        values.append(float(step.jitted_nelbo(setup)(params, images, u, jax.random.key(1))))
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    # a network of zeros predicts no noise: KL of x_T, Z ½ E‖z‖² and the reconstruction with the decoder x_ε/α
    setup = setup_on(1)
    zero = jax.tree.map(jnp.zeros_like, jax.jit(setup.create)(jax.random.key(0)).ema)
    many, sde = jnp.asarray(digits[:128]), setup.model.sde
    found = float(step.jitted_nelbo(setup)(zero, many, (jnp.arange(128) + 0.5) / 128, jax.random.key(2)))
    ends = sde.logsnr(jnp.array([sde.eps, sde.T]))
    x = 2 * (np.asarray(many, np.float64) + 0.5) / 17 - 1
    alpha2, sigma2 = float(sde.alpha(sde.T)) ** 2, float(sde.sigma(sde.T)) ** 2
    square = np.mean(x**2) + (2 / 17) ** 2 / 12
    prior = 0.5 * (alpha2 * square + sigma2 - 1 - math.log(sigma2))
    eps = jnp.full(1, sde.eps)
    log_std = float(jnp.log(sde.sigma(eps) / sde.alpha(eps))[0])
    # the entropy of x_ε cancels between the bound and the reconstruction
    nats = prior + 0.5 * float(ends[0] - ends[1]) + log_std + 0.5 * math.log(2 * math.pi) + 0.5
    assert found == pytest.approx(nats / math.log(2) + math.log2(17 / 2), abs=0.08)


def created(setup):
    return jax.jit(setup.create, out_shardings=setup.state_shardings)(jax.random.key(0))


def run(digits, devices, fsdp=1, several=False, **more):
    """Losses and gradient norms of six steps, and the state after them."""
    settings = dict(training__tau_groups=8, optim__warmup=2, optim__lr=1e-3, model__ema_rate=0.5)
    setup = setup_on(devices, fsdp, **settings | more)
    current = created(setup)
    key, batches = jax.random.key(1), digits[:96].reshape(6, 16, 8, 8, 1)
    if several:
        current, metrics = step.jitted(setup, True)(current, batches, key)
    else:
        one, parts = step.jitted(setup), []
        for batch in batches:
            current, part = one(current, batch, key)
            parts.append(part)
        metrics = jax.tree.map(lambda *a: np.stack(a), *parts)
    return np.stack([metrics["loss"], metrics["gradient_norm"]]), current, setup


@pytest.fixture(scope="module")
def alone(digits):
    return run(digits, 1)


@pytest.mark.parametrize(
    "division",
    [
        dict(devices=2, optim__num_micro_batch=2, training__remat="elementwise"),
        dict(devices=8, several=True),
        dict(devices=8, fsdp=4, optim__num_micro_batch=2, training__remat="blocks"),
    ],
)
def test_the_curve_is_that_of_one_device(digits, alone, division):
    """To rounding: devices, micro-batches, shares of the state, what is computed again, and steps a dispatch."""
    curve, after, _ = alone
    found, current, setup = run(digits, **division)
    np.testing.assert_allclose(found, curve, rtol=2e-4)
    average = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(after.ema)])
    again = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(current.ema)])
    start = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(created(setup).ema)])
    assert np.linalg.norm(again - average) < 0.01 * np.linalg.norm(average - start)
    if "fsdp" in division:
        moments = current.opt_state[1][1].mu["all_modules_7"]["Conv_0"]["kernel"]
        assert math.prod(moments.sharding.shard_shape(moments.shape)) == moments.size / 4
        evaluate = lambda current, setup: step.jitted_eval_loss(setup)(current.ema, digits[:16], jax.random.key(2))
        assert float(evaluate(current, setup)) == pytest.approx(float(evaluate(after, alone[2])), rel=1e-3)


def test_on_a_cpu_no_loop_holds_a_gradient(digits):
    """There it would be 15 times slower; several steps per dispatch are the same program, called several times."""
    setup = setup_on(1, optim__num_micro_batch=2, training__n_jitted_steps=3)
    images, key = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.uint8), jax.eval_shape(jax.random.key, 0)
    program = step.jitted(setup).lower(setup.abstract_state, images, key).as_text()
    loops = [line for line in program.splitlines() if "stablehlo.while(" in line]  # those of random numbers
    assert loops and not any("tensor<3x3x" in line for line in loops)
    steps = loop.compiled_steps(setup)
    batches, key = list(digits[:48].reshape(3, 16, 8, 8, 1)), jax.random.key(1)
    together, metrics = steps(created(setup), batches, key)
    alone = created(setup)
    for batch in batches:
        alone, last = steps(alone, [batch], key)
    jax.tree.map(np.testing.assert_array_equal, together, alone)
    assert metrics["loss"].shape == (3,) and metrics["loss"][2] == last["loss"]


def test_dropout_is_that_of_one_device():
    mesh, x = sharding.mesh(2), jnp.ones((16, 4, 4, 3))
    drop = lambda x: Dropout(0.25).apply({}, x, rngs={"dropout": jax.random.key(0)})
    share = P(sharding.AXES)
    divided = jax.jit(jax.shard_map(drop, mesh=mesh, in_specs=share, out_specs=share, check_vma=False))(x)
    np.testing.assert_array_equal(divided, drop(x))
    assert abs(np.mean(divided == 0) - 0.25) < 0.05 and len(np.unique(divided, axis=0)) == 16
    np.testing.assert_allclose(np.unique(divided), [0, 4 / 3])


def test_bfloat16_is_near_and_sums_as_asked(digits, alone):
    found, current, _ = run(digits, 2, training__dtype="bfloat16")
    np.testing.assert_allclose(found[0], alone[0][0], rtol=2e-2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((current.params, current.ema)))
    images, key = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.uint8), jax.eval_shape(jax.random.key, 0)
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        setup = setup_on(8, training__dtype="bfloat16", training__reduce_dtype=dtype)
        program = step.jitted(setup).lower(setup.abstract_state, images, key).as_text()
        assert "optimization_barrier" in program
        sums = re.findall(r"stablehlo\.all_reduce.*?\(tensor<([^>]*)>\) ->", program, re.DOTALL)
        kernels = [kind.split("x")[-1] for kind in sums if kind.count("x") == 4]
        assert len(kernels) >= 8 and set(kernels) == {short}


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(training__fsdp=3), "training.fsdp=3: should divide the number of devices, 8"),
        (dict(training__dtype="float16"), "training.dtype: unknown 'float16'; choose from float32, bfloat16"),
        (dict(training__remat="all"), "training.remat: unknown 'all'; choose from none, elementwise, blocks"),
        (dict(training__n_jitted_steps=0), "training.n_jitted_steps=0: should be 1 or more"),
        (dict(training__averages=1300002), "training.averages=1300002: should be at most 10,000"),
    ],
)
def test_impossible_settings(settings, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        c = tiny(**settings)
        step.from_config(c, sharding.mesh(c.training.fsdp))
