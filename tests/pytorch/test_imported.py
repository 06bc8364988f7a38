"""Networks of EDM and diffusers compute here what they compute there, and become workdirs.

The small ones of `fixtures/foreign_networks.*` are of our own making. Where the outputs of EDM's and diffusers' own
code are beside the checkout, all of those are compared, too.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands, foreign
from support.official import relative_error

from score_st import api, config, convert
from score_st.diffusion import samplers
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint, diffusers, imported

OUTPUTS = foreign.FIXTURES / "foreign_networks.npz"
REFERENCE = Path(__file__).parents[3] / "shared/reference"
EDM_KINDS = ("edm", "vp", "ve")


def written(folder: Path, kind: str) -> Path:
    """The network of a kind, in a folder that is there."""
    if kind in EDM_KINDS:
        return foreign.write_edm(folder / f"{kind}.pkl", foreign.edm_tree(kind))
    return foreign.write_diffusers(folder / kind, kind)


def outputs(kind: str) -> dict[str, np.ndarray]:
    """What a file of --verify has of a network."""
    with np.load(OUTPUTS) as file:
        return {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{kind}/")}


def compared(path: Path, golden: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The errors in float32."""
    network = imported.read(path)
    settings = imported.configuration(network, {})
    model = DiffusionModel.from_config(settings)
    current = imported.training_state(network, settings, model)
    return imported.compare(model, current, imported.check_golden(path, golden, settings), (jnp.float32,))


@pytest.mark.parametrize("kind", foreign.NETWORKS)
def test_outputs(tmp_path, kind):
    errors = compared(written(tmp_path, kind), outputs(kind))
    assert len(errors) >= 2
    for name, error in errors.items():
        assert error["float32"] < max(2e-5, error["rounding"]), (name, error)


NAMES = [f"edm/{name}" for name in ("edm_ddpmpp", "edm_ncsnpp", "edm_ddpmpp_cond", "vp_ddpmpp", "ve_ncsnpp")]
NAMES += [f"diffusers/{name}" for name in ("ddpm", "ncsnpp", "ncsnpp_old_names", "ncsnpp_wide")]


@pytest.mark.slow  # the fixtures are the same networks, smaller
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the outputs of the other code are not here")
@pytest.mark.parametrize("name", [*NAMES, "edm/edm_ncsnpp_heun"])
def test_outputs_of_their_own_code(tmp_path, name):
    source = REFERENCE / f"{name.removesuffix('_heun')}.pkl"
    golden = REFERENCE / (f"{name}.npz" if name.startswith("edm") else f"{name}/golden.npz")
    if not name.startswith("edm"):
        pytest.importorskip("safetensors")
        source = REFERENCE / name
        if not (source / "diffusion_pytorch_model.safetensors").exists():
            shutil.copytree(source, tmp_path / "wide")
            source = tmp_path / "wide"
            weights = source / "diffusion_pytorch_model.safetensors"
            script = [sys.executable, REFERENCE / "diffusers/weights.py", REFERENCE / name, weights]
            subprocess.run(script, check=True)
    tolerance = 1e-4 if name.endswith("_heun") else 2e-5
    for output, error in compared(source, checkpoint.read_arrays(golden)).items():
        assert error["float32"] < max(tolerance, error["rounding"]), (output, error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddpm", "ncsnpp"])
def test_diffusers_itself(tmp_path, kind):
    """Where it is installed: pip install 'score_st[test-diffusers]'."""
    torch, package = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    options = foreign.NETWORKS[kind]["options"]
    network = package.UNet2DModel(**{key: value for key, value in options.items() if not key.startswith("_")})
    levels = np.array([12.25, 700.0] if kind == "ddpm" else [0.5, 10.0], np.float32)
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(foreign.drawn(name, list(parameter.shape))))
        pairs = zip(x, levels, strict=True)
        # a number that is no tensor would become a whole one
        output = [network(torch.from_numpy(images), torch.tensor(level)).sample.numpy() for images, level in pairs]
    network.save_pretrained(tmp_path / "network", safe_serialization=False)
    golden = {"x": x, "output": np.stack(output), "rounding": np.zeros(2)}
    golden["timestep" if kind == "ddpm" else "sigma"] = levels
    for name, error in compared(tmp_path / "network", golden).items():
        assert error["float32"] < 2e-5, (name, error)


