"""Two results of the benchmark side by side: the ratio of each number, and whether the difference is seen."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_st import strict_json
from score_st.benchmarking.timing import FEW
from score_st.config import ConfigError, as_json, differences

MACHINE = ("device_kind", "devices", "processes", "cores", "processor", "arithmetic")
SAME, FASTER, SLOWER = "no difference seen", "better", "worse"


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A number relative to an earlier one.

    Attributes:
      median: of the medians.
      low: of the lower quartile to the earlier upper one.
      high: of the upper quartile to the earlier lower one.
      verdict: "better", "worse", "higher", "lower", or "no difference seen" where the quartiles overlap.
    """

    median: float
    low: float
    high: float
    verdict: str


def ratio(new: Mapping[str, Any], old: Mapping[str, Any]) -> Ratio | None:
    """Compares two numbers, as JSON has them; None if the earlier one is 0."""
    if not (old["low"] > 0 and old["median"] > 0 and old["high"] > 0):
        return None
    median, low, high = new["median"] / old["median"], new["low"] / old["high"], new["high"] / old["low"]
    if low <= 1 <= high:
        return Ratio(median, low, high, SAME)
    direction = "higher" if median > 1 else "lower"
    verdict = {"": direction, direction: FASTER}.get(new["better"], SLOWER)
    measured = new["unit"] != "GiB" and not new["unit"].startswith("NFE")
    if measured and min(new["count"], old["count"]) < FEW:
        verdict += f" (fewer than {FEW} measurements)"
    return Ratio(median, low, high, verdict)


def read(path: str | Path) -> dict[str, Any]:
    """Reads a bench.json.

    Raises:
      ConfigError: there is none, or the file is something else.
    """
    try:
        result = strict_json.loads(Path(path).read_bytes())
        for number in (number for numbers in result["numbers"].values() for number in numbers.values()):
            if not all(0 <= number[key] < math.inf for key in ("median", "low", "high", "count")):
                raise ValueError("numbers that are none")
            _ = number["unit"] + number["better"]
        _ = result["machine"]["device_kind"], result["settings"]["data"]
        compare(result, result, path)  # it has all that a comparison needs
    except OSError as error:
        raise ConfigError(f"--against {path}: can't be read ({error.strerror}); name a bench.json") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"--against {path}: not a bench.json of this command ({error!r})") from error
    return result


def notes(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Returns what else differs: machine, versions, settings, images and weights, and numbers that one lacks."""
    found = []
    pairs: dict[str, tuple[Mapping, Mapping]] = {
        "machine": tuple({key: r["machine"].get(key) for key in MACHINE} for r in (old, new)),  # type: ignore[dict-item]
        "versions": tuple(dict(r["machine"].get("versions", {})) for r in (old, new)),  # type: ignore[dict-item]
        "settings": tuple(as_json(r["settings"]) for r in (old, new)),  # type: ignore[dict-item]
        "subject": tuple(dict(r["subject"]) for r in (old, new)),  # type: ignore[dict-item]
    }
    for what, (first, second) in pairs.items():
        if text := differences(second, first, sorted({*first, *second})):
            found.append(f"different {what}: {text}")
    names = [{f"{part}: {name}" for part, numbers in r["numbers"].items() for name in numbers} for r in (new, old)]
    for missing, whose in ((names[0] - names[1], "the earlier result"), (names[1] - names[0], "this result")):
        if missing:
            found.append(f"{whose} lacks {', '.join(sorted(missing)[:5])}{', ...' if len(missing) > 5 else ''}")
    return found


def compare(new: Mapping[str, Any], old: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Returns the comparison of two results, as JSON has it.

    Args:
      new: what bench.json has.
      old: the same of an earlier run.
      path: the file of the earlier run.
    """
    ratios: dict[str, dict[str, Any]] = {}
    for part, numbers in new["numbers"].items():
        for name in numbers.keys() & old["numbers"].get(part, {}).keys():
            if result := ratio(numbers[name], old["numbers"][part][name]):
                ratios.setdefault(part, {})[name] = dataclasses.asdict(result)
    ordered = {
        part: {name: ratios[part][name] for name in new["numbers"][part] if name in ratios[part]} for part in ratios
    }
    return {"file": str(path), "notes": notes(new, old), "ratios": ordered}
