"""JSON that others read."""

import json
import math

from score_st import config, strict_json


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
