"""What the benchmark shows: tables on the terminal, and bench.html, one page that needs nothing else."""

import datetime
from collections.abc import Mapping
from typing import Any

import rich
from rich.table import Column, Table

from score_st.benchmarking.parts import CHOICES
from score_st.reporting import figures, sections
from score_st.reporting.page import TEMPLATES
from score_st.reporting.sections import Block

SPREAD = "median and quartiles of the measurements"


def text(value: float) -> str:
    """Formats a value: 1,234 or 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def between(entry: Mapping[str, Any]) -> str:
    """Formats the quartiles, or nothing for a single value."""
    return "" if entry["low"] == entry["high"] else f"{text(entry['low'])}–{text(entry['high'])}"


def rows(result: Mapping[str, Any], part: str) -> list[list[str]]:
    """Returns the rows of a part: name, median, quartiles, unit, count, and with --against the ratio and verdict."""
    against = result.get("against")
    lines = []
    for name, number in result["numbers"][part].items():
        line = [name, text(number["median"]), between(number), number["unit"], str(number["count"])]
        if against:
            ratio = against["ratios"].get(part, {}).get(name)
            line += [f"{ratio['median']:.3g} ({between(ratio)})", ratio["verdict"]] if ratio else ["", ""]
        lines.append(line)
    return lines


def head(result: Mapping[str, Any]) -> list[str]:
    """Returns the heads of the columns of `rows`."""
    return ["", "median", "quartiles", "unit", "n"] + (["ratio", "to the earlier"] if "against" in result else [])


def title(result: Mapping[str, Any]) -> str:
    """Returns a line that says what was measured, and on what."""
    machine = result["machine"]
    device = f"{machine['devices']} x {machine['device_kind']}"
    if machine["platform"] == "cpu":
        device += f", {machine['cores']} cores"
    dtype = result["settings"]["training"]["dtype"]
    return f"{result['config']}, batch {result['settings']['training']['batch_size']}, {dtype}, on {device}"


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Returns what a reader of the numbers should know."""
    subject, machine = result["subject"], result["machine"]
    lines = []
    if subject["images"].startswith("synthetic"):
        lines.append(f"The images are {subject['images']}.")
    if subject["weights"] == "random":
        lines.append(
            "The weights are random: an adaptive solver may take another number of evaluations with trained ones."
        )
    if machine["peak_flops_per_s"] is None and "step" in result["numbers"]:
        lines.append(f"No MFU: the peak of {machine['device_kind']} is not in the table.")
    if machine["platform"] == "cpu" and "step" in result["numbers"]:
        lines.append("A CPU does not report its memory; compile has what the compiler plans.")
    return lines + result.get("against", {}).get("notes", [])


def show(result: Mapping[str, Any]) -> None:
    """Prints the tables, and the remarks."""
    rich.print(title(result))
    for part in result["numbers"]:
        table = Table(
            "",  # where it is narrow, names are wrapped, so that no number is cut off
            *(Column(name, no_wrap=True) for name in head(result)[1:]),
            title=CHOICES[part].about if part in CHOICES else part,
            title_justify="left",
        )
        for line in rows(result, part):
            table.add_row(*line)
        rich.print(table)
    for remark in remarks(result):
        print(f"note: {remark}")


def charts(result: Mapping[str, Any], part: str) -> list[Block]:
    """Returns a bar chart of those numbers of a part that compare with each other."""
    endings = CHOICES[part].charts if part in CHOICES else ("",)
    blocks: list[Block] = []
    for ending in endings:
        by_unit: dict[str, dict[str, tuple[float, float, float]]] = {}
        for name, number in result["numbers"][part].items():
            if name.endswith(ending):
                label = name.removesuffix(ending).strip() or part
                values = by_unit.setdefault(number["unit"], {})
                values[label] = number["median"], number["low"], number["high"]
        for unit, values in by_unit.items():
            if len(values) > 1:
                chart = figures.bars(values, unit)
                blocks.append({"macro": "figure", "caption": f"{part}, {unit}", "chart": chart, "legend": {}})
    return blocks


def tiles(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the main numbers: value and remark by name."""
    step, shown = result["numbers"].get("step", {}), {}
    for key, name in (("images_per_s", "images/s"), ("tflops_per_s", "TFLOP/s"), ("mfu", "MFU"), ("memory", "GiB")):
        if key in step:
            value = f"{step[key]['median']:.1%}" if key == "mfu" else text(step[key]["median"])
            shown[name] = value, "train step" + (", a device" if key != "images_per_s" else "")
    if nll := result["numbers"].get("nll"):
        shown["NLL"] = text(nll["seconds_per_image"]["median"]), "seconds an image"
    return shown


def page(result: Mapping[str, Any]) -> str:
    """Returns bench.html, in ASCII."""
    content = []
    for part in result["numbers"]:
        heading = CHOICES[part].about.capitalize() if part in CHOICES else part.capitalize()
        caption = f"{SPREAD}; n: how many" if part in CHOICES else f"measured in turn; {SPREAD}"
        blocks = sections.table(caption, head(result), rows(result, part)) + sections.grid(charts(result, part))
        content.append((part, heading, blocks))
    facts = {key: value for key, value in result["machine"].items() if key not in ("versions", "arithmetic")}
    facts |= {f"arithmetic of {key}": value for key, value in result["machine"]["arithmetic"].items()}
    facts |= result["machine"]["versions"] | result["subject"]
    machine = [[key, str(value)] for key, value in facts.items() if value not in (None, "")]
    blocks = sections.table("what the numbers are from", ["", ""], machine, numeric=False)
    content.append(("machine", "Machine and subject", blocks))
    now = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    html = TEMPLATES.get_template("run.html").render(
        title="Benchmark",
        subtitle=title(result),
        summary=[{"macro": "tiles", "tiles": tiles(result)}],
        notes=remarks(result),
        sections=content,
        footer=f"Written {now} by score_st.bench.",
    )
    return html.encode("ascii", "xmlcharrefreplace").decode()
