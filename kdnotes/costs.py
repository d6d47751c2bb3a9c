"""What each chapter costs, and how that compares with others: tables for the site."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from kdnotes import zoo
from kdnotes.book import Done
from kdnotes.zoo import Planned

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
    rows.append(_row("**all**", zoo.with_teachers(everything), running))
    return "\n".join(rows)


def _row(name: str, networks: list[Planned], seconds: float) -> str:
    training = sum(zoo.seconds(item.spec) for item in networks)
    return f"| {name} | {len(networks)} | {training / 60:.1f} min of one core | {seconds:.0f} s |"


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
