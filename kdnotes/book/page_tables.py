"""Tables that pages of the site include: what chapters cost, and what lies in results/."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdnotes import stats
from kdnotes.book import cover, results, running
from kdnotes.book.running import Done
from kdnotes.figures import looks
from kdnotes.lazy import pandas as pd
from kdnotes.stats import claims
from kdnotes.stats.words import format_number
from kdnotes.training import cache

NOT_MEASURED = "No chapter was run for this build of the book, so there is nothing to count."
NOT_TIMED = "The benchmarks were not run for this edition of the book."


def table(done: Sequence[Done]) -> str:
    """A Markdown table with a row per chapter, and one for all, with shared networks once.

    Seconds of training are those of one core when each network was trained, its share of the
    teacher's table included.
    """
    if not done:
        return NOT_MEASURED
    requests = [each.run.request for each in done]
    parts = [(each.chapter.name, each.study.networks) for each in requests]
    parts.append(("**all**", running.needed_networks(requests)))
    measuring = [each.seconds for each in done]
    rows = []
    for (name, networks), spent in zip(parts, [*measuring, sum(measuring)], strict=True):
        minutes = sum(cache.seconds(item.spec) for item in networks) / 60
        rows.append((name, len(networks), f"{minutes:.1f} min of one core", f"{spent:.0f} s"))
    return columns_table(("chapter", "networks", "training", "the chapter itself"), ":---", rows)


def profile(done: Sequence[Done]) -> str:
    """A Markdown table of what the time of all chapters went into, in seconds of one core.

    A chapter measures in its longest cell; what no cell accounts for is its kernel and notebook.
    """
    if not done:
        return NOT_MEASURED
    seconds = defaultdict[str, list[float]](list)
    for item in running.needed_networks(each.run.request for each in done):
        method = item.spec.method
        how = "students without a teacher" if method is None else f"students by {method.short}"
        how = "teachers" if item.spec.role == "teacher" else how
        seconds[f"training {how}"].append(cache.seconds(item.spec))
    for each in done:
        content = json.loads(each.run.notebook.read_text(encoding="utf-8"))
        whole = content["metadata"]["papermill"]["duration"]
        noted = [cell["metadata"].get("papermill", {}) for cell in content["cells"]]
        cells = [about["duration"] for about in noted if about.get("duration")]
        longest = max(cells, default=0.0)
        seconds["chapters: measuring"].append(longest)
        seconds["chapters: figures, tables and verdicts"].append(sum(cells) - longest)
        seconds["chapters: kernels, notebooks read and written"].append(whole - sum(cells))
    total = sum(map(sum, seconds.values()))
    rows = [
        (name, str(len(values)), f"{sum(values):.0f}", f"{sum(values) / total:.0%}")
        for name, values in sorted(seconds.items(), key=lambda part: -sum(part[1]))
    ]
    rows.append(("**all**", "", f"{total:.0f}", "100%"))
    return columns_table(("what", "how many", "seconds of one core", "share"), ":---", rows)


def benchmarks(folder: Path) -> str:
    """The tables that `make bench` left in a folder, in Markdown; a sentence if there is none."""
    columns = ("work", "contender", "least seconds", "median", "speed-up")
    found = [
        f"{heading}\n\n{columns_table(columns, '::---', _csv(folder / name)[1:])}"
        for name, heading in (("cpu.csv", "On the processor:"), ("cuda.csv", "On a graphics card:"))
        if (folder / name).is_file()
    ]
    return "\n\n".join(found) or NOT_TIMED


def trained_out(path: Path) -> str:
    """A table of what doubling the epochs adds, of a file and those beside published runs."""
    if not path.is_file():
        return "How long is long enough was not measured for this edition of the book."
    tables = [pd.read_csv(path)]
    for file in sorted(path.parent.glob(f"published/*/{path.name}")):
        tables.append(pd.read_csv(file).assign(world=results.called(file.parent.name)))
    by, rows = ["world", "who", "network", "epochs"], []
    for (world, who, network, epochs), part in pd.concat(tables).groupby(by, sort=False):
        right, more = part["accuracy"].mean(), (part["doubled"] - part["accuracy"]).mean()
        left = part["loss left"].mean()
        said = [format_number(each, 3) if math.isfinite(each) else "" for each in (right, more)]
        own = f"{left:.0%}" if math.isfinite(left) else ""
        rows.append((world, looks.of(who).short, network, epochs, *said, own))
    columns = ("images", "who", "network", "epochs", "right", "doubling adds", "own loss left")
    return columns_table(columns, ":::----", rows)


def error_rates(path: Path) -> str:
    """A Markdown table of the file that `benchmarks/error_rates.py` writes."""
    if not path.is_file():
        return "The error rates were not measured for this edition of the book."
    heads, *rows = _csv(path)
    shares = [(how, count, *(f"{float(each):.1%}" for each in its)) for how, count, *its in rows]
    return columns_table(heads, ":---", shares)


def again(first: Path, second: Path) -> str:
    """How many verdicts of one run differ in another, as a sentence, also without the two."""
    runs = results.runs("scorecard", (first, second)).values()
    if len(runs) < 2:
        return "The laptop edition was not run a second time for this edition of the book."
    one, other = ({claim["id"]: claim["verdict"] for claim in run.claims} for run in runs)
    pairs = [{one[name], other[name]} for name in one if name in other]
    differ = [pair for pair in pairs if len(pair) == 2]
    firm = sum(not {"open", "not applicable"} & pair for pair in differ)
    where = " and on ".join(run.hardware for run in runs)
    return (
        f"The laptop edition was trained twice, on {where}, whose arithmetic rounds otherwise. "
        f"Of {len(one)} verdicts {len(differ)} differ; {firm} of these are firm in both, and "
        "opposite."
    )


def changed(first_edition: Path, folder: Path) -> str:
    """A Markdown table of the first edition's verdicts beside those of the published laptop run."""
    if not first_edition.is_file():
        return "The first edition's verdicts do not come with this copy of the book."
    runs = results.runs("scorecard", [folder]).values()
    now = {claim["id"]: claims.said(claim) for run in runs for claim in run.claims}
    rows = [
        (f"`{name}`", verdict, now.pop(name, "no longer asked"))
        for name, verdict in pd.read_csv(first_edition)[["claim", "verdict"]].to_numpy()
    ]
    rows += [(f"`{name}`", "not asked", said) for name, said in now.items()]
    return columns_table(("claim", "first edition", "now"), ":::", rows)


