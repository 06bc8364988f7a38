"""The train step: one update of the weights by the loss of a batch, on a mesh of devices.

Every device works on its own share of the batch. Parameters, optimiser and average lie whole on every device, or
(training.fsdp) in shares that are joined for a step. What devices exchange is written out in `gradient_of_share`: the
gradient is summed once a step, whatever the number of micro-batches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from score_st import networks
from score_st.config import ConfigError, choose
from score_st.data import preprocessing
from score_st.diffusion import losses, truncation
from score_st.model import DiffusionModel
from score_st.runtime import sharding
from score_st.training import optimizer, state

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# the TPU's compiler would cut the sum of the gradients into pieces of 120 MB
TPU_OPTIONS = {"xla_jf_crs_combiner_threshold_in_bytes": "4294967296"}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStepConfig:
    """What a step does, besides the state and the batch.

    Attributes:
      model: with the network in the arithmetic of training.
      truncation: the prior of τ.
      optimizer: with clipping and the schedule of its rate.
      loss: of one device's share of a micro-batch, see `losses`.
      groups: draws of τ a batch.
      mesh: of the axes `sharding.AXES`; the batch lies on both, τ follows a device's place on `data`.
      reduce_dtype: in which gradients are summed across devices.
    """

    model: DiffusionModel
    truncation: truncation.Truncation
    optimizer: optax.GradientTransformation
    loss: Callable
    random_flip: bool
    ema_rate: float
    groups: int
    micro_batches: int
    mesh: Mesh
    reduce_dtype: Any

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """The training state, as a tree of ShapeDtypeStructs."""
        return state.abstract(self.model, self.optimizer)

    def create(self, key) -> state.TrainState:
        """A freshly initialised state."""
        return state.create(self.model.init(key), self.optimizer)

    @property
    def state_shardings(self) -> state.TrainState:
        return sharding.shardings(self.mesh, self.abstract_state)


def draw(setup: TrainStepConfig, images, key):
    """The arguments of the loss for a batch of uint8 images [B, H, W, C]: (x, τ, u, z, z_rec), or for a discrete loss
    (x, u, z). All randomness of a step but dropout's is here."""
    keys = jax.random.split(key, 6)
    if setup.random_flip:
        images = preprocessing.random_flip(images, keys[0])
    x = setup.model.scaler.forward(images, jax.random.uniform(keys[1], images.shape))
    u = jax.random.uniform(keys[2], (len(x),))
    z, z_rec = (jax.random.normal(key, x.shape) for key in keys[3:5])
    if isinstance(setup.loss, losses.Discrete):
        return x, u, z
    return x, setup.truncation.sample(keys[5], setup.groups, len(x)), u, z, z_rec


def mean_loss(setup: TrainStepConfig, params, inputs, dropout_key):
    """The loss of images on one device, averaged over them."""
    made = setup.model
    discrete = isinstance(setup.loss, losses.Discrete)
    function = made.apply(params, dropout_key) if discrete else made.score(params, dropout_key)
    return jnp.mean(setup.loss(function, *inputs))


def joined(params, specs, dtype):
    """Whole parameters from the shares of this device and its neighbours along `fsdp`.

    Kernels, which the network casts to `dtype` anyway, are sent in it.
    """

    def join(leaf, spec):
        leaf = leaf.astype(dtype) if leaf.ndim == 4 else leaf
        return jax.lax.all_gather(leaf, "fsdp", axis=spec.index("fsdp"), tiled=True) if "fsdp" in spec else leaf

    return jax.tree.map(join, params, specs)


def summed(gradient, specs, dtype):
    """The sum over all devices of each one's whole gradient, float32, in the shares in which parameters lie.

    The barrier keeps the compiler from moving the cast of a bfloat16 gradient to float32 behind the sum, which would
    then be one of bfloat16 numbers.
    """
    gradient = jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf.astype(dtype), gradient))

    def over_devices(leaf, spec):
        if "fsdp" not in spec:
            return jax.lax.psum(leaf, sharding.AXES)
        share = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=spec.index("fsdp"), tiled=True)
        return jax.lax.psum(share, "data")

    return jax.tree.map(lambda leaf, spec: over_devices(leaf, spec).astype(jnp.float32), gradient, specs)


def gradient_of_share(params, inputs, dropout_key, *, setup: TrainStepConfig, specs):
    """On one device of the mesh: mean loss and gradient over all devices, from this one's share of the inputs."""
    params, micro = joined(params, specs, networks.arithmetic_dtype(setup.model.network)), setup.micro_batches
    gradient_of = jax.value_and_grad(functools.partial(mean_loss, setup))

    def accumulate(total, part):
        index, inputs = part
        new = gradient_of(params, inputs, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, total, new), None

    if micro == 1:
        loss, gradient = gradient_of(params, inputs, dropout_key)
    else:
        parts = jax.tree.map(lambda a: a.reshape(micro, -1, *a.shape[1:]), inputs)
        zero = jnp.float32(0), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
        (loss, gradient), _ = jax.lax.scan(accumulate, zero, (jnp.arange(micro), parts))
    count = micro * setup.mesh.size
    gradient = summed(gradient, specs, setup.reduce_dtype)
    return jax.lax.psum(loss, sharding.AXES) / count, jax.tree.map(lambda leaf: leaf / count, gradient)


