"""The converter: official checkpoints in, the same numbers out, damaged and hostile files refused.

`fixtures/official.pth` and `official_legacy.pth` were saved by the official code after three of its training steps, on
a DDPM++ of 4 channels; `official_steps.npz` has what that network computes, and the next three steps with their draws.
"""

import dataclasses
import functools
import io
import json
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.official import FIXTURES, OfficialVP, nhwc

from score_st import config, convert, sample, train
from score_st.config import ConfigError
from score_st.diffusion import parametrization
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.pytorch import parameter_map
from score_st.runtime import cli, sharding
from score_st.training import checkpoints, step

ROOT = Path(__file__).parents[2]
CIFAR10 = str(ROOT / "configs/vp/CIFAR10/ddpmpp_nll_st.py")
TINY = {"model.nf": 4, "model.num_res_blocks": 1, "model.ch_mult": (1, 2), "model.attn_resolutions": (4,)}
TINY |= {"data.image_size": 8, "model.dropout": 0.0, "optim.warmup": 5}
OFFICIAL = FIXTURES / "official.pth"


def load(path=CIFAR10, **more):
    changes = TINY | {key.replace("__", "."): value for key, value in more.items()}
    return config.load(path, {key: str(value) for key, value in changes.items()})


def flags(**more):
    changes = TINY | {key.replace("__", "."): value for key, value in more.items()}
    return [f"--config.{key}={value}" for key, value in changes.items()]


@functools.cache
def tiny():
    made = load()
    return made, DiffusionModel.from_config(made)


def converted(checkpoint):
    made, exp = tiny()
    return torch_checkpoint.state_from_torch(checkpoint, made, exp)


def assert_same(a, b, path=""):
    """Containers with the same keys, arrays with the same type and bits."""
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    elif (
        isinstance(a, np.ndarray) and "sigmas" in path
    ):  # NumPy's exp may differ in the last bit from another machine's
        np.testing.assert_allclose(a, b, rtol=1e-15)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), path
    else:
        assert a == b, path


def test_both_formats_hold_the_same():
    zipped, legacy = torch_file.read(OFFICIAL), torch_file.read(FIXTURES / "official_legacy.pth")
    assert zipped["step"] == 3 and zipped["ema"]["num_updates"] == 3 and zipped["ema"]["decay"] == 0.9999
    assert zipped["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert zipped["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4 * 2 / 5)
    assert sum(tensor.size for tensor in zipped["model"].values()) == 12539 + 1000
    assert zipped["model"]["module.sigmas"].dtype == np.float64
    assert_same(zipped, legacy)


def test_there_and_back_every_array_is_the_same(tmp_path):
    original = torch_file.read(OFFICIAL)
    torch_file.write(tmp_path / "back.pth", torch_checkpoint.state_to_torch(converted(original), tiny()[0]))
    back = torch_file.read(tmp_path / "back.pth")
    known = original["optimizer"]["param_groups"][0]
    group = back["optimizer"]["param_groups"][0]
    assert group == {key: known[key] for key in group}
    for checkpoint in (original, back):
        del checkpoint["optimizer"]["param_groups"]
    assert_same({key: original[key] for key in back}, back)


@functools.cache
def official_errors():
    golden = torch_checkpoint.read_golden(FIXTURES / "official_steps.npz", tiny()[0])
    return torch_checkpoint.compare(*tiny(), converted(torch_file.read(OFFICIAL)), golden)


def test_the_network_computes_what_the_official_one_does():
    errors = official_errors()
    assert list(errors) == ["model_out_raw", "score_raw", "model_out_ema", "score_ema"]
    assert all(error < 1e-5 for both in errors.values() for error in both.values()), errors


