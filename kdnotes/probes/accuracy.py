"""Is the network right? What stands beside every property."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdnotes.probes.base import (
    Cast,
    Measure,
    Outcome,
    Property,
    Recorder,
    all_logits,
    probabilities,
)

if TYPE_CHECKING:
    from kdnotes.data import ImageData

MEASURES = (
    Measure("accuracy", "is right", "", ("ordinary", "teacher=*", "conflict,teacher=*"), True),
    *probabilities("", "ordinary", "teacher=*"),
)


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Accuracy of every network, and nothing else."""
    members = list(cast.everyone())
    recorder = Recorder(data)
    sure = [each.softmax(1) for each in all_logits(members, data)]
    for member, its in zip(members, sure, strict=True):
        recorder.add_accuracy(member, its.argmax(1))
        recorder.add_probabilities(member, its, sure[0])
    return recorder.outcome()


PROPERTY = Property("accuracy", "accuracy", measure, MEASURES, rank=1)
