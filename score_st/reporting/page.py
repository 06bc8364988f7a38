"""The page of one run, or of several side by side."""

import datetime
import json
import string
import sys
from html import escape
from pathlib import Path

from score_st.config import ConfigError, flatten
from score_st.reporting import figures
from score_st.reporting.sections import SECTIONS, Run, shown, summary
from score_st.runtime.workdir import write_text


def read(workdir: Path, name: str) -> Run:
    """Never fails: what is damaged is left out, with a note."""
    notes = []

    def load(file: str) -> dict:
        try:
            value = json.loads((workdir / file).read_bytes())
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            return value
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            notes.append(f"{file} of {name} left out: {error}")
            return {}

    lines, lost = [], []
    if (workdir / "metrics.jsonl").is_file():
        for number, text in enumerate((workdir / "metrics.jsonl").read_bytes().splitlines(), 1):
            try:
                line = json.loads(text)
                line["step"] = int(line["step"])
                lines.append(line)
            except (ValueError, KeyError, TypeError, OverflowError):
                lost.append(str(number))
    if lost:
        notes.append(f"metrics.jsonl of {name}: damaged lines left out: {', '.join(lost[:5])} ({len(lost)} in all)")
    config = flatten(load("config.json"))
    names = "config_base.json", "eval/bpd.json", "eval/loss_by_time.json", "eval/samplers.json", "eval/quality.json"
    return Run(workdir, name, lines, config, *map(load, names), notes)


def subtitle(runs: list[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side; the first is what the others are compared with."
    c = {key.split(".")[-1]: shown(value) for key, value in runs[0].config.items()}
    if not {"dataset", "image_size", "sde", "st", "k", "batch_size"} <= c.keys():
        return ""
    law = f"Soft Truncation with k = {c['k']}" if c["st"] == "True" else "no Soft Truncation"
    return f"{c['dataset']} {c['image_size']}×{c['image_size']}×{c['num_channels']}, {c['sde']}, {law}"


def render(workdirs: list[Path]) -> str:
    """The page, in ASCII; a section that can't be made is left out, with a note."""
    workdirs = list(dict.fromkeys(workdir.resolve() for workdir in workdirs))
    unique = len({workdir.name for workdir in workdirs}) == len(workdirs)
    runs = [read(workdir, workdir.name if unique else str(workdir)) for workdir in workdirs]
    notes, parts, links = [], [], []
    for key, title, make in (("", "Summary", summary), *SECTIONS):
        try:
            html = make(runs)
        except Exception as error:  # of files that are JSON, but not as this package writes them
            notes.append(f"{title} left out: {type(error).__name__}: {error}")
            continue
        if html and key:
            parts.append(f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>\n{html}</section>')
            links.append(f'<li><a href="#{key}">{title}</a></li>')
        else:
            parts.append(html)
    notes = [escape(note) for run in runs for note in run.notes] + [escape(note) for note in notes]
    if notes:
        items = "".join(f"<li>{note}</li>" for note in notes)
        parts.insert(1, f'<div class="notes" role="note"><ul>{items}</ul></div>')
    made = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    versions = ", ".join(f"{name} {version}" for name, version in runs[0].bpd.get("versions", {}).items())
    template = string.Template(Path(__file__).with_name("run.html").read_text("utf-8"))
    html = template.substitute(
        title=escape(" | ".join(run.name for run in runs)),
        subtitle=escape(subtitle(runs)),
        nav="".join(links),
        content="\n".join(parts),
        footer=escape(f"Made {made} by score_st.report. " + (f"Evaluated with {versions}." if versions else "")),
    )
    return html.encode("ascii", "xmlcharrefreplace").decode()


def refresh(workdir: Path):
    """Writes report.html; never fails, since a training should not end with its report."""
    try:
        write_text(workdir / "report.html", render([workdir]))
    except Exception as error:
        print(f"warning: report.html was not written: {type(error).__name__}: {error}", file=sys.stderr)


def refresh_existing(workdir: Path):
    """A page that there is has the figures that have come in since; of process 0."""
    import jax

    if jax.process_index() == 0 and (workdir / "report.html").exists():
        refresh(workdir)


def loss_by_time(workdirs: list[Path], out: Path):
    """The picture of the loss over t; ConfigError where a run has none."""
    curves = {}
    for workdir in workdirs:
        try:
            curves[str(workdir)] = json.loads((workdir / "eval/loss_by_time.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--workdir {workdir}: no eval/loss_by_time.json; `python -m score_st.eval` makes it"
            ) from error
    figures.loss_by_time(curves, out)