def beside_the_paper(numbers: Path, published: Path) -> str:
    """Tables of the paper's ``numbers``, a YAML file, beside the published runs' means.

    Differences are from students trained alone, with an interval over paired seeds alone.
    """
    if not numbers.is_file():
        return "The paper's tables do not come with this copy of the book."
    cover.declare_methods()  # no cast is planned, which would say how they are called
    parts = []
    for table in yaml.safe_load(numbers.read_text(encoding="utf-8")):
        names = [name if name == "laptop" else f"published/{name}" for name in table["images"]]
        runs = results.runs(table["chapter"], [published / name for name in names])
        parts.append(f"## {table['title']}")
        if run := next(iter(runs.values()), None):
            parts += [_paper_table(table, run.table), _setting(run)]
        else:
            parts.append("Not run here yet: no run on these images is published.")
    return "\n\n".join(parts)


def _paper_table(table: Mapping[str, Any], found: pd.DataFrame) -> str:
    found, rows = found[found["measure"] == table["measure"]], []
    scale = 100 if table["percent"] else 1
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
                gain = stats.contrast(measured, None, *where)
                sign = "agrees" if (gain.estimate > 0) == (adds > 0) else "disagrees"
                sign = sign if gain.low > 0 or gain.high < 0 else "open"
                cells = (format_number(adds, 3), gain.format(), sign)
            rows.append((row["what"], looks.of(arm).short, paper, mean, *cells))
    heads = ("images", "who", "paper", "here", "paper adds", "here adds", "sign")
    return columns_table(heads, "::----:", rows)


def _setting(run: results.Saved) -> str:
    made = run.parameters
    return (
        f"Here: `{made['dataset']}`, at most {made['train_count'] or 'all'} training images, "
        f"teacher `{made['teacher']}`, student `{made['student']}`, {made['seeds']} seeds, "
        f"{run.hardware}. `{run.command or f'kdnotes run {run.chapter}'}`"
    )


def strangers(path: Path) -> str:
    """Markdown tables of the file that `benchmarks/strangers.py` writes.

    Of pairs of networks those with a ResNet-50 are shown, and those on photographs.
    """
    if not path.is_file():
        return "Networks that never met were not compared for this edition of the book."
    table = pd.read_csv(path).fillna({"with": ""})
    table["said"] = [_said(*ends) for ends in table[["value", "low", "high"]].to_numpy()]
    people = table["who"].str.startswith("subject-")
    biases, pairs = (table["what"] == what for what in ("shape bias", "same answer"))
    networks = table[biases & ~people].sort_values("value")
    span = _span(table[biases & people]["value"])
    rows = [(f"{(biases & people).sum()} people", span)]
    rows += zip(networks["who"], networks["said"], strict=True)
    of_one = (table[["who", "with"]] == "resnet50").any(axis=1)
    known = table[pairs & (of_one | (table["on"] == "photographs"))]
    known = known.sort_values("value", ascending=False)
    known = known.assign(kappa=known["kappa"].map(format_number))
    alike = [*known[["who", "with", "on", "said", "kappa"]].itertuples(index=False, name=None)]
    if len(both := table[pairs & people]):
        ends = (_span(both[name]) for name in ("value", "kappa"))
        alike.append(("one of the people", "another", both["on"].iloc[0], *ends))
    return (
        columns_table(("who", "answers that go by the shape"), ":-", rows)
        + "\n\n"
        + columns_table(("one", "other", "images", "same answer", "kappa"), ":::--", alike)
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
        twin = claim["reference"]
        other = claim["values"].get(twin) if isinstance(twin, str) else twin
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


def _span(values: pd.Series) -> str:
    return " to ".join(map(format_number, (values.min(), values.max())))


def _said(estimate: float | None, low: float | None, high: float | None) -> str:
    """As intervals are said everywhere; None, as JSON has it, for what is not known."""
    if estimate is None:
        return ""
    first, last = (math.nan if each is None else each for each in (low, high))
    return stats.Interval(estimate, first, last, 0, math.nan, math.nan).format()


def _csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return [*csv.reader(lines)]


def columns_table(columns: Sequence[str], sides: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; ``sides``: ":" for a column of words, "-" for one of numbers."""
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in (columns, *rows))
    by_side = {":": ":--", "-": "--:"}
    rule = "|".join(by_side[side] for _, side in zip(columns, sides, strict=True))
    return "\n".join([head, f"|{rule}|", *lines])
