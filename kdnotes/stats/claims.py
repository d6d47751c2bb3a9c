"""The paper's claims, each with one primary contrast fixed beforehand, and what a run says of them.

The claims lie in ``book/claims.yml``. A claim names a measure, the arm and what it is compared
with, and a direction with a margin; ``evaluate`` turns them into entries for a chapter's JSON,
which hold all that ``kdnotes.stats.scorecard_verdicts`` needs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from kdnotes import paths
from kdnotes.errors import RequestError
from kdnotes.stats.words import Direction, format_number

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes import stats

Name = Annotated[str, Field(min_length=1)]


class Tables(Protocol):
    """What a run measured, as the probes' outcomes hold it."""

    @property
    def table(self) -> pd.DataFrame: ...

    @property
    def items(self) -> pd.DataFrame: ...


class Paper(BaseModel):
    """What the paper itself reports: a sentence of ours and its numbers, as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Name
    numbers: dict[str, str] | Literal["not reported"]


class Claim(BaseModel):
    """One claim of the paper and the contrast that decides on it.

    ``family``: the primary claim, C1 to C12, that it is a part of, "exploratory", or "check" where
    it is mathematics that must come out. ``decided_on``: the images on which a primary is decided;
    elsewhere the same contrast is exploratory. Anything but "more than 0" needs a ``why``.
    ``reference`` is an arm or a constant in the units of the measure. With kind "gap closed" the
    contrast is (arm - reference) / (ceiling - reference), else arm - reference. ``margin`` is in
    the units of the contrast; claims of no difference have an ``equivalence_margin`` instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    chapter: Name
    section: Name
    statement: Name
    family: Annotated[str, Field(pattern=r"^(C([1-9]|1[0-2])|exploratory|check)$")] = "exploratory"
    decided_on: Name = "scenes"
    why: str = ""
    measure: Name
    condition: str = ""
    arm: Name
    reference: str | float = "independent"
    ceiling: Name = "teacher"
    kind: Literal["difference", "gap closed"] = "difference"
    direction: Direction
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
        if (self.direction != "greater" or self.margin != 0) and not self.why:
            raise ValueError("'why' must say the reason for a direction or a margin of its own")
        return self

    @property
    def criterion(self) -> str:
        """What it takes to agree with the paper, as a sentence."""
        where = f" ({self.condition})" if self.condition else ""
        other = self.reference
        reference = other if isinstance(other, str) else format_number(other)
        if self.kind == "gap closed":
            what = (
                f"share of the gap from {reference} to {self.ceiling} in {self.measure}{where} "
                f"that {self.arm} closes"
            )
        else:
            what = f"{self.measure}{where} of {self.arm} minus {reference}"
        if self.equivalence_margin is not None:
            bound = format_number(self.equivalence_margin)
            return f"{what}: the 95% interval lies inside -{bound} to {bound}."
        margin = format_number(self.margin) if self.margin else "0"
        side = "above" if self.direction == "greater" else "below"
        return f"{what}: the 95% interval lies {side} {margin}."


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
    try:
        claims = TypeAdapter(tuple[Claim, ...]).validate_python(entries)
    except ValidationError as error:
        problems = "; ".join(_problem(detail, entries) for detail in error.errors())
        raise RequestError(f"{path.name}, {problems}") from error
    ids = [claim.id for claim in claims]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise RequestError(f"{path.name}: more than one claim has the id {', '.join(repeated)}")
    return tuple(claim for claim in claims if chapter in (None, claim.chapter))


def digest() -> str:
    """A name for what decides the primary claims of the book; empty without a file of claims."""
    if not (paths.root() / "book" / "claims.yml").is_file():
        return ""
    told = {"statement", "section", "why", "paper"}
    primary = [
        claim.model_dump_json(exclude=told) for claim in load() if claim.family[1:].isdigit()
    ]
    return hashlib.sha256("\n".join(primary).encode()).hexdigest()[:16]


