"""The configuration: every key with its default, read from a file, changed on the command line.

A configuration file is Python and defines `get_config()`, which takes `default()` and changes a few keys. Sections and
names are those of the official PyTorch code, so `--config.training.k=2.0` means here what it means there. Keys that
only this package has are marked `ours`; the official code's behavior is their default.
"""

import ast
import collections
import contextlib
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

Entry = TypeVar("Entry")

TRAINING = dict(
    sde="vpsde",  # an entry of diffusion.sde.SDES: vpsde, subvpsde, vesde or reciprocal_vesde
    batch_size=128,  # images per step, over all devices
    n_iters=1300001,  # steps in all
    snapshot_freq=100000,  # steps between checkpoints that are kept, with samples and bits/dim
    snapshot_freq_for_preemption=10000,  # steps between checkpoints to resume from
    log_freq=100,  # steps between lines of the log
    eval_freq=100,  # steps between losses of a test batch
    snapshot_sampling=False,  # draw a grid of samples at each snapshot
    continuous=True,  # False: the discrete losses of DDPM (VP) and SMLD (VE)
    importance_sampling=True,  # draw times from the likelihood's importance distribution
    likelihood_weighting=True,  # weight the loss by g²/σ²
    time_sampler="",  # ours: an entry of diffusion.time_sampling.TIME_SAMPLERS; empty: as the official keys say
    weighting="",  # ours: an entry of diffusion.weighting.WEIGHTINGS; empty: as the official keys say
    lognormal_mean=-1.2,  # ours: of ln(σ/α) for data in [-1, 1], of lognormal times and edm weighting
    lognormal_std=1.2,  # ours: of ln(σ/α), of lognormal times and edm weighting
    sigmoid_bias=2.0,  # ours: b of the sigmoid weighting
    min_snr_gamma=5.0,  # ours: γ of the min_snr weighting
    loss="",  # ours: an entry of diffusion.losses.LOSSES; empty: as `continuous` and `mixed` say
    reduce_mean=False,  # average the loss over dimensions instead of summing
    reconstruction_loss=False,  # add the reconstruction term at τ
    mixed=False,  # half of the batch with importance sampling, half with uniform times
    ddpm_weight=0.01,  # weight of the second half
    balanced=False,  # scale the second half to the size of the first
    st=False,  # Soft Truncation
    k=1.0,  # τ ~ τ^-k on [truncation_time, 1]; inf: τ = truncation_time
    truncation_prior="power",  # ours: an entry of diffusion.truncation.TRUNCATION_PRIORS
    truncation_weighting="",  # ours: with truncation_prior=weighting: the entry of WEIGHTINGS whose prior it is
    tau_groups=0,  # ours: draws of τ per step; 0: one per device, 1: one per batch, batch_size: one per image
    stratified=False,  # ours: spread times evenly over the images that share a τ, and τ over its draws
    eval_images=256,  # ours: held-out images of `eval_nelbo` in the log, always with the same noise; 0: none
    fsdp=1,  # ours: devices over which parameters, optimizer state and average are sharded
    dtype="float32",  # ours: arithmetic of training, or bfloat16; weights, statistics and loss stay float32
    reduce_dtype="float32",  # ours: type in which gradients are summed across devices, or bfloat16
    remat="none",  # ours: what the backward pass recomputes: none, elementwise or blocks
    n_jitted_steps=1,  # ours: steps per dispatch
    profile_steps="",  # ours: steps A-B that JAX's profiler traces, such as 100-110; empty: none
    averages=0,  # ours: times that averages are stored, from which --ema makes any width; 0: no such averages
    truncation_time=1e-5,  # ε, the smallest time
    unbounded_parametrization=False,  # the time conditioning of U-DDPM++ and U-NCSN++
    stabilizing_constant=1e-3,  # of the unbounded time conditioning of VP
    ddpm_score=True,  # VP: the network predicts the noise, not the score
    eta=1e-3,  # of reciprocal_vesde
    official_loss=False,  # ours: weight and sum the loss as the official code does (docs: departures)
)
SAMPLING = dict(
    method="ode",  # ode (adaptive solver of the probability flow) or pc (predictor and corrector)
    predictor="euler_maruyama",  # an entry of diffusion.samplers.PREDICTORS, or none
    corrector="none",  # an entry of diffusion.samplers.CORRECTORS, or none
    n_steps_each=1,  # corrector steps per predictor step
    noise_removal=True,  # end with the mean of x_0 given x_ε
    probability_flow=False,  # a predictor without noise
    lambda_=-1.0,  # ours: noise of the predictor; 1: the reverse SDE, 0: none, negative: the predictor's own
    churn=0.0,  # ours: S_churn of heun
    steps=0,  # ours: predictor steps; 0: model.num_scales
    snr=0.16,  # signal-to-noise ratio of the corrector
    grid="uniform",  # ours: an entry of diffusion.samplers.GRIDS: uniform, quadratic, logsnr or edm
    batch_size=1024,  # images per file of samples
    group=16,  # ours: images computed together on a device; another number may change the last bits
    truncation_time=1e-5,  # ε of sampling
    rtol=1e-5,  # ours: relative tolerance of the solver
    atol=1e-5,  # ours: absolute tolerance of the solver
)
EVAL = dict(
    batch_size=200,  # images per batch, over all devices
    group=0,  # ours: images computed together, with the same bits on any number of devices; 0: a device's share
    enable_bpd=False,  # bits/dim at each snapshot
    num_samples=50000,  # not used here; an official key
    residual=True,  # False: only the figures without reconstruction, as in earlier papers
    from_x0=True,  # ours: also the flow from x_0, as in earlier papers; takes twice the time
    lambda_=0.0,  # which reverse SDE: 0: the probability flow, and λ = 1 for the NELBO
    nll_iter=1,  # passes over the test set for the NLL, each with new noise; 0: no NLL
    nelbo_iter=1,  # passes over the test set for the NELBO, one time per image; 0: no NELBO
    rtol=1e-5,  # ours: relative tolerance of the solver
    atol=1e-5,  # ours: absolute tolerance of the solver
    hutchinson_type="Rademacher",  # ours: or Gaussian
    n_probes=1,  # ours: Hutchinson probes per image
    trace="hutchinson",  # ours: of the flow's Jacobian: hutchinson, an estimate, or exact, up to 4,096 dimensions
    solver="Dopri5",  # ours: Dopri5, Tsit5, Dopri8 or Bosh3
    max_steps=4096,  # ours: solver steps per image at most
    dequantization="",  # ours: none, uniform, lossless or truncated_normal; empty: data.dequantization
    importance_samples=1,  # ours: samples K of the bound with truncated_normal
    gradient_images=32,  # ours: images for the variance of the gradient over t; 0: none
)
DATA = dict(
    dataset="CIFAR10",  # an entry of data.datasets.DATASETS
    dir="",  # ours: folder with the files of the dataset
    download=False,  # ours: download missing files into data.dir
    prepared="",  # ours: folder of decoded copies, made by `python -m score_st.data`
    local_cache="",  # ours: folder for files of data.dir and data.prepared from buckets; empty: ~/.cache/score_st
    memory_gb=4.0,  # ours: decoded images of a split are kept in memory up to this size
    num_threads=2,  # ours: threads that read ahead; the batches do not depend on it
    image_size=32,  # height and width
    num_channels=3,  # 1 or 3
    num_levels=256,  # ours: pixel values are 0 ... num_levels - 1
    random_flip=True,  # flip images left to right at random
    centered=False,  # scale to [-1, 1] instead of [0, 1]
    dequantization="none",  # none, uniform or lossless
    category="",  # of LSUN
    tfrecords_path="",  # of CelebA-HQ and FFHQ, inside data.dir
)
MODEL = dict(
    name="ncsnpp",  # an entry of networks.NETWORKS
    parametrization="",  # ours: an entry of diffusion.parametrization.PARAMETRIZATIONS; empty: the SDE's own
    time_conditioning="",  # ours: bounded (999 t), unbounded or log_noise_level; empty: the parametrization's own
    data_std=0.5,  # ours: standard deviation of the scaled data: d of parametrization edm, idode times, edm weighting
    data_mean=0.0,  # ours: mean of the scaled data, for parametrization=edm
    ema_rate=0.9999,  # of the moving average of the weights
    sigma_min=0.01,  # of VE and RVE
    sigma_max=50.0,  # of VE and RVE
    num_scales=1000,  # noise levels of discrete losses; steps of a sampler
    beta_min=0.1,  # of VP and sub-VP
    beta_max=20.0,  # of VP and sub-VP
    nf=128,  # channels at full resolution
    ch_mult=(1, 2, 2, 2),  # channels at each resolution, in units of nf
    num_res_blocks=4,  # residual blocks per resolution
    attn_resolutions=(16,),  # image sizes with attention
    attention=True,  # False: attention only in the middle
    dropout=0.1,  # dropout rate
    embedding_type="fourier",  # of the time: fourier or positional
    embedding_dim=128,  # of the time embedding, with lsgm; otherwise nf
    lsgm=False,  # use embedding_dim
    fourier_scale=16.0,  # standard deviation of the frequencies
    fourier_feature=False,  # append sines and cosines of the image to the input
    conditional=True,  # condition the network on time
    scale_by_sigma=False,  # divide the output by σ
    nonlinearity="swish",  # swish, elu, relu or lrelu
    resblock_type="biggan",  # biggan or ddpm
    resamp_with_conv=True,  # resample with a convolution, where resblock_type=ddpm
    fir=False,  # resample with a FIR filter
    fir_kernel=(1, 3, 3, 1),  # of the filter
    skip_rescale=True,  # divide sums by √2
    progressive="none",  # output pyramid: none, output_skip or residual
    progressive_input="none",  # input pyramid: none, input_skip or residual
    progressive_combine="sum",  # how the input pyramid is merged: sum or cat
    auxiliary_resblock=True,  # residual blocks that resample
    init_scale=0.0,  # of the last convolutions; 0: 1e-10
)
OPTIM = dict(
    optimizer="Adam",  # Adam or AdamW
    lr=2e-4,  # learning rate after warm-up
    beta1=0.9,  # of Adam
    eps=1e-8,  # of Adam
    weight_decay=0.0,  # of Adam (L2) or AdamW (decoupled)
    warmup=5000,  # steps of linear warm-up
    schedule="constant",  # ours: the rate after warm-up, constant or cosine (down to 0 at training.n_iters)
    grad_clip=1.0,  # clips the global norm of the gradient; negative: no clipping
    num_micro_batch=1,  # parts of a device's share, computed one after the other
)
STORAGE = dict(
    patience=900.0,  # ours: seconds to wait for a bucket that does not answer, before exit code 75
    lease=30.0,  # ours: seconds without a sign of life after which another trainer's workdir is taken over
    rescue="",  # ours: folder for a checkpoint that can't reach its bucket; empty: a new temporary one
)
SECTIONS = {
    "training": TRAINING,
    "sampling": SAMPLING,
    "eval": EVAL,
    "data": DATA,
    "model": MODEL,
    "optim": OPTIM,
    "storage": STORAGE,
}

