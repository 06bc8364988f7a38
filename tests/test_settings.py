"""Every key through values at and beyond its range: refused in a line that names it, or settings that can be built."""

import contextlib
import copy
import math
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.commands import DIGITS, OFFICIAL_DIGITS, ROOT, SMALL, TINY, overrides, refused
from support.small import Small

from score_st import config, networks, sample, settings, train
from score_st import eval as eval_command
from score_st.diffusion import losses, parametrization, samplers, sde, truncation
from score_st.model import DiffusionModel
from score_st.networks import ncsnpp
from score_st.ranges import problem
from score_st.training import optimizer

EXTREMES = ("-1", "0", "1e30", "-1e30", "nan", "inf", "-inf", "", "abc", "True", "(1,)", "None")
TUPLES = ("(0,)", "(-1,)", "(1.5,)", "(1e30,)", "()", "(nan,)", "('a',)", "((1,),)", "(True,)", "[4]", "(1,2,3)")
LEAST_VALUES = 2000


def texts(key: str) -> list[str]:
    """Values of a key as they stand on a command line: extremes, and the bounds of its range ± 1."""
    range = settings.ALL[key].range
    edges = range.edges() if range.kind is not tuple else [edge[0] for edge in range.edges()]
    numbers = [edge for edge in edges if isinstance(edge, int | float) and not isinstance(edge, bool)]
    near = [f"{number + step!r}" for number in numbers for step in (-1, 0, 1)]
    near = [f"({text},)" for text in near] + list(TUPLES) if range.kind is tuple else near
    return list(dict.fromkeys([*EXTREMES, *near, *(str(edge) for edge in edges if edge not in numbers)]))


def outcome(base: ConfigDict, key: str, text: str) -> tuple[ConfigDict, str]:
    """A configuration with another value, and what is wrong with that; "" for nothing."""
    changed = copy.deepcopy(base)
    try:
        config.check(config.changed(changed, {key: text}))
    except config.ConfigError as error:
        return changed, str(error)
    return changed, ""


def build(c: ConfigDict) -> None:
    """Everything that a configuration describes but the network."""
    diffusion = sde.from_config(c)
    parametrization.from_config(c, diffusion)
    truncation.from_config(c)
    losses.from_config(c, diffusion, groups=1)
    samplers.from_config(c)
    optimizer.optimizer_from_config(c, Small())


@pytest.fixture(scope="module")
def base():
    return config.load(ROOT / OFFICIAL_DIGITS, TINY)


@pytest.mark.parametrize("section", ["seed", *settings.SECTIONS])
def test_every_value_is_refused_in_a_line_or_can_be_built(base, section, record_property):
    counts = {"keys": 0, "refused": 0, "allowed": 0}
    for key in settings.ALL:
        if key.partition(".")[0] != section:
            continue
        counts["keys"] += 1
        for text in texts(key):
            changed, wrong = outcome(base, key, text)
            counts["refused" if wrong else "allowed"] += 1
            if wrong:
                line = re.fullmatch(r"(--)?config\.\w[^\n]*: (should|unknown|each)[^\n]*", wrong)
                assert line and key in wrong, f"{key}={text}: {wrong}"
            else:
                with contextlib.suppress(config.ConfigError):  # settings that make no sense together say so
                    build(changed)
    for name, count in counts.items():
        record_property(name, count)
    print(f"{section}: {counts}")
    assert counts["keys"] and counts["refused"] and counts["allowed"]


def test_how_many_values_there_are():
    count = sum(len(texts(key)) for key in settings.ALL)
    print(f"{len(settings.ALL)} keys, {count} values")
    assert count >= LEAST_VALUES


def test_every_default_is_in_its_range_and_has_a_meaning():
    assert config.flatten(config.default()) == {key: setting.default for key, setting in settings.ALL.items()}
    for key, setting in settings.ALL.items():
        assert not problem(setting.range, setting.default), key
        assert type(setting.default) is setting.range.kind, key
        assert setting.meaning and not setting.meaning.endswith("."), key
    for name in config.packaged():
        config.check(config.load(name))


