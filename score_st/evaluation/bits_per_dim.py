"""Bits per dimension of a model on every test image: the likelihood by the flow and the variational bound."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from score_st import strict_json
from score_st.array_types import Int
from score_st.data.images import Images
from score_st.data.labels import labels_of
from score_st.diffusion import time_sampling
from score_st.evaluation import image_terms, loss_by_time, provenance, runner
from score_st.model import DiffusionModel
from score_st.reporting import figures as plots
from score_st.runtime import endings, profiling
from score_st.runtime.progress import Loop
from score_st.runtime.workdir import write_text

# every figure, by the key of its mean in eval/bpd.json
FIGURES = {
    "nll": "by the flow from x_ε, with reconstruction (or dequantization)",
    "nll_from_x0": "by the flow from x_0, without reconstruction, as in earlier papers",
    "nelbo": "variational bound, with reconstruction",
    "nelbo_without_residual": "variational bound on x_ε, without reconstruction",
    "nelbo_discrete": "DDPM's variational bound by its discrete steps, with its decoder",
}


def summary(name: str, repeats: list[dict], offset: float) -> dict[str, Any]:
    """Returns mean, standard errors and the mean of each term of the figure `name`.

    They are over the images for which the solver arrived in every repeat. The error over images is that of the test
    set as a sample. What the estimator's own noise adds to the spread of the images is subtracted if there are repeats
    to estimate it from; if too little is left, and for the bound without repeats, there is no figure. As times are
    stratified, this noise cancels in the mean: the error over repeats says what is left.

    Args:
      name: one of FIGURES.
      repeats: for each repeat, the terms and counts [N].
      offset: see `image_terms.Evaluation.offset`.
    """
    one_time = "nfe" not in repeats[0]  # the bound sees one time an image
    reached = np.all([terms.get("reached", np.ones(len(image_terms.total(terms)), bool)) for terms in repeats], axis=0)
    values = np.stack([image_terms.total(terms) for terms in repeats])[:, reached] + offset
    count, n = values.shape
    spread = lambda a, axis=0: np.var(a, axis=axis, ddof=1) if a.shape[axis] > 1 else np.zeros(a.shape[1:])
    variance = (spread(values.mean(0)) - spread(values).mean() / count) / max(n, 1)
    names = [key for key in repeats[0] if key not in image_terms.COUNTS]
    means = {key: float(np.mean([terms[key][reached] for terms in repeats])) for key in names}
    figures: dict[str, Any] = {
        name: float(values.mean()),
        f"{name}_stderr_images": None if variance < 0 or (one_time and count == 1) else float(variance**0.5),
        f"{name}_stderr_repeats": float((spread(values.mean(1)) / count) ** 0.5) if count > 1 else None,
        f"{name}_terms": means | {"offset": offset},
    }
    if not one_time:
        figures[f"{name}_nfe"] = float(np.mean([terms["nfe"] for terms in repeats]))
        figures[f"{name}_unreached"] = np.flatnonzero(~reached).tolist()
    return figures


def by_class(name: str, repeats: list[dict], offset: float, labels: Int[np.ndarray, " N"]) -> dict[str, Any]:
    """Returns the mean of a figure over the images of each class, and their number; None for a class without images.

    Args:
      name: one of FIGURES.
      repeats: as for `summary`.
      offset: as for `summary`.
      labels: the class of each image, -1 for none.
    """
    values = np.mean([image_terms.total(terms) for terms in repeats], axis=0) + offset
    reached = np.all([terms.get("reached", np.ones(len(values), bool)) for terms in repeats], axis=0)
    groups = [values[(labels == label) & reached] for label in range(int(labels.max()) + 1)]
    means = [float(group.mean()) if len(group) else None for group in groups]
    return {f"{name}_by_class": means, "images_by_class": [len(group) for group in groups]}


def _run_repeats(
    name: str,
    run: runner.ImageRunner,
    offset: float,
    count: int,
    function: Callable,
    *arguments: Any,
    per_image: Callable[[int], tuple] = lambda repeat: (),
) -> list[dict[str, np.ndarray]]:
    """Runs the function over all images `count` times, and shows the mean of the figure so far."""
    loop = Loop(name, 0, len(run.images) * count, "images")
    repeats: list[dict[str, np.ndarray]] = []

    def progress(done: int, parts: list) -> None:
        before = [image_terms.total(terms)[:done] for terms in repeats]
        mean = np.mean([*before, np.concatenate([image_terms.total(part) for part in parts])], axis=0)
        error = np.std(mean) / len(mean) ** 0.5
        loop(done + len(run.images) * len(before), f"{mean.mean() + offset:.4f} ± {error:.4f} bits/dim")

    for repeat in range(count):
        columns = per_image(repeat)
        repeats.append(run(name, function, *arguments, per_image=columns, repeat=repeat, progress=progress))
    return repeats


def compute(evaluation: image_terms.Evaluation, run: runner.ImageRunner, section: Any) -> dict[str, Any]:
    """Returns those figures of `eval/bpd.json` that `section`, a configuration's `eval`, asks for."""
    repeats: dict[str, list] = {}
    plain = evaluation if section.residual else dataclasses.replace(evaluation, half_bin=0.0)
    flow = plain.compiled["nll"]
    # a density at x_0 is no lossless figure
    from_x0 = not section.residual or (section.from_x0 and evaluation.log_mass is None)
    start = lambda name: (name, run, evaluation.offset(name))
    if section.residual and section.nll_iter:
        repeats["nll"] = _run_repeats(*start("nll"), section.nll_iter, flow, False)
    if from_x0 and section.nll_iter:
        repeats["nll_from_x0"] = _run_repeats(*start("nll_from_x0"), section.nll_iter, flow, True)
        for terms in repeats["nll_from_x0"]:
            terms.pop("reconstruction", None)
    key = lambda repeat: jax.random.fold_in(jax.random.key(run.seed), repeat)
    u = lambda repeat: (np.asarray(time_sampling.stratified(key(repeat), (len(run.images),))),)
    for name, count in (("nelbo", section.nelbo_iter), ("nelbo_discrete", section.nelbo_discrete_iter)):
        if count:
            repeats[name] = _run_repeats(*start(name), count, evaluation.compiled[name], per_image=u)
    seconds = {f"{name}_seconds_per_image": run.seconds_per_image(name) for name in repeats}
    if nelbo := repeats.get("nelbo"):
        repeats["nelbo_without_residual"] = [
            {key: value for key, value in terms.items() if key != "reconstruction"} for terms in nelbo
        ]
        if not section.residual:
            del repeats["nelbo"]
    figures: dict[str, Any] = {}
    for name in repeats:
        figures |= summary(name, repeats[name], evaluation.offset(name))
        if evaluation.labels is not None:
            figures |= by_class(name, repeats[name], evaluation.offset(name), np.asarray(evaluation.labels))
    return figures | seconds


