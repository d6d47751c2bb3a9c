"""What runs say: every chapter of itself in the same way, and two of them beside each other."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdnotes import data, paths, stats
from kdnotes.book import cover, parameters, results, running
from kdnotes.errors import RequestError
from kdnotes.figures import looks, tables
from kdnotes.probes import wording
from kdnotes.probes.findings import Findings
from kdnotes.probes.wording import Text
from kdnotes.stats import claims
from kdnotes.stats.words import aligned, format_number
from kdnotes.study.presets import PRESETS
from kdnotes.training import cache

if TYPE_CHECKING:
    from kdnotes.probes.base import Measure, Outcome
    from kdnotes.study import Study

ARROW = "\N{RIGHTWARDS ARROW}"
_LARGEST = 30  # rows of means, where a run has no answer
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
    """The numbers of a parameter such as "2,4,8". Raises RequestError, naming it."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        right = f"must be {what} with commas between them, not {text!r}"
        raise RequestError(f"parameter {name!r} {right}") from error


def students(seeds: pd.Series) -> str:
    """How many students claims compare: "5", or "5 (2 of 81 claims: 10)"; 0: not measured."""
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

    ``options``: those of `Findings`. With two teachers the values are means over the students of
    both: all is measured once more with the teachers exchanged.
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
    elsewhere = {name: run.answers for name, run in published(study).items() if run.answers}
    options = {"methods": study.settings.methods, "elsewhere": elsewhere} | options
    found = Findings(outcome, measure, claims=decided, **options)
    return replace(found, changed=what_changed(study, found))


def what_changed(study: Study, found: Findings) -> str:
    """What differs from the preset's published run, and what that changed; empty where nothing."""
    used = study.parameters()
    if not (changes := _changed(study.chapter, used)):
        return ""
    line = f"**Changed here:** {said(changes)}"
    if not (there := _reference(study.chapter, used["preset"])):
        return f"{line}."
    told = effects(found.answers(), cover.of_run(there, found.measure).answers())
    changed = "; ".join(f"{looks.of(arm).short} {effect}" for arm, effect in told.items())
    return f"{line}: {changed or 'it was not measured with the preset'}."


def _reference(chapter: str, preset: str) -> results.Saved | None:
    """The published run of a chapter with a preset, where there is one."""
    runs = results.runs(chapter, [paths.root() / "results" / preset])
    return next(iter(runs.values()), None)


