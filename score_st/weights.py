"""The weights that a command works with: of one checkpoint, or of two models together."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_st import config as configuration
from score_st import ranges
from score_st.config import ConfigError
from score_st.diffusion import guidance
from score_st.evaluation import provenance
from score_st.model import CombinedModel, DiffusionModel
from score_st.runtime import cli, places
from score_st.training import checkpoints, stored_weights

# a second model, by its option: the option with its number, and what the number and the two models make
SECOND: dict[str, tuple[str, type[guidance.Combination]]] = {
    "expert": ("below", guidance.Experts),
    "guide": ("guidance", guidance.Autoguidance),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model with its weights.

    Attributes:
      model: the diffusion model, a `CombinedModel` for two.
      params: its weights.
      about: what is written of them: `step`, `weights` (as --ema) and `weights_crc32` of --workdir; of a second model
        its number, and its workdir as it was given, step and CRC-32.
      name: of a folder for their results; empty for the EMA of one model.
    """

    model: DiffusionModel
    params: Any
    about: dict[str, Any]
    name: str = ""

    def folder(self, parent: Path) -> Path:
        """Where results of these weights go: `parent` for the EMA of one model, otherwise a folder in it."""
        return parent / self.name


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose the weights, but for --step."""
    parser.add_argument_group("weights").add_argument(
        "--ema", default="ema", metavar="WIDTH", help=stored_weights.HELP
    )
    option = parser.add_argument_group("a second model").add_argument
    option(
        "--guide", metavar="DIR[@STEP]", help="autoguidance by the checkpoint of a worse model (default its newest)"
    )
    option(
        "--guidance",
        type=cli.within(ranges.FINITE),
        metavar="W",
        help="its strength: 1 is none, 2 doubles what the guide lacks",
    )
    option("--expert", metavar="DIR[@STEP]", help="the checkpoint of another model, for small noise")
    option("--below", type=cli.within(ranges.POSITIVE), metavar="C", help="σ/α at which the expert takes over")


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for an option of a second model without its partner."""
    for name, (number, _) in SECOND.items():
        workdir, value = getattr(arguments, name), getattr(arguments, number)
        if (workdir is None) != (value is None):
            given, missing = (name, number) if value is None else (number, name)
            raise ConfigError(f"--{given} {workdir or value}: needs --{missing}, too")


def from_arguments(arguments: argparse.Namespace, config: ConfigDict, model: DiffusionModel, mesh: Mesh) -> Weights:
    """Reads the weights that the options ask for.

    Args:
      arguments: of --workdir, --step and `add_options`.
      config: all settings.
      model: the diffusion model of `config`.
      mesh: the devices.

    Raises:
      ConfigError: an option has no partner, there is no such checkpoint, or the models do not fit.
    """
    check(arguments)
    read = stored_weights.read(arguments.workdir, config, model, mesh, arguments.step, arguments.ema)
    about = {"step": read.step, "weights": read.name, "weights_crc32": provenance.checksum(read.params)}
    weights = Weights(model, read.params, about, "" if read.name == "ema" else read.name)
    for name, (number, combination) in SECOND.items():
        if getattr(arguments, name) is not None:
            weights = _with_second(weights, name, arguments, combination(getattr(arguments, number)), mesh)
    return weights


def _with_second(
    first: Weights, name: str, arguments: argparse.Namespace, combination: guidance.Combination, mesh: Mesh
) -> Weights:
    place = getattr(arguments, name)
    workdir, at, number = place.rpartition("@")
    if not (at and number.isdecimal()) or Path(place).exists():
        workdir, number = place, ""
    try:
        with places.reading(workdir) as local:
            config = configuration.from_workdir(local)
            model = DiffusionModel.from_config(config)
            both = CombinedModel.of(first.model, model, combination)
            restored = checkpoints.open_for_reading(local, config, model, mesh, int(number) if number else None)
    except ConfigError as error:
        raise ConfigError(f"--{name} {place}: {str(error).removeprefix(f'--workdir {workdir}: ')}") from error
    about = {SECOND[name][0]: getattr(arguments, SECOND[name][0]), name: place, f"{name}_step": int(restored.step)}
    about = first.about | about | {f"{name}_weights_crc32": provenance.checksum(restored.ema)}
    if combination == guidance.Autoguidance(1):
        return dataclasses.replace(first, about=about)
    parts = first.name, f"{SECOND[name][0]}_{getattr(arguments, SECOND[name][0]):g}"
    return Weights(both, (first.params, restored.ema), about, "_".join(filter(None, parts)))
