"""What each chapter costs, and how that compares with others: tables for the site."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdnotes.book import results, running
from kdnotes.book.running import Done, Request
from kdnotes.figures import looks
from kdnotes.lazy import pandas as pd
from kdnotes.stats import claims
from kdnotes.stats.words import format_number
from kdnotes.training import cache, pool
from kdnotes.training.cache import Planned

NOT_MEASURED = "No chapter was run for this build of the book, so there is nothing to count."
NOT_TIMED = "The benchmarks were not run for this edition of the book."


def table(done: Sequence[Done]) -> str:
    """A Markdown table with a row per chapter, and one for all chapters together.

    Seconds of training are those of one core, written down when each network was trained, its
    share of the teacher's table included. Networks that chapters share count in each of them, but
    once in the last row.
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


def estimate(requests: Sequence[Request], jobs: int | None = None) -> str:
    """For about how long the requests will train, on how many cores, in a line.

    Networks that were trained here before say how fast this machine is.
    """
    wanted = running.needed_networks(requests)
    lacking = cache.missing(wanted)
    there = [item for item in wanted if cache.is_complete(item.spec) and pool.cost(item)]
    speed = [cache.seconds(item.spec) / pool.cost(item) for item in there]
    slower = statistics.median(speed) if speed else 1.0
    cores = jobs or pool.cores()
    minutes = slower * sum(map(pool.cost, lacking)) / max(1, min(cores, len(lacking))) / 60
    return f"about {minutes:.1f} minutes of training on {cores} cores"


def profile(done: Sequence[Done]) -> str:
    """A Markdown table of what the time of all chapters went into, in seconds of one core.

    A chapter measures in its longest cell. What its cells do not account for is the start of its
    kernel, and reading and writing the notebook.
    """
    if not done:
        return NOT_MEASURED
    seconds: dict[str, list[float]] = defaultdict(list)
    for item in running.needed_networks(each.run.request for each in done):
        seconds[_trained_as(item)].append(cache.seconds(item.spec))
    for each in done:
        cells, whole = _durations(each.run.notebook)
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
    found = []
    for name, heading in (("cpu.csv", "On the processor:"), ("cuda.csv", "On a graphics card:")):
        if (folder / name).is_file():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            columns = ("work", "contender", "least seconds", "median", "speed-up")
            found.append(f"{heading}\n\n{columns_table(columns, '::---', rows)}")
    return "\n\n".join(found) or NOT_TIMED


def _trained_as(item: Planned) -> str:
    if item.spec.role == "teacher":
        return "training teachers"
    method = item.spec.method
    return f"training students {'without a teacher' if method is None else f'by {method.short}'}"


def _durations(notebook: Path) -> tuple[list[float], float]:
    """Seconds of each cell of an executed notebook, and of its execution as a whole."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    noted = [cell["metadata"].get("papermill", {}) for cell in content["cells"]]
    cells = [about["duration"] for about in noted if about.get("duration")]
    return cells, content["metadata"]["papermill"]["duration"]


def trained_out(path: Path) -> str:
    """A Markdown table of what doubling the epochs would add, by world and network.

    ``path``: the file that `benchmarks/trained_out.py` writes; those of published runs follow.
    """
    if not path.is_file():
        return "How long is long enough was not measured for this edition of the book."
    tables = [pd.read_csv(path)]
    for file in sorted(path.parent.glob(f"published/*/{path.name}")):
        tables.append(pd.read_csv(file).assign(world=results.called(file.parent.name)))
    table = pd.concat(tables)
    by = ["world", "who", "network", "epochs"]
    rows = []
    for (world, who, network, epochs), part in table.groupby(by, sort=False):
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
    with path.open(encoding="utf-8") as lines:
        heads, *rows = csv.reader(lines)
    shares = [(how, count, *(f"{float(each):.1%}" for each in its)) for how, count, *its in rows]
    return columns_table(heads, ":---", shares)


def again(first: Path, second: Path) -> str:
    """How many verdicts of one run differ in another, as a sentence; empty without the two."""
    if not all("scorecard" in results.chapters(each) for each in (first, second)):
        return "The laptop edition was not run a second time for this edition of the book."
    runs = [results.load("scorecard", each) for each in (first, second)]
    one, other = ({claim["id"]: claim["verdict"] for claim in run.claims} for run in runs)
    pairs = [(one[name], other[name]) for name in one if name in other]
    differ = [{*pair} for pair in pairs if pair[0] != pair[1]]
    firm = sum(not {"open", "not applicable"} & pair for pair in differ)
    return (
        f"The laptop edition was trained twice, on {runs[0].hardware} and on {runs[1].hardware}, "
        f"whose arithmetic rounds otherwise. Of {len(one)} verdicts {len(differ)} differ; {firm} "
        "of these are firm in both, and opposite."
    )


def changed(first_edition: Path, runs: Path) -> str:
    """A Markdown table of the first edition's verdicts beside those of the published laptop run."""
    if not first_edition.is_file():
        return "The first edition's verdicts do not come with this copy of the book."
    now = {}
    if "scorecard" in results.chapters(runs):
        now = {claim["id"]: claim for claim in results.load("scorecard", runs).claims}
    rows = []
    for old in pd.read_csv(first_edition).itertuples():
        claim = now.pop(old.claim, None)
        rows.append(
            (f"`{old.claim}`", old.verdict, claims.said(claim) if claim else "no longer asked")
        )
    rows += [(f"`{name}`", "not asked", claims.said(claim)) for name, claim in now.items()]
    return columns_table(("claim", "first edition", "now"), ":::", rows)


def columns_table(columns: Sequence[str], sides: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; ``sides``: ":" for a column of words, "-" for one of numbers."""
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in (columns, *rows))
    by_side = {":": ":--", "-": "--:"}
    rule = "|".join(by_side[side] for _, side in zip(columns, sides, strict=True))
    return "\n".join([head, f"|{rule}|", *lines])
