"""`python -m score_st.sweep`: sample quality by the network evaluations of each sampler."""

import json
from pathlib import Path

from jax.sharding import Mesh

from score_st import weights
from score_st.config import ConfigError
from score_st.diffusion import stages
from score_st.evaluation import generation, provenance, runner, sample_quality, sampler_sweep, tables
from score_st.evaluation.extractors import EXTRACTORS, Features
from score_st.model import DiffusionModel
from score_st.reporting import page
from score_st.runtime import cli, sharding
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 500 \\
      --features efficientnet-lite0
  python -m score_st.sweep --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000 \\
      --samplers ode,heun@edm,dpm_solver_2m@logsnr --nfe 10,20,50
  python -m score_st.sweep --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 200 --nfe 10,50 \\
      --samplers ddim@quadratic --features efficientnet-lite0 --step 3600

killed and started again, it resumes from eval/samplers.jsonl"""
# sampler @ grid; without a grid it is the configuration's
SAMPLERS = (
    "ode,euler_maruyama,reverse_diffusion,ancestral_sampling,reverse_diffusion+langevin,"
    "ddim,ddim@quadratic,heun@edm,dpm_solver_2m@logsnr"
)


def parser() -> cli.Parser:
    """Returns the command's parser."""
    parser = cli.parser("sweep", "Fréchet distance of each sampler by evaluations: table, plot and images.", EXAMPLES)
    option = parser.add_argument_group("images").add_argument
    option("--num", type=int, default=1000, help="images for each point (default 1000)")
    option("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    option("--step", type=int, help="the checkpoint's step; the newest by default")
    weights.add_options(parser)
    option = parser.add_argument_group("samplers").add_argument
    option("--samplers", default=SAMPLERS, metavar="A,B@GRID", help=f"default {SAMPLERS}")
    option("--nfe", default="10,20,50,100,1000", help="network evaluations (default 10,20,50,100,1000)")
    option = parser.add_argument_group("distance").add_argument
    option("--features", choices=EXTRACTORS, default="inception", help="default inception")
    option("--reference", type=int, metavar="N", help="training images to compare with, a fixed draw (default all)")
    option("--weights", metavar="FILE", help="of the features; see score_st.quality")
    return parser


def main(argv: list[str] | None = None, mesh: Mesh | None = None) -> None:
    """Runs the command on the devices of a mesh, by default on all."""
    arguments = cli.parse(parser(), argv)
    config, workdir, mesh = arguments.config, Path(arguments.workdir), mesh or sharding.mesh()
    try:
        counts = [int(n) for n in arguments.nfe.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or arguments.num < sample_quality.LEAST:
        raise ConfigError(f"--nfe {arguments.nfe} --num {arguments.num}: should be whole numbers, num at least 10")
    generation.check(config)
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size, "the number of devices")
    model, extractor = DiffusionModel.from_config(config), EXTRACTORS[arguments.features]
    chosen = weights.from_arguments(arguments, config, model, mesh)
    params, _ = extractor.weights(arguments.weights)
    network = extractor.network(extractor.resizing)
    features = Features.on_devices(network, params, mesh, config.eval.batch_size)
    networks = stages.evaluations(chosen.model.score(chosen.params))
    variants = sampler_sweep.variants(config, arguments.samplers.split(","), counts, networks=networks)
    about = {
        "step": chosen.about["step"],
        "num": arguments.num,
        "seed": arguments.seed,
        "features": arguments.features,
    }
    about |= {"reference": arguments.reference} if arguments.reference else {}
    settings = about | chosen.about | {"sampling": config.sampling.to_dict()}
    results = runner.open_results(workdir / "eval/samplers.jsonl", settings)
    figure = "FID" if extractor.name == "inception" else extractor.figure("fid")
    distance = sampler_sweep.distance_to_data(config, features, arguments.reference)
    sweep = sampler_sweep.Sweep(chosen.model, chosen.params, arguments.num, arguments.seed, distance, mesh)
    points = sweep(variants, results, figure)
    numbers = {name: [{k: float(point[k]) for k in ("nfe", "distance")} for point in points[name]] for name in points}
    if results.writes:
        result = {"figure": figure, "samplers": numbers, **settings, **provenance.software()}
        write_text(workdir / "eval/samplers.json", json.dumps(result, indent=1))
        title = f"{figure} of {arguments.num} {config.data.dataset} samples"
        tables.show_sweep(points, title)
        tables.draw_sweep(points, figure, title, config.data.num_levels, workdir / "eval")
        page.refresh_existing(workdir)


if __name__ == "__main__":
    cli.run(main)
