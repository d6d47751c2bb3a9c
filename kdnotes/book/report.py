"""What every chapter says in the same way: its answer, its verdicts, its provenance."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdnotes import data, paths, stats
from kdnotes.book import compared, cover, results, running
from kdnotes.errors import RequestError
from kdnotes.figures import looks, tables
from kdnotes.probes import wording
from kdnotes.probes.findings import Findings
from kdnotes.probes.wording import Text
from kdnotes.stats import claims
from kdnotes.training import cache

if TYPE_CHECKING:
    from pathlib import Path

    from kdnotes.probes.base import Measure, Outcome
    from kdnotes.study import Study

# What chapters that are judged together should have been run with.
_IMAGES_AND_NETWORKS = ("preset", "dataset", "teacher", "student", "train_count")
_SHARED = (*_IMAGES_AND_NETWORKS, "student_epochs", "tau", "seeds", "teacher_count", "first_seed")


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


def verdicts(claims: pd.DataFrame) -> str:
    """How many claims have which verdict: ``2 **agrees**, 10 **open**``."""
    counts = claims["verdict"].value_counts()
    return ", ".join(f"{counts[word]} **{word}**" for word in stats.VERDICTS if word in counts)


def conclude(study: Study, outcome: Outcome, measure: Measure, **options: Any) -> Findings:
    """What a chapter found: its outcome with the claims that it decides, told by one main measure.

    ``options`` are those of `Findings`, such as other arms than the students of each method, or
    another reference than the independent students. With two teachers the values are means over
    the students of both: all is measured once more with the teachers exchanged.
    """
    if study.is_exchanged:
        raise running.Measured(outcome)
    left = [plan.not_trained_out() for plan in study.plans.values()]
    short = {arm: share for each in left for arm, share in each.items()}
    own = [outcome]
    if study.settings.teacher_count == 2:
        own.append(running.with_teachers_exchanged(study))
        outcome = type(outcome).averaged(*own)
    asked = claims.load(study.chapter)
    decided = claims.evaluate(asked, outcome, study.settings.images, short)
    if len(own) == 2:
        decided = claims.by_teacher(decided, [claims.evaluate(asked, each) for each in own])
    decided = [entry | {"criterion": wording.asked(entry)} for entry in decided]
    runs = published(study)
    elsewhere = {name: run.answers for name, (run, _) in runs.items() if run.answers}
    options = {"methods": study.settings.methods, "elsewhere": elsewhere} | options
    found = Findings(outcome, measure, claims=decided, **options)
    return replace(found, changed=what_changed(study, found))


def what_changed(study: Study, found: Findings) -> str:
    """What differs from the preset's published run, and what that changed; empty where nothing."""
    used = study.parameters()
    if not (changes := compared.changed(study.chapter, used)):
        return ""
    line = f"**Changed here:** {compared.said(changes)}"
    if not (folder := compared.reference(study.chapter, used["preset"])):
        return f"{line}."
    there = cover.of_runs(study.chapter, folder, found.measure, results.load(study.chapter, folder))
    effects = compared.effects(found.answers(), there.answers())
    said = "; ".join(f"{looks.of(arm).short} {effect}" for arm, effect in effects.items())
    return f"{line}: {said or 'it was not measured with the preset'}."


def gather(study: Study, folder: Path | None = None) -> dict[str, results.Saved]:
    """What chapters with claims found, as far as they were run, in the order of the book.

    Reading that is the measuring of a page that judges others. ``folder``: where their results lie,
    by default where this page's go, and then RequestError is raised if there are none.
    """
    study.started = study.started or time.perf_counter()
    cover.declare_methods()  # no cast is planned, which would say how they are called
    there = {claim.chapter for claim in claims.load()} & set(results.chapters(folder))
    names = [name for name in running.chapter_paths() if name in there]
    if not (names or folder):
        raise RequestError(
            f"no chapter's results in {results.folder()}: run one first, for example "
            "'kdnotes run distillation', or name the folder of a run with --out"
        )
    return {name: results.load(name, folder) for name in names}


