"""`python -m score_st.convert`: a PyTorch checkpoint or a network of EDM or diffusers becomes a workdir, and back."""

import argparse
import math
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import ranges, strict_json, weights_file
from score_st.config import FREE, ConfigError, as_file
from score_st.model import DiffusionModel
from score_st.pytorch import checkpoint as torch_checkpoint
from score_st.pytorch import file as torch_file
from score_st.pytorch import imported
from score_st.runtime import cli, mirror, places, sharding
from score_st.runtime.workdir import CONVERTED, claim_workdir, write_text
from score_st.training import checkpoints, saved_steps, state, stored_weights

EXAMPLES = """\
  python -m score_st.convert --from edm-cifar10-32x32-uncond-vp.pkl --workdir runs/edm
  python -m score_st.convert --from ddpm-cifar10-32/ --workdir runs/ddpm
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --from official.pth --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --to back.pth --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --to ema.safetensors --workdir runs/cifar10
  python -m score_st.convert --config configs/vp/CIFAR10/ddpmpp_nll_st.py --verify golden.npz --workdir runs/cifar10"""


def verify(errors: dict[str, dict[str, float]], tol: float) -> None:
    """Prints the errors of `compare`; exits with code 1 if one in float32 is above `tol` and above its `rounding`."""
    width = max(map(len, errors))
    for name, error in errors.items():
        line = f"{name:{max(width, 14)}} maximal relative error {error['float32']:.2e} in float32, "
        rounding = f" (five roundings: {error['rounding']:.2e})" if error.get("rounding") else ""
        print(f"{line}{error['float64']:.2e} in float64{rounding}")
    excess = lambda name: errors[name]["float32"] / max(tol, errors[name].get("rounding", 0.0))
    worst = max(errors, key=lambda name: (not math.isfinite(excess(name)), excess(name)))
    if not excess(worst) <= 1:
        allowed = f"--tol {tol:g}" if tol >= errors[worst].get("rounding", 0.0) else "its rounding"
        sys.exit(f"error: {worst} is {errors[worst]['float32']:.2e} off, more than {allowed}; nothing was written")


def import_torch(arguments: argparse.Namespace, mesh: Mesh) -> None:
    """Converts a file of PyTorch, or a network of EDM or diffusers, to a checkpoint in the workdir.

    Nothing is written unless the file fits the configuration, and agrees with the outputs of --verify.
    """
    path = arguments.source
    network = imported.read(path)
    if network and arguments.base:
        raise ConfigError(
            f"--config: {path} has its own settings; leave --config out, --config.KEY=VALUE changes some"
        )
    if not network:
        _require_config(arguments)
    config = imported.configuration(network, arguments.changes) if network else arguments.config
    model = DiffusionModel.from_config(config)
    golden = _golden(arguments.verify, config)
    content = {} if network else torch_file.read(path)
    try:
        if network:
            current = imported.training_state(network, config, model)
        else:
            current = torch_checkpoint.state_from_torch(content, config, model)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if golden:
        verify(_compare(config, model, current, golden), arguments.tol)
    notes = network.notes if network else tuple(torch_checkpoint.differences(content, config))
    for part, effect in (("ema", "the EMA starts at the parameters"), ("optimizer", "Adam starts afresh")):
        if part not in content:
            notes += (f"no {part} in the file: {effect}",)
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    keep(arguments, config, current, mesh, as_file(config) if network else "")


def import_weights(arguments: argparse.Namespace, mesh: Mesh) -> None:
    """Converts a safetensors file to a checkpoint in the workdir; nothing is written unless it fits --config.

    Where there is no --config, it has the configuration in the file's header, and the workdir gets it as config.py.
    """
    path = arguments.source
    if arguments.base:
        config = arguments.config
        weights_file.check_same(path, config)
    else:
        config = weights_file.configuration(path, arguments.changes)
    current = weights_file.training_state(path, config, DiffusionModel.from_config(config))
    print("note: the file has one set of weights: the EMA starts at them, and Adam starts afresh", file=sys.stderr)
    keep(arguments, config, current, mesh, "" if arguments.base else as_file(config))


