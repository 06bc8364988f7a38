"""Charts: thin enough for a page, and of every kind."""

import re

import numpy as np
from PIL import Image

from score_st.reporting import figures


def test_long_curves_are_thinned():
    x = np.arange(100_000.0)
    chart = figures.chart([figures.Panel("y", [figures.Curve("a", x, 1 + x % 7)])], "x")
    assert len(chart.markup) < 40_000 and "highest 4.0" in chart.description


def test_colors_of_the_page():
    """Every color of a chart is a variable of the page's CSS, and its text has the page's font."""
    x = np.geomspace(1e-3, 1, 5)
    curves = [figures.Curve(str(i), x, x + i, i, band=(x, x + 2 * i)) for i in range(9)]
    for chart in (
        figures.chart([figures.Panel("y", curves, True)], "x", True),
        figures.waterfall({"a": 2, "b": -1.5}),
        figures.bars({"a": (2, 1, 4), "b": (3, 3, 3)}, "images/s"),
    ):
        assert "#0" not in chart.markup.replace("url(#", "").replace('href="#', "")
        assert "var(--s1)" in chart.markup and "var(--ink)" in chart.markup and "font-family" not in chart.markup
        assert chart.view_box.startswith("0 0 ")


def test_bars_say_their_values():
    chart = figures.bars({"ode": (1234.5, 1000, 1300), "ddim": (2, 1.5, 2.5)}, "images/s")
    assert chart.description == "images/s: ode  1,234, ddim  2." and "ode" in chart.markup


def test_ticks():
    assert [figures.tick(value) for value in (0.5, -2, 20_000, 3e6)] == ["0.5", "−2", "20k", "3M"]
    assert [figures.log_tick(value) for value in (0.5, 1e-5, 100, 1e4)] == ["0.5", "10⁻⁵", "100", "10⁴"]


def test_a_narrow_logarithmic_axis_has_few_ticks():
    x = np.arange(5.0)
    markup = figures.chart([figures.Panel("τ", [figures.Curve("τ", x, 0.0031 + x * 5e-5)], True)], "step").markup
    ticks = [text for text in re.findall(r">([^<>]+)</text>", markup) if text.startswith("0.003")]
    assert ticks == ["0.0031", "0.0032", "0.0033"]
    constant = figures.chart([figures.Panel("τ", [figures.Curve("τ", x, 0 * x + 2)], True)], "step").markup
    assert ">2<" in constant
    figures.chart([figures.Panel("y", [figures.Curve("y", x, 1 + 0.01 * x, band=(x + 1e-3, 1 + x))], True)], "step")


def test_pictures_of_curves(tmp_path):
    t = np.geomspace(1e-5, 1, 5)
    curve = {name: (t**0.1).tolist() for name in ("t", "loss", "std", "weight", "bits", "gradient_variance")}
    figures.loss_by_time({"a": curve, "$b^$": curve}, tmp_path / "new/loss.png")
    figures.bpd_by_time(curve, tmp_path / "new/bpd.png")
    for name in ("loss", "bpd"):
        assert np.asarray(Image.open(tmp_path / f"new/{name}.png").convert("L")).std() > 10
