"""The sections of `report`: HTML of the runs that it gets, "" where they have no data for it.

Names, paths and settings are text of the user's, or of whoever made the run: all of it is escaped.
"""

import base64
import dataclasses
import io
import itertools
import json
import math
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from score_st.config import default, flatten
from score_st.reporting import figures
from score_st.reporting.figures import Curve, Panel
from score_st.runtime.progress import clock

BPD = {
    "nll": "NLL",
    "nll_from_x0": "NLL from x₀",
    "nelbo": "NELBO",
    "nelbo_without_residual": "NELBO without residual",
}
SHOWN, WIDEST = 8, 640  # pictures over training, and pixels of a picture


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a workdir holds: JSON objects by file, {} where there is none; `notes` say what could not be read."""

    path: Path
    name: str
    lines: list[dict]
    config: dict
    base: dict
    bpd: dict
    by_time: dict
    samplers: dict
    quality: dict
    notes: list[str]

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of metrics.jsonl."""
        has = lambda value: isinstance(value, int | float) and math.isfinite(value)
        found = [(line["step"], line[key]) for line in self.lines if has(line.get(key))]
        return tuple(np.array(found, float).reshape(-1, 2).T)

    def curves(self, key: str, style: int) -> list[Curve]:
        x, y = self.column(key)
        return [Curve(self.name, x, y, style)] if len(x) > 1 else []


def table(caption: str, head: list, rows: list[list], numeric: bool = True) -> str:
    """Of texts; the first of each row is its heading, and the others are numbers or not."""
    if not rows:
        return ""
    kind = ' class="n"' if numeric else ""
    first, *names = (escape(str(cell)) for cell in head)
    top = f'<th scope="col">{first}</th>' + "".join(f'<th scope="col"{kind}>{name}</th>' for name in names)
    body = ""
    for row in rows:
        first, *cells = (escape(str(cell)) for cell in row)
        body += f'<tr><th scope="row">{first}</th>' + "".join(f"<td{kind}>{cell}</td>" for cell in cells) + "</tr>\n"
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def figure(caption: str, panels: list[Panel], xlabel: str, x_log: bool = False) -> str:
    """A chart with its caption and the names of its curves; "" where there are none."""
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return ""
    names = {curve.name: curve.style for panel in panels for curve in panel.curves}
    keys = "".join(f'<span class="key s{style % 8 + 1}">{escape(name)}</span>' for name, style in names.items())
    keys = f"<br>{keys}" if len(names) > 1 else ""
    return f"<figure><figcaption>{escape(caption)}{keys}</figcaption>{figures.chart(panels, xlabel, x_log)}</figure>"


def picture(run: Run, path: Path, caption: str, alt: str) -> str:
    """A picture in the page itself, made smaller where it is large; "" with a note where it is broken."""
    try:
        content, image = path.read_bytes(), Image.open(path)
        kind = {"PNG": "png", "GIF": "gif"}[image.format]
        image.load()
        if max(image.size) > WIDEST:
            image = image.convert("RGB")
            image.thumbnail((WIDEST, WIDEST))
            image.save(file := io.BytesIO(), "JPEG", quality=90)
            content, kind = file.getvalue(), "jpeg"
    except Exception as error:  # Pillow has many ways to say that
        run.notes.append(f"{path.name} of {run.name} left out: {error}")
        return ""
    data = base64.b64encode(content).decode()
    size = f'width="{image.width}" height="{image.height}"'
    shown = f'<img alt="{escape(alt)}" {size} src="data:image/{kind};base64,{data}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(*parts: str, kind: str = "grid") -> str:
    return f'<div class="{kind}">{"".join(parts)}</div>' if any(parts) else ""


def number(value, digits: int = 4) -> str:
    return f"{value:z.{digits}f}".replace("-", "−") if isinstance(value, int | float) else ""


def plus_minus(result: dict, key: str) -> str:
    """A figure of eval/bpd.json with its larger standard error."""
    errors = [result.get(f"{key}_stderr_{of}") for of in ("images", "repeats")]
    error = max((e for e in errors if e is not None), default=None)
    return number(result.get(key), 3) + ("" if error is None else f" ± {error:.3f}")


def duration(run: Run) -> float:
    """Seconds of training by the logged speeds."""
    step, speed = run.column("steps_per_s")
    return float(np.sum(np.diff(step, prepend=0) / np.maximum(speed, 1e-9)))