def test_training_goes_on_as_the_official_code_does(monkeypatch):
    """Three more steps with the official draws: losses, parameters and EMA."""
    made = load(training__official_loss=True)
    exp = DiffusionModel.from_config(made)
    exp = dataclasses.replace(exp, sde=OfficialVP(), parametrization=parametrization.from_config(made, OfficialVP()))
    steps = np.load(FIXTURES / "official_steps.npz")
    recipe = dataclasses.replace(step.from_config(made, sharding.mesh(devices=jax.devices()[:1])), experiment=exp)
    monkeypatch.setattr(step, "draw", lambda recipe, inputs, key: inputs)
    current = jax.tree.map(jnp.asarray, converted(torch_file.read(OFFICIAL)))
    x = nhwc(2 * steps["img"] - 1)

    @jax.jit
    def advance(current, t, weight, z):  # the official times and Z, which their float32 rounding moves
        law = lambda *_: (t, jnp.full(4, weight))
        with_law = dataclasses.replace(recipe, loss=dataclasses.replace(recipe.loss, sde=OfficialVP(), law=law))
        return step.train_step(current, (x, jnp.ones(4), t, z, z), jax.random.key(0), recipe=with_law)

    for i in range(3):
        tau = exp.truncation.quantile(jnp.float32(steps["u_tau"][i]))
        t, z = recipe.loss.law(exp.sde, jnp.full(4, tau), jnp.asarray(steps["u"][i]))
        np.testing.assert_allclose(z, steps["Z"][i], rtol=3e-3)
        np.testing.assert_allclose(exp.sde.logsnr(t), exp.sde.logsnr(jnp.asarray(steps["times"][i])), atol=0.2)
        current, metrics = advance(current, steps["times"][i], steps["Z"][i], nhwc(steps["z"][i]))
        assert float(metrics["loss"]) == pytest.approx(steps["losses"][i].mean(), rel=1e-5)
    start = converted(torch_file.read(OFFICIAL))
    slots = parameter_map.layout(current.params)
    for name, ours, before in (("params", current.params, start.params), ("ema", current.ema, start.ema)):
        flat = lambda tree: np.concatenate([tensor.ravel() for tensor in parameter_map.from_flax(slots, tree)])
        moved = np.abs(steps[f"final_{name}"] - flat(before)).max()
        np.testing.assert_allclose(flat(ours), steps[f"final_{name}"], atol=2e-3 * moved)
    assert int(current.step) == int(current.ema_updates) == 6


def changed(function):
    """The official checkpoint after a change of each tensor."""

    def walk(node):
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(map(walk, node))
        return function(node) if isinstance(node, np.ndarray) else node

    return walk(torch_file.read(OFFICIAL))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_half_and_double_precision(tmp_path, dtype):
    torch_file.write(tmp_path / "other.pth", changed(lambda a: a.astype(dtype) if a.dtype == np.float32 else a))
    ours = converted(torch_file.read(tmp_path / "other.pth"))
    wanted = converted(changed(lambda a: a.astype(dtype).astype(np.float32) if a.dtype == np.float32 else a))
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours.params)} == {np.dtype(np.float32)}


