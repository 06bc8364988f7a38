"""The page of one run, or of several side by side: one HTML file that needs nothing else."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from score_st.reporting import sections
from score_st.reporting.run import Run, read
from score_st.runtime import endings
from score_st.runtime.workdir import write_text

# names, paths and settings are the user's, or come from whoever made the run: all of them are escaped
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("score_st.reporting"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def subtitle(runs: list[Run]) -> str:
    """Returns a line that says what the runs are."""
    if len(runs) > 1:
        return f"{len(runs)} runs side by side; the first is the one that the others are compared with."
    settings = {key.split(".")[-1]: sections.setting(value) for key, value in runs[0].config.items()}
    if not {"dataset", "image_size", "num_channels", "sde", "st", "k"} <= settings.keys():
        return ""
    truncation = f"Soft Truncation with k = {settings['k']}" if settings["st"] == "True" else "no Soft Truncation"
    size = f"{settings['image_size']}×{settings['image_size']}×{settings['num_channels']}"
    return f"{settings['dataset']} {size}, {settings['sde']}, {truncation}"


def versions(runs: list[Run]) -> str:
    """Returns a sentence with the versions of packages that the first run was evaluated with."""
    names = ", ".join(f"{name} {version}" for name, version in runs[0].bpd.get("versions", {}).items())
    return f"Evaluated with {names}." if names else ""


def render(workdirs: list[Path]) -> str:
    """Returns the page, in ASCII; a section that can't be made is left out, with a note."""
    workdirs = list(dict.fromkeys(workdir.resolve() for workdir in workdirs))
    unique = len({workdir.name for workdir in workdirs}) == len(workdirs)
    runs = [read(workdir, workdir.name if unique else str(workdir)) for workdir in workdirs]
    notes, content = list[str](), dict[str, Any]()
    parts: list[tuple[str, str, Callable[..., Any]]] = [("subtitle", "Subtitle", subtitle)]
    parts += [("versions", "Versions", versions), ("summary", "Summary", sections.summary), *sections.SECTIONS]
    for key, heading, part in parts:
        try:
            content[key] = part(runs)
        except Exception as error:  # files that are JSON, but not as this package writes them
            notes.append(f"{heading} left out: {type(error).__name__}: {error}")
    return fill(
        " | ".join(run.name for run in runs),
        content.get("subtitle", ""),
        content.get("summary", []),
        [note for run in runs for note in run.notes] + notes,
        [(key, heading, content[key]) for key, heading, _ in sections.SECTIONS if content.get(key)],
        f"by score_st.report. {content.get('versions', '')}".strip(),
    )


Sections = list[tuple[str, str, list[sections.Block]]]  # (anchor, heading, blocks)


def fill(
    title: str, subtitle: str, summary: list[sections.Block], notes: list[str], content: Sections, source: str
) -> str:
    """Returns a page, in ASCII.

    Args:
      title: of the page.
      subtitle: a line below it.
      summary: blocks before the notes.
      notes: what could not be read, and the like.
      content: the sections.
      source: follows "Written <date>" in the last line.
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    html = TEMPLATES.get_template("run.html").render(
        title=title,
        subtitle=subtitle,
        summary=summary,
        notes=notes,
        sections=content,
        footer=f"Written {now} {source}",
    )
    return html.encode("ascii", "xmlcharrefreplace").decode()


def refresh(workdir: Path) -> None:
    """Writes report.html; fails only where the disk does, since training should not end because of its report."""
    with endings.said("report.html was not written"):
        write_text(workdir / "report.html", render([workdir]))


def refresh_existing(workdir: Path) -> None:
    """Writes report.html again if there is one; only process 0 does."""
    import jax

    if jax.process_index() == 0 and (workdir / "report.html").exists():
        refresh(workdir)
