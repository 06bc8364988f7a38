"""The workdir of a run: its configuration, and files that appear complete or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_st import strict_json
from score_st.config import ConfigError, as_json, default, differences, find, flatten, packaged, to_json
from score_st.runtime import mirror
from score_st.runtime.replacing import replacing

CONVERTED = "converted.json"  # in a workdir that `python -m score_st.convert` has made


def claim_workdir(
    workdir: str | Path,
    config: ConfigDict,
    must_agree: Callable[[str], bool],
    base: Mapping[str, Any] | None = None,
) -> Path:
    """Creates the workdir, or finds it with a run of the same configuration, and stores the configuration there.

    Args:
      workdir: a folder.
      config: goes to `config.json`.
      must_agree: whether a configuration key, such as "training.k", has to be as in an earlier run.
      base: what `cli.parse` calls base. It goes to `config_base.json`, and its file to `config.py` unless it comes
        with the package: the file may have added entries to tables, which other commands then find there.

    Returns:
      The workdir.

    Raises:
      ConfigError: the workdir can't be written, or has a run of another configuration; it is left as it was.
    """
    import jax

    workdir = Path(workdir)
    check_same(workdir, config, must_agree)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_text(workdir / "config.json", to_json(config))
            if base:
                write_text(workdir / "config_base.json", strict_json.dumps(base, indent=1, sort_keys=True))
                keep_file(workdir / "config.py", find(base["file"]))
    except OSError as error:
        raise ConfigError(
            f"--workdir {workdir}: can't be written ({error.strerror}); name a folder that can"
        ) from error
    return workdir


def keep_file(copy: Path, file: Path) -> None:
    """Copies a configuration file unless it comes with the package or is the copy itself."""
    if file.resolve() not in [*(path.resolve() for path in packaged().values()), copy.resolve()]:
        write_text(copy, file.read_text("utf-8"))


def check_same(workdir: Path, config: ConfigDict, must_agree: Callable[[str], bool]) -> None:
    """Raises ConfigError if the workdir's configuration differs from `config` in a key that must agree.

    A key that an older `config.json` lacks counts as its default.
    """
    stored = read_config(workdir)
    if stored is None:
        return
    old, new = as_json(default()) | flatten(stored), as_json(config)
    if differing := differences(old, new, [key for key in sorted(new) if must_agree(key)]):
        raise ConfigError(f"--workdir {workdir}: was made with {differing}; use that, or another workdir")


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Returns what the workdir's `config.json` has; None where there is neither this file nor a checkpoint.

    Raises:
      ConfigError: the file can't be read, is damaged, or is missing beside checkpoints.
    """
    file, way = workdir / "config.json", "put the right one there, or name another folder"
    try:
        stored = strict_json.loads(file.read_bytes())
        if not isinstance(stored, dict):
            raise ValueError(f"{type(stored).__name__} instead of an object")
        return stored
    except (FileNotFoundError, NotADirectoryError):
        if mirror.exists_below(workdir / "checkpoints"):
            raise ConfigError(f"--workdir {workdir}: has checkpoints, but no config.json; {way}") from None
        return None
    except OSError as error:
        raise ConfigError(f"--workdir {workdir}: its config.json can't be read ({error.strerror}); {way}") from error
    except ValueError as error:
        raise ConfigError(f"--workdir {workdir}: its config.json is damaged ({error}); {way}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{os.getpid()}") as temporary:
        temporary.write_text(text, "utf-8")


def check_writable(folder: Path, hint: str) -> None:
    """Raises ConfigError, before anything is computed, if files can't be written to a folder, which need not exist.

    Args:
      folder: where results will go.
      hint: what else can be done.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        write_text(existing / f".writable.{os.getpid()}", "")
        (existing / f".writable.{os.getpid()}").unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written ({error.strerror}); {hint}") from error


def allocate(path: Path, size: int) -> None:
    """Creates a file of zeros that has its room on the disk; writing to one that has not, mapped, ends in SIGBUS.

    Raises:
      OSError: there is no room; then there is no file.
    """
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                for start in range(0, size, 2**24):
                    file.write(bytes(min(2**24, size - start)))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
