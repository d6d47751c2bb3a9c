"""Figures from the tidy tables: one palette, and a fixed colour, marker and line for every arm.

Every function takes a table with the columns arm, seed, condition, measure and value (or a small
frame of estimates) and returns a `matplotlib.figure.Figure`. Figures carry axis labels but no
title: the caption under a figure says what it shows.
"""

from __future__ import annotations

import functools
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import pandas as pd

from kdnotes import stats
from kdnotes.stats import GapClosed, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches; at DPI dots per inch a figure is 572 pixels wide
DPI = 110
FONT_SIZE = 11  # points; still 10 pixels high when a phone shows the figure 350 pixels wide
SMALL_FONT_SIZE = 10
TEACHERS = ("teacher", "second-teacher")
NOTHING = "\N{EN DASH}"

_Arguments = ParamSpec("_Arguments")


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is named and drawn; an arm drawn hollow is the plain twin of a filled one."""

    label: str
    short: str
    colour: str
    marker: str
    line: Any
    hollow: bool = False


# The eight colours of Okabe and Ito (2008, "Color Universal Design"), with grey for the students
# without a teacher; green and purple are darkened and yellow is replaced by brown, so that all
# arms of one figure stay apart under red-green blindness and on white.
ARMS: dict[str, ArmStyle] = {
    "teacher": ArmStyle("Teacher", "Teacher", "#000000", "*", "-"),
    "second-teacher": ArmStyle("Second teacher", "Second teacher", "#B05A8C", "P", "--"),
    "plain-teacher": ArmStyle("Plain teacher", "Plain teacher", "#4D4D4D", "*", ":", hollow=True),
    "independent": ArmStyle("Independent (no teacher)", "Independent", "#999999", "o", "--"),
    "kl": ArmStyle("KL (soft labels)", "KL", "#0072B2", "s", "-"),
    "hint": ArmStyle("Hint (feature maps)", "Hint", "#E69F00", "^", "-."),
    "crd": ArmStyle("CRD (contrastive)", "CRD", "#007F5C", "D", (0, (5, 1))),
    "kl-plain": ArmStyle("KL, plain teacher", "KL plain", "#66AAD1", "s", ":", hollow=True),
    "hint-plain": ArmStyle("Hint, plain teacher", "Hint plain", "#F0C566", "^", ":", hollow=True),
    "crd-plain": ArmStyle("CRD, plain teacher", "CRD plain", "#66B29D", "D", ":", hollow=True),
    "hint-1": ArmStyle("Hint at layer 1", "Hint 1", "#F3C97B", "1", ":"),
    "hint-2": ArmStyle("Hint at layer 2", "Hint 2", "#D98F00", "2", "-."),
    "hint-3": ArmStyle("Hint at layer 3", "Hint 3", "#A35F00", "3", "--"),
    "hint-logits": ArmStyle("Hint at the logits", "Hint logits", "#5C3000", "4", "-"),
    "control-second-teacher": ArmStyle(
        "KL of the second teacher", "KL, other teacher", "#7A2E5D", "v", (0, (3, 1, 1, 1))
    ),
    "control-smoothed": ArmStyle(
        "Soft labels, no teacher", "Smoothed", "#56B4E9", "<", (0, (1, 1))
    ),
    "control-permuted": ArmStyle(
        "Soft labels, permuted", "Permuted", "#D55E00", ">", (0, (3, 1, 1, 1, 1, 1))
    ),
    "foreign": ArmStyle("Foreign network", "Foreign", "#6B4E16", "X", (0, (5, 5))),
    "independent-blur": ArmStyle(
        "Independent, anti-aliased", "Anti-aliased", "#6E6E6E", "h", (0, (1, 1))
    ),
    "kl-matched": ArmStyle("KL, stopped early", "KL early", "#4C9BCB", "s", "--", hollow=True),
    "hint-matched": ArmStyle(
        "Hint, stopped early", "Hint early", "#EDB54A", "^", "--", hollow=True
    ),
    "kl-same-start": ArmStyle("KL from the teacher's start", "KL same start", "#00517E", "p", "--"),
    "independent-same-start": ArmStyle(
        "Independent, the teacher's start", "Indep. same start", "#777777", "p", ":", hollow=True
    ),
    "kl-weight-0.1": ArmStyle("KL, weight .1", "KL .1", "#9CC9E5", "s", ":"),
    "kl-weight-0.5": ArmStyle("KL, weight .5", "KL .5", "#4C9BCB", "s", "--"),
    "kl-tau-1": ArmStyle("KL, temperature 1", "KL tau 1", "#9CC9E5", "<", ":"),
    "kl-tau-16": ArmStyle("KL, temperature 16", "KL tau 16", "#00416A", ">", "--"),
    "kl-images-few": ArmStyle("KL, a quarter of the images", "KL few images", "#4C9BCB", "v", ":"),
    "independent-images-few": ArmStyle(
        "Independent, a quarter of the images", "Indep. few images", "#B5B5B5", "v", ":"
    ),
    "kl-epochs-few": ArmStyle("KL, few epochs", "KL few epochs", "#4C9BCB", "D", ":"),
    "independent-epochs-few": ArmStyle(
        "Independent, few epochs", "Indep. few epochs", "#B5B5B5", "D", ":"
    ),
    **{
        f"{kind}-{share}": ArmStyle(
            f"{label}, {text} marker",
            f"{short} {text}",
            colour,
            marker,
            "--",
            hollow=kind == "teacher",
        )
        for kind, label, short, marker in (
            ("teacher", "Mixed teacher", "Mix", "*"),
            ("mixture", "KL of a mixture", "KL mix", "s"),
        )
        for share, text, colour in (
            ("0.25", "1/4", "#3B7FA6"),
            ("0.5", "1/2", "#7A6FA3"),
            ("0.75", "3/4", "#A85A86"),
        )
    },
}

# Arms that a reader adds draw from here by a checksum of their name: fixed, if not unique.
_SPARE = (("#332288", "h"), ("#882255", "p"), ("#44AA99", "8"), ("#999933", "H"))

VERDICTS: dict[str, tuple[str, str]] = {
    "reproduced": ("\N{CHECK MARK}", "#007F5C"),
    "not reproduced": ("\N{BALLOT X}", "#C04A00"),
    "inconclusive": ("?", "#666666"),
    "not applicable": (NOTHING, "#666666"),
}


def arm_style(arm: str) -> ArmStyle:
    """Name, colour, marker and line of an arm; an arm that the book does not know gets its own."""
    if arm in ARMS:
        return ARMS[arm]
    colour, marker = _SPARE[zlib.crc32(arm.encode()) % len(_SPARE)]
    name = arm.replace("-", " ").capitalize()
    return ArmStyle(name, name, colour, marker, "-")


def label(arm: str) -> str:
    """Readable name of an arm, such as "KL (soft labels)" for kl."""
    return arm_style(arm).label


def colour(arm: str) -> str:
    """Colour of an arm as #RRGGBB, the same in every figure."""
    return arm_style(arm).colour


