"""The networks against the official ones, and against what their parts should compute."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.official import family, relative_error

from score_st import config, networks
from score_st.model import DiffusionModel
from score_st.networks import layers, resample


@pytest.mark.parametrize("name", ["a", "c", "g"])
def test_official_outputs(name):
    """Families a (DDPM++), c (UNCSN++, FIR, residual input) and g (256 pixels, input and output skip)."""
    _, made, params, arrays = family(name)
    x, t = jnp.asarray(arrays["x"]), jnp.asarray(arrays["t"])
    time_cond = made.parametrization.time_conditioning(t)
    np.testing.assert_allclose(time_cond, arrays["label"], rtol=1e-6)
    output = jax.jit(made.apply(params), static_argnums=2)(x, time_cond, None)
    assert relative_error(output, arrays["model_out_raw"]) < 5e-5
    # the official score divides by its own float32 σ, 0.9 % off at t = 1e-5
    scale = made.parametrization.output_scale(t)
    if name == "a":
        np.testing.assert_allclose(scale, -1 / arrays["std"], rtol=1e-2)
        scale = -1 / arrays["std"]
    assert relative_error(output * scale[:, None, None, None], arrays["score_raw"]) < 1e-4


def test_official_output_in_float64():
    """What is left is PyTorch's float32 rounding."""
    _, made, params, arrays = family("a")
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)
        network = made.network.clone(dtype=jnp.float64)
        output = jax.jit(network.apply)({"params": wide(params)}, wide(arrays["x"]), wide(arrays["label"]))
        assert output.dtype == jnp.float64
    assert relative_error(output, arrays["model_out_raw"]) < 5e-6


