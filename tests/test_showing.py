"""A plan's picture: every arm once, arrows from the right teachers, legible, nothing trained."""

from __future__ import annotations

import subprocess
import sys

import pytest
from asked import NOTEBOOKS, main_plan, study_of
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from kdnotes.study import Plan

PHONE_WIDTH = 350


def of(chapter: str, plan: str = "") -> Plan:
    study = study_of(chapter, preset="smoke")
    return study.plans[plan] if plan else main_plan(study)


def arrows(figure: Figure) -> set[str]:
    return {
        str(each.get_gid())
        for each in figure.axes[0].texts
        if isinstance(each, Annotation) and each.get_gid()
    }


def said(figure: Figure) -> dict[str, str]:
    """What stands beside each arm, its lines joined."""
    found: dict[str, str] = {}
    for text in figure.axes[0].texts:
        arm, colon, _ = str(text.get_gid()).partition(":said")
        if colon:
            found[arm] = f"{found.get(arm, '')} {text.get_text()}".strip()
    return found


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_every_arm_stands_there_once_with_its_teacher(chapter: str) -> None:
    for plan in study_of(chapter, preset="smoke").plans.values():
        figure = plan.show()
        axis = figure.axes[0]
        marks = [str(line.get_gid()) for line in axis.lines if line.get_gid() in plan.arms]
        assert sorted(marks) == sorted(plan.arms)
        teachers = {item.arm: item.spec for item in plan.planned if item.spec.role == "teacher"}
        expected = {
            f"{teacher}>{item.arm}"
            for item in plan.planned
            for teacher, spec in teachers.items()
            if spec in item.spec.parts
            or (item.spec.labels != "smoothed" and spec == item.spec.teacher)
        }
        assert expected <= arrows(figure)
        # What comes from a plan beside it carries that plan's name.
        others = {each.partition(">")[0] for each in arrows(figure) - expected}
        assert others.isdisjoint(teachers)


def test_arrows_lead_from_the_teacher_to_its_students() -> None:
    figure = of("distillation").show()
    taught = {"kl", "hint", "crd", "control-permuted"}
    expected = {f"teacher>{arm}" for arm in taught} | {"second-teacher>control-second-teacher"}
    assert arrows(figure) == expected
    axis = figure.axes[0]
    at = {str(line.get_gid()): (line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines}
    for arrow in axis.texts:
        if isinstance(arrow, Annotation):
            teacher, arm = str(arrow.get_gid()).split(">")
            assert arrow.xyann == pytest.approx((at[teacher][0], at[arm][1]))
            assert arrow.xy == pytest.approx(at[arm], abs=0.1)
            assert at[arm][1] > at[teacher][1]  # below: the axis is turned round


def test_it_says_how_many_and_what_they_are_taught() -> None:
    plan = of("color-invariance")
    found = said(plan.show())
    assert found["independent"] == "Independent (2): labels only"
    assert found["kl"] == "KL (2): 0.1 labels + 0.9 KL (temperature 4)"
    assert found["hint-3"].endswith("(layer 3/3)")
    assert found["teacher"] == "Teacher: labels only, in changing colours"
    assert found["plain-teacher"] == "Plain teacher: labels only"
    assert "no teacher" in found["control-smoothed"]


def test_it_says_what_teachers_and_students_see() -> None:
    texts = [text.get_text() for text in of("localization").show().axes[0].texts]
    assert "Teachers see scenes with two cues (marker agreement 0)" in texts
    assert "Students see scenes with two cues" in texts


def test_mixed_teachers_come_from_both() -> None:
    found = arrows(of("dose").show())
    assert {
        "teacher>teacher-0.25",
        "marker teacher>teacher-0.25",
        "teacher-0.25>mixture-0.25",
    } <= found
    assert "teacher>mixture-0.25" not in found
    assert arrows(of("crop-and-shift-invariance", "exact-flips").show()) == {
        "crops plain-teacher>teacher",
        "teacher>kl",
    }


@pytest.mark.parametrize("chapter", ["distillation", "color-invariance", "dose"])
def test_it_can_be_read_on_a_phone(chapter: str) -> None:
    figure = of(chapter).show()
    figure.canvas.draw()
    for text in figure.findobj(Text):
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1, text.get_text()
            pixels = text.get_size() * figure.dpi / 72
            assert pixels * PHONE_WIDTH / figure.bbox.width >= 9


def test_a_planned_chapter_draws_and_trains_nothing() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from asked import study_of; "
        "study = study_of('distillation', preset='smoke'); "
        "print([name in sys.modules for name in ('torch', 'matplotlib')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[0] == "[False, False]"
