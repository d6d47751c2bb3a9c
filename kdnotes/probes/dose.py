"""Which arms are doses of one factor, in which order, and what each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from kdnotes import figures
from kdnotes.probes import cue_bias
from kdnotes.study.arms import INDEPENDENT, TEACHER, Arm
from kdnotes.training.cache import Planned

# The response: in scenes the digit is the shape and the marker the texture.
RESPONSE = replace(cue_bias.MEASURES[0], sentence="goes by the digit, not by the marker beside it")


class Dose(NamedTuple):
    """One dose of a factor: the arm that got it, whom it is compared with, and who taught it."""

    at: float | str
    arm: str
    reference: str = INDEPENDENT.name
    teacher: str = TEACHER.name

    @property
    def said(self) -> str:
        """How much it is, as the book prints numbers: ``.25``, ``1500``, ``2/3``."""
        return figures.brief(self.at)


def ladders(
    doses: Mapping[str, Mapping[float, Arm] | Mapping[str, Arm]],
    planned: Sequence[Planned],
    alone: Mapping[str, Arm] | None = None,
) -> dict[str, list[Dose]]:
    """Doses in rising order by factor, words as they come; without two a factor is left out.

    doses: the arms by their dose, by factor. planned: all networks, which tell who taught whom.
    alone: by name of an arm, whom it is compared with, where not with the independent students.
    """
    others = alone or {}
    names = {item.spec.key: item.arm for item in planned if item.spec.role == "teacher"}
    taught_by = {item.arm: names[item.spec.teacher.key] for item in planned if item.spec.teacher}
    found = {
        factor: [
            Dose(at, arm.name, others.get(arm.name, INDEPENDENT).name, taught_by[arm.name])
            for at, arm in arms.items()
        ]
        for factor, arms in doses.items()
        if len(arms) > 1
    }
    for steps in found.values():
        steps.sort(key=lambda step: 0.0 if isinstance(step.at, str) else step.at)
    return found