def on_devices(function: Callable, setup: TrainStepConfig, results: int):
    """`function` of (params, inputs, key) on every device, with its share of both; gives a mean, and `results` > 1 of
    it also a tree like the parameters."""
    specs = sharding.specs(setup.mesh, setup.model.abstract_params)
    return jax.shard_map(
        functools.partial(function, setup=setup, specs=specs),
        mesh=setup.mesh,
        in_specs=(specs, P(sharding.AXES), P()),
        out_specs=(P(), specs) if results > 1 else P(),
        check_vma=False,  # what is summed is said in so many words
    )


def train_step(train_state: state.TrainState, images, key, *, setup: TrainStepConfig):
    """One update from a batch of uint8 images [B, H, W, C].

    A pure function: everything random follows from `key` and the step. Micro-batches share the τ of their device, and
    their gradients are averaged.

    Returns:
      The new state, and scalars: loss, gradient_norm (before clipping), tau (geometric mean).
    """
    data_key, dropout_key = jax.random.split(jax.random.fold_in(key, train_state.step))
    inputs = draw(setup, images, data_key)
    loss, gradient = on_devices(gradient_of_share, setup, 2)(train_state.params, inputs, dropout_key)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    if not isinstance(setup.loss, losses.Discrete):
        metrics["tau"] = jnp.exp(jnp.mean(jnp.log(inputs[1])))
    return state.update(train_state, gradient, setup.optimizer, setup.ema_rate), metrics


def train_steps(train_state: state.TrainState, images, key, *, setup: TrainStepConfig):
    """`train_step` for each of the batches [N, B, H, W, C], in one program; metrics are [N]."""
    body = lambda current, batch: train_step(current, batch, key, setup=setup)
    return jax.lax.scan(body, train_state, images)


def eval_loss(params, images, key, *, setup: TrainStepConfig):
    """The loss at τ = ε without dropout or flips, averaged over uint8 images [B, H, W, C]."""
    fixed = dataclasses.replace(setup.truncation, k=float("inf"))
    setup = dataclasses.replace(setup, truncation=fixed, random_flip=False)

    def share(params, inputs, _, *, setup, specs):
        params = joined(params, specs, networks.arithmetic_dtype(setup.model.network))
        return jax.lax.pmean(mean_loss(setup, params, inputs, None), sharding.AXES)

    return on_devices(share, setup, 1)(params, draw(setup, images, key), key)


def jitted(setup: TrainStepConfig, several: bool = False):
    """`train_step` (or with `several` `train_steps`) compiled for the setup's mesh; the state's memory is reused."""
    layout, whole = setup.state_shardings, sharding.replicated(setup.mesh)
    on_tpu = setup.mesh.devices.flat[0].platform == "tpu"
    return jax.jit(
        functools.partial(train_steps if several else train_step, setup=setup),
        compiler_options=TPU_OPTIONS if on_tpu else None,
        donate_argnums=0,
        in_shardings=(layout, sharding.sharded(setup.mesh, 1 if several else 0), whole),
        out_shardings=(layout, whole),
    )


def jitted_eval_loss(setup: TrainStepConfig):
    """`eval_loss` compiled for the setup's mesh."""
    layout, whole = setup.state_shardings.params, sharding.replicated(setup.mesh)
    shardings = dict(in_shardings=(layout, sharding.sharded(setup.mesh), whole), out_shardings=whole)
    return jax.jit(functools.partial(eval_loss, setup=setup), **shardings)


def from_config(config, mesh: Mesh) -> TrainStepConfig:
    """Raises ConfigError: a setting is unknown, or the batch can't be split as asked."""
    training, micro, devices = config.training, config.optim.num_micro_batch, mesh.size
    made = DiffusionModel.from_config(config)
    dtypes = [choose(DTYPES, training[key], f"training.{key}") for key in ("dtype", "reduce_dtype")]
    network = networks.with_arithmetic(made.network, dtypes[0], training.remat)
    made = dataclasses.replace(made, network=network)
    groups = training.tau_groups or mesh.shape["data"]
    for key, value in (("optim.num_micro_batch", micro), ("training.n_jitted_steps", training.n_jitted_steps)):
        if value < 1:
            raise ConfigError(f"config.{key}={value}: should be 1 or more")
    sharding.check_divisible("training.batch_size", training.batch_size, devices, "the number of devices")
    by, what = devices * micro, f"{devices} devices times {micro} micro-batches"
    sharding.check_divisible("training.batch_size", training.batch_size, by, what)
    sharding.check_divisible("training.batch_size", training.batch_size, groups, "training.tau_groups")
    local = max(groups // devices, 1)  # a micro-batch is halved and balanced where it is
    if training.mixed and training.batch_size % (by * 2 * local):
        raise ConfigError(
            f"config.training.batch_size={training.batch_size}: the mixture halves {local} τ groups of each of "
            f"{what}; should be a multiple of {by * 2 * local}"
        )
    loss = losses.from_config(config, made.sde, local)
    prior, optim = truncation.from_config(config), optimizer.optimizer_from_config(config)
    flip, rate = config.data.random_flip, config.model.ema_rate
    return TrainStepConfig(made, prior, optim, loss, flip, rate, groups, micro, mesh, dtypes[1])