ALLOWED = {
    "training.k": ("0", "inf"),
    "seed": ("0", "4294967295"),
    "sampling.lambda_": ("-1", "0", "1"),
    "sampling.steps": ("0", "1"),
    "optim.grad_clip": ("-1", "0.5"),
    "model.ema_rate": ("0", "0.9999"),
    "model.dropout": ("0", "0.99"),
    "eval.gradient_images": ("0", "2"),
    "training.profile_steps": ("", "1-1", "100-110"),
    "data.num_levels": ("2", "256"),
    "data.dir": ("", "gs://bucket/data", "a b"),
    "training.sde": ("VPSDE",),
}
REFUSED = {
    "optim.lr=-1": "should be above 0",
    "optim.lr=1e30": "should be at most 1,000",
    "optim.grad_clip=0": "should be above 0, or negative for no clipping",
    "training.k=nan": "should be 0 or more, or inf for no Soft Truncation",
    "seed=-1": "should be from 0 to 4,294,967,295",
    "seed=4294967296": "should be from 0 to 4,294,967,295",
    "training.truncation_time=0": "should be above 0 and below 1",
    "sampling.truncation_time=1": "should be above 0 and below 1",
    "model.ema_rate=1": "should be 0 or more and below 1",
    "model.dropout=1.5": "should be 0 or more and below 1",
    "training.log_freq=0": "should be 1 or more",
    "training.n_iters=0": "should be 1 or more",
    "eval.rtol=0": "should be above 0",
    "sampling.group=0": "should be 1 or more",
    "model.ch_mult=(1.5,)": "should be a tuple of whole numbers above 0, at least one",
    "model.ch_mult=()": "should be a tuple of whole numbers above 0, at least one",
    "model.fir_kernel=(1,-1)": "should be a tuple of 2 to 64 numbers whose sum is not 0",
    "training.profile_steps=5-2": "should be two steps A-B with 1 <= A <= B, such as 100-110, or empty",
    "data.num_channels=2": "should be 1 or 3",
    "data.dir=~/data": "should be a path or a URL; only a shell expands ~, so write it out",
    "sampling.predictor=None": "choose from euler_maruyama",
    "training.sde=": "should be the name of an entry",
    "model.sigma_min=60": "should be below model.sigma_max=50",
    "model.beta_min=21": "should be at most model.beta_max=20",
    "training.averages=3601": "should be at most training.n_iters=3600",
}


@pytest.mark.parametrize("text", ["110-100", "0-5", "5", "a-b", "5-", "1-2-3", "-1-2", "1 - 2", "1-99999999999"])
def test_steps_to_profile(base, text):
    wanted = f"config.training.profile_steps={text!r}: should be two steps A-B with 1 <= A"
    assert wanted in outcome(base, "training.profile_steps", text)[1]


def test_values_at_the_edges(base):
    for key, values in ALLOWED.items():
        for text in values:
            assert not outcome(base, key, text)[1], (key, text)
    for change, wanted in REFUSED.items():
        assert wanted in outcome(base, *change.split("=", 1))[1], change


def test_nothing_is_written_and_nothing_built(capsys, tmp_path):
    """The commands: what only a snapshot would have met is found before the workdir is made."""
    for setting in (
        "sampling.group=0",
        "sampling.truncation_time=0",
        "eval.batch_size=0",
        "training.snapshot_freq=0",
        "model.nf=9",
        "seed=99999999999999999999",
    ):
        for main in (train.main, eval_command.main):
            argv = ["--config", DIGITS, "--workdir", tmp_path / "run", f"--config.{setting}"]
            assert setting.partition("=")[0] in refused(capsys, main, argv)
        assert not (tmp_path / "run").exists()


def test_python_values(base):
    """NumPy's numbers are numbers; None, another type, and a missing or an unknown key are not."""
    c = copy.deepcopy(base).unlock()
    with c.ignore_type():
        c.training.batch_size, c.optim.lr, c.training.st = np.int64(16), np.float32(0.5), np.bool_(True)
        config.check(c)
        assert '"batch_size": 16' in config.to_json(c) and '"lr": 0.5' in config.to_json(c)
        for value in (None, 16.0, "16", True, (16,), np.ones(2)):
            c.training.batch_size = value
            with pytest.raises(config.ConfigError, match=r"config\.training\.batch_size=.*: should be a whole number"):
                config.check(c)
    for change, wanted in (
        (lambda c: c.optim.__delattr__("lr"), r"config\.optim\.lr: is missing"),
        (lambda c: c.__delattr__("eval"), r"config\.eval\.\w+: is missing"),
        (lambda c: c.optim.update(lrr=1), r"config\.optim\.lrr: unknown key; did you mean optim\.lr"),
    ):
        c = copy.deepcopy(base).unlock()
        change(c)
        with pytest.raises(config.ConfigError, match=wanted):
            config.check(c)
        with pytest.raises(config.ConfigError, match=wanted):
            DiffusionModel.from_config(c)