def number(value: float | Interval | GapClosed, digits: int = 2) -> str:
    """A number, an interval or a share of a gap as the book prints it: ``.38 [.31, .45]``.

    There is no zero before the point; a plain number that is not finite becomes a dash.
    """
    if isinstance(value, Interval | GapClosed):
        return value.format(digits)
    return stats.format_number(float(value), digits) if math.isfinite(value) else NOTHING


def markdown_table(frame: pd.DataFrame, digits: int = 2) -> str:
    """A Markdown table of a frame's columns, for ``display(Markdown(...))``.

    Fractional numbers, intervals and shares of a gap are printed by `number`, whole numbers and
    words as they are, a column named "arm" with the arms' readable names. Numbers are flush right.
    """

    def text(column: str, value: Any) -> str:
        if isinstance(value, float | np.floating | Interval | GapClosed):
            return number(float(value) if isinstance(value, np.floating) else value, digits)
        if value is None or value is pd.NA:
            return NOTHING
        shown = label(str(value)) if column == "arm" else str(value)
        return shown.replace("|", r"\|").replace("\n", " ")

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    columns = [str(name) for name in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rows = [
        line(text(name, value) for name, value in zip(columns, values, strict=True))
        for values in frame.itertuples(index=False, name=None)
    ]
    head = line(text("", "" if name == "arm" else name) for name in columns)
    return "\n".join([head, line("---:" if right else ":---" for right in numeric), *rows])


def style() -> None:
    """Set the look of the book's figures for figures of one's own."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(_settings())


def _settings() -> Any:
    import seaborn as sns

    settings = dict(sns.axes_style("whitegrid"))
    settings.update(
        {
            # The font that comes with matplotlib: the same figure on every machine.
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": FONT_SIZE,
            "axes.labelsize": FONT_SIZE,
            "axes.titlesize": FONT_SIZE,
            "xtick.labelsize": FONT_SIZE,
            "ytick.labelsize": FONT_SIZE,
            "legend.fontsize": SMALL_FONT_SIZE,
            "legend.frameon": False,
            "figure.dpi": DPI,
            "savefig.dpi": "figure",
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.edgecolor": "#666666",
            "grid.color": "#E3E3E3",
            "text.color": "black",
            "axes.labelcolor": "black",
            "axes.unicode_minus": False,
            "xtick.color": "black",
            "ytick.color": "black",
        }
    )
    return settings


def _subplots(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the book's width and its axes, as an array.

    The figure is closed for pyplot, so that a notebook shows it once, where it is returned.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options
    )
    plt.close(figure)
    return figure, axes


def _styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Draw in the book's style whatever the caller's settings are, and leave those alone."""

    @functools.wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        import matplotlib.pyplot as plt

        with plt.rc_context(_settings()):
            return draw(*args, **kwargs)

    return drawn


def _rows(table: pd.DataFrame, measure: str, condition: str | None) -> pd.DataFrame:
    """The rows of one measure under one condition; without a name it must be the only one."""
    rows = table[table["measure"] == measure]
    if rows.empty:
        known = ", ".join(dict.fromkeys(table["measure"])) or "none"
        raise stats.NotMeasuredError(f"no measure '{measure}'; measured: {known}")
    conditions = list(dict.fromkeys(rows["condition"]))
    if condition is None and len(conditions) > 1:
        raise ValueError(f"'{measure}' has several conditions, name one: {'; '.join(conditions)}")
    wanted = conditions[0] if condition is None else condition
    if wanted not in conditions:
        known = "; ".join(conditions)
        raise stats.NotMeasuredError(f"no '{measure}' under '{wanted}'; measured: {known}")
    return rows[rows["condition"] == wanted]


def _arms_in(
    rows: pd.DataFrame, arms: Sequence[str] | None, without: Sequence[str] = ()
) -> list[str]:
    """The arms to draw: those asked for, or all that were measured in the book's order."""
    measured = list(dict.fromkeys(rows["arm"]))
    if arms is None:
        order = {arm: place for place, arm in enumerate(ARMS)}
        arms = sorted(measured, key=lambda arm: order.get(arm, len(order)))
    unknown = [arm for arm in arms if arm not in measured]
    if unknown:
        raise stats.NotMeasuredError(
            f"no arm {', '.join(map(repr, unknown))}; measured: {', '.join(measured)}"
        )
    return [arm for arm in arms if arm not in without]


def _by_seed(rows: pd.DataFrame, arm: str) -> pd.Series:
    """Finite values of one arm, indexed and sorted by seed."""
    mine = rows[rows["arm"] == arm]
    values = pd.Series(mine["value"].to_numpy(dtype=np.float64), index=mine["seed"].to_numpy())
    return values[np.isfinite(values)].sort_index()


def _readable(measure: str) -> str:
    words = measure.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def _short_ticks(axis: Any) -> None:
    """Tick labels as numbers are printed in the text, all with as many decimals as they need."""
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _: int) -> str:
        places = np.asarray(axis.get_majorticklocs())
        needed = (n for n in range(6) if np.allclose(places, places.round(n), rtol=0, atol=1e-7))
        return "0" if abs(value) < 1e-7 else number(value, next(needed, 6))

    axis.set_major_formatter(FuncFormatter(text))


