"""Bits per dimension of a model on every test image, and the loss as a function of t."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from score_st.config import ConfigError, choose
from score_st.data import preprocessing
from score_st.data.images import Images
from score_st.diffusion import likelihood, losses, probability_flow, time_sampling
from score_st.diffusion.sde import expand
from score_st.evaluation import provenance, runner
from score_st.model import DiffusionModel
from score_st.reporting import figures as plots
from score_st.runtime import sharding
from score_st.runtime.progress import Loop
from score_st.runtime.workdir import write_text

PROBES = {"Rademacher": jax.random.rademacher, "Gaussian": jax.random.normal}
DEQUANTIZATIONS = preprocessing.DEQUANTIZATIONS | {"truncated_normal": "of the noise at ε, without training"}
TIMES = 40  # points of the curves over t
# what is computed, by the key of its mean in eval/bpd.json
FIGURES = {
    "nll": "by the flow from x_ε, with reconstruction (or dequantisation)",
    "nll_from_x0": "by the flow from x_0, without reconstruction, as in earlier papers",
    "nelbo": "variational bound, with reconstruction",
    "nelbo_without_residual": "variational bound on x_ε, without reconstruction",
}
COUNTS = ("nfe", "reached")  # of a result; all else are terms in bits/dim


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What is computed for one image, and how.

    Attributes:
      probe, probes: draws Hutchinson probes, and how many an image.
      log_mass: of the discretised decoder, for lossless figures; None for densities.
      half_bin, samples: truncated normal dequantisation, and the K of its bound; half_bin 0 is none.
      lambda_: the family of reverse SDEs; 0 is the probability flow, and λ = 1 in the bound.
    """

    model: DiffusionModel
    solver: probability_flow.Solver
    probe: Callable
    probes: int = 1
    log_mass: Callable | None = None
    half_bin: float = 0.0
    samples: int = 1
    lambda_: float = 0.0

    def bits(self, nats):
        """Bits a dimension of a term or a difference; `offset` is added once."""
        return nats / (np.prod(self.model.image_shape) * np.log(2))

    def offset(self, name: str) -> float:
        """From a density to levels in bits/dim, for one of FIGURES."""
        scaler, lossless = self.model.scaler, self.log_mass is not None and name in ("nll", "nelbo")
        return likelihood.bits_per_dim(0.0, 1, scaler.num_levels, scaler.centered, lossless)

    def _inputs(self, images, indices, key):
        """x and noise for each image by its index in the split, so that batches and devices change nothing."""
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 5))(indices)
        shape = images.shape[1:]
        draw = lambda function, k, shape=shape: jax.vmap(lambda key: function(key, shape))(keys[:, k])
        x = self.model.scaler.forward(images, draw(jax.random.uniform, 0))
        probes = draw(self.probe, 3, (self.probes, *shape)).astype(x.dtype)
        return x, draw(jax.random.normal, 1), draw(jax.random.normal, 2), probes

    def _flow(self, params, x, probes):
        made = self.model
        result = likelihood.nll(made.score(params), made.sde, x, probes, self.solver, self.lambda_)
        counts = {"nfe": result.evaluations, "reached": result.reached}
        return {"prior": self.bits(result.prior), "trace": self.bits(result.trace)}, counts

    def _reconstruction(self, params, x, z):
        made = self.model
        eps = jnp.full(len(x), made.sde.eps)
        return self.bits(losses.reconstruction(made.score(params), made.sde, x, eps, z, self.log_mass))

    def nll(self, params, images, indices, key, from_x0=False):
        """Terms of the NLL in bits/dim [B], the evaluations and whether the solver arrived.

        `from_x0`, which may be traced, starts the flow at x_0 and leaves the reconstruction 0, as earlier papers do.
        """
        if self.half_bin:
            return self._importance_weighted(params, images, indices, key)
        x, z, _, probes = self._inputs(images, indices, key)
        mean, std = self.model.sde.marginal(x, jnp.full(len(x), self.model.sde.eps))
        terms, counts = self._flow(params, jnp.where(from_x0, x, mean + expand(std, x) * z), probes)
        # log p(x_ε|x_0) of this x_ε instead of its mean, the entropy: -log p(x_ε) spreads by as much
        noise = 0.5 * (math.prod(x.shape[1:]) - losses.sum_dims(jnp.square(z)))
        reconstruction = self._reconstruction(params, x, z) + self.bits(noise)
        return terms | {"reconstruction": jnp.where(from_x0, 0.0, reconstruction)} | counts

    def density(self, params, x, indices, key):
        """The same of -log p by the flow from x [B, H, W, C], scaled already, without dequantisation."""
        terms, counts = self._flow(params, x, self._inputs(x, indices, key)[3])
        return terms | counts

    def _importance_weighted(self, params, images, indices, key):
        """Terms of the truncated normal bound: their means over K samples, and what the mean of the ratios gains."""

        def sample(k):
            x, _, _, probes = self._inputs(images, indices, jax.random.fold_in(key, k))
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, k), i))(indices)
            u = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
            start, log_q = likelihood.truncated_normal(self.model.sde, x, self.half_bin, u)
            terms, counts = self._flow(params, start, probes)
            return terms | {"dequantization": self.bits(log_q)}, counts

        terms, counts = jax.lax.map(sample, jnp.arange(self.samples))
        nats = sum(terms.values()) / self.bits(1.0)
        gain = -self.bits(logsumexp(-nats, axis=0) - jnp.log(self.samples) + jnp.mean(nats, axis=0))
        means = {name: jnp.mean(value, axis=0) for name, value in terms.items()} | {"importance": gain}
        return means | {"nfe": jnp.sum(counts["nfe"], axis=0), "reached": jnp.all(counts["reached"], axis=0)}

    def nelbo(self, params, images, indices, u, key):
        """Terms of the bound in bits/dim [B], at the importance sampled time of u [B]."""
        x, z, z_rec, _ = self._inputs(images, indices, key)
        made = self.model
        prior, diffusion, entropy = likelihood.nelbo(made.score(params), made.sde, x, u, z, self.lambda_ or 1.0)
        terms = jax.tree.map(self.bits, {"prior": prior, "diffusion": diffusion, "entropy": entropy})
        return terms | {"reconstruction": self._reconstruction(params, x, z_rec)}

    def loss_at(self, params, images, indices, t, key):
        """½ ‖σ s + z‖² a dimension, in nats [B], at one time t for all images."""
        x, z, _, _ = self._inputs(images, indices, key)
        made = self.model
        error = losses.denoising_error(made.score(params), made.sde, x, jnp.full(len(x), t), z)
        return {"loss": 0.5 * error / np.prod(made.image_shape)}

    def gradient_at(self, params, images, indices, t, key):
        """Of the loss at t: ‖E gradient‖² and the trace of the gradient's covariance over images and noise."""
        n, zero = len(images), jax.tree.map(jnp.zeros_like, params)

        def add(carry, example):
            image, index = (a[None] for a in example)
            loss = lambda params: self.loss_at(params, image, index, t, key)["loss"][0]
            gradient = jax.grad(loss)(params)
            return (jax.tree.map(jnp.add, carry[0], gradient), carry[1] + _squares(gradient)), None

        (gradient, squares), _ = jax.lax.scan(add, (zero, jnp.float32(0)), (images, indices))
        of_mean = _squares(gradient) / n**2
        variance = (squares / n - of_mean) * n / (n - 1)
        return {"gradient_norm2": of_mean - variance / n, "gradient_variance": variance}


