"""The train step: one update of the weights by the loss of a batch, on a mesh of devices.

Every device works on its own share of the batch. Parameters, optimizer state and average are replicated, or sharded
(training.fsdp) and all-gathered for a step. `gradient_of_share` spells out what devices exchange: the gradient is
summed once per step, whatever the number of micro-batches.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from score_st import networks
from score_st.array_types import Array, Float, Int, Key, UInt8
from score_st.config import ConfigError, Table
from score_st.data import preprocessing
from score_st.diffusion import likelihood, losses, time_sampling, truncation
from score_st.diffusion.losses import LogMass, Loss
from score_st.diffusion.truncation import TruncationPrior
from score_st.model import DiffusionModel
from score_st.runtime import sharding
from score_st.training import averages, optimizer, state
from score_st.training.state import TrainState

DTYPES = Table("training.dtype", {"float32": jnp.float32, "bfloat16": jnp.bfloat16}, also=("training.reduce_dtype",))
# otherwise the TPU's compiler cuts the sum of the gradients into pieces of 120 MB
TPU_OPTIONS = {"xla_jf_crs_combiner_threshold_in_bytes": "4294967296"}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStepConfig:
    """What a step does, besides the state and the batch.

    Attributes:
      model: with the network in the arithmetic of training.
      truncation: the prior of τ.
      optimizer: with clipping and the schedule of its rate.
      loss: of one device's share of a micro-batch.
      random_flip: flip images left to right at random.
      ema_rate: of the average.
      groups: draws of τ per batch.
      stratified: times are stratified among the images that share a τ, and the draws of τ among themselves.
      micro_batches: parts of a device's share, computed one after the other.
      log_mass: of discrete data, for lossless bounds, see `losses.reconstruction`.
      mesh: with the axes `sharding.AXES`; the batch is sharded along both, τ follows a device's place along `data`.
      reduce_dtype: the type in which gradients are summed across devices.
      averaged: whether the state has the averages of training.averages.
    """

    model: DiffusionModel
    truncation: TruncationPrior
    optimizer: optax.GradientTransformation
    loss: Loss
    random_flip: bool
    ema_rate: float
    groups: int
    stratified: bool
    micro_batches: int
    log_mass: LogMass | None
    mesh: Mesh
    reduce_dtype: Any
    averaged: bool

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The training state, as a tree of ShapeDtypeStructs."""
        return state.abstract(self.model, self.optimizer, self.averaged)

    def least_bytes(self, batch_size: int) -> dict[str, float]:
        """What a device needs at least, by what it is for; gradients are as large as parameters."""
        trees = self.abstract_state, self.abstract_state.params
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))
        images = batch_size // self.mesh.size // self.micro_batches
        return {
            f"the state of {parameters:,} parameters": size / self.mesh.shape["fsdp"],
            f"{images:,} images at a time": self.model.least_bytes(images),
        }

    @property
    def state_shardings(self) -> TrainState:
        """A tree of NamedShardings."""
        return sharding.shardings(self.mesh, self.abstract_state)

    def create(self, key: Key[Array, ""]) -> TrainState:
        """A freshly initialized state."""
        return state.create(self.model.init(key), self.optimizer, self.averaged)


Batch = UInt8[Array, "B H W C"] | tuple[UInt8[Array, "B H W C"], Int[Array, " B"]]  # images, or with their classes


def divided(batch: Batch) -> tuple[UInt8[Array, "B H W C"], dict[str, Array]]:
    """The images of a batch, and {"labels": their classes} where it has them."""
    return (batch[0], {"labels": batch[1]}) if isinstance(batch, tuple) else (batch, {})


