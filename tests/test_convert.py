"""The command that converts: a checkpoint in, and out again as the same file; what it refuses leaves nothing."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands
from support.official import CHECKPOINT, CIFAR10, FIXTURES, assert_same_content, flags, official_content, overrides

from score_st import config, convert, sample, train
from score_st.config import ConfigError
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.runtime import cli
from score_st.training import checkpoints, step


def test_in_and_out_again(tmp_path, capsys, one_device):
    workdir, common = tmp_path / "run", ["--config", CIFAR10, *flags(), "--workdir"]
    source = ["--from", str(FIXTURES / "official_legacy.pth")]
    cli.run(lambda: convert.main([*common, str(workdir), *source], one_device))
    printed = capsys.readouterr()
    assert printed.err == "" and "12,539 parameters, step 3" in printed.out
    assert json.loads((workdir / "config.json").read_text())["model"]["nf"] == 4
    convert.main([*common, str(workdir), "--to", str(tmp_path / "back.pth")], one_device)
    assert_same_content(official_content()["model"], torch_file.read(tmp_path / "back.pth")["model"])
    refused = {
        ("--from", str(CHECKPOINT)): "already has checkpoints",
        ("--to", str(tmp_path / "back.pth")): "already exists",
        ("--to", str(tmp_path / "no/where.pth")): "can't be written",
        ("--verify", str(CHECKPOINT)): "official.pth: can't be read as .npz",
        ("--verify", str(FIXTURES / "official_configs.json")): "can't be read as .npz",
    }
    for arguments, message in refused.items():
        with pytest.raises(ConfigError) as error:
            convert.main([*common, str(workdir), *arguments], one_device)
        assert message in str(error.value)


def test_what_is_refused_leaves_nothing(tmp_path, capsys, one_device):
    common = ["--config", CIFAR10, *flags(), "--workdir", str(tmp_path / "new")]
    (tmp_path / "broken.pth").write_bytes(CHECKPOINT.read_bytes()[:-1])
    refused = {
        ("--from", str(tmp_path / "broken.pth")): "broken.pth: ",
        ("--from", str(tmp_path / "none.pth")): "can't be read (No such file",
        ("--from", str(tmp_path)): "can't be read (Is a directory",
        (): "one of --from FILE, --to FILE.pth and --verify FILE.npz",
    }
    for arguments, message in refused.items():
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: convert.main([*common, *arguments], one_device))  # noqa: B023
        printed = capsys.readouterr()
        assert stop.value.code == 2 and message in printed.err and printed.err.count("\n") == 1
    arguments = ["--from", str(CHECKPOINT), "--verify", str(FIXTURES / "official_steps.npz"), "--tol"]
    with pytest.raises(SystemExit, match="off, more than --tol 1e-12; nothing was written"):
        convert.main([*common, *arguments, "1e-12"], one_device)
    assert "score_ema      maximal relative error" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    convert.main([*common, *arguments, "1e-5"], one_device)
    assert (tmp_path / "new/checkpoints/3").is_dir()


def test_other_commands_use_a_converted_checkpoint(tmp_path, one_device):
    """A network for digits as a .pth file is converted, sampled from, and trained."""
    workdir = tmp_path / "run"
    settings = dict(training__n_iters=9, training__log_freq=1, training__eval_freq=2, eval__enable_bpd=False)
    settings |= dict(training__snapshot_sampling=False, sampling__method="pc", model__num_scales=3)
    common = [
        "--config",
        str(commands.ROOT / commands.OFFICIAL_DIGITS),
        *commands.overrides(**settings),
        "--workdir",
        str(workdir),
    ]
    configuration = commands.tiny(**settings)
    start = jax.jit(step.from_config(configuration, one_device).create)(jax.random.key(0))
    start = dataclasses.replace(start, step=jnp.int32(7), ema_updates=jnp.int32(5))
    torch_file.write(tmp_path / "digits.pth", torch_checkpoint.state_to_torch(start, configuration))
    convert.main([*common, "--from", str(tmp_path / "digits.pth")], one_device)
    sample.main([*common, "--num", "2"], one_device)
    assert json.loads((workdir / "samples/samples.json").read_text())["settings"]["step"] == 7
    train.main(common, one_device)
    with checkpoints.manager(workdir, read_only=True) as manager:
        assert manager.latest_step() == 9
    assert [json.loads(line)["step"] for line in Path(workdir / "metrics.jsonl").open()] == [8, 9]
    model = DiffusionModel.from_config(configuration)
    last = checkpoints.open_for_reading(workdir, configuration, model, one_device)
    assert int(last.ema_updates) == 7


def test_an_unfinished_conversion_never_trains_from_scratch(tmp_path, capsys, one_device):
    """As a kill or a full disk leaves it: training is refused, and another conversion is not."""
    workdir, common = tmp_path / "run", ["--config", CIFAR10, *flags(), "--workdir", str(tmp_path / "run")]
    converting = [*common, "--from", str(CHECKPOINT)]
    convert.main(converting, one_device)
    for unfinished in ("3.orbax-checkpoint-tmp-1", "3"):
        (workdir / "checkpoints/3").rename(workdir / "checkpoints" / unfinished)
        (workdir / "checkpoints" / unfinished / "commit_success.txt").unlink()
        before = sorted(path for path in workdir.rglob("*"))
        error = commands.refused(capsys, train.main, common)
        assert f"{workdir}: was made by `python -m score_st.convert` and has no complete checkpoint" in error
        assert sorted(path for path in workdir.rglob("*")) == before
        convert.main(converting, one_device)
        assert (workdir / "checkpoints/3/commit_success.txt").exists()
        assert ("checkpoints/3 is not complete; it is now 3.damaged" in capsys.readouterr().err) == (unfinished == "3")
        assert "already has checkpoints; name another folder" in commands.refused(capsys, convert.main, converting)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_verify_passes_no_nan_and_no_infinity(wrong, capsys):
    """Wherever it is among the errors."""
    good, bad = {"float32": 1e-7, "float64": 1e-7}, {"float32": wrong, "float64": 1e-7}
    convert.verify({"score_raw": good, "score_ema": good}, 1e-4)
    for errors in ({"score_raw": good, "score_ema": bad}, {"score_ema": bad, "score_raw": good}):
        with pytest.raises(SystemExit, match=rf"score_ema is {wrong} off, more than --tol 0.0001; nothing"):
            convert.verify(errors, 1e-4)


@pytest.mark.parametrize("name", ["x", "t", "score_ema"])
def test_official_outputs_are_finite(name, tmp_path):
    with np.load(FIXTURES / "official_steps.npz") as file:
        content = dict(file)
    content[name] = content[name].copy()
    content[name].flat[0] = np.nan
    np.savez(tmp_path / "golden.npz", **content)
    configuration = config.load(CIFAR10, overrides())
    with pytest.raises(ConfigError, match=f"golden.npz: {name} should have finite floating-point numbers"):
        torch_checkpoint.read_golden(tmp_path / "golden.npz", configuration)
