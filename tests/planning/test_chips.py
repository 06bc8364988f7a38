"""Peaks of chips by JAX's names for them."""

import pytest

from score_st.planning import chips


@pytest.mark.parametrize(
    ("kind", "arithmetic", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.7),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "float32", 66.9),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v5", "float32", 76.5),
        ("TPU v6 lite", "bfloat16", 918),
    ],
)
def test_peak(kind, arithmetic, teraflops):
    assert chips.peak(kind, arithmetic) == pytest.approx(teraflops * 1e12)


def test_unknown_chips_have_none():
    assert chips.peak("cpu", "float32") is None
    assert chips.peak("TPU v4", "tf32") is None
    assert chips.peak("cpu", "float32", {"cpu": {"float32": 2e9}}) == 2e9


@pytest.mark.parametrize(
    ("platform", "dtype", "precision", "expected"),
    [
        ("cpu", "float32", None, "float32"),
        ("cpu", "bfloat16", None, "bfloat16"),
        ("gpu", "float32", None, "tf32"),
        ("gpu", "float32", "highest", "float32"),
        ("gpu", "bfloat16", "highest", "bfloat16"),
        ("tpu", "float32", None, "bfloat16"),
        ("tpu", "float32", "float32", "float32"),
    ],
)
def test_arithmetic(platform, dtype, precision, expected):
    assert chips.arithmetic(platform, dtype, precision) == expected