def _squares(tree):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def from_config(config, made: DiffusionModel) -> Evaluation:
    """Raises ConfigError for an unknown name or a number out of its range, also a batch that devices can't share."""
    section = config.eval
    devices, group = jax.device_count(), max(section.group, 1)
    what = "the number of devices" + (f" times eval.group={group}" if group > 1 else "")
    sharding.check_divisible("eval.batch_size", section.batch_size, devices * group, what)
    if not section.nll_iter and not section.nelbo_iter:
        raise ConfigError("config.eval.nll_iter=0 and config.eval.nelbo_iter=0: nothing to compute; 1 is once")
    for key, least in (("n_probes", 1), ("importance_samples", 1), ("nll_iter", 0), ("nelbo_iter", 0)):
        if section[key] < least:
            raise ConfigError(f"config.eval.{key}={section[key]}: should be {least} or more")
    if section.gradient_images == 1 or section.gradient_images < 0:
        raise ConfigError(f"config.eval.gradient_images={section.gradient_images}: should be 2 or more, or 0 for none")
    name = section.dequantization or config.data.dequantization
    choose(DEQUANTIZATIONS, name, "eval.dequantization")
    scaler = dataclasses.replace(made.scaler, dequantization=name)
    return Evaluation(
        dataclasses.replace(made, scaler=scaler),
        probability_flow.from_config(section),
        choose(PROBES, section.hutchinson_type, "eval.hutchinson_type"),
        section.n_probes,
        losses.log_mass_from_config(config) if name in ("lossless", "truncated_normal") else None,
        losses.half_bin(config) if name == "truncated_normal" else 0.0,
        section.importance_samples,
        section.lambda_,
    )