def test_a_wrong_network_is_noticed(tmp_path):
    """The traps: q, k and v in thirds instead of interleaved, groups, c_noise, and the classes."""
    values = foreign.tensors("edm")
    thirds = {n: np.concatenate([v[i::3] for i in range(3)]) if ".qkv." in n else v for n, v in values.items()}
    path = foreign.write_edm(tmp_path / "a.pkl", foreign.edm_tree("edm", thirds))
    assert max(error["float32"] for error in compared(path, outputs("edm")).values()) > 1e-2
    good = written(tmp_path, "edm")
    golden = outputs("edm")
    for key, change in (("c_noise", golden["c_noise"] * 1.01), ("class_labels", golden["class_labels"][:, ::-1])):
        assert max(error["float32"] for error in compared(good, golden | {key: change}).values()) > 1e-3


def test_convert_and_other_commands(tmp_path, capsys, one_device):
    """A pickle becomes a workdir with a config.py, which other commands and `load` take."""
    source, workdir, golden = written(tmp_path, "edm"), tmp_path / "run", tmp_path / "golden.npz"
    np.savez(golden, **outputs("edm"))
    argv = ["--from", str(source), "--workdir", str(workdir), "--config.sampling.steps=3"]
    refused = commands.refused(capsys, convert.main, [*argv, "--config", commands.OFFICIAL_DIGITS])
    assert "has its own settings; leave --config out" in refused
    missing = ["--from", str(foreign.FIXTURES / "official.pth"), "--workdir", str(workdir)]
    assert "--config FILE is needed" in commands.refused(capsys, convert.main, missing)
    with pytest.raises(SystemExit, match="off, more than"):
        np.savez(tmp_path / "bad.npz", **(outputs("edm") | {"F": outputs("edm")["F"] + 1}))
        convert.main([*argv, "--verify", str(tmp_path / "bad.npz")], one_device)
    assert not workdir.exists()
    convert.main([*argv, "--verify", str(golden), "--tol", "2e-5"], one_device)
    printed = capsys.readouterr()
    assert "config.py: for --config of other commands" in printed.out and "trained on 'images.zip'" in printed.err
    stored, again = config.from_workdir(workdir), config.load(workdir / "config.py")
    assert stored.to_dict() == again.to_dict() and stored.sampling.steps == 3
    model = api.load(workdir)
    images = model.sample(jax.random.key(0), 4, labels=jnp.array([0, 1, 2, -1]))
    assert images.shape == (4, 8, 8, 3) and images.std() > 0


def test_the_range_of_the_noise_is_in_the_file_of_the_scheduler(tmp_path):
    path = foreign.write_diffusers(tmp_path / "ncsnpp", "ncsnpp")
    assert "no scheduler_config.json" in diffusers.read(path).notes[0]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({"sigma_min": 0.02, "sigma_max": 348}))
    network = diffusers.read(path)
    settings = imported.configuration(network, {})
    assert not network.notes and (settings.model.sigma_min, settings.model.sigma_max) == (0.02, 348)
    assert not settings.model.center_input and settings.model.diffusers_groups


