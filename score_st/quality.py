"""`python -m score_st.quality`: distances between samples and a reference."""

from pathlib import Path

from jax.sharding import Mesh

from score_st.evaluation import sample_quality
from score_st.reporting import page
from score_st.runtime import cli, sharding

EXAMPLES = """\
  python -m score_st.quality --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10 \\
      --metrics fid,is,kid"""


def main(argv: list[str] | None = None, mesh: Mesh | None = None) -> dict:
    """Runs the command."""
    parser = cli.parser(
        "quality", "The quality of samples: FID, KID, Inception score, precision and recall.", EXAMPLES
    )
    sample_quality.add_options(parser)
    arguments = cli.parse(parser, argv)
    result = sample_quality.evaluate(arguments, mesh or sharding.mesh())
    page.refresh_existing(Path(arguments.workdir))
    return result


if __name__ == "__main__":
    cli.run(main)