def judged(runs: Mapping[str, results.Saved]) -> pd.DataFrame:
    """The book's claims as several chapters found them, with verdicts of all together.

    Primaries that other images decide are taken from their published run, where there is one; what
    these chapters found of them is exploratory, and comes after.
    """
    known = {claim.id for claim in claims.load()}
    found = [claim for run in runs.values() for claim in run.claims if claim["id"] in known]
    here = {(claim["id"], claim["dataset"]) for claim in found}
    there = [each for each in _decided() if (each["id"], each["dataset"]) not in here]
    found = there + found if found else []
    found = [claim | {"criterion": wording.asked(claim)} for claim in found]
    return stats.scorecard_verdicts(found)


def _decided() -> list[dict[str, Any]]:
    """What published runs found of the primaries, each on the images that decide it."""
    found = []
    for claim in claims.load():
        folder = paths.root() / "results" / "published" / claim.decided_on
        if claim.family in stats.PRIMARIES and claim.chapter in results.chapters(folder):
            there = results.load(claim.chapter, folder).claims
            found += [each for each in there if each["id"] == claim.id]
    return found


def folded(title: str, text: str) -> str:
    """Markdown behind a line that opens it."""
    fence = ":::"
    while fence in text:  # what is folded may fold something itself
        fence += ":"
    return f"{fence}{{dropdown}} {title}\n{text}\n{fence}"


def beside_paper(judged_claims: pd.DataFrame, primaries: pd.DataFrame) -> str:
    """The twelve findings in Markdown: what was asked and found, where, and what the paper has."""
    lines: list[str] = []
    theirs: list[str] = []
    all_claims = [claim.model_dump() for claim in claims.load()]
    published = stats.scorecard_verdicts(_decided())
    for row in primaries.itertuples():
        parts = [claim for claim in all_claims if claim["family"] == row.primary]
        mine = judged_claims[judged_claims["family"] == row.primary]
        told = claims.records(mine[mine["is_primary"]] if mine["is_primary"].any() else mine)
        paper = " ".join(dict.fromkeys(claim["paper"]["text"] for claim in parts))
        here = " ".join(f"{wording.asked(claim)} {claims.estimate(claim)}" for claim in told)
        decided_on = {claim["decided_on"] for claim in parts}
        where = ", ".join(sorted(results.called(name) for name in decided_on))
        verdict = f"{row.primary} {stats.VERDICTS[row.verdict]} {row.verdict}"
        yet = "" if mine["is_primary"].any() else ", not run there yet"
        lines.append(f"- **{verdict}** (decided on {where}{yet}). {here}{_also(published, told)}")
        theirs.append(f"- **{row.primary}** {paper}")
    return "\n".join(lines) + "\n\n" + folded("What the paper found", "\n".join(theirs))


def _also(published: pd.DataFrame, told: Sequence[Mapping[str, Any]]) -> str:
    """What the published run found of the same claims, where it is not the run that is told."""
    if published.empty:
        return ""
    there = claims.records(published[published["id"].isin([claim["id"] for claim in told])])
    found = [(claim["id"], claim["dataset"], claim["estimate"]) for claim in told]
    if all((each["id"], each["dataset"], each["estimate"]) in found for each in there):
        return ""
    said = (f"with {each['seeds']} seeds {claims.said(each)}" for each in there)
    return f" Published: {'; '.join(said)}."


def not_like(study: Study, runs: Mapping[str, results.Saved]) -> list[str]:
    """In Markdown, a line for each chapter that lacks claims, or that was run otherwise."""
    have = {claim["id"] for run in runs.values() for claim in run.claims}
    lacking = dict.fromkeys(claim.chapter for claim in claims.load() if claim.id not in have)
    why = {True: "has claims that its last run did not judge", False: "has not been run"}
    lines = [
        f"- `{name}` {why[name in runs]}: do `kdnotes run {name}`, then this page again."
        for name in lacking
    ]
    mine, unlike = study.parameters(), defaultdict[str, list[str]](list)
    for name, run in runs.items():
        used = {key: run.parameters.get(key) for key in _SHARED}
        others = ", ".join(f"{key} {each}" for key, each in used.items() if each != mine[key])
        unlike[others].append(f"`{name}`")
    return lines + [
        f"- Run with other settings than this page: {', '.join(names)} ({others})."
        for others, names in unlike.items()
        if others
    ]


