"""Two runs beside each other, or one beside its preset's: what was changed, what that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths
from kdnotes.book import cover, parameters, results, running
from kdnotes.errors import RequestError
from kdnotes.figures import looks, tables
from kdnotes.probes import wording
from kdnotes.stats.words import aligned, format_number
from kdnotes.study.presets import PRESETS

if TYPE_CHECKING:
    import pandas as pd

ARROW = "\N{RIGHTWARDS ARROW}"
_LARGEST = 30  # rows of means, where a run has no answer


def reference(chapter: str, preset: str) -> Path | None:
    """The folder of the published run of a chapter with a preset, where there is one."""
    folder = paths.root() / "results" / preset
    return folder if chapter in results.chapters(folder) else None


def changed(chapter: str, used: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Parameters of a run that differ from its preset's: the run's value, and the preset's.

    The preset's is that of its published run, else the chapter's own, else the preset's for all.
    """
    name = str(used.get("preset"))
    known = running.chapter_paths()
    declared = parameters.read(known[chapter]) if chapter in known else {}
    preset = PRESETS[name].model_dump() if name in PRESETS else {}
    usual = preset | {"seeds": preset.get("students")}
    usual |= {key: each.default for key, each in declared.items() if each.default is not None}
    if folder := reference(chapter, cover.PUBLISHED_PRESET):  # its images are those of all presets
        usual["dataset"] = results.load(chapter, folder).parameters["dataset"]
    if folder := reference(chapter, name):
        usual |= results.load(chapter, folder).parameters
    usual["epochs"] = preset.get("student_epochs") or "what its images take"
    return {
        key: (value, usual[key])
        for key, value in {**used, "epochs": used.get("student_epochs")}.items()
        if key in declared
        and key not in ("preset", "device", "data_dir")
        and usual.get(key) is not None
        and value is not None
        and value != usual[key]
    }


def said(changes: Mapping[str, tuple[Any, Any]], whose: str = "preset ") -> str:
    """Changes of parameters in words: ``tau 8, preset 4; seeds 3, preset 5``."""
    return "; ".join(
        f"{key} {_setting(here)}, {whose}{_setting(there)}"
        for key, (here, there) in changes.items()
    )


