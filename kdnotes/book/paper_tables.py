"""The paper's own tables, and what was measured here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdnotes import stats
from kdnotes.book import cover, results
from kdnotes.book.costs import columns_table
from kdnotes.figures import looks
from kdnotes.lazy import pandas as pd
from kdnotes.stats.words import format_number


def beside_the_paper(numbers: Path, published: Path) -> str:
    """Tables of the paper's numbers beside the published runs' means, with their intervals.

    ``numbers``: a YAML file of the paper's tables; ``published``: the folder of published runs.
    Differences are from students trained alone, with an interval over paired seeds alone.
    """
    if not numbers.is_file():
        return "The paper's tables do not come with this copy of the book."
    cover.declare_methods()  # no cast is planned, which would say how they are called
    parts = []
    for table in yaml.safe_load(numbers.read_text(encoding="utf-8")):
        names = [name if name == "laptop" else f"published/{name}" for name in table["images"]]
        folders = [published / name for name in names]
        there = [each for each in folders if table["chapter"] in results.chapters(each)]
        parts.append(f"## {table['title']}")
        if not there:
            parts.append("Not run here yet: no run on these images is published.")
            continue
        parts += [_paper_table(table, there[0]), _setting(table["chapter"], there[0])]
    return "\n\n".join(parts)


def _paper_table(table: Mapping[str, Any], folder: Path) -> str:
    found, rows = results.table(table["chapter"], folder), []
    found, scale = found[found["measure"] == table["measure"]], 100 if table["percent"] else 1
    for row in table["rows"]:
        measured = found[found["condition"] == row["condition"]]
        for arm in (each for each in row if each not in ("what", "condition")):
            here = measured[measured["arm"] == arm]["value"]
            mean = format_number(here.mean()) if len(here) else "not measured"
            paper = format_number(row[arm] / scale, 3)
            cells = ("", "", "")
            if arm not in ("independent", "teacher") and len(here):
                where = table["measure"], row["condition"], arm, "independent"
                adds = (row[arm] - row["independent"]) / scale
                difference = stats.contrast(measured, None, *where)
                cells = (format_number(adds, 3), difference.format(), _same_sign(adds, difference))
            rows.append((row["what"], looks.of(arm).short, paper, mean, *cells))
    heads = ("images", "who", "paper", "here", "paper adds", "here adds", "sign")
    return columns_table(heads, "::----:", rows)


def _same_sign(paper: float, here: stats.Interval) -> str:
    if not (here.low > 0 or here.high < 0):
        return "open"
    return "agrees" if (here.estimate > 0) == (paper > 0) else "disagrees"


def _setting(chapter: str, folder: Path) -> str:
    run = results.load(chapter, folder)
    made = run.parameters
    return (
        f"Here: `{made['dataset']}`, at most {made['train_count'] or 'all'} training images, "
        f"teacher `{made['teacher']}`, student `{made['student']}`, {made['seeds']} seeds, "
        f"{run.hardware}. `{run.command or f'kdnotes run {chapter}'}`"
    )


def strangers(path: Path) -> str:
    """Markdown tables of the file that `benchmarks/strangers.py` writes.

    Of people the range is shown, of networks each one's shape bias; of the pairs those with a
    ResNet-50, and those on photographs.
    """
    if not path.is_file():
        return "Networks that never met were not compared for this edition of the book."
    table = pd.read_csv(path).fillna({"with": ""})
    table["said"] = [_said(*ends) for ends in table[["value", "low", "high"]].to_numpy()]
    biases, pairs = (table[table["what"] == what] for what in ("shape bias", "same answer"))
    people = biases["who"].str.startswith("subject-")
    span = " to ".join(map(format_number, biases[people]["value"].agg(["min", "max"])))
    networks = biases[~people].sort_values("value")
    rows = [(f"{people.sum()} people", span), *zip(networks["who"], networks["said"], strict=True)]
    of_one = (pairs[["who", "with"]] == "resnet50").any(axis=1)
    known = pairs[of_one | (pairs["on"] == "photographs")]
    known = known.sort_values("value", ascending=False)
    known = known.assign(kappa=known["kappa"].map(format_number))
    alike = [*known[["who", "with", "on", "said", "kappa"]].itertuples(index=False, name=None)]
    if len(between := pairs[pairs["who"].str.startswith("subject-")]):
        ends = [
            " to ".join(map(format_number, between[name].agg(["min", "max"])))
            for name in ("value", "kappa")
        ]
        alike.append(("one of the people", "another", between["on"].iloc[0], *ends))
    return "\n\n".join(
        (
            columns_table(("who", "answers that go by the shape"), ":-", rows),
            columns_table(("one", "other", "images", "same answer", "kappa"), ":::--", alike),
        )
    )


def audited(path: Path) -> str:
    """A Markdown table of an audit's measures, from the audit.json that it left."""
    if not path.is_file():
        return "Not audited for this edition of the book."
    run = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for claim in run["claims"]:
        student, difference = (
            _said(each["estimate"], each["low"], each["high"]) for each in (claim["student"], claim)
        )
        values, twin = claim["values"], claim["reference"]
        other = values.get(twin) if isinstance(twin, str) else twin
        alone = "" if other is None else format_number(other)
        rows.append((claim["meaning"], student, alone, difference, claim["word"]))
    made = run["parameters"]
    heads = ("what", "student", "twin", "student minus twin", "of the way to the teacher")
    return (
        columns_table(heads, ":---:", rows)
        + f"\n\n{made['measured_images']} images of {made['measured_size']} pixels, measures with "
        f"gradients on {made['gradient_images']} of them; {run['hardware']}. Intervals are over "
        "images, for these very networks."
    )


def _said(estimate: float | None, low: float | None, high: float | None) -> str:
    """As intervals are said everywhere; None, as JSON has it, for what is not known."""
    if estimate is None:
        return ""
    first, last = (math.nan if each is None else each for each in (low, high))
    return stats.Interval(estimate, first, last, 0, math.nan, math.nan).format()
