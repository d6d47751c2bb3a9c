"""An audit by the command: one's own networks measured, as files and as a page of Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kdnotes import paths
from kdnotes.audit import measuring
from kdnotes.book import results, running
from kdnotes.errors import RequestError
from kdnotes.store import appearing

if TYPE_CHECKING:
    from torch import nn

NAME = "audit"
READING = f"""
Differences are student minus independent (for the likeness beyond its twin's: minus .5). Their \
intervals are over images, for these very networks: another training run could come out \
differently, and only several seeds of each would tell. Where a cell is empty there was nothing to \
measure, such as no image that fools the teacher; there is no interval where a measure is one \
number for all images together. Every measure under every condition is in {NAME}.csv.
"""


def run(
    teacher: str,
    student: str,
    independent: str | None,
    folder: str,
    out: Path,
    size: int | None = None,
    count: int | None = None,
    skip_damaged: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> str:
    """Measure every property that is declared for audits; the summary, as Markdown.

    Models are written as `networks.load_user_model` reads them; images are as in `images`.
    ``out``, made when the request has proved right and before anything is measured, gets audit.csv,
    audit.items.parquet, audit.json and audit.md. Raises RequestError.
    """
    started = time.perf_counter()
    shown = measuring.images(folder, size=size, count=count, skip_damaged=skip_damaged)
    given = {"teacher": teacher, "student": student, "independent": independent}
    named = {
        arm: _named(arm, text, len(shown.classes))
        for arm, text in given.items()
        if text is not None
    }
    members = measuring.cast(named["teacher"], named["student"], named.get("independent", ()))
    running.make_folder(out)
    found = measuring.measure(members, shown, report=report)
    parameters = given | {"data": folder, "images": len(shown), "size": shown.size}
    compared = found.comparisons()
    seconds = time.perf_counter() - started
    results.save(NAME, found.outcome, compared, parameters, seconds, out)
    said = paths.without_absolute_paths(parameters)
    twin = f"independent student `{said['independent']}`"
    third = twin if independent else "no independent student"
    about = (
        f"Teacher `{said['teacher']}`, student `{said['student']}`, {third}; {len(shown)} test "
        f"images of `{said['data']}`, {shown.size} pixels a side."
    )
    lines = ["# What did the student inherit?", "", about, "", *found.lines(compared)]
    summary = "\n".join(lines) + "\n" + READING
    with appearing(out / f"{NAME}.md") as path:
        path.write_text(summary)
    return summary


def _named(arm: str, text: str, classes: int) -> nn.Module:
    from kdnotes import networks

    try:
        return networks.load_user_model(text, classes)
    except RequestError as error:
        raise RequestError(f"--{arm}: {error}") from error
