"""Bad requests: one line that says what is right, exit code 2, the workdir untouched."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import refused

from score_st import bench, config, convert, copy, edit, plan, quality, report, sample, study, sweep, train
from score_st import eval as eval_command
from score_st.data import __main__ as data_command
from score_st.runtime import cli, progress
from score_st.runtime.workdir import claim_workdir

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py")

agrees = lambda key: not key.startswith(config.FREE)

BAD = {
    "--config.training.batch_siz=3": "unknown key; did you mean training.batch_size?",
    "--config.model.batch_size=3": "did you mean",
    "--config.training.batch_size=many": "should be a whole number, like the default 32",
    "--config.training.batch_size=1.5": "should be a whole number",
    "--config.training.st=perhaps": "should be True or False",
    "--config.model.ch_mult=a": "should be a tuple such as (1, 2, 2)",
    "--config.training.k=-1": "should be 0 or more",
    "--config.training.sde=vp": "choose from vpsde, subvpsde, vesde, reciprocal_vesde",
    "--config.data.dataset=NMIST": "choose from DIGITS",
    "--config.training.batch_size=12": "should be a multiple of 8, the number of devices; 8 would do",
    "--config.model.ch_mult=(1,1,1,1,1)": "so it should be a multiple of 16, such as 16",
    "--config.optim.optimizer=SGD": "choose from Adam, AdamW",
    "--config.optim.num_micro_batch=3": "micro-batches",
    "--config.eval.batch_size=7": "should be a multiple of 104, the number of devices times eval.group=13",
    "--config.eval.solver=Dopri6": "config.eval.solver: unknown 'Dopri6'; choose from Dopri5, Tsit5, Dopri8, Bosh3",
    "--config.eval.dequantization=lossles": "did you mean lossless?",
    "--config.eval.n_probes=0": "config.eval.n_probes=0: should be 1 or more",
    "--config.eval.trace=exakt": "config.eval.trace: unknown 'exakt'; choose from hutchinson, exact",
    "--config.eval.gradient_images=1": "should be 2 or more, or 0 for none",
    "--config.sampling.predictor=euler_marujama": "did you mean euler_maruyama?",
    "--config.training.tau_groups=3": "training.tau_groups",
    "--config.model.progressive=skip": "config.model.progressive='skip': should be none, output_skip or residual",
}


@pytest.mark.parametrize("argument", BAD)
def test_impossible_settings(capsys, tmp_path, argument):
    settings = [f"--config.eval.batch_size={104}", argument]
    error = refused(capsys, train.main, ["--config", DIGITS, "--workdir", tmp_path / "run", *settings])
    assert BAD[argument] in error
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_configuration(capsys, tmp_path):
    texts = {
        "none.py": None,
        "broken.py": "def get_config(:",
        "empty.py": "x = 1",
        "odd.py": "def get_config(): return 3",
    }
    texts["key.py"] = (
        "from score_st.config import default\ndef get_config():\n c = default()\n c.training.kk = 2\n return c"
    )
    wanted = [
        "no such file",
        "SyntaxError",
        "get_config",
        "ConfigDict",
        "unknown key training.kk; did you mean training.k?",
    ]
    for (name, text), message in zip(texts.items(), wanted, strict=True):
        if text is not None:
            (tmp_path / name).write_text(text)
        error = refused(capsys, train.main, ["--config", tmp_path / name, "--workdir", tmp_path / "run"])
        assert message in error, error
    refused(capsys, train.main, ["--workdir", tmp_path / "run"])
    refused(capsys, train.main, ["--config", DIGITS, "--workdir", tmp_path / "run", "--wrokdir", "x"])
    assert not (tmp_path / "run").exists()


def test_workdirs(capsys, tmp_path):
    """Of another configuration, damaged, not to be written, without a checkpoint."""
    c = config.load(DIGITS)
    claim_workdir(tmp_path / "run", c, agrees)
    before = (tmp_path / "run/config.json").read_text()
    argv = ["--config", DIGITS, "--config.eval.batch_size=104", "--workdir"]
    error = refused(capsys, train.main, [*argv, tmp_path / "run", "--config.training.k=2.0"])
    assert "was made with training.k=1.0 (not 2.0)" in error
    assert (tmp_path / "run/config.json").read_text() == before
    claim_workdir(
        tmp_path / "run", config.load(DIGITS, {"training.n_iters": "5000"}), agrees
    )  # longer is the same run
    (tmp_path / "file").write_text("")
    assert "can't be written" in refused(capsys, train.main, [*argv, tmp_path / "file/run"])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{")
    assert "config.json is damaged" in refused(capsys, train.main, [*argv, tmp_path / "damaged"])
    for main in (eval_command.main, sample.main):
        assert "no checkpoint there" in refused(capsys, main, [*argv, tmp_path / "new"])
        assert not (tmp_path / "new").exists()
        error = refused(capsys, main, [*argv, tmp_path / "run", "--config.model.nf=16"])
        assert "was made with model.nf=48 (not 16)" in error
    assert "argument --num: 0: should be 1 or more" in refused(
        capsys, sample.main, [*argv, tmp_path / "run", "--num", 0]
    )
    error = refused(capsys, report.main, ["--workdir", tmp_path / "run", "--out", tmp_path / "a.png"])
    assert "no eval/loss_by_time.json" in error
    error = refused(capsys, report.main, ["--workdir", tmp_path / "new", "--out", tmp_path / "a.html"])
    assert "no run there" in error and not (tmp_path / "a.html").exists()
    assert "can't be written" in refused(
        capsys, report.main, ["--workdir", tmp_path / "run", "--out", tmp_path / "file/a.html"]
    )


def test_names_that_come_with_the_package(capsys, tmp_path, monkeypatch):
    """Each by its name, with or without configs/ and .py, wherever one is; a file of that path comes first."""
    names = {str(path.relative_to(ROOT / "configs"))[:-3]: path for path in (ROOT / "configs").rglob("*.py")}
    assert config.packaged() == names and len(names) == 57
    monkeypatch.chdir(tmp_path)
    for name in ("vp/DIGITS/ddpmpp_nll_st", "vp/DIGITS/ddpmpp_nll_st.py", "configs/vp/DIGITS/ddpmpp_nll_st.py"):
        assert str(config.find(name)) == DIGITS
    for name, hint in {
        "vp/DIGIT/ddpmpp_nll_st": "vp/DIGITS/ddpmpp_nll_st",
        "uddpmpp_fid_st": "vp/CELEBA/uddpm",
    }.items():
        error = refused(capsys, train.main, ["--config", name, "--workdir", tmp_path / "run"])
        assert (
            f"--config {name}: no such file, and no configuration of that name in the package; did you mean" in error
            and hint in error
        )
    (tmp_path / "vp/DIGITS").mkdir(parents=True)
    (tmp_path / "vp/DIGITS/ddpmpp_nll_st").write_text("")
    assert not config.find("vp/DIGITS/ddpmpp_nll_st").samefile(DIGITS)


def test_workdirs_hold_their_configuration(tmp_path):
    """Of every configuration: what `config.json` gives back is what was written."""
    for i, path in enumerate(config.packaged().values()):
        made = config.load(path)
        claim_workdir(tmp_path / str(i), made, agrees)
        assert config.from_workdir(tmp_path / str(i)).to_dict() == made.to_dict()
    changed = config.from_workdir(tmp_path / "0", {"training.k": 2, "model.ch_mult": (1, 2), "training.st": False})
    assert (changed.training.k, changed.model.ch_mult, changed.training.st) == (2.0, (1, 2), False)


def test_help_imports_nothing_heavy():
    """What only some commands need is imported where they need it; most take longer than all of JAX."""
    heavy = "orbax diffrax grain tensorboardX matplotlib sklearn scipy.io pandas tensorflow tensorflow_datasets torch"
    code = "import runpy, sys\ntry:\n runpy.run_module('score_st.train', run_name='__main__')\n"
    code += f"except SystemExit:\n print('imported', *({set(heavy.split())} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--workdir" in found.stdout and found.stdout.splitlines()[-1] == "imported", found.stdout[-200:]


def test_values_are_read_as_their_key_wants():
    c = config.load(
        DIGITS, {"training.k": "inf", "training.n_iters": "1e3", "model.ch_mult": "(1,2,4)", "data.dir": "a b"}
    )
    assert (c.training.k, c.training.n_iters, c.model.ch_mult, c.data.dir) == (float("inf"), 1000, (1, 2, 4), "a b")
    assert config.load(DIGITS, {"training.k": "2"}).training.k == 2.0
    assert config.load(DIGITS, {"training.st": "false"}).training.st is False
    with pytest.raises(AttributeError):
        c.training.kk = 3


COMMANDS = {"train": train, "eval": eval_command, "sample": sample, "edit": edit, "sweep": sweep, "convert": convert}
COMMANDS |= {"quality": quality, "report": report, "data": data_command, "plan": plan}
COMMANDS |= {"copy": copy, "bench": bench, "study": study}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys, command):
    """Groups, three examples that the command takes, exit codes."""
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command].main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "\ngeneral:\n" in shown and "\noptions:\n" not in shown
    assert "--quiet" in shown and "\nexit codes:\n  0  " in shown and "\n  2  " in shown
    examples = shown.partition("examples:\n")[2].partition("exit codes:")[0].replace("\\\n", " ").splitlines()
    examples = [shlex.split(line) for line in examples if line.startswith("  python")]
    assert len(examples) >= 3
    for words in examples:
        assert words[:3] == ["python", "-m", f"score_st.{command}"]
        changes, others = cli.overrides(words[3:])
        COMMANDS[command].parser().parse_args(others)
        assert changes.keys() <= config.flatten(config.default()).keys()


def test_a_full_disk_is_one_line():
    code = "from score_st.runtime import cli; cli.run(lambda: open('/dev/full', 'w').write('x' * 100_000))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (74, "error: No space left on device; what was saved stays\n")


def test_quiet_is_of_one_run(capsys):
    for words, lines in ((["--quiet"], 0), ([], 1)):
        with cli.parsed(cli.parser("train", "", ""), ["--config", DIGITS, "--workdir", "w", *words]):
            assert progress.quiet is bool(words)
        assert progress.Loop("step", 0, 2, "steps")(2) > 0
        assert capsys.readouterr().out.count("\n") == lines
