"""The configuration files: every key against the official one, the sizes of their networks, their docstrings.

Fixtures: `official_configs.json` has all keys of the 33 official files of Soft Truncation, `score_sde_configs.json`
those of score_sde_pytorch's continuous NCSN++ and DDPM++. `param_counts.json` has the numbers of parameters of the
networks that their code builds. The official code does not know the SDE that nine of its files name; for these the
network was built with another SDE's name, on which it does not depend.
"""

import ast
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from score_st import networks
from score_st.config import default, flatten, load
from score_st.diffusion import losses, parametrization, samplers, sde, truncation
from score_st.training import optimizer

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FIXTURES = Path(__file__).parent / "fixtures"

OFFICIAL = json.loads((FIXTURES / "official_configs.json").read_text())
SCORE_SDE = json.loads((FIXTURES / "score_sde_configs.json").read_text())
COUNTS = json.loads((FIXTURES / "param_counts.json").read_text())
ALL = tuple(str(path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob("*.py")))

# the configurations in the commands of the official README
README = (
    "vp/CIFAR10/ddpmpp_nll_st.py",
    "vp/CIFAR10/ddpmpp_fid_st_deepest.py",
    "ve/CIFAR10/uncsnpp_st.py",
    "vp/CELEBA/ddpmpp_nll_st.py",
    "vp/CELEBA/ddpmpp_fid_st.py",
    "ve/CELEBA/uncsnpp_st.py",
    "vp/IMAGENET32/ddpmpp_st.py",
    "ve/celebahq/uncsnpp_st.py",
)

RENAMED = {"uncsn.eta": "training.eta"}

# the nine files that name the SDE 'rve-sde'
RVE_SDE = (
    "ve/bedroom_uncsn.py",
    "ve/celebahq_256_uncsn.py",
    "ve/church_uncsn.py",
    "ve/cifar10_uncsn_1e-3.py",
    "ve/cifar10_uncsn_deep_1e-3_mid.py",
    "ve/cifar10_uncsn_deep_1e-5.py",
    "ve/cifar10_uncsn_deep_1e-5_mid.py",
    "ve/ffhq_1024_uncsn.py",
    "ve/ffhq_256_uncsn.py",
)
RVE = (*RVE_SDE, "ve/CELEBA/uncsnpp_st.py", "ve/CIFAR10/uncsnpp_st.py")
EVERY = None  # every configuration whose official file has the key

# (key, configurations, reason): where a value differs from the official one, or the official file lacks the key
DEVIATIONS = (
    ("device", EVERY, "JAX finds the devices"),
    (
        "training.sde",
        RVE_SDE,
        "'rve-sde' is an earlier name of reciprocal_vesde, which the official code does not know",
    ),
    ("training.k", RVE, "not set there; the prior of RVE is uniform in 1/τ, which is k = 2"),
    ("training.k", ("ve/CIFAR10/ncsnpp_st.py",), "not set there; its CelebA sibling has k = 2 for the same SDE"),
    ("training.num_train_data", EVERY, "counted from the data"),
    ("training.whatever_sampling", EVERY, "draws samples at startup; score_st.sample draws them at any time"),
    ("training.model_mode", EVERY, "has only one value, and is read only for an SDE that does not exist"),
    (
        "training.importance_sampling",
        ("ve/ffhq_1024_uncsn.py",),
        "not set there; NCSN++ of score_sde has uniform times",
    ),
    ("sampling.sample_more", EVERY, "score_st.sample --num sets the number"),
    ("sampling.batch_size", ("ve/ffhq_1024_uncsn.py",), "not set there; 1,024 images of 1024x1024 fit on no device"),
    ("eval.begin_ckpt", EVERY, "score_st.eval evaluates one checkpoint"),
    ("eval.end_ckpt", EVERY, "score_st.eval evaluates one checkpoint"),
    ("eval.enable_loss", EVERY, "training logs the loss on the test set"),
    ("eval.enable_sampling", EVERY, "score_st.sample is a command of its own"),
    ("eval.bpd_dataset", EVERY, "has only one value, test"),
    ("eval.num_test_data", EVERY, "the whole test set is evaluated"),
    ("eval.probability_flow", EVERY, "has only one value, True, which is eval.lambda_ = 0"),
    ("eval.nll_iter", EVERY, "0 evaluates nothing; 1 passes over the test set once"),
    ("eval.nelbo_iter", EVERY, "0 evaluates nothing; 1 passes over the test set once"),
    ("data.uniform_dequantization", EVERY, "now data.dequantization; False is none"),
    ("data.tfrecords_path", EVERY, "a path on the authors' machine; here relative to data.dir"),
    ("model.attention_type", EVERY, "has only one value, ddpm"),
    ("model.conv_size", EVERY, "has only one value, 3"),
    ("model.normalization", EVERY, "has only one value, GroupNorm"),
    ("model.sigma_begin", EVERY, "belongs to NCSN v1; nothing reads it"),
    ("optim.amsgrad", EVERY, "has only one value, False; nothing reads it"),
    ("uncsn.threshold", EVERY, "nothing reads it"),
)