def test_the_steps_are_in_the_file_of_the_scheduler(tmp_path):
    """ε is the time of the first step; diffusers' names of the variance, by which the discrete bound is."""
    path = foreign.write_diffusers(tmp_path / "ddpm", "ddpm")
    network = diffusers.read(path)
    without = imported.configuration(network, {})
    assert "1,000 steps" in network.notes[0] and without.eval.nelbo_discrete_iter == 1
    scheduler = path / "scheduler_config.json"
    for variance, ours in {"fixed_small": "posterior", "fixed_large": "beta"}.items():
        usual = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "variance_type": variance}
        scheduler.write_text(json.dumps(usual | {"prediction_type": "epsilon", "num_train_timesteps": 1000}))
        network = diffusers.read(path)
        settings = imported.configuration(network, {"eval.nelbo_discrete_variance": "posterior"})
        assert settings == without and not network.notes
        assert network.settings["eval.nelbo_discrete_variance"] == ours
    scheduler.write_text(json.dumps({"num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.05}))
    settings = imported.configuration(diffusers.read(path), {})
    sde = DiffusionModel.from_config(settings).sde
    np.testing.assert_allclose(float(sde.sigma(jnp.float32(sde.eps))) ** 2, 1e-3, rtol=1e-4)
    assert (settings.model.num_scales, settings.model.beta_max) == (50, 2.5)
    for wrong in (
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "v_prediction"},
        {"beta_end": "0.02"},
        {"num_train_timesteps": 10**400},
    ):
        scheduler.write_text(json.dumps(wrong))
        with pytest.raises(config.ConfigError, match="scheduler_config.json: .*(can be converted|should be)"):
            diffusers.read(path)


UNFIT = {
    "is of a UNet2DConditionModel": dict(_class_name="UNet2DConditionModel"),
    "attention_head_dim=8: only None": dict(attention_head_dim=8),
    "norm_eps=1e-05: only 1e-06": dict(norm_eps=1e-5),
    "the option surprise, which is unknown": dict(surprise=1),
    "should be lists, the first two of names": dict(down_block_types=[{}, "DownBlock2D"]),
    "mid_block_scale_factor=(1,): should be a number": dict(mid_block_scale_factor=[1]),
    "layers_per_block=True: should be a number": dict(layers_per_block=True),
    "dropout=1000000000000000000000000000000000000000: should be a number": dict(dropout=10**400),
    "blocks of the kinds ResnetDownsampleBlock2D": dict(down_block_types=["ResnetDownsampleBlock2D"] * 2),
    "should be at the sizes that have it": dict(up_block_types=["UpBlock2D", "AttnUpBlock2D"]),
    "freq_shift=0: a DDPM network should have 1": dict(freq_shift=0),
    "should be whole numbers": dict(sample_size=None),
    "is surplus": dict(layers_per_block=1, down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2),
    "is missing": dict(layers_per_block=2),
}


@pytest.mark.parametrize("message", UNFIT)
def test_what_can_not_be_converted(tmp_path, message):
    path = foreign.write_diffusers(tmp_path / "ddpm", "ddpm", **UNFIT[message])
    with pytest.raises(config.ConfigError) as error:
        network = imported.read(path)
        settings = imported.configuration(network, {})
        imported.training_state(network, settings, DiffusionModel.from_config(settings))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_safetensors(tmp_path):
    """The same tensors as in a .bin file; damaged files are refused."""
    numpy = pytest.importorskip("safetensors.numpy")
    path = foreign.write_diffusers(tmp_path / "ddpm", "ddpm")
    expected = diffusers.read(path).tensors
    (path / "diffusion_pytorch_model.bin").unlink()
    file = path / "diffusion_pytorch_model.safetensors"
    numpy.save_file({name: np.float16(value) for name, value in expected.items()}, file)
    half = diffusers.read(path).tensors
    assert all(relative_error(half[name], expected[name]) < 1e-3 for name in expected)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(config.ConfigError, match="not a complete safetensors file"):
        diffusers.read(path)


def test_the_grid_and_the_steps_are_those_of_edm(tmp_path):
    """σ of 18 levels by the formula, from 80 to 0.002; the last step, to 0, denoises."""
    settings = imported.configuration(imported.read(written(tmp_path, "edm")), {})
    model, sampler = DiffusionModel.from_config(settings), samplers.from_config(settings)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigma = model.sde.sigma(sampler.grid(model.sde, sampler.steps))
    np.testing.assert_allclose(sigma, expected, rtol=2e-4)
    assert sampler.denoise and sampler.evaluations_per_step * sampler.steps + 1 == 35
