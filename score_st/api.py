"""A trained model in Python: arrays in, arrays out, each method one compiled program.

x is as the network has images, float32 [B, H, W, C], scaled to [-1, 1] or [0, 1] (data.centered); an integer array of
the same shape is the images themselves, and scaled first. Where a method makes images they are uint8, or x with
`scaled=True`.
"""

import dataclasses
import functools
import math
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from score_st import config as configuration
from score_st.config import ConfigError
from score_st.diffusion import guidance, likelihood, probability_flow, samplers
from score_st.diffusion.sde import SDE
from score_st.evaluation import bits_per_dim, generation
from score_st.model import DiffusionModel
from score_st.runtime import sharding
from score_st.training import checkpoints

Sampler = samplers.ODE | samplers.PredictorCorrector
INPAINT = "reverse_diffusion+langevin"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "step"])
@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its weights, as a pytree: it can be an argument of a jitted or differentiated function.

    Image i of a call has noise of its own, a function of `key` and i.

    Attributes:
      params: the weights, its leaves.
      config: all settings; `sampling` and `eval` of it are what the methods below do.
      step: of the checkpoint.
    """

    params: dict
    config: FrozenConfigDict
    step: int = 0

    @property
    def experiment(self) -> DiffusionModel:
        """The parts: network, parametrisation, truncation, scaler."""
        return _experiment(self.config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.experiment.image_shape

    @property
    def sde(self) -> SDE:
        return self.experiment.sde

    def score(self, x, t) -> jax.Array:
        """∇ log p_t(x) [B, H, W, C], at t [B] or a number, ε <= t <= 1."""
        return _score(self, self.scale(x), t)

    def scale(self, images) -> jax.Array:
        """x [B, H, W, C] of integer images, at the middle of their levels; x itself stays."""
        images = jnp.asarray(images)
        if not jnp.issubdtype(images.dtype, jnp.integer):
            return images
        return self.experiment.scaler.forward(images, jnp.full(images.shape, 0.5))

    def unscale(self, x) -> jax.Array:
        """uint8 images [B, H, W, C] of x."""
        return self.experiment.scaler.inverse(jnp.asarray(x))

    def sample(
        self, key, n: int, sampler: str | Sampler | None = None, steps: int | None = None, scaled=False
    ) -> jax.Array:
        """`n` images [n, H, W, C]; with `jax.random.key(seed)` those of `python -m score_st.sample --seed`.

        Computed in groups of config.sampling.group.

        Args:
          sampler: "ode", "dpm_solver_2m", "reverse_diffusion+langevin", ... as --sampler has it, or an object of
            `sampling`; config.sampling by default.
          steps: of a predictor.

        Raises:
          ConfigError: no such sampler, or (outside jit) an image that is not finite.
        """
        group, chosen = self.config.sampling.group, self._sampler(sampler, steps)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(-(-n // group) * group))
        parts = [_draw(self, keys[i : i + group], chosen, scaled) for i in range(0, n, group)]
        return _finite(*(jnp.concatenate(arrays)[:n] for arrays in zip(*parts, strict=True)))

    def inpaint(
        self, key, images, mask, sampler: str | Sampler = INPAINT, steps: int | None = None, scaled=False
    ) -> jax.Array:
        """Images [B, H, W, C] that agree with `images` (integers, or x) where `mask` is 1, see `control`.

        Args:
          mask: broadcast to the images, [H, W, 1] for instance.
          sampler, steps: as for `sample`, a predictor; a corrector brings both parts into agreement.
        """
        chosen = self._sampler(sampler, steps)
        if isinstance(chosen, samplers.ODE):
            raise ConfigError("sampler=ode: can't keep what is known; a predictor can, best with a corrector")
        x = self.scale(images)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x)))
        return _finite(*_draw(self, keys, chosen, scaled, (x, jnp.asarray(mask, x.dtype))))

    def log_likelihood(self, x, key=None) -> jax.Array:
        """log p in nats an image [B], by the probability flow and config.eval; NaN where the solver did not arrive.

        Of integer images: of the levels themselves, dequantised as config.eval says, with the reconstruction term, and
        the lower bound that `nll` of eval/bpd.json is. Of x: its density, by the flow from x, no noise added.

        Args:
          key: of the dequantisation and the Hutchinson probes; by default that of `python -m score_st.eval`.
        """
        x = jnp.asarray(x)
        key = jax.random.fold_in(jax.random.key(self.config.seed), 0) if key is None else key
        return _log_likelihood(self, x, key)

    def bits_per_dim(self, x, key=None) -> jax.Array:
        """-`log_likelihood` in bits a dimension of integer data [B]; for x, the levels' width is accounted for."""
        integer = jnp.issubdtype(jnp.asarray(x).dtype, jnp.integer)
        scaler, dims = self.experiment.scaler, math.prod(self.image_shape)
        nats = -self.log_likelihood(x, key)
        return likelihood.bits_per_dim(nats, dims, scaler.num_levels, scaler.centered, lossless=integer)

    def encode(self, x) -> jax.Array:
        """The latents x_T [B, H, W, C] of the probability flow, from the mean of x_ε given `x` (or integer images)."""
        return _encode(self, self.scale(x))

    def decode(self, z, scaled=False) -> jax.Array:
        """Images [B, H, W, C] of latents."""
        return _finite(*_decode(self, jnp.asarray(z), scaled))

    def _sampler(self, sampler: str | Sampler | None, steps: int | None) -> Sampler:
        return _chosen(self.config, sampler, steps) if sampler is None or isinstance(sampler, str) else sampler


