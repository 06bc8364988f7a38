"""The workdir of a run: its configuration, and files that appear whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from score_st.config import FREE, ConfigError, differences, flatten, to_json


def claim_workdir(workdir: str | Path, config, base: dict | None = None) -> Path:
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
            write_text(workdir / "config.json", to_json(config))
            if base:
                write_text(workdir / "config_base.json", json.dumps(base, indent=1, sort_keys=True))
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


def write_text(path: Path, text: str):
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
