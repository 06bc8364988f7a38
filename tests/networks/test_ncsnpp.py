"""NCSN++ against the official outputs, and whether each option has its effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.official import family, relative_error

from score_st import config, networks
from score_st.networks import layers
from score_st.networks.ncsnpp import NCSNpp


@pytest.mark.parametrize("name", ["a", "c", "g"])
def test_official_outputs(name):
    """Families a (DDPM++), c (UNCSN++, FIR, residual input) and g (256 pixels, input and output skip)."""
    _, model, params, arrays = family(name)
    x, t = jnp.asarray(arrays["x"]), jnp.asarray(arrays["t"])
    time_cond = model.parametrization.time_conditioning(t)
    np.testing.assert_allclose(time_cond, arrays["label"], rtol=1e-6)
    output = jax.jit(model.apply(params), static_argnums=2)(x, time_cond, None)
    assert relative_error(output, arrays["model_out_raw"]) < 5e-5
    # the official score divides by its own float32 σ, 0.9 % off at t = 1e-5
    output_scale = model.parametrization.output_scale
    scale = output_scale(t) if output_scale else jnp.ones_like(t)
    if name == "a":
        np.testing.assert_allclose(scale, -1 / arrays["std"], rtol=1e-2)
        scale = -1 / arrays["std"]
    assert relative_error(output * scale[:, None, None, None], arrays["score_raw"]) < 1e-4


def test_official_output_in_float64():
    """The error that remains is PyTorch's float32 rounding."""
    _, model, params, arrays = family("a")
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)
        network = model.network.clone(dtype=jnp.float64)
        output = jax.jit(network.apply)({"params": wide(params)}, wide(arrays["x"]), wide(arrays["label"]))
        assert output.dtype == jnp.float64
    assert relative_error(output, arrays["model_out_raw"]) < 5e-6


def test_bfloat16_is_close_to_float32():
    _, model, params, arrays = family("a")
    model = dataclasses.replace(model, network=model.network.clone(dtype=jnp.bfloat16))
    apply = jax.jit(model.apply(params), static_argnums=2)
    output = apply(jnp.asarray(arrays["x"]), jnp.asarray(arrays["label"]), None)
    assert output.dtype == jnp.float32
    assert 1e-5 < relative_error(output, arrays["model_out_raw"]) < 0.05


OPTIONS = [
    dict(resblock_type="ddpm", resamp_with_conv=False, skip_rescale=False),
    dict(resblock_type="ddpm", fir=True, progressive="residual", progressive_input="residual"),
    dict(progressive="output_skip", progressive_input="input_skip", progressive_combine="cat", fir=True),
    dict(progressive="residual", progressive_input="input_skip"),
    dict(auxiliary_resblock=False, attention=False, nonlinearity="elu"),
    dict(conditional=False, fourier_feature=True, nonlinearity="lrelu"),
    dict(embedding_type="positional", lsgm=True, embedding_dim=6, scale_by_sigma=True),
    dict(resblock_type="ddpm", attention_each=True, num_groups=2, center_input=False),
]


def small_network(**options) -> NCSNpp:
    settings = config.default()
    settings.model.update(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), init_scale=1.0)
    settings.model.update(options)
    settings.data.update(image_size=8)
    return networks.from_config(settings)


def random_params(network, x, time_cond):
    """Random parameters, without compiling an initialization."""
    shapes, rng = jax.eval_shape(network.init, jax.random.key(0), x, time_cond)["params"], np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / max(a.size, 9) ** 0.25, a.dtype), shapes)


CASES = [pytest.param(o, marks=[pytest.mark.slow] * (i % 3 > 0), id="-".join(o)) for i, o in enumerate(OPTIONS)]


@pytest.mark.parametrize("options", CASES)
def test_every_option_has_an_effect(options):
    """Every trainable parameter gets a gradient, and the output depends on the time if it should."""
    network = small_network(**options)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    time_cond = jnp.array([2.0, 300.0])
    params = random_params(network, x, time_cond)
    function = lambda p, time_cond: jnp.mean(jnp.sin(network.apply({"params": p}, x, time_cond)))
    run = jax.jit(jax.value_and_grad(function))
    (output, gradient), (later_output, _) = run(params, time_cond), run(params, time_cond * 1.1)
    trained = jax.tree.map(lambda g: bool(np.any(np.asarray(g))), gradient)
    assert trained == networks.trainable(network, params)
    assert bool(later_output != output) == (network.conditional or network.scale_by_sigma)


