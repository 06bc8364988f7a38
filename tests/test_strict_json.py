"""JSON that others read."""

import json
import math

import pytest

from score_st import config, strict_json


def test_what_nests_deeply_or_is_not_utf_8_is_a_value_error():
    value = {"a": [1, {"b": [[]]}], "c": "é"}
    assert strict_json.loads(json.dumps(value)) == strict_json.loads(json.dumps(value).encode()) == value
    assert strict_json.loads("[" * 50 + "]" * 50) and strict_json.loads("[" + "[1]," * 99 + "[2]]")[98:] == [[1], [2]]
    for depth in (60, 900, 10**5):
        for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            with pytest.raises(ValueError, match="nest too deeply"):
                strict_json.loads(text)
    for content in ("[1]".encode("utf-16"), b"\xff", b"[\xe9]", b"[1", b"", b"9" * 5000):
        with pytest.raises(ValueError):
            strict_json.loads(content)


def refuse(name):
    raise ValueError(name)


def test_what_is_no_number_is_null_and_infinity_is_read_back():
    value = {"a": math.nan, "b": [1.5, math.inf, -math.inf, (math.nan, None)], "c": "NaN \0+ Infinity", 3: True}
    text = strict_json.dumps(value)
    assert json.loads(text, parse_constant=refuse) == {
        "a": None,
        "b": [1.5, math.inf, -math.inf, [None, None]],
        "c": "NaN \0+ Infinity",
        "3": True,
    }
    assert strict_json.dumps({"a": 1, "b": [0.1]}, indent=1) == json.dumps({"a": 1, "b": [0.1]}, indent=1)


def test_a_configuration_with_infinity_is_strict(tmp_path):
    """training.k=inf; config.json gives it back."""
    settings = config.load("vp/DIGITS/ddpmpp_nll_st", {"training.k": "inf"})
    (tmp_path / "config.json").write_text(config.to_json(settings))
    json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    assert config.from_workdir(tmp_path).to_dict() == settings.to_dict()
