"""What each chapter costs, and how that compares with others: tables for the site."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from kdnotes.book.running import Done
from kdnotes.training import cache
from kdnotes.training.cache import Planned

NOT_MEASURED = "No chapter was run for this build of the book, so there is nothing to count."
NOT_TIMED = "The benchmarks were not run for this edition of the book."


def table(done: Iterable[Done]) -> str:
    """A Markdown table with a row per chapter, and one for all chapters together.

    Seconds of training are those of one core, written down when each network was trained, its
    share of the teacher's table included. Networks that chapters share count in each of them, but
    once in the last row.
    """
    rows = ["| chapter | networks | training | the chapter itself |", "|:--|--:|--:|--:|"]
    everything: list[Planned] = []
    running = 0.0
    for each in done:
        networks = each.run.request.study.networks
        everything += networks
        running += each.seconds
        rows.append(_row(each.run.request.chapter.name, networks, each.seconds))
    if len(rows) == 2:
        return NOT_MEASURED
    rows.append(_row("**all**", cache.with_teachers(everything), running))
    return "\n".join(rows)


def _row(name: str, networks: list[Planned], seconds: float) -> str:
    training = sum(cache.seconds(item.spec) for item in networks)
    return f"| {name} | {len(networks)} | {training / 60:.1f} min of one core | {seconds:.0f} s |"


def profile(done: Iterable[Done]) -> str:
    """A Markdown table of what the time of all chapters went into, in seconds of one core.

    A chapter measures in its longest cell. What its cells do not account for is the start of its
    kernel, and reading and writing the notebook.
    """
    runs = list(done)
    if not runs:
        return NOT_MEASURED
    everything = cache.with_teachers(
        item for each in runs for item in each.run.request.study.networks
    )
    seconds: dict[str, list[float]] = {}
    for item in everything:
        seconds.setdefault(_trained_as(item), []).append(cache.seconds(item.spec))
    for each in runs:
        cells, whole = _durations(each.run.notebook)
        longest = max(cells, default=0.0)
        for name, value in (
            ("chapters: measuring", longest),
            ("chapters: figures, tables and verdicts", sum(cells) - longest),
            ("chapters: kernels, notebooks read and written", whole - sum(cells)),
        ):
            seconds.setdefault(name, []).append(value)
    total = sum(sum(values) for values in seconds.values())
    rows = ["| what | how many | seconds of one core | share |", "|:--|--:|--:|--:|"]
    for name in sorted(seconds, key=lambda name: -sum(seconds[name])):
        spent = sum(seconds[name])
        rows.append(f"| {name} | {len(seconds[name])} | {spent:.0f} | {spent / total:.0%} |")
    rows.append(f"| **all** |  | {total:.0f} | 100% |")
    return "\n".join(rows)


def _trained_as(item: Planned) -> str:
    if item.spec.role == "teacher":
        return "training teachers"
    method = item.spec.method
    return f"training students {'without a teacher' if method is None else f'by {method.short}'}"


def _durations(notebook: Path) -> tuple[list[float], float]:
    """Seconds of each cell of an executed notebook, and of its execution as a whole."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    noted = [cell["metadata"].get("papermill", {}) for cell in content["cells"]]
    cells = [about["duration"] for about in noted if about.get("duration")]
    return cells, content["metadata"]["papermill"]["duration"]


def benchmarks(folder: Path) -> str:
    """The tables that `make bench` left in a folder, in Markdown; a sentence if there is none."""
    found = [
        f"{heading}\n\n{_timings(folder / name)}"
        for name, heading in (("cpu.csv", "On the processor:"), ("cuda.csv", "On a graphics card:"))
        if (folder / name).is_file()
    ]
    return "\n\n".join(found) or NOT_TIMED


def _timings(path: Path) -> str:
    rows = ["| work | contender | least seconds | median | speed-up |", "|:--|:--|--:|--:|--:|"]
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(list(file)[1:]):
            rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)
