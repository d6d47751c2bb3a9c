"""Figures with a row per arm or claim: marks with their intervals along one horizontal axis.

Small marks are single networks, large ones means over seeds, bars their 95% t-intervals.
NotMeasuredError is raised for whatever measure, condition or arm a table does not hold.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from kdnotes import stats
from kdnotes.figures import drawing, looks
from kdnotes.figures.looks import VERDICTS, Look
from kdnotes.figures.tables import Which, choose, number, select, teachers_in
from kdnotes.stats import GapClosed, Interval


@drawing.styled
def points(
    table: DataFrame,
    measure: str,
    condition: str = "",
    arms: Sequence[str] | None = None,
    xlabel: str = "",
    reference_lines: Mapping[str, float] | None = None,
    teacher_line: bool = True,
) -> Figure:
    """A row per arm of a tidy table, with every network, their mean and its interval.

    Teachers are vertical lines unless ``teacher_line`` is False (measures of a pair with the
    teacher); ``reference_lines`` are named values such as chance.
    """
    values = select(table, measure, condition)
    lines = teachers_in(values) if teacher_line else {}
    shown = [arm for arm in choose(values, arms) if arm not in lines]
    figure, (axis,) = drawing.subplots(0.8 + 0.44 * len(shown))
    drawing.name_axes(axis, xlabel)
    _arm_rows(axis, values, {arm: looks.label(arm) for arm in shown})
    drawing.lines_through(axis.axvline, lines | dict(reference_lines or {}))
    drawing.legend(figure)
    return figure


@drawing.styled
def panels(
    table: DataFrame, shown: Mapping[str, Which], arms: Sequence[str], same_scale: bool = True
) -> Figure:
    """Panels side by side, by their names, in each a row per arm of a tidy table as in `points`.

    Teachers are rows like the others; a row stays empty where an arm was not measured. With
    ``same_scale`` all panels have the same horizontal axis.
    """
    wide, height = len(shown), 1.0 + 0.44 * len(arms)
    figure, axes = drawing.subplots(height, 0, wide, wide, sharey=True, sharex=same_scale)
    for axis, (name, which) in zip(axes, shown.items(), strict=True):
        drawing.name_axes(axis, name, share=0.8 / wide)
        _arm_rows(axis, select(table, *which), {arm: looks.of(arm).short for arm in arms})
        axis.locator_params(axis="x", nbins=3)
    return figure


@drawing.styled
def grouped(
    table: DataFrame, measure: str, conditions: Mapping[str, str], arms: Sequence[str], xlabel: str
) -> Figure:
    """A group of rows per condition, by its name, in it a row per arm, drawn as in `points`."""
    step = 1 / (len(arms) + 1)
    each = max(0.14 / step, 0.4)  # a name beside a group has up to two lines
    figure, (axis,) = drawing.subplots(0.6 + each * len(conditions))
    drawing.name_axes(axis, xlabel)
    for group, condition in enumerate(conditions.values()):
        values = select(table, measure, condition).reindex(columns=list(arms))
        if group % 2:
            axis.axhspan(group - 0.5, group + 0.5, color="#F3F3F3", linewidth=0, zorder=0)
        for place, arm in enumerate(arms, start=1):
            drawing.arm_marks(axis, arm, group - 0.5 + place * step, values[arm], markersize=6.5)
    _name_rows(axis, conditions)
    drawing.legend(figure)
    return figure


@drawing.styled
def closed(results: Mapping[str, GapClosed], xlabel: str = "Share of the gap closed") -> Figure:
    """How much of the gap (or headroom) each arm closes, with 95% intervals.

    Where there is no ratio the row says so in words and gives the raw difference. The line at 0 is
    the independent student, the one at 1 the teacher (or second teacher).
    """
    figure, (axis,) = drawing.subplots(0.8 + 0.5 * len(results))
    drawing.name_axes(axis, xlabel)
    for row, (arm, result) in enumerate(results.items()):
        if result.ratio is not None:
            drawing.marks(axis, looks.of(arm), row, result.ratio, gid=f"{arm}:mean")
        else:
            words = number(result).replace(" (", "\n(")
            size = drawing.SMALL_FONT_SIZE
            axis.text(0.02, row, words, va="center", size=size, gid=f"{arm}:words")
    for value, line in ((0.0, "-"), (1.0, ":")):
        axis.axvline(value, color=drawing.GREY, linewidth=1.4, linestyle=line)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.1), max(high, 1.1))
    _name_rows(axis, map(looks.label, results))
    return figure


def _arm_rows(axis: Axes, values: DataFrame, names: Mapping[str, str]) -> None:
    for row, arm in enumerate(names):
        if arm in values:
            drawing.arm_marks(axis, arm, row, values[arm], spread=0.3, label=None)
    _name_rows(axis, names.values())


def _name_rows(axis: Axes, names: Iterable[str]) -> None:
    """Names beside the rows of an axis, the first one on top, broken where they read best."""
    broken = [name.replace(" (", "\n(").replace(", ", ",\n", 1) for name in names]
    lines = [name if "\n" in name else textwrap.fill(name, 16) for name in broken]
    axis.set_yticks(range(len(lines)), lines)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")


# Of claims, by kind: marker and name.
_KINDS = {"difference": ("o", "difference"), "gap closed": ("s", "share of the gap")}
_FAR = 100.0  # beyond every estimate


@drawing.styled
def scorecard(claims: DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """All claims on one page: interval, in tint where it had to lie, and the verdict in a word.

    ``claims`` has one row per claim, in order, as `kdnotes.stats.scorecard_verdicts` returns them;
    ``titles`` are the chapters', by name. A claim that is not applicable shows its verdict only.
    """
    claims = claims.astype({"margin": float, "equivalence_margin": float})  # None where not given
    chapters = claims.groupby("chapter", sort=False)
    bottom = len(claims) + len(chapters)
    figure, (axis,) = drawing.subplots(0.6 + 0.41 * bottom)
    drawing.name_axes(axis, "Difference, or share of the gap")
    axis.axvline(0, color=drawing.GREY, linewidth=1.2)
    rows: dict[int, Any] = {}
    for place, (chapter, part) in enumerate(chapters):
        top, units = len(rows) + place, ("figure fraction", "data")
        called = (titles or {}).get(str(chapter), str(chapter).replace("-", " ").capitalize())
        title = axis.annotate(textwrap.fill(called, 56), (0.02, top), None, units)
        title.set(weight="bold", va="center", in_layout=False, backgroundcolor="white")
        rows |= dict(enumerate(part.itertuples(), start=top + 1))
    words = [_draw_claim(axis, claim, row) for row, claim in rows.items()]
    beside = axis.twinx()
    for side, texts in ((axis, list(map(_claim_name, rows.values()))), (beside, words)):
        side.set_yticks(list(rows), texts)
        side.set_ylim(bottom - 0.5, -0.5)
        side.tick_params(axis="y", length=0, labelsize=drawing.SMALL_FONT_SIZE)
        side.grid(visible=False, axis="y")
        side.spines[["left", "right", "top"]].set_visible(False)
    for text, claim in zip(beside.get_yticklabels(), rows.values(), strict=True):
        text.set_color(VERDICTS[claim.verdict])
    known = claims[claims["verdict"] != "not applicable"]
    axis.set_xlim(min(known["low"].min(), 0) - 0.05, max(known["high"].max(), 0) + 0.05)
    for marker, name in _KINDS.values():
        axis.plot([], [], marker, color="#999999", markeredgecolor="black", label=name)
    drawing.legend(figure)
    return figure


def _draw_claim(axis: Axes, claim: Any, row: int) -> str:
    """A claim's estimate and interval, and where it has to lie; the words that stand beside it."""
    words = f"{stats.VERDICTS[claim.verdict]} {claim.verdict}"
    if claim.verdict == "not applicable" or not math.isfinite(claim.estimate):
        return words
    same = claim.equivalence_margin
    needed = {"greater": (claim.margin, _FAR), "less": (-_FAR, claim.margin)}
    reach = needed.get(claim.direction, (-same, same))
    axis.fill_between(reach, row - 0.4, row + 0.4, color="#DDEBE6", zorder=0)
    found = Interval(claim.estimate, claim.low, claim.high, 0, math.nan, math.nan)
    look = Look(claim.id, claim.id, VERDICTS[claim.verdict], _KINDS[claim.kind][0], "")
    drawing.marks(axis, look, row, found, gid=claim.id, label=None)
    return f"{words}\n{number(found)}"


def _claim_name(claim: Any) -> str:
    """A claim's id without the word for its chapter, its arms called as in all figures."""
    name = claim.id.partition("-")[2]
    for arm in (str(claim.arm), str(claim.reference)):
        name = name.replace(arm, looks.of(arm).short)
    return textwrap.fill((name[:1].upper() + name[1:]).replace("-", " "), 19)
