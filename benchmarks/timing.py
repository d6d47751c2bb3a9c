"""Contenders timed in turns, and the table that comes out."""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("work", "contender", "seconds_min", "seconds_median", "speedup")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Contender:
    """One way of doing the work; ``prepare`` makes what it needs and is not timed."""

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table: seconds, and the reference's minimum over this one's."""

    work: str
    contender: str
    seconds_min: float
    seconds_median: float
    speedup: float


def clock_of(device: str) -> Clock:
    """Process time, which others on the machine disturb least; on CUDA the wall's, all done."""
    if not device.startswith("cuda"):
        return time.process_time

    def wall() -> float:
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    return wall


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    clock: Clock = time.process_time,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each contender, one measurement per round, and what each gave in the last round.

    Each round has every contender once, so that a slower or faster minute of the machine meets all
    of them. Raises ValueError when two contenders have one name or there is no round.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names):
        raise ValueError(f"contenders need names of their own: {', '.join(names)}")
    if rounds < 1:
        raise ValueError(f"at least one round is needed, not {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    for number in range(1, rounds + 1):
        for contender in contenders:
            if contender.prepare is not None:
                contender.prepare()
            started = clock()
            results[contender.name] = contender.run()
            seconds[contender.name].append(clock() - started)
            report(
                f"round {number}/{rounds}, {contender.name}: {seconds[contender.name][-1]:.3g} s"
            )
    return seconds, results


def rows(work: str, seconds: dict[str, list[float]], reference: str) -> list[Row]:
    """The lines of a work; a speed-up is the reference's minimum over the contender's."""
    least = min(seconds[reference])
    return [
        Row(work, name, min(each), statistics.median(each), least / min(each))
        for name, each in seconds.items()
    ]


def write(path: Path, lines: Sequence[Row]) -> None:
    """Write the table as CSV, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_texts(line) for line in lines)


def as_text(lines: Sequence[Row]) -> str:
    """The table with its columns in line, for a terminal."""
    cells = [COLUMNS, *(_texts(line) for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    texts = []
    for row in cells:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        texts.append("  ".join([*left, *right]))
    return "\n".join(texts)


def _texts(row: Row) -> tuple[str, str, str, str, str]:
    speedup = "" if math.isnan(row.speedup) else f"{row.speedup:.2f}"
    return row.work, row.contender, f"{row.seconds_min:.4g}", f"{row.seconds_median:.4g}", speedup