def test_class_embedding():
    """The row of the class times √3, and the bias; no class is the bias alone. Training drops 3 in 10 classes."""
    rng, labels = np.random.default_rng(0), np.array([2, -1, 0])
    kernel, bias = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    params = {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}
    apply = layers.ClassEmbedding(3, 0.3, 5).apply
    expected = np.stack([kernel[2] * 3**0.5, np.zeros(5), kernel[0] * 3**0.5]) + bias
    np.testing.assert_allclose(apply(params, labels, jnp.float32, False), expected, rtol=1e-6)
    many = apply(params, np.full(2000, 1), jnp.float32, True, rngs={"dropout": jax.random.key(0)})
    dropped = np.isclose(many, bias).all(1)
    assert abs(dropped.mean() - 0.3) < 4 * (0.21 / 2000) ** 0.5
    np.testing.assert_allclose(
        many[~dropped], np.broadcast_to(kernel[1] * 3**0.5 + bias, many[~dropped].shape), rtol=1e-5
    )


def test_the_class_changes_the_output():
    """Each class its own; without labels it is that of no class."""
    network = small_network(num_classes=3, ch_mult=(1,), attention=False)
    x, time_cond = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 8, 8, 3)), (4, 8, 8, 3)), jnp.full(4, 2.0)
    params = {"params": random_params(network, x, time_cond)}
    run = jax.jit(lambda labels: network.apply(params, x, time_cond, labels=labels))
    outputs = run(jnp.array([0, 1, 2, -1]))
    assert len({round(float(output.sum()), 3) for output in outputs}) == 4
    np.testing.assert_allclose(network.apply(params, x[:1], time_cond[:1])[0], outputs[3], atol=1e-5)
    with pytest.raises(config.ConfigError, match="num_classes=3: conditional=False has no embedding"):
        small_network(num_classes=3, conditional=False)
    with pytest.raises(config.ConfigError, match="nf=8: the channels, .*; 10 would do"):
        small_network(num_groups=5)


@pytest.mark.parametrize("embedding_type", ["fourier", "positional"])
def test_scale_by_sigma(embedding_type):
    """Divides by the time conditioning (fourier), or by its entry in the descending table of σ (positional)."""
    time_cond = jnp.array([2.0, 0.5])
    levels = np.exp(np.linspace(np.log(50), np.log(0.01), 1000))
    divisor = time_cond if embedding_type == "fourier" else levels[[2, 0]]
    plain, scaled = (
        small_network(embedding_type=embedding_type, scale_by_sigma=flag, ch_mult=(1,), attention=False)
        for flag in (False, True)
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params = {"params": random_params(plain, x, time_cond)}
    both = jax.jit(lambda *inputs: (plain.apply(*inputs), scaled.apply(*inputs)))
    output, scaled_output = both(params, x, time_cond)
    np.testing.assert_allclose(scaled_output, output / np.reshape(divisor, (2, 1, 1, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model.nf", 3, r"nf=3: the channels, \[1, 2, 3, 4\] times nf .*, can't be normalized in groups; 4 would do"),
        ("model.nf", 132, "can't be normalized in groups; 160 would do"),
        (
            "data.image_size",
            30,
            r"of 8, such as 32; framing the images to 32, cropping them to 24, or model.ch_mult=\(1, 2\) ",
        ),
        (
            "data.image_size",
            28,
            r"a multiple of 8, such as 32; .* cropping them to 24, or model.ch_mult=\(1, 2, 2\) would",
        ),
        (
            "data.image_size",
            7,
            r"a multiple of 8, such as 8; framing the images to 8, or model.ch_mult=\(1,\) would do",
        ),
        ("model.auxiliary_resblock", False, "needs resblock_type=biggan"),
    ],
)
def test_impossible_networks_are_refused(key, value, message):
    settings = config.default()
    settings.model.update(progressive_input="residual")
    section, name = key.split(".")
    settings[section][name] = value
    with pytest.raises(config.ConfigError, match=message):
        networks.from_config(settings)