def draw(config: TrainStepConfig, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
    """The inputs of the loss for a batch: x, tau, u, z and z_rec, see `losses.Loss`, and the labels if there are any.

    All randomness of a step is here, but for dropout.
    """
    images, labels = divided(batch)
    keys = jax.random.split(key, 6)
    if config.random_flip:
        images = preprocessing.random_flip(images, keys[0])
    x = config.model.scaler.forward(images, jax.random.uniform(keys[1], images.shape))
    uniforms = time_sampling.stratified if config.stratified else jax.random.uniform
    u = uniforms(keys[2], (config.groups, len(x) // config.groups)).reshape(len(x))
    z, z_rec = (jax.random.normal(key, x.shape) for key in keys[3:5])
    tau = truncation.sample(config.truncation, keys[5], config.groups, len(x), uniforms)
    return {"x": x, "tau": tau, "u": u, "z": z, "z_rec": z_rec} | labels


def mean_loss(
    config: TrainStepConfig, params: Any, inputs: dict[str, Array], dropout_key: Key[Array, ""] | None
) -> Float[Array, ""]:
    """The loss of the images on one device, averaged over them."""
    labels, inputs = inputs.get("labels"), {name: value for name, value in inputs.items() if name != "labels"}
    return jnp.mean(config.loss(config.model.score_model(params, dropout_key, labels), **inputs))


def all_gathered(params: Any, specs: Any, dtype: Any) -> Any:
    """Parameters that are sharded along `fsdp`, gathered on this device.

    Kernels, which the network casts to `dtype` anyway, are sent in it.
    """

    def gather(leaf: Array, spec: P) -> Array:
        leaf = leaf.astype(dtype) if leaf.ndim == 4 else leaf
        return jax.lax.all_gather(leaf, "fsdp", axis=spec.index("fsdp"), tiled=True) if "fsdp" in spec else leaf

    return jax.tree.map(gather, params, specs)


def summed(gradient: Any, specs: Any, dtype: Any) -> Any:
    """The sum of the gradients of all devices, float32, sharded as the parameters are.

    The barrier keeps the compiler from moving the cast of a bfloat16 gradient to float32 behind the sum, which would
    then be one of bfloat16 numbers.
    """
    gradient = jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf.astype(dtype), gradient))

    def over_devices(leaf: Array, spec: P) -> Array:
        if "fsdp" not in spec:
            return jax.lax.psum(leaf, sharding.AXES)
        share = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=spec.index("fsdp"), tiled=True)
        return jax.lax.psum(share, "data")

    return jax.tree.map(lambda leaf, spec: over_devices(leaf, spec).astype(jnp.float32), gradient, specs)


def gradient_of_share(
    params: Any, inputs: dict[str, Array], dropout_key: Key[Array, ""], *, config: TrainStepConfig, specs: Any
) -> tuple[Float[Array, ""], Any]:
    """On one device: mean loss and gradient over all devices, from this one's share of the inputs."""
    micro = config.micro_batches
    params = all_gathered(params, specs, networks.arithmetic_dtype(config.model.network))
    gradient_of = jax.value_and_grad(functools.partial(mean_loss, config))

    def accumulate(total: Any, part: Any) -> tuple[Any, None]:
        index, inputs = part
        new = gradient_of(params, inputs, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, total, new), None

    if micro == 1:
        loss, gradient = gradient_of(params, inputs, dropout_key)
    else:
        parts = jax.tree.map(lambda a: a.reshape(micro, -1, *a.shape[1:]), inputs)
        zero = jnp.float32(0), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
        # XLA's CPU backend is slow at a gradient of convolutions inside a loop
        unroll = sharding.platform(config.mesh) == "cpu"
        (loss, gradient), _ = jax.lax.scan(accumulate, zero, (jnp.arange(micro), parts), unroll=unroll)
    count = micro * config.mesh.size
    gradient = summed(gradient, specs, config.reduce_dtype)
    return jax.lax.psum(loss, sharding.AXES) / count, jax.tree.map(lambda leaf: leaf / count, gradient)


