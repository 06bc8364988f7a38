"""The configuration: every key with its default, read from a file, changed on the command line.

A config file defines `get_config()`, which takes `default()` and changes a few keys of it. Sections and names are
those of the official PyTorch code, so `--config.training.k=2.0` means here what it means there; keys that only this
package has are marked `# ours`.
"""

import ast
import difflib
import importlib.util
import json
from pathlib import Path

from ml_collections import ConfigDict

# keys that may change from one run to the next in the same workdir
FREE = ("eval.", "sampling.", "training.n_iters", "training.snapshot", "training.log_freq", "training.eval_freq")
FREE += ("data.memory_gb", "data.num_threads", "data.download", "data.prepared")
FREE += ("training.fsdp", "training.remat", "training.n_jitted_steps")
# keys that say what the weights of a checkpoint mean
MEANING = (
    "model.",
    "data.image_size",
    "data.num_channels",
    "data.centered",
    "training.sde",
    "training.continuous",
    "training.ddpm_score",
    "training.unbounded_parametrization",
    "training.stabilizing_constant",
    "training.eta",
)


class ConfigError(ValueError):
    """Something that the user asked for is not possible; the message is one line that says what would be."""


def default() -> ConfigDict:
    """All keys, with the values shared by the official CIFAR-10 configurations."""
    config = ConfigDict()
    config.seed = 42
    config.training = ConfigDict(
        dict(
            sde="vpsde",  # vpsde, subvpsde, vesde or reciprocal_vesde
            batch_size=128,  # images a step, over all devices
            n_iters=1300001,
            snapshot_freq=100000,  # steps between checkpoints that are kept
            snapshot_freq_for_preemption=10000,  # steps between checkpoints for resuming
            log_freq=100,
            eval_freq=100,
            snapshot_sampling=False,  # a picture of samples at each snapshot
            continuous=True,  # False: the discrete losses of DDPM (VP) and SMLD (VE)
            importance_sampling=True,
            likelihood_weighting=True,
            reduce_mean=False,
            reconstruction_loss=False,
            mixed=False,  # half of the batch importance sampled, half with uniform times
            ddpm_weight=0.01,  # the weight of the second half
            balanced=False,  # and whether it is scaled to the first
            st=False,  # Soft Truncation
            k=1.0,  # tau ~ tau^-k on [truncation_time, 1]; inf is no soft truncation
            tau_groups=0,  # ours: draws of tau a step: 0 one a device, 1 one a batch, batch_size one an image
            fsdp=1,  # ours: devices that keep parameters, optimiser and average together, each a share
            dtype="float32",  # ours: of training's arithmetic, or bfloat16; weights, statistics, loss stay float32
            reduce_dtype="float32",  # ours: in which gradients are summed across devices, or bfloat16
            remat="none",  # ours: what the backward pass computes again: none, elementwise or blocks
            n_jitted_steps=1,  # ours: steps a dispatch
            truncation_time=1e-5,
            unbounded_parametrization=False,
            stabilizing_constant=1e-3,
            ddpm_score=True,  # VP: the network predicts the noise, not the score
            eta=1e-3,  # reciprocal_vesde
            official_loss=False,  # ours: weigh and sum the loss as the official code does (README, departures)
        )
    )
    config.sampling = ConfigDict(
        dict(
            method="ode",  # ode or pc
            predictor="euler_maruyama",  # reverse_diffusion, ancestral_sampling, ddim, heun, dpm_solver_2m or none
            corrector="none",
            n_steps_each=1,
            noise_removal=True,
            probability_flow=False,
            lambda_=-1.0,  # ours: noise of the predictor, 1 the reverse SDE's, 0 none; negative is the predictor's own
            churn=0.0,  # ours: S_churn of heun
            steps=0,  # ours: of the predictor; 0 is model.num_scales
            snr=0.16,
            grid="uniform",  # ours: times of the pc sampler: uniform, quadratic, logsnr or edm
            batch_size=1024,  # images a shard
            group=16,  # ours: images computed together on a device; another number may change the last bits
            truncation_time=1e-5,
            rtol=1e-5,  # ours
            atol=1e-5,  # ours
        )
    )
    config.eval = ConfigDict(
        dict(
            batch_size=200,
            group=0,  # ours: images computed together, the same bits on any number of devices; 0 is a device's share
            enable_bpd=False,  # bits/dim at each snapshot
            num_samples=50000,
            residual=True,  # False: only the figures without reconstruction, as in earlier papers
            from_x0=True,  # ours: also the flow from x_0, as in earlier papers; twice the time
            lambda_=0.0,  # the reverse SDE of the family: 0 is the probability flow (and 1 for NELBO)
            nll_iter=1,  # times that the test set is gone through with new noise; 0 leaves the NLL out
            nelbo_iter=1,  # the same for the NELBO, which is times t an image
            rtol=1e-5,  # ours
            atol=1e-5,  # ours
            hutchinson_type="Rademacher",  # ours: or Gaussian
            n_probes=1,  # ours: Hutchinson probes an image
            solver="Dopri5",  # ours: Dopri5, Tsit5, Dopri8 or Bosh3
            max_steps=4096,  # ours: of the ODE solver, for each image
            dequantization="",  # ours: none, uniform, lossless or truncated_normal; empty is that of data
            importance_samples=1,  # ours: K of the bound with truncated_normal
            gradient_images=32,  # ours: for the gradient's variance over t; 0 is none
        )
    )
    config.data = ConfigDict(
        dict(
            dataset="CIFAR10",
            dir="",  # ours: where the files are looked for (README, Data)
            download=False,  # ours: what is missing is fetched into data.dir
            prepared="",  # ours: a folder with decoded copies, which `python -m score_st.data` makes
            memory_gb=4.0,  # ours: decoded images of a split are kept if they take no more
            num_threads=2,  # ours: that read ahead; the batches are the same for any number
            image_size=32,
            num_channels=3,
            num_levels=256,  # ours: pixel values are 0 ... num_levels - 1
            random_flip=True,
            centered=False,  # scaled to [-1, 1] instead of [0, 1]
            dequantization="none",  # none, uniform or lossless
            category="",  # LSUN
            tfrecords_path="",  # CelebA-HQ and FFHQ
        )
    )
    config.model = ConfigDict(
        dict(
            name="ncsnpp",
            ema_rate=0.9999,
            sigma_min=0.01,
            sigma_max=50.0,
            num_scales=1000,
            beta_min=0.1,
            beta_max=20.0,
            nf=128,
            ch_mult=(1, 2, 2, 2),
            num_res_blocks=4,
            attn_resolutions=(16,),
            attention=True,
            dropout=0.1,
            embedding_type="fourier",  # fourier or positional
            embedding_dim=128,  # with lsgm
            lsgm=False,
            fourier_scale=16.0,
            fourier_feature=False,
            conditional=True,
            scale_by_sigma=False,
            nonlinearity="swish",  # swish, elu, relu or lrelu
            resblock_type="biggan",  # biggan or ddpm
            resamp_with_conv=True,
            fir=False,
            fir_kernel=(1, 3, 3, 1),
            skip_rescale=True,
            progressive="none",  # none, output_skip or residual
            progressive_input="none",  # none, input_skip or residual
            progressive_combine="sum",  # sum or cat
            auxiliary_resblock=True,
            init_scale=0.0,
        )
    )
    config.optim = ConfigDict(
        dict(
            optimizer="Adam",  # Adam or AdamW
            lr=2e-4,
            beta1=0.9,
            eps=1e-8,
            weight_decay=0.0,
            warmup=5000,
            grad_clip=1.0,  # of the global norm; negative is none
            num_micro_batch=1,
        )
    )
    return config


