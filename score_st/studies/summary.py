"""What a study has found so far: `study.json`, from stored results alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_st import strict_json
from score_st.config import ConfigError
from score_st.runtime import resumable
from score_st.runtime.workdir import write_text
from score_st.studies import statistics
from score_st.studies.cells import Results
from score_st.studies.definition import At, Comparison, Study

EXPECTED = "expected.json"


def written(out: Path) -> dict[str, dict[str, Any]]:
    """Returns what `expected.json` has of each comparison, by its question; {} if there is no such file.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        return dict(strict_json.loads((out / EXPECTED).read_bytes()))
    except FileNotFoundError:
        return {}
    except resumable.DAMAGED as error:
        raise ConfigError(f"{out / EXPECTED}: is damaged ({error}); take it from where it was committed") from error


def expectations(study: Study, out: Path, table: "Table") -> dict[str, dict[str, Any]]:
    """Returns what is expected of each comparison, by its question.

    What was written before the first result stays; what is added or changed afterwards is marked `late`.
    """
    old, new = written(out), {}
    for comparison in study.comparisons:
        stated = json.loads(json.dumps(comparison.expectation))
        late = any(table.values[cell] for cell in comparison.cells)
        before, keys = old.get(comparison.question), ("figure", "a", "b", "paired")
        if before and late and all(before["expected"][key] == stated[key] for key in keys):
            new[comparison.question] = before
        else:
            new[comparison.question] = {"expected": stated, "late": late}
    return new


def register(study: Study, out: Path) -> None:
    """Writes down what is expected of each comparison, for the time when there are results."""
    new = expectations(study, out, Table(study, out))
    if new != written(out):
        write_text(out / EXPECTED, strict_json.dumps(new, indent=1) + "\n")


def number(value: float) -> float | None:
    """Returns a number as strict JSON has it."""
    return value if np.isfinite(value) else None


class Table:
    """All figures of a study: values by seed of a cell, step, row and figure."""

    def __init__(self, study: Study, out: Path) -> None:
        """Reads the results of all cells."""
        self.cells = {cell.name: cell for cell in study.cells}
        results = {name: Results(cell, out) for name, cell in self.cells.items()}
        self.values = {name: result.values() for name, result in results.items()}
        self.complete = {
            name: sum(result.is_complete(seed) for seed in range(self.cells[name].seeds))
            for name, result in results.items()
        }
        self.hours = {name: sum(result.seconds()) / 3600 for name, result in results.items()}

    def at(self, place: At, figure: str) -> tuple[str, Mapping[int, float]]:
        """Returns the cell, the best of several, and the values by seed of a figure there."""
        values = {}
        for cell in place.cells:
            step = place.step or self.cells[cell].steps[-1]
            values[cell] = self.values[cell].get((step, place.row, figure), {})
        mean = lambda cell: statistics.over_seeds(values[cell]).mean
        best = min(values, key=lambda cell: np.nan_to_num(mean(cell), nan=np.inf))
        return best, values[best]

    def compare(self, comparison: Comparison) -> tuple[str, str, statistics.Interval, statistics.Interval | None]:
        """Returns the cells that were compared, the difference, and for pairs the ratio."""
        first, a = self.at(comparison.a, comparison.figure)
        if not comparison.b:
            return first, "0", statistics.over_seeds(a), None
        second, b = self.at(comparison.b, comparison.figure)
        ratio = statistics.ratio(a, b) if comparison.paired else None
        return first, second, statistics.difference(a, b, comparison.paired), ratio


def summarize(study: Study, out: Path) -> dict[str, Any]:
    """Returns the content of `study.json`: means with intervals of every figure, and every comparison."""
    table = Table(study, out)
    stated = expectations(study, out, table)
    parts: dict[str, Any] = {}
    for name, part in study.parts.items():
        cells = {}
        for cell in part.cells:
            full = f"{name}/{cell}"
            figures = []
            for (step, row, figure), values in table.values[full].items():
                mean, low, high, seeds = statistics.over_seeds(values)
                numbers = {"mean": number(mean), "low": number(low), "high": number(high), "seeds": seeds}
                listed = [number(values[seed]) for seed in sorted(values)]
                figures.append({"step": step, "row": row, "figure": figure, **numbers, "values": listed})
            settings = {key: str(value) for key, value in part.cells[cell].items()}
            complete = {"seeds_complete": table.complete[full], "hours": round(table.hours[full], 3)}
            cells[cell] = {"settings": settings, **complete, "figures": figures}
        about = {"title": part.title, "base": part.base, "settings": {k: str(v) for k, v in part.settings.items()}}
        parts[name] = about | {"seeds": part.seeds, "steps": part.steps, "cells": cells}
    comparisons, primary = list[dict[str, Any]](), set[str]()
    for comparison in study.comparisons:
        first, second, interval, ratio = table.compare(comparison)
        entry = stated[comparison.question]
        expected = entry["expected"]
        of_part = first.split("/")[0]
        is_primary = bool(comparison.expect) and of_part not in primary and not entry["late"]
        primary |= {of_part} if is_primary else set()
        found: dict[str, Any] = {"a": first, "b": second, "difference": number(interval.mean), "seeds": interval.seeds}
        found |= {"low": number(interval.low), "high": number(interval.high)}
        if ratio:
            found["ratio"] = {key: number(getattr(ratio, key)) for key in ("mean", "low", "high")}
        came = statistics.verdict(expected["expect"], interval, expected["margin"], expected["size"])
        question = {"question": comparison.question, "part": of_part, "primary": is_primary, "late": entry["late"]}
        comparisons.append(question | {"expected": expected, **found, "came": came})
    return {"title": study.title, "parts": parts, "comparisons": comparisons}
