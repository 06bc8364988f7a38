"""Official checkpoints in, the same numbers out; files that don't fit are refused by name."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from support.official import (
    CIFAR10,
    FIXTURES,
    GivenTimes,
    OfficialVP,
    assert_same_content,
    converted,
    nhwc,
    official_content,
    overrides,
    tiny,
)

from score_st import config, networks
from score_st.config import ConfigError
from score_st.diffusion import parametrization
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.pytorch import parameter_map
from score_st.training import optimizer, state, step


def test_every_array_survives_the_round_trip(tmp_path):
    original = official_content()
    torch_file.write(tmp_path / "back.pth", torch_checkpoint.state_to_torch(converted(original), tiny()[0]))
    back = torch_file.read(tmp_path / "back.pth")
    expected = original["optimizer"]["param_groups"][0]
    group = back["optimizer"]["param_groups"][0]
    assert group == {key: expected[key] for key in group}
    for content in (original, back):
        del content["optimizer"]["param_groups"]
    assert_same_content({key: original[key] for key in back}, back)


def test_the_network_computes_what_the_official_one_does():
    golden = torch_checkpoint.read_golden(FIXTURES / "official_steps.npz", tiny()[0])
    errors = torch_checkpoint.compare(*tiny(), converted(official_content()), golden)
    assert list(errors) == ["model_out_raw", "score_raw", "model_out_ema", "score_ema"]
    assert all(error < 1e-5 for both in errors.values() for error in both.values()), errors


def test_training_continues_like_the_official_code(one_device):
    """Three more steps with the official random numbers: losses, parameters and EMA."""
    settings = config.load(CIFAR10, overrides(training__official_loss=True))
    setup = step.from_config(settings, one_device)
    form = parametrization.from_config(settings, OfficialVP())
    setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, sde=OfficialVP(), parametrization=form))
    official = np.load(FIXTURES / "official_steps.npz")
    start = converted(official_content())
    current = jax.device_put(start, setup.state_shardings)  # as the step returns it, so that one program serves all
    x = nhwc(2 * official["img"] - 1)

    @jax.jit
    def advance(current, t, weight, z):
        """A train step with the official times and weights, which float32 rounding moves."""
        sampler = GivenTimes(setup.loss.time_sampler, t, jnp.full(4, weight))
        loss = dataclasses.replace(setup.loss, sde=OfficialVP(), time_sampler=sampler)
        official_setup = dataclasses.replace(setup, loss=loss)
        inputs = {"x": x, "tau": jnp.ones(4), "u": t, "z": z, "z_rec": z}
        gradient_of = step.on_devices(step.gradient_of_share, official_setup, 2)
        loss, gradient = gradient_of(current.params, inputs, jax.random.key(0))
        return state.update(current, gradient, setup.optimizer, setup.ema_rate), loss

    for i in range(3):
        tau = setup.truncation.quantile(jnp.float32(official["u_tau"][i]))
        t, weight = setup.loss.time_sampler(setup.model.sde, jnp.full(4, tau), jnp.asarray(official["u"][i]))
        np.testing.assert_allclose(weight, official["Z"][i], rtol=3e-3)
        logsnr = setup.model.sde.logsnr
        np.testing.assert_allclose(logsnr(t), logsnr(jnp.asarray(official["times"][i])), atol=0.2)
        current, loss = advance(current, official["times"][i], official["Z"][i], nhwc(official["z"][i]))
        assert float(loss) == pytest.approx(official["losses"][i].mean(), rel=1e-5)
    slots = parameter_map.layout(current.params)
    flat = lambda tree: np.concatenate([tensor.ravel() for tensor in parameter_map.from_flax(slots, tree)])
    for name, ours, before in (("params", current.params, start.params), ("ema", current.ema, start.ema)):
        moved = np.abs(official[f"final_{name}"] - flat(before)).max()
        np.testing.assert_allclose(flat(ours), official[f"final_{name}"], atol=2e-3 * moved)
    assert int(current.step) == int(current.ema_updates) == 6


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_half_and_double_precision(tmp_path, dtype):
    torch_file.write(
        tmp_path / "other.pth", official_content(lambda a: a.astype(dtype) if a.dtype == np.float32 else a)
    )
    ours = converted(torch_file.read(tmp_path / "other.pth"))
    rounded = official_content(lambda a: a.astype(dtype).astype(np.float32) if a.dtype == np.float32 else a)
    chex.assert_trees_all_equal(ours, converted(rounded))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours.params)} == {np.dtype(np.float32)}


def test_forms_of_checkpoints():
    """Without "module.", without optimizer or EMA, the tensors alone, and big-endian or strided tensors."""
    content, complete = official_content(), converted(official_content())
    bare = content | {"model": {key.removeprefix("module."): value for key, value in content["model"].items()}}
    chex.assert_trees_all_equal(converted(bare), complete)
    alone = converted(bare["model"])
    chex.assert_trees_all_equal((alone.params, alone.ema), (complete.params, complete.params))
    assert alone.step == alone.ema_updates == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(alone.opt_state))
    without_optimizer = converted({key: content[key] for key in ("model", "ema", "step")})
    chex.assert_trees_all_equal(without_optimizer.ema, complete.ema)
    counts = [int(leaf) for leaf in jax.tree.leaves(without_optimizer.opt_state) if leaf.ndim == 0]
    assert without_optimizer.step == 3 and counts == [0, 3]
    odd = official_content(lambda a: np.asfortranarray(a).astype(a.dtype.newbyteorder(">")))
    chex.assert_trees_all_equal(converted(odd), complete)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_noise_levels_of_half_precision(dtype):
    """As `.half()` and `.bfloat16()` leave them: rounded, like everything else."""
    complete = converted(official_content())
    content = official_content(lambda a: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a)
    assert content["model"]["module.sigmas"].dtype == dtype
    chex.assert_trees_all_close(
        converted(content).params, complete.params, rtol=2 * float(ml_dtypes.finfo(dtype).eps), atol=1e-7
    )
    content["model"]["module.sigmas"] = (content["model"]["module.sigmas"] * 1.1).astype(dtype)
    with pytest.raises(ConfigError, match=r"sigmas \[1000\] goes from 5[45]") as error:
        converted(content)
    flags = re.findall(r"--config\.(\S+)=(\S+)", str(error.value))
    assert [key for key, _ in flags] == ["model.sigma_max", "model.sigma_min", "model.num_scales"]
    settings = config.load(CIFAR10, overrides() | dict(flags))
    torch_checkpoint.state_from_torch(content, settings, DiffusionModel.from_config(settings))


def test_advice_about_noise_levels_is_left_out_where_none_would_fit():
    content = official_content()
    levels = content["model"]["module.sigmas"]
    content["model"]["module.sigmas"] = np.linspace(levels[0], levels[-1], len(levels))
    with pytest.raises(ConfigError, match=r"the configuration's \[1000\] from 50 to 0.01$"):
        converted(content)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_of_torch_compile(prefix):
    content = official_content()
    model = {prefix + name.removeprefix("module."): value for name, value in content["model"].items()}
    chex.assert_trees_all_equal(converted(content | {"model": model}), converted(content))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_ema_and_optimizer_leave_out_fixed_frequencies(tmp_path, name):
    """NCSN++ has one tensor that is not trained; the official lists skip it."""
    settings = config.load("ve/CIFAR10/uncsnpp_st", overrides(optim__optimizer=name))
    model, rng = DiffusionModel.from_config(settings), np.random.default_rng(0)
    abstract = state.abstract(model, optimizer.optimizer_from_config(settings, model.network))
    start = jax.tree.map(lambda a: rng.random(a.shape, np.float32) if a.ndim else np.int32(9), abstract)
    slots = parameter_map.layout(start.params)
    fixed = [index for index, slot in enumerate(slots) if not slot.trainable]
    assert [slots[index].name for index in fixed] == ["all_modules.0.W"]
    torch_file.write(tmp_path / "new.pth", torch_checkpoint.state_to_torch(start, settings))
    content = torch_file.read(tmp_path / "new.pth")
    assert set(content["optimizer"]["state"]) == set(range(len(slots))) - set(fixed)
    assert content["optimizer"]["param_groups"][0]["betas"][1] == {"Adam": 0.999, "AdamW": 0.99}[name]
    assert len(content["ema"]["shadow_params"]) == len(slots) - 1
    back = torch_checkpoint.state_from_torch(content, settings, model)
    frequencies = lambda params: params["all_modules_0"].pop("W")
    np.testing.assert_array_equal(frequencies(back.ema), start.params["all_modules_0"]["W"])
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)
    for current in (back, start):
        (adam,) = [part for part in jax.tree.leaves(current.opt_state, is_leaf=is_adam) if is_adam(part)]
        moments = [frequencies(adam.mu), frequencies(adam.nu)]
        assert current is start or not np.any(moments)
    frequencies(start.ema)
    chex.assert_trees_all_equal(back, start)


class OtherNetwork(nn.Module):
    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        return nn.Dense(x.shape[-1])(x)


@pytest.mark.parametrize(
    "table, entry, key, message",
    [
        (networks.NETWORKS, lambda settings: OtherNetwork(), "model__name", "only NCSN.. networks can be converted"),
        (
            optimizer.OPTIMIZERS,
            lambda optim, lr, mask: optax.sgd(lr),
            "optim__optimizer",
            "only Adam and AdamW can be converted",
        ),
    ],
    ids=["network", "optimizer"],
)
def test_networks_and_optimizers_of_a_user_are_not_converted(table, entry, key, message):
    table["other"] = entry
    try:
        settings = config.load(CIFAR10, overrides(**{key: "other"}))
        model = DiffusionModel.from_config(settings)
        with pytest.raises(ConfigError, match=f"=other: {message}"):
            torch_checkpoint.state_from_torch(official_content(), settings, model)
        with pytest.raises(ConfigError, match=f"=other: {message}"):
            torch_checkpoint.state_to_torch(converted(official_content()), settings)
    finally:
        del table["other"]


@pytest.mark.parametrize("key, value", [("parametrization", "edm"), ("time_conditioning", "log_noise_level")])
def test_networks_that_the_official_code_has_not_are_not_converted(key, value):
    settings = config.load(CIFAR10, {f"model.{key}": value})
    model = DiffusionModel.from_config(settings)
    message = f"model.{key}={value}: only official networks can be converted; should be empty"
    with pytest.raises(ConfigError, match=message):
        torch_checkpoint.state_from_torch(official_content(), settings, model)
    with pytest.raises(ConfigError, match=message):
        torch_checkpoint.state_to_torch(converted(official_content()), settings)


def test_a_parametrization_with_a_skip_is_not_compared():
    settings, model = tiny()
    form = dataclasses.replace(model.parametrization, skip=jnp.zeros_like)
    with pytest.raises(ConfigError, match="no skip to compare with"):
        torch_checkpoint.compare(
            settings, dataclasses.replace(model, parametrization=form), converted(official_content()), {}
        )


WEIGHT = "module.all_modules.3.Conv_0.weight"
DELETED = object()


def edited(*path: Any, value: Any) -> Any:
    """The official content with another value at a path, or without it."""
    content = node = official_content()
    for key in path[:-1]:
        node = node[key]
    if value is DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


def bad_contents() -> Iterator[tuple[Any, str]]:
    """Contents, and part of the message that refuses them."""
    weight = functools.partial(edited, "model", WEIGHT)
    levels = functools.partial(edited, "model", "module.sigmas")
    adam = ("optimizer", "state", 7)
    sample = official_content()["model"][WEIGHT]
    shadow = official_content()["ema"]["shadow_params"]
    float_message = "should have finite floating-point numbers"
    yield weight(value=DELETED), f"{WEIGHT[7:]} of a residual block is missing, and should be [4, 4, 3, 3]"
    yield (
        edited("model", "extra", value=sample),
        "extra of no known module [4, 4, 3, 3] is surplus; no single setting explains it",
    )
    yield weight(value=sample[:2]), "is [2, 4, 3, 3], and should be [4, 4, 3, 3]; no single setting"
    yield weight(value=np.full_like(sample, np.nan)), f"{WEIGHT[7:]} {float_message}"
    yield weight(value=np.zeros(sample.shape, np.int64)), float_message
    yield weight(value="text"), "is not a tensor"
    yield levels(value=DELETED), "sigmas [1000], the network's noise levels, is missing"
    yield levels(value=np.geomspace(90, 0.01, 500)), "--config.model.sigma_max=90"
    yield (
        edited("ema", "shadow_params", value=shadow[1:]),
        f"the EMA has {len(shadow) - 1} tensors, and the network",
    )
    yield (
        edited("ema", "shadow_params", 2, value=np.zeros((1, 2), np.float32)),
        "the EMA of all_modules.1.weight should",
    )
    yield edited("ema", "num_updates", value=-1), "'num_updates' of the EMA should be a whole number"
    yield edited("step", value="3"), "'step' should be a whole number"
    yield edited("epoch", value=3), "epoch is surplus"
    yield edited("optimizer", "param_groups", value=[]), "the optimizer has groups of []"
    yield edited(*adam, "exp_avg", value=None), "exp_avg of the optimizer's state of all_modules.3.GroupNorm_0.bias"
    yield edited(*adam, "max_exp_avg_sq", value=sample), "should be exp_avg, exp_avg_sq and step"
    yield (
        edited(*adam, "step", value=np.array(9, np.float32)),
        "the optimizer's steps differ between tensors, from 3 to 9",
    )
    yield edited("optimizer", "state", value={0: {}}), "the optimizer's state of"
    yield edited(*adam, "exp_avg_sq", value=np.full(4, -1, np.float32)), "has negative numbers"
    yield {"weights": 1}, "weights is surplus"
    yield {}, "'model', the network's tensors, is missing"
    yield [1, 2], "is not a dictionary"


@pytest.mark.parametrize(
    "content, message", list(bad_contents()), ids=lambda value: value[:30] if isinstance(value, str) else ""
)
def test_every_tensor_is_accounted_for(content, message):
    with pytest.raises(ConfigError) as error:
        converted(content)
    assert message in str(error.value) and "\n" not in str(error.value)
