"""`python -m score_st.eval`: bits/dim of a checkpoint on every test image, and the loss as a function of t."""

import argparse
import functools
import sys

import jax
from jax.sharding import Mesh

from score_st import ranges, weights
from score_st.config import ConfigError
from score_st.data import identity, pipeline
from score_st.evaluation import bits_per_dim, image_terms, sample_quality, tables
from score_st.model import DiffusionModel
from score_st.reporting import page
from score_st.runtime import cli, places, profiling, sharding
from score_st.runtime.workdir import check_writable

EXAMPLES = """\
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --config.eval.nll_iter=5
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits --step 1000 --profile
  python -m score_st.eval --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/averaged --ema 0.05
  python -m score_st.eval --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 \\
      --config.eval.dequantization=truncated_normal --config.eval.importance_samples=20

started again, it resumes from eval/bpd.jsonl if the settings and the weights there are the same"""


def parser() -> cli.Parser:
    """Returns the command's parser."""
    parser = cli.parser("eval", "Bits/dim of a checkpoint's weights, by default their EMA.", EXAMPLES)
    option = parser.add_argument_group("bits/dim").add_argument
    option("--step", type=cli.within(ranges.COUNT_OR_0), help="the checkpoint's step; the newest by default")
    option("--out", type=places.folder, metavar="DIR", help="folder of the results (default WORKDIR/eval)")
    weights.add_options(parser)
    profiling.add_option(parser)
    sample_quality.add_options(parser, "sample quality (an alias of python -m score_st.quality)")
    parser.set_defaults(shards=True)
    return parser


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> dict:
    """Runs the command on the devices of a mesh, by default on all; returns what is in its JSON file."""
    config, workdir, mesh = arguments.config, arguments.workdir, mesh or sharding.mesh()
    trace = profiling.BatchTrace(workdir, "eval") if arguments.profile else None
    if arguments.metrics:
        if trace:
            raise ConfigError("--profile: traces bits/dim, so leave out --metrics")
        if jax.process_index() == 0:
            print("note: eval --metrics is now `python -m score_st.quality --metrics`", file=sys.stderr)
        result = sample_quality.from_arguments(arguments, mesh, tables.show_quality)
    else:
        model = DiffusionModel.from_config(config)
        image_terms.check_batch_size(config, model, mesh)
        image_terms.from_config(config, model)
        images = pipeline.load(config, "test")
        check_writable(arguments.out or workdir / "eval", "--out names another folder")
        identity.warn(workdir, {"test": images})
        chosen, show = weights.from_arguments(arguments, config, model, mesh), tables.show_bits_per_dim
        folder, about = chosen.folder(arguments.out or workdir / "eval"), chosen.about
        evaluate = functools.partial(bits_per_dim.evaluate, folder=folder, about=about, trace=trace)
        result = evaluate(config, chosen.model, chosen.params, about["step"], images, workdir, mesh, show)
    if trace:
        trace.finish()
    if not arguments.out:
        page.refresh_existing(workdir)
    return result


if __name__ == "__main__":
    cli.run(main)