def _setting(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def effects(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, str]:
    """What each method's amount was there and is here; nothing where other things were asked.

    The word for it is said where it is another one.
    """
    if any(here.get(key) != there.get(key) for key in ("measure", "condition")):
        return {}
    told = {}
    for arm, now in here["methods"].items():
        if before := there["methods"].get(arm):
            other = f" ({before['word']} {ARROW} {now['word']})"
            word = other if before["word"] != now["word"] else ""
            told[arm] = f"{_short(before)} {ARROW} {_short(now)}{word}"
    return told


def _short(answer: Mapping[str, Any]) -> str:
    """An amount without its interval, which the table below it has."""
    amount = format_number(answer["estimate"])
    return f"{amount} of the gap" if answer["share"] else f"difference {amount}"


# --- one run ----------------------------------------------------------------------------------


def shown(name: str, folder: Path) -> str:
    """What differs from the preset, the answer and the verdicts of a chapter's run, or of a sweep.

    Raises RequestError where the results cannot be read.
    """
    cover.declare_methods()
    run, table = results.load(name, folder), results.table(name, folder)
    differs = said(changed(run.chapter, run.parameters)) or "nothing was changed"
    parts = [
        f"{name} ({run.seconds:.0f} s)",
        f"preset {run.parameters.get('preset')}: {differs}",
    ]
    if run.answers:
        rows: list[tuple[Any, ...]] = [
            (f"  {looks.of(arm).short}", each["word"], each["amount"])
            for arm, each in run.answers["methods"].items()
        ]
        parts.append(f"{run.answers['sentence']}\n{aligned(rows)}")
    if run.claims:
        rows = [("  claim", "verdict", "estimate", "what was asked")]
        for claim in run.claims:
            point = "".join(f" {key}={value}" for key, value in claim.get("point", {}).items())
            asked = wording.asked(claim) if "direction" in claim else claim["measure"]
            rows.append((f"  {claim['id']}{point}", claim["verdict"], _estimate(claim), asked))
        parts.append(f"verdicts\n{aligned(rows)}")
    if not run.answers:
        parts += _means(run, table)
    return "\n\n".join(parts)


def _means(run: results.Saved, table: pd.DataFrame) -> Iterator[str]:
    if not len(table):
        return
    main = table["measure"].isin({"accuracy", *(claim["measure"] for claim in run.claims)})
    kept = table[main] if main.any() else table
    axes = [column for column in table.columns if column not in results.COLUMNS]
    keys = [*axes, "measure", "condition", "arm"]
    means = kept.groupby(keys, sort=False)["value"].agg(["mean", "count"]).reset_index()
    rows = [(f"  {keys[0]}", *keys[1:], "mean", "networks")]
    for first, *labels, mean, count in means.head(_LARGEST).itertuples(index=False):
        rows.append((f"  {first}", *map(str, labels), format_number(mean), str(count)))
    more = len(means) - _LARGEST
    rest = f"\n  and {more} more in {run.chapter}.csv" if more > 0 else ""
    yield f"main numbers\n{aligned(rows)}{rest}"


def _estimate(claim: Mapping[str, Any]) -> str:
    numbers = [claim[key] for key in ("estimate", "low", "high")]
    if numbers[0] is None:
        return tables.NOTHING
    bounds = [format_number(each) for each in numbers[1:] if each is not None]
    return f"{format_number(numbers[0])} [{', '.join(bounds)}]"


# --- two runs ---------------------------------------------------------------------------------


def differences(first: Path, second: Path) -> str:
    """What differs between the runs in two folders, by chapter: parameters, answers, verdicts.

    Raises RequestError where the folders have no chapter in common.
    """
    cover.declare_methods()
    both = [name for name in results.chapters(first) if name in results.chapters(second)]
    if not both:
        raise RequestError(
            f"{str(first)!r} and {str(second)!r} hold no results of the same chapter: "
            f"{', '.join(results.chapters(first)) or 'none'}; "
            f"{', '.join(results.chapters(second)) or 'none'}"
        )
    return "\n\n".join(_compared(name, first, second) for name in both)


def _compared(name: str, *folders: Path) -> str:
    one, other = (results.load(name, folder) for folder in folders)
    keys = dict.fromkeys([*one.parameters, *other.parameters])
    pairs = {key: (one.parameters.get(key), other.parameters.get(key)) for key in keys}
    rows = [
        (f"  {key}", _setting(here), _setting(there))
        for key, (here, there) in pairs.items()
        if here != there
    ]
    parts = [f"{name}\n{aligned(rows) if rows else '  the same parameters'}"]
    if one.answers and other.answers:
        parts.append(_answers(one.answers, other.answers))
    known = {claim["id"]: claim for claim in other.claims}
    lines = [("  claim", str(folders[0]), "", str(folders[1]), "")]
    flips = 0
    for claim in one.claims:
        there = known.get(claim["id"])
        flips += there is not None and there["verdict"] != claim["verdict"]
        told = [
            (each["verdict"], _estimate(each)) if each else ("not asked", "")
            for each in (claim, there)
        ]
        lines.append((f"  {claim['id']}", *told[0], *told[1]))
    if one.claims:
        parts.append(f"verdicts: {flips} of {len(one.claims)} differ\n{aligned(lines)}")
    return "\n\n".join(parts)


def _answers(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if (one["measure"], one["condition"]) != (other["measure"], other["condition"]):
        return f"not the same question\n  {one['sentence']}\n  {other['sentence']}"
    rows = []
    for arm in dict.fromkeys([*one["methods"], *other["methods"]]):
        told = [each["methods"].get(arm) for each in (one, other)]
        cells = [f"{each['word']}, {each['amount']}" if each else "not measured" for each in told]
        rows.append((f"  {looks.of(arm).short}", cells[0], ARROW, cells[1]))
    return f"{one['sentence'].partition(':')[0]}\n{aligned(rows)}"
