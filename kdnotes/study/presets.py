"""The presets: how large, how long and how often, from a test run to a cluster."""

from __future__ import annotations

from pydantic import Field

from kdnotes.data import Strict
from kdnotes.study.seeds import DEVELOPMENT, PUBLISHED

# Its sizes are in a file of their own (`paper`), and depend on the pair that is picked.
PAPER = "paper"


class Preset(Strict):
    """Sizes and schedules that a preset stands for.

    Counts are images, None meaning all there are; batches and epochs are those of the recipe, None
    meaning as many as a world takes (`worlds.LENGTHS`). ``students`` and ``controls``: networks of
    each kind; ``teacher_count``: with 2, values are averaged over the students of both teachers;
    ``first_seed``: of the students. ``all_arms``: whether arms are trained that no
    primary claim needs and that take long.
    """

    teacher: str = "vgg-medium"
    student: str = "vgg-small"
    students: int = Field(default=5, ge=1)
    controls: int = Field(default=3, ge=1)
    teacher_count: int = Field(default=1, ge=1, le=2)
    train_count: int | None = Field(default=4000, ge=1)
    test_count: int | None = Field(default=2000, ge=1)
    first_seed: int = Field(default=PUBLISHED.first, ge=0)
    all_arms: bool = True
    teacher_epochs: int | None = Field(default=None, ge=1)
    student_epochs: int | None = Field(default=None, ge=1)
    # Of students without a teacher, where they differ.
    independent_epochs: int | None = Field(default=None, ge=1)
    # Half the batch and twice the rate: on development seeds, with 5000 images, students were right
    # in .81 of the cases after 3 epochs, and in .77 after 5 of batches of 128 at .1.
    batch: int = Field(default=64, ge=1)
    teacher_rate: float = Field(default=0.1, gt=0)
    student_rate: float = Field(default=0.2, gt=0)
    tau: float = Field(default=4.0, gt=0)


PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        students=2,
        controls=1,
        train_count=600,
        test_count=240,
        first_seed=DEVELOPMENT.first,  # it says nothing about the question
        teacher_epochs=2,
        student_epochs=2,
    ),
    "laptop": Preset(controls=2, all_arms=False),
    "published": Preset(students=10, controls=2, teacher_count=2),
}


def names() -> tuple[str, ...]:
    """The names of all presets."""
    return (*PRESETS, PAPER)
