"""A trained model in Python: arrays in, arrays out, each method one compiled program.

x is an image as the network sees it, float32 [B, H, W, C], scaled to [-1, 1] or [0, 1] (data.centered). An integer
array of the same shape is the images themselves, which are scaled first. Methods that return images return uint8, or
x with `scaled=True`.

Arrays of another shape or type, levels outside 0 ... num_levels - 1, values that are not finite, floats far outside
the range of x where images are meant, times outside [ε, 1] and masks outside [0, 1] raise ConfigError. Inside jit only
shapes and types can be checked: the values are not known there.

Where a network is told classes, `labels` are those of the images: a number for all of them, or [B], -1 for none.
Without labels it is told none. With labels samples have the guidance of config.sampling.class_guidance.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from score_st import checks, weights_file
from score_st import config as configuration
from score_st.array_types import Array, Float, Int, Key, Shaped, UInt8
from score_st.config import ConfigError
from score_st.data import preprocessing
from score_st.diffusion import guidance, likelihood, probability_flow, samplers
from score_st.diffusion.parametrization import Score
from score_st.diffusion.sde import SDE
from score_st.evaluation import generation, image_terms
from score_st.model import CombinedModel, DiffusionModel, ScoreOnly, by_image
from score_st.runtime import places, sharding
from score_st.training import stored_weights

Sampler = samplers.ODE | samplers.PredictorCorrector
INPAINT = "reverse_diffusion+langevin"

Images = Shaped[Array, "B H W C"]  # integers, or x
Labels = Shaped[Array, "..."] | int | float | None  # integers


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "step", "custom"])
@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its weights, as a pytree: it can be an argument of a jitted or differentiated function.

    Image i of a call has its own noise, a function of `key` and i.

    Attributes:
      params: the weights, its leaves.
      config: all settings; `sampling` and `eval` of it are what the methods below do.
      step: of the checkpoint.
      custom: a diffusion model in place of that of `config`.
    """

    params: Any
    config: FrozenConfigDict
    step: int = 0
    custom: DiffusionModel | None = None

    @classmethod
    def from_score(
        cls,
        score: Callable[..., Any],
        sde: SDE,
        image_shape: tuple[int, int, int],
        params: Any = None,
        *,
        num_levels: int = 256,
        centered: bool = True,
        dequantization: str = "uniform",
        settings: Mapping[str, Any] | None = None,
    ) -> "Model":
        """Returns the model of any score function, with all methods.

        Args:
          score: (x [B, H, W, C], t [B]) -> ∇ log p_t(x); with `params` (params, x, t). It is traced by JAX, and the
            score of an image should depend on that image alone: batches of one are asked, too.
          sde: the diffusion; its ε is the smallest time that the score is asked for.
          image_shape: (H, W, C).
          params: a pytree of arrays, so that the model can be differentiated and its weights be changed; by default
            what the function has inside.
          num_levels: of integer images.
          centered: x is in [-1, 1], not [0, 1].
          dequantization: "uniform", "lossless" or "none", as data.dequantization.
          settings: `sampling` and `eval` other than the default, by dotted key: {"sampling.method": "pc"}.

        Raises:
          ConfigError: a setting is unknown or out of its range, or (x, t) does not give an array like x.
        """
        given = {"data.num_levels": num_levels, "data.centered": centered, "data.dequantization": dequantization}
        given |= {"training.truncation_time": sde.eps, "sampling.truncation_time": sde.eps} | dict(settings or {})
        config = configuration.changed(configuration.default(), {key: str(value) for key, value in given.items()})
        configuration.check(config)
        function = _Plain(score) if params is None else score
        scaler = preprocessing.scaler_from_config(config)
        height, width, channels = image_shape
        model = ScoreOnly.of(function, sde, (height, width, channels), scaler)
        x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, *image_shape), (2,)))
        result = jax.eval_shape(function, params, x, t)
        if getattr(result, "shape", None) != x.shape:
            raise ConfigError(f"score: returns {result} for x {list(x.shape)} and t [2]; should be an array like x")
        return cls({} if params is None else params, FrozenConfigDict(config), custom=model)

    @property
    def diffusion_model(self) -> DiffusionModel:
        """SDE, parametrization, network and scaler."""
        return self.custom or _diffusion_model(self.config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.diffusion_model.image_shape

    @property
    def sde(self) -> SDE:
        """The diffusion."""
        return self.diffusion_model.sde

    def score(self, x: Images, t: Float[Array, "..."] | float, labels: Labels = None) -> Float[Array, "B H W C"]:
        """Returns ∇ log p_t(x) at t [B] or a number, ε <= t <= 1 (checked outside jit), without guidance."""
        x = self._checked(x)
        checks.check_times(t, len(x), self.sde.eps, self.sde.T)
        return _score(self, self.scale(x), t, self._classes(labels, len(x)))

    def scale(self, images: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns x of integer images [..., H, W, C], at the middle of their levels; x is returned as it is."""
        images = self._checked(images, batch=False)
        if not jnp.issubdtype(images.dtype, jnp.integer):
            return images
        return self.diffusion_model.scaler.forward(images, jnp.full(images.shape, 0.5))

    def unscale(self, x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
        """Returns the images of x [..., H, W, C]."""
        return self.diffusion_model.scaler.inverse(self._checked(x, floats=True, batch=False))

    def sample(
        self,
        key: Key[Array, ""],
        n: int,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        scaled: bool = False,
        labels: Labels = None,
    ) -> Shaped[Array, "n H W C"]:
        """Draws `n` images; with `jax.random.key(seed)` those of `python -m score_st.sample --seed`.

        They are computed in groups of config.sampling.group.

        Args:
          key: image i is a function of it and i.
          n: how many.
          sampler: "ode", "dpm_solver_2m", "reverse_diffusion+langevin", ... as for --sampler, or an object of
            `samplers`; config.sampling by default.
          steps: of a predictor.
          scaled: return x.
          labels: classes, by default as config.sampling.label says.

        Raises:
          ConfigError: there is no such sampler, n is less than 1, or (outside jit) an image is not finite.
        """
        if n < 1:
            raise ConfigError(f"n={n}: should be 1 or more")
        group, chosen = self.config.sampling.group, self._sampler(sampler, steps)
        numbers = jnp.arange(-(-n // group) * group)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
        classes = self._classes(labels, n)
        if classes is None:
            classes = generation.classes(self.config, self.diffusion_model, numbers)
        else:
            classes = jnp.pad(classes, (0, len(numbers) - n), mode="edge")
        part = lambda i: (keys[i : i + group], None if classes is None else classes[i : i + group])
        parts = [_draw(self, *part(i), chosen, scaled) for i in range(0, n, group)]
        return _check_finite(*(jnp.concatenate(arrays)[:n] for arrays in zip(*parts, strict=True)))

    def inpaint(
        self,
        key: Key[Array, ""],
        images: Images,
        mask: Shaped[Array, "..."] | float,
        sampler: str | Sampler = INPAINT,
        steps: int | None = None,
        scaled: bool = False,
        labels: Labels = None,
    ) -> Images:
        """Draws images that agree with `images` where `mask` is 1, see `guidance`.

        Args:
          key: image i is a function of it and i.
          images: integers, or x.
          mask: from 0 to 1, broadcast to the images, [H, W, 1] for instance. A picture's 255 is to be divided by 255.
          sampler: as for `sample`, a predictor; a corrector brings both parts into agreement.
          steps: of the predictor.
          scaled: return x.
          labels: classes.

        Raises:
          ConfigError: the sampler is none that can, an array is not as it should be, or (outside jit) an image is not
            finite.
        """
        chosen = self._sampler(sampler, steps)
        if isinstance(chosen, samplers.ODE):
            raise ConfigError("sampler=ode: can't keep what is known; a predictor can, best with a corrector")
        x = self.scale(self._data(images))
        checks.check_mask(mask, x.shape)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x)))
        classes, mask = self._classes(labels, len(x)), jnp.asarray(mask, x.dtype)
        known = x, mask if classes is None else jnp.broadcast_to(mask, x.shape)
        return _check_finite(*_draw(self, keys, classes, chosen, scaled, known))

    def log_likelihood(
        self, x: Images, key: Key[Array, ""] | None = None, labels: Labels = None
    ) -> Float[Array, " B"]:
        """Returns log p in nats an image, by the probability flow and config.eval; NaN if the solver did not arrive.

        For integer images it is the lower bound on the log-probability of their levels whose mean is `nll` of
        eval/bpd.json, dequantized as config.eval says, with the reconstruction term. For x it is the density at x, by
        the flow from x, without noise.

        Args:
          x: integers, or x.
          key: for dequantization and Hutchinson probes; by default that of `python -m score_st.eval`.
          labels: classes, of which this is the conditional likelihood.
        """
        x = self._data(x)
        key = jax.random.fold_in(jax.random.key(self.config.seed), 0) if key is None else key
        return _log_likelihood(self, x, key, self._classes(labels, len(x)))

    def bits_per_dim(self, x: Images, key: Key[Array, ""] | None = None, labels: Labels = None) -> Float[Array, " B"]:
        """Returns -`log_likelihood` in bits a dimension of integer data; for x it counts the width of a level, too."""
        x = self._data(x)
        integer = jnp.issubdtype(x.dtype, jnp.integer)
        scaler, dims = self.diffusion_model.scaler, math.prod(self.image_shape)
        nats = -self.log_likelihood(x, key, labels)
        bits = likelihood.bits_per_dim(nats, dims, scaler.num_levels, scaler.centered, lossless=integer)
        return jnp.asarray(bits)

    def encode(self, x: Images, labels: Labels = None) -> Float[Array, "B H W C"]:
        """Returns the latents x_T of the probability flow, from the mean of x_ε given `x` (or integer images)."""
        x = self.scale(self._data(x))
        return _encode(self, x, self._classes(labels, len(x)))

    def decode(self, z: Float[Array, "B H W C"], scaled: bool = False, labels: Labels = None) -> Images:
        """Returns the images of latents."""
        z = self._checked(z, "latents", floats=True)
        return _check_finite(*_decode(self, z, self._classes(labels, len(z)), scaled))

    def guided_by(self, guide: "Model", weight: float) -> "Model":
        """Returns the model with the score s_guide + weight (s - s_guide): autoguidance, see `guidance.Autoguidance`.

        Its `params` are the pair of both models' weights; settings and step are those of this one.

        Args:
          guide: a worse version: of fewer steps, or smaller.
          weight: 1 is this model itself.

        Raises:
          ConfigError: SDE, image shape or scaling differ.
        """
        return self if weight == 1 else self._with(guide, guidance.Autoguidance(weight))

    def with_expert(self, expert: "Model", below: float) -> "Model":
        """Returns the model whose score is that of `expert` where σ/α <= `below`, see `guidance.Experts`.

        Its `params` are the pair of both models' weights; settings and step are those of this one.

        Raises:
          ConfigError: SDE, image shape or scaling differ, or there is no such noise level.
        """
        return self._with(expert, guidance.Experts(below))

    def _checked(self, images: Any, what: str = "images", floats: bool = False, batch: bool = True) -> Array:
        """Returns images or, with `floats`, nothing but x as a JAX array; raises as `checks.check_images`."""
        array = images if isinstance(images, jax.Array | np.ndarray) else np.asarray(images)
        if floats and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ConfigError(f"{what}: is of type {array.dtype}; should be floats")
        scaler = self.diffusion_model.scaler
        checks.check_images(array, self.image_shape, scaler.num_levels, what, batch)
        return jnp.asarray(array)

    def _data(self, images: Any) -> Array:
        """Returns images or x that stand for data, not for noisy states; raises as `checks.check_scaled`, too."""
        array = self._checked(images)
        checks.check_scaled(array, self.diffusion_model.scaler.centered)
        return array

    def _classes(self, labels: Labels, batch: int) -> Int[Array, " B"] | None:
        """Returns labels [B], or None where there are none; raises ConfigError for what is no class."""
        if labels is None:
            return None
        array, count = jnp.asarray(labels), self.diffusion_model.num_classes
        if not jnp.issubdtype(array.dtype, jnp.integer) or array.shape not in ((), (batch,)) or not count:
            wanted = f"integers, one or [{batch}]" if count else "None: the network has no classes"
            raise ConfigError(f"labels: is {array.dtype}{list(array.shape)}; should be {wanted}")
        if not checks.is_traced(array) and array.size and not -1 <= array.min() <= array.max() < count:
            limits = f"should be 0 ... {count - 1}, or -1 for none"
            raise ConfigError(f"labels: has values from {array.min()} to {array.max()}; {limits}")
        return jnp.broadcast_to(array, (batch,))

    def _with(self, other: "Model", combination: guidance.Combination) -> "Model":
        both = CombinedModel.of(self.diffusion_model, other.diffusion_model, combination)
        return dataclasses.replace(self, params=(self.params, other.params), custom=both)

    def _sampler(self, sampler: str | Sampler | None, steps: int | None) -> Sampler:
        if sampler is None or isinstance(sampler, str):
            return _sampler_from_config(self.config, sampler, steps)
        return sampler


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A function (x, t) as one of (params, x, t)."""

    function: Callable[..., Any]

    def __call__(self, params: Any, x: Any, t: Any) -> Any:
        return self.function(x, t)


def load(
    workdir: str | Path,
    step: int | None = None,
    settings: dict | None = None,
    mesh: Mesh | None = None,
    ema: str | float = "ema",
) -> Model:
    """Loads the model of a workdir, by default with the EMA weights, or of a file of weights.

    Args:
      workdir: of a run, as training and conversion write it: a folder, gs://… or s3://…. Or a local file that ends in
        .safetensors, as `score_st.convert --to` writes it, which has one set of weights.
      step: of the checkpoint, or where an average of a width ends; the newest by default.
      settings: values other than those of the workdir's config.json, by dotted key: {"sampling.grid": "logsnr"}.
      mesh: the devices that read the checkpoint; all by default.
      ema: the weights, as for --ema: "ema", "raw", or the width of an average from 0.02 to 0.25 (docs: averages).

    Raises:
      ConfigError: there is no run, no such checkpoint or average, or a setting is unknown or changes what the weights
        mean.
      storage.Unreachable: the bucket does not answer.
    """
    if Path(workdir).suffix == weights_file.ENDING and not Path(workdir).is_dir():
        return _from_file(Path(workdir), step, settings, ema)
    mesh, verbosity = mesh or sharding.mesh(), absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of every checkpoint opened for reading
    try:
        with places.reading(workdir) as local:
            config = configuration.from_workdir(local, settings)
            frozen = FrozenConfigDict(config)
            trained = stored_weights.read(local, config, _diffusion_model(frozen), mesh, step, ema)
    finally:
        absl.logging.set_verbosity(verbosity)
    # on the first device but not committed to it: a computation takes them to the device of x
    return Model(jax.tree.map(jnp.asarray, jax.device_get(trained.params)), frozen, trained.step)


def _from_file(path: Path, step: int | None, settings: dict | None, ema: str | float) -> Model:
    if step is not None or ema != "ema":
        raise ConfigError(f"{path}: has one set of weights; leave out step and ema")
    config = weights_file.configuration(path, settings)
    weights_file.check_same(path, config)
    frozen = FrozenConfigDict(config)
    params = weights_file.read(path, _diffusion_model(frozen))
    return Model(jax.tree.map(jnp.asarray, params), frozen, weights_file.step_of(path))


@functools.lru_cache(maxsize=16)
def _diffusion_model(config: FrozenConfigDict) -> DiffusionModel:
    return DiffusionModel.from_config(config)


def _copy(config: FrozenConfigDict) -> ConfigDict:
    return ConfigDict(config.to_dict())  # ConfigDict(config) shares its sections


@functools.lru_cache(maxsize=16)
def _sampler_from_config(config: FrozenConfigDict, sampler: str | None, steps: int | None) -> Sampler:
    return samplers.from_config(generation.with_sampler(_copy(config), sampler, steps))


def _check_finite(images: Any, finite: Any) -> Any:
    if not isinstance(finite, jax.core.Tracer) and not finite.all():
        raise ConfigError(f"{int((~finite).sum())} of {len(finite)} images are not finite: {generation.DIVERGED}")
    return images


@jax.jit
def _score(model: Model, x: Any, t: Any, labels: Any) -> Array:
    score = model.diffusion_model.score(model.params, labels=labels)
    return score(x, jnp.broadcast_to(jnp.asarray(t, x.dtype), len(x)))


def _images(model: Model, x: Any, scaled: bool) -> tuple[Array, Array]:
    return x if scaled else model.unscale(x), jnp.all(jnp.isfinite(x), axis=(1, 2, 3))


@functools.partial(jax.jit, static_argnames=("sampler", "scaled"))
def _draw(
    model: Model, keys: Any, labels: Any, sampler: Sampler, scaled: bool, known: Any = None
) -> tuple[Array, Array]:
    sde = samplers.sampling_sde(model.config, model.sde)

    def draw(labels: Any, keys: Any, known: Any) -> Array:
        score = generation.score_given(model.config, model.diffusion_model, model.params, labels)
        project: dict = {} if known is None else {"project": guidance.inpaint(sde, *known)}
        return sampler(score, sde, keys, model.image_shape, **project)[0]

    return _images(model, by_image(draw, labels, keys, known), scaled)


def _flow(model: Model, labels: Any) -> tuple[samplers.ODE, Score, SDE]:
    """Returns the ODE, whatever config.sampling.method is, the score and the SDE."""
    sampler = samplers.ODE(probability_flow.from_config(model.config.sampling), model.config.sampling.noise_removal)
    score = model.diffusion_model.score(model.params, labels=labels)
    return sampler, score, samplers.sampling_sde(model.config, model.sde)


@jax.jit
def _encode(model: Model, x: Any, labels: Any) -> Array:
    def encode(labels: Any, x: Any) -> Array:
        sampler, score, sde = _flow(model, labels)
        return sampler.encode(score, sde, sde.alpha(sde.eps) * x)[0]

    return by_image(encode, labels, x)


@functools.partial(jax.jit, static_argnames="scaled")
def _decode(model: Model, z: Any, labels: Any, scaled: bool) -> tuple[Array, Array]:
    def decode(labels: Any, z: Any) -> Array:
        sampler, score, sde = _flow(model, labels)
        return sampler.decode(score, sde, z)[0]

    return _images(model, by_image(decode, labels, z), scaled)


@jax.jit
def _log_likelihood(model: Model, x: Any, key: Any, labels: Any) -> jax.Array:
    integer = jnp.issubdtype(x.dtype, jnp.integer)
    evaluation = image_terms.from_config(model.config, model.diffusion_model, labels)
    with jax.default_matmul_precision("highest"):  # as the command
        terms = (evaluation.nll if integer else evaluation.density)(model.params, x, jnp.arange(len(x)), key)
    offset = evaluation.offset("nll") if integer else 0.0
    return jnp.where(terms["reached"], -(image_terms.total(terms) + offset) / evaluation.bits(1.0), jnp.nan)
