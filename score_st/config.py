"""The configuration: read from a file, changed on the command line, checked. `settings` has every key.

A configuration file is Python and defines `get_config()`, which takes `default()` and changes a few keys. Sections and
names are those of the official PyTorch code, so `--config.training.k=2.0` means here what it means there. Keys that
only this package has are marked `ours`; the official code's behavior is their default.
"""

import ast
import collections
import contextlib
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from score_st import strict_json
from score_st.ranges import TYPES, plain, problem, shown
from score_st.settings import ALL, SECTIONS, problems

Entry = TypeVar("Entry")

# keys that may change from one run to the next in the same workdir
FREE = (
    *("eval.", "sampling.", "training.n_iters", "training.snapshot", "training.log_freq", "training.eval_"),
    *("data.memory_gb", "data.num_threads", "data.download", "data.prepared", "data.local_cache", "storage."),
    *("data.dir", "data.skip_unreadable"),  # data.identity compares the images themselves
    *("training.fsdp", "training.remat", "training.n_jitted_steps", "training.profile_steps", "training.grace"),
    "training.loggers",
)
# keys without which the weights of a checkpoint can't be understood
MEANING = (
    *("model.", "data.image_size", "data.num_channels", "data.centered", "training.sde", "training.continuous"),
    *("training.ddpm_score", "training.unbounded_parametrization", "training.stabilizing_constant", "training.eta"),
)


START = "a configuration is made by score_st.config.default(), which has all keys"


class ConfigError(ValueError):
    """A request that can't be met. The message is one line that says what would be possible."""

    def __init__(self, message: str = "") -> None:
        """Takes the message; what a file has put into it may have broken it into lines."""
        super().__init__(" ".join(str(message).splitlines()))


class Table(collections.UserDict[str, Entry]):
    """The entries of one concept by name, and the only way in: nothing else in the package asks for a name.

    A configuration file may add entries (`SDES["cosine"] = Cosine`); those of the package can't be replaced.

    Args:
      key: the configuration key that names an entry, such as "training.sde".
      entries: those of the package.
      also: other keys that name an entry.
    """

    all: dict[str, "Table"] = {}  # by key

    def __init__(self, key: str, entries: Mapping[str, Entry], also: tuple[str, ...] = ()) -> None:
        """Makes the table of `key`."""
        self.key, self._own = key, frozenset[str]()
        super().__init__(entries)
        self._own = frozenset(entries)
        Table.all |= dict.fromkeys((key, *also), self)

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Adds an entry; raises ConfigError where the package has one of this name."""
        if name in self._own:
            raise ConfigError(f"config.{self.key}: {name!r} is an entry of the package; add yours by another name")
        super().__setitem__(name, entry)

    def choose(self, name: str, key: str = "") -> Entry:
        """The entry `name`.

        Args:
          name: what the configuration has.
          key: where it has it, if that is not the table's own key.

        Raises:
          ConfigError: there is none; the message lists the choices.
        """
        return choose(self.data, name, key or self.key)


def default() -> ConfigDict:
    """All keys, with the values shared by the official CIFAR-10 configurations."""
    sections = {name: {key: row[0] for key, row in rows.items()} for name, rows in SECTIONS.items()}
    return ConfigDict({"seed": ALL["seed"].default} | sections)


def flatten(config: ConfigDict | dict) -> dict[str, Any]:
    """The values by dotted key: {'training.k': 1.0, ...}."""
    flat: dict[str, Any] = {}
    for section, value in config.items():
        is_section = isinstance(value, ConfigDict | dict)
        flat |= {f"{section}.{key}": v for key, v in value.items()} if is_section else {section: value}
    return flat


def packaged() -> dict[str, Path]:
    """The configurations that come with the package, by name ("vp/CIFAR10/ddpmpp_nll_st")."""
    installed = Path(__file__).with_name("configs")  # a checkout has them at its top
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.py"))}


def described(section: str = "") -> str:
    """The keys of a section, or all, a line each: default, range and meaning.

    Raises:
      ConfigError: there is no such section.
    """
    if section and section not in SECTIONS:
        raise ConfigError(f"--help-config {section}: no such section; choose from {', '.join(SECTIONS)}")
    lines = []
    for key, (value, range, meaning) in ALL.items():
        if key.startswith(f"{section}." if section else ""):
            names = ", ".join(filter(None, Table.all[key])) if key in Table.all else ""
            allowed = f"one of {names}" if names and "entry" in range.text else range.text
            lines.append(f"{key}={shown(value) if value != '' else ''}\n    {meaning}\n    {allowed}")
    return "\n".join(lines)


def find(name: str | Path) -> Path:
    """The file at this path, or the packaged configuration of this name, with or without .py.

    Raises:
      ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known, wanted = packaged(), path.as_posix().removeprefix("configs/").removesuffix(".py")
    if wanted in known:
        return known[wanted]
    close = [key for key in known if key.endswith(f"/{wanted}")] or difflib.get_close_matches(
        wanted, known, cutoff=0.5
    )
    example = "the package has vp/DIGITS/ddpmpp_nll_st, for example"
    hint = f"did you mean {' or '.join(close[:3])}?" if close else example
    raise ConfigError(f"--config {name}: no such file, and no configuration of that name in the package; {hint}")


