"""`python -m score_st.eval`: bits/dim of a checkpoint on every test image, and the loss as a function of t."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from score_st import checkpoints, cli, data, experiment, likelihood, losses, ode, report, state, times
from score_st.config import choose

EXAMPLES = """\
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --config.eval.nll_iter=5
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --step 1000"""

PROBES = {"Rademacher": jax.random.rademacher, "Gaussian": jax.random.normal}
TIMES = 40  # points of the curve of the loss over t


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What is computed for one image, and how."""

    experiment: experiment.Experiment
    solver: ode.Solver
    probe: Callable
    log_mass: Callable | None
    residual: bool

    def bits(self, nats):
        """Bits a dimension of a term or a difference; `offset` is added once."""
        return nats / (np.prod(self.experiment.image_shape) * np.log(2))

    @property
    def offset(self) -> float:
        scaler = self.experiment.scaler
        lossless = self.residual and self.log_mass is not None
        return likelihood.bits_per_dim(0.0, 1, scaler.num_levels, scaler.centered, lossless)

    def _inputs(self, images, indices, key):
        """x, u and noise for each image by its index in the split, so that batches and devices change nothing."""
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 5))(indices)
        shape = images.shape[1:]
        draw = lambda function, k: jax.vmap(lambda key: function(key, shape))(keys[:, k])
        x = self.experiment.scaler.forward(images, draw(jax.random.uniform, 0))
        return x, draw(jax.random.normal, 1), draw(jax.random.normal, 2), draw(self.probe, 3).astype(x.dtype)

    def nll(self, params, images, indices, key):
        """Terms of the NLL in bits/dim [B], the evaluations and whether the solver arrived."""
        x, z, z_rec, probe = self._inputs(images, indices, key)
        made = self.experiment
        score, sde = made.score(params), made.sde
        eps = jnp.full(len(x), sde.eps)
        mean, std = sde.marginal(x, eps)
        start = mean + std[0] * z if self.residual else x
        result = likelihood.nll(score, sde, start, probe, self.solver)
        terms = {"prior": result.prior, "trace": result.trace}
        if self.residual:
            terms["reconstruction"] = losses.reconstruction(score, sde, x, eps, z_rec, self.log_mass)
        return jax.tree.map(self.bits, terms) | {"nfe": result.evaluations, "reached": result.reached}

    def nelbo(self, params, images, indices, u, key):
        """Terms of the bound in bits/dim [B], at the importance sampled time of u [B]."""
        x, z, z_rec, _ = self._inputs(images, indices, key)
        made = self.experiment
        score, sde = made.score(params), made.sde
        prior, diffusion, entropy = likelihood.nelbo(score, sde, x, u, z)
        terms = {"prior": prior, "diffusion": diffusion, "entropy": entropy}
        if self.residual:
            eps = jnp.full(len(x), sde.eps)
            terms["reconstruction"] = losses.reconstruction(score, sde, x, eps, z_rec, self.log_mass)
        return jax.tree.map(self.bits, terms)

    def loss_at(self, params, images, indices, t, key):
        """½ ‖σ s + z‖² a dimension, in nats [B], at one time t for all images."""
        x, z, _, _ = self._inputs(images, indices, key)
        made = self.experiment
        error = losses.denoising_error(made.score(params), made.sde, x, jnp.full(len(x), t), z)
        return 0.5 * error / np.prod(made.image_shape)


def from_config(config, made: experiment.Experiment) -> Evaluation:
    section = config.eval
    probe = choose(PROBES, section.hutchinson_type, "eval.hutchinson_type")
    return Evaluation(made, ode.from_config(section), probe, losses.log_mass_from_config(config), section.residual)


class Runner:
    """Runs a function of one batch over all images, on all devices, each image once.

    Args:
      images: uint8 [N, H, W, C].
      batch_size: a multiple of the number of devices.
    """

    def __init__(self, params, images: np.ndarray, batch_size: int, seed: int):
        self.images, self.batch_size, self.seed = images, batch_size, seed
        mesh = state.mesh()
        self.put = functools.partial(jax.device_put, device=state.sharded(mesh))
        self.params = jax.device_put(params, state.replicated(mesh))

    def __call__(self, function: Callable, *arguments, per_image=(), repeat: int = 0, show: str = "") -> dict:
        """The function's arrays [B] over all images [N].

        Args:
          function: compiled, (params, images, indices, *arguments, *per_image, key).
          per_image: arrays [N], cut like the images.
          repeat: another one gives new noise.
          show: prints a line a batch with the running mean of the sum of the terms, under this name.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), repeat)
        indices = np.arange(len(self.images))
        parts, clock = [], cli.Clock(0, len(self.images))
        columns = [data.padded(array, self.batch_size) for array in (self.images, indices, *per_image)]
        for (batch, mask), *rest in zip(*columns, strict=True):
            rest = [self.put(array) for array, _ in rest]
            output = function(self.params, self.put(batch), rest[0], *arguments, *rest[1:], key)
            parts.append(jax.tree.map(lambda a: np.asarray(a)[mask], output))  # noqa: B023
            if show:
                done = sum(len(part["prior"]) for part in parts)
                values = np.concatenate([total(part) for part in parts])
                speed, left = clock.lap(done)
                print(
                    f"{show} {done}/{len(self.images)}  {values.mean():.4f} ± {stderr(values):.4f} bits/dim"
                    f"  {speed:.1f} images/s  {left} left",
                    flush=True,
                )
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def total(terms: dict) -> np.ndarray:
    """The sum of the terms in bits/dim, without the offset."""
    return sum(value for key, value in terms.items() if key not in ("nfe", "reached"))


def stderr(values: np.ndarray) -> float:
    return float(np.std(values) / max(len(values) - 1, 1) ** 0.5)


def summary(name: str, repeats: list[dict], offset: float) -> dict:
    """Mean and standard error of the repeats' totals, and the mean of each term."""
    per_image = np.mean([total(terms) for terms in repeats], axis=0) + offset
    terms = {key: float(np.mean([r[key] for r in repeats])) for key in repeats[0] if key not in ("nfe", "reached")}
    return {
        name: float(per_image.mean()),
        f"{name}_stderr": stderr(per_image),
        f"{name}_terms": terms | {"offset": offset},
    }