def total(terms: dict) -> np.ndarray | jax.Array:
    """The sum of the terms in bits/dim, without the offset."""
    return sum(value for key, value in terms.items() if key not in COUNTS)


def summary(name: str, repeats: list[dict], offset: float) -> dict:
    """Mean, standard errors and mean of each term, over the images for which the solver arrived every time.

    The error over images is that of the test set as a sample. What the estimator's own noise adds to the spread of the
    images is taken off where there are repeats to tell; where too little is left, and for the bound without repeats,
    there is no figure. As times are stratified, this noise cancels in the mean: the error over repeats says what is
    left.
    """
    timed = "nfe" not in repeats[0]  # one time an image
    reached = np.all([r.get("reached", np.ones(len(total(r)), bool)) for r in repeats], axis=0)
    values = np.stack([total(terms) for terms in repeats])[:, reached] + offset
    count, n = values.shape
    spread = lambda a, axis=0: np.var(a, axis=axis, ddof=1) if a.shape[axis] > 1 else np.zeros(a.shape[1:])
    images = (spread(values.mean(0)) - spread(values).mean() / count) / max(n, 1)
    terms = {key: float(np.mean([r[key][reached] for r in repeats])) for key in repeats[0] if key not in COUNTS}
    figures = {
        name: float(values.mean()),
        f"{name}_stderr_images": None if images < 0 or (timed and count == 1) else float(images**0.5),
        f"{name}_stderr_repeats": float((spread(values.mean(1)) / count) ** 0.5) if count > 1 else None,
        f"{name}_terms": terms | {"offset": offset},
    }
    if not timed:
        figures[f"{name}_nfe"] = float(np.mean([r["nfe"] for r in repeats]))
        figures[f"{name}_unreached"] = np.flatnonzero(~reached).tolist()
    return figures


def bits_per_dim(evaluation: Evaluation, run: runner.ImageRunner, section) -> dict:
    """The figures of `eval/bpd.json` that are computed."""
    repeats: dict[str, list] = {}

    def measure(name, compiled, count, *arguments, per_image=lambda r: ()):
        loop = Loop(name, 0, len(run.images) * count, "images")

        def progress(done, parts):
            before = [total(r)[:done] for r in repeats[name]]
            mean = np.mean([*before, np.concatenate([total(part) for part in parts])], axis=0)
            done += len(run.images) * len(before)
            error = np.std(mean) / len(mean) ** 0.5
            loop(done, f"{mean.mean() + evaluation.offset(name):.4f} ± {error:.4f} bits/dim")

        repeats[name] = []
        for r in range(count):
            repeats[name].append(run(name, compiled, *arguments, per_image=per_image(r), repeat=r, progress=progress))

    # one program for both starts: it takes longer to compile than small networks take to run
    plain = evaluation if section.residual else dataclasses.replace(evaluation, half_bin=0.0)
    flow = jax.jit(lambda params, images, indices, from_x0, key: plain.nll(params, images, indices, key, from_x0))
    from_x0 = not section.residual or (section.from_x0 and evaluation.log_mass is None)  # there a density is none
    if section.residual and section.nll_iter:
        measure("nll", flow, section.nll_iter, False)
    if from_x0 and section.nll_iter:
        measure("nll_from_x0", flow, section.nll_iter, True)
        for terms in repeats["nll_from_x0"]:
            terms.pop("reconstruction", None)
    u = lambda r: time_sampling.stratified(jax.random.fold_in(jax.random.key(run.seed), r), len(run.images))
    if section.nelbo_iter:
        measure("nelbo", jax.jit(evaluation.nelbo), section.nelbo_iter, per_image=lambda r: (np.asarray(u(r)),))
    seconds = {f"{name}_seconds_per_image": run.seconds_per_image(name) for name in repeats}
    if nelbo := repeats.get("nelbo"):
        bare = [{key: value for key, value in terms.items() if key != "reconstruction"} for terms in nelbo]
        repeats["nelbo_without_residual"] = bare
        if not section.residual:
            del repeats["nelbo"]
    figures = {}
    for name in repeats:
        figures |= summary(name, repeats[name], evaluation.offset(name))
    return figures | seconds


