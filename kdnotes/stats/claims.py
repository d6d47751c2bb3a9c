"""The paper's claims, each with one primary contrast fixed beforehand, and what a run says of them.

The claims lie in ``book/claims.yml``. A claim names a measure, the arm and what it is compared
with, and a direction with a margin; ``evaluate`` turns them into entries for a chapter's JSON,
which hold all that ``kdnotes.stats.scorecard_verdicts`` needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdnotes import paths, stats
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.probes.outcome import Outcome

Name = Annotated[str, Field(min_length=1)]


class Paper(BaseModel):
    """What the paper itself reports: a sentence of ours and its numbers, as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Name
    numbers: dict[str, str] | Literal["not reported"]


class Claim(BaseModel):
    """One claim of the paper and the contrast that decides on it.

    ``reference`` is an arm or a constant in the units of the measure. With kind "gap closed" the
    contrast is (arm - reference) / (ceiling - reference), else arm - reference. ``margin`` is in
    the units of the contrast; claims of no difference have an ``equivalence_margin`` instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    chapter: Name
    section: Name
    statement: Name
    measure: Name
    condition: str = ""
    arm: Name
    reference: str | float = "independent"
    ceiling: Name = "teacher"
    kind: Literal["difference", "gap closed"] = "difference"
    direction: stats.Direction
    margin: float = 0.0
    equivalence_margin: Annotated[float, Field(gt=0)] | None = None
    paper: Paper

    @model_validator(mode="after")
    def _check_margins(self) -> Claim:
        if self.direction == "equivalent":
            if self.equivalence_margin is None or self.margin != 0:
                raise ValueError("direction 'equivalent' needs an equivalence_margin and no margin")
        elif self.equivalence_margin is not None:
            raise ValueError("equivalence_margin goes with direction 'equivalent' only")
        if self.kind == "gap closed" and not isinstance(self.reference, str):
            raise ValueError("kind 'gap closed' needs an arm as reference, not a number")
        return self

    @property
    def criterion(self) -> str:
        """When the claim counts as reproduced, as a sentence."""
        where = f" ({self.condition})" if self.condition else ""
        if isinstance(self.reference, str):
            reference = self.reference
        else:
            reference = stats.format_number(self.reference)
        if self.kind == "gap closed":
            what = (
                f"share of the gap from {reference} to {self.ceiling} in {self.measure}{where} "
                f"that {self.arm} closes"
            )
        else:
            what = f"{self.measure}{where} of {self.arm} minus {reference}"
        if self.equivalence_margin is not None:
            bound = stats.format_number(self.equivalence_margin)
            return f"{what}: the 95% interval lies inside -{bound} to {bound}."
        margin = stats.format_number(self.margin) if self.margin else "0"
        side = "above" if self.direction == "greater" else "below"
        return f"{what}: the 95% interval lies {side} {margin}."


class ClaimResult(TypedDict):
    """A claim's outcome as it stands in a chapter's JSON; numbers that do not exist are None.

    ``estimate``, ``low`` and ``high`` are in the units of ``kind``: where there was no gap to
    close, ``kind`` is "difference", they are the raw difference, and the claim's margin, which is
    a share, is left out. ``p_reproduced`` and ``p_not_reproduced`` are one-sided. ``seeds`` is the
    number of pairs compared.
    """

    id: str
    chapter: str
    section: str
    statement: str
    measure: str
    condition: str
    arm: str
    reference: str | float
    kind: str
    direction: str
    margin: float | None
    equivalence_margin: float | None
    estimate: float | None
    low: float | None
    high: float | None
    criterion: str
    verdict: str
    reason: str
    paper: dict[str, Any]
    seeds: int
    standard_error: float | None
    degrees_of_freedom: float | None
    seed_sd: float | None
    item_standard_error: float | None
    p_reproduced: float | None
    p_not_reproduced: float | None


def load(chapter: str | None = None, path: Path | None = None) -> tuple[Claim, ...]:
    """The claims of one chapter, or all, in the order of the file (by default the book's).

    Raises RequestError, naming claim and field, where the file is missing or says something that
    is no claim.
    """
    path = path or paths.root() / "book" / "claims.yml"
    if not path.is_file():
        raise RequestError(f"no file of claims at {path.name}; it lies beside the book's notebooks")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RequestError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError(f"{path.name} must be a list of claims, each a mapping of fields")
    claims = []
    for position, entry in enumerate(entries, start=1):
        name = f"claim '{entry['id']}'" if "id" in entry else f"claim number {position}"
        try:
            claims.append(Claim.model_validate(entry))
        except ValidationError as error:
            problems = "; ".join(_problem(detail) for detail in error.errors())
            raise RequestError(f"{path.name}, {name}: {problems}") from error
    ids = [claim.id for claim in claims]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise RequestError(f"{path.name}: more than one claim has the id {', '.join(repeated)}")
    return tuple(claim for claim in claims if chapter in (None, claim.chapter))


def _problem(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown field '{field}'; known: {', '.join(Claim.model_fields)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"field '{field}': {message}" if field else message


def evaluate(claims: Iterable[Claim], outcome: Outcome) -> list[ClaimResult]:
    """What the tables of a run say about each claim, alone (before Holm's correction).

    A claim whose arm, measure or condition was not measured, or that asks for a share of a gap
    that is not there, is "not applicable", with the reason. The same tables give the same numbers.
    """
    return [_evaluate(claim, outcome) for claim in claims]


def _evaluate(claim: Claim, outcome: Outcome) -> ClaimResult:
    tables = (outcome.table, outcome.items, claim.measure, claim.condition)
    result: stats.Interval | stats.GapClosed
    try:
        if claim.kind == "gap closed":
            result = stats.gap_closed(*tables, claim.arm, str(claim.reference), claim.ceiling)
        else:
            result = stats.contrast(*tables, claim.arm, claim.reference)
    except stats.NotMeasuredError as error:
        return _result(claim, None, claim.kind, stats.Verdict("not applicable", str(error)))
    if isinstance(result, stats.GapClosed) and result.ratio is None:
        gap = f"{claim.ceiling} minus {claim.reference} is {result.gap.format()}"
        label: stats.VerdictLabel = (
            "not applicable" if result.reason == stats.NO_GAP else "inconclusive"
        )
        says = stats.Verdict(label, f"{result.reason}: {gap}")
        return _result(claim, result.difference, "difference", says)
    interval = result.ratio if isinstance(result, stats.GapClosed) else result
    assert interval is not None
    if interval.n == 0:
        says = stats.Verdict("not applicable", "no seed has a finite value in every arm compared")
        return _result(claim, None, claim.kind, says)
    says = stats.verdict(interval, claim.direction, claim.margin, claim.equivalence_margin)
    p_values = stats.claim_p_values(result, claim.direction, claim.margin, claim.equivalence_margin)
    return _result(claim, interval, claim.kind, says, p_values)


def _result(
    claim: Claim,
    interval: stats.Interval | None,
    kind: str,
    says: stats.Verdict,
    p_values: tuple[float, float] = (math.nan, math.nan),
) -> ClaimResult:
    def number(name: str) -> float | None:
        value = math.nan if interval is None else float(getattr(interval, name))
        return value if math.isfinite(value) else None

    in_units = kind == claim.kind
    p_reproduced, p_not_reproduced = (None if math.isnan(p) else p for p in p_values)
    return ClaimResult(
        id=claim.id,
        chapter=claim.chapter,
        section=claim.section,
        statement=claim.statement,
        measure=claim.measure,
        condition=claim.condition,
        arm=claim.arm,
        reference=claim.reference,
        kind=kind,
        direction=claim.direction,
        margin=claim.margin if in_units else None,
        equivalence_margin=claim.equivalence_margin if in_units else None,
        estimate=number("estimate"),
        low=number("low"),
        high=number("high"),
        criterion=claim.criterion,
        verdict=says.label,
        reason=says.reason,
        paper=claim.paper.model_dump(),
        seeds=interval.n if interval is not None else 0,
        standard_error=number("standard_error"),
        degrees_of_freedom=number("degrees_of_freedom"),
        seed_sd=number("seed_sd"),
        item_standard_error=number("item_standard_error"),
        p_reproduced=p_reproduced,
        p_not_reproduced=p_not_reproduced,
    )
