"""A plan as a picture: who teaches whom, and on which images.

Teachers stand above students, a row for each arm in its colour and line; a line goes down from each
teacher, and arrows lead from it to those whom it teaches.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnotes.figures import drawing, looks

if TYPE_CHECKING:
    from kdnotes.study.plans import Plan
    from kdnotes.training.specification import NetworkSpec

_LANE = 0.3  # inches between the lines that go down from the teachers
_LINE = 0.2  # inches from one line of text to the next
_LETTERS = 13  # of text, in an inch


class _Row(NamedTuple):
    arm: str
    said: str
    teachers: tuple[str, ...]


def picture(plan: Plan) -> Figure:
    """The arms of a plan, teachers above students, with arrows from whom they are taught by."""
    firsts, numbers = plan.firsts, Counter(item.arm for item in plan.planned)
    own = {arm: spec for arm, spec in firsts.items() if spec.role == "teacher"}
    parts = [part for spec in own.values() for part in spec.parts if part not in own.values()]
    elsewhere = {
        f"{other.name} {item.arm}": item.spec  # whose outputs a teacher of this plan is made of
        for other in plan.study.plans.values()
        for item in other.planned
        if item.spec in parts
    }
    usual = {spec.role: spec for spec in reversed(firsts.values())}
    rows: dict[str, list[_Row]] = {"teacher": [], "student": []}
    for arm, spec in (elsewhere | firsts).items():
        whose = (*spec.parts, *([spec.teacher] if spec.labels != "smoothed" else []))
        by = tuple(name for name, each in (elsewhere | own).items() if each in whose)
        many = f" ({numbers[arm]})" if numbers[arm] > 1 else ""
        how = ", ".join([_taught(spec), *_unlike(spec, usual[spec.role])])
        rows[spec.role].append(_Row(arm, f"{looks.of(arm).short}{many}: {how}", by))
    heads = {
        role: f"{role.capitalize()}s see {plan.world.label}"
        + _options(plan.world.options(role), plan.world.options(other))
        for role, other in (("teacher", "student"), ("student", "teacher"))
    }
    return _drawn(rows, heads)


def describe(spec: NetworkSpec) -> str:
    """What a network is trained on in a line, for tables."""
    if spec.method is None:
        return "labels only"
    kind = {"teacher": "", "smoothed": "no teacher", "permuted": "permuted in class"}
    return spec.method.describe(kind[spec.labels])


def _taught(spec: NetworkSpec) -> str:
    if spec.parts:
        return "mean with its mirror image" if spec.mirrored else "mean of the logits"
    seen = {
        "in changing colours": spec.recipe.jitter,
        "cropped": spec.recipe.crops,
        "mirrored at random": spec.recipe.views.flip and spec.role == "teacher",
    }
    return ", ".join([describe(spec), *(how for how, is_so in seen.items() if is_so)])


def _unlike(spec: NetworkSpec, usual: NetworkSpec) -> list[str]:
    """How else a network differs from the first of its role."""
    if spec.parts or usual.parts:
        return []
    differs = {
        spec.model: spec.model != usual.model,
        f"{spec.data.count} images": spec.data.count != usual.data.count,
        f"epochs: {spec.recipe.epochs}": spec.recipe.epochs != usual.recipe.epochs,
        "the teacher's start": spec.start_seed is not None,
    }
    return [said for said, is_so in differs.items() if is_so]


def _options(these: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The options of images that are not those of the others, in brackets."""
    said = []
    for name, value in these.items():
        if others.get(name) != value:
            values = value if isinstance(value, tuple | list) else (value,)
            texts = (f"{each:g}" if isinstance(each, float) else str(each) for each in values)
            said.append(f"{name.replace('_', ' ')} {', '.join(texts)}")
    return f" ({'; '.join(said)})" if said else ""


@drawing.styled
def _drawn(rows: Mapping[str, list[_Row]], heads: Mapping[str, str]) -> Figure:
    figure, (axis,) = drawing.subplots(1)
    lanes = {row.arm: number * _LANE for number, row in enumerate(rows["teacher"], start=1)}
    students_at = (len(lanes) + 1) * _LANE
    depths: dict[str, float] = {}
    depth = _LINE
    for role, head in heads.items():
        depth = _write(axis, 0.1, depth, head, weight="bold", backgroundcolor="white", zorder=2.5)
        for row in rows[role]:
            depths[row.arm] = depth
            depth = _write(axis, students_at + 0.2, depth, row.said, gid=f"{row.arm}:said")
        depth += 0.5 * _LINE
    for teacher, lane in lanes.items():
        colour, top = looks.colour(teacher), depths[teacher]
        pupils = [row.arm for both in rows.values() for row in both if teacher in row.teachers]
        reach = max([top, *(depths[arm] for arm in pupils)])
        axis.plot([lane, lane], [top, reach], color=colour, lw=1.2)
        for arm in pupils:
            at, look = depths[arm], looks.of(arm)
            arrow = {"arrowstyle": "-|>", "color": look.colour, "ls": look.line, "lw": 1.4}
            ends = (lanes.get(arm, students_at) - 0.06, at), (lane, at)
            axis.annotate("", *ends, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
            axis.texts[-1].set_gid(f"{teacher}>{arm}")
            axis.plot(lane, at, ".", color=colour, markersize=7)
    for arm, at in depths.items():
        mark = drawing.ink(looks.of(arm), markersize=9, markeredgecolor="black", gid=arm)
        axis.plot(lanes.get(arm, students_at), at, zorder=3, **mark)
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
