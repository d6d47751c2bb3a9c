"""Which arms are doses of one factor, in which order, and what each is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SWEPT = ("weight", "tau", "images", "epochs")
_DEPTHS = {"hint-1": "1", "hint-2": "2", "hint-3": "3", "hint-logits": "logits"}


class Dose(NamedTuple):
    """One dose of a factor: the arm that got it, whom it is compared with, and who taught it."""

    at: float | str
    arm: str
    reference: str = "independent"
    teacher: str = "teacher"


def ladders(
    arms: Sequence[str], own: Mapping[str, float], few: Mapping[str, float] | None = None
) -> dict[str, list[Dose]]:
    """Doses in rising order by factor; a factor with fewer than two doses is left out.

    arms: all arms of a cast. own: the dose of each swept factor (`SWEPT`) that the arm ``kl``
    itself has; few: what an arm named ``kl-FACTOR-few`` has of it. Factors: those (arms
    ``kl-FACTOR-NUMBER`` or ``-few``, compared with ``independent-FACTOR-NUMBER`` where there is
    one), ``depth`` of the Hint layer (a depth without an arm is that of ``hint``), and ``mixture``,
    the share of the second of two mixed teachers (arms ``mixture-SHARE``, taught by
    ``teacher-SHARE``; 0 is ``kl`` itself).
    """
    found = {
        factor: _swept(arms, factor, own.get(factor), (few or {}).get(factor)) for factor in SWEPT
    }
    found["depth"] = _depths(arms)
    found["mixture"] = _mixtures(arms)
    return {factor: doses for factor, doses in found.items() if len(doses) > 1}


def _numbered(arms: Sequence[str], prefix: str, few: float | None = None) -> dict[float, str]:
    """Arms named by a prefix and a number (or "few"), by that number."""
    matches = {arm: re.fullmatch(rf"{prefix}-(\d+(?:\.\d+)?)", arm) for arm in arms}
    found = {float(match[1]): arm for arm, match in matches.items() if match}
    if few is not None and f"{prefix}-few" in arms:
        found[float(few)] = f"{prefix}-few"
    return found


def _swept(arms: Sequence[str], factor: str, own: float | None, few: float | None) -> list[Dose]:
    students = _numbered(arms, f"kl-{factor}", few)
    references = _numbered(arms, f"independent-{factor}", few)
    if own is not None and "kl" in arms:
        students[float(own)], references[float(own)] = "kl", "independent"
    return [Dose(at, students[at], references.get(at, "independent")) for at in sorted(students)]


def _depths(arms: Sequence[str]) -> list[Dose]:
    doses: list[Dose] = []
    for deep, at in _DEPTHS.items():
        arm = deep if deep in arms else "hint"
        if arm in arms and arm not in [dose.arm for dose in doses]:
            doses.append(Dose(at, arm))
    return doses


def _mixtures(arms: Sequence[str]) -> list[Dose]:
    students, teachers = _numbered(arms, "mixture"), _numbered(arms, "teacher")
    if "kl" in arms:
        students[0.0] = "kl"
    return [Dose(at, students[at], teacher=teachers.get(at, "teacher")) for at in sorted(students)]