def _changed(chapter: str, used: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Parameters that differ from their preset's: the run's value, and the preset's.

    That is its published run's, else the chapter's own, else the preset's for all.
    """
    name = str(used.get("preset"))
    known = running.chapter_paths()
    declared = parameters.read(known[chapter]) if chapter in known else {}
    preset = PRESETS[name].model_dump() if name in PRESETS else {}
    usual = preset | {"seeds": preset.get("students")}
    usual |= {key: each.default for key, each in declared.items() if each.default is not None}
    if run := _reference(chapter, cover.PUBLISHED_PRESET):  # its images are those of all presets
        usual["dataset"] = run.parameters.get("dataset")
    if run := _reference(chapter, name):
        usual |= run.parameters
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


def said(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Changes of parameters in words: ``tau 8, preset 4; seeds 3, preset 5``."""
    return "; ".join(
        f"{key} {_setting(here)}, preset {_setting(there)}"
        for key, (here, there) in changes.items()
    )


def _setting(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def effects(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, str]:
    """What each method's amount was there and is here; nothing where other things were asked."""
    if any(here.get(key) != there.get(key) for key in ("measure", "condition")):
        return {}
    told = {}
    for arm, now in here["methods"].items():
        if before := there["methods"].get(arm):
            same = before["word"] == now["word"]
            words = "" if same else f" ({before['word']} {ARROW} {now['word']})"
            told[arm] = f"{_short(before)} {ARROW} {_short(now)}{words}"
    return told


def _short(answer: Mapping[str, Any]) -> str:
    """An amount without its interval, which the table below it has."""
    amount = format_number(answer["estimate"])
    return f"{amount} of the gap" if answer["share"] else f"difference {amount}"


def gather(study: Study, folder: Path | None = None) -> dict[str, results.Saved]:
    """What chapters with claims found, as far as they were run, in the order of the book.

    From a ``folder``, by default this page's, and then raises RequestError if there are none.
    """
    study.started = study.started or time.perf_counter()
    cover.declare_methods()  # no cast is planned, which would say how they are called
    there = {claim.chapter for claim in claims.load()} & set(results.chapters(folder))
    names = [name for name in running.chapter_paths() if name in there]
    if not (names or folder):
        first = "run one first, as with 'kdnotes run distillation', or name their folder with --out"
        raise RequestError(f"no chapter's results in {results.folder()}: {first}")
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
    published = paths.root() / "results" / "published"
    return [
        each
        for claim in claims.load()
        if claim.family in stats.PRIMARIES
        for run in results.runs(claim.chapter, [published / claim.decided_on]).values()
        for each in run.claims
        if each["id"] == claim.id
    ]


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
    all_claims = claims.load()
    published = stats.scorecard_verdicts(_decided())
    for row in primaries.itertuples():
        parts = [claim for claim in all_claims if claim.family == row.primary]
        mine = judged_claims[judged_claims["family"] == row.primary]
        decided = mine["is_primary"].any()
        told = claims.records(mine[mine["is_primary"]] if decided else mine)
        here = " ".join(f"{wording.asked(claim)} {claims.estimate(claim)}" for claim in told)
        where = ", ".join(sorted({results.called(claim.decided_on) for claim in parts}))
        verdict = f"{row.primary} {stats.VERDICTS[row.verdict]} {row.verdict}"
        yet = "" if decided else ", not run there yet"
        lines.append(f"- **{verdict}** (decided on {where}{yet}). {here}{_also(published, told)}")
        paper = " ".join(dict.fromkeys(claim.paper.text for claim in parts))
        theirs.append(f"- **{row.primary}** {paper}")
    return "\n".join(lines) + "\n\n" + folded("What the paper found", "\n".join(theirs))


def _also(published: pd.DataFrame, told: Sequence[Mapping[str, Any]]) -> str:
    """What the published run found of the same claims, where it is not the run that is told."""
    if published.empty:
        return ""
    there = claims.records(published[published["id"].isin([claim["id"] for claim in told])])
    known = [(claim["id"], claim["dataset"], claim["estimate"]) for claim in told]
    if all((each["id"], each["dataset"], each["estimate"]) in known for each in there):
        return ""
    also = (f"with {each['seeds']} seeds {claims.said(each)}" for each in there)
    return f" Published: {'; '.join(also)}."


def not_like(study: Study, runs: Mapping[str, results.Saved]) -> list[str]:
    """In Markdown, a line for each chapter that lacks claims, or that was run otherwise."""
    have = {claim["id"] for run in runs.values() for claim in run.claims}
    why = {True: "has claims that its last run did not judge", False: "has not been run"}
    lines = [
        f"- `{name}` {why[name in runs]}: do `kdnotes run {name}`, then this page again."
        for name in dict.fromkeys(each.chapter for each in claims.load() if each.id not in have)
    ]
    mine, unlike = study.parameters(), defaultdict[str, list[str]](list)
    for name, run in runs.items():
        used = {key: run.parameters.get(key) for key in _SHARED}
        others = ", ".join(f"{key} {each}" for key, each in used.items() if each != mine[key])
        unlike[others].append(f"`{name}`")
    unlike.pop("", None)
    return lines + [
        f"- Run with other settings than this page: {', '.join(names)} ({others})."
        for others, names in unlike.items()
    ]


def finish(study: Study, found: Findings | Sequence[Mapping[str, Any]]) -> Text:
    """Show what published runs say, save what was found or claims judged; returns the stamp."""
    seconds = time.perf_counter() - (study.started or time.perf_counter())
    used, versions = study.parameters(), results.versions()
    training = sum(cache.seconds(item.spec) for item in cache.with_teachers(study.networks))
    about: dict[str, Any] = {"training_seconds": round(float(training), 2)}
    files, outcome = f"The claims as judged here: `{study.chapter}.json`.", None
    if isinstance(found, Findings):
        beside(study, found)
        about["answers"] = found.answers()
        outcome, found = found.outcome, found.claims
        files = (
            f"Table: `{study.chapter}.csv`, one row per arm, seed, condition and measure; single "
            f"images: `{study.chapter}.items.parquet`."
        )
    results.save(study.chapter, outcome, found, used, seconds, command=study.command, **about)
    made = ", ".join(f"{name} {value}" for name, value in used.items() if value is not None)
    packages = ", ".join(f"{name} {versions[name]}" for name in ("kdnotes", "torch", "timm"))
    return Text(
        f"{files} Settings: {made}. Versions: {packages}. "
        f"Measured in {seconds:.0f} seconds, training not counted."
    )


def published(study: Study) -> dict[str, results.Saved]:
    """Other published runs of a chapter by their images, first on the same ones."""
    found = {}
    folders = sorted((paths.root() / "results" / "published").glob("*"))
    for folder, run in results.runs(study.chapter, folders).items():
        if folder.name != study.settings.images:
            found[results.called(folder.name)] = run
        elif study.parameters()["preset"] != "published":
            found = {f"the same images, {run.parameters['seeds']} seeds": run} | found
    return found


def beside(study: Study, found: Findings) -> None:
    """Show what published runs found, on other images or more networks, and where they differ."""
    if not (runs := published(study)):
        say("No other run of this chapter is published with this version of the book.")
    for name, run in runs.items():
        say(f"### On {name}\n\n{_beside(found, run)}")


def _beside(found: Findings, run: results.Saved) -> str:
    there, made = run.answers, run.parameters
    about = (there["measure"], there["condition"])
    lines = [there["sentence"]]
    if about == (found.measure.name, found.measure.condition):
        for arm, mine in found.answers()["methods"].items():
            other = there["methods"].get(arm)
            if other and wording.contradict(mine, other):
                where = [f"{each['word']}, {each['amount']}" for each in (mine, other)]
                unlike = f"**This is not what this page says of {looks.of(arm).short}**"
                lines.append(f"{unlike}: {where[0]} here; {where[1]} there.")
    columns = {}
    for head, rows in (("here", found.outcome.table), ("there", run.table)):
        rows = rows[(rows["measure"] == about[0]) & (rows["condition"] == about[1])]
        columns[head] = rows.groupby("arm", sort=False)["value"].mean()
    means = pd.DataFrame(columns).dropna(subset=["there"])
    means = means.loc[tables.choose(means.index)].rename_axis("arm").reset_index()
    count, teachers = made["train_count"], made.get("teacher_count", 1)
    lines += [
        f"{found.measure.label}, means over seeds:",
        tables.markdown_table(means),
        f"{f'{count:,}' if count else 'All'} training images, the teacher `{made['teacher']}`, the "
        f"student `{made['student']}`, {made['seeds']} seeds, {teachers} "
        f"teacher{'s' * (teachers > 1)}, {made['student_epochs'] or 'the usual number of'} epochs, "
        f"on {run.hardware}. To run it again: `{run.command}`.",
    ]
    images = made["dataset"].rpartition(":")[2]
    if images in data.names() and data.source(images).takes_list:
        listed = f"dataset={images}:results/published/{images}/images.csv"
        lines.append(f"The same images of the original files:\n\n```text\n{listed}\n```")
    return "\n\n".join(lines)


def shown(name: str, folder: Path) -> str:
    """What a run changed of its preset, its answer and its verdicts. Raises RequestError."""
    cover.declare_methods()
    run = results.load(name, folder)
    table = run.table
    differs = said(_changed(run.chapter, run.parameters)) or "nothing was changed"
    about = f"preset {run.parameters.get('preset')}: {differs}"
    parts = [f"{name} ({run.seconds:.0f} s)", about]
    if run.answers:
        answers = run.answers["methods"].items()
        rows = [(f"  {looks.of(arm).short}", each["word"], each["amount"]) for arm, each in answers]
        parts.append(f"{run.answers['sentence']}\n{aligned(rows)}")
    if run.claims:
        lines = [("  claim", "verdict", "estimate", "what was asked")]
        for claim in run.claims:
            point = "".join(f" {key}={value}" for key, value in claim.get("point", {}).items())
            asked = wording.asked(claim) if "direction" in claim else claim["measure"]
            lines.append((f"  {claim['id']}{point}", claim["verdict"], _estimate(claim), asked))
        parts.append(f"verdicts\n{aligned(lines)}")
    if len(table) and not run.answers:
        parts.append(_means(run, table))
    return "\n\n".join(parts)


def _means(run: results.Saved, table: pd.DataFrame) -> str:
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
    return f"main numbers\n{aligned(rows)}{rest}"


def _estimate(claim: Mapping[str, Any]) -> str:
    if claim["estimate"] is None:
        return tables.NOTHING
    bounds = [format_number(claim[key]) for key in ("low", "high") if claim[key] is not None]
    return f"{format_number(claim['estimate'])} [{', '.join(bounds)}]"


def differences(first: Path, second: Path) -> str:
    """What differs between the runs in two folders. Raises RequestError where none is in both."""
    cover.declare_methods()
    there = [results.chapters(folder) for folder in (first, second)]
    if not (both := [name for name in there[0] if name in there[1]]):
        listed = "; ".join(", ".join(names) or "none" for names in there)
        wrong = f"{str(first)!r} and {str(second)!r} hold no results of the same chapter"
        raise RequestError(f"{wrong}: {listed}")
    return "\n\n".join(_compared(name, first, second) for name in both)


def _compared(name: str, *folders: Path) -> str:
    one, other = (results.load(name, folder) for folder in folders)
    used = (one.parameters, other.parameters)
    rows = [
        (f"  {key}", *(_setting(each.get(key)) for each in used))
        for key in used[0] | used[1]
        if used[0].get(key) != used[1].get(key)
    ]
    parts = [f"{name}\n{aligned(rows) if rows else '  the same parameters'}"]
    if one.answers and other.answers:
        parts.append(_answers(one.answers, other.answers))
    there = {claim["id"]: claim for claim in other.claims}
    lines, flips = [], 0
    for claim in one.claims:
        again = there.get(claim["id"])
        flips += again is not None and again["verdict"] != claim["verdict"]
        told = (again["verdict"], _estimate(again)) if again else ("not asked", "")
        lines.append((f"  {claim['id']}", claim["verdict"], _estimate(claim), *told))
    if lines:
        heads = ("  claim", str(folders[0]), "", str(folders[1]), "")
        parts.append(f"verdicts: {flips} of {len(lines)} differ\n{aligned([heads, *lines])}")
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