def read(path: str | Path) -> ConfigDict:
    """The configuration of a Python file that defines `get_config()`, or of a packaged name.

    Raises:
      ConfigError: there is no such file, it is no configuration, or it has an unknown key.
    """
    path = find(path)
    module = run_file(path, "--config")
    with _one_line(f"--config {path}"):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config {path}: get_config() should return an ml_collections.ConfigDict")
    flat = flatten(config)
    for key in flat.keys() - ALL.keys() - SECTIONS.keys():
        raise ConfigError(f"--config {path}: unknown key {key}{_suggest(key)}")
    if missing := [key for key in ALL if key not in flat]:
        raise ConfigError(f"--config {path}: {missing[0]} is missing; {START}")
    _make_plain(config)
    return config


def _make_plain(config: ConfigDict) -> None:
    """Replaces NumPy's numbers and lists by Python's numbers and tuples."""
    with config.unlocked(), config.ignore_type():
        for section in [config, *(value for value in config.values() if isinstance(value, ConfigDict))]:
            for key, value in section.items():
                if isinstance(value, list | tuple | np.ndarray):
                    section[key] = tuple(map(plain, value))
                elif plain(value) is not value:
                    section[key] = plain(value)


def check(config: ConfigDict, entries: bool = True) -> None:
    """Checks every key against `settings`; builds nothing, and touches no file and no device.

    Args:
      config: all keys.
      entries: whether the names of entries are checked; those of tables whose module is not imported never are.

    Raises:
      ConfigError: a key is missing or unknown, or its value has another type, is out of its range, is no entry of its
        table, or does not go with that of another key.
    """
    flat = flatten(config)
    for key, setting in ALL.items():
        if key not in flat:
            raise ConfigError(f"config.{key}: is missing; {START}")
        if wrong := problem(setting.range, flat[key]):
            raise ConfigError(f"config.{key}={shown(flat[key])}: {wrong}")
    for key in flat.keys() - ALL.keys():
        raise ConfigError(f"config.{key}: unknown key{_suggest(key)}")
    for key in unknown_entries(config) if entries else ():
        Table.all[key].choose(flat[key], key)
    for key, wrong in problems({key: plain(value) for key, value in flat.items()}):
        raise ConfigError(f"config.{key}={shown(flat[key])}: {wrong}")


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turns what a user's file raises, which may be anything, into a ConfigError."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def run_file(path: Path, option: str) -> Any:
    """Runs a user's Python file, such as a configuration, which may add entries to tables, and returns it as a module.

    Args:
      path: the file.
      option: that named it, for errors.

    Raises:
      ConfigError: it is no Python file, or raises an error.
    """
    name = f"score_st_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option} {path}: not a Python file; it should end in .py and define get_config()")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look up their module
    with _one_line(f"{option} {path}"):
        spec.loader.exec_module(module)
    return module


def unknown_entries(config: ConfigDict | dict) -> list[str]:
    """The keys of `config` whose value is no entry of their table."""
    flat = flatten(config)
    known = lambda name, table: name in table or (table.key == "training.sde" and name.lower() in table)
    return sorted(key for key, table in Table.all.items() if flat.get(key) and not known(flat[key], table))


def add_entries(config: ConfigDict | dict, workdir: str | Path) -> None:
    """Adds the entries that `config` names and no table has from the workdir's own configuration file.

    Training keeps there as config.py what was given as --config, if it is no file of the package. It is run only if
    an entry is unknown.

    Raises:
      ConfigError: the file can't be run.
    """
    path = Path(workdir) / "config.py"
    if path.is_file() and unknown_entries(config):
        run_file(path, "--workdir")