def _two_lines(name: str) -> str:
    """An arm's name broken where it reads best beside an axis."""
    for mark, line_break in ((" (", "\n("), (", ", ",\n")):
        if mark in name:
            return name.replace(mark, line_break, 1)
    return textwrap.fill(name, 16)


def _axis_label(text: str, letters: int = 44) -> str:
    return textwrap.fill(text, letters)


def _fill(look: ArmStyle) -> str:
    return "white" if look.hollow else look.colour


def _constant_lines(
    axis: Axes,
    rows: pd.DataFrame,
    reference_lines: Mapping[str, float] | None,
    teacher_line: bool,
    vertical: bool,
) -> None:
    """Teachers and reference values as lines through the whole picture."""
    draw = axis.axvline if vertical else axis.axhline
    teachers = [arm for arm in TEACHERS if teacher_line and (rows["arm"] == arm).any()]
    for arm in teachers:
        look = arm_style(arm)
        value = float(_by_seed(rows, arm).mean())
        draw(
            value, color=look.colour, linestyle=look.line, linewidth=1.8, label=look.label, gid=arm
        )
    dots = (":", (0, (1, 3)), (0, (3, 3)))
    for place, (name, value) in enumerate((reference_lines or {}).items()):
        dotted = dots[place % len(dots)]
        draw(value, color="#444444", linestyle=dotted, linewidth=1.6, label=name, gid=name)


def _legend(figure: Figure, axis: Axes, columns: int = 2) -> None:
    handles, names = axis.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    if unique:
        figure.legend(
            unique.values(),
            unique.keys(),
            loc="outside lower center",
            ncols=min(columns, len(unique)),
            handlelength=2.6,
            columnspacing=1.4,
        )


@_styled
def points(
    table: pd.DataFrame,
    measure: str,
    condition: str | None = None,
    arms: Sequence[str] | None = None,
    xlabel: str | None = None,
    reference_lines: Mapping[str, float] | None = None,
    teacher_line: bool = True,
) -> Figure:
    """One row per arm: every seed a point, their mean and its 95% t-interval.

    Teachers are vertical lines unless ``teacher_line`` is False (measures of a pair with the
    teacher); ``reference_lines`` are named values such as chance. ``condition`` may be left out
    where there is one only. Raises NotMeasuredError for what the table does not hold.
    """
    rows = _rows(table, measure, condition)
    shown = _arms_in(rows, arms, TEACHERS if teacher_line else ())
    figure, axes = _subplots(1.3 + 0.44 * len(shown))
    axis = axes[0, 0]
    _arm_rows(axis, rows, shown)
    _constant_lines(axis, rows, reference_lines, teacher_line, vertical=True)
    axis.set_yticks(range(len(shown)), [_two_lines(label(arm)) for arm in shown])
    axis.set_xlabel(_axis_label(xlabel or _readable(measure)))
    _short_ticks(axis.xaxis)
    _legend(figure, axis)
    return figure


def _arm_rows(axis: Axes, rows: pd.DataFrame, shown: Sequence[str]) -> None:
    """One row per arm: every seed a point, their mean and its 95% t-interval."""
    for row, arm in enumerate(shown):
        look, values = arm_style(arm), _by_seed(rows, arm)
        spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
        looks: dict[str, Any]
        looks = {"color": look.colour, "marker": look.marker, "markerfacecolor": _fill(look)}
        axis.plot(values, row + spread, linestyle="", markersize=5, alpha=0.6, gid=arm, **looks)
        if len(values) == 0:
            continue
        mean = stats.t_interval(values)
        if np.isfinite(mean.low):
            bounds = [mean.low, mean.high]
            axis.plot(bounds, [row, row], color=look.colour, linewidth=3, gid=f"{arm}:interval")
        looks["markeredgecolor"] = "black"
        axis.plot([mean.estimate], [row], linestyle="", markersize=9, gid=f"{arm}:mean", **looks)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")


