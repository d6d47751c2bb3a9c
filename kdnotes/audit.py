"""The probes on one's own networks: what did a student trained elsewhere take from its teacher?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import layout, results
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.cast import Cast, Member
    from kdnotes.data import ImageData
    from kdnotes.probes.outcome import Outcome

NAME = "audit"
PROPERTIES = ("fidelity", "localization", "adversarial", "color_invariance")
CRITERION = "95% interval over images, for these very networks"
# The measures that are reported, and how to read each.
_READINGS = {
    "accuracy": "share of right answers",
    "agreement": "share of answers that are the teacher's",
    "agreement_on_teacher_errors": "the same, on images that the teacher gets wrong",
    "predictive_kl": "distance to the teacher's probabilities, in nats (less is closer)",
    "win_rate": "looks more like the teacher's than the independent one does; .5 is chance",
    "cam_cosine": "likeness of the Grad-CAM map to the teacher's",
    "rank_correlation": "likeness of the Grad-CAM map's order to the teacher's",
    "top_iou": "overlap of the fifth of the map that counts most",
    "fooling_rate": "share of answers that an image crafted elsewhere changes",
    "same_wrong_class": "led to the very class that the attacked network was led to",
    "same_answer": "share of answers that survive the change of colour",
    "accuracy_after": "share of right answers after the change of colour",
}


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
    out: Callable[[], Path] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Audit:
    """Measure every property on the test images of a folder.

    Models are written as `kdnotes.models.load_user_model` reads them. ``size`` and ``count`` are
    the side of the images in pixels and how many of them; ``out`` is called when the request has
    proved right and before anything is measured. Raises RequestError.
    """
    from kdnotes import data as data_sets
    from kdnotes.probes.outcome import Outcome

    for name, value in (("size", size), ("images", count)):
        if value is not None and value < 1:
            raise RequestError(f"--{name} must be 1 or more, not {value}")
    started = time.perf_counter()
    spec = data_sets.DataSpec(
        name=f"{data_sets.FOLDER_PREFIX}{folder}",
        split="test",
        count=count,
        options={} if size is None else {"size": size},
    )
    images = data_sets.load(spec)
    cast = _cast(teacher, student, independent, images)
    if out is not None:
        out()
    parts, skipped = [], {}
    for name in PROPERTIES:
        report(f"measuring {name.replace('_', ' ')} on {len(images)} images")
        try:
            parts.append(_measure(name, cast, images))
        except RequestError as error:  # such as a network without feature maps
            skipped[name] = str(error)
    # Every probe measures accuracy, and it is the same everywhere.
    outcome = Outcome.combine([parts[0], *(_without_accuracy(part) for part in parts[1:])])
    return Audit(
        outcome,
        list(_comparisons(outcome, independent is not None)),
        skipped,
        {
            "teacher": teacher,
            "student": student,
            "independent": independent,
            "data": folder,
            "images": len(images),
            "size": images.size,
        },
        time.perf_counter() - started,
    )


def save(audit: Audit, where: Path) -> None:
    """Write audit.csv, audit.items.parquet, audit.json and audit.md into a folder."""
    results.save(NAME, audit.outcome, audit.claims, audit.parameters, audit.seconds, where)
    with results.appearing(where / f"{NAME}.md") as path:
        path.write_text(summary(audit))


def summary(audit: Audit) -> str:
    """The audit as Markdown: what was compared, each measure, and how to read it."""
    from kdnotes.stats import format_number

    given = layout.without_absolute_paths(audit.parameters)
    independent = given["independent"]
    third = f"independent student `{independent}`" if independent else "no independent student"
    lines = [
        "# What did the student inherit?",
        "",
        f"Teacher `{given['teacher']}`, student `{given['student']}`, {third}; {given['images']} "
        f"test images of `{given['data']}`, {given['size']} pixels a side.",
        "",
        "| measure | condition | teacher | student | independent | difference [95%] | |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in audit.claims:
        cells = [claim["measure"], claim["condition"]]
        for arm in ("teacher", "student", "independent"):
            value = claim["values"].get(arm)
            cells.append("" if value is None else format_number(value))
        interval = ""
        if claim["reference"] is not None and claim["estimate"] is not None:
            bounds = ", ".join(
                "?" if bound is None else format_number(bound)
                for bound in (claim["low"], claim["high"])
            )
            interval = f"{format_number(claim['estimate'])} [{bounds}]"
        lines.append("| " + " | ".join([*cells, interval, claim["verdict"]]) + " |")
    lines += ["", *(f"- `{name}`: {text}." for name, text in _READINGS.items())]
    lines += [f"- {name} was not measured: {reason}." for name, reason in audit.skipped.items()]
    lines += [
        "",
        "The differences are student minus independent (the win rate: minus .5). Their intervals "
        "are over images, for these very networks: another training run could come out "
        "differently, and only several seeds of each would tell.",
        "",
    ]
    return "\n".join(lines)


def _cast(teacher: str, student: str, independent: str | None, images: ImageData) -> Cast:
    from kdnotes.cast import Cast

    classes = len(images.classes)
    members = [_member("student", student, classes)]
    if independent is not None:
        members.append(_member("independent", independent, classes))
    return Cast(_member("teacher", teacher, classes), None, tuple(members), images.classes)


def _member(arm: str, text: str, classes: int) -> Member:
    from kdnotes import models
    from kdnotes.cast import Member
    from kdnotes.presets import check_device

    try:
        network = models.freeze(models.load_user_model(text, classes)).to(check_device(None))
    except RequestError as error:
        raise RequestError(f"--{arm}: {error}") from error
    try:
        taps = models.taps(network)
    except RequestError:  # only localization needs them, and says so
        taps = ()
    return Member(arm, 0, network, taps)


def _measure(name: str, cast: Cast, images: ImageData) -> Outcome:
    from kdnotes import probes

    if name == "localization" and not all(member.taps for member in cast.everyone()):
        raise RequestError("no stages with feature maps can be found in one of the networks")
    return getattr(probes, name).measure(cast, images)


def _without_accuracy(part: Outcome) -> Outcome:
    from kdnotes.probes.outcome import Outcome

    return Outcome(
        part.table[part.table["measure"] != "accuracy"],
        part.items[part.items["measure"] != "accuracy"],
    )


def _comparisons(outcome: Outcome, has_independent: bool) -> Iterator[dict[str, Any]]:
    from kdnotes import stats

    table = outcome.table
    ours = table[(table["arm"] == "student") & ~table["condition"].str.contains("against=")]
    for measure, condition in ours[["measure", "condition"]].itertuples(index=False, name=None):
        # The primary strength of the attack is one of the others under a second name.
        if measure not in _READINGS or condition == "attack=teacher,eps=primary":
            continue
        rows = table[(table["measure"] == measure) & (table["condition"] == condition)]
        values = dict(zip(rows["arm"], rows["value"], strict=True))
        reference: str | float | None = None
        if measure == "win_rate":
            reference = 0.5
        elif has_independent:
            reference = "independent"
        found = stats.contrast(
            table, outcome.items, measure, condition, "student", reference or 0.0
        )
        yield {
            "id": f"audit-{measure}" + (f"-{condition}" if condition else ""),
            "measure": measure,
            "condition": condition,
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
    if low > 0:
        return "more"
    return "less" if high < 0 else "no difference shown"
