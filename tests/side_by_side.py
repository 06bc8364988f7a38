"""Compares speed and error with the official PyTorch code, by turns in one process, with two threads each.

  python tests/side_by_side.py --official CHECKOUT nll          # likelihood by the ODE, from x_ε
  python tests/side_by_side.py --official CHECKOUT ode --images 16
  python tests/side_by_side.py --official CHECKOUT pc --steps 50

The network is the small official one of `fixtures/family_a.npz` (vp/CIFAR10/ddpmpp_nll_st with fewer channels and
blocks), with its last convolution multiplied by 0.1. CHECKOUT is a checkout of Kim-Dongjun/Soft-Truncation; PyTorch is
needed.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from support.official import FIXTURES, family

from score_st.diffusion import likelihood, losses, probability_flow, samplers
from score_st.diffusion.parametrization import Score
from score_st.diffusion.sde import SDE

LAST_CONVOLUTION, SCALE = "all_modules_27", 0.1
SHAPE = (32, 32, 3)
Run = Callable[[], tuple[Any, Any]]  # of all images: values, and network evaluations


@dataclasses.dataclass
class Result:
    """The values of all images, the network evaluations, and the seconds of each run."""

    values: np.ndarray
    evaluations: Any
    seconds: list[float]


class StandIn(types.ModuleType):
    """Replaces modules that the official files import and don't use here."""

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        return StandIn("result")


def official_network(checkout: str) -> tuple[ConfigDict, Any, Any]:
    """The official configuration, SDE and network, with the weights of the fixture."""
    import torch
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.load = lambda *args, **kwargs: None
    for name in ("tensorflow", "tensorflow_datasets", "torchvision", "torchvision.utils"):
        sys.modules.setdefault(name, StandIn(name))
    sys.path.insert(0, checkout)
    import sde_lib
    from models import ncsnpp, utils  # noqa: F401, the first registers itself

    file = np.load(FIXTURES / "family_a.npz")
    settings = json.loads(str(file["config"]))
    settings.pop("_golden", None)
    config = ConfigDict(settings | {"device": torch.device("cpu")})
    sde = sde_lib.get_sde(config, None)
    model = utils.create_model(config, sde)
    weights = {f"module.{k.removeprefix('param/')}": file[k] for k in file.files if k.startswith("param/")}
    missing, surplus = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not surplus and all("sigmas" in name for name in missing), (missing, surplus)
    with torch.no_grad():
        for parameter in model.module.all_modules[-1].parameters():
            parameter.mul_(SCALE)
    return config, sde, model


def our_score() -> tuple[SDE, Score]:
    """Our SDE and score of the same network."""
    _, model, params, _ = family("a")
    params = params | {LAST_CONVOLUTION: jax.tree.map(lambda a: a * SCALE, params[LAST_CONVOLUTION])}
    return model.sde, model.score(params)


def nchw(images: Any) -> Any:
    """Images [B, H, W, C] as a tensor [B, C, H, W]."""
    import torch

    return torch.from_numpy(np.array(np.asarray(images).transpose(0, 3, 1, 2)))


def compiled(function: Callable, *args: Any) -> Run:
    """`function` compiled for `args`, as a function without arguments."""
    program = jax.jit(function).lower(*args).compile()
    return lambda: jax.tree.map(np.asarray, program(*args))


def measure(runs: dict[str, Run], order: list[str]) -> dict[str, Result]:
    """Runs each in this order, some of them twice."""
    results: dict[str, Result] = {}
    for name in order:
        start = time.perf_counter()
        values, evaluations = runs[name]()
        seconds = time.perf_counter() - start
        print(f"  {name}: {seconds:.1f} s", flush=True)
        earlier = results[name].seconds if name in results else []
        results[name] = Result(values, evaluations, [*earlier, seconds])
    return results


def print_table(results: dict[str, Result], reference: str, images: int) -> None:
    """Prints seconds per image (of the faster run), speed relative to the official code, evaluations and errors."""
    exact = np.asarray(results[reference].values, np.float64)
    official = min(results["official"].seconds)
    for name, result in results.items():
        error = np.asarray(result.values, np.float64) - exact
        by_image = np.sqrt(np.mean(np.square(error), axis=tuple(range(1, error.ndim))))
        seconds = min(result.seconds)
        print(
            f"{name:24} {seconds / images:8.3f} s/image  x{official / seconds:6.2f}  "
            f"{np.mean(result.evaluations):6.0f} evaluations  error rms {np.sqrt(np.mean(by_image**2)):.1e} "
            f"max {by_image.max():.1e}  of the mean {abs(error.mean()):.1e}",
            flush=True,
        )


