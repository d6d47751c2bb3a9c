"""Which networks a chapter compares, as data: worlds, arms, plans of casts, presets."""

from kdnotes.study import arms
from kdnotes.study.arms import Arm
from kdnotes.study.plans import Plan
from kdnotes.study.study import ALL_SCENES, Study, World

__all__ = ["ALL_SCENES", "Arm", "Plan", "Study", "World", "arms"]