HEADER = "import sys\nimport numpy as np\nfrom score_st.config import default\ndef get_config():\n c = default()\n "
FILES = {
    "sys.exit(3)": "SystemExit: 3",
    "raise KeyError('x')": "KeyError: 'x'",
    "del c.optim": "optim.optimizer is missing; a configuration is made by score_st.config.default()",
    "c.optim = None": "is missing",
    "c.optim.lr = None": "config.optim.lr=None: should be a number",
    "c.unlock(); c.my = 3": "unknown key my",
    "c.optim.lr = float('nan')": "config.optim.lr=nan: should be above 0",
    "c.training.batch_size = None": "config.training.batch_size=None: should be a whole number",
    "c.training.batch_size = 'a'": "batch_size",
}


@pytest.mark.parametrize("line", FILES)
def test_configuration_files(capsys, tmp_path, line):
    (tmp_path / "own.py").write_text(f"{HEADER}{line}\n return c")
    error = refused(capsys, train.main, ["--config", tmp_path / "own.py", "--workdir", tmp_path / "run"])
    assert FILES[line] in error
    assert not (tmp_path / "run").exists()


def test_a_file_that_ends_the_program_when_read(capsys, tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('no')")
    error = refused(capsys, train.main, ["--config", tmp_path / "own.py", "--workdir", tmp_path / "run"])
    assert "SystemExit: no" in error


def test_numpy_in_a_configuration_file(tmp_path):
    text = "c.optim.lr = np.float64(0.5); c.model.ch_mult = [np.int64(1), 2]\n with c.ignore_type():\n  "
    text += "c.training.batch_size = np.int32(7)"
    (tmp_path / "own.py").write_text(f"{HEADER}{text}\n return c")
    c = config.load(tmp_path / "own.py")
    config.check(c)
    values = c.optim.lr, c.model.ch_mult, c.training.batch_size
    assert values == (0.5, (1, 2), 7) and [type(v) for v in (*values, *values[1])] == [float, tuple, int, int, int]


UNAFFORDABLE = {
    "model.nf=1000000000": "config.model.nf=1000000000: the network would have more than 3.4e+19 parameters, and take",
    "model.nf=65536": "GB for the state of",
    "training.batch_size=1000000000": "GB for 125,000,000 images at a time, and has",
    "sampling.group=1000000000": "config.sampling.group=1000000000: each of 8 devices would need at least",
    "eval.batch_size=1000000000": "config.eval.batch_size=1000000000 with n_probes=1: each of 8 devices would need",
    "eval.n_probes=1000000000": "GB for 1,000,000,000 probes each, and has",
}


@pytest.mark.parametrize("setting", UNAFFORDABLE)
def test_what_can_not_be_afforded(capsys, tmp_path, setting):
    settings = overrides(eval__group="0") + [f"--config.{setting}"]
    argv = ["--config", OFFICIAL_DIGITS, "--workdir", tmp_path / "run", *settings]
    assert UNAFFORDABLE[setting] in refused(capsys, train.main, argv)
    assert not (tmp_path / "run").exists()


def test_the_least_that_is_counted_is_less_than_a_network_has():
    """Of networks of many forms: the parameters and, of an image, the numbers that are counted in closed form."""
    for name in ("vp/CIFAR10/ddpmpp_nll_st", "ve/CIFAR10/uncsnpp_st", "vp/CIFAR10/ddpmpp_fid_st_deepest"):
        c = config.load(name)
        network = networks.from_config(c)
        params = DiffusionModel.from_config(c).abstract_params
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count / 8 < ncsnpp.least_parameters(c.model) < count, name
        assert network.least_numbers(32, 32) >= 32 * 32 * c.model.nf


@pytest.mark.parametrize("nf", [4, 8, 9, 12, 33, 36, 48, 64, 68, 96, 128, 132, 160])
@pytest.mark.parametrize("ch_mult", [(1,), (1, 2), (2, 1, 3)])
@pytest.mark.parametrize("combine", ["sum", "cat"])
def test_channels_that_groups_divide(base, nf, ch_mult, combine):
    """Refused exactly where a network can't be traced."""
    c = copy.deepcopy(base).unlock()
    c.model.update(nf=nf, ch_mult=ch_mult, progressive_input="input_skip", progressive_combine=combine, fir=True)
    refused = False
    try:
        network = networks.from_config(c)
    except config.ConfigError as error:
        refused, would_do = True, int(re.search(r"(\d+) would do", str(error))[1])
        network = ncsnpp.build(c)
        c.model.nf = would_do
        networks.from_config(c)
    try:
        jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), np.ones(1, np.float32))
        traced = True
    except (ZeroDivisionError, TypeError, ValueError):
        traced = False
    assert traced != refused


