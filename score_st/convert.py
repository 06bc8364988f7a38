"""`python -m score_st.convert`: a PyTorch checkpoint of Soft Truncation or score_sde becomes a workdir, and back."""

import argparse
import json
import math
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import ranges, weights_file
from score_st.config import FREE, ConfigError
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.runtime import cli, mirror, places, sharding
from score_st.runtime.workdir import CONVERTED, claim_workdir, write_text
from score_st.training import checkpoints, saved_steps, state, stored_weights

EXAMPLES = """\
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --from official.pth --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --to back.pth --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --to ema.safetensors --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --verify golden.npz --workdir runs/cifar10"""


def verify(errors: dict[str, dict[str, float]], tol: float) -> None:
    """Prints the errors of `compare`; exits with code 1 if one in float32 is above `tol`."""
    for name, error in errors.items():
        print(f"{name:14} maximal relative error {error['float32']:.2e} in float32, {error['float64']:.2e} in float64")
    worst = max(errors, key=lambda name: (not math.isfinite(errors[name]["float32"]), errors[name]["float32"]))
    if not errors[worst]["float32"] <= tol:
        sys.exit(f"error: {worst} is {errors[worst]['float32']:.2e} off, more than --tol {tol:g}; nothing was written")


def import_torch(arguments: argparse.Namespace, golden: torch_checkpoint.Golden | None, mesh: Mesh) -> None:
    """Converts a PyTorch file to a checkpoint in the workdir.

    Nothing is written unless the file fits the configuration, and agrees with `golden`.
    """
    path, config = arguments.source, arguments.config
    model = DiffusionModel.from_config(config)
    if saved_steps.steps(arguments.workdir):
        raise ConfigError(f"--workdir {arguments.workdir}: already has checkpoints; name another folder")
    content = torch_file.read(path)
    try:
        current = torch_checkpoint.state_from_torch(content, config, model)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if golden:
        verify(torch_checkpoint.compare(config, model, current, golden), arguments.tol)
    for line in torch_checkpoint.differences(content, config):
        print(f"note: {line}", file=sys.stderr)
    for part, effect in (("ema", "the EMA starts at the parameters"), ("optimizer", "Adam starts afresh")):
        if part not in content:
            print(f"note: no {part} in the file: {effect}", file=sys.stderr)
    keep(arguments, config, current, mesh)


def import_weights(arguments: argparse.Namespace, mesh: Mesh) -> None:
    """Converts a safetensors file to a checkpoint in the workdir; nothing is written unless it fits --config.

    Where there is no --config, it has the configuration in the file's header, and the workdir gets it as config.py.
    """
    path = arguments.source
    if saved_steps.steps(arguments.workdir):
        raise ConfigError(f"--workdir {arguments.workdir}: already has checkpoints; name another folder")
    if arguments.base:
        config, source = arguments.config, ""
        weights_file.check_same(path, config)
    else:
        config = weights_file.configuration(path, arguments.changes)
        source = weights_file.source(config)
    current = weights_file.training_state(path, config, DiffusionModel.from_config(config))
    print("note: the file has one set of weights: the EMA starts at them, and Adam starts afresh", file=sys.stderr)
    keep(arguments, config, current, mesh, source)


