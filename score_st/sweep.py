"""`python -m score_st.sweep`: sample quality by the evaluations of the network that each sampler makes."""

import copy
import functools
import json
from pathlib import Path

import jax
import numpy as np
import rich.table
from jax.sharding import Mesh

from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.diffusion import samplers
from score_st.evaluation import generation, provenance, runner, sample_quality
from score_st.model import DiffusionModel
from score_st.reporting import image_grid, page
from score_st.runtime import cli, progress, sharding
from score_st.runtime.workdir import write_text
from score_st.training import checkpoints

EXAMPLES = """\
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 500 \\
      --features efficientnet-lite0
  python -m score_st.sweep --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000 \\
      --samplers ode,heun@edm,dpm_solver_2m@logsnr --nfe 10,20,50
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 200 --nfe 10,50 \\
      --samplers ddim@quadratic --features efficientnet-lite0 --step 3600

killed and started again, it goes on from eval/samplers.jsonl"""
# sampler @ grid; the grid is that of the configuration where none is named
SAMPLERS = (
    "ode,euler_maruyama,reverse_diffusion,ancestral_sampling,reverse_diffusion+langevin,"
    "ddim,ddim@quadratic,heun@edm,dpm_solver_2m@logsnr"
)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the adaptive solver, whose evaluations can't be chosen
SHOWN = 4  # images of a cell of the picture


def settings(config, name: str, nfe: float):
    """The configuration for sampler `name` with `nfe` evaluations, or for the ODE with that tolerance."""
    sampler, _, grid = name.partition("@")
    config = copy.deepcopy(config)
    each = (2 if sampler.startswith("heun") else 1) + config.sampling.n_steps_each * ("+" in sampler)
    generation.chosen(config, sampler, None if sampler == "ode" else max(round(nfe / each), 1))
    with config.unlocked():
        if grid:
            config.sampling.grid = grid
        if sampler == "ode":
            config.sampling.update(rtol=nfe, atol=nfe)
    samplers.from_config(config)  # says what is unknown
    return config


def point(config, made, params, num: int, seed: int, distance, mesh) -> dict:
    """Evaluations, Fréchet distance (NaN where the sampler diverged) and the first images."""
    try:
        images, nfe = generation.draw(config, made, params, num, seed, mesh)
    except ConfigError:
        return {"nfe": np.nan, "distance": np.nan, "images": np.zeros((SHOWN, *made.image_shape), np.uint8)}
    return {"nfe": nfe, "distance": distance(images), "images": images[:SHOWN]}


def distance_to_data(config, features: str, weights: str | None, count: int | None, mesh):
    """A function from uint8 images to their Fréchet distance from `count` training images, and the figure's name."""
    module, levels = sample_quality.EXTRACTORS[features], config.data.num_levels
    params, _ = sample_quality.weights(module, weights)
    apply = sample_quality.on_devices(module.Network(module.RESIZING), params, mesh)

    def moments(images, label):
        pixels = sample_quality.to_bytes(images, levels, config.data.dataset)
        with jax.default_matmul_precision("highest"):
            found = sample_quality.extract(apply, config.eval.batch_size, pixels, label, [])
        return found["mean"], found["covariance"]

    @functools.cache
    def reference():
        images = pipeline.load(config, "train")
        if count:
            images = images[np.sort(np.random.RandomState(0).permutation(len(images))[:count])]
        return moments(images, "features of the training images")

    name = "FID" if features == "inception" else f"FD-{features}"
    return lambda images: sample_quality.frechet(*moments(images, "features of samples"), *reference()), name


