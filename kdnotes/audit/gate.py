"""Conditions under which an audit ends with exit status 3, for scripts that gate on it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdnotes.audit import answers
from kdnotes.errors import RequestError
from kdnotes.probes import accuracy
from kdnotes.stats import format_number

if TYPE_CHECKING:
    from kdnotes.audit.measuring import Measured
    from kdnotes.probes.base import Measure, Property

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(
    r"\s*(?P<name>\w+)(\[(?P<where>[^\]]*)\])?(?P<diff>:diff)?\s*(?P<sign>[<>]=?)\s*(?P<number>\S+)\s*"
)
FORM = 'write "MEASURE OP NUMBER" or "MEASURE:diff OP NUMBER", OP one of > >= < <='


@dataclass(frozen=True)
class Gate:
    """A condition on the student's value of a measure, or on student minus twin."""

    text: str
    measure: Measure
    difference: bool
    sign: str
    number: float

    def is_met(self, found: Measured) -> tuple[bool, str]:
        """Whether the whole interval lies beyond the number, and what is said of it."""
        what = self.measure.name, "student", "independent" if self.difference else 0.0
        try:
            value = found.contrast(*what, self.measure.condition)
        except RequestError as error:
            return False, f"{self.text}: not decided, {error}"
        if not math.isfinite(value.low):
            got = format_number(value.estimate, 3)
            return False, f"{self.text}: not decided, {got} has no interval"
        nearest = value.low if self.sign.startswith(">") else value.high
        met = bool(OPERATORS[self.sign](nearest, self.number))
        return met, f"{self.text}: {'met' if met else 'not met'} by {value.format(3)}"


def parse(text: str, wanted: Sequence[Property], has_twin: bool) -> Gate:
    """A condition as it was typed. Raises RequestError for one that an audit cannot decide."""
    parts = _CONDITION.fullmatch(text)
    if not parts:
        raise RequestError(f"--fail-if {text!r} is no condition: {FORM}")
    try:
        number = float(parts["number"])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"--fail-if {text!r}: {parts['number']!r} is no number; {FORM}")
    measure = _measure(text, parts["name"], parts["where"], wanted)
    relative = measure.name == "win_rate" or measure in answers.FLIPS[:-1]
    if (parts["diff"] or relative) and not has_twin:
        raise RequestError(f"--fail-if {text!r}: that needs an --independent student")
    if parts["diff"] and (relative or measure in answers.FLIPS):
        raise RequestError(
            f"--fail-if {text!r}: {measure.name} is of the student beside another: leave :diff out"
        )
    return Gate(text, measure, bool(parts["diff"]), parts["sign"], number)


def _measure(text: str, name: str, where: str | None, wanted: Sequence[Property]) -> Measure:
    declared = [each for which in wanted for each in which.measures if each.reported]
    declared += accuracy.MEASURES[:1]
    if any(which.name == "fidelity" for which in wanted):
        declared += answers.FLIPS
    named = [each for each in declared if each.name == name]
    if not named:
        known = ", ".join(dict.fromkeys(each.name for each in declared))
        raise RequestError(
            f"--fail-if {text!r}: no measure {name!r} in this audit; it has: {known}"
        )
    if where is None and len(named) == 1:
        return named[0]
    for each in named:
        if each.condition == where:
            return each
    options = ", ".join(f'"{name}[{each.condition}]"' for each in named)
    raise RequestError(f"--fail-if {text!r}: say which {name}: {options}")
