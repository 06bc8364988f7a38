"""Speed and error beside the official PyTorch code, both in turn in one process, two threads each.

  python tests/side_by_side.py --official CHECKOUT nll          # likelihood by the ODE, from x_ε
  python tests/side_by_side.py --official CHECKOUT ode --images 16
  python tests/side_by_side.py --official CHECKOUT pc --steps 50

The network is the small official one of `fixtures/family_a.npz` (vp/CIFAR10/ddpmpp_nll_st with fewer channels and
blocks), its last convolution times 0.1. CHECKOUT is a checkout of Kim-Dongjun/Soft-Truncation; PyTorch is needed.
"""

import argparse
import functools
import json
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from support.official import FIXTURES, family

from score_st.diffusion import likelihood, losses, probability_flow
from score_st.diffusion import samplers as our_samplers

LAST, SCALE = "all_modules_27", 0.1


class StandIn(types.ModuleType):
    """For what the official files import and don't use here."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __call__(self, *args, **kwargs):
        return StandIn("result")


def official_network(checkout: str):
    """Its configuration, SDE and network with the fixture's weights."""
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


def our_score():
    _, made, params, _ = family("a")
    params = params | {LAST: jax.tree.map(lambda a: a * SCALE, params[LAST])}
    return made.sde, made.score(params)


def nchw(a):
    return torch.from_numpy(np.array(np.asarray(a).transpose(0, 3, 1, 2)))


def table(found: dict, reference, images: int):
    """Seconds an image (the faster of two runs), speed relative to `official`, evaluations and errors."""
    for name, (value, evaluations, seconds) in found.items():
        error = np.asarray(value, np.float64) - reference
        of_image = np.sqrt(np.mean(np.square(error), axis=tuple(range(1, error.ndim))))
        print(
            f"{name:24} {min(seconds) / images:8.3f} s/image  x{min(found['official'][2]) / min(seconds):6.2f}  "
            f"{np.mean(evaluations):6.0f} evaluations  error rms {np.sqrt(np.mean(of_image**2)):.1e} "
            f"max {of_image.max():.1e}  of the mean {abs(error.mean()):.1e}",
            flush=True,
        )


def measure(found: dict, name: str, run):
    began = time.perf_counter()
    value, evaluations = run()
    seconds = time.perf_counter() - began
    print(f"  {name}: {seconds:.1f} s", flush=True)
    found[name] = value, evaluations, [*found.get(name, (0, 0, []))[2], seconds]


def compiled(function, *args):
    program = jax.jit(function).lower(*args).compile()
    return lambda: jax.tree.map(np.asarray, program(*args))


def nll(checkout: str, images: int, steps: int):
    """Bits/dim from x_ε with the reconstruction term, the same images, probes and noise for all."""
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
        found = likelihood.nll(score, sde, mean + std[0] * z, probe[:, None], solver)
        nats = found.total + losses.reconstruction(score, sde, x, jnp.full(len(x), sde.eps), z_rec)
        return likelihood.bits_per_dim(nats, 3072, 256, centered=True), found.evaluations

    def theirs():
        draws = [nchw(z), nchw(z_rec)]
        torch.randint_like = lambda *args, **kwargs: (nchw(probe) + 1) / 2
        torch.randn_like = lambda *args, **kwargs: draws.pop(0)
        found = official.get_likelihood_fn(config, official_sde, lambda v: (v + 1) / 2)(model, nchw(x), mode="correct")
        return found[0].numpy(), [found[2]]

    solvers = {
        "Dopri5 1e-5": probability_flow.Solver(),
        "Bosh3 1e-4": probability_flow.Solver(1e-4, 1e-4, method="Bosh3"),
        "Bosh3 7e-5": probability_flow.Solver(7e-5, 7e-5, method="Bosh3"),
        "Dopri5 5e-7": probability_flow.Solver(5e-7, 5e-7),
        "Bosh3 5e-6": probability_flow.Solver(5e-6, 5e-6, method="Bosh3"),
    }
    programs = {k: compiled(functools.partial(ours, s), x, z, z_rec, probe) for k, s in solvers.items()}
    found = {}
    both = ["Dopri5 1e-5", "Bosh3 1e-4", "Bosh3 7e-5", "official"]
    for name in [*both, *both, "Dopri5 5e-7", "Bosh3 5e-6"]:
        measure(found, name, theirs if name == "official" else programs[name])
    print("errors are from Dopri5 with 5e-7")
    table(found, np.asarray(found["Dopri5 5e-7"][0], np.float64), images)


def samplers(checkout: str, images: int, steps: int, made: dict, official_call, reference: str | None):
    """Samples in [-1, 1] of each of ours (`made`) and of the official one, from the same draw of the prior."""
    config, official_sde, model = official_network(checkout)
    import sampling as official

    sde, score = our_score()
    keys = jax.random.split(jax.random.key(0), images)
    prior = jax.vmap(lambda key: sde.prior_sample(key, (32, 32, 3)))(keys)
    official_sde.prior_sampling = lambda shape: nchw(prior)
    official_sde.N = steps
    theirs = official_call(official, config, official_sde, (images, 3, 32, 32))

    def run_theirs():
        x, evaluations = theirs(model)
        return x.numpy().transpose(0, 2, 3, 1), [evaluations]

    programs = {k: compiled(lambda keys, s=s: s(score, sde, keys, (32, 32, 3)), keys) for k, s in made.items()}
    found = {}
    for name in [*programs, "official"] * 2:
        measure(found, name, run_theirs if name == "official" else programs[name])
    table(found, np.asarray(found[reference or "official"][0], np.float64), images)


def sample_ode(checkout: str, images: int, steps: int):
    """Errors are from our solver with 1e-6."""
    call = lambda official, config, sde, shape: official.get_ode_sampler(
        config, sde, shape, lambda x: x, denoise=True, eps=sde.eps, device="cpu"
    )
    made = {
        "Dopri5 1e-5": our_samplers.ODE(),
        "Bosh3 1e-4": our_samplers.ODE(probability_flow.Solver(1e-4, 1e-4, method="Bosh3")),
        "Dopri5 1e-6": our_samplers.ODE(probability_flow.Solver(1e-6, 1e-6)),
    }
    samplers(checkout, images, steps, made, call, "Dopri5 1e-6")


def sample_pc(checkout: str, images: int, steps: int):
    """Reverse diffusion and Langevin; the noise differs, so that errors say nothing."""
    call = lambda official, config, sde, shape: official.get_pc_sampler(
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
    corrector = functools.partial(our_samplers.langevin, snr=0.16)
    made = {"ours": our_samplers.PredictorCorrector(our_samplers.reverse_diffusion, corrector, steps=steps)}
    samplers(checkout, images, steps, made, call, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["nll", "ode", "pc"])
    parser.add_argument("--official", required=True, metavar="CHECKOUT")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    jax.config.update("jax_default_matmul_precision", "highest")
    run = {"nll": nll, "ode": sample_ode, "pc": sample_pc}[arguments.what]
    run(str(Path(arguments.official).resolve()), arguments.images, arguments.steps)