def flatten(config: ConfigDict | dict) -> dict:
    """{'training.k': 1.0, ...}."""
    flat = {}
    for section, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat.update({f"{section}.{key}": v for key, v in value.items()})
        else:
            flat[section] = value
    return flat


def packaged() -> dict[str, Path]:
    """The configurations that come with the package, by name: "vp/CIFAR10/ddpmpp_nll_st"."""
    inside = Path(__file__).with_name("configs")  # as installed; a checkout has them at the top
    folder = inside if inside.is_dir() else Path(__file__).parents[1] / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.py"))}


def find(name: str | Path) -> Path:
    """The file of this path, or else the one of this name, with or without .py, that comes with the package."""
    path = Path(name)
    if path.is_file():
        return path
    known, asked = packaged(), path.as_posix().removeprefix("configs/").removesuffix(".py")
    if asked in known:
        return known[asked]
    close = [key for key in known if key.endswith(f"/{asked}")] or difflib.get_close_matches(asked, known, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(close[:3])}?"
        if close
        else "vp/DIGITS/ddpmpp_nll_st is one that comes with the package"
    )
    raise ConfigError(f"--config {name}: no such file, and no such name; {hint}")


def read(path: str | Path) -> ConfigDict:
    """The configuration of a Python file that defines `get_config()`, or of a name, see `find`.

    Raises:
      ConfigError: no such file, a file that is no config, or an unknown key.
    """
    path = find(path)
    spec = importlib.util.spec_from_file_location("score_st_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config {path}: not a Python file; it should end in .py and define get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever the user's file raises is the user's to mend
        message = " ".join(str(error).split())
        raise ConfigError(f"--config {path}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config {path}: get_config() should return an ml_collections.ConfigDict")
    for key in flatten(config).keys() - flatten(default()).keys():
        raise ConfigError(f"--config {path}: unknown key {key}{_suggest(key)}")
    return config


def changed(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """`config` itself with some keys changed, and locked.

    Args:
      overrides: values as they stand on the command line, by dotted key (`{'training.k': '2.0'}`).

    Raises:
      ConfigError: an unknown key or a value of the wrong type.
    """
    for key, text in overrides.items():
        _set(config, key, text)
    return config.lock()


def load(path: str | Path, overrides: dict[str, str] | None = None) -> ConfigDict:
    """The configuration of a file (see `read`) with some keys changed (see `changed`)."""
    return changed(read(path), overrides or {})


def from_workdir(workdir: str | Path, settings: dict | None = None) -> ConfigDict:
    """The configuration that `config.json` of a workdir holds, with other values for the keys of `settings`.

    Raises:
      ConfigError: no such file, a damaged one, an unknown key or a value of the wrong type.
    """
    path, config = Path(workdir) / "config.json", default()
    try:
        made = flatten(ConfigDict(json.loads(path.read_text())))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); training and conversion write it") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error})") from error
    return changed(config, {key: str(value) for key, value in (made | (settings or {})).items()})


