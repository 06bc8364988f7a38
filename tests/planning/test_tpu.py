"""Topologies and the roofline."""

import pytest

from score_st.planning import tpu


def test_roofline():
    collectives = [{"kind": "all-reduce", "bytes": 9e9, "group": 16, "times": 2}]
    result = {"flops": 197e12, "bytes": 0.819e12 / 2, "collectives": collectives, "forward": 197e12 / 4, "passes": 1}
    estimate = tpu.estimate(tpu.topology("v5e:4x4"), result)
    links = 2 * 2 * 15 / 16 * 9e9 / (2 * 4.5e10)
    assert estimate["step"] == pytest.approx(1 + links) and estimate["memory"] == pytest.approx(0.5)
    assert estimate["bound"] == "arithmetic" and estimate["mfu"] == pytest.approx(0.75 / (1 + links))
    assert tpu.topology("v5e:16x16").links == 4 and tpu.topology("v4:2x2x2").links == 3