def headline(run: Run) -> dict[str, tuple[str, str]]:
    """Of each figure its value, and what it is."""
    found, step = {}, run.column("loss")[0]
    for key in ("nll", "nll_from_x0", "nelbo", "nelbo_without_residual"):
        if key in run.bpd and (key.count("_") == 0 or key.split("_")[0] not in run.bpd):
            found[BPD[key]] = plus_minus(run.bpd, key), f"bits/dim, {run.bpd['images']} test images"
    for key, what in run.quality.get("figures", {}).items():
        found[key] = f"{what['value']:.4g}", f"{what['samples']} samples"
    if points := [p for found in run.samplers.get("samplers", {}).values() for p in found if p["distance"] > 0]:
        best = min(points, key=lambda point: point["distance"])
        what = f"{best['nfe']:.0f} evaluations, {run.samplers['num']} samples"
        found[f"best {run.samplers['figure']}"] = f"{best['distance']:.2f}", what
    if len(step):
        total = run.config.get("training.n_iters")
        found["updates"] = f"{step[-1]:,.0f}", f"of {total:,}" if isinstance(total, int) else ""
    if seconds := int(duration(run)):
        speed = f"{np.median(run.column('steps_per_s')[1]):.3g} steps/s"
        found["training time"] = clock(seconds), speed
    return found


def summary(runs: list[Run]) -> str:
    found = [headline(run) for run in runs]
    if len(runs) == 1:
        tile = "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>".format
        tiles = "".join(tile(*map(escape, (name, *value))) for name, value in found[0].items())
        return f'<dl class="tiles">{tiles}</dl>' if tiles else ""
    names = dict.fromkeys(name for each in found for name in each)
    cell = lambda value, what="": f"{value} ({what})" if what else value
    rows = [[name, *(cell(*each.get(name, ["–"])) for each in found)] for name in names]
    return table("Figures side by side", ["figure", *(run.name for run in runs)], rows)


def training(runs: list[Run]) -> str:
    of = lambda key: [curve for style, run in enumerate(runs) for curve in run.curves(key, style)]
    loss = [Panel("loss", of("loss"), True), Panel("τ", of("tau"), True)]
    test = [Panel("loss", of("eval_loss"), True), Panel("‖gradient‖", of("gradient_norm"), True)]
    bits = [Panel(f"{BPD[key]} [bits/dim]", of(key)) for key in ("nll", "nelbo")]
    return grid(
        figure(
            "Training loss, comparable under the same law of τ only, and the geometric mean of the τ drawn",
            loss,
            "step",
        ),
        figure("Loss of a test batch at τ = ε, and the gradient's norm before clipping", test, "step"),
        figure("Bits/dim at snapshots", bits, "step"),
    )


def by_time(runs: list[Run]) -> str:
    def of(key, factor=lambda c: 1.0):
        curves = []
        for style, run in enumerate(runs):
            if key in run.by_time:
                c = {name: np.asarray(values, float) for name, values in run.by_time.items()}
                curves.append(Curve(run.name, c["t"], c[key] * factor(c), style))
        return curves

    loss = []
    for curve, run in zip(of("loss"), [run for run in runs if "loss" in run.by_time], strict=True):
        std = np.asarray(run.by_time["std"])
        band = np.maximum(curve.y - std, curve.y.min() / 10), curve.y + std
        loss.append(dataclasses.replace(curve, band=band))
    relative = []
    if len(loss) > 1 and all(np.array_equal(loss[0].x, curve.x) for curve in loss):
        relative = [dataclasses.replace(curve, y=curve.y / loss[0].y, band=None) for curve in loss]
    bits = of("bits", lambda c: math.log(10))
    plain, weighted = of("gradient_variance"), of("gradient_variance", lambda c: c["weight"] ** 2)
    return grid(
        figure(
            "Loss at t over the test images, mean and one standard deviation",
            [Panel("½‖σs + z‖²/d", loss, True)],
            "t",
            True,
        ),
        figure(f"Loss relative to that of {runs[0].name}", [Panel("ratio", relative)], "t", True),
        figure("What each t adds to the NELBO", [Panel("bits/dim a decade", bits)], "t", True),
        figure("Variance of the gradient of ½‖σs + z‖²/d at t", [Panel("variance", plain, True)], "t", True),
        figure("The same with the likelihood's weight g²/σ²", [Panel("variance", weighted, True)], "t", True),
    )