def on_devices(function: Callable, config: TrainStepConfig, results: int) -> Callable:
    """`function` of (params, inputs, key) on every device, with its shards of both.

    It returns a mean over devices and, with `results` > 1, a tree like the parameters.
    """
    specs = sharding.specs(config.mesh, config.model.abstract_params)
    return jax.shard_map(
        functools.partial(function, config=config, specs=specs),
        mesh=config.mesh,
        in_specs=(specs, P(sharding.AXES), P()),
        out_specs=(P(), specs) if results > 1 else P(),
        check_vma=False,  # the sums are written out
    )


def train_step(
    train_state: TrainState, batch: Batch, key: Key[Array, ""], *, config: TrainStepConfig
) -> tuple[TrainState, dict[str, Array]]:
    """One update by a batch: a pure function, in which everything random follows from `key` and the step.

    Micro-batches share the τ of their device, and their gradients are averaged.

    Returns:
      The new state, and scalars: loss, gradient_norm (before clipping), tau (geometric mean).
    """
    data_key, dropout_key = jax.random.split(jax.random.fold_in(key, train_state.step))
    inputs = draw(config, batch, data_key)
    loss, gradient = on_devices(gradient_of_share, config, 2)(train_state.params, inputs, dropout_key)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    if config.loss.soft_truncation:
        metrics["tau"] = jnp.exp(jnp.mean(jnp.log(inputs["tau"])))
    return state.update(train_state, gradient, config.optimizer, config.ema_rate), metrics


def train_steps(
    train_state: TrainState, batches: Any, key: Key[Array, ""], *, config: TrainStepConfig
) -> tuple[TrainState, dict[str, Array]]:
    """`train_step` for each of N batches, in one program; the metrics are [N], and the batches [N, B, ...]."""
    body = lambda current, batch: train_step(current, batch, key, config=config)
    return jax.lax.scan(body, train_state, batches)


def eval_loss(params: Any, batch: Batch, key: Key[Array, ""], *, config: TrainStepConfig) -> Float[Array, ""]:
    """The mean loss of a batch at τ = ε, without dropout or flips."""
    config = dataclasses.replace(config, truncation=config.truncation.fixed(), random_flip=False)

    def share(params: Any, inputs: dict, _: Array, *, config: TrainStepConfig, specs: Any) -> Array:
        params = all_gathered(params, specs, networks.arithmetic_dtype(config.model.network))
        return jax.lax.pmean(mean_loss(config, params, inputs, None), sharding.AXES)

    return on_devices(share, config, 1)(params, draw(config, batch, key), key)


def nelbo(
    params: Any,
    batch: Batch,
    u: Float[Array, " B"],
    key: Key[Array, ""],
    *,
    config: TrainStepConfig,
) -> Float[Array, ""]:
    """The variational bound on −log p(x_0) in bits/dim, the mean over the images, whatever the loss in training.

    Args:
      params: of the network.
      batch: images of integers, or with their classes.
      u: on [0, 1), for the importance-sampled times, see `likelihood.nelbo`.
      key: for all other noise.
      config: of the step.
    """
    model, keys = config.model, jax.random.split(key, 3)
    images, labels = divided(batch)
    x = model.scaler.forward(images, jax.random.uniform(keys[0], images.shape))
    inputs = {"x": x, "u": u, "z": jax.random.normal(keys[1], x.shape), "z_rec": jax.random.normal(keys[2], x.shape)}
    inputs |= labels

    def share(params: Any, inputs: dict, _: Array, *, config: TrainStepConfig, specs: Any) -> Array:
        params = all_gathered(params, specs, networks.arithmetic_dtype(model.network))
        score, x = model.score(params, labels=inputs.get("labels")), inputs["x"]
        terms = likelihood.nelbo(score, model.sde, x, inputs["u"], inputs["z"])
        eps = jnp.full(len(x), model.sde.eps)
        residual = losses.reconstruction(score, model.sde, x, eps, inputs["z_rec"], config.log_mass)
        return jax.lax.pmean(jnp.mean(sum(terms, start=residual)), sharding.AXES)

    nats, scaler = on_devices(share, config, 1)(params, inputs, key), model.scaler
    lossless = config.log_mass is not None
    bits = likelihood.bits_per_dim(nats, math.prod(images.shape[1:]), scaler.num_levels, scaler.centered, lossless)
    return jnp.asarray(bits)


