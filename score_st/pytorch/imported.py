"""Networks of EDM and of diffusers as ours, and their outputs compared with those of their own code."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st.array_types import Shaped
from score_st.config import ConfigError, changed, default
from score_st.diffusion import samplers
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import denoise
from score_st.diffusion.predictors import Heun
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint, diffusers, edm
from score_st.pytorch.module_order import Foreign, renamed
from score_st.training import state

Golden = dict[str, Shaped[np.ndarray, "..."]]
# what a file of outputs has; images are [N levels, B, C, H, W]
OF_EDM, OF_DDPM, OF_NCSNPP, OF_HEUN = (
    ("sigma", "x", "c_noise", "F", "D", "F_rounding"),
    ("timestep", "x", "output", "rounding"),
    ("sigma", "x", "output", "rounding"),
    ("latents", "states", "eval_sigma", "eval_x", "eval_D"),
)
KINDS = OF_EDM, OF_DDPM, OF_NCSNPP, OF_HEUN
ALSO = ("class_labels", "D_unlabelled")
EPS = float(np.finfo(np.float32).eps)
IMAGES = {"x", "F", "D", "output", "states", "eval_x", "eval_D", "D_unlabelled"}


def read(path: Path) -> Foreign | None:
    """The network of EDM or of diffusers at a path; None where there may be an official checkpoint.

    Raises:
      ConfigError: see `edm.read` and `diffusers.read`.
    """
    for folder in (path, path / "unet"):  # of a network, or of a whole pipeline
        if (folder / diffusers.CONFIG).is_file():
            return diffusers.read(folder)
    return edm.read(path) if edm.is_network(path) else None


def configuration(network: Foreign, overrides: Mapping[str, str]) -> ConfigDict:
    """The configuration of a network, with other values for some keys as they stand on the command line."""
    ours = {key: str(value) for key, value in network.settings.items()}
    return changed(default(), ours | dict(overrides))


def training_state(network: Foreign, config: ConfigDict, model: DiffusionModel) -> state.TrainState:
    """The training state at step 0.

    Raises:
      ConfigError: a tensor is missing, surplus, of another shape or not finite.
    """
    return checkpoint.state_from_tensors(lambda names: renamed(config, names, network), config, model)


def is_golden(content: Golden) -> bool:
    """Whether these arrays are outputs of EDM's or of diffusers' own code."""
    return any(set(keys) <= content.keys() for keys in KINDS)


def check_golden(path: str | Path, content: Golden, config: ConfigDict) -> Golden:
    """The outputs of EDM's or of diffusers' own code among the arrays of a file.

    Args:
      path: names the file in messages.
      content: one of the sets of `KINDS`.
      config: all keys.

    Raises:
      ConfigError: arrays are not finite or of other shapes, or they need another network.
    """
    kind = next(keys for keys in KINDS if set(keys) <= content.keys())
    golden = {key: content[key] for key in (*kind, *ALSO) if key in content}
    image = (config.data.num_channels, config.data.image_size, config.data.image_size)
    for key, value in golden.items():
        if not (np.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
            raise ConfigError(f"{path}: {key} should have finite floating-point numbers, and does not")
        if key in IMAGES and (value.ndim != 5 or value.shape[2:] != image):
            raise ConfigError(f"{path}: {key} should be [N, B, {', '.join(map(str, image))}], is {list(value.shape)}")
    levels = {len(golden[key]) for key in golden.keys() - {"class_labels", "latents", "states"}}
    if len(levels) != 1 or ("class_labels" in golden and config.model.num_classes == 0):
        raise ConfigError(f"{path}: its arrays do not fit together, or the network has no classes")
    return golden


def compare(
    model: DiffusionModel, current: state.TrainState, golden: Golden, dtypes: tuple = (jnp.float32, jnp.float64)
) -> dict[str, dict[str, float]]:
    """Compares what the network computes with the outputs of its own code.

    Args:
      model: the diffusion model.
      current: its state.
      golden: of `check_golden`.
      dtypes: of the arithmetic.

    Returns:
      For each output at each noise level the largest difference, in each arithmetic, in standard deviations of
      the output; `rounding` is five times what float32 cost the other code, in the same unit:
      {"F at 0.002": {"float32": ..., "float64": ..., "rounding": ...}, ...}.
    """
    errors: dict[str, dict[str, float]] = {}
    for dtype in dtypes:
        with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
            cast = lambda tree, dtype=dtype: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
            wide = dataclasses.replace(model, network=model.network.clone(dtype=dtype))
            outputs = _outputs(wide, cast(current.params), golden, cast)
        for name, (ours, theirs, rounding, unit) in outputs.items():
            error = float(np.max(np.abs(ours - theirs))) / unit
            errors.setdefault(name, {}).update({dtype.__name__: error, "rounding": 5 * float(rounding) / unit})
    return errors


# by name: ours and the other code's [B, C, H, W], what float32 cost the other code, and the unit of both
Outputs = dict[str, tuple[Any, Any, Any, float]]


def _row(ours: Any, theirs: Any, rounding: Any = 0.0, unit: float = 0.0, scale: float = 1.0) -> tuple:
    """A row of `Outputs`: ours is [B, H, W, C], both times `scale`, and the unit theirs' standard deviation."""
    theirs = np.asarray(theirs, np.float64) * scale
    ours = np.moveaxis(np.asarray(ours, np.float64), -1, -3) * scale
    return ours, theirs, rounding, unit or float(np.std(theirs)) or 1.0


