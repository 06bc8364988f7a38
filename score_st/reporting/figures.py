"""Curves of runs: as PNG, and as SVG for `report`."""

import dataclasses
import io
import itertools
import math
import re
import warnings
from html import escape
from pathlib import Path

import numpy as np


def loss_by_time(curves: dict[str, dict], path: Path):
    """A PNG of the loss over t of several runs: mean over the test images and one standard deviation."""
    from matplotlib.figure import Figure

    panels = 1 + (len(curves) > 1)
    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    left, *rest = np.atleast_1d(figure.subplots(1, panels))
    for name, curve in curves.items():
        t, loss, std = (np.asarray(curve[key]) for key in ("t", "loss", "std"))
        name = name.replace("$", r"\$")
        (line,) = left.plot(t, loss, label=name)
        left.fill_between(t, np.maximum(loss - std, 1e-6), loss + std, color=line.get_color(), alpha=0.15, linewidth=0)
        for right in rest:
            right.plot(t, loss / np.asarray(next(iter(curves.values()))["loss"]), label=name)
    left.set(xscale="log", yscale="log", xlabel="t", ylabel="½ ‖σ s + z‖² a dimension [nats]", title="Loss by time")
    for right in rest:
        right.set(xscale="log", xlabel="t", ylabel=f"relative to {next(iter(curves))}", title="Side by side")
    for axes in (left, *rest):
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def bpd_by_time(curve: dict, path: Path):
    """A PNG of what each time adds to the NELBO, and of the gradient's variance, plain and likelihood-weighted."""
    from matplotlib.figure import Figure

    t, weight = np.asarray(curve["t"]), np.asarray(curve["weight"])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(t, np.asarray(curve["bits"]) * math.log(10))
    left.set(xscale="log", xlabel="t", ylabel="bits/dim a decade of t", title="Diffusion term of the NELBO")
    if "gradient_variance" in curve:
        variance = np.asarray(curve["gradient_variance"])
        right.plot(t, variance, label="½ ‖σ s + z‖²")
        right.plot(t, variance * weight**2, label="½ g²/σ² ‖σ s + z‖²")
        right.legend()
    right.set(xscale="log", yscale="log", xlabel="t", ylabel="variance", title="Gradient of the loss a dimension")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


# what matplotlib draws with, and the page's CSS variable for it
COLOURS = {"#010101": "ink", "#020202": "rule"} | {f"#0201{i:02x}": f"s{i}" for i in range(1, 9)}
INK, RULE, *SERIES = COLOURS
DASHES = (
    "-",
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
)  # with the colours, so that no curve has its colour alone
POINTS = 400  # of a curve; more are averaged
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 11, "axes.edgecolor": RULE, "text.color": INK}
STYLE |= {"axes.labelcolor": INK, "xtick.color": RULE, "ytick.color": RULE, "axes.spines.top": False}
STYLE |= {"xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.right": False, "grid.color": RULE}


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Numbers y over x, sorted; `band` is a pair of lower and upper ends; `style` the number of its colour."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: int = 0
    band: tuple[np.ndarray, np.ndarray] | None = None
    marker: str = ""

    def thinned(self) -> "Curve":
        """Means of neighbours where there are more than POINTS."""
        if len(self.x) <= POINTS:
            return self
        mean = lambda a: np.array([part.mean() for part in np.array_split(a, POINTS)])
        return dataclasses.replace(self, x=mean(self.x), y=mean(self.y), band=None)

    def said(self) -> str:
        """The curve in words."""
        at, low, high = (f"{self.x[i]:,.4g}" for i in (0, np.argmin(self.y), np.argmax(self.y)))
        ends = f"{self.y[0]:.4g} at {at} to {self.y[-1]:.4g} at {self.x[-1]:,.4g}"
        return f"{self.name}: from {ends}, lowest {self.y.min():.4g} at {low}, highest {self.y.max():.4g} at {high}"


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Curves on a pair of axes."""

    label: str
    curves: list[Curve]
    log: bool = False


def number(value: float, _=None) -> str:
    """For ticks: 0.5, 20k."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:.4g}".replace("-", "−")


