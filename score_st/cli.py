"""What the commands share: arguments, errors as one line, and the workdir."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import absl.logging

from score_st.config import ConfigError, differences, flatten, load, to_json

# keys that may change from one run to the next in the same workdir
FREE = ("eval.", "sampling.", "training.n_iters", "training.snapshot", "training.log_freq", "training.eval_freq")
FREE += ("data.memory_gb", "data.num_threads")
# keys that say what the weights of a checkpoint mean
MEANING = (
    "model.",
    "data.image_size",
    "data.num_channels",
    "data.centered",
    "training.sde",
    "training.continuous",
    "training.ddpm_score",
    "training.unbounded_parametrization",
    "training.stabilizing_constant",
    "training.eta",
)

WORKDIR = "where checkpoints, logs and results are"


class Parser(argparse.ArgumentParser):
    """Errors are one line and exit code 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser(command: str, description: str, examples: str, codes: str = "", workdir: str | None = None) -> Parser:
    """With --config, --workdir and the note on --config.KEY=VALUE.

    Args:
      codes: exit codes besides 0 and 2.
      workdir: the default; without one, --workdir is required.
    """
    made = Parser(
        prog=f"python -m score_st.{command}",
        description=description,
        epilog=f"examples:\n{examples}\n\nexit codes: 0 done, {codes}2 not possible as asked (nothing was written), "
        "75 or 134 another process died or did not come, 143 SIGTERM: after these three, the same command goes on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--config", required=True, metavar="FILE", help="a configuration, see configs/")
    made.add_argument("--workdir", required=workdir is None, default=workdir, metavar="DIR", help=WORKDIR)
    made.add_argument(
        "--config.KEY", dest="_", metavar="VALUE", help="another value for a key: --config.training.k=2.0"
    )
    return made


def parse(parser: argparse.ArgumentParser, argv: list[str] | None):
    """The namespace, with `config` loaded and changed by every --config.KEY=VALUE; other processes are joined.

    `base` is the file and its configuration as it stands there.

    Raises:
      ConfigError: see `config.load` and `distributed.start`.
    """
    overrides, rest = {}, []
    argv = list(sys.argv[1:] if argv is None else argv)
    while argv:
        word = argv.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not argv:
                raise ConfigError(f"{word}: needs a value, as in {word}=VALUE")
            value = argv.pop(0)
        overrides[key] = value
    arguments = parser.parse_args(rest)
    from score_st import distributed  # and with it JAX, which takes seconds

    file, arguments.config = arguments.config, load(arguments.config, overrides)
    options = {f"--{key}": value for key, value in vars(arguments).items() if key != "config"}
    distributed.start(flatten(arguments.config) | options)
    arguments.base = {"file": file, "config": load(file).to_dict()}
    return arguments


def run(main: Callable[[], None]):
    """Runs a command; a ConfigError becomes one line on stderr and exit code 2, see `parser` for others."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of every checkpoint opened for reading
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        from score_st import distributed

        if isinstance(error, ConfigError):
            distributed.leave(2, f"error: {error}")
        elif isinstance(error, KeyboardInterrupt):
            distributed.leave(130, "")
        elif not distributed.jax.distributed.is_initialized():
            raise
        distributed.broken(error)


def claim(workdir: str | Path, config, base: dict | None = None) -> Path:
    """The workdir, made if need be, with the configuration in `config.json`, and what `parse` calls base.

    Raises:
      ConfigError: it can't be written, or holds a run of another configuration; it is then as it was.
    """
    import jax

    workdir = Path(workdir)
    check_same(workdir, config, lambda key: not key.startswith(FREE))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write(workdir / "config.json", to_json(config))
            if base:
                write(workdir / "config_base.json", json.dumps(base, indent=1, sort_keys=True))
    except OSError as error:
        raise ConfigError(
            f"--workdir {workdir}: can't be written ({error.strerror}); name a folder that can"
        ) from error
    return workdir


def check_same(workdir: Path, config, matters: Callable[[str], bool]):
    """Raises ConfigError where the workdir's configuration differs in a key that matters."""
    try:
        made = json.loads((workdir / "config.json").read_text())
    except OSError:
        return
    except ValueError as error:
        raise ConfigError(f"--workdir {workdir}: its config.json is damaged ({error}); name another folder") from error
    old = flatten(made)
    new = json.loads(json.dumps(flatten(config)))
    if shown := differences(old, new, [key for key in sorted(new) if matters(key) and key in old]):
        raise ConfigError(f"--workdir {workdir}: was made with {shown}; use that, or another workdir")


def write(path: Path, text: str):
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


class Clock:
    """Speed and time left of a loop from `start` to `stop`."""

    def __init__(self, start: int, stop: int):
        self.stop = stop
        self.last = (start, time.perf_counter())

    def lap(self, step: int) -> tuple[float, str]:
        """Steps a second since the last lap, and the time left at this speed as h:mm:ss."""
        now = time.perf_counter()
        speed = (step - self.last[0]) / max(now - self.last[1], 1e-9)
        self.last = (step, now)
        left = int((self.stop - step) / speed) if speed else 0
        return speed, f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
