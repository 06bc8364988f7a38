"""`python -m score_st.bench`: speed and memory of a configuration on the devices at hand, compared with other results.

It measures the train step, the likelihood, samplers, reading and compilation. Weights are random without --workdir,
and images synthetic where the data set's files are missing, so that it runs anywhere.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from score_st import ranges, strict_json
from score_st.benchmarking import comparison, compilation, formats, official, parts, report
from score_st.benchmarking import subject as subjects
from score_st.benchmarking.timing import Number
from score_st.config import ConfigError
from score_st.planning import utilization
from score_st.runtime import cli, mirror, places, sharding
from score_st.runtime.workdir import write_text

EXAMPLES = """\
  python -m score_st.bench --config configs/vp/DIGITS/ddpmpp_nll_st.py
  python -m score_st.bench --config configs/vp/CIFAR10/ddpmpp_nll_st.py --config.training.dtype=bfloat16 \\
      --out bench/bfloat16 --against bench/bench.json
  python -m score_st.bench --config configs/vp/CIFAR10/ddpmpp_nll_st.py --parts step,samples \\
      --samplers ode,dpm_solver_2m@logsnr@20,ancestral_sampling@100
  python -m score_st.bench --config configs/vp/CIFAR10/ddpmpp_nll_st.py --config.model.nf=32 \\
      --parts step --official Soft-Truncation

--against and --official leave the settings to you: they say what differs, and measure what is there"""
SAMPLERS = "ode,dpm_solver_2m@20,ancestral_sampling@100"


def parser() -> cli.Parser:
    """Returns the command's parser."""
    about = "Speed and memory of a configuration on the devices at hand: bench.json and bench.html."
    parser = cli.parser("bench", about, EXAMPLES, workdir="")
    parser.set_defaults(workdir=None)
    option = parser.add_argument_group("what is measured").add_argument
    listed = "; ".join(f"{name}: {choice.about}" for name, choice in parts.CHOICES.items())
    option("--parts", default=",".join(parts.DEFAULT), metavar="A,B", help=f"{listed} (default all but formats)")
    option("--samplers", default=SAMPLERS, metavar="A,B@STEPS", help=f"NAME, @GRID and @STEPS (default {SAMPLERS})")
    option(
        "--images",
        type=cli.within(ranges.COUNT_OR_0),
        default=0,
        metavar="N",
        help="of an evaluation and of a batch of samples",
    )
    option(
        "--seconds",
        type=cli.within(ranges.POSITIVE),
        default=10.0,
        metavar="S",
        help="for each part, without warm-up (default 10)",
    )
    option(
        "--step",
        type=cli.within(ranges.COUNT_OR_0),
        help="of the checkpoint in --workdir, whose EMA is used (default the newest)",
    )
    option = parser.add_argument_group("comparisons").add_argument
    option("--against", type=places.source, metavar="FILE", help="an earlier bench.json")
    option(
        "--official",
        type=places.source,
        metavar="CHECKOUT",
        help="the official PyTorch code, measured in turn with ours",
    )
    option("--torch-compile", action="store_true", help="the official code under torch.compile, too")
    option = parser.add_argument_group("results").add_argument
    option("--out", type=places.folder, default="bench", metavar="DIR", help="folder (default bench)")
    return parser


def chosen_parts(arguments: argparse.Namespace) -> list[str]:
    """Returns the names of --parts, after all options were checked.

    Raises:
      ConfigError: an option makes no sense.
    """
    names = [name for name in arguments.parts.split(",") if name]
    if unknown := [name for name in names if name not in parts.CHOICES]:
        raise ConfigError(f"--parts {arguments.parts}: unknown {unknown[0]!r}; choose from {', '.join(parts.CHOICES)}")
    if not names and not arguments.official:
        raise ConfigError("--parts: nothing to measure")
    if arguments.torch_compile and not arguments.official:
        raise ConfigError("--torch-compile: needs --official, too")
    if arguments.official:
        official.check(arguments.official, arguments.config)
    return list(dict.fromkeys(names))


def samplers(arguments: argparse.Namespace) -> list[str]:
    """Returns the names of --samplers; of the default ones, only those that the configuration allows."""
    names = [name for name in arguments.samplers.split(",") if name]
    if arguments.samplers != SAMPLERS:
        return names
    allowed = []
    for name in names:
        try:
            parts.with_sampler(arguments.config, name)
            allowed.append(name)
        except ConfigError as error:
            print(f"note: {name} is left out: {error}")
    return allowed


def prepared(arguments: argparse.Namespace, names: list[str], subject: subjects.Subject) -> dict[str, parts.Part]:
    """Returns the functions that measure; whatever is wrong with the configuration is raised here."""
    threads = arguments.config.data.num_threads
    ready = {
        "step": lambda: parts.train_step(subject),
        "nll": lambda: parts.nll(subject),
        "samples": lambda: parts.samples(subject, samplers(arguments)),
        "reading": lambda: parts.reading(subject),
        "formats": lambda: formats.formats(arguments.seconds, threads),
        "compile": lambda: compilation.compilation(subject),  # it clears caches in memory, and so comes last
    }
    return {name: ready[name]() for name in ready if name in names}


def claim(folder: Path) -> None:
    """Creates the folder of the results.

    Raises:
      ConfigError: it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigError(f"--out {folder}: can't be written ({error.strerror}); name a folder that can") from error


def write(result: dict[str, Any], folder: Path) -> None:
    """Writes bench.json and bench.html."""
    write_text(folder / "bench.json", strict_json.dumps(result, indent=1))
    write_text(folder / "bench.html", report.page(result))


@cli.command(parser)
def main(
    arguments: argparse.Namespace, mesh: Mesh | None = None, chips: Mapping[str, utilization.Peaks] = utilization.CHIPS
) -> dict[str, Any]:
    """Runs the command on the devices of a mesh, by default on all; returns what is in its JSON file.

    Args:
      arguments: the options.
      mesh: the devices.
      chips: peaks, for the MFU.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # --official shares the GPU; before JAX takes it
    names, writes = chosen_parts(arguments), jax.process_index() == 0
    earlier = comparison.read(arguments.against) if arguments.against else None
    mesh, workdir = mesh or sharding.mesh(), arguments.workdir
    count, seconds, step = arguments.images, arguments.seconds, arguments.step
    subject = subjects.prepare(arguments.config, mesh, count, seconds, workdir, step, chips)
    measurements = prepared(arguments, names, subject)
    if writes:
        claim(arguments.out)
    numbers: dict[str, dict[str, Number]] = {name: part() for name, part in measurements.items()}
    result: dict[str, Any] = {
        "config": arguments.base["file"],
        "settings": json.loads(json.dumps(arguments.config.to_dict())),
        "subject": subject.about | {"count": subject.count, "seconds": seconds},
        "machine": subjects.machine(subject),
        "spread": report.SPREAD,
    }
    if arguments.official:
        compare = official.compare(subject, arguments.official, arguments.torch_compile, "nll" in names)
        numbers["official"], result["machine"]["official"] = compare
    result["numbers"] = {part: {name: vars(n) for name, n in some.items()} for part, some in numbers.items()}
    if earlier:
        result["against"] = comparison.compare(result, earlier, arguments.against)
    if writes:
        write(result, arguments.out)
        report.show(result)
        print(f"wrote {mirror.shown(arguments.out)}/bench.json and bench.html")
    return result


if __name__ == "__main__":
    cli.run(main)
