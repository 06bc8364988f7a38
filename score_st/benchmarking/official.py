"""The official PyTorch code beside ours, in turn, with the same weights and the same inputs.

PyTorch is imported only here, and only when a comparison is asked for.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_st.benchmarking.subject import Subject
from score_st.benchmarking.timing import Number, Numbers, measure_in_turn
from score_st.config import ConfigError, default
from score_st.diffusion import likelihood, probability_flow
from score_st.pytorch import checkpoint
from score_st.runtime import sharding
from score_st.training import loop
from score_st.training import step as stepping
from score_st.training.state import TrainState

FILES = ("sde_lib.py", "losses.py", "likelihood.py", "models/ncsnpp.py", "models/ema.py")
# keys that the official code reads and this package has no use for, with their values in all official configurations
OFFICIAL_KEYS = {"eval": {"probability_flow": True}, "optim": {"amsgrad": False}}
# keys of ours that change what is computed; the official code knows their defaults only
OURS: tuple[str, ...] = ("training.time_sampler", "training.weighting", "training.loss", "training.truncation_prior")
OURS += ("training.stratified", "optim.schedule")


MODULES = ("sde_lib", "losses", "likelihood", "models.utils", "models.ema")
STAND_INS = ("tensorflow", "tensorflow_datasets", "torchvision", "torchvision.utils")


class StandIn(types.ModuleType):
    """Replaces modules that the official files import and don't use here."""

    def __getattr__(self, name: str) -> "StandIn":
        """Returns another stand-in."""
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        """Returns another stand-in."""
        return StandIn("result")


def check(path: Path, config: ConfigDict) -> None:
    """Checks that a comparison is possible, without importing PyTorch.

    Raises:
      ConfigError: PyTorch or the checkout is missing, or the official code can't do what the configuration asks for.
    """
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        where = "no checkout of github.com/Kim-Dongjun/Soft-Truncation"
        raise ConfigError(f"--official {path}: {where} (no {missing[0]} there)")
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"--official {path}: needs PyTorch: pip install torch")
    checkpoint.require_convertible(config)
    if config.model.fir and jax.default_backend() == "gpu":
        raise ConfigError(
            "--official: config.model.fir=True: needs the official CUDA extension, which is not built here"
        )
    for key in OURS:
        section, name = key.split(".")
        if config[section][name] != default()[section][name]:
            value, usual = config[section][name], default()[section][name]
            raise ConfigError(f"--official: config.{key}={value!r}: the official code only has {usual!r}")