def jitted(config: TrainStepConfig, several: bool = False) -> Any:
    """`train_step` (with `several`: `train_steps`) compiled for the mesh; the memory of the state is reused."""
    shardings, replicated = config.state_shardings, sharding.replicated(config.mesh)
    on_tpu = sharding.platform(config.mesh) == "tpu"
    return jax.jit(
        functools.partial(train_steps if several else train_step, config=config),
        compiler_options=TPU_OPTIONS if on_tpu else None,
        donate_argnums=0,
        in_shardings=(shardings, sharding.sharded(config.mesh, 1 if several else 0), replicated),
        out_shardings=(shardings, replicated),
    )


def jitted_eval_loss(config: TrainStepConfig) -> Any:
    """`eval_loss` compiled for the mesh."""
    params, replicated = config.state_shardings.params, sharding.replicated(config.mesh)
    inputs = (params, sharding.sharded(config.mesh), replicated)
    return jax.jit(functools.partial(eval_loss, config=config), in_shardings=inputs, out_shardings=replicated)


def jitted_nelbo(config: TrainStepConfig) -> Any:
    """`nelbo` compiled for the mesh."""
    params, replicated = config.state_shardings.params, sharding.replicated(config.mesh)
    inputs = (params, sharding.sharded(config.mesh), sharding.sharded(config.mesh), replicated)
    return jax.jit(functools.partial(nelbo, config=config), in_shardings=inputs, out_shardings=replicated)


def from_config(config, mesh: Mesh) -> TrainStepConfig:
    """The train step of a configuration on a mesh.

    Raises:
      ConfigError: a setting is unknown, or the batch can't be divided as asked.
    """
    training, micro, devices = config.training, config.optim.num_micro_batch, mesh.size
    model = DiffusionModel.from_config(config)
    dtype, reduce_dtype = (DTYPES.choose(training[key], f"training.{key}") for key in ("dtype", "reduce_dtype"))
    model = dataclasses.replace(model, network=networks.with_arithmetic(model.network, dtype, training.remat))
    groups = training.tau_groups or mesh.shape["data"]
    local_groups = max(groups // devices, 1)
    loss = losses.from_config(config, model.sde, local_groups)
    _check_batch_size(training.batch_size, devices, micro, groups, local_groups, loss.images_per_value)
    return TrainStepConfig(
        model,
        truncation.from_config(config),
        optimizer.optimizer_from_config(config, model.network),
        loss,
        config.data.random_flip,
        config.model.ema_rate,
        groups,
        training.stratified,
        micro,
        losses.log_mass_from_config(config) if config.data.dequantization == "lossless" else None,
        mesh,
        reduce_dtype,
        bool(averages.stored_steps(training.averages, training.n_iters)),
    )


def _check_batch_size(size: int, devices: int, micro: int, groups: int, local_groups: int, per_value: int) -> None:
    """Raises ConfigError unless devices, micro-batches, τ groups and parts of the loss divide the batch."""
    check = functools.partial(sharding.check_divisible, "training.batch_size", size)
    parts = f"{devices} devices times {micro} micro-batches"
    check(devices, "the number of devices")
    check(devices * micro, parts)
    check(groups, "training.tau_groups")
    by = devices * micro * per_value * local_groups
    if per_value > 1 and size % by:
        raise ConfigError(
            f"config.training.batch_size={size}: the mixture halves {local_groups} τ groups of each of {parts}; "
            f"should be a multiple of {by}"
        )
