"""Is the network right? What stands beside every property."""

from __future__ import annotations

from kdnotes.probes import base
from kdnotes.probes.base import Cast, ImageData, Measure, Outcome, Property, Recorder

MEASURES = (
    Measure("accuracy", "is right", "", ("ordinary", "teacher=*", "conflict,teacher=*"), True),
    *base.probabilities("", "ordinary", "teacher=*"),
)


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Accuracy of every network, and nothing else."""
    members, recorder = cast.everyone(), Recorder(data)
    sure = [each.softmax(1) for each in base.all_logits(members, data)]
    for member, its in zip(members, sure, strict=True):
        recorder.add_accuracy(member, its.argmax(1))
        recorder.add_probabilities(member, its, sure[0])
    return recorder.outcome()


PROPERTY = Property("accuracy", "accuracy", measure, MEASURES, rank=1)
