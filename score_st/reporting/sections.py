"""The sections of the page of runs, as plain values; `templates/` turns them into HTML, and escapes all of it.

A section is a function of the runs that returns the blocks to show, and nothing where the runs have no data for it.
The first run is the one that others are compared with.
"""

import base64
import dataclasses
import io
import itertools
import math
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from score_st import strict_json
from score_st.config import as_json, default, flatten
from score_st.reporting import figures
from score_st.reporting.figures import Curve, Panel
from score_st.reporting.run import Run
from score_st.runtime.progress import clock

BPD: dict[str, str] = {
    "nll": "NLL",
    "nll_from_x0": "NLL from x₀",
    "nelbo": "NELBO",
    "nelbo_without_residual": "NELBO without residual",
}
MAX_PICTURES, MAX_PIXELS = 8, 640  # pictures of samples during training, and the longer side of a picture


Block = dict[str, Any]  # "macro" names a macro of templates/blocks.html, other keys are what it shows


def table(caption: str, head: Sequence[str], rows: list[list[Any]], numeric: bool = True) -> list[Block]:
    """Returns a table, or nothing if it has no rows; the first cell of a row is its heading."""
    return [{"macro": "table", "caption": caption, "head": head, "rows": rows, "numeric": numeric}] if rows else []


def figure(caption: str, panels: list[Panel], xlabel: str, x_log: bool = False) -> list[Block]:
    """Returns a chart of the panels that have curves, or nothing if none has."""
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return []
    legend = {curve.name: curve.style % 8 + 1 for panel in panels for curve in panel.curves}
    chart = figures.chart(panels, xlabel, x_log)
    return [{"macro": "figure", "caption": caption, "chart": chart, "legend": legend if len(legend) > 1 else {}}]


def picture(run: Run, path: Path, caption: str, alt: str) -> list[Block]:
    """Returns a picture, scaled down if it is large; or nothing, with a note, if the file is broken."""
    try:
        content = path.read_bytes()
        image: Image.Image = Image.open(path)
        kind = {"PNG": "png", "GIF": "gif"}[image.format or ""]
        image.load()
        if max(image.size) > MAX_PIXELS:
            image = image.convert("RGB")
            image.thumbnail((MAX_PIXELS, MAX_PIXELS))
            image.save(file := io.BytesIO(), "JPEG", quality=90)
            content, kind = file.getvalue(), "jpeg"
    except Exception as error:  # Pillow raises many kinds
        run.notes.append(f"{path.name} of {run.name} left out: {error}")
        return []
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return [{"macro": "picture", "caption": caption, "alt": alt, "size": image.size, "source": source}]


def grid(blocks: Iterable[Block], kind: str = "grid") -> list[Block]:
    """Returns the blocks side by side, if there are any; `kind` is their CSS class: grid, or strip for small ones."""
    blocks = list(blocks)
    return [{"macro": "grid", "kind": kind, "blocks": blocks}] if blocks else []


def details(title: str, blocks: list[Block]) -> list[Block]:
    """Returns the blocks, if there are any, collapsed under their title."""
    return [{"macro": "details", "title": title, "blocks": blocks}] if blocks else []


def text(paragraph: str) -> list[Block]:
    """Returns a paragraph."""
    return [{"macro": "text", "text": paragraph}]


def number(value: Any, digits: int = 4) -> str:
    """Formats a number, and anything else as an empty cell."""
    return f"{value:z.{digits}f}".replace("-", "−") if isinstance(value, int | float) else ""


def plus_minus(result: dict[str, Any], key: str) -> str:
    """Formats a value of eval/bpd.json with the larger one of its standard errors."""
    errors = [result.get(f"{key}_stderr_{source}") for source in ("images", "repeats")]
    error = max((error for error in errors if error is not None), default=None)
    return number(result.get(key), 3) + ("" if error is None else f" ± {error:.3f}")


def setting(value: Any) -> str:
    """Formats a setting as the command line takes it."""
    return f"({', '.join(map(setting, value))})" if isinstance(value, list) else "–" if value == "" else str(value)


def with_run(runs: list[Run], run: Run, name: str) -> str:
    """Returns the name, after that of its run if there are several."""
    return f"{run.name}, {name}" if len(runs) > 1 else name