def test_forms_that_checkpoints_come_in():
    """Without "module.", without optimiser or EMA, the tensors alone, and a big-endian or strided tensor."""
    whole, full = converted(torch_file.read(OFFICIAL)), torch_file.read(OFFICIAL)
    bare = full | {"model": {key.removeprefix("module."): value for key, value in full["model"].items()}}
    jax.tree.map(np.testing.assert_array_equal, converted(bare), whole)
    alone = converted(bare["model"])
    jax.tree.map(np.testing.assert_array_equal, (alone.params, alone.ema), (whole.params, whole.params))
    assert alone.step == alone.ema_updates == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(alone.opt_state))
    some = converted({key: full[key] for key in ("model", "ema", "step")})
    jax.tree.map(np.testing.assert_array_equal, some.ema, whole.ema)
    assert some.step == 3 and [int(leaf) for leaf in jax.tree.leaves(some.opt_state) if leaf.ndim == 0] == [0, 3]
    odd = changed(lambda a: np.asfortranarray(a).astype(a.dtype.newbyteorder(">")))
    jax.tree.map(np.testing.assert_array_equal, converted(odd), whole)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_fixed_frequencies_are_unknown_to_ema_and_optimiser(tmp_path, optimizer):
    """NCSN++ has one tensor that is not trained: the official lists skip it."""
    made = load(str(ROOT / "configs/ve/CIFAR10/uncsnpp_st.py"), optim__optimizer=optimizer)
    exp = DiffusionModel.from_config(made)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: rng.random(a.shape, np.float32) if a.ndim else np.int32(9), exp.abstract_state)
    slots = parameter_map.layout(state.params)
    fixed = [index for index, slot in enumerate(slots) if not slot.trainable]
    assert [slots[index].name for index in fixed] == ["all_modules.0.W"]
    torch_file.write(tmp_path / "made.pth", torch_checkpoint.state_to_torch(state, made))
    content = torch_file.read(tmp_path / "made.pth")
    assert set(content["optimizer"]["state"]) == set(range(len(slots))) - set(fixed)
    assert content["optimizer"]["param_groups"][0]["betas"][1] == {"Adam": 0.999, "AdamW": 0.99}[optimizer]
    assert len(content["ema"]["shadow_params"]) == len(slots) - 1
    back = torch_checkpoint.state_from_torch(content, made, exp)

    def same(path, a, b):
        fixed = "['all_modules_0']['W']" in jax.tree_util.keystr(path)
        if not fixed:
            np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, back, state)
    w = lambda params: params["all_modules_0"]["W"]
    np.testing.assert_array_equal(w(back.ema), w(state.params))
    assert not w(next(s.mu for s in jax.tree.leaves(back.opt_state, is_leaf=lambda s: hasattr(s, "mu")))).any()


WEIGHT = "module.all_modules.3.Conv_0.weight"


def edited(**edits):
    """The official checkpoint with items of 'model' replaced, or deleted where the value is None."""
    content = torch_file.read(OFFICIAL)
    for key, value in edits.items():
        if value is None:
            del content["model"][key]
        else:
            content["model"][key] = value
    return content


def with_(*path, value):
    content = node = changed(lambda a: a)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return content


def bad_checkpoints():
    sample = torch_file.read(OFFICIAL)["model"][WEIGHT]
    shadow = torch_file.read(OFFICIAL)["ema"]["shadow_params"]
    nan = np.full_like(sample, np.nan)
    state = ("optimizer", "state", 7)
    yield edited(**{WEIGHT: None}), f"{WEIGHT[7:]} of a residual block is missing, and should be [4, 4, 3, 3]"
    yield edited(extra=sample), "extra of no known module [4, 4, 3, 3] is surplus; no single setting explains it"
    yield edited(**{WEIGHT: sample[:2]}), "is [2, 4, 3, 3], and should be [4, 4, 3, 3]; no single setting"
    yield edited(**{WEIGHT: nan}), f"{WEIGHT[7:]} should hold finite"
    yield edited(**{WEIGHT: np.zeros(sample.shape, np.int64)}), "should hold finite floating-point numbers"
    yield edited(**{WEIGHT: "text"}), "is no tensor"
    yield edited(**{"module.sigmas": None}), "sigmas [1000], the network's noise levels, is missing"
    yield edited(**{"module.sigmas": np.geomspace(90, 0.01, 500)}), "--config.model.sigma_max=90"
    yield with_("ema", "shadow_params", value=shadow[1:]), f"the EMA has {len(shadow) - 1} tensors, and the network"
    yield (
        with_("ema", "shadow_params", 2, value=np.zeros((1, 2), np.float32)),
        "the EMA of all_modules.1.weight should",
    )
    yield with_("ema", "num_updates", value=-1), "'num_updates' of the EMA should be a whole number"
    yield with_("step", value="3"), "'step' should be a whole number"
    yield with_("epoch", value=3), "epoch is surplus"
    yield with_("optimizer", "param_groups", value=[]), "the optimiser has groups of []"
    yield with_(*state, "exp_avg", value=None), "exp_avg of the optimiser's state of all_modules.3.GroupNorm_0.bias"
    yield with_(*state, "max_exp_avg_sq", value=sample), "step, exp_avg and exp_avg_sq of the optimiser's state"
    yield (
        with_(*state, "step", value=np.array(9, np.float32)),
        "the optimiser's steps differ between tensors, from 3 to 9",
    )
    yield with_("optimizer", "state", value={0: {}}), "the optimiser's state of"
    yield with_(*state, "exp_avg_sq", value=np.full(4, -1, np.float32)), "has negative numbers"
    yield {"weights": 1}, "weights is surplus"
    yield {}, "'model', the network's tensors, should be there"
    yield [1, 2], "holds no dictionary"