@_styled
def panels(
    table: pd.DataFrame,
    shown: Mapping[str, tuple[str, str]],
    arms: Sequence[str],
    same_scale: bool = True,
) -> Figure:
    """Panels side by side, in each a row per arm: every seed a point, their mean, its interval.

    ``shown`` maps the name under each panel to a measure and its condition. Teachers are rows like
    the others; a row stays empty where an arm was not measured. With ``same_scale`` all panels have
    the same horizontal axis. Raises NotMeasuredError for a measure or condition that is not there.
    """
    figure, axes = _subplots(
        1.0 + 0.44 * len(arms), 1, len(shown), sharey=True, sharex="row" if same_scale else "none"
    )
    for axis, (name, which) in zip(axes.flat, shown.items(), strict=True):
        _arm_rows(axis, _rows(table, *which), arms)
        axis.set_xlabel(textwrap.fill(name, 36 // len(shown)))
        axis.locator_params(axis="x", nbins=3)
        _short_ticks(axis.xaxis)
    names = [textwrap.fill(arm_style(arm).short, 14) for arm in arms]
    axes[0, 0].set_yticks(range(len(arms)), names)
    return figure


@_styled
def paired(
    table: pd.DataFrame,
    measure: str,
    condition: str | None = None,
    arms: Sequence[str] | None = None,
    reference: str = "independent",
    ylabel: str | None = None,
    items: pd.DataFrame | None = None,
    teacher_line: bool = True,
) -> Figure:
    """One panel per arm: each seed's line from its independent student to its distilled one.

    Under a panel stands the mean paired difference with its 95% interval; with the ``items`` of
    the same probe it also covers the choice of test images. Arms and the reference are paired by
    seed. Raises NotMeasuredError for what the table does not hold.
    """
    rows = _rows(table, measure, condition)
    shown = _arms_in(rows, arms, (*TEACHERS, reference))
    _arms_in(rows, [reference])
    # Two long names do not fit under a third of the width.
    widest = max((len(arm_style(arm).short) for arm in shown), default=0)
    columns = min(3 if widest <= 6 else 2, max(len(shown), 1))
    lines = math.ceil(len(shown) / columns)
    figure, axes = _subplots(0.6 + 2.9 * lines, lines, columns, sharey=True)
    start = _by_seed(rows, reference)
    under = str(rows["condition"].iloc[0])
    for axis, arm in zip(axes.flat, shown, strict=False):
        look, end = arm_style(arm), _by_seed(rows, arm)
        for seed in start.index.intersection(end.index):
            pair = [start[seed], end[seed]]
            axis.plot(
                [0, 1], pair, color=look.colour, linewidth=1.5, alpha=0.8, gid=f"{arm}:{seed}"
            )
            for place, name in enumerate((reference, arm)):
                mark = arm_style(name)
                axis.plot(
                    place, pair[place], mark.marker, color=mark.colour, markerfacecolor=_fill(mark)
                )
        _constant_lines(axis, rows, None, teacher_line, vertical=False)
        difference = stats.contrast(table, items, measure, under, arm, reference)
        names = [textwrap.fill(arm_style(name).short, 14) for name in (reference, arm)]
        axis.set_xticks([0, 1], names, fontsize=SMALL_FONT_SIZE)
        axis.set_xlim(-0.35, 1.35)
        bounds = number(difference).split(" ", 1)
        axis.set_xlabel("\n".join([f"difference {bounds[0]}", *bounds[1:]]))
        axis.grid(visible=False, axis="x")
        _short_ticks(axis.yaxis)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(_axis_label(ylabel or _readable(measure), 28))
    _legend(figure, axes[0, 0])
    return figure


@_styled
def plane(
    table: pd.DataFrame,
    x: tuple[str, str],
    y: tuple[str, str],
    arms: Sequence[str] | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    vertical_lines: Mapping[str, float] | None = None,
) -> Figure:
    """Two measures against each other: a small mark per network, a large one per arm's mean.

    ``x`` and ``y`` are each a measure and its condition; a network counts where it has a finite
    value of both. ``vertical_lines`` are named values of ``x`` such as chance. Raises
    NotMeasuredError for what the table does not hold.
    """
    across, up = _rows(table, *x), _rows(table, *y)
    shown = _arms_in(up, _arms_in(across, arms))
    figure, axes = _subplots(3.6 + 0.25 * math.ceil(len(shown) / 2))
    axis = axes[0, 0]
    for place, arm in enumerate(shown):
        look = arm_style(arm)
        networks = pd.concat([_by_seed(across, arm), _by_seed(up, arm)], axis=1, join="inner")
        looks: dict[str, Any] = {"color": look.colour, "marker": look.marker}
        looks["markerfacecolor"] = _fill(look)
        axis.plot(*networks.to_numpy().T, linestyle="", markersize=5, alpha=0.6, gid=arm, **looks)
        middle = networks.mean().to_numpy()[:, None]
        looks["markeredgecolor"] = "black"
        # The first arms, the teachers, are few and lie on top.
        looks |= {"label": look.label, "gid": f"{arm}:mean", "zorder": 4 - place / len(shown)}
        axis.plot(*middle, linestyle="", markersize=10, **looks)
    for name, value in (vertical_lines or {}).items():
        axis.axvline(value, color="#444444", linestyle=":", linewidth=1.6, label=name, gid=name)
    axis.set_xlabel(_axis_label(xlabel or _readable(x[0])))
    axis.set_ylabel(_axis_label(ylabel or _readable(y[0]), 28))
    _short_ticks(axis.xaxis)
    _short_ticks(axis.yaxis)
    _legend(figure, axis)
    return figure


@_styled
def closed(
    results: Mapping[str, GapClosed | Interval], xlabel: str = "Share of the gap closed"
) -> Figure:
    """How much of the gap (or headroom) each arm closes, with 95% intervals.

    ``results`` maps arms to what `kdnotes.stats.gap_closed` or ``headroom_closed`` returned. Where
    there is no ratio the row says so in words and gives the raw difference. The line at 0 is the
    independent student, the one at 1 the teacher (or second teacher).
    """
    figure, axes = _subplots(1.1 + 0.5 * len(results))
    axis = axes[0, 0]
    for row, (arm, result) in enumerate(results.items()):
        look = arm_style(arm)
        ratio = result.ratio if isinstance(result, GapClosed) else result
        if ratio is None or not np.isfinite(ratio.estimate):
            words = number(result).replace(" (", "\n(")
            axis.text(0.02, row, words, va="center", fontsize=SMALL_FONT_SIZE, gid=f"{arm}:words")
            continue
        if np.isfinite(ratio.low):
            bounds = [ratio.low, ratio.high]
            axis.plot(bounds, [row, row], color=look.colour, linewidth=3, gid=f"{arm}:interval")
        axis.plot(
            [ratio.estimate],
            [row],
            look.marker,
            color=look.colour,
            markerfacecolor=_fill(look),
            markeredgecolor="black",
            markersize=9,
            gid=f"{arm}:mean",
        )
    for value in (0.0, 1.0):
        axis.axvline(value, color="#444444", linewidth=1.4, linestyle=":" if value else "-")
    axis.set_yticks(range(len(results)), [_two_lines(label(arm)) for arm in results])
    axis.set_ylim(len(results) - 0.5, -0.5)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.1), max(high, 1.1))
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(xlabel)
    _short_ticks(axis.xaxis)
    return figure


def _factors(condition: str) -> dict[str, str]:
    """The factors of a condition as they are written: "attack=teacher,eps=4/255" has two."""
    parts = (part.partition("=") for part in condition.split(","))
    return {name.strip(): value.strip() for name, _, value in parts if value}


def factor(condition: str, name: str) -> float | str | None:
    """Value of one factor in a condition: .3 in "strength=0.3", 4/255 in "eps=4/255".

    Factors are separated by commas. A value that is no number comes back as text, a factor that
    is not there as None.
    """
    value = _factors(condition).get(name)
    try:
        return None if value is None else float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        return value


