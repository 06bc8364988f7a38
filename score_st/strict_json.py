"""JSON as every reader takes it, and read as if it were damaged.

Python's own has NaN and Infinity in it, which JavaScript, jq and pandas refuse, and ends in a RecursionError where it
nests too deeply.
"""

import json
import math
from typing import Any

DEPTH = 50  # of lists and objects in each other; no file of this package has 10
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


def loads(text: bytes | str) -> Any:
    """Returns what `json.loads` does.

    Args:
      text: bytes are UTF-8, and nothing else.

    Raises:
      ValueError: it is no JSON, or nests more deeply than DEPTH.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects nest too deeply") from error
    if text.count("[") + text.count("{") > DEPTH:
        _check_depth(value, DEPTH)
    return value


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError("lists or objects nest too deeply")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict | list):
            _check_depth(item, left - 1)
