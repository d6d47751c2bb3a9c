"""The paper's claims, each with one primary contrast fixed beforehand, and what a run says of them.

They lie in ``book/claims.yml``; `evaluate` makes entries of a chapter's JSON of them, which hold
all that ``kdnotes.stats.scorecard_verdicts`` needs.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from kdnotes import paths
from kdnotes.data import Strict
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


class Paper(Strict):
    """What the paper itself reports: a sentence of ours and its numbers, as text."""

    text: Name
    numbers: dict[str, str] | Literal["not reported"]


class Claim(Strict):
    """One claim of the paper and the contrast that decides on it.

    ``family``: the primary claim that it is a part of, "exploratory", or "check" for mathematics
    that must come out. ``decided_on``: the images on which a primary is decided; elsewhere it is
    exploratory. ``why``: of anything but "more than 0". ``reference``: an arm or a constant. The
    contrast is arm - reference, or its share of ceiling - reference, and ``margin`` in its units;
    claims of no difference have an ``equivalence_margin`` instead.
    """

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
        measure = f"{self.measure} ({self.condition})" if self.condition else self.measure
        other = self.reference
        reference = other if isinstance(other, str) else format_number(other)
        what = f"{measure} of {self.arm} minus {reference}"
        if self.kind == "gap closed":
            ends = f"from {reference} to {self.ceiling}"
            what = f"share of the gap {ends} in {measure} that {self.arm} closes"
        bound = format_number(self.equivalence_margin or self.margin)
        where = {
            "equivalent": f"inside -{bound} to {bound}",
            "greater": f"above {bound if self.margin else 0}",
            "less": f"below {bound if self.margin else 0}",
        }
        return f"{what}: the 95% interval lies {where[self.direction]}."


def load(chapter: str | None = None, path: Path | None = None) -> tuple[Claim, ...]:
    """The claims of one chapter, or all, in the order of the file (by default the book's).

    Raises RequestError, naming claim and field, for what is missing or no claim.
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
    number = Counter(claim.id for claim in claims)
    if repeated := sorted(name for name, times in number.items() if times > 1):
        raise RequestError(f"{path.name}: more than one claim has the id {', '.join(repeated)}")
    return tuple(claim for claim in claims if chapter in (None, claim.chapter))


def digest() -> str:
    """A name for what decides the primary claims of the book; empty without a file of claims."""
    if not (paths.root() / "book" / "claims.yml").is_file():
        return ""
    deciding = [claim for claim in load() if claim.family[1:].isdigit()]
    told = {"statement", "section", "why", "paper"}
    primary = [claim.model_dump_json(exclude=told) for claim in deciding]
    return hashlib.sha256("\n".join(primary).encode()).hexdigest()[:16]


def _problem(detail: Any, entries: list[dict[str, Any]]) -> str:
    """One of pydantic's findings, with the claim and the field that it is about."""
    position, *path = detail["loc"]
    field = ".".join(map(str, path))
    name = entries[position].get("id")
    where = f"claim number {position + 1}" if name is None else f"claim '{name}'"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown field '{field}'; known: {', '.join(Claim.model_fields)}"
    about = f"{where}: field '{field}'" if field else where
    return f"{about}: {detail['msg'].removeprefix('Value error, ')}"


def evaluate(
    claims: Iterable[Claim],
    outcome: Tables,
    dataset: str = "",
    not_trained_out: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """What the tables of a run on a data set say about each claim, alone (before any correction).

    An entry of a chapter's JSON has the fields of the claim, ``dataset``, ``criterion``, those of a
    `stats.Interval` (its n as ``seeds``), verdict, reason, ``p_agrees`` and ``p_disagrees``;
    numbers that do not exist are None. Where there is no ratio, the kind and numbers are the raw
    difference's and there is no margin. A claim on what was not measured, on a gap that cannot be
    divided by, or on an arm that is ``not_trained_out`` (see `study.Plan`) is "not applicable".
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
        sides = {each > (entry["margin"] or 0) for each in estimates if each is not None}
        firm = entry["verdict"] in ("agrees", "disagrees") and entry["direction"] != "equivalent"
        entries.append(entry | {"by_teacher": estimates})
        if len(sides) == 2 and firm:
            said = " and ".join(map(format_number, estimates))
            reason = f"the students of the two teachers differ in sign: {said}"
            entries[-1] |= {"verdict": "open", "p_agrees": 1.0, "p_disagrees": 1.0}
            entries[-1]["reason"] = reason
    return entries


def _evaluated(claim: Claim, outcome: Tables, short: Mapping[str, float]) -> dict[str, Any]:
    from kdnotes import stats
    from kdnotes.stats.intervals import NOTHING

    def lacking(why: str, interval: stats.Interval = NOTHING) -> dict[str, Any]:
        return _entry(claim, interval, stats.Verdict("not applicable", why))

    tables = (outcome.table, outcome.items, claim.measure, claim.condition)
    share: stats.GapClosed | None = None
    interval: stats.Interval | None
    try:
        if claim.kind == "gap closed":
            share = stats.gap_closed(*tables, claim.arm, str(claim.reference), claim.ceiling)
            difference, interval = share.difference, share.ratio
        else:
            difference = interval = stats.contrast(*tables, claim.arm, claim.reference)
    except stats.NotMeasuredError:
        there = outcome.table[["measure", "condition"]] == [claim.measure, claim.condition]
        of_some = there.all(axis=1).any()
        return lacking(f"not measured {'of all that it compares' if of_some else 'in this run'}")
    if share and interval is None:
        why = f"{share.reason}: {claim.ceiling} minus {claim.reference} is {share.gap.format()}"
        undivided = share.reason in (stats.NO_GAP, stats.UNCERTAIN_GAP)
        says = stats.Verdict("not applicable" if undivided else "open", why)
        raw = {"kind": "difference", "margin": None, "equivalence_margin": None}
        return _entry(claim, difference, says) | raw
    for arm in (claim.arm, claim.reference):
        if arm in short:
            left = short[str(arm)]
            return lacking(
                f"{arm} is not trained out: {left:.0%} of its own loss is left", difference
            )
    assert interval is not None
    if interval.n == 0:
        return lacking("no seed has a finite value in every arm compared")
    margin = claim.equivalence_margin or claim.margin
    p_values = stats.claim_p_values(share or interval, claim.direction, margin)
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
    undecided = claim["verdict"] in ("open", "not applicable")
    reason = f"; {claim['reason']}" if undecided else ""
    number = f"{format_number(claim['estimate'])} [{', '.join(bounds)}]"
    return f"({claim['kind']} {number}{reason})"


def said(claim: Mapping[str, Any]) -> str:
    """The verdict on a claim with its numbers."""
    return f"**{claim['verdict']}** {estimate(claim)}"


def verdict_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: what is claimed and decides, what the paper has, what was found."""
    rows = ["| claim, and what it takes to agree | the paper | here |", "|:--|:--|:--|"]
    for claim in claims:
        paper, where = claim["paper"]["numbers"], claim["section"]
        if isinstance(paper, Mapping):  # else "not reported"
            paper = "; ".join(f"{name}: {value}" for name, value in paper.items())
        if where[0].isdigit():
            where = f"section {where}"
        what = f"{claim['statement']} ({where}) *{claim['criterion']}*"
        rows.append(f"| {what} | {paper} | {said(claim)} |")
    return "\n".join(rows)