VP = tuple(name for name in SCORE_SDE if not name.startswith("score_sde/ve/"))
LARGE = tuple(name for name in SCORE_SDE if "cifar10" not in name)
SCORE_SDE_DEVIATIONS = (
    ("training.importance_sampling", tuple(SCORE_SDE), "uniform times; the key came later"),
    ("sampling.truncation_time", VP, "1e-3 for VP and sub-VP, which its code sets"),
    ("sampling.batch_size", LARGE, "the defaults are for 32x32"),
    ("data.uniform_dequantization", EVERY, "now data.dequantization; False is none"),
    ("data.tfrecords_path", EVERY, "a path on the author's machine; here relative to data.dir"),
    ("eval.begin_ckpt", EVERY, "score_st.eval evaluates one checkpoint"),
    ("eval.end_ckpt", EVERY, "score_st.eval evaluates one checkpoint"),
    ("eval.enable_loss", EVERY, "training logs the loss on the test set"),
    ("eval.enable_sampling", EVERY, "score_st.sample is a command of its own"),
    ("eval.bpd_dataset", EVERY, "has only one value, test"),
    ("model.attention_type", EVERY, "has only one value, ddpm"),
    ("model.conv_size", EVERY, "has only one value, 3"),
    ("model.normalization", EVERY, "has only one value, GroupNorm"),
    ("optim.amsgrad", EVERY, "has only one value, False"),
)


def tuples(value):
    return tuple(value) if isinstance(value, list) else value


def differing(name: str, official: dict) -> set[str]:
    """Keys whose value is not the official one, or not the default where the official file lacks the key."""
    ours, defaults = flatten(load(CONFIGS / name)), flatten(default())
    expected = defaults | {RENAMED.get(key, key): tuples(value) for key, value in official.items()}
    return {key for key, value in expected.items() if key not in ours or ours[key] != value}


def listed(name: str, official: dict, table) -> set[str]:
    """Keys in which this configuration differs, by the table."""
    return {key for key, configs, _ in table if (key in official if configs is EVERY else name in configs)}


@pytest.mark.parametrize("name", OFFICIAL)
def test_keys_match_the_official_ones_except_for_the_table(name):
    assert differing(name, OFFICIAL[name]) == listed(name, OFFICIAL[name], DEVIATIONS)


@pytest.mark.parametrize("name", SCORE_SDE)
def test_keys_match_those_of_score_sde_except_for_the_table(name):
    assert differing(name, SCORE_SDE[name]) == listed(name, SCORE_SDE[name], SCORE_SDE_DEVIATIONS)


@pytest.mark.parametrize("table, officials", [(DEVIATIONS, OFFICIAL), (SCORE_SDE_DEVIATIONS, SCORE_SDE)])
def test_every_row_of_the_tables_is_needed(table, officials):
    for key, configs, reason in table:
        assert reason
        assert set(configs) <= officials.keys() if configs else any(key in keys for keys in officials.values()), key


