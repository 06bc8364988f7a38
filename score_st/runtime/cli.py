"""What the commands share: arguments, help, errors as one line, exit codes."""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from score_st.config import ConfigError, add_entries, changed, check, default, described, flatten, read
from score_st.ranges import TYPES, Number
from score_st.runtime import endings, exit_codes, progress
from score_st.runtime.places import folder

R = TypeVar("R")

OUR_OWN = ("config", "changes", "quiet")  # options that processes need not agree on beyond the configuration
WORKDIR = "folder of checkpoints, logs and results: a local path, gs://… or s3://…"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(exit_codes.WRONG_REQUEST, f"{self.prog}: error: {message}\n")


def documented(
    command: str, description: str, examples: str, codes: Mapping[int, str] | None = None, processes: bool = False
) -> Parser:
    """Returns a parser with --help and --quiet, whose help has examples and exit codes.

    Args:
      command: its name, as in `python -m score_st.train`.
      description: one line or more.
      examples: indented lines.
      codes: the meanings of exit codes of its own, besides those of `exit_codes.shown`.
      processes: whether the command may run in several processes.
    """
    meanings = exit_codes.shown(processes) | dict(codes or {})
    lines = [f"  {code:<5} {meanings[code]}" for code in sorted(meanings)]
    parser = Parser(
        prog=f"python -m score_st.{command}",
        description=description,
        epilog="\n".join(["examples:", examples, "", "exit codes:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    option = parser.add_argument_group("general").add_argument
    option("-h", "--help", action="help", help="show this help and exit")
    option("--quiet", action="store_true", help="no progress: results, warnings and errors only")
    return parser


class HelpConfig(argparse.Action):
    """Prints the keys of the configuration, or of a section, and ends the program."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """See argparse."""
        try:
            print(described(values or ""))
        except ConfigError as error:
            parser.error(str(error))
        parser.exit(exit_codes.DONE)


def add_config_options(option: Callable[..., Any], required: bool = True, **files: Any) -> None:
    """Adds --config, with the settings `files`, --config.KEY=VALUE and --help-config."""
    option("--config", required=required, metavar="FILE", **files)
    option("--config.KEY", dest="_", metavar="VALUE", help="another value for a key: --config.training.k=2.0")
    about = "show all keys, or those of training, sampling, eval, data, model, optim or storage, and exit"
    option("--help-config", nargs="?", action=HelpConfig, metavar="SECTION", help=about)


def within(range: Number) -> Callable[[str], Any]:
    """Returns the type, for argparse, of a number in a range."""

    def number(text: str) -> Any:
        try:
            value = range.kind(text)
            wrong = range.problem(value)
        except (ValueError, OverflowError):
            wrong = f"should be {TYPES[range.kind]}"
        if wrong:
            raise argparse.ArgumentTypeError(f"{text}: {wrong}")
        return value

    return number


def each_within(range: Number) -> Callable[[str], list[Any]]:
    """Returns the type, for argparse, of numbers in a range, with commas between them."""
    return lambda text: [within(range)(part) for part in text.split(",")]


def parser(
    command: str,
    description: str,
    examples: str,
    codes: Mapping[int, str] | None = None,
    workdir: str | None = None,
    config_required: bool = True,
) -> Parser:
    """Returns a `documented` parser that also has --config, --config.KEY=VALUE and --workdir.

    Args:
      command: see `documented`.
      description: see `documented`.
      examples: see `documented`.
      codes: see `documented`.
      workdir: the default; if there is none, --workdir is required.
      config_required: whether --config is; a command for which it is not has all defaults without it.
    """
    parser = documented(command, description, examples, codes, processes=True)
    option = parser.add_argument_group("run").add_argument
    add_config_options(option, config_required, help="a file, or a name such as vp/CIFAR10/ddpmpp_nll_st")
    option("--workdir", type=folder, required=workdir is None, default=workdir, metavar="DIR", help=WORKDIR)
    return parser


def overrides(argv: list[str] | None) -> tuple[dict[str, str], list[str]]:
    """Splits arguments into the values of every --config.KEY, by key, and the other arguments.

    Raises:
      ConfigError: a value is missing.
    """
    changes, others = {}, []
    words = iter(sys.argv[1:] if argv is None else argv)
    for word in words:
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config."):
            others.append(word)
        elif equals:
            changes[key] = value
        elif (following := next(words, None)) is not None:
            changes[key] = following
        else:
            raise ConfigError(f"{word}: needs a value, as in {word}=VALUE")
    return changes, others


@contextlib.contextmanager
def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> Iterator[argparse.Namespace]:
    """Parses the arguments of a command, and starts JAX's distributed runtime where there are several processes.

    Options whose type is one of `places` become local paths; what is written to buckets is uploaded at the end.

    Args:
      parser: of the command, see `parser`.
      argv: the arguments, by default those of the process.

    Yields:
      The options. `config` is the configuration with every --config.KEY=VALUE, `base` the file that it comes from and
      the configuration in it (None without --config), `changes` the values of --config.KEY.

    Raises:
      ConfigError: see `config.read`, `config.changed`, `distributed.start` and `places.opened`.
      storage.Unreachable: see `places.opened`.
    """
    changes, others = overrides(argv)
    arguments = parser.parse_args(others)
    from score_st.runtime import distributed, places, storage  # imports JAX, which takes seconds

    progress.quiet = arguments.quiet
    config, inputs, patience = None, [], storage.PATIENCE
    if hasattr(arguments, "config"):
        config = read(arguments.config) if arguments.config else default()
        base = {"file": arguments.config, "config": config.to_dict()} if arguments.config else None
        arguments.config, arguments.changes = changed(config, changes), changes
        check(config, entries=False)  # a workdir may add some
        options = {f"--{key}": value for key, value in vars(arguments).items() if key not in OUR_OWN}
        distributed.start(flatten(arguments.config) | options)
        arguments.base, patience = base, config.storage.patience
        inputs = [config.data.dir, config.data.prepared]
    with places.opened(arguments, patience, inputs, getattr(arguments, "shards", False)) as paths:
        vars(arguments).update(paths)
        if config is not None:
            if arguments.workdir:
                add_entries(config, arguments.workdir)
            check(config)
        yield arguments


def command(parser: Callable[[], argparse.ArgumentParser]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Makes a function of the options, see `parsed`, one of the arguments, by default those of the process."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def main(argv: list[str] | None = None, *args: Any, **kwargs: Any) -> R:
            with parsed(parser(), argv) as arguments:
                return function(arguments, *args, **kwargs)

        return main

    return decorate


def run(main: Callable[[], object]) -> None:
    """Runs a command; a ConfigError becomes one line on stderr and exit code 2, see `parser` for others."""
    endings.silence_orbax()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, inherited, may not be importable here
    endings.set_streams()
    with endings.watched():
        try:
            main()
        except (Exception, KeyboardInterrupt) as error:
            _end(error)
            raise


def _end(error: BaseException) -> None:
    """Ends the program with the exit code and the line that belong to an error; returns for one of the program."""
    from score_st.runtime import distributed, lease, storage

    if isinstance(error, lease.Taken):  # a checkpoint that is being written is not waited for
        distributed.leave(exit_codes.WRONG_REQUEST, f"error: {error}", at_once=True)
    elif isinstance(error, ConfigError):
        distributed.leave(exit_codes.WRONG_REQUEST, f"error: {error}")
    elif isinstance(error, storage.Unreachable):
        distributed.leave(exit_codes.MISSING, f"error: {error}", at_once=True)
    elif isinstance(error, storage.Interrupted):
        distributed.leave(error.code, f"error: {error}", at_once=True)
    elif isinstance(error, KeyboardInterrupt):
        distributed.leave(exit_codes.INTERRUPTED, "", at_once=True)
    elif failure := endings.storage_failure(error):
        place = f"{failure.filename}: " if failure.filename else ""
        line = f"error: {place}{failure.strerror}; what was saved stays"
        distributed.leave(exit_codes.LOCAL_STORAGE, line, at_once=True)  # writes that failed may have left threads
    elif distributed.several():
        distributed.fail(error)
