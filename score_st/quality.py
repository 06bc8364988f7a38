"""`python -m score_st.quality`: distances between samples and a reference."""

import argparse

from jax.sharding import Mesh

from score_st.evaluation import sample_quality, tables
from score_st.reporting import page
from score_st.runtime import cli, sharding

EXAMPLES = """\
  python -m score_st.quality --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 \\
      --metrics fid,is,kid,precision_recall --weights pt_inception-2015-12-05-6726825d.pth
  python -m score_st.quality --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 \\
      --reference cifar10_stats.npz
  python -m score_st.quality --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits \\
      --metrics fid,kid --features efficientnet-lite0 --samples runs/digits/dpm

the figures are in eval/quality.json of the workdir, too"""


def parser() -> cli.Parser:
    """Returns the command's parser."""
    description = "Sample quality: FID, KID, Inception score, precision and recall."
    parser = cli.parser("quality", description, EXAMPLES)
    sample_quality.add_options(parser, "sample quality", "fid")
    parser.set_defaults(shards=True)
    return parser


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> dict:
    """Runs the command on the devices of a mesh, by default on all; returns what is in eval/quality.json."""
    result = sample_quality.from_arguments(arguments, mesh or sharding.mesh(), tables.show_quality)
    page.refresh_existing(arguments.workdir)
    return result


if __name__ == "__main__":
    cli.run(main)
