"""Files of safetensors; needs the package, `pip install 'score_st[safetensors]'`."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from score_st.array_types import Shaped
from score_st.config import ConfigError
from score_st.runtime.replacing import replacing


@contextlib.contextmanager
def _library(path: Path) -> Iterator[None]:
    """Turns what the library raises for a file into a ConfigError."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{path}: needs pip install 'score_st[safetensors]'") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be used ({error.strerror or error}); name another file") from error
    except Exception as error:  # SafetensorError, for a damaged header
        raise ConfigError(f"{path}: not a complete safetensors file ({' '.join(str(error).split())[:160]})") from error


def read(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns the tensors of a file by name; raises ConfigError if it can't be read, or is damaged."""
    with _library(path):
        from safetensors.numpy import load_file

        return load_file(path)


def header(path: Path) -> dict[str, str]:
    """Returns what a file says about its tensors; raises what `read` does."""
    with _library(path):
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            return file.metadata() or {}


def write(path: Path, tensors: dict[str, Shaped[np.ndarray, "..."]], header: Mapping[str, str]) -> None:
    """Writes tensors and what is said about them; the file appears complete or not at all.

    Raises:
      ConfigError: it can't be written, or the package is not installed.
    """
    with _library(path):
        from safetensors.numpy import save_file

        with replacing(path) as temporary:
            save_file(tensors, temporary, dict(header))