def valid(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns the points of eval/samplers.json without those of samplers that diverged, whose distance is NaN."""
    return [point for point in points if point["distance"] > 0]


def training_seconds(run: Run) -> float:
    """Returns the time spent on training, by the logged speeds."""
    steps, speed = run.column("steps_per_s")
    return float(np.sum(np.diff(steps, prepend=0) / np.maximum(speed, 1e-9)))


def headline(run: Run) -> dict[str, tuple[str, str]]:
    """Returns the main figures of a run: value and remark by name."""
    values, steps = {}, run.column("loss")[0]
    for key, name in BPD.items():
        if key in run.bpd and ("_" not in key or key.split("_")[0] not in run.bpd):
            values[name] = plus_minus(run.bpd, key), f"bits/dim, {run.bpd['images']} test images"
    for name, entry in run.quality.get("figures", {}).items():
        values[name] = f"{entry['value']:.4g}", f"{entry['samples']} samples"
    if points := valid([point for points in run.samplers.get("samplers", {}).values() for point in points]):
        best = min(points, key=lambda point: point["distance"])
        remark = f"{best['nfe']:.0f} network evaluations, {run.samplers['num']} samples"
        values[f"best {run.samplers['figure']}"] = f"{best['distance']:.2f}", remark
    if len(steps):
        total = run.config.get("training.n_iters")
        values["updates"] = f"{steps[-1]:,.0f}", f"of {total:,}" if isinstance(total, int) else ""
    if seconds := int(training_seconds(run)):
        values["training time"] = clock(seconds), f"{np.median(run.column('steps_per_s')[1]):.3g} steps/s"
    return values


def summary(runs: list[Run]) -> list[Block]:
    """The main figures."""
    headlines = [headline(run) for run in runs]
    if len(runs) == 1:
        return [{"macro": "tiles", "tiles": headlines[0]}] if headlines[0] else []
    cell = lambda value, remark="": f"{value} ({remark})" if remark else value
    names = dict.fromkeys(itertools.chain(*headlines))
    rows = [[name, *(cell(*values.get(name, ["–"])) for values in headlines)] for name in names]
    return table("Figures side by side", ["figure", *(run.name for run in runs)], rows)


def training(runs: list[Run]) -> list[Block]:
    """The curves of training."""
    curves = lambda key: [curve for style, run in enumerate(runs) for curve in run.curves(key, style)]
    loss = [Panel("loss", curves("loss"), True), Panel("τ", curves("tau"), True)]
    test = [Panel("loss", curves("eval_loss"), True), Panel("‖gradient‖", curves("gradient_norm"), True)]
    bits = [Panel(f"{BPD[key]} [bits/dim]", curves(key)) for key in ("nll", "nelbo")]
    about_loss = "Training loss, comparable only for the same prior of τ, and the geometric mean of the sampled τ"
    about_test = "Loss of a test batch at τ = ε, and the norm of the gradient before clipping"
    return grid(
        figure(about_loss, loss, "step")
        + figure(about_test, test, "step")
        + figure("Bits/dim at snapshots", bits, "step")
    )


def over_time(runs: list[Run]) -> list[Block]:
    """The loss, its gradient and the NELBO over the diffusion time t."""

    def curves(key: str, factor: Callable[[dict[str, np.ndarray]], Any] = lambda _: 1.0) -> list[Curve]:
        arrays = [{name: np.asarray(y, float) for name, y in run.loss_by_time.items()} for run in runs]
        pairs = enumerate(zip(runs, arrays, strict=True))
        return [Curve(run.name, c["t"], c[key] * factor(c), style) for style, (run, c) in pairs if key in c]

    loss, relative = [], []
    for curve, run in zip(curves("loss"), [run for run in runs if "loss" in run.loss_by_time], strict=True):
        std = np.asarray(run.loss_by_time["std"])
        band = np.maximum(curve.y - std, curve.y.min() / 10), curve.y + std
        loss.append(dataclasses.replace(curve, band=band))
    if len(loss) > 1 and all(np.array_equal(loss[0].x, curve.x) for curve in loss):
        relative = [dataclasses.replace(curve, y=curve.y / loss[0].y, band=None) for curve in loss]
    bits = curves("bits", lambda _: math.log(10))
    plain, weighted = curves("gradient_variance"), curves("gradient_variance", lambda c: c["weight"] ** 2)
    charts = (
        ("Loss at t over the test images, mean and one standard deviation", Panel("½‖σs + z‖²/d", loss, True)),
        (f"Loss relative to that of {runs[0].name}", Panel("ratio", relative)),
        ("What each t adds to the NELBO", Panel("bits/dim per decade", bits)),
        ("Variance of the gradient of ½‖σs + z‖²/d at t", Panel("variance", plain, True)),
        ("The same with the likelihood weighting g²/σ²", Panel("variance", weighted, True)),
    )
    return grid(block for caption, panel in charts for block in figure(caption, [panel], "t", True))


def samples(runs: list[Run]) -> list[Block]:
    """Pictures of samples at snapshots, and those of `score_st.sample`."""
    blocks: list[Block] = []
    for run in runs:
        paths = (path for path in (run.path / "snapshots").glob("*.png") if path.stem.isdigit())
        paths_by_step = {int(path.stem): path for path in sorted(paths, key=lambda path: int(path.stem))}
        steps, pictures = list(paths_by_step), []
        nll = dict(zip(*run.column("nll"), strict=True))
        for i in np.unique(np.linspace(0, len(steps) - 1, MAX_PICTURES).round().astype(int)) if steps else []:
            bits = nll.get(steps[i])
            caption = f"after {steps[i]:,} updates" + (f": {bits:.3f} bits/dim" if bits else "")
            pictures += picture(run, paths_by_step[steps[i]], caption, f"Samples of {run.name} {caption}")
        if not steps and (path := run.path / "samples.png").is_file():
            caption = "at the last snapshot"
            pictures += picture(run, path, caption, f"Samples of {run.name} {caption}")
        for path in sorted(run.path.glob("*/samples.json")):
            if (path.parent / "grid.png").is_file():
                caption = sampler_caption(run, path)
                pictures += picture(run, path.parent / "grid.png", caption, f"Samples of {run.name}, {caption}")
        blocks += [{"macro": "heading", "text": run.name}] if len(runs) > 1 and pictures else []
        blocks += grid(pictures, "strip")
    return blocks


def sampler_caption(run: Run, path: Path) -> str:
    """Returns the caption of samples by their samples.json: folder, sampler, network evaluations and step."""
    try:
        result = strict_json.loads(path.read_bytes())
        settings, nfe = result["settings"], result["nfe"]
        name = settings["sampling.predictor"] if settings["sampling.method"] == "pc" else "ode"
        return f"{path.parent.name}/: {name}, {nfe:.0f} network evaluations, step {settings['step']:,}"
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        run.notes.append(f"{path.name} of {run.name} left out: {error!r}")
        return f"{path.parent.name}/"


def samplers(runs: list[Run]) -> list[Block]:
    """The distance of samples over the network evaluations of each sampler."""
    blocks = []
    for run in (run for run in runs if run.samplers):
        name, by_sampler, curves = run.samplers["figure"], run.samplers["samplers"], []
        for style, (sampler, points) in enumerate(by_sampler.items()):
            x, y = np.array([(p["nfe"], p["distance"]) for p in valid(points)], float).reshape(-1, 2).T
            marker = figures.MARKERS[style % len(figures.MARKERS)]
            curves += [Curve(sampler, x, y, style, marker=marker)] if len(x) else []
        about = f"{name} of {run.samplers['num']} samples of {run.name}, the best within a number of evaluations"
        panel, xlabel = Panel(name, curves, True), "network evaluations"
        parts = table(about, *best_within(by_sampler))
        parts += figure(f"{name} of {run.name} over network evaluations", [panel], xlabel, True)
        if (path := run.path / "eval/samplers_images.png").is_file():
            alt = f"Samples of {run.name}: one row each for {', '.join(by_sampler)}"
            parts += picture(run, path, "One row per sampler, by network evaluations", alt)
        blocks += grid(parts)
    return blocks


def best_within(by_sampler: dict[str, list[dict[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of a table: the least distance of each sampler within each budget of evaluations."""
    fixed = [points for sampler, points in by_sampler.items() if sampler != "ode"] or list(by_sampler.values())
    at_same_setting = itertools.zip_longest(*map(valid, fixed))
    budgets = sorted({max(point["nfe"] for point in points if point) for points in at_same_setting})
    rows = []
    for sampler, points in by_sampler.items():
        cells = [[p["distance"] for p in valid(points) if p["nfe"] <= budget] for budget in (*budgets, math.inf)]
        rows.append([sampler, *(f"{min(cell):.2f}" if cell else "–" for cell in cells)])
    return ["sampler", *(f"≤ {budget:.0f}" for budget in budgets), "any"], rows


def bits_per_dim(runs: list[Run]) -> list[Block]:
    """The figures of eval/bpd.json with their terms."""
    charts: list[Block] = []
    rows, columns = [], dict[str, None]()
    for run in runs:
        terms = {key: run.bpd[f"{key}_terms"] for key in BPD if key in run.bpd}
        columns |= dict.fromkeys(name for values in terms.values() for name in values if name != "offset")
        for key in [key for key in terms if key in ("nll", "nelbo")] or terms:
            suffix = f" of {run.name}" if len(runs) > 1 else ""
            caption = f"{BPD[key]}{suffix}: {plus_minus(run.bpd, key)} bits/dim"
            chart = figures.waterfall(terms[key])
            charts.append({"macro": "figure", "caption": caption, "chart": chart, "legend": {}})
    columns["offset"] = None  # last
    for run in runs:
        for key in (key for key in BPD if key in run.bpd):
            errors = (number(run.bpd.get(f"{key}_stderr_{source}")) for source in ("images", "repeats"))
            values = (number(run.bpd[f"{key}_terms"].get(name)) for name in columns)
            rows.append([with_run(runs, run, BPD[key]), number(run.bpd[key]), *errors, *values])
    head = ["figure", "bits/dim", "± images", "± repeats", *columns]
    return table("Each figure is the sum of its terms [bits/dim]", head, rows) + grid(charts)


def quality(runs: list[Run]) -> list[Block]:
    """The figures of eval/quality.jsonl."""
    rows = []
    for run, result in ((each, result) for each in runs for result in each.qualities):
        for name, entry in result.get("figures", {}).items():
            std = "" if entry["std"] is None else f"{entry['std']:.3g}"
            count = f"{entry['sets']} × {entry['samples']}" if "sets" in entry else entry["samples"]
            about = entry["features"], entry["resizing"], count, entry["reference"] or "–"
            rows.append([with_run(runs, run, name), f"{entry['value']:.5g}", std, *about])
    head = ["figure", "value", "± std", "features", "resizing", "samples", "reference"]
    return table("Distances between samples and a reference", head, rows, numeric=False)


def differences(caption: str, head: list[str], *configs: dict[str, Any]) -> list[Block]:
    """Returns a table of the keys whose values are not the same in all configurations."""
    keys = [key for key in sorted(set().union(*configs)) if len({setting(c.get(key)) for c in configs}) > 1]
    return table(caption, head, [[key, *(setting(c.get(key, "–")) for c in configs)] for key in keys], numeric=False)


def configuration(runs: list[Run]) -> list[Block]:
    """The settings, and the parameters of the network."""
    if len(runs) > 1:
        head = ["setting", *(run.name for run in runs)]
        blocks = differences("Settings that differ", head, *(run.config for run in runs))
        return blocks or text("All settings are the same.")
    (run,) = runs
    if not run.config:
        return []
    defaults = as_json(default())
    caption = "Settings that differ from the defaults of score_st.config"
    known = {key: defaults.get(key, "") for key in run.config}
    blocks = differences(caption, ["setting", "here", "default"], run.config, known)
    if run.base:
        file = run.base["file"]
        head = ["setting", "here", "there"]
        own = differences(f"Settings that differ from {file}", head, run.config, flatten(run.base["config"]))
        blocks = (own or text(f"All settings are those of {file}.")) + details(caption, blocks)
    rows = [[key, setting(value)] for key, value in sorted(run.config.items())]
    blocks += details("All settings", table("All settings", ["setting", "here"], rows, numeric=False))
    rows = [[row["name"], "×".join(map(str, row["shape"])), f"{row['size']:,}"] for row in run.parameters]
    caption = f"Parameters of the network: {sum(row['size'] for row in run.parameters):,}"
    return blocks + details(caption, table(caption, ["name", "shape", "size"], rows))


def speed(runs: list[Run]) -> list[Block]:
    """The speed of training and evaluation, and traces of the profiler."""
    rows: dict[str, list[str]] = {}
    for i, run in enumerate(runs):
        values = {}
        if len(per_s := run.column("steps_per_s")[1]):
            values["training, steps/s (median)"] = f"{np.median(per_s):.3g}"
            if isinstance(batch := run.config.get("training.batch_size"), int):
                values["training, images/s (median)"] = f"{batch * np.median(per_s):,.3g}"
        names = ", ".join(dict.fromkeys(line["arithmetic"] for line in run.metrics if "arithmetic" in line))
        for key, name, form in (
            ("tflops_per_s", "training, TFLOP/s of a device (median)", "{:.3g}"),
            ("mfu", f"training, MFU in {names} (median)", "{:.1%}"),
        ):
            if len(column := run.column(key)[1]):
                values[name] = form.format(np.median(column))
        if len(shares := run.column("goodput")[1]):
            values["training, goodput: share of time in steps (last)"] = f"{shares[-1]:.1%}"
        if len(waits := run.column("data_wait")[1]):
            values["training, share of time spent waiting for data (median)"] = f"{np.median(waits):.2%}"
        for key in (key for key in BPD if f"{key}_seconds_per_image" in run.bpd):
            values[f"{BPD[key]}, s/image with compilation"] = number(run.bpd[f"{key}_seconds_per_image"])
            if f"{key}_nfe" in run.bpd:
                values[f"{BPD[key]}, network evaluations"] = number(run.bpd[f"{key}_nfe"], 0)
        for name, value in values.items():
            rows.setdefault(name, ["–"] * len(runs))[i] = value
    head = ["figure", *(run.name for run in runs)]
    shown = table("Measured speeds", head, [[name, *cells] for name, cells in rows.items()])
    curves = lambda key: [curve for style, run in enumerate(runs) for curve in run.curves(key, style)]
    charts = (
        ("Speed of training, with everything that a step waits for", [Panel("steps/s", curves("steps_per_s"))]),
        ("Arithmetic of a device", [Panel("TFLOP/s", curves("tflops_per_s")), Panel("MFU", curves("mfu"))]),
        ("Share of time in steps since the run began", [Panel("goodput", curves("goodput"))]),
    )
    shown += grid(block for caption, panels in charts for block in figure(caption, panels, "step"))
    return shown + [block for run in runs for block in traces(run, len(runs) == 1)]


def traces(run: Run, linked: bool) -> list[Block]:
    """The operations that took longest in each trace of a run, and where the trace is, relative to the workdir."""
    blocks: list[Block] = []
    for name, trace in run.traces.items():
        head = ["operation", "program", "calls", "ms", "share"]
        rows = [
            [row["name"], row["program"] or "–", f"{row['calls']:,}", number(row["ms"], 3), f"{row['share']:.1%}"]
            for row in trace["operations"]
        ]
        about = f"{trace['about']} on {trace['device']}" + ("" if linked else f", {run.name}")
        caption = f"The longest operations of {number(trace['ms'], 1)} ms: {about}"
        blocks += table(caption, head, rows, numeric=False)
        if linked:
            target = f"profile/plugins/profile/{urllib.parse.quote(name, safe='')}/"
            blocks += [
                {"macro": "link", "before": "The trace, in the workdir, for XProf or TensorBoard: ", "target": target}
            ]
    return blocks


SECTIONS: tuple[tuple[str, str, Callable[[list[Run]], list[Block]]], ...] = (  # id, heading, blocks
    ("training", "Training", training),
    ("time", "Loss and gradient over diffusion time", over_time),
    ("samples", "Samples during training", samples),
    ("samplers", "Samplers", samplers),
    ("bits", "Bits/dim and their terms", bits_per_dim),
    ("quality", "Sample quality", quality),
    ("configuration", "Configuration", configuration),
    ("speed", "Speed", speed),
)
