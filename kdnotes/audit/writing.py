"""An audit as files and as a page of Markdown."""

from __future__ import annotations

from pathlib import Path

from kdnotes import paths
from kdnotes.audit.measuring import Audit, comparison_lines
from kdnotes.book import results
from kdnotes.store import appearing

NAME = "audit"
READING = f"""
Differences are student minus independent (for the likeness beyond its twin's: minus .5). Their \
intervals are over images, for these very networks: another training run could come out \
differently, and only several seeds of each would tell. Where a cell is empty there was nothing to \
measure, such as no image that fools the teacher; there is no interval where a measure is one \
number for all images together. Every measure under every condition is in {NAME}.csv.
"""


def save(audit: Audit, where: Path) -> None:
    """Write audit.csv, audit.items.parquet, audit.json and audit.md into a folder."""
    results.save(NAME, audit.outcome, audit.claims, audit.parameters, audit.seconds, where)
    with appearing(where / f"{NAME}.md") as path:
        path.write_text(summary(audit))


def summary(audit: Audit) -> str:
    """The audit as Markdown: what was compared, each measure, and how to read it."""
    given = paths.without_absolute_paths(audit.parameters)
    independent = given["independent"]
    third = f"independent student `{independent}`" if independent else "no independent student"
    lines = [
        "# What did the student inherit?",
        "",
        f"Teacher `{given['teacher']}`, student `{given['student']}`, {third}; {given['images']} "
        f"test images of `{given['data']}`, {given['size']} pixels a side.",
        "",
        *comparison_lines(audit.claims),
    ]
    lines += ["", *(f"Not measured: {name} ({why})." for name, why in audit.skipped.items())]
    return "\n".join(lines) + "\n" + READING