def power(value: float, _=None) -> str:
    """For ticks of logarithmic axes: 0.5, 10⁻⁵."""
    exponent = math.log10(value)
    if abs(exponent - round(exponent)) < 1e-9 and not -2 <= exponent < 3:
        return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return number(value)


def scale(axis, log: bool, values: np.ndarray):
    """A linear axis, or a logarithmic one with more ticks than powers of ten where these would be few."""
    from matplotlib import ticker

    if log:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        decades = np.log10(values.max() / values.min())
        subs = (1, 1.5, 2, 3, 4, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 2 else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
        axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(power if log else number)


def chart(panels: list[Panel], xlabel: str, x_log: bool = False) -> str:
    """Panels one below the other as an SVG element in the page's colours, with their curves in words."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [dataclasses.replace(panel, curves=[c.thinned() for c in panel.curves]) for panel in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.4 + 1.2 * len(panels)), layout="constrained")
        ratios = [2] + [1] * (len(panels) - 1)
        rows = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            for curve in panel.curves:
                style, dash = SERIES[curve.style % len(SERIES)], DASHES[curve.style % len(DASHES)]
                axes.plot(
                    curve.x, curve.y, color=style, linestyle=dash, linewidth=1.6, marker=curve.marker, markersize=4
                )
                if curve.band:
                    axes.fill_between(curve.x, *curve.band, color=style, alpha=0.15, linewidth=0)
            values = np.concatenate([curve.y for curve in panel.curves])
            scale(axes.yaxis, panel.log and bool(values.min() > 0), values)
            axes.set_ylabel(panel.label[:30])
            axes.grid(linewidth=0.6)
        scale(rows[-1].xaxis, x_log, np.concatenate([curve.x for panel in panels for curve in panel.curves]))
        rows[-1].set_xlabel(xlabel)
        words = ". ".join(f"{panel.label}, {curve.said()}" for panel in panels for curve in panel.curves)
        return svg(figure, f"Over {xlabel}. {words}.")


def waterfall(terms: dict[str, float]) -> str:
    """Bars from nothing to the sum of the terms, as `chart`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ends = list(itertools.accumulate(terms.values()))
    colours = [SERIES[0 if value > 0 else 1] for value in terms.values()] + [INK]
    numbers = [f"{value:+.4f}".replace("-", "−") for value in terms.values()]
    names = [f"{name[:30]}  {value}" for name, value in zip(terms, numbers, strict=True)] + [f"sum  {ends[-1]:.4f}"]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.7 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(names)), [*terms.values(), ends[-1]], 0.6, [0, *ends[:-1], 0], color=colours, zorder=2)
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color=INK, linewidth=0.8)
        low, high = min(0, *ends), max(0, *ends)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.invert_yaxis()
        axes.set_xlabel("bits/dim")
        axes.xaxis.set_major_formatter(number)
        axes.tick_params(left=False)
        axes.grid(axis="x", linewidth=0.6)
        return svg(figure, f"Bits/dim: {', '.join(names)}.")


def svg(figure, words: str) -> str:
    """An SVG element that takes colours, fonts and width of the page, with `words` for those who don't see it."""
    file, unique = io.StringIO(), f"f{next(COUNT)}-"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that matplotlib's font lacks and the browser's has
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{unique}", text)
    text = re.sub(r' transform="rotate\(-0[^"]*"|font-family: [^;]*; ', "", text)
    text = re.sub(r"#0[12]0[12][0-9a-f]{2}", lambda found: f"var(--{COLOURS[found[0]]})", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    return f'<svg role="img" aria-label="{escape(words)}" {box}>{text[text.index(">") + 1 :]}'


COUNT = itertools.count()