def test_parameter_counts_are_the_official_ones():
    """Of full-size networks; NCSN++ has 128 fixed frequencies besides what is trained."""
    shared = dict(nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=4)
    cases = [
        (dict(embedding_type="positional", **shared), 61804419),
        (
            dict(embedding_type="fourier", progressive_input="residual", fir=True, scale_by_sigma=True, **shared),
            62758915,
        ),
        (dict(embedding_type="positional", **(shared | dict(num_res_blocks=8))), 106632579),
        (
            dict(
                embedding_type="positional", lsgm=True, embedding_dim=128, nf=512, ch_mult=(1, 1, 1), num_res_blocks=8
            ),
            373929475,
        ),
    ]
    for options, count in cases:
        c = config.default()
        c.model.update(options)
        params = DiffusionModel.from_config(c).abstract_params
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def upfirdn(x, kernel, up, down, pad):
    """The definition, in one loop: zeros between samples, padding, convolution, every `down`-th sample."""
    b, h, w, c = x.shape
    wide = np.zeros((b, h * up, w * up, c))
    wide[:, ::up, ::up] = x
    wide = np.pad(wide, ((0, 0), pad, pad, (0, 0)))
    k = np.outer(kernel, kernel)[::-1, ::-1]
    n = len(kernel)
    rows, columns = (s - n + 1 for s in wide.shape[1:3])
    out = sum(k[i, j] * wide[:, i : i + rows, j : j + columns] for i in range(n) for j in range(n))
    return out[:, ::down, ::down]


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 5, 1), (1, 1), (1, 4, 6, 4, 1, 2)])
def test_fir_resampling_is_its_definition(kernel):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    unit, excess = np.array(kernel) / np.sum(kernel), len(kernel) - 2
    up = upfirdn(x, unit * 2, 2, 1, ((excess + 1) // 2 + 1, excess // 2))
    np.testing.assert_allclose(resample.upsample_fir(x, kernel), up, atol=1e-6)
    down = upfirdn(x, unit, 1, 2, ((excess + 1) // 2, excess // 2))
    np.testing.assert_allclose(resample.downsample_fir(x, kernel), down, atol=1e-6)


def test_fused_convolutions_are_filter_and_convolution():
    """In the interior, convolving and filtering commute."""
    rng = np.random.default_rng(0)
    x = np.pad(rng.normal(size=(1, 4, 4, 2)), ((0, 0), (6, 6), (6, 6), (0, 0))).astype(np.float32)
    weight, kernel = rng.normal(size=(3, 3, 2, 5)).astype(np.float32), (1, 3, 3, 1)
    plain = lambda x, strides: jax.lax.conv_general_dilated(
        x, weight, strides, "SAME", dimension_numbers=resample.DIMENSIONS
    )
    up = resample.upsample_conv(x, weight, kernel)
    np.testing.assert_allclose(up, plain(resample.upsample_fir(x, kernel), (1, 1)), atol=1e-5)
    # filtered first, every second pixel then: the filter without decimation, its 3x3 neighbourhoods at odd offsets
    unit = np.array(kernel) / np.sum(kernel)
    full = upfirdn(x, unit, 1, 1, (2, 2)).astype(np.float32)
    wanted = jax.lax.conv_general_dilated(full, weight, (2, 2), "VALID", dimension_numbers=resample.DIMENSIONS)
    np.testing.assert_allclose(resample.conv_downsample(x, weight, kernel), wanted, atol=1e-5)
    assert resample.conv_downsample(x, weight, kernel).shape == (1, 8, 8, 5)


def test_naive_resampling():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(resample.downsample_naive(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(resample.downsample_naive(resample.upsample_naive(x)), x)


def test_embeddings():
    time_cond = jnp.array([0.0, 1.0, 999.0])
    embedding = layers.positional_embedding(time_cond, 9)
    frequencies = 10000 ** (-np.arange(4) / 3)
    exact = np.concatenate(
        [np.sin(time_cond[:, None] * frequencies), np.cos(time_cond[:, None] * frequencies)], axis=1
    )
    np.testing.assert_allclose(embedding[:, :8], exact, atol=1e-4)
    assert np.all(embedding[:, 8] == 0)
    x = jnp.full((1, 1, 1, 1), 0.3)
    wanted = [0.3] + [f(k * np.pi * 0.3) for k in (128, 256) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(layers.fourier_features(x).ravel(), wanted, atol=1e-4)


OPTIONS = [
    dict(resblock_type="ddpm", resamp_with_conv=False, skip_rescale=False),
    dict(resblock_type="ddpm", fir=True, progressive="residual", progressive_input="residual"),
    dict(progressive="output_skip", progressive_input="input_skip", progressive_combine="cat", fir=True),
    dict(progressive="residual", progressive_input="input_skip"),
    dict(auxiliary_resblock=False, attention=False, nonlinearity="elu"),
    dict(conditional=False, fourier_feature=True, nonlinearity="lrelu"),
    dict(embedding_type="positional", lsgm=True, embedding_dim=6, scale_by_sigma=True),
]


def option_network(options):
    c = config.default()
    c.model.update(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), init_scale=1.0)
    c.model.update(options)
    c.data.update(image_size=8)
    return c, networks.from_config(c)


def drawn(network, x, time_cond):
    """Parameters at random, without compiling an initialisation."""
    shapes, rng = jax.eval_shape(network.init, jax.random.key(0), x, time_cond)["params"], np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / max(a.size, 9) ** 0.25, a.dtype), shapes)


CASES = [pytest.param(o, marks=[pytest.mark.slow] * (i % 3 > 0), id="-".join(o)) for i, o in enumerate(OPTIONS)]


@pytest.mark.parametrize("options", CASES)
def test_every_option_takes_part(options):
    """Every parameter but the fixed frequencies gets a gradient, and the output depends on the time if it should."""
    c, network = option_network(options)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    time_cond = jnp.array([2.0, 300.0])
    params = drawn(network, x, time_cond)
    function = lambda p, time_cond: jnp.mean(jnp.sin(network.apply({"params": p}, x, time_cond)))
    run = jax.jit(jax.value_and_grad(function))
    (output, gradient), (moved, _) = run(params, time_cond), run(params, time_cond * 1.1)
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_flatten_with_path(gradient)[0]
        if not np.any(np.asarray(g))
    ]
    assert dead in ([], ["['all_modules_0']['W']"])
    assert bool(moved != output) == (c.model.conditional or c.model.scale_by_sigma)


def test_scale_by_sigma():
    """The output over the time_cond (fourier), or over the time_cond's entry of the descending table (positional)."""
    for options, divisor in (
        (dict(embedding_type="fourier"), [2.0, 0.5]),
        (dict(embedding_type="positional"), np.exp(np.linspace(np.log(50), np.log(0.01), 1000))[[2, 0]]),
    ):
        networks = [option_network(options | dict(scale_by_sigma=flag))[1] for flag in (False, True)]
        x, time_cond = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([2.0, 0.5])
        params = {"params": drawn(networks[0], x, time_cond)}
        plain, scaled = (jax.jit(network.apply)(params, x, time_cond) for network in networks)
        np.testing.assert_allclose(scaled, plain / np.reshape(divisor, (2, 1, 1, 1)), rtol=1e-5)


def test_bfloat16_is_close_to_float32():
    _, made, params, arrays = family("a")
    network = dataclasses.replace(made, network=made.network.clone(dtype=jnp.bfloat16))
    apply = jax.jit(network.apply(params), static_argnums=2)
    output = apply(jnp.asarray(arrays["x"]), jnp.asarray(arrays["label"]), None)
    assert output.dtype == jnp.float32
    assert 1e-5 < relative_error(output, arrays["model_out_raw"]) < 0.05


def test_impossible_networks_say_what_would_be_possible():
    for (key, value), message in itertools.zip_longest(
        [("model.progressive", "skip"), ("data.image_size", 30), ("model.auxiliary_resblock", False)],
        ["choose from none, output_skip, residual", "multiple of 8, such as 32", "needs resblock_type=biggan"],
    ):
        c = config.default()
        c.model.update(progressive_input="residual")
        section, name = key.split(".")
        c[section][name] = value
        with pytest.raises(config.ConfigError, match=message):
            networks.from_config(c)