@_styled
def curve(
    table: pd.DataFrame,
    measure: str,
    x: str,
    where: str = "",
    arms: Sequence[str] | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    reference_lines: Mapping[str, float] | None = None,
) -> Figure:
    """A line per arm over one factor of the conditions, with a band for the 95% t-interval.

    ``x`` names the factor, as in "strength=0.3" or "eps=4/255"; ``where`` the others that are
    wanted, as in "attack=teacher". Values that are no numbers are left out (eps=primary), or, where
    all are like that (layers), stand side by side in the order of the table. Raises
    NotMeasuredError where no condition fits, ValueError where another factor varies too.
    """
    rows = table[table["measure"] == measure]
    wanted = _factors(where).items()
    places = {
        name: factor(name, x)
        for name in dict.fromkeys(rows["condition"])
        if x in _factors(name) and wanted <= _factors(name).items()
    }
    if not places:
        also = f" and {where}" if where else ""
        raise stats.NotMeasuredError(f"'{measure}' has no condition with the factor '{x}'{also}")
    positions = {name: place for name, place in places.items() if isinstance(place, float)}
    if not positions:
        positions = {name: float(place) for place, name in enumerate(places)}
    if len({_factors(name)[x] for name in positions}) < len(positions):
        raise ValueError(f"other factors than '{x}' vary too: {'; '.join(positions)}")
    positions = dict(sorted(positions.items(), key=lambda pair: pair[1]))
    rows = rows[rows["condition"].isin(list(positions))]
    shown = _arms_in(rows, arms)
    figure, axes = _subplots(3.3 + 0.25 * math.ceil(len(shown) / 2))
    axis = axes[0, 0]
    for arm in shown:
        look = arm_style(arm)
        drawn = []
        for name, position in positions.items():
            values = _by_seed(rows[rows["condition"] == name], arm)
            if len(values):
                mean = stats.t_interval(values)
                drawn.append((position, mean.estimate, mean.low, mean.high))
        place, middle, low, high = np.array(drawn).reshape(-1, 4).T
        axis.fill_between(place, low, high, color=look.colour, alpha=0.18, linewidth=0)
        axis.plot(
            place,
            middle,
            color=look.colour,
            linestyle=look.line,
            linewidth=2,
            marker=look.marker,
            markerfacecolor=_fill(look),
            markersize=7,
            label=look.label,
            gid=arm,
        )
    _constant_lines(axis, rows, reference_lines, teacher_line=False, vertical=False)
    if len(positions) <= 8:
        texts = [_factors(name)[x] for name in positions]
        short = [text.removeprefix("0") if text.startswith("0.") else text for text in texts]
        axis.set_xticks(list(positions.values()), short)
    axis.set_xlabel(_axis_label(xlabel or _readable(x)))
    axis.set_ylabel(_axis_label(ylabel or _readable(measure), 28))
    _short_ticks(axis.yaxis)
    _legend(figure, axis)
    return figure


@_styled
def heatmap(
    values: pd.DataFrame,
    verdicts: pd.DataFrame | None = None,
    colour_label: str = "Share of the gap closed",
    limit: float = 1.0,
) -> Figure:
    """Properties (rows) by methods (columns): the number in every cell, and its verdict's mark.

    ``values`` holds numbers, NaN where there was no gap to close; ``verdicts`` the verdict words in
    the same shape. Colours run from ``-limit`` to ``limit`` in every such figure.
    """
    import seaborn as sns

    cells = [
        [
            _cell(
                values.iloc[row, column], None if verdicts is None else verdicts.iloc[row, column]
            )
            for column in range(values.shape[1])
        ]
        for row in range(values.shape[0])
    ]
    figure, axes = _subplots(1.5 + 0.55 * len(values))
    axis = axes[0, 0]
    axis.set_facecolor("#EEEEEE")
    sns.heatmap(
        values.astype(float),
        ax=axis,
        annot=np.array(cells, dtype=object),
        fmt="",
        cmap="PuOr_r",
        vmin=-limit,
        vmax=limit,
        linewidths=2,
        linecolor="white",
        annot_kws={"fontsize": FONT_SIZE},
        cbar_kws={"label": colour_label},
    )
    for row, column in zip(*np.nonzero(values.isna().to_numpy()), strict=True):
        axis.text(
            column + 0.5, row + 0.5, "no gap", ha="center", va="center", fontsize=SMALL_FONT_SIZE
        )
    names = [arm_style(str(name)).short if name in ARMS else str(name) for name in values.columns]
    axis.set_xticklabels([textwrap.fill(name, 10) for name in names], rotation=0)
    axis.set_yticklabels([textwrap.fill(str(name), 16) for name in values.index], rotation=0)
    marks = "   ".join(f"{mark} {words}" for words, (mark, _) in list(VERDICTS.items())[:3])
    axis.set_xlabel("Method" if verdicts is None else f"Method\n{marks}")
    axis.set_ylabel("Property")
    _short_ticks(axis.collections[0].colorbar.ax.yaxis)
    return figure


def _cell(value: float, verdict: str | None) -> str:
    mark = "" if verdict is None else f" {VERDICTS[verdict][0]}"
    return f"{number(value)}{mark}"


_CLAIM_ROW = 0.42  # inches
_CHAPTER_ROW = 0.36
_INTERVALS_FROM, _INTERVALS_TO, _WORDS_FROM = 0.31, 0.66, 0.68  # shares of the width
_KIND_MARKERS = {"difference": "o", "gap closed": "s"}


def claim_name(claim_id: str) -> str:
    """Short name of a claim, from its id without the chapter's word: "Win rate KL"."""
    spoken = {"kl": "KL", "hint": "Hint", "crd": "CRD"}
    words = claim_id.split("-")[1:]
    name = " ".join(spoken.get(word, word) for word in words)
    return name[:1].upper() + name[1:]