def bits_per_dim(evaluation: Evaluation, run: Runner, nll_iter: int, nelbo_iter: int) -> dict:
    """The figures of `eval/bpd.json` that are computed."""
    function = jax.jit(evaluation.nll)
    repeats = [run(function, repeat=r, show="nll") for r in range(nll_iter)]
    figures = summary("nll", repeats, evaluation.offset)
    figures["nfe"] = float(np.mean([r["nfe"] for r in repeats]))
    figures["unreached"] = int(sum((~r["reached"]).sum() for r in repeats))
    function, repeats = jax.jit(evaluation.nelbo), []
    for r in range(nelbo_iter):
        # the images are in no order of the time, so neighbours may have neighbouring times
        u = times.low_discrepancy(jax.random.fold_in(jax.random.key(run.seed), r), len(run.images))
        repeats.append(run(function, per_image=(np.asarray(u),), repeat=r))
    return figures | summary("nelbo", repeats, evaluation.offset)


def loss_by_time(evaluation: Evaluation, run: Runner) -> dict:
    """Mean and standard deviation over the images of ½‖σs + z‖² a dimension, at times evenly spread in log t."""
    function = jax.jit(evaluation.loss_at)
    t = np.geomspace(evaluation.experiment.sde.eps, evaluation.experiment.sde.T, TIMES).astype(np.float32)
    loss = np.stack([run(function, value) for value in t])
    return {"t": t.tolist(), "loss": loss.mean(1).tolist(), "std": loss.std(1).tolist()}


def evaluate(config, made: experiment.Experiment, params, step: int, images: np.ndarray, workdir: Path) -> dict:
    """Evaluates `params` on all images; writes and returns eval/bpd.json, writes eval/loss_by_time.json and .png."""
    section, began = config.eval, time.perf_counter()
    run = Runner(params, images, section.batch_size, config.seed)
    evaluation = from_config(config, made)
    figures = bits_per_dim(evaluation, run, section.nll_iter, section.nelbo_iter)
    curve = loss_by_time(evaluation, run)
    result = figures | {
        "step": step,
        "weights": "ema",
        "dataset": config.data.dataset,
        "split": "test",
        "images": len(images),
        "dequantization": config.data.dequantization,
        "num_levels": config.data.num_levels,
        "sde": config.training.sde,
        "truncation_time": made.sde.eps,
        "seed": config.seed,
        "seconds": time.perf_counter() - began,
        **section.to_dict(),
    }
    cli.write(workdir / "eval/bpd.json", json.dumps(result, indent=1))
    cli.write(workdir / "eval/loss_by_time.json", json.dumps(curve))
    report.loss_by_time({workdir.name: curve}, workdir / "eval/loss_by_time.png")
    show(result)
    return result


def show(result: dict):
    """The figures as a table on the terminal."""
    kind = f"{result['dequantization']} dequantisation, {'with' if result['residual'] else 'without'} reconstruction"
    table = rich.table.Table(
        "", "bits/dim", "± stderr", "terms", title=f"step {result['step']}, {result['images']} images, {kind}"
    )
    for name in ("nll", "nelbo"):
        terms = "  ".join(f"{key} {value:.3f}" for key, value in result[f"{name}_terms"].items())
        table.add_row(name.upper(), f"{result[name]:.4f}", f"{result[f'{name}_stderr']:.4f}", terms)
    rich.print(table)
    if result["unreached"]:
        print(f"warning: the solver ran out of eval.max_steps={result['max_steps']} for {result['unreached']} images")


def main(argv: list[str] | None = None):
    parser = cli.parser("eval", "Bits/dim of a checkpoint's EMA weights on every test image.", EXAMPLES)
    parser.add_argument("--step", type=int, help="the checkpoint's step; the newest by default")
    arguments = cli.parse(parser, argv)
    config = arguments.config
    state.check_divisible("eval.batch_size", config.eval.batch_size, jax.device_count(), "the number of devices")
    made = experiment.from_config(config)
    images = data.load(config, "test")
    restored = checkpoints.open_for_reading(arguments.workdir, config, made, arguments.step)
    evaluate(config, made, restored.ema, int(restored.step), images, Path(arguments.workdir))


if __name__ == "__main__":
    cli.run(main)
