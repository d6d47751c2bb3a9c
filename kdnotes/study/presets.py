"""The presets: how large, how long and how often, and which seeds are for what."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from kdnotes.data import Strict
from kdnotes.errors import RequestError


class Range(NamedTuple):
    """Seeds from first to last, the first teacher's, and that of drawings to train and test on."""

    name: str
    first: int
    last: int
    teacher: int
    drawings: int


RETIRED = Range("retired", 0, 99, 0, 0)  # their results were seen while the book was written
DEVELOPMENT = Range("development", 100, 999, 100, 1)  # on which settings are chosen
PUBLISHED = Range("published", 1000, 999_999, 1000, 2)  # on which results are reported
RANGES = (RETIRED, DEVELOPMENT, PUBLISHED)


def range_of(first: int, count: int = 1) -> Range:
    """The range of so many seeds: in none or two, with two teachers, they raise RequestError."""
    last = first + count - 1
    for each in RANGES:
        if each.first <= first and last <= each.last:
            return each
    known = ", ".join(f"{each.first} to {each.last} ({each.name})" for each in RANGES)
    raise RequestError(f"seeds {first} to {last} do not lie in one range; the ranges are {known}")


class Preset(Strict):
    """Sizes and schedules that a preset stands for.

    Counts are images, None meaning all; epochs None: as many as a world takes. ``students`` and
    ``controls``: networks of each kind; ``teacher_count``: with 2, values are averaged over the
    students of both; ``all_arms``: also those that no primary claim needs and that take long;
    ``independent_epochs``: of students alone, where they differ.
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
    independent_epochs: int | None = Field(default=None, ge=1)
    # Half the batch and twice the rate: on development seeds, with 5000 images, students were right
    # in .81 of the cases after 3 epochs, and in .77 after 5 of batches of 128 at .1.
    batch: int = Field(default=64, ge=1)
    teacher_rate: float = Field(default=0.1, gt=0)
    student_rate: float = Field(default=0.2, gt=0)
    tau: float = Field(default=4.0, gt=0)


PAPER = "paper"  # its sizes are in a file of their own (`paper`), by the pair that is picked
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
