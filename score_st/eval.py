"""`python -m score_st.eval`: bits/dim of a checkpoint on every test image, and the loss as a function of t."""

import sys
from pathlib import Path

import jax
import rich.table
from jax.sharding import Mesh

from score_st.data import pipeline
from score_st.evaluation import bits_per_dim, sample_quality
from score_st.model import DiffusionModel
from score_st.reporting import page
from score_st.runtime import cli, sharding
from score_st.training import checkpoints

EXAMPLES = """\
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --config.eval.nll_iter=5
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --step 1000
  python -m score_st.eval --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 \\
      --config.eval.dequantization=truncated_normal --config.eval.importance_samples=20
  python -m score_st.eval --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 --metrics fid,is,kid

started again, it goes on from eval/bpd.jsonl where it has the same settings and the same weights"""


def show(result: dict):
    """The figures as a table on the terminal, their terms, and a warning for each step limit that was reached."""
    title = f"step {result['step']}, {result['images']} images, {result['dequantization']} dequantisation"
    table = rich.table.Table("", "bits/dim", "± images", "± repeats", "NFE", "s/image", title=title)
    number = lambda key, digits=4: "" if result.get(key) is None else f"{result[key]:.{digits}f}"
    names = [name for name in bits_per_dim.FIGURES if name in result]
    for name in names:
        errors = number(f"{name}_stderr_images"), number(f"{name}_stderr_repeats")
        table.add_row(name, number(name), *errors, number(f"{name}_nfe", 0), number(f"{name}_seconds_per_image"))
    rich.print(table)
    for name in names:
        terms = " + ".join(f"{key} {value:.4f}" for key, value in result[f"{name}_terms"].items())
        print(f"{name}, {bits_per_dim.FIGURES[name]}:\n  {terms}")
        if lost := result.get(f"{name}_unreached"):
            limit = f"eval.max_steps={result['config']['eval']['max_steps']}"
            print(f"warning: {name}: the solver did not arrive within {limit} for images {lost}", file=sys.stderr)


def main(argv: list[str] | None = None, mesh: Mesh | None = None) -> dict:
    parser = cli.parser("eval", "Bits/dim of a checkpoint's EMA weights, or the quality of samples.", EXAMPLES)
    option = parser.add_argument_group("bits/dim").add_argument
    option("--step", type=int, help="the checkpoint's step; the newest by default")
    sample_quality.add_options(parser)
    arguments = cli.parse(parser, argv)
    mesh = mesh or sharding.mesh()
    config, workdir = arguments.config, Path(arguments.workdir)
    if arguments.metrics:
        result = sample_quality.evaluate(arguments, mesh)
    else:
        made = DiffusionModel.from_config(config)
        bits_per_dim.from_config(config, made)
        images = pipeline.load(config, "test")
        restored = checkpoints.open_for_reading(workdir, config, made, mesh, arguments.step)
        result = bits_per_dim.evaluate(config, made, restored.ema, int(restored.step), images, workdir, mesh)
        if jax.process_index() == 0:
            show(result)
    page.refresh_existing(workdir)
    return result


if __name__ == "__main__":
    cli.run(main)