def load(workdir: str | Path, step: int | None = None, settings: dict | None = None) -> Model:
    """The model of a workdir, with the EMA weights.

    Args:
      step: of the checkpoint; the newest by default.
      settings: values other than those of the workdir's config.json, by dotted key: {"sampling.grid": "logsnr"}.

    Raises:
      ConfigError: no run there, no such checkpoint, or a setting that is unknown or changes what the weights mean.
    """
    config = configuration.from_workdir(workdir, settings)
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of every checkpoint opened for reading
    try:
        restored = checkpoints.open_for_reading(
            workdir, config, DiffusionModel.from_config(config), sharding.mesh(), step
        )
    finally:
        absl.logging.set_verbosity(verbosity)
    # on the first device but not committed to it: they go where x is
    return Model(jax.tree.map(jnp.asarray, jax.device_get(restored.ema)), FrozenConfigDict(config), int(restored.step))


@functools.lru_cache(maxsize=16)
def _experiment(config: FrozenConfigDict) -> DiffusionModel:
    return DiffusionModel.from_config(config)


def _copy(config: FrozenConfigDict) -> ConfigDict:
    return ConfigDict(config.to_dict())  # ConfigDict(config) shares its sections


@functools.lru_cache(maxsize=16)
def _chosen(config: FrozenConfigDict, sampler: str | None, steps: int | None) -> Sampler:
    return samplers.from_config(generation.chosen(_copy(config), sampler, steps))


@functools.lru_cache(maxsize=16)
def _evaluation(config: FrozenConfigDict) -> bits_per_dim.Evaluation:
    changed = _copy(config)
    changed.eval.batch_size = jax.device_count() * max(config.eval.group, 1)  # of the command alone
    return bits_per_dim.from_config(changed, _experiment(config))


def _finite(images, finite):
    if not isinstance(finite, jax.core.Tracer) and not finite.all():
        raise ConfigError(f"{int((~finite).sum())} of {len(finite)} images are not finite: {generation.DIVERGED}")
    return images


@jax.jit
def _score(model: Model, x, t):
    return model.experiment.score(model.params)(x, jnp.broadcast_to(jnp.asarray(t, x.dtype), len(x)))


def _images(model: Model, x, scaled: bool):
    return x if scaled else model.unscale(x), jnp.all(jnp.isfinite(x), axis=(1, 2, 3))


@functools.partial(jax.jit, static_argnames=("sampler", "scaled"))
def _draw(model: Model, keys, sampler: Sampler, scaled: bool, known=None):
    made, sde = model.experiment, samplers.sampling_sde(model.config, model.sde)
    project: dict = {} if known is None else {"project": guidance.inpaint(sde, *known)}
    return _images(model, sampler(made.score(model.params), sde, keys, made.image_shape, **project)[0], scaled)


def _flow(model: Model):
    """The ODE whatever config.sampling.method is, the score and the SDE."""
    sampler = samplers.ODE(probability_flow.from_config(model.config.sampling), model.config.sampling.noise_removal)
    return sampler, model.experiment.score(model.params), samplers.sampling_sde(model.config, model.sde)


@jax.jit
def _encode(model: Model, x):
    sampler, score, sde = _flow(model)
    return sampler.encode(score, sde, sde.alpha(sde.eps) * x)[0]


@functools.partial(jax.jit, static_argnames="scaled")
def _decode(model: Model, z, scaled: bool):
    sampler, score, sde = _flow(model)
    return _images(model, sampler.decode(score, sde, z)[0], scaled)


@jax.jit
def _log_likelihood(model: Model, x, key):
    integer, computed = jnp.issubdtype(x.dtype, jnp.integer), _evaluation(model.config)
    with jax.default_matmul_precision("highest"):  # as the command
        terms = (computed.nll if integer else computed.density)(model.params, x, jnp.arange(len(x)), key)
    offset = computed.offset("nll") if integer else 0.0
    return jnp.where(terms["reached"], -(bits_per_dim.total(terms) + offset) / computed.bits(1.0), jnp.nan)
