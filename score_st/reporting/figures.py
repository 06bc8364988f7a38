"""Charts of runs: PNG files, and SVG for the page of a run."""

import dataclasses
import io
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_by_time(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes a PNG of the loss over t of several runs.

    Args:
      curves: by name, the content of eval/loss_by_time.json: mean and standard deviation over the test images.
      path: the PNG file.
    """
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
    left.set(xscale="log", yscale="log", xlabel="t", ylabel="½ ‖σ s + z‖² per dimension [nats]", title="Loss at t")
    for right in rest:
        right.set(xscale="log", xlabel="t", ylabel=f"relative to {next(iter(curves))}", title="Ratio of the losses")
    for axes in (left, *rest):
        axes.legend()
    _save(figure, path)


def bpd_by_time(curve: dict[str, Any], path: Path) -> None:
    """Writes a PNG of what each t adds to the NELBO, and of the gradient's variance, plain and likelihood-weighted.

    Args:
      curve: the content of eval/loss_by_time.json.
      path: the PNG file.
    """
    from matplotlib.figure import Figure

    t, weight = np.asarray(curve["t"]), np.asarray(curve["weight"])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(t, np.asarray(curve["bits"]) * math.log(10))
    left.set(xscale="log", xlabel="t", ylabel="bits/dim per decade of t", title="Diffusion term of the NELBO")
    if "gradient_variance" in curve:
        variance = np.asarray(curve["gradient_variance"])
        right.plot(t, variance, label="½ ‖σ s + z‖²")
        right.plot(t, variance * weight**2, label="½ g²/σ² ‖σ s + z‖²")
        right.legend()
    right.set(xscale="log", yscale="log", xlabel="t", ylabel="variance per dimension", title="Gradient of the loss")
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


# the colors that matplotlib draws with, and the CSS variables of the page that replace them
COLORS = {"#010101": "ink", "#020202": "rule"} | {f"#0201{i:02x}": f"s{i}" for i in range(1, 9)}
INK, RULE, *SERIES = COLORS
DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # color alone must not tell curves apart
MARKERS = "os^vDPX*"
MAX_POINTS = 400  # of a curve; beyond that, neighbors are averaged
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 11, "text.color": INK}
STYLE |= {"axes.edgecolor": RULE, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"xtick.color": RULE, "ytick.color": RULE, "xtick.labelcolor": INK, "ytick.labelcolor": INK}
STYLE |= {"grid.color": RULE}


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Values y over x, in ascending order of x; `style` numbers its color and dashes, `band` is (lower, upper)."""

    name: str
    x: Float[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    style: int = 0
    band: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]] | None = None
    marker: str = ""

    def thinned(self) -> "Curve":
        """Returns a curve of at most MAX_POINTS points, each the mean of its neighbors."""
        if len(self.x) <= MAX_POINTS:
            return self
        mean = lambda values: np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])
        return dataclasses.replace(self, x=mean(self.x), y=mean(self.y), band=None)

    def description(self) -> str:
        """Returns the curve in words: its ends and extremes."""
        lowest, highest = (f"{self.x[i]:,.4g}" for i in (np.argmin(self.y), np.argmax(self.y)))
        ends = f"{self.y[0]:.4g} at {self.x[0]:,.4g} to {self.y[-1]:.4g} at {self.x[-1]:,.4g}"
        extremes = f"lowest {self.y.min():.4g} at {lowest}, highest {self.y.max():.4g} at {highest}"
        return f"{self.name}: from {ends}, {extremes}"


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Curves that share a pair of axes; `log` asks for a logarithmic y axis."""

    label: str
    curves: list[Curve]
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """An SVG image: what it shows in words, its viewBox, and the markup inside the svg element."""

    description: str
    view_box: str
    markup: str


def tick(value: float, _: float | None = None) -> str:
    """Formats a tick of a linear axis: 0.5, 20k."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:.4g}".replace("-", "−")


def log_tick(value: float, _: float | None = None) -> str:
    """Formats a tick of a logarithmic axis: 0.5, 10⁻⁵."""
    exponent = math.log10(value)
    if abs(exponent - round(exponent)) < 1e-9 and not -2 <= exponent < 3:
        return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return tick(value)


