"""An audit as one page that needs nothing else: the answer, then what is behind every number."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdnotes import paths, probes, store
from kdnotes.audit import answers, judging, measuring
from kdnotes.book import results
from kdnotes.book.report import aligned
from kdnotes.figures import looks
from kdnotes.lazy import torch
from kdnotes.probes import localization
from kdnotes.stats import Interval, format_number
from kdnotes.stats.words import CANNOT_TELL, NO_GAP

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.audit.running import Audit
    from kdnotes.probes.base import Measure, Outcome

ENDS = 110.0, 300.0  # of the way from trained alone to like the teacher, on a strip of 400
FIRST, LAST = 8.0, 392.0  # places on it beyond which nothing is drawn
SIDE = 152  # pixels of a picture
EACH = 3  # images at either end
CHANGES = "audit.changes.csv"
LISTED = 20  # rows of a table of classes
Shown = tuple[int, float, float | None]  # an image, the student's value there, and its twin's
NAMES = {"teacher": "teacher", "student": "student", "independent": "trained alone"}
SETTLES = (
    "No student trained alone was given, so nothing here tells what was inherited from what any "
    "two networks share that saw such images. To settle it, train the student's architecture once "
    "more on the same images by the same recipe without the teacher, and name it with "
    "--independent; three or more seeds of both tell luck from teaching."
)


def page(
    audit: Audit,
    found: measuring.Measured,
    compared: Sequence[Mapping[str, Any]],
    judged: Sequence[str],
    command: str,
    marks: Mapping[str, str],
    seconds: float,
) -> str:
    """The page as HTML; all names from outside are escaped by the template."""
    outcome = found.outcome
    main = _main(compared)
    has_answers = "confidence" in set(outcome.table["measure"])
    warnings = _chance(audit, outcome) if has_answers else []
    if "independent" not in audit.cast.arms:
        warnings.insert(0, SETTLES)
    content = {
        "answer": answer(main),
        "about": _about(audit),
        "warnings": warnings,
        "notes": audit.notes,
        "ends": ENDS,
        "cover": [_row(claim) for claim in main],
        "students": len(audit.cast.arm("student")),
        "twins": len(audit.cast.arm("independent")),
        "networks": _networks(audit, outcome),
        "sections": _sections(audit, found, compared),
        "flips": _flips(audit, outcome) if has_answers else None,
        "calibration": _calibration(outcome) if has_answers else None,
        "skipped": [*found.skipped.items(), *_not_asked(audit)],
        "damaged": audit.damaged,
        "judged": judged,
        "command": command,
        "made_with": _made_with(marks, seconds),
    }
    return _template().render(content)


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment

    text = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True).from_string(text)


# --- the answer --------------------------------------------------------------------------------


def answer(main: Sequence[Mapping[str, Any]]) -> str:
    """How much was inherited in how many of the properties, in one sentence."""
    told = Counter(claim["word"] for claim in main if _is_told(claim))
    even = sum(claim["word"] == NO_GAP for claim in main)
    rest = len(main) - sum(told.values()) - even
    if not told:
        said = f"What was inherited cannot be told: of properties measured ({len(main)}), "
        return f"{said}{even} leave no gap to close, {rest} no certain share of one."
    parts = [
        f"{word}{' of it' if word in ('most', 'part') else ''} in {count}"
        for word, count in told.most_common()
    ]
    some = f"; in {even} there is no gap to close" if even else ""
    some += f"; of {rest} it cannot be told" if rest else ""
    return (
        "Of what the teacher has beyond a student trained alone, the student took "
        f"{', '.join(parts)} of {len(main)} properties{some}."
    )


def answers_as_text(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cover for a terminal: a line for each property."""
    main = _main(compared)
    rows = [(f"  {row['sentence']}", row["word"], row["number"]) for row in map(_row, main)]
    return [answer(main), "A student ...", aligned(rows)]