def keep(
    arguments: argparse.Namespace, config: ConfigDict, current: state.TrainState, mesh: Mesh, source: str = ""
) -> None:
    """Writes a state as the first checkpoint of the workdir, and `source` as its config.py."""
    multihost_utils.sync_global_devices("file read")  # no process writes before all have found the workdir empty
    workdir = claim_workdir(arguments.workdir, config, lambda key: not key.startswith(FREE), arguments.base)
    if jax.process_index() == 0:  # before the checkpoint: training never starts from scratch here
        about = {"file": mirror.shown(arguments.source), "step": int(current.step)}
        write_text(workdir / CONVERTED, json.dumps(about))
        if source:
            write_text(workdir / "config.py", source)
    with checkpoints.manager(workdir) as manager:
        saved_steps.set_aside(manager, saved_steps.unfinished(manager))
        checkpoints.save(manager, sharding.replicate(current, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    step, where = int(current.step), mirror.shown(workdir)
    print(f"wrote {where}/checkpoints/{step}: {parameters:,} parameters, step {step}")


def export_weights(arguments: argparse.Namespace, mesh: Mesh) -> None:
    """Writes the weights that --ema names as a safetensors file."""
    path, config = arguments.to, arguments.config
    read = stored_weights.read(
        arguments.workdir, config, DiffusionModel.from_config(config), mesh, arguments.step, arguments.ema
    )
    if jax.process_index() == 0:
        weights_file.write(path, read.params, config, {"step": read.step, "weights": read.name})
        print(f"wrote {mirror.shown(path)}: {read.name} weights, step {read.step}")


def export_torch(path: Path, current: state.TrainState, config: ConfigDict) -> None:
    """Writes a PyTorch file."""
    content = torch_checkpoint.state_to_torch(current, config)
    try:
        torch_file.write(path, content)
    except OSError as error:
        raise ConfigError(f"--to {path}: can't be written ({error.strerror}); name another file") from error
    print(f"wrote {mirror.shown(path)}: step {int(current.step)}")


def parser() -> cli.Parser:
    """Returns the parser of the command line."""
    codes = {1: "an output differs by more than --tol"}
    description = "Converts a PyTorch checkpoint to a workdir, or back."
    command = cli.parser("convert", description, EXAMPLES, codes)
    files = command.add_argument_group("files")
    direction = files.add_mutually_exclusive_group()
    direction.add_argument(
        "--from", dest="source", type=places.source, metavar="FILE.pth", help="a PyTorch checkpoint, or a file of --to"
    )
    about = "to write: a PyTorch checkpoint, or FILE.safetensors with the weights of --ema and the configuration"
    direction.add_argument("--to", type=places.file, metavar="FILE.pth", help=about)
    files.add_argument(
        "--ema", default="ema", metavar="WIDTH", help=f"of --to FILE.safetensors: {stored_weights.HELP}"
    )
    files.add_argument(
        "--step", type=cli.within(ranges.COUNT_OR_0), help="checkpoint of the workdir (default: the newest)"
    )
    option = command.add_argument_group("comparison").add_argument
    about = "official outputs to compare with, see docs/convert.md"
    option("--verify", type=places.source, metavar="FILE.npz", help=about)
    option(
        "--tol", type=cli.within(ranges.POSITIVE), default=1e-4, help="largest relative error allowed (default: 1e-4)"
    )
    return command


@cli.command(parser)
def main(arguments: argparse.Namespace, mesh: Mesh | None = None) -> None:
    """Runs the command on a mesh, by default of all devices."""
    mesh = mesh or sharding.mesh()
    config = arguments.config
    if not (arguments.source or arguments.to or arguments.verify):
        raise ConfigError("one of --from FILE.pth, --to FILE.pth and --verify FILE.npz is needed")
    if arguments.to and mirror.exists(arguments.to):
        raise ConfigError(f"--to {arguments.to}: already exists; name another file")
    imports, exports = (path and path.suffix == weights_file.ENDING for path in (arguments.source, arguments.to))
    if arguments.ema != "ema" and not exports:
        raise ConfigError(f"--ema {arguments.ema}: is for --to FILE.safetensors, which has one set of weights")
    if arguments.verify and (imports or exports):
        raise ConfigError("--verify: compares with the official code, so not with a safetensors file; leave it out")
    if imports:
        return import_weights(arguments, mesh)
    if exports:
        return export_weights(arguments, mesh)
    golden = torch_checkpoint.read_golden(arguments.verify, config) if arguments.verify else None
    if arguments.source:
        return import_torch(arguments, golden, mesh)
    model = DiffusionModel.from_config(config)
    current = checkpoints.open_for_reading(arguments.workdir, config, model, mesh, arguments.step)
    if golden:
        verify(torch_checkpoint.compare(config, model, current, golden), arguments.tol)
    if arguments.to and jax.process_index() == 0:
        export_torch(arguments.to, current, config)


if __name__ == "__main__":
    cli.run(main)