@pytest.mark.parametrize(
    "content, message", list(bad_checkpoints()), ids=lambda a: a[:30] if isinstance(a, str) else ""
)
def test_every_tensor_is_accounted_for(content, message):
    with pytest.raises(ConfigError) as error:
        converted(content)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, wanted",
    [
        (dict(model__nf=8), "--config.model.nf=4 would fit"),
        (dict(model__num_res_blocks=2), "--config.model.num_res_blocks=1 would fit"),
        (dict(model__nf=8, model__num_res_blocks=2), "--config.model.nf=4 --config.model.num_res_blocks=1 would fit"),
        (dict(data__num_channels=1), "--config.data.num_channels=3 would fit"),
        (dict(model__embedding_type="fourier"), "--config.model.embedding_type=positional would fit"),
        (dict(model__ch_mult=(1, 1)), "--config.model.ch_mult=(1,2) would fit"),
    ],
    ids=str,
)
def test_the_setting_that_would_fit_is_found(changes, wanted):
    made = load(**changes)
    with pytest.raises(ConfigError, match="; ") as error:
        torch_checkpoint.state_from_torch(torch_file.read(OFFICIAL), made, DiffusionModel.from_config(made))
    assert wanted in str(error.value)


def damages(content: bytes, count: int):
    """Damaged forms of a file, each another."""
    rng = random.Random(0)
    seen = {hash(content)}
    while len(seen) <= count:
        broken, kind, place = bytearray(content), rng.randrange(6), rng.randrange(len(content))
        if kind == 0:
            broken[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            for _ in range(8):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        elif kind == 2:
            del broken[place:]
        elif kind == 3:
            broken += rng.randbytes(rng.randrange(1, 100))
        elif kind == 4:
            del broken[place : place + rng.randrange(1, 1000)]
        else:
            broken[place:place] = rng.randbytes(rng.randrange(1, 100))
        if hash(bytes(broken)) not in seen:
            seen.add(hash(bytes(broken)))
            yield bytes(broken)


def test_a_thousand_damaged_files_are_refused_in_one_line(tmp_path):
    path, before = tmp_path / "damaged.pth", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    for broken in damages(OFFICIAL.read_bytes(), 1000):
        path.write_bytes(broken)
        with pytest.raises(ConfigError) as error:
            torch_file.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
        count += 1
    assert count == 1000 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def zipped(pickled: bytes, entries=(), compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries:
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def tensor(shape: str, stride: str, storage: str = "X\x01\x00\x00\x000", size: str = "K\x04") -> bytes:
    """A pickle of one tensor, with parts of it chosen."""
    head = "\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    tail = f"{storage}X\x03\x00\x00\x00cpu{size}tQK\x00{shape}{stride}\x89ccollections\nOrderedDict\n)RtR."
    return (head + tail).encode("latin1")


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


def laughs(levels: int) -> bytes:
    """A list of ten references to a list of ten references to ..."""
    level = b"(" + b"K\x01" * 10 + b"l"
    for i in range(levels):
        level += b"q" + bytes([i]) + b"(" + (b"h" + bytes([i])) * 10 + b"l"
    return b"\x80\x02" + level + b"."


def hostile(target):
    four = [("data/0", bytes(16))]
    huge = "J\x00\x00\x00\x40"
    yield zipped(pickle.dumps({"model": Hostile(target)}, 0)), "which no checkpoint needs"
    for protocol in range(1, 6):
        yield zipped(pickle.dumps({"model": Hostile(target)}, protocol)), "posix.system"
    yield pickle.dumps({"model": Hostile(target)}, 2), "posix.system"  # the legacy format begins with a pickle
    yield zipped(f"(S'touch {target}'\nios\nsystem\n.".encode()), "instruction INST"
    yield zipped(f"(cos\nsystem\nS'touch {target}'\no.".encode()), "os.system"
    yield zipped(b"\x80\x02\x82\x01."), "instruction EXT1"
    yield zipped(b"\x80\x02cbuiltins\neval\n(S'1'\ntR."), "builtins.eval"
    yield zipped(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "instruction NEWOBJ"
    yield zipped(b"\x80\x02ctorch\nFloatStorage\n)R."), "calls what is no function"
    yield zipped(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."), "gives attributes"
    yield zipped(b"\x80\x02]r\xff\xff\xff\x7f." + bytes(10)), ""  # a memo of 2^31 places
    yield zipped(b"\x80\x02" + b"]" * 200_000 + b"."), ""
    yield zipped(b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b"."), "nest deeper"
    yield zipped(laughs(200)), "nest deeper"
    yield zipped(bytes(2**24 + 1)), "more than any checkpoint needs"
    yield zipped(bytes(2**26), compression=zipfile.ZIP_DEFLATED), "is compressed"
    yield zipped(tensor(f"({huge}{huge}t", "(K\x00K\x00t"), four), ""
    yield zipped(tensor("(K\x05t", "(K\x01t"), four), "does not fit its 4 numbers"
    yield zipped(tensor("(K\x02t", "(J\xff\xff\xff\xfft"), four), "no whole numbers"
    yield zipped(tensor("(K\x04t", "(K\x01t", size=huge), four), "data/0 should have 1073741824"
    yield zipped(tensor("(K\x04t", "(K\x01t", storage="X\x04\x00\x00\x00../x"), four), "has nothing"
    yield zipped(tensor("(K\x04t", "(K\x01t"), [*four, ("data/1", bytes(4))]), "data/1 belongs to no tensor"
    yield zipped(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R."), "type 'O8'"
    yield zipped(b"\x80\x02K\x01"), "is no file of torch.save, or a damaged one"
    yield b"PK\x03\x04", "is no file of torch.save, or a damaged one"
    yield b"\x93NUMPY", "is no file of torch.save"
    yield b"", "is empty"


def test_hostile_files_run_nothing(tmp_path):
    path, target = tmp_path / "hostile.pth", tmp_path / "touched"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content, message in hostile(target):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            converted(torch_file.read(path))
        assert message in str(error.value) and "\n" not in str(error.value)
        assert not target.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    path.write_bytes(zipped(tensor("(K\x04t", "(K\x01t"), [("data/0", struct.pack("<4f", 1, 2, 3, 4))]))
    np.testing.assert_array_equal(torch_file.read(path), [1, 2, 3, 4])  # what the bad ones are made from is good


def test_the_command(tmp_path, capsys):
    """In, then out again as the same file."""
    workdir, common = tmp_path / "run", ["--config", CIFAR10, *flags(), "--workdir"]
    command = [*common, str(workdir), "--from", str(FIXTURES / "official_legacy.pth")]
    run = [sys.executable, "-m", "score_st.convert", *command]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "12,539 parameters, step 3" in result.stdout
    assert json.loads((workdir / "config.json").read_text())["model"]["nf"] == 4
    convert.main([*common, str(workdir), "--to", str(tmp_path / "back.pth")])
    assert_same(torch_file.read(OFFICIAL)["model"], torch_file.read(tmp_path / "back.pth")["model"])
    refused = {
        ("--from", str(OFFICIAL)): "has checkpoints already",
        ("--to", str(tmp_path / "back.pth")): "is there already",
        ("--to", str(tmp_path / "no/where.pth")): "can't be written",
        ("--verify", str(OFFICIAL)): "--verify",
    }
    for arguments, message in refused.items():
        with pytest.raises(ConfigError) as error:
            convert.main([*common, str(workdir), *arguments])
        assert message in str(error.value)


def test_what_is_refused_leaves_nothing(tmp_path, monkeypatch, capsys):
    common = ["--config", CIFAR10, *flags(), "--workdir", str(tmp_path / "new")]
    (tmp_path / "broken.pth").write_bytes(OFFICIAL.read_bytes()[:-1])
    refused = {
        ("--from", str(tmp_path / "broken.pth")): "broken.pth: ",
        ("--from", str(tmp_path / "none.pth")): "can't be read (No such file",
        ("--from", str(tmp_path)): "can't be read (Is a directory",
        (): "one of --from FILE.pth, --to FILE.pth and --verify FILE.npz",
    }
    for arguments, message in refused.items():
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: convert.main([*common, *arguments]))  # noqa: B023
        captured = capsys.readouterr()
        assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
    errors = official_errors()
    monkeypatch.setattr(convert, "compare", lambda *_: errors)
    arguments = ["--from", str(OFFICIAL), "--verify", str(FIXTURES / "official_steps.npz"), "--tol"]
    with pytest.raises(SystemExit, match="off, more than --tol 1e-12; nothing was written"):
        convert.main([*common, *arguments, "1e-12"])
    assert "score_ema      maximal relative error" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    convert.main([*common, *arguments, "1e-5"])
    assert (tmp_path / "new/checkpoints/3").is_dir()


def test_other_commands_take_a_converted_checkpoint_up(tmp_path, one_device):
    """A network for digits as a .pth, converted, sampled from, and trained on."""
    digits, workdir = ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py", tmp_path / "run"
    settings = flags(data__image_size=8, model__ch_mult=(1,), model__attention=False, training__n_iters=9)
    settings += ["--config.eval.enable_bpd=False", "--config.training.snapshot_sampling=False"]
    settings += ["--config.sampling.method=pc", "--config.model.num_scales=3", "--config.training.batch_size=16"]
    common = ["--config", str(digits), *settings, "--workdir", str(workdir)]
    made = config.load(digits, dict(flag.removeprefix("--config.").split("=", 1) for flag in settings))
    start = DiffusionModel.from_config(made).create(jax.random.key(0))
    start = dataclasses.replace(start, step=jnp.int32(7), ema_updates=jnp.int32(5))
    torch_file.write(tmp_path / "digits.pth", torch_checkpoint.state_to_torch(start, made))
    convert.main([*common, "--from", str(tmp_path / "digits.pth")])
    sample.main([*common, "--num", "2"])
    assert json.loads((workdir / "samples/samples.json").read_text())["settings"]["step"] == 7
    train.main(common)
    with checkpoints.manager(workdir, read_only=True) as manager:
        assert manager.latest_step() == 9
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()] == [8, 9]
    last = checkpoints.open_for_reading(workdir, made, DiffusionModel.from_config(made))
    assert int(last.ema_updates) == 7


def test_written_files_are_those_of_torch(tmp_path):
    """Where PyTorch is installed, it reads what is written, with nothing but weights allowed."""
    torch = pytest.importorskip("torch")
    tree = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=[np.float32(3), (1, 2.5, None, True, "ü")])
    torch_file.write(tmp_path / "made.pth", tree | {"c": {0: np.arange(3)[::-1]}})
    read = torch.load(tmp_path / "made.pth", weights_only=True)
    assert read["b"][1] == (1, 2.5, None, True, "ü") and read["c"][0].tolist() == [2, 1, 0]
    np.testing.assert_array_equal(read["a"].numpy(), tree["a"])