def _main(compared: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each property what compares with the teacher, or else what there is."""
    with_teacher = {claim["property"] for claim in compared if _measure(claim).of == "pair"}
    return [
        claim
        for claim in compared
        if claim["property"] not in with_teacher or _measure(claim).of == "pair"
    ]


def _measure(claim: Mapping[str, Any]) -> Measure:
    return next(
        each
        for each in probes.measures()
        if each.reported and (each.name, each.condition) == (claim["measure"], claim["condition"])
    )


def _is_told(claim: Mapping[str, Any]) -> bool:
    return math.isfinite(claim["share"]["low"]) and claim["word"] != CANNOT_TELL


def _row(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the cover: where the student stands between its twin and the teacher."""
    share, sentence = claim["share"], _measure(claim).sentence
    number = _text(share) if math.isfinite(share["estimate"]) else ""
    if not number and math.isfinite(claim["estimate"]):
        number = f"by {_text(claim)}"
    if not number:
        number = f"value {_text(claim['student'])}"
    return {
        "anchor": claim["property"],
        "sentence": sentence,
        "axis": _axis(share, f"{sentence}: {claim['word']} {number}"),
        "word": claim["word"],
        "plain": not _is_told(claim),
        "number": number,
    }


def _axis(share: Mapping[str, float], says: str) -> dict[str, Any]:
    def place(value: float) -> float:
        at = ENDS[0] + value * (ENDS[1] - ENDS[0])
        return round(min(LAST, max(FIRST, at)), 1)

    known = math.isfinite(share["estimate"])
    bar = [place(share[end]) for end in ("low", "high")] if math.isfinite(share["low"]) else None
    dot = place(share["estimate"]) if known else None
    beyond = (dot == LAST) - (dot == FIRST)
    axis = {"bar": bar, "dot": dot, "beyond": beyond, "says": says}
    return axis | {"zero": ENDS[0], "one": ENDS[1]}


def _text(interval: Mapping[str, float] | Interval) -> str:
    if not isinstance(interval, Interval):
        ends = {name: interval[name] for name in ("estimate", "low", "high")}
        interval = Interval(**ends, n=1, degrees_of_freedom=0, standard_error=math.nan)
    return interval.format() if math.isfinite(interval.low) else format_number(interval.estimate)


def _about(audit: Audit) -> str:
    students, twins = (len(audit.cast.arm(arm)) for arm in ("student", "independent"))
    size = f" at {audit.images.size} pixels" if audit.has_networks else ""
    images = f"{len(audit.images):,} images of {len(set(audit.listed.labels)):,} classes"
    return (
        f"One teacher, {students} student{'s' * (students > 1)}, {twins or 'none'} trained alone; "
        f"{images}{size}."
    )


def _chance(audit: Audit, outcome: Outcome) -> list[str]:
    named = answers.at_chance(outcome, len(set(audit.listed.labels)))
    why = (
        "Likely reasons: another order of classes (folders are numbered by name), another "
        "normalisation (--mean, --std), another size (--size)."
    )
    return [f"Right no more often than by guessing: {', '.join(named)}. {why}"] if named else []


def _networks(audit: Audit, outcome: Outcome) -> list[dict[str, Any]]:
    request, rows = audit.request, outcome.table
    named = {
        "teacher": [request.teacher],
        "student": request.students,
        "independent": request.independents,
    }
    right = rows[(rows["measure"] == "accuracy") & (rows["condition"] == "")].set_index(
        ["arm", "seed"]
    )["value"]
    listed = []
    for member in audit.cast.everyone():
        said = named[member.arm][member.seed] if audit.has_networks else request.predictions
        share = right.get((member.arm, member.seed), math.nan)
        size = getattr(member.network, "size", None) or (
            audit.images.size if audit.has_networks else ""
        )
        number = f" {member.seed + 1}" if len(audit.cast.arm(member.arm)) > 1 else ""
        listed.append(
            {
                "arm": f"{NAMES[member.arm]}{number}",
                "named": paths.without_absolute_paths(said),
                "right": format_number(share, 3),
                "size": size,
            }
        )
    return listed


# --- what is behind each number ------------------------------------------------------------------


def _sections(
    audit: Audit, found: measuring.Measured, compared: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    sections = []
    for which in probes.properties():
        claims = [claim for claim in compared if claim["property"] == which.name]
        if not claims:
            continue
        count = measuring.count_of(which, len(audit.images), audit.request.gradient_images)
        note = f"Measured on all {count:,} images."
        if count < len(audit.images):
            note = f"Measured on a random {count:,} of the {len(audit.images):,} images."
        title = which.title[0].upper() + which.title[1:]
        shown = [_shown_measure(audit, found.outcome, claim) for claim in claims]
        sections.append({"anchor": which.name, "title": title, "note": note, "measures": shown})
    return sections


def _shown_measure(audit: Audit, outcome: Outcome, claim: Mapping[str, Any]) -> dict[str, Any]:
    measure = _measure(claim)
    values = [
        f"{NAMES[arm]} {format_number(claim['values'][arm], 3)}"
        for arm in NAMES
        if math.isfinite(claim["values"].get(arm, math.nan))
    ]
    unit = f" ({measure.unit})"
    row = _row(claim) | {"said": f"{'; '.join(values)}{unit}. Student: {_text(claim['student'])}."}
    row["control"] = _control(claim, measure)
    if audit.has_networks:
        apart = _apart(outcome, measure)
        row["shown"] = _pictures(audit, outcome, apart)
        if measure.condition == localization.LAST and measure.name == "cam_cosine":
            row["maps"] = _maps(audit, apart)
    return row


def _control(claim: Mapping[str, Any], measure: Measure) -> str:
    """What the student trained alone, or chance, says about the number."""
    reference, ends = claim["reference"], claim["ends"]
    if reference is None:
        return "No control: without a student trained alone nobody knows what of it was inherited."
    who = "one trained alone"
    if reference != "independent":
        who = f"chance ({format_number(float(reference))})"
    if not math.isfinite(claim["estimate"]):
        return "There was nothing to compare."
    says = f"Student minus {who}: {_text(claim)}"
    if not math.isfinite(claim["low"]):
        return f"{says}; no interval can be given, so this may be chance."
    if not all(map(math.isfinite, ends)):
        return f"{says}: {claim['verdict']}."
    span = " to ".join(map(format_number, ends))
    return f"{says}: {claim['verdict']}. What could be inherited is the way from {span}."


def _apart(outcome: Outcome, measure: Measure) -> list[Shown]:
    """Images on which the student gains most over one trained alone, then where it loses most.

    By the student's value alone where there is no other.
    """
    rows = outcome.items[outcome.items["measure"] == measure.name]
    rows = rows[rows["condition"] == measure.condition]
    means = rows.groupby(["item", "arm"], observed=True)["value"].mean().unstack()
    if "student" not in means:
        return []
    means = means.dropna(subset=[each for each in ("student", "independent") if each in means])
    other = means.get("independent")
    apart = means["student"] if other is None else means["student"] - other
    order = apart.sort_values(kind="stable")
    if other is not None:
        order = order[order != 0]
    ends = [*order.index[::-1][:EACH], *order.index[:EACH]]
    return [
        (int(item), float(means["student"][item]), None if other is None else float(other[item]))
        for item in dict.fromkeys(ends)
    ]


def _pictures(audit: Audit, outcome: Outcome, apart: Sequence[Shown]) -> dict[str, Any]:
    """Images, each with the two values and what the first network of each arm answers."""
    shown, said = [], {}
    if "confidence" in set(outcome.table["measure"]):
        said = {arm: answers.by_image(outcome, "accuracy", arm, "prediction") for arm in NAMES}
    for item, own, other in apart:
        alone = "" if other is None else f", alone {format_number(other)}"
        lines = [_class(audit, audit.listed.labels[item]), f"student {format_number(own)}{alone}"]
        lines += [
            f"{NAMES[arm]}: {_class(audit, int(frame.loc[item].iloc[0]))}"
            for arm, frame in said.items()
            if len(frame)
        ]
        shown.append(_picture(audit, item, lines))
    rule = "Chosen by rule: the student's largest gains over one trained alone, then its losses."
    if any(other is None for _, _, other in apart):
        rule = "Chosen by rule: where the student has most of it, then least."
    return {"images": shown, "rule": rule}


def _class(audit: Audit, number: int) -> str:
    classes = audit.listed.classes
    return classes[number] if number < len(classes) else f"class {number}"


def _picture(
    audit: Audit, item: int, lines: list[str], heat: NDArray | None = None
) -> dict[str, Any]:
    pixels = audit.images.batch(torch.tensor([item]))[0].permute(1, 2, 0).numpy()
    if heat is not None:
        import matplotlib as mpl

        strength = np.clip(heat / max(float(heat.max()), 1e-12), 0, 1)[..., None]
        grey = pixels.mean(2, keepdims=True) / 255
        tint = mpl.colormaps["YlOrRd"](0.15 + 0.85 * strength[..., 0])[..., :3]
        pixels = (255 * (grey * (1 - 0.75 * strength) + tint * 0.75 * strength)).astype(np.uint8)
    name = audit.listed.names[item] if item < len(audit.listed.names) else str(item)
    return {"source": _inline(pixels), "lines": lines, "alt": f"{name}: {lines[0]}"}


def _inline(pixels: NDArray) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    larger = Image.Resampling.NEAREST if image.width < SIDE else Image.Resampling.LANCZOS
    image = image.resize((SIDE, SIDE), larger)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _maps(audit: Audit, apart: Sequence[Shown]) -> list[list[dict[str, Any]]]:
    """For a few images: the image, and where the first network of each arm looks."""
    ends = [*apart[: EACH - 1], *apart[EACH : 2 * EACH - 1]]
    places = torch.tensor([item for item, _, _ in ends])
    first = {member.arm: member for member in reversed(list(audit.cast.everyone()))}
    if not len(places):
        return []
    classes = audit.images.labels[places]
    heats = {
        arm: localization.last_map(first[arm], audit.images, places, classes).numpy()
        for arm in NAMES
        if arm in first
    }
    lines = []
    for row, (item, _, _) in enumerate(ends):
        line = [_picture(audit, item, [_class(audit, int(classes[row]))])]
        line += [_picture(audit, item, [NAMES[arm]], heat[row]) for arm, heat in heats.items()]
        lines.append(line)
    return lines


# --- answers alone -------------------------------------------------------------------------------


def _flips(audit: Audit, outcome: Outcome) -> dict[str, Any]:
    totals = []
    here = set(outcome.table["measure"])
    for measure in answers.FLIPS:
        if measure.name in here:
            share = judging.difference(outcome, measure, "student", 0.0)
            count = round(share.estimate * len(audit.images), 1)
            totals.append(
                {"sentence": measure.sentence, "count": f"{count:g}", "share": _text(share)}
            )
    reference = "independent" if "independent" in audit.cast.arms else "teacher"
    tables = [_changes(of, table, reference) for of, table in by_names(audit, outcome).items()]
    shown = {"images": [], "rule": ""}
    if audit.has_networks and reference == "independent":
        own = answers.by_image(outcome, answers.INHERITED_MISTAKES.name, "student").mean(axis=1)
        chosen = [
            (int(item), float(own[item]), 0.0)
            for item in own[own > 0].sort_values(ascending=False, kind="stable").index[: 2 * EACH]
        ]
        shown = _pictures(audit, outcome, chosen)
        shown["rule"] = (
            "The first mistakes inherited: the teacher's wrong answer where one trained alone is "
            "right."
        )
    return {"totals": totals, "tables": tables, "shown": shown}


def by_names(audit: Audit, outcome: Outcome) -> dict[str, pd.DataFrame]:
    """By class, and by every grouping of the images, as `answers.by_name`."""
    reference = "independent" if "independent" in audit.cast.arms else "teacher"
    classes = [audit.listed.classes[at] for at in audit.listed.labels]
    named = {"class": classes, **audit.listed.groupings}
    return {of: answers.by_name(outcome, reference, names) for of, names in named.items()}


def _changes(of: str, table: pd.DataFrame, reference: str) -> dict[str, Any]:
    arms = [arm for arm in NAMES if arm in table]
    changed = table[table["p_holm"] < 0.05]
    rows = [
        {
            "name": row["name"],
            "images": row["images"],
            "right": [format_number(row[arm]) for arm in arms],
            "gained": f"{row['gained']:g}",
            "lost": f"{row['lost']:g}",
            "p": format_number(row["p_holm"], 3),
            "changed": row["p_holm"] < 0.05,
        }
        for row in table.head(LISTED).to_dict("records")
    ]
    kinds = {"class": "classes"}.get(of, f"groups by {of}")
    names_of = ", ".join(map(str, changed["name"].head(LISTED))) or "none"
    whom = "the student trained alone" if reference == "independent" else "the teacher"
    says = (
        f"Changed against {whom} beyond chance (sign test, Holm over {len(table):,} {kinds}): "
        f"{names_of}."
    )
    more = ""
    if len(table) > LISTED:
        more = f"The {LISTED} of {len(table):,} with the smallest p; all are in {CHANGES}."
    return {
        "anchor": f"by-{of}",
        "title": f"By {of}",
        "of": of,
        "says": says,
        "rows": rows,
        "arms": [NAMES[arm] for arm in arms],
        "more": more,
    }


def _calibration(outcome: Outcome) -> dict[str, Any]:
    errors = answers.calibration(outcome)
    said = [f"{NAMES[arm]} {_text(errors[arm])}" for arm in NAMES if arm in errors]
    says = f"Expected calibration error (15 bins; 0 is best): {', '.join(said)}."
    if "difference" in errors:
        says += f" Student minus trained alone: {_text(errors['difference'])}."
    lines = []
    for arm in (arm for arm in NAMES if arm in errors):
        dots = [
            (round(50 + 260 * each.sure, 1), round(270 - 260 * each.right, 1))
            for each in answers.reliability(outcome, arm)
        ]
        points = " ".join(f"{x},{y}" for x, y in dots)
        colour = {"student": "#0072b2"}.get(arm, looks.colour(arm))
        lines.append(
            {
                "name": NAMES[arm],
                "colour": colour,
                "dots": dots,
                "points": points,
                "dashed": arm == "independent",
            }
        )
    return {"says": says, "lines": lines}


def _not_asked(audit: Audit) -> list[tuple[str, str]]:
    asked = {which.name for which in audit.wanted}
    why = (
        "it needs the networks themselves, and only predictions were given"
        if not audit.has_networks
        else "it was not asked for (--only)"
    )
    lines = [(which.title, why) for which in measuring.chosen(None) if which.name not in asked]
    if not audit.listed.groupings:
        lines.append(("groups", "no table sorts the images into any (--groups)"))
    return lines


def _made_with(marks: Mapping[str, str], seconds: float) -> list[tuple[str, str]]:
    rows = [(f"sha256 of {name}", value) for name, value in marks.items()]
    rows += list(results.versions().items())
    return [*rows, ("hardware", results.hardware()), ("this run", f"{seconds:.0f} s")]


def hashes(audit: Audit) -> dict[str, str]:
    """SHA-256 of the files that an audit was made of, by name, and of all its pixels together."""
    found, request = dict(audit.listed.files), audit.request
    models = (request.teacher or "", *request.students, *request.independents)
    for text in (*(each.partition(":")[2] for each in models), request.map or ""):
        path = paths.base_folder() / Path(text).expanduser()
        if text and path.is_file():
            found[paths.without_absolute_paths(text)] = store.checksum(path)
    if audit.has_networks:
        state = hashlib.sha256()
        for indices in torch.arange(len(audit.images)).split(256):
            state.update(audit.images.batch(indices).contiguous().numpy().tobytes())
        found[f"pixels of {len(audit.images)} images"] = state.hexdigest()
    return found
