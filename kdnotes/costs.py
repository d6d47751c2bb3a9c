"""What each chapter costs: networks, seconds of training, seconds of measuring."""

from __future__ import annotations

from collections.abc import Iterable

from kdnotes import zoo
from kdnotes.book import Done
from kdnotes.zoo import Planned

NOT_MEASURED = "No chapter was run for this build of the book, so there is nothing to count."


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