@_styled
def scorecard(claims: pd.DataFrame, xlabel: str = "Difference, or share of the gap") -> Figure:
    """All claims on one page: the interval, what it had to exceed, and the verdict in a word.

    ``claims`` has one row per claim, in order, with columns id, chapter, kind (difference or gap
    closed), estimate, low, high, direction (greater, less or equivalent), margin,
    equivalence_margin and verdict. A claim that is not applicable shows its verdict only.
    """
    import matplotlib.pyplot as plt
    from matplotlib.transforms import blended_transform_factory

    chapters = list(claims["chapter"])
    new = [place == 0 or name != chapters[place - 1] for place, name in enumerate(chapters)]
    body = sum(new) * _CHAPTER_ROW + len(claims) * _CLAIM_ROW
    foot, head = 1.2, 0.08
    height = body + foot + head
    figure = plt.figure(figsize=(WIDTH, height))
    plt.close(figure)
    across = _INTERVALS_TO - _INTERVALS_FROM
    axis = figure.add_axes((_INTERVALS_FROM, foot / height, across, body / height))
    axis.set_ylim(body, 0)
    axis.set_yticks([])
    beside = blended_transform_factory(figure.transFigure, axis.transData)
    axis.axvline(0, color="#444444", linewidth=1.2)
    backing = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    top = 0.0
    for row, is_new in zip(claims.itertuples(index=False), new, strict=True):
        if is_new:
            top += _CHAPTER_ROW
            chapter = _readable(row.chapter)
            axis.text(
                0.02, top - 0.08, chapter, transform=beside, weight="bold", bbox=backing, zorder=4
            )
        _claim(axis, row, top + _CLAIM_ROW / 2, beside)
        top += _CLAIM_ROW
    axis.set_xlabel(xlabel)
    axis.grid(visible=False, axis="y")
    _short_ticks(axis.xaxis)
    axis.spines[["left", "right", "top"]].set_visible(False)
    _scorecard_legend(figure)
    return figure


def _claim(axis: Axes, row: Any, middle: float, beside: Any) -> None:
    """One claim of the scorecard: its name, criterion and interval, its numbers and verdict."""
    mark, tint = VERDICTS[row.verdict]
    small = {"transform": beside, "fontsize": SMALL_FONT_SIZE}
    name = textwrap.fill(claim_name(row.id), 19)
    axis.text(0.02, middle, name, va="center", linespacing=1.0, **small)
    words = f"{mark} {row.verdict}"
    if row.verdict == "not applicable" or not np.isfinite(row.estimate):
        axis.text(_WORDS_FROM, middle, words, va="center", color=tint, weight="bold", **small)
        return
    equivalent = row.direction == "equivalent"
    bounds = (-row.equivalence_margin, row.equivalence_margin) if equivalent else (row.margin,)
    for bound in bounds:
        side = {"greater": ">", "less": "<"}.get(row.direction, "<" if bound > 0 else ">")
        axis.plot([bound] * 2, [middle - 0.15, middle + 0.15], color="black", linewidth=1.6)
        axis.plot([bound], [middle - 0.15], side, color="black", markersize=5)
    if np.isfinite(row.low):
        axis.plot([row.low, row.high], [middle] * 2, color=tint, linewidth=4, gid=row.id)
    shape = _KIND_MARKERS[row.kind]
    axis.plot([row.estimate], [middle], shape, color=tint, markersize=8, markeredgecolor="black")
    interval = f"{number(row.estimate)} [{number(row.low)}, {number(row.high)}]"
    axis.text(_WORDS_FROM, middle - 0.02, words, va="bottom", color=tint, weight="bold", **small)
    axis.text(_WORDS_FROM, middle + 0.02, interval, va="top", **small)


def _scorecard_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    edge: dict[str, Any] = {
        "color": "#999999",
        "markeredgecolor": "black",
        "linewidth": 4,
        "markersize": 8,
    }
    handles = [Line2D([], [], marker=shape, **edge) for shape in _KIND_MARKERS.values()]
    handles.append(Line2D([], [], color="black", marker=">", linestyle="", markersize=6))
    names = ["difference", "share of the gap", "the interval must lie on this side"]
    figure.legend(handles, names, loc="lower center", ncols=2, columnspacing=1.2)


@_styled
def image_grid(
    images: Any,
    titles: Sequence[str] | None = None,
    overlays: Any = None,
    columns: int | None = None,
    overlay_label: str = "Map value",
) -> Figure:
    """Images side by side, each under its title, with heat maps laid over them if given.

    ``images``: (N, 3, H, W), uint8 or float in [0, 1]; ``overlays``: (N, h, w), not negative, drawn
    on one scale from 0 to the largest value of all, so that maps can be compared. Raises ValueError
    where the numbers of images, titles and overlays differ.
    """
    pictures = _pictures(images)
    maps = None if overlays is None else np.asarray(overlays, dtype=np.float64)
    for name, given in (("titles", titles), ("overlays", maps)):
        if given is not None and len(given) != len(pictures):
            raise ValueError(f"{len(given)} {name} for {len(pictures)} images")
    across = columns or min(5, len(pictures))
    down = math.ceil(len(pictures) / across)
    letters = int(WIDTH / across * 72 / (0.62 * SMALL_FONT_SIZE))
    texts = [textwrap.wrap(title, letters) for title in titles or [""] * len(pictures)]
    height, width = pictures.shape[1:3]
    title_lines = sum(
        max(len(text) for text in texts[start : start + across])
        for start in range(0, len(texts), across)
    )
    body = WIDTH / across * height / width * down + 0.19 * title_lines + 0.05 * down
    figure, axes = _subplots(body + (0.75 if maps is not None else 0.0), down, across)
    top = float(maps.max()) if maps is not None else 1.0
    drawn = None
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place >= len(pictures):
            continue
        axis.set_title("\n".join(texts[place]), fontsize=SMALL_FONT_SIZE, pad=3)
        if maps is None:
            axis.imshow(pictures[place], interpolation="nearest")
            continue
        axis.imshow(pictures[place].mean(axis=2), cmap="gray", vmin=0, vmax=1)
        drawn = axis.imshow(
            maps[place],
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
            cmap=_heat(),
            vmin=0,
            vmax=top or 1.0,
        )
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
        bar.set_label(overlay_label)
        _short_ticks(bar.ax.xaxis)
    return figure


def _heat() -> Any:
    """Yellow to red, and the more transparent the smaller the value: the picture shows through."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    tints = mpl.colormaps["YlOrRd"](np.linspace(0.15, 1, 256))
    tints[:, 3] = np.linspace(0, 0.85, 256)
    return ListedColormap(tints)


def _pictures(images: Any) -> np.ndarray:
    """Images (N, 3, H, W) as float pictures (N, H, W, 3) in [0, 1]."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"need images of shape (N, 3, H, W), not {array.shape}")
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return np.clip(array.transpose(0, 2, 3, 1) / scale, 0.0, 1.0)