def _outputs(model: DiffusionModel, params: Any, golden: Golden, cast: Callable) -> Outputs:
    """Our outputs in the layout of `golden`."""
    if "latents" in golden:
        return _heun(model, params, golden, cast)
    if "c_noise" in golden:
        return _edm(model, params, golden, cast)
    network = jax.jit(model.network.apply)
    outputs: Outputs = {}
    for i, level in enumerate(golden.get("timestep", golden.get("sigma", ()))):
        x = cast(_nhwc(golden["x"][i]))
        output = network({"params": params}, x, jnp.full(len(x), level, x.dtype))
        scale = 1.0 if "timestep" in golden else float(level)  # NCSN++ returns the score; σ times it has size 1
        outputs[f"output at {level:g}"] = _row(output, golden["output"][i], golden["rounding"][i], scale=scale)
    return outputs


def _nhwc(images: Any) -> Any:
    return np.moveaxis(images, -3, -1)


def _edm(model: DiffusionModel, params: Any, golden: Golden, cast: Callable) -> Outputs:
    """F and D, where the network is told c_noise as it is in the file: its rounding is no error of ours."""
    outputs: Outputs = {}
    labels = _labels(golden)
    run = jax.jit(functools.partial(_inner_and_denoised, model, params))
    for i, sigma in enumerate(golden["sigma"]):
        x, c_noise = _nhwc(golden["x"][i]), golden["c_noise"][i]
        for suffix, given in (("", labels), ("_unlabelled", None)):
            if f"D{suffix}" not in golden:
                continue
            inner, clean = run(cast(x), cast(sigma), cast(c_noise), given)
            c_out = np.std(golden["D"][i] - _skip(model, sigma) * golden["x"][i]) / np.std(golden["F"][i])
            rounding = golden["F_rounding"][i]
            if not suffix:
                outputs[f"F at {sigma:g}"] = _row(inner, golden["F"][i], rounding)
            rounding = max(rounding * c_out, sigma * EPS)  # x + σ² score, of an x of size σ
            outputs[f"D{suffix} at {sigma:g}"] = _row(clean, golden[f"D{suffix}"][i], rounding)
    return outputs


def _skip(model: DiffusionModel, sigma: float) -> float:
    """EDM's c_skip: that of its own preconditioning, or 1."""
    if not model.parametrization.skip:
        return 1.0
    t = _time(model, jnp.float32(sigma))
    return float(1 + jnp.square(model.sde.sigma(t)) * model.parametrization.skip(t))


def _labels(golden: Golden) -> Any:
    return jnp.argmax(golden["class_labels"], axis=1) if "class_labels" in golden else None


def _unit(model: DiffusionModel) -> float:
    """How wide [-1, 1] is in our x, in halves."""
    return 1.0 if model.scaler.centered else 0.5


def _time(model: DiffusionModel, sigma: Any) -> Any:
    """Our t with EDM's σ, for images in [-1, 1]."""
    return model.sde.time(-2 * jnp.log(sigma * _unit(model)))


def _inner_and_denoised(
    model: DiffusionModel, params: Any, x: Any, sigma: Any, c_noise: Any, labels: Any
) -> tuple[Any, Any]:
    """The output of EDM's inner network, and the denoised image, from an image in [-1, 1] plus σ times noise.

    `c_noise` None is our own time conditioning.
    """
    inner: list[Any] = []

    def network(scaled: Any, time_cond: Any, log_time_cond: Any) -> Any:
        if c_noise is not None:
            told = jnp.full(len(x), c_noise)
            positional = getattr(model.network, "embedding_type", "") == "positional"
            time_cond, log_time_cond = told if positional else jnp.exp(told), told
        output = model.network.apply({"params": params}, scaled, time_cond, log_time_cond=log_time_cond, labels=labels)
        divided = getattr(model.network, "scale_by_sigma", False)
        inner.append(output * expand(time_cond, output) if divided else output)
        return output

    t = jnp.full(len(x), _time(model, sigma))
    unit = _unit(model)
    y = expand(model.sde.alpha(t), x) * (x * unit + model.scaler.center)
    clean = (denoise(model.parametrization.score(network), model.sde, y, t) - model.scaler.center) / unit
    return inner[0], clean


def _heun(model: DiffusionModel, params: Any, golden: Golden, cast: Callable) -> Outputs:
    """EDM's sampler on its grid, state by state, and the calls of the network; the last step, to σ = 0, denoises."""
    run = jax.jit(functools.partial(_inner_and_denoised, model, params))
    outputs: Outputs = {}
    for i, sigma in enumerate(golden["eval_sigma"]):
        clean = run(cast(_nhwc(golden["eval_x"][i])), cast(sigma), None, None)[1]
        outputs[f"D of call {i} at {sigma:g}"] = _row(clean, golden["eval_D"][i], sigma * EPS)
    sde, score, (unit, center) = model.sde, model.score(params), (_unit(model), model.scaler.center)
    step = jax.jit(functools.partial(Heun(), score, sde))
    times = samplers.edm_grid(sde, len(golden["states"]) - 2)
    largest = float(golden["eval_sigma"][0])
    x = sde.alpha(times[0]) * (cast(_nhwc(golden["latents"])) * largest * unit + center)
    for i, t in enumerate(times):
        shown = (x / sde.alpha(t) - center) / unit
        outputs[f"state {i} of Heun's sampler"] = _row(shown, golden["states"][i], unit=largest)
        now, zeros = jnp.full(len(x), t), jnp.zeros_like(x)
        if i + 1 < len(times):
            x = step(x, now, jnp.full(len(x), times[i + 1]), zeros, (zeros, now))[0]
    clean = (denoise(score, sde, x, now) - center) / unit
    outputs[f"state {len(times)} of Heun's sampler"] = _row(clean, golden["states"][-1], unit=largest)
    return outputs
