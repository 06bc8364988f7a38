"""What a study has found: `study.json`, tables in Markdown, plots, and one page, all from stored results."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from score_st import strict_json
from score_st.reporting import figures, page, sections
from score_st.runtime.workdir import write_text
from score_st.studies import summary
from score_st.studies.definition import EXPECTATIONS, Study
from score_st.studies.measures import WEIGHTS

MOST_ROWS = 40  # of a plot
Entry = dict[str, Any]  # of a figure or a comparison, as study.json has it


def number(value: float | None, half: float = 0.0) -> str:
    """Formats a number with the digits that its half interval leaves, or four significant ones."""
    if value is None or not np.isfinite(value):
        return "–"
    size = half if half > 0 and np.isfinite(half) else abs(value) / 100
    digits = int(np.clip(1 - np.floor(np.log10(size)), 0, 6)) if size > 0 else 3
    return f"{value:z.{digits}f}".replace("-", "−")


def plus_minus(entry: Entry) -> str:
    """Formats a mean with half of its interval, and the seeds that have no figure."""
    if entry["low"] is None:
        return number(entry["mean"])
    half = (entry["high"] - entry["low"]) / 2
    return f"{number(entry['mean'], half)} ± {number(half, half)}"


def steps_of(part: Entry) -> list[int]:
    """Returns the steps of a part that have figures."""
    return sorted({entry["step"] for cell in part["cells"].values() for entry in cell["figures"]})


def rows_of(part: Entry) -> Iterable[tuple[str, int, str, dict[str, Entry]]]:
    """Yields (cell, step, row, entries by figure) of a part, those of training with each row of the same step."""
    for cell, content in part["cells"].items():
        grouped: dict[tuple[int, str], dict[str, Entry]] = {}
        for entry in content["figures"]:
            grouped.setdefault((entry["step"], entry["row"]), {})[entry["figure"]] = entry
        for (step, row), entries in grouped.items():
            if row != "training":
                yield cell, step, row, entries | grouped.get((step, "training"), {})
        for step, row in grouped:
            if row == "training" and not any(key[0] == step and key[1] != row for key in grouped):
                yield cell, step, row, grouped[step, row]


def table(part: Entry) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of a part's table: mean ± half of the 95 % interval over seeds."""
    rows, floors = [], {}
    names = list(dict.fromkeys(name for *_, entries in rows_of(part) for name in entries))
    several = len(steps_of(part)) > 1
    for cell, step, row, entries in rows_of(part):
        seeds = max(entry["seeds"] for entry in entries.values())
        cells = [plus_minus(entries[name]) if name in entries else "" for name in names]
        if row == "test images":  # they are the same for all
            floors = {name: number(entry["mean"]) for name, entry in entries.items() if name not in ("loss",)}
            continue
        rows.append([cell, *([f"{step:,}"] if several else []), row, *cells, str(seeds)])
    if floors:
        own = [floors.get(name, "") if not name.startswith(("loss", "share")) else "" for name in names]
        rows.append(["test images", *([""] if several else []), "", *own, ""])
    return ["cell", *(["step"] if several else []), "weights", *names, "seeds"], rows


def shown(cell: str, side: Entry | None) -> str:
    """Returns the name of a side of a comparison, with its row and step where they are not the usual ones."""
    if side is None:
        return "0"
    row = "" if side["row"] == "ema" else f", {side['row']}"
    step = f", step {side['step']:,}" if side["step"] else ""
    return cell + row + step


