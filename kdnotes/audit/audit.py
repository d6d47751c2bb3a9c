"""The probes on one's own networks: what did a student trained elsewhere take from its teacher?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import layout
from kdnotes.book import results
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.data import ImageData
    from kdnotes.probes.cast import Cast, Member
    from kdnotes.probes.outcome import Outcome

NAME = "audit"
CRITERION = "95% interval over images, for these very networks"
# What is reported, in this order: measure, condition, and how to read it. All else is in the table.
MAIN = (
    ("accuracy", "", "share of right answers"),
    ("agreement", "", "share of answers that are the teacher's"),
    ("agreement_on_teacher_errors", "", "the same, where the teacher is wrong"),
    ("win_rate", "layer=last,class=true", "looks more like the teacher than its twin; .5: chance"),
    ("cam_cosine", "layer=last,class=true", "likeness of its Grad-CAM maps to the teacher's"),
    ("cam_cosine", "layer=earlier,class=true", "the same, one stage earlier"),
    ("fooling_rate", "attack=teacher,eps=primary", "fooled by images crafted on the teacher"),
    ("fooling_rate", "attack=noise,eps=primary", "fooled by noise of that size"),
    ("same_answer", "strength=primary", "keeps its answer when colours change"),
    ("accuracy_after", "strength=primary", "right after colours change"),
    ("same_answer", "kind=crop,scale=primary", "gives two crops of an image the same answer"),
    ("same_answer", "kind=shift,max=primary", "gives two shifts of an image the same answer"),
    ("consensus", "domain=unseen", "the teacher's answer to sketches, silhouettes and the like"),
    ("accuracy", "domain=unseen", "right about sketches, silhouettes and the like"),
    ("cka_last", "", "likeness (CKA) of its last stage to the teacher's"),
)
BOOK_SIDE = 32  # pixels along a side of the book's images; shifts grow with larger ones


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

    Models are written as `networks.load_user_model` reads them. ``size`` and ``count`` are
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
    for name, measure in PROPERTIES.items():
        report(f"measuring {name} on {len(images)} images")
        try:
            parts.append(measure(cast, images))
        except RequestError as error:  # such as a network without feature maps
            skipped[name] = str(error)
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
    from kdnotes.stats import Interval, format_number

    given = layout.without_absolute_paths(audit.parameters)
    independent = given["independent"]
    third = f"independent student `{independent}`" if independent else "no independent student"
    lines = [
        "# What did the student inherit?",
        "",
        f"Teacher `{given['teacher']}`, student `{given['student']}`, {third}; {given['images']} "
        f"test images of `{given['data']}`, {given['size']} pixels a side.",
        "",
        "| what | teacher | student | independent | difference [95%] | |",
        "|---|---|---|---|---|---|",
    ]
    for claim in audit.claims:
        cells = [claim["meaning"]]
        for arm in ("teacher", "student", "independent"):
            value = claim["values"].get(arm, float("nan"))
            cells.append(format_number(value) if math.isfinite(value) else "")
        difference = Interval(claim["estimate"], claim["low"], claim["high"], 1, 0, float("nan"))
        compared = claim["reference"] is not None and math.isfinite(claim["estimate"])
        cells += [difference.format() if compared else "", claim["verdict"]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"Not measured: {name} ({why})." for name, why in audit.skipped.items())]
    lines += [
        "",
        "Differences are student minus independent (for the likeness beyond its twin's: minus .5). "
        "Their intervals are over images, for these very networks: another training run could "
        "come out differently, and only several seeds of each would tell. Where a cell is empty "
        "there was nothing to measure, such as no image that fools the teacher; there is no "
        "interval where a measure is one number for all images together. Every measure "
        f"under every condition is in {NAME}.csv.",
        "",
    ]
    return "\n".join(lines)


def _cast(teacher: str, student: str, independent: str | None, images: ImageData) -> Cast:
    from kdnotes.probes.cast import Cast

    classes = len(images.classes)
    members = [_member("student", student, classes)]
    if independent is not None:
        members.append(_member("independent", independent, classes))
    return Cast(_member("teacher", teacher, classes), None, tuple(members), images.classes)


def _member(arm: str, text: str, classes: int) -> Member:
    from kdnotes import networks
    from kdnotes.probes.cast import Member
    from kdnotes.study.presets import check_device

    try:
        network = networks.freeze(networks.load_user_model(text, classes)).to(check_device(None))
    except RequestError as error:
        raise RequestError(f"--{arm}: {error}") from error
    try:
        taps = networks.taps(network)
    except RequestError:  # only localization needs them, and says so
        taps = ()
    return Member(arm, 0, network, taps)


def _of_probe(name: str) -> Callable[[Cast, ImageData], Outcome]:
    def measure(cast: Cast, images: ImageData) -> Outcome:
        from kdnotes import probes

        return getattr(probes, name).measure(cast, images)

    return measure


def _of_feature_maps(name: str) -> Callable[[Cast, ImageData], Outcome]:
    def measure(cast: Cast, images: ImageData) -> Outcome:
        if not all(member.taps for member in cast.everyone()):
            raise RequestError("no stages with feature maps can be found in one of the networks")
        return _of_probe(name)(cast, images)

    return measure


def _crops_and_shifts(cast: Cast, images: ImageData) -> Outcome:
    from kdnotes.probes import crop_shift
    from kdnotes.probes.outcome import Outcome

    unit = max(1, images.size // BOOK_SIDE)
    shifted = crop_shift.measure_shifts(
        cast, images, shifts=[unit * shift for shift in crop_shift.SHIFTS], primary=4 * unit
    )
    return Outcome.combine([crop_shift.measure_crops(cast, images), _without_accuracy(shifted)])


# What is measured, under the name that reports give it.
PROPERTIES: dict[str, Callable[[Cast, ImageData], Outcome]] = {
    "fidelity": _of_probe("fidelity"),
    "localization": _of_feature_maps("localization"),
    "adversarial": _of_probe("adversarial"),
    "colour invariance": _of_probe("color_invariance"),
    "crops and shifts": _crops_and_shifts,
    "unseen domains": _of_probe("unseen_domains"),
    "representations": _of_feature_maps("representations"),
}


def _without_accuracy(part: Outcome) -> Outcome:
    """Without the accuracy on the images as they are: every probe measures it anew."""
    from kdnotes.probes.outcome import Outcome

    def rest(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[(frame["measure"] != "accuracy") | (frame["condition"] != "")]

    return Outcome(rest(part.table), rest(part.items))


def _comparisons(outcome: Outcome, has_independent: bool) -> Iterator[dict[str, Any]]:
    from kdnotes import stats

    table = outcome.table
    for measure, condition, meaning in MAIN:
        rows = table[(table["measure"] == measure) & (table["condition"] == condition)]
        values = dict(zip(rows["arm"], rows["value"], strict=True))
        if "student" not in values:  # a property that could not be measured
            continue
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
            "meaning": meaning,
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
