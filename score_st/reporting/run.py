"""The files of a run that its page shows, read without ever failing."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from score_st import strict_json
from score_st.config import flatten
from score_st.reporting.figures import Curve

JSON_FILES = {  # by field of `Run`
    "config": "config.json",
    "base": "config_base.json",
    "bpd": "eval/bpd.json",
    "loss_by_time": "eval/loss_by_time.json",
    "samplers": "eval/samplers.json",
    "quality": "eval/quality.json",
    "parameters": "parameters.json",
    "traces": "profile/operations.json",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a workdir holds: the content of each file, empty where it is missing or damaged.

    `metrics` are the lines of metrics.jsonl, `qualities` those of eval/quality.jsonl, or else `quality` alone,
    `config` has dotted keys, `base` is the configuration file that the run
    started from, and `notes` say what could not be read. Other fields: see `JSON_FILES`.
    """

    path: Path
    name: str
    metrics: list[dict[str, Any]]
    config: dict[str, Any]
    base: dict[str, Any]
    bpd: dict[str, Any]
    loss_by_time: dict[str, Any]
    samplers: dict[str, Any]
    quality: dict[str, Any]
    qualities: list[dict[str, Any]]
    parameters: list[dict[str, Any]]
    traces: dict[str, Any]
    notes: list[str]

    def column(self, key: str) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Returns the steps at which `key` was logged with a finite value, and these values."""
        values = ((line["step"], line.get(key)) for line in self.metrics)
        pairs = [(step, y) for step, y in values if isinstance(y, int | float) and math.isfinite(y)]
        steps, column = np.array(pairs, float).reshape(-1, 2).T
        return steps, column

    def curves(self, key: str, style: int) -> list[Curve]:
        """Returns the curve of `key` over steps, or none if it has fewer than two points."""
        steps, values = self.column(key)
        return [Curve(self.name, steps, values, style)] if len(steps) > 1 else []


def read(workdir: Path, name: str) -> Run:
    """Reads a workdir; damaged files and lines are left out, with a note."""
    notes: list[str] = []

    def load(file: str) -> Any:
        is_list = file == "parameters.json"
        try:
            value = strict_json.loads((workdir / file).read_bytes())
            rows = value if is_list else [value]
            if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
                raise ValueError("not a list of JSON objects" if is_list else "not a JSON object")
            return value
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            notes.append(f"{file} of {name} left out: {error}")
        return [] if is_list else {}

    files = {field: load(file) for field, file in JSON_FILES.items()}
    files["config"] = flatten(files["config"])
    metrics = _lines(workdir / "metrics.jsonl", name, notes, lambda line: line | {"step": int(line["step"])})
    whole = lambda line: line | {"figures": {key: dict(entry) for key, entry in line["figures"].items()}}
    qualities = _lines(workdir / "eval/quality.jsonl", name, notes, whole) or [files["quality"]]
    return Run(workdir, name, metrics, qualities=qualities, notes=notes, **files)


def _lines(
    path: Path, name: str, notes: list[str], checked: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the lines of a file that are complete, as `checked` returns them."""
    lines, damaged = [], []
    for number, text in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            lines.append(checked(strict_json.loads(text)))
        except (ValueError, LookupError, TypeError, OverflowError, AttributeError):
            damaged.append(str(number))
    if damaged:
        examples = f"{', '.join(damaged[:5])} ({len(damaged)} in all)"
        notes.append(f"{path.name} of {name}: damaged lines left out: {examples}")
    return lines