def comparison_table(comparisons: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table of comparisons."""
    rows, paired = [], any("ratio" in entry for entry in comparisons)
    for entry in comparisons:
        expected = entry["expected"]
        wanted = EXPECTATIONS.get(expected["expect"], "–")
        wanted = wanted.replace("margin", f"{expected['margin']:g}")
        if expected["size"]:
            wanted += f", by {expected['size'][0]:g} to {expected['size'][1]:g}"
        wanted += f" ({expected['why']})" if expected["why"] else ""
        kind = "late" if entry["late"] else "primary" if entry["primary"] else "exploratory"
        half = 0.0 if entry["low"] is None else (entry["high"] - entry["low"]) / 2
        interval = f"{number(entry['low'], half)} to {number(entry['high'], half)}" if half else "–"
        sides = [shown(entry[side], expected[side]) for side in ("a", "b")]
        question = f"{entry['question']} ({' − '.join(sides)})"
        result = f"{number(entry['difference'], half)} ({interval})"
        ratio = [plus_minus(entry["ratio"]) if "ratio" in entry else ""] * paired
        rows.append([question, expected["figure"], kind, wanted, result, *ratio, entry["came"] or "–"])
    head = ["question (a − b)", "figure", "", "expected", "a − b (95 %)", *["a / b"] * paired, "what came"]
    return head, rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |\n" for line in lines)


def panel_of(figure: str, row: str) -> str:
    """Returns the name of the panel of a row's figure: raw weights and another ε need a scale of their own."""
    return figure if row == "ema" or not is_of_weights(row) else f"{figure}, {row.removeprefix('ema, ')}"


def is_of_weights(row: str) -> bool:
    """Whether a row has a cell's weights, as they are or with something else than the default, such as another ε."""
    return row.partition(", ")[0] in WEIGHTS


def plotted(part: Entry, comparisons: list[Entry]) -> dict[str, list[figures.Dots]]:
    """Returns the panels of a part's plot: the figures of its comparisons, at the last step and in their rows."""
    sides = [(e["expected"]["figure"], e["expected"][side]) for e in comparisons for side in ("a", "b")]
    asked = [(figure, side["row"]) for figure, side in sides if side]
    places = {row for _, row in asked}
    panels: dict[str, list[figures.Dots]] = {panel_of(*pair): [] for pair in asked}
    last = max(steps_of(part), default=0)
    for cell, step, row, entries in rows_of(part):
        if step != last or row not in places:
            continue
        name = cell if is_of_weights(row) else f"{cell}, {row}"
        for figure, entry in entries.items():
            panel = panels.get(panel_of(figure, row))
            if panel is not None and entry["mean"] is not None:
                panel.append(dots_of(name, entry))
    return {name: rows[:MOST_ROWS] for name, rows in panels.items() if rows}


def dots_of(name: str, entry: Entry) -> figures.Dots:
    """Returns the row of a plot that has a figure's seeds, their mean and its interval."""
    low, high = (np.nan if entry[key] is None else entry[key] for key in ("low", "high"))
    return figures.Dots(name, [value for value in entry["values"] if value is not None], entry["mean"], low, high)


def curves(part: Entry, comparisons: list[Entry]) -> list[figures.Panel]:
    """Returns a panel for each figure of the comparisons over the steps, if there are four steps or more."""
    if len(steps_of(part)) < 4:
        return []
    panels = []
    for figure in dict.fromkeys(entry["expected"]["figure"] for entry in comparisons):
        lines = []
        for style, (cell, content) in enumerate(part["cells"].items()):
            found = [e for e in content["figures"] if e["figure"] == figure and e["row"] == "ema"]
            if found := sorted((e for e in found if e["low"] is not None), key=lambda e: e["step"]):
                x, y, *band = (np.array([e[key] for e in found]) for key in ("step", "mean", "low", "high"))
                lines.append(figures.Curve(cell, x, y, style, (band[0], band[1]), "o"))
        if lines:
            panels.append(figures.Panel(figure, lines))
    return panels


def of_part(content: Entry, name: str) -> list[Entry]:
    """Returns the comparisons of a part."""
    return [entry for entry in content["comparisons"] if entry["part"] == name]


def progress(content: Entry) -> str:
    """Returns how many seeds of the cells are done, and in what time."""
    cells = [(part, cell) for part in content["parts"].values() for cell in part["cells"].values()]
    done = sum(cell["seeds_complete"] for _, cell in cells)
    hours = sum(cell["hours"] for _, cell in cells)
    return f"{len(cells)} cells; {done} of {sum(part['seeds'] for part, _ in cells)} seeds done in {hours:.1f} hours."


def write(study: Study, out: Path) -> None:
    """Writes study.json, tables.md, a PNG for each part that has results, and study.html."""
    content = summary.summarize(study, out)
    text, blocks = [f"{study.title}\n\n{progress(content)}\n"], []
    for name, part in content["parts"].items():
        comparisons, (head, rows) = of_part(content, name), table(part)
        caption = f"{name}: mean ± half of the 95 % interval over seeds"
        shown: list[sections.Block] = []
        if rows:
            text.append(f"\n{name}: {part['title']}\n\n{markdown(head, rows)}")
            if panels := plotted(part, comparisons):
                figures.write_dots(panels, out / f"{name}.png")
                shown += [{"macro": "figure", "caption": part["title"], "chart": figures.dots(panels), "legend": {}}]
            shown += sections.figure("By step", curves(part, comparisons), "step")
            shown += sections.table(caption, head, rows)
        if comparisons:
            head, rows = comparison_table(comparisons)
            text.append(f"\n{markdown(head, rows)}")
            shown += sections.table("What was expected, and what came", head, rows, numeric=False)
        settings = [[cell, strict_json.dumps(entry["settings"])] for cell, entry in part["cells"].items()]
        shown += sections.details(
            "Settings",
            sections.table(
                f"{part['base']} with {strict_json.dumps(part['settings'])}", ["cell", "changes"], settings, False
            ),
        )
        blocks.append((name, f"{name}: {part['title']}", shown))
    write_text(out / "study.json", strict_json.dumps(content, indent=1) + "\n")
    write_text(out / "tables.md", "".join(text))
    write_text(out / "study.html", page.fill(study.title, progress(content), [], [], blocks, "by score_st.study."))
