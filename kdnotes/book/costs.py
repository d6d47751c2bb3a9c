"""What each chapter costs, and how that compares with others: tables for the site."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdnotes.book import running
from kdnotes.book.running import Done

if TYPE_CHECKING:
    from kdnotes.training.cache import Planned

NOT_MEASURED = "No chapter was run for this build of the book, so there is nothing to count."
NOT_TIMED = "The benchmarks were not run for this edition of the book."


def table(done: Sequence[Done]) -> str:
    """A Markdown table with a row per chapter, and one for all chapters together.

    Seconds of training are those of one core, written down when each network was trained, its
    share of the teacher's table included. Networks that chapters share count in each of them, but
    once in the last row.
    """
    from kdnotes.training import cache

    if not done:
        return NOT_MEASURED
    requests = [each.run.request for each in done]
    parts = [(each.chapter.name, each.study.networks) for each in requests]
    parts.append(("**all**", running.needed_networks(requests)))
    measuring = [each.seconds for each in done]
    rows = []
    for (name, networks), spent in zip(parts, [*measuring, sum(measuring)], strict=True):
        minutes = sum(cache.seconds(item.spec) for item in networks) / 60
        rows.append((name, len(networks), f"{minutes:.1f} min of one core", f"{spent:.0f} s"))
    return _markdown(("chapter", "networks", "training", "the chapter itself"), ":---", rows)


def profile(done: Sequence[Done]) -> str:
    """A Markdown table of what the time of all chapters went into, in seconds of one core.

    A chapter measures in its longest cell. What its cells do not account for is the start of its
    kernel, and reading and writing the notebook.
    """
    from kdnotes.training import cache

    if not done:
        return NOT_MEASURED
    seconds: dict[str, list[float]] = defaultdict(list)
    for item in running.needed_networks(each.run.request for each in done):
        seconds[_trained_as(item)].append(cache.seconds(item.spec))
    for each in done:
        cells, whole = _durations(each.run.notebook)
        longest = max(cells, default=0.0)
        seconds["chapters: measuring"].append(longest)
        seconds["chapters: figures, tables and verdicts"].append(sum(cells) - longest)
        seconds["chapters: kernels, notebooks read and written"].append(whole - sum(cells))
    total = sum(map(sum, seconds.values()))
    rows = [
        (name, str(len(values)), f"{sum(values):.0f}", f"{sum(values) / total:.0%}")
        for name, values in sorted(seconds.items(), key=lambda part: -sum(part[1]))
    ]
    rows.append(("**all**", "", f"{total:.0f}", "100%"))
    return _markdown(("what", "how many", "seconds of one core", "share"), ":---", rows)


def benchmarks(folder: Path) -> str:
    """The tables that `make bench` left in a folder, in Markdown; a sentence if there is none."""
    found = []
    for name, heading in (("cpu.csv", "On the processor:"), ("cuda.csv", "On a graphics card:")):
        if (folder / name).is_file():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            columns = ("work", "contender", "least seconds", "median", "speed-up")
            found.append(f"{heading}\n\n{_markdown(columns, '::---', rows)}")
    return "\n\n".join(found) or NOT_TIMED


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


def _markdown(columns: Sequence[str], sides: str, rows: Iterable[Sequence[object]]) -> str:
    """A table; ``sides``: ":" for a column of words, "-" for one of numbers."""
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in (columns, *rows))
    rule = "|".join(":--" if side == ":" else "--:" for side in sides)
    return "\n".join([head, f"|{rule}|", *lines])