def samples(runs: list[Run]) -> str:
    html = ""
    for run in runs:
        found = sorted(
            (p for p in (run.path / "snapshots").glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem)
        )
        few = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, SHOWN).round().astype(int))] if found else []
        steps = {path: f"after {int(path.stem):,} updates" for path in few}
        if not few and (run.path / "samples.png").is_file():
            steps = {run.path / "samples.png": "at the last snapshot"}
        nll = dict(zip(*run.column("nll"), strict=True))
        parts = []
        for path, when in steps.items():
            bits = nll.get(int(path.stem)) if path in few else None
            caption = when + (f": {bits:.3f} bits/dim" if bits else "")
            parts.append(picture(run, path, caption, f"Samples of {run.name} {caption}"))
        for about in sorted(run.path.glob("*/samples.json")):
            if (about.parent / "grid.png").is_file():
                parts.append(picture(run, about.parent / "grid.png", *drawn(run, about)))
        heading = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        html += heading + grid(*parts, kind="strip") if any(parts) else ""
    return html


def drawn(run: Run, about: Path) -> tuple[str, str]:
    """Caption and alternative text of a picture of `score_st.sample`."""
    try:
        made = json.loads(about.read_bytes())
        settings, nfe = made["settings"], made["nfe"]
        name = settings["sampling.predictor"] if settings["sampling.method"] == "pc" else "ode"
        caption = f"{about.parent.name}/: {name}, {nfe:.0f} evaluations, step {settings['step']:,}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.notes.append(f"{about.name} of {run.name} left out: {error!r}")
        caption = f"{about.parent.name}/"
    return caption, f"Samples of {run.name}, {caption}"


def within(found: dict[str, list[dict]]) -> tuple[list[str], list[list[str]]]:
    """Budgets of evaluations, and for each sampler the least distance within each and at all."""
    valid = lambda points: [p for p in points if p["distance"] > 0]  # no NaN, which a sampler that diverged has
    fixed = [points for sampler, points in found.items() if sampler != "ode"] or list(found.values())
    asked = itertools.zip_longest(*(valid(points) for points in fixed))
    budgets = sorted({max(p["nfe"] for p in points if p) for points in asked})
    rows = []
    for sampler, points in found.items():
        cells = [[p["distance"] for p in valid(points) if p["nfe"] <= most] for most in (*budgets, math.inf)]
        rows.append([sampler, *(f"{min(cell):.2f}" if cell else "–" for cell in cells)])
    return ["sampler", *(f"≤ {budget:.0f}" for budget in budgets), "any"], rows


def samplers(runs: list[Run]) -> str:
    html = ""
    for run in (run for run in runs if run.samplers):
        name, found, curves = run.samplers["figure"], run.samplers["samplers"], []
        caption = f"{name} of {run.samplers['num']} samples of {run.name}, the best within a number of evaluations"
        for style, (sampler, points) in enumerate(found.items()):
            x, y = np.array([(p["nfe"], p["distance"]) for p in points if p["distance"] > 0]).reshape(-1, 2).T
            curves += [Curve(sampler, x, y, style, marker="os^vDPX*"[style % 8])] if len(x) else []
        chart = figure(f"{name} of {run.name} by evaluations", [Panel(name, curves, True)], "evaluations", True)
        path, alt = (
            run.path / "eval/samplers_images.png",
            f"Samples of {run.name}: a row for each of {', '.join(found)}",
        )
        image = picture(run, path, "A row a sampler, by evaluations", alt) if path.is_file() else ""
        html += grid(table(caption, *within(found)), chart, image)
    return html


def bits(runs: list[Run]) -> str:
    charts, rows, columns = [], [], {}
    for run in runs:
        terms = {key: run.bpd[f"{key}_terms"] for key in BPD if key in run.bpd}
        columns |= {name: None for each in terms.values() for name in each if name != "offset"}
        for key in [key for key in ("nll", "nelbo") if key in terms] or list(terms):
            who = f" of {run.name}" if len(runs) > 1 else ""
            caption = f"{BPD[key]}{who}: {plus_minus(run.bpd, key)} bits/dim"
            charts.append(
                f"<figure><figcaption>{escape(caption)}</figcaption>{figures.waterfall(terms[key])}</figure>"
            )
    columns["offset"] = None  # last
    for run in runs:
        for key, label in ((key, label) for key, label in BPD.items() if key in run.bpd):
            errors = (number(run.bpd.get(f"{key}_stderr_{of}")) for of in ("images", "repeats"))
            each = (number(run.bpd[f"{key}_terms"].get(name)) for name in columns)
            rows.append([f"{run.name}, {label}" if len(runs) > 1 else label, number(run.bpd[key]), *errors, *each])
    head = ["figure", "bits/dim", "± images", "± repeats", *columns]
    return table("Each figure is the sum of its terms [bits/dim]", head, rows) + grid(*charts)


