"""`python -m score_st.sample`: images from a checkpoint's EMA weights."""

import json
import time
from pathlib import Path

import jax
from jax.sharding import Mesh

from score_st.config import ConfigError
from score_st.diffusion import samplers
from score_st.evaluation import generation, provenance
from score_st.model import DiffusionModel
from score_st.reporting import image_grid
from score_st.runtime import cli, sharding
from score_st.runtime.workdir import write_text
from score_st.training import checkpoints

EXAMPLES = """\
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64
  python -m score_st.sample --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --num 64 --seed 1 \\
      --sampler dpm_solver_2m --steps 20 --config.sampling.grid=logsnr --out runs/digits/dpm --trajectory
  python -m score_st.sample --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --num 50000

killed and started again, it goes on after the last shard that was written"""
FRAMES = 40  # of a trajectory


def arguments_of(parser):
    """What this and the other commands that sample share."""
    option = parser.add_argument_group("sampler").add_argument
    option("--seed", type=int, default=0, help="image i is a function of the seed and i (default 0)")
    option("--step", type=int, help="the checkpoint's step; the newest by default")
    names = ", ".join(samplers.PREDICTORS)
    option("--sampler", metavar="NAME", help=f"ode, or a predictor ({names}) with or without +corrector")
    option("--steps", type=int, metavar="N", help="steps of the predictor, for --config.sampling.steps")


def main(argv: list[str] | None = None, mesh: Mesh | None = None):
    parser = cli.parser(
        "sample", "Images from a checkpoint's EMA weights: shards of uint8 arrays in samples/, and grid.png.", EXAMPLES
    )
    option = parser.add_argument_group("images").add_argument
    option("--num", type=int, default=64, help="how many images (default 64)")
    option("--out", type=Path, help="folder for the images (default WORKDIR/samples)")
    option("--trajectory", action="store_true", help="trajectory.gif of the first 16, from noise to image")
    arguments_of(parser)
    arguments = cli.parse(parser, argv)
    mesh = mesh or sharding.mesh()
    config = generation.chosen(arguments.config, arguments.sampler, arguments.steps)
    if arguments.num < 1:
        raise ConfigError(f"--num {arguments.num}: should be 1 or more")
    generation.check(config)
    made = DiffusionModel.from_config(config)
    restored = checkpoints.open_for_reading(arguments.workdir, config, made, mesh, arguments.step)
    out, step = arguments.out or Path(arguments.workdir) / "samples", int(restored.step)
    settings = {"seed": arguments.seed, "step": step, "weights_crc32": provenance.checksum(restored.ema)}
    settings |= {f"sampling.{key}": value for key, value in config.sampling.to_dict().items()}
    generation.claim(out, settings)
    began = time.perf_counter()
    run = generation.runner(config, restored.ema, mesh)
    nfe = generation.shards(config, run, generation.generator(config, made, arguments.seed), arguments.num, out)
    seconds = time.perf_counter() - began
    few = None
    if arguments.trajectory:
        few = next(generation.batches(run, generation.generator(config, made, arguments.seed, FRAMES), 0, 16))
    if jax.process_index() > 0:
        return
    image_grid.grid(generation.read_shards(out, 256), config.data.num_levels, out / "grid.png")
    if few:
        frames = few["frames"][: arguments.num].swapaxes(0, 1)
        image_grid.animation(frames, config.data.num_levels, out / "trajectory.gif")
    about = {"settings": settings, "images": arguments.num, "nfe": nfe, "seconds": round(seconds, 2)}
    write_text(out / "samples.json", json.dumps(about | provenance.software(), indent=1))
    print(f"wrote {out}: {arguments.num} images, {nfe:.0f} evaluations each")


if __name__ == "__main__":
    cli.run(main)