def by_time(evaluation: Evaluation, run: runner.ImageRunner, gradient_images: int) -> dict:
    """The loss ½‖σs + z‖² a dimension and its gradient over the images, at times evenly spread in log t.

    Returns:
      Lists over t: `loss` and `std` over images; `weight`, the likelihood's g²/σ²; `bits`, what a unit of log t adds
      to the NELBO in bits/dim; `gradient_norm2` and `gradient_variance` of the unweighted loss of the first images.
    """
    sde, (device, params) = evaluation.model.sde, next(iter(run.params.items()))
    t = np.geomspace(sde.eps, sde.T, TIMES).astype(np.float32)
    loss_at, gradient_at = jax.jit(evaluation.loss_at), jax.jit(evaluation.gradient_at)
    few = jax.device_put([a[:gradient_images] for a in (run.images, np.arange(len(run.images)))], device)
    key, curve = jax.random.fold_in(jax.random.key(run.seed), 0), []
    for i, value in enumerate(t):

        def compute(i=i, value=value):
            loss = run(f"loss{i}", loss_at, value, store=False)["loss"]
            point = {"loss": loss.mean(), "std": loss.std()}
            return point | (gradient_at(params, *few, value, key) if gradient_images else {})

        curve.append(run.results(("by_time", i), compute))
    weight = np.asarray(sde.diffusion2(t) / jnp.square(sde.sigma(t)), np.float64)
    result = {"t": t.tolist(), "weight": weight.tolist()}
    result |= {name: [float(point[name]) for point in curve] for name in curve[0]}
    return result | {"bits": (np.asarray(result["loss"]) * weight * t / np.log(2)).tolist()}


def evaluate(config, made: DiffusionModel, params, step: int, images: Images, workdir: Path, mesh) -> dict:
    """Evaluates `params` on all images, with full precision of matrix products on every backend.

    Writes eval/bpd.json, loss_by_time.json, loss_by_time.png and bpd_by_time.png, and returns what is in the first.
    """
    section, evaluation = config.eval, from_config(config, made)
    name = evaluation.model.scaler.dequantization
    first = jax.process_index() == 0
    if name == "none" and first:
        print("warning: dequantization none: the density at discrete points, which is no likelihood", file=sys.stderr)
    if section.lambda_ and first:
        print("warning: eval.lambda_: nll follows the drift of the reverse SDE without its noise", file=sys.stderr)
    asked = {"config": config.to_dict(), "step": step, **provenance.software()}
    with jax.default_matmul_precision("highest"):
        sums = {"weights_crc32": provenance.checksum(params), "images_crc32": provenance.checksum(images)}
        results = runner.open_results(workdir / "eval/bpd.jsonl", asked | sums)
        run = runner.ImageRunner(params, images, section.batch_size, config.seed, results, mesh, section.group)
        figures = bits_per_dim(evaluation, run, section)
        about = {
            "weights": "ema",
            "dataset": config.data.dataset,
            "split": "test",
            "images": len(images),
            "dequantization": name,
            "num_levels": config.data.num_levels,
            "sde": config.training.sde,
            "truncation_time": made.sde.eps,
        }
        result = figures | about | asked
        if first:  # the curve may take as long again
            write_text(workdir / "eval/bpd.json", json.dumps(result, indent=1))
        curve = by_time(evaluation, run, min(section.gradient_images, len(images)))
    if first:
        write_text(workdir / "eval/loss_by_time.json", json.dumps(curve))
        plots.loss_by_time({workdir.name: curve}, workdir / "eval/loss_by_time.png")
        plots.bpd_by_time(curve, workdir / "eval/bpd_by_time.png")
    return result
