"""What every chapter says in the same way: its answer, its verdicts, its provenance."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdnotes import paths, stats
from kdnotes.book import results
from kdnotes.errors import RequestError
from kdnotes.figures import looks
from kdnotes.stats.claims import estimate, verdict_table
from kdnotes.training import cache

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.probes.base import Outcome
    from kdnotes.study import Study

# For chapters that do not ask Findings yet.
found, verdicts = estimate, verdict_table


def say(text: str) -> None:
    """Show computed Markdown as a part of the page's text."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def notice(*bullets: str) -> None:
    """Show what to notice in a chapter's main picture, at most three things."""
    say("### What to notice\n\n" + "\n".join(f"- {bullet}" for bullet in bullets))


def numbers(name: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """The numbers of a parameter that is a comma-separated list, such as "2,4,8".

    Raises RequestError, naming the parameter, where there are none or a part is no such number.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise RequestError(
            f"parameter {name!r} must be {what} with commas between them, not {text!r}"
        ) from error


def answer(claims: Sequence[Mapping[str, Any]]) -> str:
    """The chapter's claims as a list, verdict first: what stands at the top of a chapter."""
    lines = []
    for claim in claims:
        mark = stats.VERDICTS[claim["verdict"]]
        lines.append(f"- {mark} **{claim['verdict']}**: {claim['statement']} {found(claim)}")
    return "\n".join(lines)


def students(seeds: pd.Series) -> str:
    """How many students of each kind claims compare: "5", or "5 (2 of 81 claims: 10)".

    ``seeds``: their number for each claim, 0 where nothing was measured.
    """
    counts = seeds[seeds > 0].value_counts()
    if counts.empty:
        return "none"
    most, others = counts.index[0], sorted(counts.index[1:])
    if not others:
        return str(most)
    span = " to ".join(str(end) for end in dict.fromkeys((others[0], others[-1])))
    return f"{most} ({counts[others].sum()} of {counts.sum()} claims: {span})"


def finish(
    study: Study, outcome: Outcome, claims: Sequence[Mapping[str, Any]], started: float
) -> str:
    """Save a chapter's table, items, claims and provenance; returns the stamp to show."""
    seconds = time.perf_counter() - started
    parameters = study.parameters()
    training = sum(cache.seconds(item.spec) for item in cache.with_teachers(study.networks))
    results.save(
        study.chapter, outcome, claims, parameters, seconds, training_seconds=float(training)
    )
    versions = results.versions()
    said = ", ".join(f"{name} {value}" for name, value in parameters.items() if value is not None)
    packages = ", ".join(f"{name} {versions[name]}" for name in ("kdnotes", "torch", "timm"))
    return (
        f"Table: `{study.chapter}.csv`, one row per arm, seed, condition and measure; single "
        f"images: `{study.chapter}.items.parquet`. Settings: {said}. Versions: {packages}. "
        f"Measured in {seconds:.0f} seconds, training not counted."
    )


def published(chapter: str, preset: str = "full") -> pd.DataFrame | None:
    """The table of a published run of a chapter (``results/PRESET``), None if there is none."""
    folder = paths.root() / "results" / preset
    return results.table(chapter, folder) if chapter in results.chapters(folder) else None


def beside_published(
    study: Study, outcome: Outcome, measure: str, condition: str = "", preset: str = "full"
) -> str:
    """A measure's mean per arm in this run and in the published one, as Markdown.

    Where no such run is published, or this is one of that preset, a sentence that says so.
    """
    import pandas as pd

    from kdnotes.figures import tables

    if study.settings.preset == preset:
        return f"This is a run of the preset `{preset}`: there is no larger one to set beside it."
    other = published(study.chapter, preset)
    if other is None:
        return f"No run of the preset `{preset}` is published with this version of the book."
    here = f"this run ({study.settings.preset})"
    columns = {}
    for name, table in ((here, outcome.table), (f"published ({preset})", other)):
        rows = table[(table["measure"] == measure) & (table["condition"] == condition)]
        columns[name] = rows.groupby("arm", sort=False)["value"].mean()
    place = {arm: number for number, arm in enumerate(looks.order())}
    beside = pd.DataFrame(columns).sort_index(key=lambda arms: arms.map(place), kind="stable")
    beside = beside.rename_axis("arm").reset_index()
    larger = results.load(study.chapter, paths.root() / "results" / preset)
    made, spent = larger.parameters, larger.training_seconds
    trained = "" if spent is None else f", where training took {spent / 60:.0f} minutes of one core"
    return (
        f"{tables.markdown_table(beside)}\n\nMean over seeds. The published run used "
        f"{made['train_count'] or 'all'} training images of `{made['dataset']}`, the teacher "
        f"`{made['teacher']}` and the student `{made['student']}`, {made['seeds']} seeds, on "
        f"{larger.hardware}{trained}."
    )