def views(columns: Mapping[str, Any]) -> Figure:
    """The same images in several versions: a row per image, a column per named version.

    ``columns`` maps each heading to images (N, 3, H, W), uint8 or float in [0, 1], all of one N.
    """
    stacks = [_pictures(images).transpose(0, 3, 1, 2) for images in columns.values()]
    rows = np.stack(stacks, axis=1)
    titles = [*columns, *[""] * (len(columns) * (len(rows) - 1))]
    return image_grid(rows.reshape(-1, *rows.shape[2:]), titles, columns=len(columns))


@_styled
def training_curves(
    history: pd.DataFrame,
    term: str = "loss",
    arms: Sequence[str] | None = None,
    ylabel: str | None = None,
) -> Figure:
    """One term of the loss over the epochs: a thin line per network, a thick one per arm's mean.

    ``history`` has columns arm, seed, epoch and one per term, as ``Study.history`` returns it; arms
    without the term are left out. Raises NotMeasuredError where no arm has it.
    """
    if term not in history or history[term].isna().all():
        known = ", ".join(history.columns.drop(["arm", "seed", "epoch"]))
        raise stats.NotMeasuredError(f"no term '{term}' in the training history; known: {known}")
    rows = history[history[term].notna()]
    shown = _arms_in(rows, arms)
    figure, axes = _subplots(3.3 + 0.25 * math.ceil(len(shown) / 2))
    axis = axes[0, 0]
    for arm in shown:
        look = arm_style(arm)
        values = rows[rows["arm"] == arm].pivot(index="epoch", columns="seed", values=term)
        axis.plot(values.index, values, color=look.colour, linewidth=0.8, alpha=0.5)
        axis.plot(
            values.index,
            values.mean(axis=1),
            color=look.colour,
            linestyle=look.line,
            linewidth=2.4,
            marker=look.marker,
            markerfacecolor=_fill(look),
            markersize=6,
            label=look.label,
            gid=arm,
        )
    axis.set_xlabel("Epoch")
    axis.set_ylabel(_axis_label(ylabel or _readable(term), 28))
    _short_ticks(axis.yaxis)
    _legend(figure, axis)
    return figure


