"""An audit as one page that needs nothing else: the answer, then what is behind every number."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdnotes import paths, store
from kdnotes.audit import answers, inputs, measuring
from kdnotes.book import results
from kdnotes.figures import looks
from kdnotes.lazy import torch
from kdnotes.probes import localization
from kdnotes.stats import Interval, format_number
from kdnotes.stats.words import NO_GAP, aligned

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.audit.judging import Share
    from kdnotes.audit.measuring import Comparison, Measured
    from kdnotes.audit.running import Audit
    from kdnotes.probes.base import Measure, Outcome

ENDS = 110.0, 300.0  # of the way from trained alone to like the teacher, on a strip of 400
FIRST, LAST = 8.0, 392.0  # places on it beyond which nothing is drawn
SIDE = 152  # pixels of a picture
EACH = 3  # images at either end
CHANGES = "audit.changes.csv"
LISTED = 20  # rows of a table of classes
NAMES = {"teacher": "teacher", "student": "student", "independent": "trained alone"}
SETTLES = (
    "No student trained alone was given, so nothing here tells what was inherited from what any "
    "two networks share that saw such images. To settle it, train the student's architecture once "
    "more on the same images by the same recipe without the teacher, and name it with "
    "--independent; three or more seeds of both tell luck from teaching."
)
CHANCE = (
    "Likely reasons: another order of classes (folders are numbered by name), another "
    "normalisation (--mean, --std), another size (--size)."
)


def page(
    audit: Audit,
    found: Measured,
    compared: Sequence[Comparison],
    changes: Mapping[str, pd.DataFrame],
    parameters: Mapping[str, Any],
    command: str,
    seconds: float,
) -> str:
    """The page as HTML; all names from outside are escaped by the template.

    changes: as `by_names` gives them, nothing where no answers are known; parameters: those saved.
    """
    from jinja2 import Environment

    outcome, main = found.outcome, _main(compared)
    students, twins = (len(audit.cast.arm(arm)) for arm in ("student", "independent"))
    classes = len(set(audit.listed.labels))
    size = f" at {audit.images.size} pixels" if audit.has_networks else ""
    warnings = [] if twins else [SETTLES]
    if changes and (named := answers.at_chance(outcome, classes)):
        warnings.append(f"Right no more often than by guessing: {', '.join(named)}. {CHANCE}")
    why = "it needs the networks themselves, and only predictions were given"
    if audit.has_networks:
        why = "it was not asked for (--only)"
    offered, asked = measuring.chosen(None), {which.name for which in audit.wanted}
    skipped = {which.title: why for which in offered if which.name not in asked}
    if audit.listed.groups.empty:
        skipped["groups"] = "no table sorts the images into any (--groups)"
    made_with = {f"sha256 of {name}": mark for name, mark in parameters["sha256"].items()}
    made_with |= results.versions()
    made_with |= {"hardware": results.hardware(), "this run": f"{seconds:.0f} s"}
    text = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(text)
    return template.render(
        answer=answer([each.way for each in main]),
        about=f"One teacher, {students} student{'s' * (students > 1)}, {twins or 'none'} trained "
        f"alone; {len(audit.images):,} images of {classes:,} classes{size}.",
        warnings=warnings,
        audit=audit,
        ends=ENDS,
        cover=[_row(each) for each in main],
        students=students,
        twins=twins,
        networks=_networks(audit, outcome),
        sections=_sections(audit, outcome, compared),
        flips=_flips(audit, found, changes) if changes else None,
        calibration=_calibration(outcome) if changes else None,
        skipped=found.skipped | skipped,
        judged=parameters["conditions"],
        command=command,
        made_with=made_with,
    )


# --- the answer --------------------------------------------------------------------------------


def answer(shares: Sequence[Share]) -> str:
    """How much was inherited in how many of the properties, in one sentence."""
    told = Counter(share.word for share in shares if share.is_told)
    even = sum(share.word == NO_GAP for share in shares)
    rest = len(shares) - sum(told.values()) - even
    if not told:
        said = f"What was inherited cannot be told: of properties measured ({len(shares)}), "
        return f"{said}{even} leave no gap to close, {rest} no certain share of one."
    parts = [
        f"{word}{' of it' if word in ('most', 'part') else ''} in {count}"
        for word, count in told.most_common()
    ]
    some = f"; in {even} there is no gap to close" if even else ""
    some += f"; of {rest} it cannot be told" if rest else ""
    return (
        "Of what the teacher has beyond a student trained alone, the student took "
        f"{', '.join(parts)} of {len(shares)} properties{some}."
    )


def answers_as_text(compared: Sequence[Comparison]) -> list[str]:
    """The cover for a terminal: a line for each property."""
    main = _main(compared)
    rows = [(f"  {row['sentence']}", row["word"], row["number"]) for row in map(_row, main)]
    return [answer([each.way for each in main]), "A student ...", aligned(rows)]


def _main(compared: Sequence[Comparison]) -> list[Comparison]:
    """Of each property what compares with the teacher, or else what there is."""
    paired = {each.of.name for each in compared if each.measure.of == "pair"}
    return [each for each in compared if each.measure.of == "pair" or each.of.name not in paired]


def _row(each: Comparison) -> dict[str, Any]:
    """A line of the cover: where the student stands between its twin and the teacher."""
    share, sentence, word = each.way.ratio, each.measure.sentence, each.way.word
    number = f"value {_text(each.student)}"
    if share:
        number = _text(share)
    elif math.isfinite(each.difference.estimate):
        number = f"by {_text(each.difference)}"
    axis = _axis(share, f"{sentence}: {word} {number}")
    row = {"anchor": each.of.name, "sentence": sentence, "axis": axis}
    return row | {"word": word, "plain": not each.way.is_told, "number": number}


def _axis(share: Interval | None, says: str) -> dict[str, Any]:
    """Places on a strip: of 0 and 1, of the share and its bounds, and whether it lies beyond."""
    axis = {"zero": ENDS[0], "one": ENDS[1], "says": says}
    if share is None:
        return axis | {"bar": None, "dot": None, "beyond": 0}
    low, dot, high = (
        round(min(LAST, max(FIRST, ENDS[0] + value * (ENDS[1] - ENDS[0]))), 1)
        for value in (share.low, share.estimate, share.high)
    )
    return axis | {"bar": (low, high), "dot": dot, "beyond": (dot == LAST) - (dot == FIRST)}


def _text(interval: Interval) -> str:
    return interval.format() if math.isfinite(interval.low) else format_number(interval.estimate)


def _networks(audit: Audit, outcome: Outcome) -> list[tuple[Any, ...]]:
    """Of each network: its arm, how it was named, how often it is right, and its size."""
    rows = outcome.table[outcome.table["measure"] == "accuracy"]
    right = rows[rows["condition"] == ""].set_index(["arm", "seed"])["value"]
    everyone = audit.cast.everyone()
    named = [text for _, text in audit.request.networks()]
    named = named or [str(audit.request.predictions)] * len(everyone)
    listed = []
    for member, text in zip(everyone, named, strict=True):
        number = f" {member.seed + 1}" if len(audit.cast.arm(member.arm)) > 1 else ""
        share = format_number(right.get((member.arm, member.seed), math.nan), 3)
        size = (member.network.size or audit.images.size) if audit.has_networks else ""
        said = paths.without_absolute_paths(text)
        listed.append((f"{NAMES[member.arm]}{number}", said, share, size))
    return listed


# --- what is behind each number ------------------------------------------------------------------


def _sections(
    audit: Audit, outcome: Outcome, compared: Sequence[Comparison]
) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for each in compared:
        count, some = audit.count(each.of), f"{len(audit.images):,} images"
        some = f"all {some}" if count == len(audit.images) else f"a random {count:,} of the {some}"
        title = each.of.title[0].upper() + each.of.title[1:]
        part = {"title": title, "note": f"Measured on {some}.", "measures": []}
        mine = sections.setdefault(each.of.name, part)["measures"]
        mine.append(_shown(audit, outcome, each))
    return sections


def _shown(audit: Audit, outcome: Outcome, each: Comparison) -> dict[str, Any]:
    values = "; ".join(
        f"{NAMES[arm]} {format_number(each.values[arm], 3)}"
        for arm in NAMES
        if math.isfinite(each.values.get(arm, math.nan))
    )
    said = f"{values} ({each.measure.unit}). Student: {_text(each.student)}."
    row = _row(each) | {"said": said, "control": _control(each)}
    if audit.has_networks:
        apart = _apart(outcome, each.measure)
        rule = "the student's largest gains over one trained alone, then its losses"
        if apart["independent"].isna().any():
            rule = "where the student has most of it, then least"
        row["shown"] = _pictures(audit, outcome, apart, f"Chosen by rule: {rule}.")
        if each.measure.condition == localization.LAST and each.measure.name == "cam_cosine":
            row["maps"] = _maps(audit, apart)
    return row


def _control(each: Comparison) -> str:
    """What the student trained alone, or chance, says about the number."""
    if each.reference is None:
        return "No control: without a student trained alone nobody knows what of it was inherited."
    if not math.isfinite(each.difference.estimate):
        return "There was nothing to compare."
    who = "one trained alone"
    if each.reference != "independent":
        who = f"chance ({format_number(float(each.reference))})"
    says = f"Student minus {who}: {_text(each.difference)}"
    if not math.isfinite(each.difference.low):
        return f"{says}; no interval can be given, so this may be chance."
    if not all(map(math.isfinite, each.way.ends)):
        return f"{says}: {each.verdict}."
    span = " to ".join(map(format_number, each.way.ends))
    return f"{says}: {each.verdict}. What could be inherited is the way from {span}."


def _apart(outcome: Outcome, measure: Measure) -> pd.DataFrame:
    """Images on which the student gains most over one trained alone, then where it loses most.

    By the student's value alone where there is no other. By image, the values of both.
    """
    rows = outcome.items[outcome.items["measure"] == measure.name]
    rows = rows[rows["condition"] == measure.condition]
    means = rows.groupby(["item", "arm"], observed=True)["value"].mean().unstack()
    pair = [arm for arm in ("student", "independent") if arm in means]
    means = means.reindex(columns=["student", "independent"]).dropna(subset=["student", *pair])
    apart = means["student"] - means["independent"].fillna(0)
    order = apart[(apart != 0) | (len(pair) < 2)].sort_values(kind="stable").index
    return means.loc[list(dict.fromkeys([*order[::-1][:EACH], *order[:EACH]]))]


def _pictures(audit: Audit, outcome: Outcome, apart: pd.DataFrame, rule: str) -> dict[str, Any]:
    """Images, each with the two values and what the first network of each arm answers."""
    shown, said = [], {}
    if "confidence" in set(outcome.table["measure"]):
        said = answers.by_arm(outcome, "accuracy", "prediction")
    for item, own, other in apart.itertuples():
        alone = f", alone {format_number(other)}" if math.isfinite(other) else ""
        lines = [_class(audit, audit.listed.labels.iloc[item])]
        lines.append(f"student {format_number(own)}{alone}")
        for arm, frame in said.items():
            lines.append(f"{NAMES[arm]}: {_class(audit, int(frame.loc[item].iloc[0]))}")
        shown.append(_picture(audit, item, lines))
    return {"images": shown, "rule": rule}


def _class(audit: Audit, number: int) -> str:
    classes = audit.listed.classes
    return classes[number] if number < len(classes) else f"class {number}"


def _picture(
    audit: Audit, item: int, lines: list[str], heat: NDArray | None = None
) -> dict[str, Any]:
    """An image as data, maybe under a map of where somebody looks, with what is said of it."""
    from PIL import Image

    pixels = audit.images.batch(torch.tensor([item]))[0].permute(1, 2, 0).numpy()
    if heat is not None:
        import matplotlib as mpl

        strength = np.clip(heat / max(float(heat.max()), 1e-12), 0, 1)[..., None]
        grey = pixels.mean(2, keepdims=True) / 255
        tint = mpl.colormaps["YlOrRd"](0.15 + 0.85 * strength[..., 0])[..., :3]
        pixels = (255 * (grey * (1 - 0.75 * strength) + tint * 0.75 * strength)).astype(np.uint8)
    image, stream = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    larger = Image.Resampling.NEAREST if image.width < SIDE else Image.Resampling.LANCZOS
    image.resize((SIDE, SIDE), larger).save(stream, "JPEG", quality=82)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    alt = f"{audit.listed.labels.index[item]}: {lines[0]}"
    return {"source": source, "lines": lines, "alt": alt}


def _maps(audit: Audit, apart: pd.DataFrame) -> list[list[dict[str, Any]]]:
    """For a few images: the image, and where the first network of each arm looks."""
    items = [*apart.index[: EACH - 1], *apart.index[EACH : 2 * EACH - 1]]
    if not items:
        return []
    places = torch.tensor(items)
    classes = audit.images.labels[places]
    first = {member.arm: member for member in reversed(audit.cast.everyone())}
    heats = {
        arm: localization.last_map(first[arm], audit.images, places, classes).numpy()
        for arm in NAMES
        if arm in first
    }
    lines = []
    for row, item in enumerate(items):
        line = [_picture(audit, item, [_class(audit, int(classes[row]))])]
        line += [_picture(audit, item, [NAMES[arm]], heat[row]) for arm, heat in heats.items()]
        lines.append(line)
    return lines


# --- answers alone -------------------------------------------------------------------------------


def by_names(audit: Audit, outcome: Outcome) -> dict[str, pd.DataFrame]:
    """By class, and by every grouping of the images, as `answers.by_name`."""
    classes = [audit.listed.classes[at] for at in audit.listed.labels]
    named = {"class": classes, **audit.listed.groups}
    found = {of: answers.by_name(outcome, names) for of, names in named.items()}
    return {of: table for of, table in found.items() if len(table)}  # else no image has a name


def _flips(audit: Audit, found: Measured, changes: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    totals = []
    here = set(found.table["measure"])
    for measure in (each for each in answers.FLIPS if each.name in here):
        share = found.contrast(measure.name, "student", 0.0)
        count = round(share.estimate * len(audit.images), 1)
        totals.append((measure.sentence, f"{count:g}", _text(share)))
    shown: dict[str, Any] = {}
    if audit.has_networks and answers.INHERITED_MISTAKES.name in here:
        own = answers.by_image(found.outcome, answers.INHERITED_MISTAKES.name, "student")
        own = own.mean(axis=1).sort_values(ascending=False, kind="stable").head(2 * EACH)
        rule = (
            "The first mistakes inherited: the teacher's wrong answer where one trained alone is "
            "right."
        )
        both = own[own > 0].to_frame("student").assign(independent=0.0)
        shown = _pictures(audit, found.outcome, both, rule)
    tables = [_changes(of, table) for of, table in changes.items()]
    return {"totals": totals, "tables": tables, "shown": shown}


def _changes(of: str, table: pd.DataFrame) -> dict[str, Any]:
    arms = [arm for arm in NAMES if arm in table]
    rows = []
    for row in table.head(LISTED).to_dict("records"):
        p, right = row["p_holm"], [format_number(row[arm]) for arm in arms]
        rows.append(row | {"right": right, "p": format_number(p, 3), "changed": p < 0.05})
    changed = ", ".join(map(str, table["name"][table["p_holm"] < 0.05].head(LISTED))) or "none"
    kinds = "classes" if of == "class" else f"groups by {of}"
    whom = "the student trained alone" if "independent" in table else "the teacher"
    says = (
        f"Changed against {whom} beyond chance (sign test, Holm over {len(table):,} {kinds}): "
        f"{changed}."
    )
    more = ""
    if len(table) > LISTED:
        more = f"The {LISTED} of {len(table):,} with the smallest p; all are in {CHANGES}."
    arms = [NAMES[arm] for arm in arms]
    return {"of": of, "says": says, "rows": rows, "arms": arms, "more": more}


def _calibration(outcome: Outcome) -> dict[str, Any]:
    errors = answers.calibration(outcome)
    apart = errors.pop("difference", None)
    said = ", ".join(f"{NAMES[arm]} {_text(error)}" for arm, error in errors.items())
    says = f"Expected calibration error (15 bins; 0 is best): {said}."
    if apart:
        says += f" Student minus trained alone: {_text(apart)}."
    lines = []
    for arm in errors:
        dots = [
            (round(50 + 260 * sure, 1), round(270 - 260 * right, 1))
            for sure, right, _ in answers.reliability(outcome, arm)
        ]
        points = " ".join(f"{x},{y}" for x, y in dots)
        colour = "#0072b2" if arm == "student" else looks.colour(arm)
        line = {"name": NAMES[arm], "colour": colour, "dots": dots, "points": points}
        lines.append(line | {"dashed": arm == "independent"})
    return {"says": says, "lines": lines}


def hashes(audit: Audit) -> dict[str, str]:
    """SHA-256 of the files that an audit was made of, by name, and of all its pixels together."""
    request = audit.request
    tables = (request.data, inputs.file_and_column(request.groups or "")[0], request.predictions)
    named = {Path(text).name: text for text in tables if text}
    for text in (*(each.partition(":")[2] for _, each in request.networks()), request.map):
        named |= {paths.without_absolute_paths(text): text} if text else {}
    places = {name: inputs.place(text) for name, text in named.items()}
    found = {name: store.checksum(path) for name, path in places.items() if path.is_file()}
    if audit.has_networks:
        found[f"pixels of {len(audit.images)} images"] = audit.pixels
    return found
