"""Figures of tidy tables: rows of marks, curves, doses, and one number against another.

Small marks are single networks, large ones means over seeds, bars and bands 95% t-intervals.
NotMeasuredError is raised for whatever measure, condition or arm a table does not hold.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import nanmax, nanmin
from pandas import DataFrame, Series, concat

from kdnotes import stats
from kdnotes.figures import drawing, looks
from kdnotes.figures.tables import Which, brief, choose, number, select, teachers_in
from kdnotes.stats import GapClosed

# Doses: how much, the arm that got it, the arm that it is compared with, and its teacher.
Ladder = Sequence[tuple[float | str, str, str, str]]


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

    Teachers are vertical lines if ``teacher_line``; ``reference_lines``: named values such as
    chance.
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
    """Panels side by side, by their names, in each a row per arm, teachers too, as in `points`.

    A row stays empty where an arm was not measured.
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
    """How much of the gap each arm closes, with 95% intervals, or why there is no ratio, in words.

    The line at 0 is the independent student, the one at 1 the teacher (or second teacher).
    """
    figure, (axis,) = drawing.subplots(0.8 + 0.5 * len(results))
    drawing.name_axes(axis, xlabel)
    for row, (arm, result) in enumerate(results.items()):
        if result.ratio is not None:
            drawing.marks(axis, looks.of(arm), row, result.ratio, gid=f"{arm}:mean")
        else:
            words, size = number(result).replace(" (", "\n("), drawing.SMALL_FONT_SIZE
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


