"""The likelihood by both implementations, of the same images with the same noise and probes, and the error of each."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float
from score_st.benchmarking.timing import Number, Numbers, measure_in_turn
from score_st.diffusion import likelihood, losses, probability_flow

if TYPE_CHECKING:
    from score_st.benchmarking.official import Pair

REFERENCE = probability_flow.Solver(5e-7, 5e-7)  # its figures are taken as exact


@contextlib.contextmanager
def given_noise(probe: Any, *normals: Any) -> Iterator[None]:
    """Makes PyTorch's draws like a tensor return these: Rademacher probes, and normal noise in turn."""
    import torch

    draws, before = list(normals), (torch.randint_like, torch.randn_like)
    torch.randint_like = lambda *args, **kwargs: (probe + 1) / 2
    torch.randn_like = lambda *args, **kwargs: draws.pop(0)
    try:
        yield
    finally:
        torch.randint_like, torch.randn_like = before


def ours(both: "Pair", x: Float[Array, "B H W C"], noise: dict[str, Any], solver: probability_flow.Solver) -> Callable:
    """Returns a function without arguments: our bits/dim [B] and network evaluations [B]."""
    model = both.subject.model
    sde = model.sde

    @jax.jit
    def bits(params: Any, x: Any, z: Any, z_rec: Any, probe: Any) -> Any:
        score, eps = model.score(params), jnp.full(len(x), sde.eps)
        mean, std = sde.marginal(x, eps)
        nll = likelihood.nll(score, sde, mean + std[0] * z, probe[:, None], solver)
        nats = nll.total + losses.reconstruction(score, sde, x, eps, z_rec)
        dims = math.prod(x.shape[1:])
        return likelihood.bits_per_dim(nats, dims, 256, model.scaler.centered), nll.evaluations

    def function() -> Any:
        with jax.default_matmul_precision("highest"):
            return jax.tree.map(np.asarray, bits(both.state.params, x, **noise))

    return function


def official(both: "Pair", x: Float[Array, "B H W C"], noise: dict[str, Any]) -> Callable:
    """Returns a function without arguments: the official bits/dim [B], and its evaluations of the network."""
    inverse = (lambda v: (v + 1) / 2) if both.config.data.centered else (lambda v: v)
    function = both.modules.likelihood.get_likelihood_fn(both.config, both.sde, inverse)
    tensors = {name: both.tensor(value) for name, value in noise.items()}

    def bits() -> Any:
        with given_noise(tensors["probe"], tensors["z"], tensors["z_rec"]):
            values, _, evaluations, *_ = function(both.network, both.tensor(x), mode="correct")
        return values.cpu().numpy(), np.full(len(x), evaluations)

    return bits


def compare(both: "Pair") -> Numbers:
    """Returns seconds per image, evaluations and the error of each in bits/dim, relative to a tolerance of 5e-7."""
    subject = both.subject
    indices = np.arange(subject.count) % len(subject.images["test"])
    images = np.asarray(subject.images["test"][indices])
    x = jnp.asarray(subject.model.scaler.forward(images, jnp.full(images.shape, 0.5)))
    keys = jax.random.split(jax.random.key(0), 3)
    noise = {name: jax.random.normal(key, x.shape) for name, key in zip(("z", "z_rec"), keys[:2], strict=True)}
    noise["probe"] = jax.random.rademacher(keys[2], x.shape, x.dtype)
    solver = dataclasses.replace(probability_flow.from_config(subject.config.eval))
    functions = {"ours": ours(both, x, noise, solver), "official": official(both, x, noise)}
    results: dict[str, Any] = {}

    def run(name: str, calls: int) -> None:
        for _ in range(calls):
            results[name] = functions[name]()

    runs = {name: lambda calls, name=name: run(name, calls) for name in functions}
    measured = measure_in_turn(runs, subject.seconds, "NLL by both")
    exact, _ = ours(both, x, noise, REFERENCE)()
    numbers: Numbers = {}
    for name, seconds in measured.items():
        values, evaluations = results[name]
        error = float(np.sqrt(np.mean(np.square(values.astype(np.float64) - exact))))
        numbers[f"NLL {name}"] = seconds.times(1 / len(x), "s/image", "lower")
        numbers[f"NLL {name} nfe_mean"] = Number.of([float(evaluations.mean())], "NFE", "lower")
        numbers[f"NLL {name} error"] = Number.of([error], "bits/dim", "lower")
    return numbers
