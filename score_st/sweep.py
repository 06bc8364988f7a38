"""`python -m score_st.sweep`: sample quality by the network evaluations of each sampler, or by the weights."""

import argparse
import dataclasses
import functools
from collections.abc import Iterable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import ranges, strict_json, weights
from score_st.config import ConfigError
from score_st.diffusion import stages
from score_st.evaluation import provenance, runner, sample_quality, sampler_sweep, tables
from score_st.evaluation.extractors import EXTRACTORS, Features
from score_st.model import DiffusionModel
from score_st.reporting import page
from score_st.runtime import cli, places, sharding
from score_st.runtime.workdir import write_text
from score_st.training import stored_weights

EXAMPLES = """\
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 500 \\
      --features efficientnet-lite0
  python -m score_st.sweep --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000 \\
      --samplers ode,heun@edm,dpm_solver_2m@logsnr --nfe 10,20,50
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 200 --nfe 10,50 \\
      --samplers ddim@quadratic --features efficientnet-lite0 --step 3600
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/averaged --num 500 --nfe 20 \\
      --samplers dpm_solver_2m@logsnr --features efficientnet-lite0 --ema 0.02,0.05,0.1,0.2

killed and started again, it resumes from eval/samplers.jsonl, or widths.jsonl"""
# sampler @ grid; without a grid it is the configuration's
SAMPLERS = (
    "ode,euler_maruyama,reverse_diffusion,ancestral_sampling,reverse_diffusion+langevin,"
    "ddim,ddim@quadratic,heun@edm,dpm_solver_2m@logsnr"
)


def parser() -> cli.Parser:
    """Returns the command's parser."""
    parser = cli.parser("sweep", "Fréchet distance of each sampler by evaluations: table, plot and images.", EXAMPLES)
    option = parser.add_argument_group("images").add_argument
    option(
        "--num",
        type=cli.within(ranges.whole(sample_quality.LEAST, most=10**7)),
        default=1000,
        help="images for each point (default 1000)",
    )
    option(
        "--seed", type=cli.within(ranges.SEED), default=0, help="image i is a function of the seed and i (default 0)"
    )
    option("--step", type=cli.within(ranges.COUNT_OR_0), help="the checkpoint's step; the newest by default")
    weights.add_options(parser)
    option = parser.add_argument_group("samplers").add_argument
    option("--samplers", default=SAMPLERS, metavar="A,B@GRID", help=f"default {SAMPLERS}")
    option(
        "--nfe",
        type=cli.each_within(ranges.COUNT),
        default="10,20,50,100,1000",
        metavar="A,B",
        help="network evaluations (default 10,20,50,100,1000)",
    )
    option(
        "--tolerances",
        type=cli.each_within(ranges.TOLERANCE),
        default="1e-1,1e-2,1e-3,1e-4,1e-5",
        metavar="A,B",
        help="of ode, in place of evaluations (default 1e-1,1e-2,1e-3,1e-4,1e-5)",
    )
    option = parser.add_argument_group("distance").add_argument
    option("--features", choices=EXTRACTORS, default="inception", help="default inception")
    option(
        "--reference",
        type=cli.within(ranges.COUNT),
        metavar="N",
        help="training images to compare with, a fixed draw (default all)",
    )
    option("--weights", type=places.source, metavar="FILE", help="of the features; see score_st.quality")
    return parser


def over_weights(
    arguments: argparse.Namespace,
    chosen: Iterable[stored_weights.Weights],
    sweep: sampler_sweep.Sweep,
    sampler: tuple[tuple[str, float], ConfigDict],
    figure: str,
) -> None:
    """Draws quality by the weights that --ema lists: eval/widths.json, widths.png and a table.

    Args:
      arguments: of the command.
      chosen: the weights, read one after the other.
      sweep: without parameters.
      sampler: its name and evaluations, and its configuration.
      figure: the distance's name.
    """
    ((name, nfe), config), folder = sampler, arguments.workdir / "eval"
    settings = {"num": arguments.num, "seed": arguments.seed, "features": arguments.features}
    settings |= {"reference": arguments.reference} if arguments.reference else {}
    settings |= {"sampler": name, "evaluations": nfe, "sampling": config.sampling.to_dict()}
    results = runner.open_results(folder / "widths.jsonl", settings)
    points = sampler_sweep.by_weights(chosen, sweep, config, results, figure)
    if results.writes:
        result = {"figure": figure, "points": points, **settings, **provenance.software()}
        write_text(folder / "widths.json", strict_json.dumps(result, indent=1))
        title = f"{figure} of {arguments.num} {config.data.dataset} samples, {name}"
        tables.show_widths(points, title)
        tables.draw_widths(points, figure, title, folder / "widths.png")


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> None:
    """Runs the command on the devices of a mesh, by default on all."""
    config, workdir, mesh = arguments.config, arguments.workdir, mesh or sharding.mesh()
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size, "the number of devices")
    model, extractor = DiffusionModel.from_config(config), EXTRACTORS[arguments.features]
    names = arguments.ema.split(",")
    build = functools.partial(sampler_sweep.variants, config, arguments.samplers.split(","), arguments.nfe)
    if len(names) > 1:
        if arguments.guide or arguments.expert:
            raise ConfigError(f"--ema {arguments.ema}: several weights take one model; leave out --guide and --expert")
        weights.check(arguments)
        variants = build((config.sampling.rtol,))
        if len(variants) > 1:
            message = "several weights take one sampler, as in --samplers ddim --nfe 20"
            raise ConfigError(f"--ema {arguments.ema}: {message}")
        stored_weights.check(workdir, arguments.step, names)
    else:
        chosen = weights.from_arguments(arguments, config, model, mesh)
        variants = build(arguments.tolerances, stages.evaluations(chosen.model.score(chosen.params)))
    params, _ = extractor.weights(arguments.weights and str(arguments.weights))
    network = extractor.network(extractor.resizing)
    features = Features.on_devices(network, params, mesh, config.eval.batch_size)
    figure = "FID" if extractor.name == "inception" else extractor.figure("fid")
    distance = sampler_sweep.distance_to_data(config, features, arguments.reference)
    sweep = sampler_sweep.Sweep(model, None, arguments.num, arguments.seed, distance, mesh)
    if len(names) > 1:
        read = functools.partial(stored_weights.read, workdir, config, model, mesh, arguments.step)
        return over_weights(arguments, map(read, names), sweep, next(iter(variants.items())), figure)
    about = {"num": arguments.num, "seed": arguments.seed, "features": arguments.features} | chosen.about
    about |= {"reference": arguments.reference} if arguments.reference else {}
    settings, folder = about | {"sampling": config.sampling.to_dict()}, chosen.folder(workdir / "eval")
    results = runner.open_results(folder / "samplers.jsonl", settings)
    points = dataclasses.replace(sweep, model=chosen.model, params=chosen.params)(variants, results, figure)
    numbers = {name: [{k: float(point[k]) for k in ("nfe", "distance")} for point in points[name]] for name in points}
    if results.writes:
        result = {"figure": figure, "samplers": numbers, **settings, **provenance.software()}
        write_text(folder / "samplers.json", strict_json.dumps(result, indent=1))
        title = f"{figure} of {arguments.num} {config.data.dataset} samples"
        tables.show_sweep(points, title)
        tables.draw_sweep(points, figure, title, config.data.num_levels, folder)
        page.refresh_existing(workdir)


if __name__ == "__main__":
    cli.run(main)