def _suggest(key: str) -> str:
    known = list(flatten(default()))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:  # right name, wrong section
        close = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f"; did you mean {close[0]}?" if close else ""


def _set(config: ConfigDict, key: str, text: str):
    flat = flatten(config)
    if key not in flat:
        raise ConfigError(f"--config.{key}: unknown key{_suggest(key)}")
    old = flat[key]
    value = _parse(text, old)
    if value is None:
        what = {bool: "True or False", int: "a whole number", float: "a number", tuple: "a tuple such as (1, 2, 2)"}
        raise ConfigError(f"--config.{key}={text}: should be {what[type(old)]}, like the default {old!r}")
    *section, name = key.split(".")
    target = config[section[0]] if section else config
    with target.unlocked():
        target[name] = value


def _parse(text: str, old):
    """`text` as a value of the type of `old`, or None."""
    try:
        if isinstance(old, str):
            return text
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        if isinstance(old, tuple):
            value = ast.literal_eval(text)
            value = tuple(value) if isinstance(value, tuple | list) else (value,)
            return value if all(isinstance(v, int | float) for v in value) else None
        if isinstance(old, int):
            value = float(text)
            return int(text) if "e" not in text.lower() else (int(value) if value == int(value) else None)
        return float(text)
    except (ValueError, SyntaxError, OverflowError):
        return None


def differences(old: dict, new: dict, keys) -> str:
    """Those of `keys` with another value in `new`, as "a=1 (not 2), … and 2 more"; "" where there is none."""
    found = [f"{key}={old.get(key)!r} (not {new.get(key)!r})" for key in keys if old.get(key) != new.get(key)]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def choose(table: dict, name: str, key: str):
    """`table[name]`, or a ConfigError that lists the choices; `key` names the setting."""
    if name not in table:
        close = difflib.get_close_matches(str(name), list(table), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"config.{key}: unknown {name!r}; choose from {', '.join(table)}{hint}")
    return table[name]
