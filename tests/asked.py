"""Studies of the book's chapters, planned as the command line plans them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kdnotes.book import parameters, running
from kdnotes.book.parameters import Parameter
from kdnotes.study import Plan, Study
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec

BOOK = Path(__file__).resolve().parents[1] / "book"
NOTEBOOKS = {path.stem[3:]: path for path in sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))}


def study_of(chapter: str, **values: Any) -> Study:
    """The study of a chapter, some of its parameters given."""
    path = NOTEBOOKS[chapter]
    which = running.Chapter(chapter, path, "", parameters.read(path))
    return running.planned(which, {"device": "cpu"} | values)


def main_plan(study: Study) -> Plan:
    """The first plan of a chapter."""
    return next(iter(study.plans.values()))


def by_arm(planned: list[Planned]) -> dict[str, NetworkSpec]:
    """The first network of each arm."""
    return {item.arm: item.spec for item in reversed(planned)}


def wrong_values(parameter: Parameter) -> list[str]:
    """Texts that a parameter must refuse: below, above, of another type, outside the choices."""
    limits = re.search(r"(?P<low>-?[\d.]+) to (?P<high>-?[\d.]+)$", parameter.allowed)
    if parameter.kind == "bool":
        return ["perhaps", "2"]
    if limits is None:
        return ["no such thing", "../no/such thing"]
    low, high = float(limits["low"]), float(limits["high"])
    below, above = f"{low - 1:g}", f"{high + 1:.0f}"
    wrong = [below, above, f"-{above}", "abc", "nan", "inf", "1e200", str(2**64 + 1)]
    if parameter.kind == "str":
        return [*wrong, "", f"{high:.0f},{above}", f"{high:.0f},{high:.0f}", f"{high:.0f};", ","]
    return [*wrong, f"{high:.0f},{high:.0f}"] + (["2.5"] if parameter.kind == "int" else [])