@_styled
def gains(
    shown: Mapping[str, pd.DataFrame],
    xlabel: str = "More accurate than alone",
    ylabel: str = "More of the property than alone",
) -> Figure:
    """A panel per property: each student's gain in accuracy, and how much more of it it has.

    ``shown`` maps the name above each panel to a frame with columns arm, accuracy_gain and
    inheritance, one row per student; arms are drawn in the order of the book, grey ones below the
    others. Panels have scales of their own. Where a student is no more accurate and yet has more,
    the ground is tinted.
    """
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)
    arms = dict.fromkeys(arm for frame in shown.values() for arm in frame["arm"])
    order = {arm: place for place, arm in enumerate(ARMS)}
    ordered = sorted(arms, key=lambda arm: order.get(arm, len(order)))
    height = 0.3 + 2.5 * lines + 0.25 * math.ceil(len(ordered) / 2)
    figure, axes = _subplots(height, lines, columns)
    for axis, (name, frame) in zip(axes.flat, shown.items(), strict=False):
        for place, arm in enumerate(ordered):
            look, mine = arm_style(arm), frame[frame["arm"] == arm]
            axis.plot(
                mine["accuracy_gain"],
                mine["inheritance"],
                look.marker,
                color=look.colour,
                markerfacecolor=_fill(look),
                markersize=6,
                alpha=0.8,
                zorder=2.5 + place / len(ordered),
                label=look.label,
                gid=arm,
            )
        left, right = axis.get_xlim()
        low, high = axis.get_ylim()
        left, high = min(left, -0.01), max(high, 0.01)
        axis.fill_between([left, 0], 0, high, color="#0072B2", alpha=0.08, linewidth=0, zorder=0)
        axis.axvline(0, color="#444444", linewidth=1.2, zorder=1)
        axis.axhline(0, color="#444444", linewidth=1.2, zorder=1)
        axis.set_xlim(left, max(right, 0.01))
        axis.set_ylim(min(low, -0.01), high)
        axis.set_title(textwrap.fill(name, 40 // columns + 4))
        for side in (axis.xaxis, axis.yaxis):
            _short_ticks(side)
        axis.locator_params(nbins=4)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(shown) - columns) : len(shown)]:  # the lowest of each column
        axis.set_xlabel(_axis_label(xlabel, 52 // columns))
    for axis in axes[:, 0]:
        axis.set_ylabel(_axis_label(ylabel, 24))
    _legend(figure, axes[0, 0])
    return figure


@_styled
def doses(
    table: pd.DataFrame,
    measure: str,
    condition: str,
    ladders: Mapping[str, Sequence[tuple[float | str, str, str, str]]],
    ylabel: str | None = None,
) -> Figure:
    """A panel per factor: the measure at each of its doses, for students, reference and teacher.

    ``ladders`` maps the name under each panel to its doses in order
    (`kdnotes.probes.dose.Dose`): the dose, the arm that got it, the arm it is compared with and its
    teacher. Doses stand side by side, not to scale. Small marks are single networks, large ones
    means, bars their 95% t-intervals over seeds. Raises NotMeasuredError for what is not there.
    """
    rows = _rows(table, measure, condition)
    _arms_in(rows, [arm for steps in ladders.values() for step in steps for arm in step[1:]])
    columns = min(2, len(ladders))
    lines = math.ceil(len(ladders) / columns)
    figure, axes = _subplots(1.1 + 2.0 * lines, lines, columns, sharey=True)
    for axis, (name, steps) in zip(axes.flat, ladders.items(), strict=False):
        # Doses of one kind look alike, whatever the arm of each is called.
        student = next(
            (arm for arm in ("kl", "hint", "crd") if any(step[1] == arm for step in steps)), "kl"
        )
        _dose_line(axis, rows, [step[3] for step in steps], "teacher")
        _dose_line(axis, rows, [step[2] for step in steps], "independent")
        _dose_line(axis, rows, [step[1] for step in steps], student)
        axis.set_xticks(range(len(steps)), [_dose_text(step[0]) for step in steps])
        axis.set_xlim(-0.4, len(steps) - 0.6)
        axis.set_xlabel(textwrap.fill(name, 44 // columns))
        axis.grid(visible=False, axis="x")
        _short_ticks(axis.yaxis)
    for axis in axes.flat[len(ladders) :]:
        axis.set_visible(False)
    figure.supylabel(_axis_label(ylabel or _readable(measure)), fontsize=FONT_SIZE)
    _shared_legend(figure, axes.flat)
    return figure


def _dose_text(at: float | str) -> str:
    if isinstance(at, str):
        return at
    return f"{at:.0f}" if float(at).is_integer() else stats.format_number(at, 2).rstrip("0")


def _dose_line(axis: Axes, rows: pd.DataFrame, arms: Sequence[str], named: str) -> None:
    """Means of several arms as one line, with their networks and intervals."""
    look = arm_style(named)
    means = []
    for place, arm in enumerate(arms):
        values = _by_seed(rows, arm)
        mean = stats.t_interval(values) if len(values) else None
        means.append(np.nan if mean is None else mean.estimate)
        if len(values) > 1:
            axis.plot(
                np.full(len(values), place),
                values,
                look.marker,
                color=look.colour,
                markersize=3.5,
                alpha=0.5,
            )
        if mean is not None and np.isfinite(mean.low):
            bounds = [mean.low, mean.high]
            axis.plot([place] * 2, bounds, color=look.colour, linewidth=2.4, alpha=0.7)
    axis.plot(
        range(len(arms)),
        means,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markersize=8,
        markeredgecolor="black",
        label=look.label,
        gid=f"{named}:mean",
    )


def _shared_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for several panels, each name once."""
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if named:
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=2, handlelength=2.6
        )


@_styled
def matrices(
    table: pd.DataFrame,
    measure: str,
    rows: str,
    columns: str,
    arms: Sequence[str],
    where: str = "",
    labels: tuple[str, str] | None = None,
    colour_label: str | None = None,
) -> Figure:
    """A panel per arm: the mean of a measure for each value of two factors, as coloured cells.

    ``rows`` and ``columns`` name factors of the conditions, such as layers; ``where`` the others of
    the conditions that are wanted, as in "pair=vit-cnn". Colours run from 0 to 1 in all panels; a
    cell without a value stays white. Raises NotMeasuredError for what the table does not hold.
    """
    import seaborn as sns

    wanted = _factors(where).items()
    found = table[(table["measure"] == measure) & table["arm"].isin(list(arms))]
    cells = [_factors(name) for name in found["condition"]]
    known = {rows, columns, *_factors(where)}
    fits = [cell.keys() == known and wanted <= cell.items() for cell in cells]
    found = found[np.array(fits, dtype=bool)]
    cells = [cell for cell, fit in zip(cells, fits, strict=True) if fit]
    _arms_in(found, arms)
    found = found.assign(down=[c[rows] for c in cells], across=[c[columns] for c in cells])
    order = {side: list(dict.fromkeys(found[side])) for side in ("down", "across")}
    wide = min(2, len(arms))
    high = math.ceil(len(arms) / wide)
    figure, axes = _subplots(0.8 + 2.3 * high, high, wide, sharey=True)
    for axis, arm in zip(axes.flat, arms, strict=False):
        mine = found[found["arm"] == arm]
        values = mine.pivot_table(index="down", columns="across", values="value", dropna=False)
        across = [name for name in order["across"] if name in set(mine["across"])]
        values = values.reindex(index=order["down"], columns=across)
        texts = values.map(number).to_numpy()
        looks: dict[str, Any] = {"cmap": "GnBu", "vmin": 0, "vmax": 1, "cbar": False}
        looks |= {"linewidths": 1, "linecolor": "white", "annot_kws": {"fontsize": 9}}
        sns.heatmap(values, ax=axis, annot=texts, fmt="", **looks)
        axis.set_title(arm_style(arm).short)
        names = labels or (_readable(rows), _readable(columns))
        axis.set(ylabel=names[0] if axis in axes[:, 0] else "", xlabel=names[1])
        axis.set_xticks(axis.get_xticks(), across, rotation=30, ha="right", rotation_mode="anchor")
        axis.tick_params(axis="y", rotation=0)
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    drawn = axes[0, 0].collections[0]
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.8, aspect=30)
    bar.set_label(colour_label or _readable(measure))
    _short_ticks(bar.ax.xaxis)
    return figure


@_styled
def grouped(
    table: pd.DataFrame,
    measure: str,
    conditions: Mapping[str, str],
    arms: Sequence[str],
    xlabel: str | None = None,
) -> Figure:
    """A group of rows per condition, in it a row per arm: every seed, their mean, its interval.

    ``conditions`` maps the name beside each group to its condition. A row stays empty where an arm
    was not measured. Raises NotMeasuredError for a condition that is not there.
    """
    step = 1 / (len(arms) + 1)
    figure, axes = _subplots(1.1 + 0.14 * (len(arms) + 1) * len(conditions))
    axis = axes[0, 0]
    for group, condition in enumerate(conditions.values()):
        rows = _rows(table, measure, condition)
        if group % 2:
            axis.axhspan(group - 0.5, group + 0.5, color="#F3F3F3", linewidth=0, zorder=0)
        for place, arm in enumerate(arms):
            values, look = _by_seed(rows, arm), arm_style(arm)
            if len(values) == 0:
                continue
            height, mean = group - 0.5 + (place + 1) * step, stats.t_interval(values)
            if np.isfinite(mean.low):
                bounds = [mean.low, mean.high]
                axis.plot(bounds, [height] * 2, color=look.colour, linewidth=2, alpha=0.7)
            looks: dict[str, Any]
            looks = {"color": look.colour, "marker": look.marker, "markerfacecolor": _fill(look)}
            looks |= {"linestyle": "", "zorder": 3}
            heights = np.full(len(values), height)
            axis.plot(values, heights, markersize=3, alpha=0.5, gid=arm, **looks)
            looks |= {"label": look.label, "markersize": 6.5, "markeredgecolor": "black"}
            axis.plot([mean.estimate], [height], gid=f"{arm}:mean", **looks)
    axis.set_yticks(range(len(conditions)), [_two_lines(name) for name in conditions])
    axis.set_ylim(len(conditions) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(_axis_label(xlabel or _readable(measure)))
    _short_ticks(axis.xaxis)
    _legend(figure, axis)
    return figure