# keys that may change from one run to the next in the same workdir
FREE = (
    *("eval.", "sampling.", "training.n_iters", "training.snapshot", "training.log_freq", "training.eval_"),
    *("data.memory_gb", "data.num_threads", "data.download", "data.prepared", "data.local_cache", "storage."),
    *("training.fsdp", "training.remat", "training.n_jitted_steps", "training.profile_steps"),
)
# keys without which the weights of a checkpoint can't be understood
MEANING = (
    *("model.", "data.image_size", "data.num_channels", "data.centered", "training.sde", "training.continuous"),
    *("training.ddpm_score", "training.unbounded_parametrization", "training.stabilizing_constant", "training.eta"),
)


class ConfigError(ValueError):
    """A request that can't be met. The message is one line that says what would be possible."""


class Table(collections.UserDict[str, Entry]):
    """The entries of one concept by name, and the only way in: nothing else in the package asks for a name.

    A configuration file may add entries (`SDES["cosine"] = Cosine`); those of the package can't be replaced.

    Args:
      key: the configuration key that names an entry, such as "training.sde".
      entries: those of the package.
      also: other keys that name an entry.
    """

    all: dict[str, "Table"] = {}  # by key

    def __init__(self, key: str, entries: Mapping[str, Entry], also: tuple[str, ...] = ()) -> None:
        """Makes the table of `key`."""
        self.key, self._own = key, frozenset[str]()
        super().__init__(entries)
        self._own = frozenset(entries)
        Table.all |= dict.fromkeys((key, *also), self)

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Adds an entry; raises ConfigError where the package has one of this name."""
        if name in self._own:
            raise ConfigError(f"config.{self.key}: {name!r} is an entry of the package; add yours by another name")
        super().__setitem__(name, entry)

    def choose(self, name: str, key: str = "") -> Entry:
        """The entry `name`.

        Args:
          name: what the configuration has.
          key: where it has it, if that is not the table's own key.

        Raises:
          ConfigError: there is none; the message lists the choices.
        """
        return choose(self.data, name, key or self.key)


def default() -> ConfigDict:
    """All keys, with the values shared by the official CIFAR-10 configurations."""
    return ConfigDict({"seed": 42} | {name: dict(section) for name, section in SECTIONS.items()})


def flatten(config: ConfigDict | dict) -> dict[str, Any]:
    """The values by dotted key: {'training.k': 1.0, ...}."""
    flat = {}
    for section, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat.update({f"{section}.{key}": v for key, v in value.items()})
        else:
            flat[section] = value
    return flat


def packaged() -> dict[str, Path]:
    """The configurations that come with the package, by name ("vp/CIFAR10/ddpmpp_nll_st")."""
    installed = Path(__file__).with_name("configs")  # a checkout has them at its top
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.py"))}


def find(name: str | Path) -> Path:
    """The file at this path, or the packaged configuration of this name, with or without .py.

    Raises:
      ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known, wanted = packaged(), path.as_posix().removeprefix("configs/").removesuffix(".py")
    if wanted in known:
        return known[wanted]
    close = [key for key in known if key.endswith(f"/{wanted}")]
    close = close or difflib.get_close_matches(wanted, known, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(close[:3])}?" if close else "the package has vp/DIGITS/ddpmpp_nll_st, for example"
    )
    raise ConfigError(f"--config {name}: no such file, and no configuration of that name in the package; {hint}")


