"""Figures with a row per arm or claim: marks with their intervals along one horizontal axis.

Small marks are single networks, large ones means over seeds, bars their 95% t-intervals.
NotMeasuredError is raised for whatever measure, condition or arm a table does not hold.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from kdnotes.figures import drawing, looks
from kdnotes.figures.tables import Which, choose, number, select, teachers_in
from kdnotes.stats import GapClosed


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
