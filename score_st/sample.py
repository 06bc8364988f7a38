"""`python -m score_st.sample`: images from a checkpoint's weights."""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from score_st import ranges, strict_json, weights
from score_st.config import ConfigError
from score_st.evaluation import generation, provenance
from score_st.model import DiffusionModel
from score_st.reporting import image_grid, pictures
from score_st.runtime import cli, endings, mirror, places, profiling, sharding
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64 --seed 1 \\
      --sampler dpm_solver_2m --steps 20 --config.sampling.grid=logsnr --out runs/digits/dpm --trajectory
  python -m score_st.sample --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000 \\
      --png runs/cifar10/samples.zip
  python -m score_st.sample --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 \\
      --guide runs/cifar10@100000 --guidance 1.5 --out runs/cifar10/guided

killed and started again, it resumes after the last shard that was written"""
FRAMES = 40  # of a trajectory


def parser() -> cli.Parser:
    """Returns the command's parser."""
    description = "Images from a checkpoint's weights, by default their EMA: uint8 arrays in samples/, and grid.png."
    parser = cli.parser("sample", description, EXAMPLES)
    option = parser.add_argument_group("images").add_argument
    option("--num", type=cli.within(ranges.COUNT), default=64, help="how many images (default 64)")
    option(
        "--out",
        type=places.folder,
        help="folder for the images (default WORKDIR/samples; other weights: a folder there)",
    )
    about = "also write each as a PNG file, to this folder or file that ends in .zip"
    option("--png", type=places.file, metavar="DIR|FILE.zip", help=about)
    option("--trajectory", action="store_true", help="trajectory.gif of the first 16, from noise to image")
    generation.add_options(parser)
    weights.add_options(parser)
    parser.set_defaults(shards=True)
    profiling.add_option(parser)
    return parser


def write_pictures(folder: Path, num: int, levels: int, path: Path) -> None:
    """Writes the first `num` images of a folder of shards as PNG files; see `pictures.write`."""
    try:
        pictures.write(generation.shards(folder, num), levels, path)
    except OSError as error:
        if endings.storage_failure(error):
            raise
        raise ConfigError(f"--png {path}: can't be written ({error.strerror}); name another place") from error


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> None:
    """Runs the command on the devices of a mesh, by default on all."""
    mesh = mesh or sharding.mesh()
    config = generation.with_sampler(arguments.config, arguments.sampler, arguments.steps)
    if arguments.png:
        pictures.check("--png", arguments.png, arguments.num)
    model = DiffusionModel.from_config(config)
    generation.check_memory(config, model, mesh)
    chosen = weights.from_arguments(arguments, config, model, mesh)
    folder, model = arguments.out or chosen.folder(arguments.workdir / "samples"), chosen.model
    settings = {"seed": arguments.seed} | chosen.about
    settings |= {f"sampling.{key}": value for key, value in config.sampling.to_dict().items()}
    generation.claim_folder(folder, settings)
    trace = profiling.BatchTrace(arguments.workdir, "sample") if arguments.profile else None
    start = time.perf_counter()
    run = generation.runner(config, chosen.params, mesh, trace)
    generate = generation.generator(config, model, arguments.seed)
    nfe = generation.write_shards(config, run, generate, arguments.num, folder)
    seconds = time.perf_counter() - start
    if trace:
        trace.finish()
    frames = None
    if arguments.trajectory:
        generate = generation.generator(config, model, arguments.seed, FRAMES)
        frames = next(generation.batches(run, generate, 0, 16))["frames"][: arguments.num].swapaxes(0, 1)
    if jax.process_index() > 0:
        return
    drawn = generation.read_shards(folder, max(256, 10 * model.num_classes))
    image_grid.grid(drawn[:256], config.data.num_levels, folder / "grid.png")
    columns = min(len(drawn) // (model.num_classes or 1), 10)
    if model.num_classes and config.sampling.label == "all" and columns:
        rows = [drawn[label :: model.num_classes][:columns] for label in range(model.num_classes)]
        image_grid.grid(np.concatenate(rows), config.data.num_levels, folder / "classes.png", columns)
    if frames is not None:
        image_grid.animation(frames, config.data.num_levels, folder / "trajectory.gif")
    if arguments.png:
        write_pictures(folder, arguments.num, config.data.num_levels, arguments.png)
    about = {"settings": settings, "images": arguments.num, "nfe": nfe, "seconds": round(seconds, 2)}
    write_text(folder / "samples.json", strict_json.dumps(about | provenance.software(), indent=1))
    print(f"wrote {mirror.shown(folder)}: {arguments.num} images, {nfe:.0f} network evaluations each")


if __name__ == "__main__":
    cli.run(main)