def changed(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Changes some keys of `config` in place, and locks it.

    Args:
      config: all keys.
      overrides: values as they stand on the command line, by dotted key (`{'training.k': '2.0'}`).

    Returns:
      `config` itself.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type.
    """
    flat, values = flatten(config), dict[str, Any]()
    for key, text in overrides.items():
        if key not in ALL:
            raise ConfigError(f"--config.{key}: unknown key{_suggest(key)}")
        values[key] = _parse(key, text, flat[key])
    with config.unlocked(), config.ignore_type():  # once, as it visits all keys
        for key, value in values.items():
            *section, name = key.split(".")
            (config[section[0]] if section else config)[name] = value
    return config.lock()


def load(path: str | Path, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """The configuration of a file (see `read`) with some keys changed (see `changed`)."""
    return changed(read(path), overrides or {})


def from_workdir(workdir: str | Path, settings: Mapping[str, Any] | None = None) -> ConfigDict:
    """The configuration in a workdir's `config.json`; keys that it lacks have their default.

    Args:
      workdir: of training or conversion.
      settings: other values for some keys, by dotted key.

    Raises:
      ConfigError: no such file, a damaged one, an unknown key or entry of a table, or a value of the wrong type.
    """
    path = Path(workdir) / "config.json"
    try:
        content = strict_json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} instead of an object")
        stored = flatten(content)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); training and conversion write it") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged ({error})") from error
    config = changed(default(), {key: str(value) for key, value in (stored | dict(settings or {})).items()})
    add_entries(config, workdir)
    for key in unknown_entries(config):
        where = f"{Path(workdir) / 'config.py'}, which should add it,"
        state = "does not" if (Path(workdir) / "config.py").is_file() else "is not there"
        raise ConfigError(f"{path}: {key}={flatten(config)[key]!r} is unknown, and {where} {state}")
    check(config)
    return config


def _suggest(key: str) -> str:
    known = list(ALL)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:  # the right name in the wrong section
        close = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f"; did you mean {close[0]}?" if close else ""


def _parse(key: str, text: str, old: Any) -> Any:
    """`text` as a value of the type that the key has."""
    kind = ALL[key].range.kind
    if kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            value = ast.literal_eval(text)
            value = tuple(value) if isinstance(value, tuple | list) else (value,)
            return tuple(number + 0 for number in value)  # raises TypeError for what is no number
        if kind is int and "e" not in text.lower():
            return int(text)
        number = float(text)
        if kind is int and number != int(number):
            raise ValueError("not whole")
        return int(number) if kind is int else number
    except (KeyError, ValueError, SyntaxError, OverflowError, TypeError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise ConfigError(f"--config.{key}={shown}: should be {TYPES[kind]}, like the default {old!r}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The `keys` that differ, as "a=1 (not 2), … and 2 more", with the value of `new` in brackets; "" for none."""
    different = [f"{key}={old.get(key)!r} (not {new.get(key)!r})" for key in keys if old.get(key) != new.get(key)]
    return ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")


def as_json(config: ConfigDict | dict) -> dict[str, Any]:
    """The values by dotted key, as they are after a way through JSON, where tuples are lists."""
    return dict(json.loads(json.dumps(flatten(config))))


def to_json(config: ConfigDict) -> str:
    """The configuration as `config.json` has it."""
    return strict_json.dumps(config.to_dict(), indent=1, sort_keys=True, default=plain)


def as_file(config: ConfigDict) -> str:
    """The text of a configuration file that has these settings."""
    usual = flatten(default())
    lines = [f"    config.{key} = {value!r}" for key, value in flatten(config).items() if value != usual[key]]
    top = '"""Of a network that was converted: written by `python -m score_st.convert`."""'
    top = f"{top}\n\nfrom score_st.config import default\n\n\ndef get_config():\n    config = default()"
    return "\n".join([top, *lines, "    return config", ""])


def choose(table: Mapping[str, Entry], name: str, key: str) -> Entry:
    """`table[name]`, or a ConfigError that lists the choices; `key` names the setting."""
    if name not in table:
        close = difflib.get_close_matches(str(name), list(table), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"config.{key}: unknown {name!r}; choose from {', '.join(table)}{hint}")
    return table[name]