def quality(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        for name, what in run.quality.get("figures", {}).items():
            about = what["features"], what["resizing"], what["samples"], what["reference"] or "–"
            value = [f"{what['value']:.5g}", "" if what["std"] is None else f"{what['std']:.3g}"]
            rows.append([f"{run.name}, {name}" if len(runs) > 1 else name, *value, *about])
    head = ["figure", "value", "± std", "features", "resizing", "samples", "reference"]
    return table("Distances between samples and a reference", head, rows, numeric=False)


def shown(value) -> str:
    """A setting as the command line takes it."""
    return f"({', '.join(map(shown, value))})" if isinstance(value, list) else "–" if value == "" else str(value)


def details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def differing(caption: str, head: list[str], *configs: dict) -> str:
    """The keys whose values are not the same in all."""
    keys = [key for key in sorted(set().union(*configs)) if len({shown(c.get(key)) for c in configs}) > 1]
    return table(caption, head, [[key, *(shown(c.get(key, "–")) for c in configs)] for key in keys], numeric=False)


def configuration(runs: list[Run]) -> str:
    if len(runs) > 1:
        found = differing(
            "Settings that differ", ["setting", *(run.name for run in runs)], *(run.config for run in runs)
        )
        return found or "<p>All settings are the same.</p>"
    (run,) = runs
    if not run.config:
        return ""
    defaults, html = json.loads(json.dumps(flatten(default()))), ""
    if run.base:
        file = run.base["file"]
        html = differing(
            f"Settings that differ from {file}", ["setting", "here", "there"], run.config, flatten(run.base["config"])
        )
        html = html or f"<p>All settings are those of {escape(str(file))}.</p>"
    head = "Settings that differ from the defaults of score_st.config"
    changed = differing(
        head, ["setting", "here", "default"], run.config, {key: defaults.get(key, "") for key in run.config}
    )
    html += details(head, changed) if run.base else changed
    every = [[key, shown(value)] for key, value in sorted(run.config.items())]
    return html + details("All settings", table("All settings", ["setting", "here"], every, numeric=False))


def speed(runs: list[Run]) -> str:
    curves = [curve for style, run in enumerate(runs) for curve in run.curves("steps_per_s", style)]
    rows, columns = {}, []
    for i, run in enumerate(runs):
        measured = {}
        if len(per_s := run.column("steps_per_s")[1]):
            measured["training, steps/s (median)"] = f"{np.median(per_s):.3g}"
            if isinstance(size := run.config.get("training.batch_size"), int):
                measured["training, images/s (median)"] = f"{size * np.median(per_s):,.3g}"
        if len(waits := run.column("data_wait")[1]):
            measured["training, share of time that waits for data (median)"] = f"{np.median(waits):.2%}"
        for key in (key for key in BPD if f"{key}_seconds_per_image" in run.bpd):
            measured[f"{BPD[key]}, s/image with compilation"] = number(run.bpd[f"{key}_seconds_per_image"])
            if f"{key}_nfe" in run.bpd:
                measured[f"{BPD[key]}, evaluations of the network"] = number(run.bpd[f"{key}_nfe"], 0)
        columns.append(run.name)
        for name, value in measured.items():
            rows.setdefault(name, ["–"] * len(runs))[i] = value
    shown = table("What was measured", ["figure", *columns], [[name, *cells] for name, cells in rows.items()])
    return shown + grid(
        figure("Speed of training, with all that a step waits for", [Panel("steps/s", curves)], "step")
    )


# id, heading, what makes it
SECTIONS = (
    ("training", "Training", training),
    ("time", "Loss and gradient by time", by_time),
    ("samples", "Samples over training", samples),
    ("samplers", "Samplers", samplers),
    ("bits", "Bits/dim and their terms", bits),
    ("quality", "Sample quality", quality),
    ("configuration", "Configuration", configuration),
    ("speed", "Speed", speed),
)
