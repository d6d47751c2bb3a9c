"""What the book's figures are made of: its style, axes, marks, lines, a legend."""

from __future__ import annotations

import itertools
import math
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import Series

from kdnotes import stats
from kdnotes.figures import looks
from kdnotes.figures.looks import Look
from kdnotes.figures.tables import number
from kdnotes.stats import Interval

WIDTH = 5.2  # inches
SMALL_FONT_SIZE = 10  # points
GREY = "#444444"  # of lines that are no arm's
_STYLE = "kdnotes.figures.book"  # the file book.mplstyle
# Decorates what draws: in the book's style whatever the caller's settings are, which stay alone.
styled = plt.style.context(_STYLE, after_reset=True)


def style() -> None:
    """Set the book's look for one's own figures, stored sharp: phones would blur them else."""
    plt.style.use(_STYLE)
    ipython = sys.modules.get("IPython")
    if shell := ipython and ipython.get_ipython():
        from matplotlib_inline.config import InlineBackend

        backend = InlineBackend.instance(parent=shell)
        backend.shell, backend.figure_formats = shell, {"retina"}


def subplots(
    base: float, each: float = 0.0, count: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure as wide as the book, ``base`` inches high and ``each`` more per line of its axes.

    ``columns`` of the ``count`` axes are side by side. It is closed for pyplot, to be shown once.
    """
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    options |= {"figsize": (WIDTH, base + each * lines), "layout": "constrained"}
    figure, axes = plt.subplots(lines, columns, squeeze=False, **options)
    plt.close(figure)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def ink(look: Look, **options: Any) -> dict[str, Any]:
    """Colour, marker and name of a look as matplotlib's properties, and others beside them."""
    filled = "white" if look.hollow else look.colour
    named = {"color": look.colour, "marker": look.marker, "label": look.label}
    return {"markerfacecolor": filled, "linestyle": "", **named, **options}


def marks(axis: Axes, look: Look, row: float, found: Interval, **options: Any) -> None:
    """A large mark at an estimate, on a bar along its interval where there is one."""
    options = {"markersize": 9.0} | ink(look, markeredgecolor="black", **options)
    bar = [[found.estimate - found.low], [found.high - found.estimate]]
    axis.errorbar(found.estimate, row, xerr=bar, elinewidth=options["markersize"] / 3, **options)


def arm_marks(
    axis: Axes, arm: str, row: float, seeds: Series, spread: float = 0.0, **options: Any
) -> None:
    """An arm's known networks as small marks within ``spread`` of a row, and their mean."""
    known, size = seeds.dropna(), 0.55 * options.get("markersize", 9.0)
    if len(known):
        beside = np.linspace(row - spread, row + spread, len(known) + 2)[1:-1]
        small = ink(looks.of(arm), gid=arm, label=None, markersize=size, alpha=0.6)
        axis.plot(known, beside, **small)
        marks(axis, looks.of(arm), row, stats.t_interval(known), gid=f"{arm}:mean", **options)


def lines_through(draw: Callable[..., Any], values: Mapping[str, float]) -> None:
    """Named values as lines (``axvline`` or ``axhline``): arms in their look, others dotted."""
    dots = itertools.cycle((":", (0, (1, 3)), (0, (3, 3))))
    known = looks.order()
    for name, value in values.items():
        look = looks.of(name) if name in known else Look(name, name, name, GREY, "", next(dots))
        draw(value, color=look.colour, ls=look.line, lw=1.7, label=look.label, gid=name)


def legend(figure: Figure) -> None:
    """One legend below all axes of a figure, which grows by it; each name stands there once."""
    named: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if named:
        columns = min(2, len(named))
        figure.set_figheight(figure.get_figheight() + 0.25 * math.ceil(len(named) / columns))
        spacing = {"ncols": columns, "columnspacing": 1.4, "handlelength": 2.6}
        figure.legend(named.values(), named.keys(), loc="outside lower center", **spacing)


def name_axes(axis: Axes, xlabel: str, ylabel: str = "", share: float = 1.0) -> None:
    """Names in lines that fit axes with that ``share`` of the width, and ticks as in the text."""
    axis.set(xlabel=textwrap.fill(xlabel, int(48 * share)), ylabel=textwrap.fill(ylabel, 28))
    plain_ticks(axis.xaxis)
    plain_ticks(axis.yaxis)


def plain_ticks(axis: Any) -> None:
    """Tick labels as numbers are printed in the text, all with as many decimals as they need."""

    def text(value: float, _: int) -> str:
        places = np.asarray(axis.get_majorticklocs())
        needed = (n for n in range(6) if np.allclose(places, places.round(n), rtol=0, atol=1e-7))
        return "0" if abs(value) < 1e-7 else number(value, next(needed, 6))

    axis.set_major_formatter(text)
