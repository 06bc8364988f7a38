"""`python -m score_st.convert`: a PyTorch checkpoint of Soft Truncation or score_sde becomes one of ours, and back.

Both codes save {'model', 'ema', 'optimizer', 'step'}. The model is a dictionary by name, the EMA and the
optimiser are lists in the order of `torch_layout.layout`.
"""

import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from score_st.config import ConfigError
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.runtime import cli, sharding
from score_st.runtime.workdir import claim_workdir
from score_st.training import checkpoints

EXAMPLES = """\
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --from official.pth --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --to back.pth --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --verify golden.npz --workdir runs/cifar10"""


def import_torch(config, path: str, workdir: str, golden: dict | None, tol: float, mesh: Mesh):
    """PyTorch file to workdir; nothing is written unless all of it fits, and agrees with `golden`."""
    made = DiffusionModel.from_config(config)
    if (Path(workdir) / "checkpoints").exists():
        raise ConfigError(f"--workdir {workdir}: has checkpoints already; name another folder")
    checkpoint = torch_file.read(path)
    try:
        current = torch_checkpoint.state_from_torch(checkpoint, config, made)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if golden:
        torch_checkpoint.verify(config, made, current, golden, tol)
    for line in torch_checkpoint.differences(checkpoint, config):
        print(f"note: {line}", file=sys.stderr)
    for part, then in (("ema", "the EMA starts at the parameters"), ("optimizer", "Adam starts afresh")):
        if part not in checkpoint:
            print(f"note: no {part} in the file: {then}", file=sys.stderr)
    multihost_utils.sync_global_devices("file read")  # every process has found the workdir empty
    workdir = claim_workdir(workdir, config)
    with checkpoints.manager(workdir) as manager:
        checkpoints.save(manager, sharding.on_all(current, mesh))
    parameters = sum(slot.size for slot in jax.tree.leaves(current.params))
    print(f"wrote {workdir}/checkpoints/{int(current.step)}: {parameters:,} parameters, step {int(current.step)}")


def main(argv: list[str] | None = None, mesh: Mesh | None = None):
    codes = {1: "an output is off by more than --tol"}
    parser = cli.parser("convert", "A PyTorch checkpoint into a workdir, or back.", EXAMPLES, codes)
    group = parser.add_argument_group("files")
    way = group.add_mutually_exclusive_group()
    way.add_argument("--from", dest="source", metavar="FILE.pth", help="a PyTorch checkpoint to put into the workdir")
    way.add_argument("--to", metavar="FILE.pth", help="the PyTorch checkpoint to make of the workdir's newest")
    group.add_argument("--step", type=int, help="another checkpoint of the workdir than its newest")
    option = parser.add_argument_group("comparison").add_argument
    option("--verify", metavar="FILE.npz", help="official outputs to compare with, see the README")
    option("--tol", type=float, default=1e-4, help="the relative error allowed (default 1e-4)")
    arguments = cli.parse(parser, argv)
    mesh = mesh or sharding.mesh()
    config = arguments.config
    if not (arguments.source or arguments.to or arguments.verify):
        raise ConfigError("one of --from FILE.pth, --to FILE.pth and --verify FILE.npz is needed")
    if arguments.to and Path(arguments.to).exists():
        raise ConfigError(f"--to {arguments.to}: is there already; name another file")
    golden = torch_checkpoint.read_golden(arguments.verify, config) if arguments.verify else None
    if arguments.source:
        return import_torch(config, arguments.source, arguments.workdir, golden, arguments.tol, mesh)
    made = DiffusionModel.from_config(config)
    current = checkpoints.open_for_reading(arguments.workdir, config, made, mesh, arguments.step)
    if golden:
        torch_checkpoint.verify(config, made, current, golden, arguments.tol)
    if arguments.to and jax.process_index() == 0:
        try:
            torch_file.write(arguments.to, torch_checkpoint.state_to_torch(current, config))
        except OSError as error:
            raise ConfigError(f"--to {arguments.to}: can't be written ({error.strerror})") from error
        print(f"wrote {arguments.to}: step {int(current.step)}")


if __name__ == "__main__":
    cli.run(main)