def _scale(axes: "Axes", name: str, log: bool, values: Float[np.ndarray, " N"]) -> None:
    """Scales the x or y axis; a logarithmic one gets more ticks where powers of ten would be few."""
    from matplotlib import ticker

    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    if log:
        axes.set(**{f"{name}scale": "log"})
        decades = np.log10(values.max() / values.min())
        subs = (1, 1.5, 2, 3, 4, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 2 else (1,)
        low, high = axis.get_view_interval()
        narrow = high < 1.4 * low  # where none of these multiples may lie
        linear, powers = ticker.MaxNLocator(4, steps=[1, 2, 5, 10]), ticker.LogLocator(subs=subs, numticks=7)
        axis.set_major_locator(linear if narrow else powers)
        axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(log_tick if log else tick)


def chart(panels: list[Panel], xlabel: str, x_log: bool = False) -> Chart:
    """Draws panels one below the other, in the colors of the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [dataclasses.replace(panel, curves=[curve.thinned() for curve in panel.curves]) for panel in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.4 + 1.2 * len(panels)), layout="constrained")
        ratios = [2] + [1] * (len(panels) - 1)
        rows = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            for curve in panel.curves:
                color, dashes = SERIES[curve.style % len(SERIES)], DASHES[curve.style % len(DASHES)]
                line = {"color": color, "linestyle": dashes, "linewidth": 1.6}
                axes.plot(curve.x, curve.y, marker=curve.marker, markersize=4, **line)
                if curve.band:
                    axes.fill_between(curve.x, *curve.band, color=color, alpha=0.15, linewidth=0)
            values = np.concatenate([curve.y for curve in panel.curves])
            _scale(axes, "y", panel.log and bool(values.min() > 0), values)
            axes.set_ylabel(panel.label[:30])
            axes.grid(linewidth=0.6)
        _scale(rows[-1], "x", x_log, np.concatenate([curve.x for panel in panels for curve in panel.curves]))
        rows[-1].set_xlabel(xlabel)
        curves = ". ".join(f"{panel.label}, {curve.description()}" for panel in panels for curve in panel.curves)
        return _svg(figure, f"Over {xlabel}. {curves}.")


def waterfall(terms: dict[str, float]) -> Chart:
    """Draws bars in bits/dim that lead from zero to the sum of the terms."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ends = list(itertools.accumulate(terms.values()))
    colors = [SERIES[0 if value > 0 else 1] for value in terms.values()] + [INK]
    values = [f"{value:+.4f}".replace("-", "−") for value in terms.values()]
    names = [f"{name[:30]}  {value}" for name, value in zip(terms, values, strict=True)] + [f"sum  {ends[-1]:.4f}"]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.7 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(names)), [*terms.values(), ends[-1]], 0.6, [0, *ends[:-1], 0], color=colors, zorder=2)
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color=INK, linewidth=0.8)
        low, high = min(0, *ends), max(0, *ends)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.invert_yaxis()
        axes.set_xlabel("bits/dim")
        axes.xaxis.set_major_formatter(tick)
        axes.tick_params(left=False)
        axes.grid(axis="x", linewidth=0.6)
        return _svg(figure, f"Bits/dim: {', '.join(names)}.")


def bars(values: dict[str, tuple[float, float, float]], xlabel: str) -> Chart:
    """Draws a bar for each value, from zero, with a line from its lower to its upper quartile.

    Args:
      values: (median, lower quartile, upper quartile) by name.
      xlabel: the unit.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [f"{name[:48]}  {median:,.4g}" for name, (median, _, _) in values.items()]
    medians = [median for median, _, _ in values.values()]
    errors = np.array([(median - low, high - median) for median, low, high in values.values()]).T
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.7 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(names)), medians, 0.6, xerr=errors, ecolor=INK, color=SERIES[0], zorder=2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_formatter(tick)
        axes.tick_params(left=False)
        axes.grid(axis="x", linewidth=0.6)
        return _svg(figure, f"{xlabel}: {', '.join(names)}.")


@dataclasses.dataclass(frozen=True)
class Dots:
    """Values, such as one a seed, with their mean and its interval (NaN for none)."""

    name: str
    values: Sequence[float]
    mean: float
    low: float
    high: float


def _dots(figure: "Figure", panels: dict[str, list[Dots]], ink: str, color: str) -> None:
    """Draws panels, three side by side, that share their rows; values are pale, the mean and its interval bold."""
    names = list(dict.fromkeys(dots.name for rows in panels.values() for dots in rows))
    grid = figure.subplots(*_dots_grid(panels), sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (label, rows) in zip(grid.flat, panels.items(), strict=False):
        for dots in rows:
            y = names.index(dots.name)
            axes.plot(dots.values, [y] * len(dots.values), "o", color=color, alpha=0.35, markersize=4)
            axes.plot([dots.low, dots.high], [y, y], color=ink, linewidth=1.6)
            axes.plot([dots.mean], [y], "|", color=ink, markersize=10, markeredgewidth=1.6)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=4)  # so that long numbers do not touch
        axes.xaxis.set_major_formatter(tick)
        axes.grid(axis="x", linewidth=0.6)
    grid[0, 0].set_yticks(range(len(names)), [name[:48] for name in names])
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)  # the first one on top, with half a row around all


def _dots_grid(panels: dict[str, list[Dots]]) -> tuple[int, int]:
    return -(-len(panels) // 3), min(len(panels), 3)


def _dots_size(panels: dict[str, list[Dots]]) -> tuple[float, float]:
    lines, columns = _dots_grid(panels)
    return 2.4 + 3.2 * columns, lines * (0.9 + 0.3 * max(map(len, panels.values())))


def dots(panels: dict[str, list[Dots]]) -> Chart:
    """Draws values, means and intervals in panels side by side, by their labels, in the colors of the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=_dots_size(panels), layout="constrained")
        _dots(figure, panels, INK, SERIES[0])
        means = (f"{label}, {row.name}: {row.mean:.4g}" for label, rows in panels.items() for row in rows)
        return _svg(figure, f"Means over seeds. {'; '.join(means)}.")


def write_dots(panels: dict[str, list[Dots]], path: Path) -> None:
    """Writes the same as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_dots_size(panels), layout="constrained")
    _dots(figure, panels, "black", "tab:blue")
    _save(figure, path)


def _svg(figure: "Figure", description: str) -> Chart:
    """Saves a figure as SVG that takes its colors, fonts and width from the page."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters that matplotlib's font lacks and the browser's has
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    head, _, text = file.getvalue().partition("<defs>")
    for pattern, replacement in (
        (r"<style.*?</style>", ""),
        (r'<g id="[^"]*"', "<g"),  # names such as axes_1, the same in every figure
        (r' transform="rotate\(-0[^"]*"|font-family: [^;]*; ', ""),
        ("|".join(COLORS), lambda match: f"var(--{COLORS[match[0]]})"),
        (r"\s*\n\s*", "\n"),
    ):
        text = re.sub(pattern, replacement, text)
    view_box = head.partition('viewBox="')[2].partition('"')[0]
    return Chart(description, view_box, f"<defs>{text.strip().removesuffix('</svg>')}")
