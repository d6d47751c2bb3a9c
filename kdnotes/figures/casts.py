"""Who teaches whom: the networks of a cast, a row for each kind, with arrows from its teachers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnotes.figures import drawing, looks

_LANE = 0.3  # inches between the lines that go down from the teachers
_LINE = 0.2  # inches from one line of text to the next
_LETTERS = 13  # of text, in an inch


@dataclass(frozen=True)
class Kind:
    """``count`` networks of one arm, how they are taught, and by which arms (none: by nobody)."""

    arm: str
    count: int
    how: str
    teachers: tuple[str, ...] = ()


@drawing.styled
def taught(
    teachers: Sequence[Kind], students: Sequence[Kind], teachers_see: str, students_see: str
) -> Figure:
    """Teachers above, students below, a row for each kind, in the colour and line of its arm.

    A line goes down from each teacher, and arrows lead from it to those whom it teaches.
    ``teachers_see`` and ``students_see`` say what either are trained on.
    """
    figure, (axis,) = drawing.subplots(1)
    lanes = {kind.arm: number * _LANE for number, kind in enumerate(teachers, start=1)}
    students_at = (len(lanes) + 1) * _LANE
    rows: dict[str, float] = {}
    depth = _LINE
    for head, kinds in ((teachers_see, teachers), (students_see, students)):
        depth = _write(axis, 0.1, depth, head, weight="bold", backgroundcolor="white", zorder=2.5)
        for kind in kinds:
            rows[kind.arm] = depth
            many = f" ({kind.count})" if kind.count > 1 else ""
            said = f"{looks.of(kind.arm).short}{many}: {kind.how}"
            depth = _write(axis, students_at + 0.2, depth, said, gid=f"{kind.arm}:said")
        depth += 0.5 * _LINE
    for teacher, lane in lanes.items():
        pupils = [kind for kind in (*teachers, *students) if teacher in kind.teachers]
        reach = max([rows[teacher], *(rows[kind.arm] for kind in pupils)])
        axis.plot([lane, lane], [rows[teacher], reach], color=looks.of(teacher).colour, lw=1.2)
        for kind in pupils:
            row, look = rows[kind.arm], looks.of(kind.arm)
            arrow = {"arrowstyle": "-|>", "color": look.colour, "ls": look.line, "lw": 1.4}
            ends = (lanes.get(kind.arm, students_at) - 0.06, row), (lane, row)
            axis.annotate("", *ends, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
            axis.texts[-1].set_gid(f"{teacher}>{kind.arm}")
            axis.plot(lane, row, ".", color=looks.of(teacher).colour, markersize=7)
    for arm, row in rows.items():
        mark = drawing.ink(looks.of(arm), markersize=9, markeredgecolor="black", gid=arm)
        axis.plot(lanes.get(arm, students_at), row, zorder=3, **mark)
    figure.set_layout_engine("none")
    figure.set_figheight(depth)
    axis.set(position=(0, 0, 1, 1), xlim=(0, drawing.WIDTH), ylim=(depth, 0))
    axis.set_axis_off()
    return figure


def _write(axis: Axes, left: float, depth: float, text: str, **options: Any) -> float:
    """Text in as many lines as it needs, the first one centred at a depth; the depth after it."""
    lines = textwrap.wrap(text, int((drawing.WIDTH - left) * _LETTERS))
    for number, line in enumerate(lines):
        place = (left, depth + number * _LINE)
        axis.text(*place, line, va="center", size=drawing.SMALL_FONT_SIZE, **options)
    return depth + (len(lines) + 0.35) * _LINE
