"""Measuring one's own networks on one's own images, property by property."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast, Member, Outcome, Property

CRITERION = "95% interval over images, for these very networks"


@dataclass(frozen=True)
class Audit:
    """What an audit found: probe outcomes, comparisons, and what could not be measured (why)."""

    outcome: Outcome
    claims: list[dict[str, Any]]
    skipped: dict[str, str]
    parameters: dict[str, Any]
    seconds: float


def run(
    teacher: str,
    student: str,
    independent: str | None,
    folder: str,
    size: int | None = None,
    count: int | None = None,
    skip_damaged: bool = False,
    out: Callable[[], Path] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Audit:
    """Measure every property that is declared for audits on the test images of a folder.

    Models are written as `networks.load_user_model` reads them. ``size`` and ``count`` are the side
    of the images in pixels and how many of them; ``skip_damaged`` leaves out files that cannot be
    read instead of refusing the folder. ``out`` is called when the request has proved right and
    before anything is measured. Raises RequestError.
    """
    from kdnotes import data, probes
    from kdnotes.probes.base import Cast, Outcome

    for name, value in (("size", size), ("images", count)):
        if value is not None and value < 1:
            raise RequestError(f"--{name} must be 1 or more, not {value}")
    started = time.perf_counter()
    asked = {"size": size, "skip_damaged": skip_damaged}
    options = {name: value for name, value in asked.items() if value}
    source = f"{data.FOLDER_PREFIX}{folder}"
    images = data.load(data.DataSpec(name=source, split="test", count=count, options=options))
    given = {"teacher": teacher, "student": student, "independent": independent}
    classes = len(images.classes)
    teaching, *taught = (
        _member(arm, text, classes) for arm, text in given.items() if text is not None
    )
    cast = Cast(teaching, None, tuple(taught), images.classes)
    if out is not None:
        out()
    parts: list[Outcome] = []
    skipped = {}
    for which in probes.properties():
        if not which.audited:
            continue
        report(f"measuring {which.title} on {len(images)} images")
        try:
            found = measured(which, cast, images)
        except RequestError as error:  # such as a network without feature maps
            skipped[which.title] = str(error)
        else:  # every probe measures the accuracy on the images as they are anew
            parts.append(found.without_accuracy() if parts else found)
    outcome = Outcome.combine(parts)
    claims = list(_comparisons(outcome, independent is not None))
    parameters = given | {"data": folder, "images": len(images), "size": images.size}
    return Audit(outcome, claims, skipped, parameters, time.perf_counter() - started)


def measured(which: Property, cast: Cast, images: ImageData) -> Outcome:
    """What one property's probe finds. Raises RequestError where networks lack what it needs."""
    if "maps" in which.needs and not all(member.taps for member in cast.everyone()):
        raise RequestError("no stages with feature maps can be found in one of the networks")
    return which.measure(cast, images)


def _member(arm: str, text: str, classes: int) -> Member:
    from kdnotes import networks
    from kdnotes.probes.base import Member
    from kdnotes.study.resolving import resolve_device

    try:
        network = networks.freeze(networks.load_user_model(text, classes)).to(resolve_device(""))
    except RequestError as error:
        raise RequestError(f"--{arm}: {error}") from error
    try:
        taps = networks.taps(network)
    except RequestError:  # only some properties need them, and say so
        taps = ()
    return Member(arm, 0, network, taps)


def _comparisons(outcome: Outcome, has_independent: bool) -> Iterator[dict[str, Any]]:
    from kdnotes import probes, stats

    table = outcome.table
    for shown in probes.measures():
        if not shown.reported:
            continue
        name, condition = shown.name, shown.condition
        rows = table[(table["measure"] == name) & (table["condition"] == condition)]
        values = dict(zip(rows["arm"], rows["value"], strict=True))
        if "student" not in values:  # a property that could not be measured
            continue
        reference: str | float | None = None
        if has_independent:  # what is relative to the twin itself is compared with chance
            reference = "independent" if "independent" in values else shown.chance
        tables = (table, outcome.items, name, condition)
        found = stats.contrast(*tables, "student", reference or 0.0)
        yield {
            "id": f"audit-{name}" + (f"-{condition}" if condition else ""),
            "measure": name,
            "condition": condition,
            "meaning": shown.label,
            "values": values,
            "reference": reference,
            "estimate": found.estimate,
            "low": found.low,
            "high": found.high,
            "criterion": CRITERION,
            "verdict": _verdict(found.low, found.high) if reference else "",
            "paper": None,
        }


def _verdict(low: float, high: float) -> str:
    if not math.isfinite(low):
        return ""
    if low > 0:
        return "more"
    return "less" if high < 0 else "no difference shown"
