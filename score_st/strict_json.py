"""JSON as every reader takes it: Python's own has NaN and Infinity in it, which JavaScript, jq and pandas refuse."""

import json
import math
from typing import Any

_INFINITE = {math.inf: "\0+", -math.inf: "\0-"}


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else _INFINITE[value]
    return value


def dumps(value: Any, **options: Any) -> str:
    """Returns `json.dumps(value, **options)` with NaN as null, and ±infinity as ±1e999, which is read as infinity."""
    text = json.dumps(_replaced(value), **options)
    return text.replace('"\\u0000+"', "1e999").replace('"\\u0000-"', "-1e999")