def read(path: str | Path) -> ConfigDict:
    """The configuration of a Python file that defines `get_config()`, or of a packaged name.

    Raises:
      ConfigError: there is no such file, it is no configuration, or it has an unknown key.
    """
    path = find(path)
    module = _run(path, "--config")
    with _one_line(f"--config {path}"):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config {path}: get_config() should return an ml_collections.ConfigDict")
    for key in flatten(config).keys() - flatten(default()).keys():
        raise ConfigError(f"--config {path}: unknown key {key}{_suggest(key)}")
    return config


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turns what a user's file raises, which may be anything, into a ConfigError."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _run(path: Path, option: str) -> Any:
    """Runs a configuration file, which may add entries to tables, and returns it as a module."""
    name = f"score_st_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option} {path}: not a Python file; it should end in .py and define get_config()")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look up their module
    with _one_line(f"{option} {path}"):
        spec.loader.exec_module(module)
    return module


def unknown_entries(config: ConfigDict | dict) -> list[str]:
    """The keys of `config` whose value is no entry of their table."""
    flat = flatten(config)
    known = lambda name, table: name in table or str(name).lower() in table
    return sorted(key for key, table in Table.all.items() if flat.get(key) and not known(flat[key], table))


def add_entries(config: ConfigDict | dict, workdir: str | Path) -> None:
    """Adds the entries that `config` names and no table has from the workdir's own configuration file.

    Training keeps there as config.py what was given as --config, if it is no file of the package. It is run only if
    an entry is unknown.

    Raises:
      ConfigError: the file can't be run.
    """
    path = Path(workdir) / "config.py"
    if path.is_file() and unknown_entries(config):
        _run(path, "--workdir")