def show(points: dict, name: str, config, out: Path, title: str):
    """The table, the curves samplers.png and the images samplers_images.png."""
    from matplotlib.figure import Figure

    cells = [""] * max(map(len, points.values()))
    caption = f"{title}, at evaluations of the network"
    table = rich.table.Table(rich.table.Column("sampler", no_wrap=True), *cells, title=caption)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for marker, (sampler, found) in zip("os^vDPX*<>" * 9, points.items(), strict=False):
        table.add_row(sampler, *(f"{p['distance']:.2f} at {p['nfe']:.0f}" for p in found))
        axes.plot([p["nfe"] for p in found], [p["distance"] for p in found], f"{marker}-", label=sampler)
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel=name, title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(out / "samplers.png", dpi=130)
    rich.print(table)
    rows = [np.concatenate([p["images"] for p in found]) for found in points.values()]
    width = max(map(len, rows))
    rows = [np.concatenate([row, np.zeros((width - len(row), *row.shape[1:]), row.dtype)]) for row in rows]
    image_grid.grid(np.concatenate(rows).astype(np.uint8), config.data.num_levels, out / "samplers_images.png", width)


def main(argv: list[str] | None = None, mesh: Mesh | None = None):
    parser = cli.parser("sweep", "Fréchet distance of each sampler by evaluations: table, plot and images.", EXAMPLES)
    option = parser.add_argument_group("images").add_argument
    option("--num", type=int, default=1000, help="images a point (default 1000)")
    option("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    option("--step", type=int, help="the checkpoint's step; the newest by default")
    option = parser.add_argument_group("samplers").add_argument
    option("--samplers", default=SAMPLERS, metavar="A,B@GRID", help=f"default {SAMPLERS}")
    option("--nfe", default="10,20,50,100,1000", help="evaluations (default 10,20,50,100,1000)")
    option = parser.add_argument_group("distance").add_argument
    option("--features", choices=sample_quality.EXTRACTORS, default="inception", help="default inception")
    option("--reference", type=int, metavar="N", help="training images to compare with, a fixed draw (default all)")
    option("--weights", metavar="FILE", help="of the features; see score_st.eval")
    arguments = cli.parse(parser, argv)
    mesh = mesh or sharding.mesh()
    config, workdir = arguments.config, Path(arguments.workdir)
    try:
        counts = [int(n) for n in arguments.nfe.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or arguments.num < sample_quality.LEAST:
        raise ConfigError(f"--nfe {arguments.nfe} --num {arguments.num}: should be whole numbers, num at least 10")
    generation.check(config)
    made = DiffusionModel.from_config(config)
    grids = {s: TOLERANCES if s == "ode" else counts for s in arguments.samplers.split(",")}
    variants = {(s, nfe): settings(config, s, nfe) for s, values in grids.items() for nfe in values}
    distance, name = distance_to_data(config, arguments.features, arguments.weights, arguments.reference, mesh)
    restored = checkpoints.open_for_reading(workdir, config, made, mesh, arguments.step)
    about = {"step": int(restored.step), "num": arguments.num, "seed": arguments.seed, "features": arguments.features}
    about |= {"reference": arguments.reference} if arguments.reference else {}
    asked = about | {"weights_crc32": provenance.checksum(restored.ema), "sampling": config.sampling.to_dict()}
    results = runner.open_results(workdir / "eval/samplers.jsonl", asked)
    points, loop = {s: [] for s in grids}, progress.Loop("points", 0, len(variants), "points")
    for done, ((s, nfe), variant) in enumerate(variants.items(), 1):
        job = lambda variant=variant: point(variant, made, restored.ema, arguments.num, arguments.seed, distance, mesh)
        points[s].append(results((s, nfe), job))
        loop(done, f"{s}, {points[s][-1]['nfe']:.0f} evaluations: {name} {points[s][-1]['distance']:.2f}")
    numbers = {s: [{k: float(p[k]) for k in ("nfe", "distance")} for p in found] for s, found in points.items()}
    if results.writes:
        result = {"figure": name, "samplers": numbers, **asked, **provenance.software()}
        write_text(workdir / "eval/samplers.json", json.dumps(result, indent=1))
        show(points, name, config, workdir / "eval", f"{name} of {arguments.num} {config.data.dataset} samples")
        page.refresh_existing(workdir)


if __name__ == "__main__":
    cli.run(main)
