"""What every chapter says in the same way: its answer, its verdicts, its provenance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kdnotes import paths
from kdnotes.book import results
from kdnotes.errors import RequestError
from kdnotes.figures import looks
from kdnotes.probes.findings import Findings
from kdnotes.probes.wording import Text
from kdnotes.stats import claims
from kdnotes.training import cache

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.probes.base import Measure, Outcome
    from kdnotes.study import Study


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


def conclude(study: Study, outcome: Outcome, measure: Measure, **options: Any) -> Findings:
    """What a chapter found: its outcome with the claims that it decides, told by one main measure.

    ``options`` are those of `Findings`, such as other arms than the students of each method, or
    another reference than the independent students.
    """
    decided = claims.evaluate(claims.load(study.chapter), outcome)
    options = {"methods": study.settings.methods} | options
    return Findings(outcome, measure, claims=decided, **options)


def finish(study: Study, found: Findings) -> Text:
    """Save a chapter's table, items, claims and provenance; returns the stamp to show."""
    seconds = time.perf_counter() - (study.started or time.perf_counter())
    parameters = study.parameters()
    training = sum(cache.seconds(item.spec) for item in cache.with_teachers(study.networks))
    results.save(
        study.chapter,
        found.outcome,
        found.claims,
        parameters,
        seconds,
        training_seconds=float(training),
    )
    versions = results.versions()
    said = ", ".join(f"{name} {value}" for name, value in parameters.items() if value is not None)
    packages = ", ".join(f"{name} {versions[name]}" for name in ("kdnotes", "torch", "timm"))
    return Text(
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
) -> Text:
    """A measure's mean per arm in this run and in the published one, as Markdown.

    Where no such run is published, or this is one of that preset, a sentence that says so.
    """
    import pandas as pd

    from kdnotes.figures import tables

    if study.settings.preset == preset:
        said = f"This is a run of the preset `{preset}`: there is no larger one to set beside it."
        return Text(said)
    other = published(study.chapter, preset)
    if other is None:
        return Text(f"No run of the preset `{preset}` is published with this version of the book.")
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
    return Text(
        f"{tables.markdown_table(beside)}\n\nMean over seeds. The published run used "
        f"{made['train_count'] or 'all'} training images of `{made['dataset']}`, the teacher "
        f"`{made['teacher']}` and the student `{made['student']}`, {made['seeds']} seeds, on "
        f"{larger.hardware}{trained}."
    )
