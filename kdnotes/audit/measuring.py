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
    import pandas as pd

    from kdnotes.data import ImageData
    from kdnotes.probes.cast import Cast, Member
    from kdnotes.probes.outcome import Outcome

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
# What is measured: the name that reports give it, and the probe.
PROPERTIES = {
    "fidelity": "fidelity",
    "localization": "localization",
    "adversarial": "adversarial",
    "colour invariance": "color_invariance",
    "crops and shifts": "crop_shift",
    "unseen domains": "unseen_domains",
    "representations": "representations",
}
NEED_MAPS = ("localization", "representations")
BOOK_SIDE = 32  # pixels along a side of the book's images; shifts grow with larger ones
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
    """Measure every property on the test images of a folder.

    Models are written as `networks.load_user_model` reads them. ``size`` and ``count`` are the side
    of the images in pixels and how many of them; ``skip_damaged`` leaves out files that cannot be
    read instead of refusing the folder. ``out`` is called when the request has proved right and
    before anything is measured. Raises RequestError.
    """
    from kdnotes import data
    from kdnotes.probes.cast import Cast
    from kdnotes.probes.outcome import Outcome

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
    for name in PROPERTIES:
        report(f"measuring {name} on {len(images)} images")
        try:
            found = measured(name, cast, images)
        except RequestError as error:  # such as a network without feature maps
            skipped[name] = str(error)
        else:
            parts.append(_without_accuracy(found) if parts else found)
    outcome = Outcome.combine(parts)
    claims = list(_comparisons(outcome, independent is not None))
    parameters = given | {"data": folder, "images": len(images), "size": images.size}
    return Audit(outcome, claims, skipped, parameters, time.perf_counter() - started)


def measured(name: str, cast: Cast, images: ImageData) -> Outcome:
    """What the probe of one of `PROPERTIES` finds; raises RequestError as it does."""
    from kdnotes import probes
    from kdnotes.probes.outcome import Outcome

    if name in NEED_MAPS and not all(member.taps for member in cast.everyone()):
        raise RequestError("no stages with feature maps can be found in one of the networks")
    probe = getattr(probes, PROPERTIES[name])
    if name != "crops and shifts":
        return probe.measure(cast, images)
    unit = max(1, images.size // BOOK_SIDE)
    shifts = [unit * shift for shift in probe.SHIFTS]
    shifted = probe.measure_shifts(cast, images, shifts=shifts, primary=4 * unit)
    return Outcome.combine([probe.measure_crops(cast, images), _without_accuracy(shifted)])


def _member(arm: str, text: str, classes: int) -> Member:
    from kdnotes import networks
    from kdnotes.probes.cast import Member
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
        reference: str | float | None = "independent" if has_independent else None
        if measure == "win_rate":
            reference = 0.5
        tables = (table, outcome.items, measure, condition)
        found = stats.contrast(*tables, "student", reference or 0.0)
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