def keep(
    arguments: argparse.Namespace, config: ConfigDict, current: state.TrainState, mesh: Mesh, source: str = ""
) -> None:
    """Writes a state as the first checkpoint of the workdir, and `source` as its config.py."""
    multihost_utils.sync_global_devices("file read")  # no process writes before all have found the workdir empty
    workdir = claim_workdir(arguments.workdir, config, lambda key: not key.startswith(FREE), arguments.base)
    if jax.process_index() == 0:  # before the checkpoint: training never starts from scratch here
        about = {"file": mirror.shown(arguments.source), "step": int(current.step)}
        write_text(workdir / CONVERTED, strict_json.dumps(about))
        if source:
            write_text(workdir / "config.py", source)
    with checkpoints.manager(workdir) as manager:
        saved_steps.set_aside(manager, saved_steps.unfinished(manager))
        checkpoints.save(manager, sharding.replicate(current, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    step, where = int(current.step), mirror.shown(workdir)
    print(f"wrote {where}/checkpoints/{step}: {parameters:,} parameters, step {step}")
    if source:
        print(f"wrote {where}/config.py: for --config of other commands")


def _require_config(arguments: argparse.Namespace) -> None:
    if not arguments.base:
        raise ConfigError(
            "--config FILE is needed, unless --from names a network of EDM or diffusers, or a safetensors file"
        )


def _golden(path: Path | None, config: ConfigDict) -> dict | None:
    if not path:
        return None
    content = torch_checkpoint.read_arrays(path)
    return (imported if imported.is_golden(content) else torch_checkpoint).check_golden(path, content, config)


def _compare(config: ConfigDict, model: DiffusionModel, current: state.TrainState, golden: dict) -> dict:
    if imported.is_golden(golden):
        return imported.compare(model, current, golden)
    return torch_checkpoint.compare(config, model, current, golden)


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
    description = "Converts a PyTorch checkpoint to a workdir, or back, and networks of EDM and of diffusers to one."
    command = cli.parser("convert", description, EXAMPLES, codes, config_required=False)
    files = command.add_argument_group("files")
    direction = files.add_mutually_exclusive_group()
    direction.add_argument(
        "--from",
        dest="source",
        type=places.source,
        metavar="FILE",
        help="a PyTorch checkpoint (.pth), a network of EDM (.pkl), a folder of a UNet2DModel of diffusers, or a "
        "safetensors file of --to",
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
        raise ConfigError("one of --from FILE, --to FILE.pth and --verify FILE.npz is needed")
    if arguments.to and mirror.exists(arguments.to):
        raise ConfigError(f"--to {arguments.to}: already exists; name another file")
    imports, exports = (path and path.suffix == weights_file.ENDING for path in (arguments.source, arguments.to))
    if arguments.ema != "ema" and not exports:
        raise ConfigError(f"--ema {arguments.ema}: is for --to FILE.safetensors, which has one set of weights")
    if arguments.verify and (imports or exports):
        raise ConfigError("--verify: compares with the official code, so not with a safetensors file; leave it out")
    if arguments.source and saved_steps.steps(arguments.workdir):
        raise ConfigError(f"--workdir {arguments.workdir}: already has checkpoints; name another folder")
    if imports:
        return import_weights(arguments, mesh)
    if arguments.source:
        return import_torch(arguments, mesh)
    _require_config(arguments)
    if exports:
        return export_weights(arguments, mesh)
    golden = _golden(arguments.verify, config)
    model = DiffusionModel.from_config(config)
    current = checkpoints.open_for_reading(arguments.workdir, config, model, mesh, arguments.step)
    if golden:
        verify(_compare(config, model, current, golden), arguments.tol)
    if arguments.to and jax.process_index() == 0:
        export_torch(arguments.to, current, config)


if __name__ == "__main__":
    cli.run(main)