@drawing.styled
def curve(
    table: DataFrame,
    measure: str,
    positions: Mapping[str, float | str],
    arms: Sequence[str],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """A line per arm of a tidy table over several conditions, in a band: its interval.

    ``positions``: each condition's number on the axis, or name: names stand side by side in order.
    """
    names = [at for at in positions.values() if isinstance(at, str)]
    places: list[Any] = list(range(len(names)) if names else positions.values())
    values = concat([select(table, measure, condition) for condition in positions], keys=places)
    figure, (axis,) = drawing.subplots(3.3)
    drawing.name_axes(axis, xlabel, ylabel)
    for arm in choose(values, arms):
        _line(axis, arm, values[arm])
    _look_at_shares(axis, values)
    if len(places) <= 8:
        axis.set_xticks(places, names or None)
    elif all(float(place).is_integer() for place in places):  # there is no half an epoch
        axis.locator_params(axis="x", integer=True)
    drawing.legend(figure)
    return figure


@drawing.styled
def doses(
    table: DataFrame, measure: str, condition: str, ladders: Mapping[str, Ladder], ylabel: str
) -> Figure:
    """A panel per factor: a measure of a tidy table at each dose, of students, reference, teacher.

    ``ladders`` maps the name under each panel to its doses in order. They stand side by side, not
    to scale; those of one kind look alike, as the one of their arms that was declared first.
    """
    values, wide = select(table, measure, condition), min(2, len(ladders))
    figure, axes = drawing.subplots(0.6, 2.0, len(ladders), wide, sharey=True)
    for axis, (name, steps) in zip(axes, ladders.items(), strict=True):
        at, students, references, teachers = zip(*steps, strict=True)
        drawing.name_axes(axis, name, share=1 / wide)
        for arms in (teachers, references, students):
            found = [values[arm] for arm in choose(values, arms)]
            _line(axis, choose(arms)[0], concat(found, keys=range(len(at))))
        axis.set_xticks(range(len(at)), list(map(brief, at)))
        axis.set_xlim(-0.4, len(at) - 0.6)
        axis.grid(visible=False, axis="x")
    _look_at_shares(axes[0], values)
    figure.supylabel(ylabel, size="medium")
    drawing.legend(figure)
    return figure


def _look_at_shares(axis: Axes, values: DataFrame) -> None:
    """No view of shares beyond 0 and 1, which bands of two networks can leave by far."""
    (low, high), found = axis.get_ylim(), values.to_numpy()
    if nanmin(found) >= 0 and nanmax(found) <= 1:
        axis.set_ylim(max(low, -0.05), min(high, 1.05))


def _line(axis: Axes, arm: str, values: Series) -> None:
    """An arm's networks, by place and seed, and a line of their means in a band: the intervals."""
    look, values = looks.of(arm), values.dropna()
    places = values.index.get_level_values(0)
    axis.plot(places, values, **drawing.ink(look, markersize=3, alpha=0.4, label=None))
    intervals = {place: vars(stats.t_interval(seeds)) for place, seeds in values.groupby(places)}
    found = DataFrame(intervals, index=["estimate", "low", "high"]).T
    axis.fill_between(
        found.index, found["low"], found["high"], color=look.colour, alpha=0.18, linewidth=0
    )
    axis.plot(found["estimate"], lw=2, ms=7, **drawing.ink(look, linestyle=look.line, gid=arm))


@drawing.styled
def paired(
    table: DataFrame, measure: str, arms: Sequence[str], items: DataFrame | None, ylabel: str
) -> Figure:
    """A panel per arm of a tidy table: each seed's line from its independent student to this one.

    Under a panel stands the mean paired difference with its interval, of ``items`` as well.
    Teachers are lines through all panels.
    """
    values = select(table, measure)
    choose(values, ["independent", *arms])
    # Two long names do not fit under a third of the width.
    wide = 3 if all(len(looks.of(arm).short) <= 6 for arm in arms) else 2
    figure, axes = drawing.subplots(0.3, 2.9, len(arms), wide, sharey=True)
    for axis, arm in zip(axes, arms, strict=True):
        pairs = values[["independent", arm]].dropna()
        for seed, pair in pairs.iterrows():
            axis.plot([0, 1], pair, color=looks.colour(arm), alpha=0.8, gid=f"{arm}:{seed}")
        for place, name in enumerate(pairs):
            axis.plot([place] * len(pairs), pairs[name], **drawing.ink(looks.of(name), label=None))
        drawing.lines_through(axis.axhline, teachers_in(values))
        difference = number(stats.contrast(table, items, measure, "", arm, "independent"))
        drawing.name_axes(axis, "")
        axis.set(xlim=(-0.35, 1.35), xlabel=f"difference {difference}".replace(" [", "\n["))
        names = [textwrap.fill(looks.of(name).short, 14) for name in pairs]
        axis.set_xticks([0, 1], names, size=drawing.SMALL_FONT_SIZE)
        axis.grid(visible=False, axis="x")
    figure.supylabel(ylabel, size="medium")
    drawing.legend(figure)
    return figure


@drawing.styled
def plane(
    table: DataFrame,
    x: Which,
    y: Which,
    arms: Sequence[str],
    xlabel: str,
    ylabel: str,
    vertical_lines: Mapping[str, float] | None = None,
) -> Figure:
    """Two measures of the networks that have both: small marks, large ones for their arm's mean.

    ``vertical_lines``: named values of ``x`` such as chance.
    """
    right, up = select(table, *x), select(table, *y)
    figure, (axis,) = drawing.subplots(3.6)
    drawing.name_axes(axis, xlabel, ylabel)
    for place, arm in enumerate(choose(up, choose(right, arms))):
        look, seeds = looks.of(arm), concat([right[arm], up[arm]], axis=1).dropna().to_numpy()
        axis.plot(*seeds.T, ms=5, alpha=0.6, **drawing.ink(look, gid=arm, label=None))
        # The first arms, the teachers, are few and lie on top.
        large = drawing.ink(look, gid=f"{arm}:mean", zorder=4 - place / len(arms))
        axis.plot(*seeds.mean(axis=0, keepdims=True).T, ms=10, markeredgecolor="black", **large)
    drawing.lines_through(axis.axvline, vertical_lines or {})
    drawing.legend(figure)
    return figure


@drawing.styled
def gains(shown: Mapping[str, DataFrame]) -> Figure:
    """A panel per property: each student's gain in accuracy, and how much more of it it has.

    ``shown``: by the name above each panel a frame with columns arm, accuracy_gain and inheritance,
    a row per student. Where a student is no more accurate and yet has more, the ground is tinted.
    """
    arms = choose({arm for frame in shown.values() for arm in frame["arm"]})
    wide = min(2, len(shown))
    figure, axes = drawing.subplots(0.3, 2.5, len(shown), wide)
    for axis, (name, frame) in zip(axes, shown.items(), strict=True):
        drawing.name_axes(axis, "More accurate than alone", share=1 / wide)
        axis.set_title(textwrap.fill(name, 44 // wide))
        for arm in arms:  # the grey ones come first and lie below the others
            mine = frame[frame["arm"] == arm]
            look = drawing.ink(looks.of(arm), gid=arm, alpha=0.8)
            axis.plot(mine["accuracy_gain"], mine["inheritance"], **look)
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        left, high = min(left, -0.01), max(high, 0.01)
        axis.fill_between([left, 0], 0, high, color="#0072B2", alpha=0.08, linewidth=0, zorder=0)
        for line in (axis.axvline, axis.axhline):
            line(0, color=drawing.GREY, linewidth=1.2, zorder=1)
        axis.set(xlim=(left, max(right, 0.01)), ylim=(min(low, -0.01), high))
        axis.locator_params(nbins=4)
    figure.supylabel("More of the property than alone", size="medium")
    drawing.legend(figure)
    return figure