def finish(study: Study, found: Findings | Sequence[Mapping[str, Any]]) -> Text:
    """Show what published runs say, save all that was found; returns the stamp.

    ``found``: of a page that measures nothing itself, the claims that it judged.
    """
    seconds = time.perf_counter() - (study.started or time.perf_counter())
    parameters = study.parameters()
    training = sum(cache.seconds(item.spec) for item in cache.with_teachers(study.networks))
    judged_here = found.claims if isinstance(found, Findings) else found
    outcome = found.outcome if isinstance(found, Findings) else None
    if isinstance(found, Findings):
        beside(study, found)
    results.save(
        study.chapter,
        outcome,
        judged_here,
        parameters,
        seconds,
        training_seconds=float(training),
        answers=found.answers() if isinstance(found, Findings) else {},
        command=study.command,
    )
    versions = results.versions()
    said = ", ".join(f"{name} {value}" for name, value in parameters.items() if value is not None)
    packages = ", ".join(f"{name} {versions[name]}" for name in ("kdnotes", "torch", "timm"))
    files = (
        f"Table: `{study.chapter}.csv`, one row per arm, seed, condition and measure; single "
        f"images: `{study.chapter}.items.parquet`."
        if outcome
        else f"The claims as judged here: `{study.chapter}.json`."
    )
    return Text(
        f"{files} Settings: {said}. Versions: {packages}. "
        f"Measured in {seconds:.0f} seconds, training not counted."
    )


def published(study: Study) -> dict[str, tuple[results.Saved, pd.DataFrame]]:
    """What published runs of a chapter found, with their tables, by the images; first on the same.

    A published run is not told what it found itself.
    """
    found = {}
    for folder in sorted((paths.root() / "results" / "published").glob("*")):
        if study.chapter not in results.chapters(folder):
            continue
        run = results.load(study.chapter, folder), results.table(study.chapter, folder)
        if folder.name != study.settings.images:
            found[results.called(folder.name)] = run
        elif study.parameters()["preset"] != "published":
            found = {f"the same images, {run[0].parameters['seeds']} seeds": run} | found
    return found


def beside(study: Study, found: Findings) -> None:
    """Show what published runs found, on other images or more networks, and where they differ."""
    runs = published(study)
    if not runs:
        say("No other run of this chapter is published with this version of the book.")
    for name, (run, table) in runs.items():
        say(f"### On {name}\n\n{_beside(found, run, table)}")


def _beside(found: Findings, run: results.Saved, table: pd.DataFrame) -> str:
    answers, made, measure = run.answers, run.parameters, found.measure
    about = (answers["measure"], answers["condition"])
    lines = [answers["sentence"]]
    if about == (measure.name, measure.condition):
        here = found.answers()["methods"]
        there = answers["methods"]
        unlike = [arm for arm in here if arm in there and wording.contradict(here[arm], there[arm])]
        lines += [
            f"**This is not what this page says of {looks.of(arm).short}**: "
            f"{here[arm]['word']}, {here[arm]['amount']} here; "
            f"{there[arm]['word']}, {there[arm]['amount']} there."
            for arm in unlike
        ]
    columns = {}
    for head, rows in (("here", found.outcome.table), ("there", table)):
        rows = rows[(rows["measure"] == about[0]) & (rows["condition"] == about[1])]
        columns[head] = rows.groupby("arm", sort=False)["value"].mean()
    means = pd.DataFrame(columns).dropna(subset=["there"])
    means = means.loc[tables.choose(means.index)].rename_axis("arm").reset_index()
    lines += [f"{measure.label}, means over seeds:", tables.markdown_table(means)]
    count, epochs = made["train_count"], made["student_epochs"]
    teachers = made.get("teacher_count", 1)
    lines.append(
        f"{f'{count:,}' if count else 'All'} training images, the teacher `{made['teacher']}`, the "
        f"student `{made['student']}`, {made['seeds']} seeds, {teachers} "
        f"teacher{'s' * (teachers > 1)}, {epochs or 'the usual number of'} epochs, on "
        f"{run.hardware}. To run it again: `{run.command}`."
    )
    images = made["dataset"].rpartition(":")[2]
    if images in data.names() and data.source(images).takes_list:
        listed = f"dataset={images}:results/published/{images}/images.csv"
        lines.append(f"The same images of the original files:\n\n```text\n{listed}\n```")
    return "\n\n".join(lines)