def compare_nll(checkout: str, images: int, steps: int) -> None:
    """Bits/dim from x_ε with the reconstruction term, with the same images, probes and noise for all."""
    import torch

    config, official_sde, model = official_network(checkout)
    import likelihood as official

    sde, score = our_score()
    rng = np.random.default_rng(0)
    crops = np.random.default_rng(1).uniform(size=(images, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    x = (2 * np.clip(crops + 0.1 * rng.normal(size=crops.shape), 0, 1) - 1).astype(np.float32)
    probe = np.sign(rng.normal(size=x.shape)).astype(np.float32)
    z, z_rec = rng.normal(size=(2, *x.shape)).astype(np.float32)

    def ours(solver, x, z, z_rec, probe):
        mean, std = sde.marginal(x, jnp.full(len(x), sde.eps))
        nll = likelihood.nll(score, sde, mean + std[0] * z, probe[:, None], solver)
        nats = nll.total + losses.reconstruction(score, sde, x, jnp.full(len(x), sde.eps), z_rec)
        return likelihood.bits_per_dim(nats, 3072, 256, centered=True), nll.evaluations

    def theirs():
        draws = [nchw(z), nchw(z_rec)]
        torch.randint_like = lambda *args, **kwargs: (nchw(probe) + 1) / 2
        torch.randn_like = lambda *args, **kwargs: draws.pop(0)
        function = official.get_likelihood_fn(config, official_sde, lambda v: (v + 1) / 2)
        bits, _, evaluations, *_ = function(model, nchw(x), mode="correct")
        return bits.numpy(), [evaluations]

    solvers = {
        "Dopri5 1e-5": probability_flow.Solver(),
        "Bosh3 1e-4": probability_flow.Solver(1e-4, 1e-4, method="Bosh3"),
        "Bosh3 7e-5": probability_flow.Solver(7e-5, 7e-5, method="Bosh3"),
        "Dopri5 5e-7": probability_flow.Solver(5e-7, 5e-7),
        "Bosh3 5e-6": probability_flow.Solver(5e-6, 5e-6, method="Bosh3"),
    }
    runs: dict[str, Run] = {"official": theirs}
    for name, solver in solvers.items():
        runs[name] = compiled(functools.partial(ours, solver), x, z, z_rec, probe)
    twice = ["Dopri5 1e-5", "Bosh3 1e-4", "Bosh3 7e-5", "official"]
    results = measure(runs, [*twice, *twice, "Dopri5 5e-7", "Bosh3 5e-6"])
    print("errors are relative to Dopri5 with 5e-7")
    print_table(results, "Dopri5 5e-7", images)


def compare_samplers(
    checkout: str, images: int, steps: int, ours: dict[str, Any], official_sampler: Callable, reference: str
) -> None:
    """Samples in [-1, 1] of our samplers and the official one, from the same draw of the prior."""
    config, official_sde, model = official_network(checkout)
    import sampling as official

    sde, score = our_score()
    keys = jax.random.split(jax.random.key(0), images)
    prior = jax.vmap(lambda key: sde.prior.sample(key, SHAPE))(keys)
    official_sde.prior_sampling = lambda shape: nchw(prior)
    official_sde.N = steps
    sample = official_sampler(official, config, official_sde, (images, 3, 32, 32))

    def theirs():
        x, evaluations = sample(model)
        return x.numpy().transpose(0, 2, 3, 1), [evaluations]

    runs = {name: compiled(lambda keys, s=s: s(score, sde, keys, SHAPE), keys) for name, s in ours.items()}
    results = measure(runs | {"official": theirs}, [*runs, "official"] * 2)
    print_table(results, reference, images)


def compare_ode(checkout: str, images: int, steps: int) -> None:
    """Samples of the probability flow; errors are relative to our solver with 1e-6."""
    official_sampler = lambda official, config, sde, shape: official.get_ode_sampler(
        config, sde, shape, lambda x: x, denoise=True, eps=sde.eps, device="cpu"
    )
    ours = {
        "Dopri5 1e-5": samplers.ODE(),
        "Bosh3 1e-4": samplers.ODE(probability_flow.Solver(1e-4, 1e-4, method="Bosh3")),
        "Dopri5 1e-6": samplers.ODE(probability_flow.Solver(1e-6, 1e-6)),
    }
    compare_samplers(checkout, images, steps, ours, official_sampler, "Dopri5 1e-6")


def compare_pc(checkout: str, images: int, steps: int) -> None:
    """Samples of reverse diffusion and Langevin dynamics; the noise differs, so errors mean nothing."""
    official_sampler = lambda official, config, sde, shape: official.get_pc_sampler(
        config,
        sde,
        shape,
        official.get_predictor("reverse_diffusion"),
        official.get_corrector("langevin"),
        lambda x: x,
        snr=0.16,
        continuous=True,
        eps=sde.eps,
        device="cpu",
    )
    settings = family("a")[0].copy_and_resolve_references()
    settings.sampling.update(method="pc", predictor="reverse_diffusion", corrector="langevin", snr=0.16, steps=steps)
    ours = {"ours": samplers.from_config(settings)}
    compare_samplers(checkout, images, steps, ours, official_sampler, "official")


COMPARISONS = {"nll": compare_nll, "ode": compare_ode, "pc": compare_pc}


def main() -> None:
    """Reads the command line and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--official", required=True, metavar="CHECKOUT")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    jax.config.update("jax_default_matmul_precision", "highest")
    checkout = str(Path(arguments.official).resolve())
    COMPARISONS[arguments.comparison](checkout, arguments.images, arguments.steps)


if __name__ == "__main__":
    main()