def test_help_of_the_configuration(capsys):
    """Of each section, and of all: every key with its default, its meaning and its range."""
    for section in ("", *settings.SECTIONS):
        with pytest.raises(SystemExit) as stop:
            train.main(["--help-config", section][: 1 + bool(section)])
        shown = capsys.readouterr().out
        assert stop.value.code == 0
        for key, setting in settings.ALL.items():
            listed = f"{key}=" in shown and setting.meaning in shown
            assert listed == (not section or key.startswith(f"{section}.")), key
    assert "one of vpsde, subvpsde" in config.described("training")
    assert "no such section" in refused(capsys, train.main, ["--help-config", "optimizer"])


NAMES = {
    "": "an empty path",
    " ": "an empty path",
    "~nobody-of-this-name/run": "there is no such user",
    "file:///tmp/run": "should be a local path, gs://bucket/folder or s3://bucket/folder",
    "http://host/run": "should be a local path, gs://bucket/folder or s3://bucket/folder",
    "gs://": "should be a local path, gs://bucket/folder or s3://bucket/folder",
    "gs:/bucket/run": "should be gs://bucket/folder",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_workdirs(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for main in (train.main, sample.main):
        assert NAMES[name] in refused(capsys, main, ["--config", DIGITS, "--workdir", name])
    with pytest.raises(config.ConfigError, match=re.escape(NAMES[name])):
        train.train(config.load(DIGITS), name)
    assert not list(tmp_path.iterdir())


def test_home(tmp_path, monkeypatch):
    """A shell leaves ~ alone in --workdir=~/run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.parser().parse_args(["--config", DIGITS, "--workdir=~/run"]).workdir.text == f"{tmp_path}/run"
    assert train.parser().parse_args(["--config", DIGITS, "--workdir=./~/run"]).workdir.text == "./~/run"


OPTIONS = {
    ("--seed", "4294967296"): "argument --seed: 4294967296: should be from 0 to 4,294,967,295",
    ("--seed", "-1"): "should be from 0 to 4,294,967,295",
    ("--num", "0"): "argument --num: 0: should be 1 or more",
    ("--num", "-3"): "should be 1 or more",
    ("--num", "many"): "argument --num: many: should be a whole number",
    ("--steps", "0"): "argument --steps: 0: should be 1 or more",
    ("--steps", "5"): "--steps 5: the sampler ode chooses its own",
    ("--sampler", "none"): "config.sampling.predictor='none': should not be none where sampling.corrector is none",
    ("--step", "-1"): "argument --step: -1: should be 0 or more",
    ("--below", "inf"): "argument --below: inf: should be above 0",
    ("--guidance", "nan"): "argument --guidance: nan: should be finite",
}


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_numbers_of_options(capsys, tmp_path, words):
    """Of options as of keys."""
    assert OPTIONS[words] in refused(capsys, sample.main, ["--config", DIGITS, "--workdir", tmp_path / "run", *words])
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_are_done(capsys, tmp_path, one_device):
    """An error that leaves config.json as it was; the number that is done is right."""
    argv = ["--config", SMALL, "--workdir", str(tmp_path / "run"), "--quiet", "--config.training.eval_images=0"]
    argv += ["--config.training.snapshot_freq_for_preemption=2"]
    train.main([*argv, "--config.training.n_iters=4"], one_device)
    before = (tmp_path / "run/config.json").read_text()
    main = lambda words: train.main(words, one_device)
    error = refused(capsys, main, [*argv, "--config.training.n_iters=2"])
    assert f"config.training.n_iters=2: 4 steps are done in {tmp_path}/run; should be 4 or more" in error
    assert (tmp_path / "run/config.json").read_text() == before
    train.main([*argv, "--config.training.n_iters=4"], one_device)
    assert math.isclose(float((tmp_path / "run/snapshot").read_text()), 4)