def test_a_stale_or_an_unlisted_deviation_is_noticed():
    name = "vp/CIFAR10/ddpmpp_nll_st.py"
    official = OFFICIAL[name]
    assert "model.nf" in differing(name, official | {"model.nf": 64})
    assert "eval.nll_iter" not in differing(name, official | {"eval.nll_iter": 1})
    assert "eval.nll_iter" in listed(name, official, DEVIATIONS)
    assert "training.k" in differing(
        name, {k: v for k, v in official.items() if k != "training.k"} | {"training.k": 2.0}
    )


def test_all_official_files_have_a_twin():
    assert len(OFFICIAL) == 33
    assert not OFFICIAL.keys() - set(ALL)
    assert not set(README) - OFFICIAL.keys()


def parameter_counts(name: str) -> dict[str, int]:
    """The numbers of parameters of a configuration's network; nothing is computed."""
    config = load(CONFIGS / name)
    network, data = networks.from_config(config), config.data
    x = jnp.zeros((1, data.image_size, data.image_size, data.num_channels))
    params = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(1))["params"]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    trainable = jax.tree.leaves(networks.trainable(network, params))
    trained = sum(size for size, flag in zip(sizes, trainable, strict=True) if flag)
    return {"total": sum(sizes), "trainable": trained, "tensors": len(sizes)}


def architecture(name: str) -> str:
    """The keys that determine a configuration's network."""
    config = load(CONFIGS / name)
    without_effect = ("ema_rate", "sigma_min", "sigma_max", "num_scales", "dropout", "fourier_scale", "scale_by_sigma")
    model = {key: value for key, value in config.model.items() if key not in without_effect}
    return json.dumps([model, config.data.image_size, config.data.num_channels])


def by_architecture():
    """Lists of configurations with the same network, so that each is built once."""
    groups = {}
    for name in COUNTS:
        groups.setdefault(architecture(name), []).append(name)
    return list(groups.values())


@pytest.mark.parametrize("names", by_architecture(), ids=lambda names: names[0])
def test_parameter_counts(names):
    counts = parameter_counts(names[0])
    for name in names:
        assert counts == COUNTS[name], name


def test_every_compared_configuration_has_its_count():
    assert COUNTS.keys() == OFFICIAL.keys() | SCORE_SDE.keys()


@pytest.mark.parametrize("name", ALL)
def test_what_a_configuration_names_exists(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a configuration loads from anywhere
    config = load(CONFIGS / name)
    diffusion, network = sde.from_config(config), networks.from_config(config)
    assert isinstance(diffusion, sde.SDE)
    assert isinstance(network, networks.Network)
    assert isinstance(parametrization.from_config(config, diffusion), parametrization.Parametrization)
    assert isinstance(truncation.from_config(config), truncation.TruncationPrior)
    assert isinstance(losses.from_config(config, diffusion, groups=1), losses.Loss)
    assert isinstance(samplers.from_config(config), samplers.ODE | samplers.PredictorCorrector)
    assert isinstance(optimizer.optimizer_from_config(config, network), optax.GradientTransformation)


def described(name: str) -> dict[str, str]:
    """The docstring's fields, {"Command": ..., "Hardware": ..., "Published": ...}, continued lines as one."""
    docstring = ast.get_docstring(ast.parse((CONFIGS / name).read_text()))
    return dict(re.findall(r"^([A-Z]\w+): +(.*)$", re.sub(r" \\\n +", " ", docstring), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ALL)
def test_docstrings_have_command_hardware_and_published_figures(name):
    lines = described(name)
    assert lines["Command"].startswith(f"python -m score_st.train --config configs/{name} --workdir runs/")
    assert lines["Hardware"] and lines["Published"]


def test_workdirs_differ():
    workdirs = [described(name)["Command"].split("--workdir ")[1] for name in ALL]
    assert len(set(workdirs)) == len(ALL)


def test_commands_of_the_official_readme_have_their_twin():
    assert not {f"configs/{name}" for name in README} - {described(name)["Command"].split()[4] for name in ALL}