def _warn(evaluation: image_terms.Evaluation) -> None:
    if evaluation.model.scaler.dequantization == "none":
        print("warning: dequantization none: the density at discrete points, which is no likelihood", file=sys.stderr)
    if evaluation.model.num_classes and evaluation.labels is None:
        print("warning: the images have no classes: the figures are those of no class", file=sys.stderr)
    if evaluation.lambda_:
        print("warning: eval.lambda_: nll follows the drift of the reverse SDE without its noise", file=sys.stderr)


def evaluate(
    config: Any,
    model: DiffusionModel,
    params: Any,
    step: int,
    images: Images,
    workdir: Path,
    mesh: Mesh,
    show: Callable[[dict], None] = lambda result: None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    trace: profiling.BatchTrace | None = None,
) -> dict[str, Any]:
    """Evaluates the weights on all images, with full precision of matrix products on every backend.

    Writes bpd.json, loss_by_time.json, loss_by_time.png and bpd_by_time.png. A killed evaluation is resumed from
    bpd.jsonl.

    Args:
      config: all settings.
      model: the diffusion model of `config`.
      params: the weights.
      step: their training step.
      images: the test images.
      workdir: of the run.
      mesh: the devices.
      show: called on one process with the figures, before the curves over t, which may take as long again.
      folder: where the files go, by default eval/ of the workdir.
      about: what is written of the weights; by default that they are the EMA.
      trace: of one batch, for --profile.

    Returns:
      What is in bpd.json.
    """
    image_terms.check_batch_size(config, model, mesh)
    section, evaluation = config.eval, image_terms.from_config(config, model, labels_of(images))
    writes, folder = jax.process_index() == 0, folder or workdir / "eval"
    if writes:
        _warn(evaluation)
    settings = {"config": config.to_dict(), "step": step, **provenance.software(), **(about or {"weights": "ema"})}
    with jax.default_matmul_precision("highest"):
        sums = {"weights_crc32": provenance.checksum(params), "images_crc32": provenance.checksum(images)}
        results = runner.open_results(folder / "bpd.jsonl", settings | sums)
        run = runner.ImageRunner(params, images, section.batch_size, config.seed, results, mesh, section.group, trace)
        data = {"dataset": config.data.dataset, "split": "test", "images": len(images)}
        data |= {"dequantization": evaluation.model.scaler.dequantization, "num_levels": config.data.num_levels}
        data |= {"sde": config.training.sde, "truncation_time": model.sde.eps}
        result = compute(evaluation, run, section) | data | settings
        if writes:
            write_text(folder / "bpd.json", strict_json.dumps(result, indent=1))
            with endings.said("the table was not shown"):
                show(result)
        curve = loss_by_time.curve(evaluation, run, min(section.gradient_images, len(images)))
    if writes:
        write_text(folder / "loss_by_time.json", strict_json.dumps(curve))
        with endings.said(f"the curves over t were not drawn in {folder}"):
            plots.loss_by_time({workdir.name: curve}, folder / "loss_by_time.png")
            plots.bpd_by_time(curve, folder / "bpd_by_time.png")
    return result