def _problem(detail: Any, entries: list[dict[str, Any]]) -> str:
    """One of pydantic's findings, with the claim and the field that it is about."""
    position, *path = detail["loc"]
    field = ".".join(str(part) for part in path)
    name = entries[position].get("id")
    where = f"claim number {position + 1}" if name is None else f"claim '{name}'"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown field '{field}'; known: {', '.join(Claim.model_fields)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: field '{field}': {message}" if field else f"{where}: {message}"


def evaluate(
    claims: Iterable[Claim],
    outcome: Tables,
    dataset: str = "",
    not_trained_out: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """What the tables of a run on a data set say about each claim, alone (before any correction).

    An entry of a chapter's JSON has the fields of the claim, the data set, its criterion, those of
    a `stats.Interval` (its n as ``seeds``), verdict, reason, and the one-sided ``p_agrees`` and
    ``p_disagrees``; numbers that do not exist are None. Where there is no ratio, ``kind`` is
    "difference", the numbers are those of the raw difference, and the claim's margin, which is a
    share, is left out. A claim whose arm, measure or condition was not measured, or that asks for a
    share of a gap that cannot be divided by, is "not applicable", with the reason. So is one about
    an arm that is ``not_trained_out`` (see `study.Plan.not_trained_out`). The same tables give the
    same numbers.
    """
    short = not_trained_out or {}
    return [_evaluated(claim, outcome, short) | {"dataset": dataset} for claim in claims]


def by_teacher(
    together: Iterable[dict[str, Any]], own: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Entries of `evaluate` for the mean of two teachers' students, with what each teacher's say.

    ``own``: the entries for each teacher alone, in the same order. Their estimates become
    ``by_teacher``; where they lie on different sides of the margin, the claim is open.
    """
    entries = []
    for entry, *single in zip(together, *own, strict=True):
        estimates = [each["estimate"] for each in single]
        entry = entry | {"by_teacher": estimates}
        sides = {each > (entry["margin"] or 0) for each in estimates if each is not None}
        firm = entry["verdict"] in ("agrees", "disagrees") and entry["direction"] != "equivalent"
        if len(sides) == 2 and firm:
            said = " and ".join(format_number(each) for each in estimates)
            entry |= {"verdict": "open", "p_agrees": 1.0, "p_disagrees": 1.0}
            entry["reason"] = f"the students of the two teachers differ in sign: {said}"
        entries.append(entry)
    return entries


def _evaluated(claim: Claim, outcome: Tables, short: Mapping[str, float]) -> dict[str, Any]:
    from kdnotes import stats
    from kdnotes.stats.intervals import NOTHING

    tables = (outcome.table, outcome.items, claim.measure, claim.condition)
    result: stats.Interval | stats.GapClosed
    try:
        if claim.kind == "gap closed":
            result = stats.gap_closed(*tables, claim.arm, str(claim.reference), claim.ceiling)
        else:
            result = stats.contrast(*tables, claim.arm, claim.reference)
    except stats.NotMeasuredError:
        rows = outcome.table
        rows = rows[(rows["measure"] == claim.measure) & (rows["condition"] == claim.condition)]
        why = "not measured of all that it compares" if len(rows) else "not measured in this run"
        return _entry(claim, NOTHING, stats.Verdict("not applicable", why))
    difference = result if isinstance(result, stats.Interval) else result.difference
    if isinstance(result, stats.GapClosed) and result.ratio is None:
        undivided = result.reason in (stats.NO_GAP, stats.UNCERTAIN_GAP)
        says = stats.Verdict(
            "not applicable" if undivided else "open",
            f"{result.reason}: {claim.ceiling} minus {claim.reference} is {result.gap.format()}",
        )
        raw = {"kind": "difference", "margin": None, "equivalence_margin": None}
        return _entry(claim, difference, says) | raw
    for arm in (claim.arm, claim.reference):
        if isinstance(arm, str) and arm in short:
            why = f"{arm} is not trained out: {short[arm]:.0%} of its own loss is left"
            return _entry(claim, difference, stats.Verdict("not applicable", why))
    interval = result.ratio if isinstance(result, stats.GapClosed) else result
    assert interval is not None
    if interval.n == 0:
        why = "no seed has a finite value in every arm compared"
        return _entry(claim, NOTHING, stats.Verdict("not applicable", why))
    margin = claim.equivalence_margin or claim.margin
    p_values = stats.claim_p_values(result, claim.direction, margin)
    return _entry(claim, interval, stats.verdict(interval, claim.direction, margin), p_values)


def _entry(
    claim: Claim,
    interval: stats.Interval,
    says: stats.Verdict,
    p_values: tuple[float, float] = (math.nan, math.nan),
) -> dict[str, Any]:
    numbers = asdict(interval) | dict(zip(("p_agrees", "p_disagrees"), p_values, strict=True))
    found = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    found["seeds"] = found.pop("n")
    words = {"criterion": claim.criterion, "verdict": says.label, "reason": says.reason}
    return claim.model_dump() | words | found


def records(claims: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims that were judged together as `evaluate` gives them, None where there is no number."""
    return claims.astype(object).where(claims.notna(), None).to_dict("records")


def estimate(claim: Mapping[str, Any]) -> str:
    """The estimate of a claim with its interval, or why there is none, as a short sentence."""
    if claim["estimate"] is None:
        return f"({claim['reason']})"
    bounds = [format_number(claim[name]) for name in ("low", "high") if claim[name] is not None]
    number = f"{format_number(claim['estimate'])} [{', '.join(bounds)}]"
    undecided = claim["verdict"] in ("open", "not applicable")
    reason = f"; {claim['reason']}" if undecided else ""
    return f"({claim['kind']} {number}{reason})"


def said(claim: Mapping[str, Any]) -> str:
    """The verdict on a claim with its numbers."""
    return f"**{claim['verdict']}** {estimate(claim)}"


def verdict_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of claims: what is claimed and decides, what the paper has, what was found.

    Three columns, because more would be too narrow to read beside each other.
    """
    rows = ["| claim, and what it takes to agree | the paper | here |", "|:--|:--|:--|"]
    for claim in claims:
        paper, section = claim["paper"]["numbers"], claim["section"]
        if isinstance(paper, Mapping):  # else "not reported"
            paper = "; ".join(f"{name}: {value}" for name, value in paper.items())
        where = f"section {section}" if section[0].isdigit() else section
        rows.append(
            f"| {claim['statement']} ({where}) *{claim['criterion']}* | {paper} | {said(claim)} |"
        )
    return "\n".join(rows)
