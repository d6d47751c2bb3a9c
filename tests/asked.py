"""Studies of the book's chapters, planned as the command line plans them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdnotes.book import parameters, planning
from kdnotes.study import Plan, Study
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec

BOOK = Path(__file__).resolve().parents[1] / "book"
NOTEBOOKS = {path.stem[3:]: path for path in sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))}


def study_of(chapter: str, **values: Any) -> Study:
    """The study of a chapter, some of its parameters given."""
    path = NOTEBOOKS[chapter]
    return planning.planned(chapter, path, parameters.read(path), {"device": "cpu"} | values)


def main_plan(study: Study) -> Plan:
    """The first plan of a chapter."""
    return next(iter(study.plans.values()))


def by_arm(planned: list[Planned]) -> dict[str, NetworkSpec]:
    """The first network of each arm."""
    return {item.arm: item.spec for item in reversed(planned)}