def changed(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Changes some keys of `config` in place, and locks it.

    Args:
      config: all keys.
      overrides: values as they stand on the command line, by dotted key (`{'training.k': '2.0'}`).

    Returns:
      `config` itself.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type.
    """
    flat = flatten(config)
    for key, text in overrides.items():
        if key not in flat:
            raise ConfigError(f"--config.{key}: unknown key{_suggest(key)}")
        *section, name = key.split(".")
        target = config[section[0]] if section else config
        with target.unlocked():
            target[name] = _parse(key, text, flat[key])
    return config.lock()


def load(path: str | Path, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """The configuration of a file (see `read`) with some keys changed (see `changed`)."""
    return changed(read(path), overrides or {})


def from_workdir(workdir: str | Path, settings: Mapping[str, Any] | None = None) -> ConfigDict:
    """The configuration in a workdir's `config.json`; keys that it lacks have their default.

    Args:
      workdir: of training or conversion.
      settings: other values for some keys, by dotted key.

    Raises:
      ConfigError: no such file, a damaged one, an unknown key or entry of a table, or a value of the wrong type.
    """
    path = Path(workdir) / "config.json"
    try:
        stored = flatten(ConfigDict(json.loads(path.read_text())))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); training and conversion write it") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error})") from error
    config = changed(default(), {key: str(value) for key, value in (stored | dict(settings or {})).items()})
    add_entries(config, workdir)
    for key in unknown_entries(config):
        where = f"{Path(workdir) / 'config.py'}, which should add it,"
        state = "does not" if (Path(workdir) / "config.py").is_file() else "is not there"
        raise ConfigError(f"{path}: {key}={flatten(config)[key]!r} is unknown, and {where} {state}")
    return config


def _suggest(key: str) -> str:
    known = list(flatten(default()))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:  # the right name in the wrong section
        close = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f"; did you mean {close[0]}?" if close else ""


TYPES = {bool: "True or False", int: "a whole number", float: "a number", tuple: "a tuple such as (1, 2, 2)"}


def _parse(key: str, text: str, old: Any) -> Any:
    """`text` as a value of the type of `old`."""
    if isinstance(old, str):
        return text
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, tuple):
            value = ast.literal_eval(text)
            value = tuple(value) if isinstance(value, tuple | list) else (value,)
            return tuple(number + 0 for number in value)  # raises TypeError for what is no number
        if isinstance(old, int) and "e" not in text.lower():
            return int(text)
        number = float(text)
        if isinstance(old, int) and number != int(number):
            raise ValueError("not whole")
        return int(number) if isinstance(old, int) else number
    except (KeyError, ValueError, SyntaxError, OverflowError, TypeError) as error:
        what = TYPES[type(old)]
        raise ConfigError(f"--config.{key}={text}: should be {what}, like the default {old!r}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The `keys` that differ, as "a=1 (not 2), … and 2 more", with the value of `new` in brackets; "" for none."""
    different = [f"{key}={old.get(key)!r} (not {new.get(key)!r})" for key in keys if old.get(key) != new.get(key)]
    return ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")


def to_json(config: ConfigDict) -> str:
    """The configuration as `config.json` has it."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def choose(table: Mapping[str, Entry], name: str, key: str) -> Entry:
    """`table[name]`, or a ConfigError that lists the choices; `key` names the setting."""
    if name not in table:
        close = difflib.get_close_matches(str(name), list(table), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"config.{key}: unknown {name!r}; choose from {', '.join(table)}{hint}")
    return table[name]