def import_modules(path: Path) -> types.SimpleNamespace:
    """Imports the official modules from a checkout, without the CUDA extension that networks with FIR filters need.

    They stay imported, by names such as `losses` and `models`, under which torch.compile looks for them.
    """
    import torch.utils.cpp_extension as extension

    absent = [name for name in STAND_INS if name not in sys.modules]
    load, extension.load = extension.load, lambda *args, **kwargs: None
    sys.modules.update({name: StandIn(name) for name in absent})
    sys.path.insert(0, str(path))
    try:
        importlib.import_module("models.ncsnpp")  # registers itself
        return types.SimpleNamespace(**{name.split(".")[-1]: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(path))
        extension.load = load
        for name in absent:
            sys.modules.pop(name, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Both implementations with the same weights.

    Attributes:
      subject: of the benchmark.
      setup: our train step.
      state: our training state.
      modules: the official modules.
      config: the official configuration.
      sde: the official SDE.
      network: the official network.
      autocast: a context in which the official network computes in the type of training.
    """

    subject: Subject
    setup: stepping.TrainStepConfig
    state: TrainState
    modules: Any
    config: ConfigDict
    sde: Any
    network: Any
    autocast: Callable[[], Any]

    def tensor(self, array: Any) -> Any:
        """Returns images [B, H, W, C] as a tensor [B, C, H, W], and other arrays as they are, on the device."""
        import torch

        array = np.asarray(array)
        array = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        return torch.from_numpy(np.array(array, order="C")).to(self.config.device)


def never_zero(params: Any, key: jax.Array) -> Any:
    """Returns parameters in which every array of zeros has small random values, so that the output is not 0."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draw = lambda leaf, key: leaf if jnp.any(leaf) else 0.02 * jax.random.normal(key, leaf.shape)
    return jax.tree.unflatten(tree, map(draw, leaves, keys))


def pair(subject: Subject, modules: Any) -> Pair:
    """Builds both implementations, with our initial weights, none of them zero."""
    import torch

    config, mesh = subject.config, sharding.mesh(devices=[subject.device])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    setup = stepping.from_config(config, mesh)
    state = jax.jit(setup.create, out_shardings=setup.state_shardings)(jax.random.key(config.seed))
    trained = subject.about["weights"] != "random"
    params = subject.params if trained else never_zero(state.params, jax.random.key(1))
    params = jax.device_put(jax.tree.map(np.asarray, params), setup.state_shardings.params)
    state = dataclasses.replace(state, params=params, ema=params)
    theirs = ConfigDict(config.to_dict())
    for section, values in OFFICIAL_KEYS.items():
        theirs[section].update(values)
    on_gpu = sharding.platform(mesh) == "gpu" and torch.cuda.is_available()
    theirs.device = torch.device("cuda:0" if on_gpu else "cpu")
    sde = modules.sde_lib.get_sde(theirs, None)
    network = modules.utils.create_model(theirs, sde)
    weights = checkpoint.state_to_torch(state, config)["model"]
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    half = config.training.dtype == "bfloat16"
    autocast = lambda: torch.autocast(theirs.device.type, torch.bfloat16) if half else contextlib.nullcontext()
    return Pair(subject, setup, state, modules, theirs, sde, network, autocast)


def _wait(both: Pair) -> None:
    import torch

    if both.config.device.type == "cuda":
        torch.cuda.synchronize()


def _official(both: Pair, function: Callable[[], Any]) -> Callable[[int], None]:
    """Returns a `timing.Run` of the official code."""

    def run(calls: int) -> None:
        for _ in range(calls):
            function()
        _wait(both)

    return run


def _ours(function: Callable[[], Any]) -> Callable[[int], None]:
    """Returns a `timing.Run` of ours."""

    def run(calls: int) -> None:
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)

    return run


Runs = dict[str, Callable[[int], None]]


def step_runs(both: Pair, images: np.ndarray, networks: dict[str, Any]) -> Runs:
    """Returns a train step of a batch by our code, and by the official one with each of `networks`."""
    steps, key = loop.compiled_steps(both.setup), jax.random.key(0)
    current = [jax.device_put(jax.tree.map(np.asarray, both.state), both.setup.state_shardings)]

    def ours() -> Any:
        current[0], metrics = steps(current[0], [images], key)
        return metrics

    modules, theirs = both.modules, both.config
    batch = both.tensor(both.subject.model.scaler.forward(images, jnp.full(images.shape, 0.5)))
    step = modules.losses.get_step_fn(theirs, both.sde, True, modules.losses.optimization_manager(theirs))
    runs = {"ours": _ours(ours)}
    for name, network in networks.items():
        optimizer = modules.losses.get_optimizer(theirs, network.parameters())
        average = modules.ema.ExponentialMovingAverage(network.parameters(), decay=theirs.model.ema_rate)
        state = {"model": network, "optimizer": optimizer, "ema": average, "step": 0}

        def official(state: dict = state) -> None:
            with both.autocast():
                step(state, batch)

        runs[name] = _official(both, official)
    return runs


def forward_runs(both: Pair, x: jax.Array, t: jax.Array, networks: dict[str, Any]) -> tuple[Runs, float]:
    """Returns a forward pass by each, and how far ours is from the first at most, relative to the largest output."""
    import torch

    form = both.subject.model.parametrization
    time_cond, log_of = form.time_conditioning(t), form.log_time_conditioning
    network = jax.jit(lambda params, *inputs: both.setup.model.apply(params)(*inputs))
    ours = lambda: network(both.state.params, x, time_cond, log_of(t) if log_of else None)
    inputs = both.tensor(x), both.tensor(time_cond)
    runs, outputs = {"ours": _ours(ours)}, []
    for name, theirs in networks.items():

        def official(theirs: Any = theirs) -> Any:
            theirs.eval()
            with torch.no_grad(), both.autocast():
                return theirs(*inputs)

        runs[name] = _official(both, official)
        outputs.append(official().float().cpu().numpy().transpose(0, 2, 3, 1))
    expected = outputs[0]
    difference = float(np.abs(np.asarray(ours(), np.float32) - expected).max() / np.abs(expected).max())
    return runs, difference


def drift_runs(both: Pair, x: jax.Array, t: jax.Array, networks: dict[str, Any]) -> Runs:
    """Returns an evaluation by each of what the likelihood integrates: drift and divergence, with one probe."""
    sde, model = both.subject.model.sde, both.subject.model
    probe = jax.random.rademacher(jax.random.key(2), x.shape, x.dtype)

    @jax.jit
    def flow(params: Any, x: Any, t: Any, probe: Any) -> Any:
        def one(x: Any, t: Any, probe: Any) -> Any:
            velocity = lambda x: probability_flow.flow_at(model.score(params), sde, t[None], x[None])[0]
            return likelihood.divergence(velocity, x, probe[None])

        return jax.vmap(one)(x, t, probe)

    def ours() -> Any:
        with jax.default_matmul_precision("highest"):
            return flow(both.state.params, x, t, probe)

    runs, (images, times, noise) = {"ours": _ours(ours)}, map(both.tensor, (x, t, probe))
    utils = both.modules.utils
    for name, network in networks.items():
        score = utils.get_score_fn(both.config, both.sde, network, train=False, continuous=True)
        reverse = both.sde.reverse(score, probability_flow=True, lambda_=0.0)
        drift = lambda x, t, reverse=reverse: reverse.sde(x, t)[0]
        divergence = both.modules.likelihood.get_div_fn(drift)

        def official(drift: Callable = drift, divergence: Callable = divergence) -> Any:
            import torch

            with torch.no_grad():
                return drift(images, times), divergence(images, times, noise)

        runs[name] = _official(both, official)
    return runs


def _named(measured: Numbers, term: str, images: int) -> Numbers:
    """Returns the seconds of each, images/s of a train step, and how many times as long ours takes."""
    numbers: Numbers = {}
    for name, seconds in measured.items():
        numbers[f"{term} {name}"] = seconds
        if term == "train step":
            numbers[f"{term} {name} images_per_s"] = seconds.rate(images, "images/s")
    ours = measured["ours"]
    for name, seconds in measured.items():
        if name != "ours":
            ratio = ours.median / seconds.median, ours.low / seconds.high, ours.high / seconds.low
            numbers[f"{term} ours / {name}"] = Number(*ratio, min(ours.count, seconds.count), "of the time", "lower")
    return numbers


def about(both: Pair) -> dict[str, Any]:
    """Returns what PyTorch computes with, as JSON has it."""
    import torch

    return {
        "torch": torch.__version__,
        "device": str(both.config.device),
        "threads": torch.get_num_threads(),
        "convolutions_in_tf32": torch.backends.cudnn.allow_tf32,
        "products_in_tf32": torch.backends.cuda.matmul.allow_tf32,
        "autocast": both.subject.config.training.dtype == "bfloat16",
    }


def compare(subject: Subject, path: Path, compiled: bool, with_nll: bool) -> tuple[Numbers, dict[str, Any]]:
    """Measures our code and the official one in turn, on one device: train step, forward, drift and divergence, NLL.

    Args:
      subject: of the benchmark.
      path: a checkout of the official code.
      compiled: also measure the official network under torch.compile.
      with_nll: also measure the likelihood, which takes minutes on a CPU.

    Returns:
      The numbers, and what PyTorch computes with.
    """
    import torch

    from score_st.benchmarking import official_nll

    both = pair(subject, import_modules(path))
    eager = {"official": both.network}
    networks = eager | ({"official compiled": torch.compile(both.network)} if compiled else {})
    images = np.asarray(subject.images["train"][np.arange(subject.config.training.batch_size)])
    count, model = len(images), subject.model
    x = jnp.asarray(model.scaler.forward(images, jnp.full(images.shape, 0.5)))
    t = jnp.linspace(0.1, 0.9, count)
    forward, difference = forward_runs(both, x, t, networks)
    numbers = {"forward relative difference": Number.of([difference], "", "lower")}
    terms = {"forward": forward, "drift and divergence": drift_runs(both, x, t, eager)}
    for term, runs in terms.items():
        numbers |= _named(measure_in_turn(runs, subject.seconds / 3, term), term, count)
    if with_nll:
        numbers |= official_nll.compare(both)
    # last, since it changes the weights
    runs = step_runs(both, images, networks)
    numbers |= _named(measure_in_turn(runs, subject.seconds / 3, "train step of both"), "train step", count)
    return numbers, about(both)
