"""Is the network right? What stands beside every property."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdnotes.probes.base import Cast, Measure, Outcome, Property, Recorder, all_answers

if TYPE_CHECKING:
    from kdnotes.data import ImageData

MEASURES = (
    Measure("accuracy", "is right", "", ("ordinary", "teacher=*", "conflict,teacher=*"), True),
)


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Accuracy of every network, and nothing else."""
    members = list(cast.everyone())
    recorder = Recorder(data)
    for member, answers in zip(members, all_answers(members, data), strict=True):
        recorder.add_accuracy(member, answers)
    return recorder.outcome()


PROPERTY = Property("accuracy", "accuracy", measure, MEASURES, rank=1)
