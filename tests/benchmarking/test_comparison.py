"""Two results side by side."""

import copy

import pytest

from score_st.benchmarking import comparison
from score_st.benchmarking.timing import Number

NUMBERS = {
    "step": {
        "seconds": vars(Number(2, 1.8, 2.2, 9, "s", "lower")),
        "mfu": vars(Number(0.5, 0.4, 0.6, 9, "", "higher")),
    },
    "nll": {"nfe": vars(Number(100, 90, 110, 4, "NFE", "lower"))},
}
RESULT = {
    "numbers": NUMBERS,
    "machine": {"device_kind": "cpu", "devices": 1, "versions": {"jax": "1"}},
    "settings": {"data": {"dataset": "DIGITS"}, "training": {"k": 1.0}},
    "subject": {"images": "DIGITS", "weights": "random"},
}


def scaled(factor):
    """The result with all numbers times a factor."""
    result = copy.deepcopy(RESULT)
    for numbers in result["numbers"].values():
        for number in numbers.values():
            number.update({key: number[key] * factor for key in ("median", "low", "high")})
    return result


def test_a_result_against_itself():
    found = comparison.compare(RESULT, RESULT, "old.json")
    assert found["notes"] == [] and found["file"] == "old.json"
    for part, ratios in found["ratios"].items():
        assert ratios.keys() == NUMBERS[part].keys()
        for name, ratio in ratios.items():
            number = NUMBERS[part][name]
            assert ratio["median"] == 1 and ratio["verdict"] == "no difference seen"
            assert ratio["low"] < 1 < ratio["high"] and ratio["low"] == pytest.approx(number["low"] / number["high"])


@pytest.mark.parametrize(
    ("factor", "verdicts"), [(2, ("worse", "better", "worse")), (0.4, ("better", "worse", "better"))]
)
def test_a_scaled_result(factor, verdicts):
    ratios = comparison.compare(scaled(factor), RESULT, "old.json")["ratios"]
    seconds, mfu, nfe = ratios["step"]["seconds"], ratios["step"]["mfu"], ratios["nll"]["nfe"]
    assert seconds["median"] == pytest.approx(factor) and mfu["median"] == pytest.approx(factor)
    assert (seconds["verdict"], mfu["verdict"], nfe["verdict"]) == verdicts


def test_quartiles_that_overlap_show_no_difference():
    ratio = comparison.ratio(NUMBERS["step"]["seconds"], scaled(1.15)["numbers"]["step"]["seconds"])
    assert ratio.verdict == "no difference seen" and ratio.median == pytest.approx(1 / 1.15)


def test_few_measurements_are_said():
    one = vars(Number(2, 2, 2, 1, "s", "lower"))
    assert comparison.ratio(one, NUMBERS["step"]["seconds"] | {"low": 3, "median": 3, "high": 3}).verdict == (
        "better (fewer than 3 measurements)"
    )


def test_what_else_differs():
    other = copy.deepcopy(RESULT)
    other["machine"] |= {"device_kind": "TPU v4", "versions": {"jax": "2"}}
    other["settings"]["training"]["k"] = 2.0
    other["subject"]["weights"] = "ema"
    del other["numbers"]["nll"]
    assert comparison.notes(RESULT, other) == [
        "different machine: device_kind='cpu' (not 'TPU v4')",
        "different versions: jax='1' (not '2')",
        "different settings: training.k=1.0 (not 2.0)",
        "different subject: weights='random' (not 'ema')",
        "the earlier result lacks nll: nfe",
    ]
