"""What commands show of an evaluation: tables of figures, warnings about them, and the pictures of a sweep."""

import sys
from pathlib import Path

import numpy as np
import rich
from rich.table import Column, Table

from score_st.evaluation import bits_per_dim
from score_st.reporting import image_grid

FEW = 10000  # samples, below which a Fréchet distance is biased (Chong and Forsyth 2020)


def show_bits_per_dim(result: dict) -> None:
    """Prints the figures of eval/bpd.json, their terms, and a warning for each step limit that was reached."""
    title = f"step {result['step']}, {result['images']} images, {result['dequantization']} dequantization"
    table = Table("", "bits/dim", "± images", "± repeats", "NFE", "s/image", title=title)
    number = lambda key, digits=4: "" if result.get(key) is None else f"{result[key]:.{digits}f}"
    names = [name for name in bits_per_dim.FIGURES if name in result]
    for name in names:
        errors = number(f"{name}_stderr_images"), number(f"{name}_stderr_repeats")
        table.add_row(name, number(name), *errors, number(f"{name}_nfe", 0), number(f"{name}_seconds_per_image"))
    rich.print(table)
    for name in names:
        terms = " + ".join(f"{key} {value:.4f}" for key, value in result[f"{name}_terms"].items())
        print(f"{name}, {bits_per_dim.FIGURES[name]}:\n  {terms}")
        if unreached := result.get(f"{name}_unreached"):
            limit = f"eval.max_steps={result['config']['eval']['max_steps']}"
            print(f"warning: {name}: the solver did not arrive within {limit} for images {unreached}", file=sys.stderr)


def show_quality(result: dict, dimension: int) -> None:
    """Prints the figures of eval/quality.json, and a warning if a Fréchet distance is of few images.

    Args:
      result: as in the file.
      dimension: of the features.
    """
    table = Table("", "value", "± std")
    for name, figure in result["figures"].items():
        table.add_row(name, *("" if figure[key] is None else f"{figure[key]:.5g}" for key in ("value", "std")))
        if name.startswith(("fid", "FD")) and (count := figure["samples"]) < FEW:
            singular = f", and their covariance in {dimension} dimensions is singular" if count <= dimension else ""
            print(f"warning: {name} of {count} samples, below {FEW}, is biased upwards{singular}", file=sys.stderr)
    line = "{features} features, resizing {resizing}, {samples} samples, reference {reference}"
    print(line.format(**next(iter(result["figures"].values()))))
    rich.print(table)


def show_sweep(points: dict[str, list[dict]], title: str) -> None:
    """Prints a row for each sampler of a sweep: distance and network evaluations of its points."""
    cells = [""] * max(map(len, points.values()))
    table = Table(Column("sampler", no_wrap=True), *cells, title=f"{title}, at network evaluations")
    for sampler, row in points.items():
        table.add_row(sampler, *(f"{point['distance']:.2f} at {point['nfe']:.0f}" for point in row))
    rich.print(table)


def show_widths(points: list[dict], title: str) -> None:
    """Prints a row for each of the weights of a sweep: distance, evaluations, and the step they end at."""
    table = Table("weights", "distance", "NFE", "step", title=title)
    for point in points:
        table.add_row(point["weights"], f"{point['distance']:.2f}", f"{point['nfe']:.0f}", str(point["step"]))
    rich.print(table)


def draw_widths(points: list[dict], figure: str, title: str, path: Path) -> None:
    """Draws the distance by the width of the average, and weights without a width as horizontal lines.

    Args:
      points: `weights`, `width` (or None) and `distance`.
      figure: the distance's name.
      title: of the plot.
      path: the PNG.
    """
    from matplotlib.figure import Figure

    plot = Figure(figsize=(8, 5), layout="constrained")
    axes = plot.subplots()
    widths = sorted((point["width"], point["distance"]) for point in points if point["width"] is not None)
    if widths:
        axes.plot(*zip(*widths, strict=True), "o-", label="average of this width")
    for point, style in zip((p for p in points if p["width"] is None), ("--", ":"), strict=False):
        axes.axhline(point["distance"], linestyle=style, color="black", label=point["weights"])
    axes.set(xlabel="width of the average, relative to the training", ylabel=figure, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    plot.savefig(path, dpi=130)


def draw_sweep(points: dict[str, list[dict]], figure: str, title: str, num_levels: int, folder: Path) -> None:
    """Writes the curves samplers.png and the images samplers_images.png of a sweep.

    Args:
      points: `nfe`, `distance` and `images` of each point, by sampler.
      figure: the distance's name.
      title: of the plot.
      num_levels: of the images.
      folder: where the files go.
    """
    from matplotlib.figure import Figure

    plot = Figure(figsize=(8, 5), layout="constrained")
    axes = plot.subplots()
    for marker, (sampler, row) in zip("os^vDPX*<>" * 9, points.items(), strict=False):
        axes.plot([point["nfe"] for point in row], [point["distance"] for point in row], f"{marker}-", label=sampler)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=figure, title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    plot.savefig(folder / "samplers.png", dpi=130)
    rows = [np.concatenate([point["images"] for point in row]) for row in points.values()]
    width = max(map(len, rows))
    rows = [np.concatenate([row, np.zeros((width - len(row), *row.shape[1:]), row.dtype)]) for row in rows]
    image_grid.grid(np.concatenate(rows).astype(np.uint8), num_levels, folder / "samplers_images.png", width)
