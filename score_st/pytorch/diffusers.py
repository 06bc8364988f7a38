"""UNet2DModel networks of diffusers, DDPM's and NCSN++'s, read from their folders without torch and diffusers."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_st import strict_json
from score_st.config import ConfigError
from score_st.pytorch import file
from score_st.pytorch.module_order import Foreign, Part
from score_st.runtime import safetensors_files

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
SCHEDULER = "scheduler_config.json"
MOST_CONFIG = 2**20  # bytes
ALL = slice(None)

# the defaults of UNet2DModel for keys that an older file lacks; those that are None must be there
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1.0,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
# keys of newer files, and the only values that can be converted
FIXED: dict[str, tuple[Any, ...]] = {
    "add_attention": (True,),
    "attn_norm_num_groups": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "num_train_timesteps": (None,),
    "time_embedding_dim": (None,),
    "resnet_time_scale_shift": ("default",),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "mid_block_type": ("UNetMidBlock2D",),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-6,),
    "attention_head_dim": (None,),
}
# the two families: names of blocks without and with attention, and options that they must have
DDPM, NCSNPP = "DDPM", "NCSN++"
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}  # the defaults of DDPMScheduler
BLOCKS = {
    DDPM: (("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")),
    NCSNPP: (("SkipDownBlock2D", "AttnSkipDownBlock2D"), ("SkipUpBlock2D", "AttnSkipUpBlock2D")),
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    DDPM: {"time_embedding_type": "positional", "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0}
    | {"mid_block_scale_factor": 1, "center_input_sample": False},
    NCSNPP: {"time_embedding_type": "fourier", "in_channels": 3, "norm_num_groups": None},
}
SETTINGS: dict[str, dict[str, Any]] = {
    DDPM: {"training.sde": "vpsde", "training.ddpm_score": True, "model.parametrization": "noise"}
    | {"model.time_conditioning": "ddpm_step", "model.num_scales": 1000, "data.centered": True}
    | {"model.embedding_type": "positional", "model.resblock_type": "ddpm", "model.resamp_with_conv": True}
    | {"model.skip_rescale": False, "model.attention_each": True, "model.progressive": "none"}
    | {"training.importance_sampling": False, "training.likelihood_weighting": False}
    | {"eval.nelbo_discrete_iter": 1}
    # σ of the first step is 0.01, and below it the network knows nothing
    | {"training.truncation_time": 9.17e-4, "sampling.truncation_time": 9.17e-4},
    NCSNPP: {"training.sde": "vesde", "data.centered": False, "model.scale_by_sigma": True}
    | {"training.importance_sampling": False, "training.likelihood_weighting": False}
    | {"model.embedding_type": "fourier", "model.resblock_type": "biggan", "model.skip_rescale": True}
    | {"model.progressive": "output_skip", "model.progressive_input": "input_skip", "model.fir": True}
    | {"sampling.method": "pc", "sampling.predictor": "reverse_diffusion", "sampling.corrector": "langevin"},
}
RESIDUAL = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "time_emb_proj", "GroupNorm_1": "norm2"}
RESIDUAL |= {"Conv_1": "conv2", "Conv_2": "conv_shortcut", "NIN_0": "conv_shortcut"}
ATTENTION = {"GroupNorm_0": "group_norm", "NIN_0": "to_q", "NIN_1": "to_k", "NIN_2": "to_v", "NIN_3": "to_out.0"}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def read(folder: Path) -> Foreign:
    """The network in a folder with config.json and diffusion_pytorch_model.safetensors or .bin.

    Raises:
      ConfigError: a file is missing, damaged or would run code, or the network can't be converted.
    """
    options = _read_options(folder / CONFIG)
    try:
        family, settings = _settings(options)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error
    scheduler = _scheduler(folder)
    settings |= OF_SCHEDULER[family](scheduler) if scheduler else {}
    note = f"no {SCHEDULER} beside {CONFIG} or in ../scheduler: {WITHOUT_SCHEDULER[family]} say otherwise"
    notes = () if scheduler else (note,)
    tensors = _read_weights(folder)
    old = any(name.endswith(".query.weight") for name in tensors)
    kind = f"a {family} network of diffusers"
    return Foreign(kind, settings, tensors, _namer(options, family, old), lambda name: False, notes)


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            text = opened.read(MOST_CONFIG + 1)
        content = strict_json.loads(text) if len(text) <= MOST_CONFIG else None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); name a folder of a UNet2DModel") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged ({' '.join(str(error).split())[:80]})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a JSON object")
    return content


def _read_options(path: Path) -> dict[str, Any]:
    content = _json(path)
    if content.get("_class_name") != "UNet2DModel":
        name = str(content.get("_class_name"))[:40]
        raise ConfigError(f"{path}: is of a {name}; only UNet2DModel can be converted")
    options = dict(DEFAULTS)
    for key, value in content.items():
        if key.startswith("_"):
            continue
        if key not in DEFAULTS and key not in FIXED:
            raise ConfigError(f"{path}: has the option {key[:40]}, which is unknown here")
        options[key] = tuple(value) if isinstance(value, list) else value
    return options


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**53) < value < 2**53


def _settings(options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The family, and our keys."""
    for key, default in DEFAULTS.items():
        if _is_number(default) and not (options[key] is None or _is_number(options[key])):
            raise ConfigError(f"{key}={str(options[key])[:40]}: should be a number")
    for key, allowed in FIXED.items():
        if options.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"{key}={str(options[key])[:40]}: only {allowed[0]} can be converted")
    downs, ups, channels = (options[key] for key in ("down_block_types", "up_block_types", "block_out_channels"))
    lists = all(isinstance(value, tuple) for value in (downs, ups, channels))
    if not lists or not all(isinstance(kind, str) for kind in (*downs, *ups)):
        raise ConfigError(
            "down_block_types, up_block_types and block_out_channels should be lists, the first two of names"
        )
    fits = lambda family: set(downs) <= set(BLOCKS[family][0]) and set(ups) <= set(BLOCKS[family][1])
    family = next(filter(fits, BLOCKS), "")
    if not family or not len(downs) == len(ups) == len(channels) > 0:
        raise ConfigError(f"blocks of the kinds {', '.join(map(str, downs))[:80]} can't be converted")
    for key, value in OF_FAMILY[family].items():
        if options[key] != value:
            raise ConfigError(f"{key}={str(options[key])[:40]}: a {family} network should have {value}")
    if options["in_channels"] != options["out_channels"]:
        raise ConfigError("out_channels should be in_channels")
    attends = [kind == BLOCKS[family][0][1] for kind in downs]
    if attends != [kind == BLOCKS[family][1][1] for kind in ups][::-1]:
        raise ConfigError("attention on the way up should be at the sizes that have it on the way down")
    if family == NCSNPP and not math.isclose(options["mid_block_scale_factor"] or 0, math.sqrt(2), rel_tol=1e-6):
        raise ConfigError("mid_block_scale_factor should be √2")
    size, nf = options["sample_size"], channels[0]
    numbers = [size, options["in_channels"], options["layers_per_block"], *channels]
    if not all(type(number) is int and number > 0 for number in numbers) or any(c % nf for c in channels):
        raise ConfigError("sample_size and layers should be whole numbers, and channels multiples of the first")
    settings = {"data.image_size": size, "data.num_channels": options["in_channels"], "model.nf": nf}
    settings |= {"model.ch_mult": tuple(c // nf for c in channels), "model.dropout": options["dropout"]}
    settings |= {"model.num_res_blocks": options["layers_per_block"], "data.dequantization": "lossless"}
    settings |= {"model.attn_resolutions": tuple(size // 2**i for i, attend in enumerate(attends) if attend)}
    settings |= {"model.center_input": options["center_input_sample"] or family == DDPM, "training.st": False}
    settings |= {"model.num_groups": options["norm_num_groups"] or 0, "model.diffusers_groups": family == NCSNPP}
    return family, settings | SETTINGS[family]


def _scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's file; empty without one."""
    for path in (folder / SCHEDULER, folder.parent / "scheduler" / SCHEDULER):
        if path.is_file():
            return _json(path)
    return {}


def _noise_of_scheduler(content: dict[str, Any]) -> dict[str, Any]:
    """The range of σ, if it is there."""
    keys = {"sigma_min", "sigma_max"}
    return {f"model.{key}": content[key] for key in keys} if keys <= content.keys() else {}


def _steps_of_scheduler(content: dict[str, Any]) -> dict[str, Any]:
    """DDPM's β, and the variance that its steps are sampled with."""
    fixed = {"beta_schedule": ("linear",), "prediction_type": ("epsilon",), "trained_betas": (None,)}
    for key, allowed in fixed.items():
        if content.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"{SCHEDULER}: {key}={str(content[key])[:40]}: only {allowed[0]} can be converted")
    n, first, last = (content.get(key, value) for key, value in BETAS.items())
    numbers = all(_is_number(value) and value > 0 for value in (n, first, last))
    if not (numbers and type(n) is int and n > 1 and first <= last < 1):
        raise ConfigError(
            f"{SCHEDULER}: {', '.join(BETAS)} should be steps and variances of them, are {n}, {first}, {last}"
        )
    settings = {"model.num_scales": n, "model.beta_min": first * n, "model.beta_max": last * n}
    large = content.get("variance_type") == "fixed_large"
    settings["eval.nelbo_discrete_variance"] = "beta" if large else "posterior"
    if (n, first, last) != tuple(BETAS.values()):
        noise, slope = -math.log1p(-first), (last - first) * n
        time = 2 * noise / (first * n + math.sqrt((first * n) ** 2 + 2 * slope * noise))  # that has the first step's σ
        settings |= {"training.truncation_time": time, "sampling.truncation_time": time}
    return settings


OF_SCHEDULER = {DDPM: _steps_of_scheduler, NCSNPP: _noise_of_scheduler}
WITHOUT_SCHEDULER = {
    DDPM: "β goes from 1e-4 to 0.02 over 1,000 steps unless --config.model.beta_min, beta_max and num_scales",
    NCSNPP: "the noise goes from 0.01 to 50 unless --config.model.sigma_min and --config.model.sigma_max",
}


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors, from safetensors where both are there."""
    path = folder / f"{WEIGHTS}.safetensors"
    if not path.exists():
        path = folder / f"{WEIGHTS}.bin"
        content = file.read(path)
        if not isinstance(content, dict) or not all(isinstance(value, np.ndarray) for value in content.values()):
            raise ConfigError(f"{path}: should have tensors by name")
        return {str(name): tensor for name, tensor in content.items()}
    tensors = safetensors_files.read(path)
    return {name: np.asarray(jnp.asarray(tensor)) for name, tensor in tensors.items()}


def _namer(options: dict[str, Any], family: str, old: bool) -> Any:
    """The names of a UNet2DModel's tensors, see `Foreign`."""
    last = len(options["block_out_channels"]) - 1
    skip = {"merge": "skip_conv", "norm": "skip_norm", "conv": "skip_conv"}

    def prefix(part: Part) -> str:
        if part.place == "in" and part.kind == "conv":
            return "conv_in"
        if part.kind == "dense":
            return f"time_embedding.linear_{part.number + 1}"
        if part.place == "out" and (part.level == 0 or family == DDPM):
            return f"conv_{'norm_' if part.kind == 'norm' else ''}out"
        if part.place == "middle":
            return f"mid_block.{'attentions' if part.kind == 'attention' else 'resnets'}.{part.number}"
        down = part.place in ("down", "resample_down", "pyramid")
        stem = f"down_blocks.{part.level}" if down else f"up_blocks.{last - part.level}"
        if part.place in ("pyramid", "out"):
            return f"{stem}.{skip[part.kind]}"
        if part.place in ("resample_down", "resample_up"):
            way = "down" if down else "up"
            return f"{stem}.{way}samplers.0.conv" if part.kind == "conv" else f"{stem}.resnet_{way}"
        return f"{stem}.{'attentions' if part.kind == 'attention' else 'resnets'}.{part.number}"

    def name_of(part: Part, leaf: str) -> tuple[str, slice]:
        if part.kind == "fourier":
            return "time_proj.weight", ALL
        head, _, name = leaf.rpartition(".")
        name = {"W": "weight", "b": "bias"}.get(name, name)
        inside = {"block": RESIDUAL, "attention": ATTENTION}.get(part.kind, {}).get(head, "")
        inside = OLD_NAMES.get(inside, inside) if old else inside
        return ".".join(filter(None, (prefix(part), inside, name))), ALL

    return name_of
