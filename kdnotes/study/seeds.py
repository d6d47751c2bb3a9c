"""Seeds: which are for trying things out, and which for results, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from kdnotes.errors import RequestError


@dataclass(frozen=True)
class Range:
    """A range of seeds, ends included, with the teacher and the test drawings that belong to it.

    ``teacher``: seed of the first teacher; ``drawings``: of what is drawn for training and testing.
    """

    name: str
    first: int
    last: int
    teacher: int
    drawings: int


RANGES = (
    Range("retired", 0, 99, 0, 0),  # results on them have been seen while the book was written
    Range("development", 100, 999, 100, 1),  # on which settings are chosen
    Range("published", 1000, 999_999, 1000, 2),  # on which results are reported
)
DEVELOPMENT, PUBLISHED = RANGES[1], RANGES[2]


def range_of(first: int, count: int = 1) -> Range:
    """The range that so many seeds from the first one on lie in.

    Raises RequestError where they lie in none, or in two: their teachers would not be the same.
    """
    for each in RANGES:
        if each.first <= first and first + count - 1 <= each.last:
            return each
    known = ", ".join(f"{each.first} to {each.last} ({each.name})" for each in RANGES)
    raise RequestError(
        f"seeds {first} to {first + count - 1} do not lie in one range; the ranges are {known}"
    )
