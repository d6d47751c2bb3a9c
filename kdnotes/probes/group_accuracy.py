"""Whom does a network serve worse? Accuracy in each group of images, and what one group lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kdnotes import stats
from kdnotes.errors import RequestError
from kdnotes.probes import base
from kdnotes.probes.base import Alike, BeyondChance, Cast, ImageData, Measure, Outcome, Recorder

FACTOR = "group"
UNSEEN, OTHERS = "side=unseen", "side=others"
GROUPS = ("group=*", OTHERS)
MEASURES = (
    Measure("accuracy", "is right about the group singled out", UNSEEN, GROUPS),
    base.Difference("deficit", "serves the group singled out worse"),
    Measure("mean_accuracy", "is right, each group counting alike"),
    Measure("worst_group", "is right about the group it serves worst"),
    base.Difference("spread", "serves its best group better than its worst", low=0.0),
    Alike("agreement", "gives the teacher's answer about the group", UNSEEN, GROUPS),
    BeyondChance("kappa", "answers as the teacher does, beyond chance", UNSEEN, ("group=*",)),
    Alike("agreement_on_teacher_errors", "repeats the teacher's mistakes", UNSEEN, ("group=*",)),
    *base.PROBABILITIES,
)

_Places = Mapping[int, NDArray[np.int64]]  # of a group's images, by its number


def measure(cast: Cast, data: ImageData, *, unseen: int, names: Sequence[str]) -> Outcome:
    """Accuracy of every network, and the students' agreement with the teacher, group by group.

    unseen: number of the group singled out, such as one that the teacher never saw; names: of the
    groups, by number. Images with a negative group count for ``accuracy`` (no condition) only.
    ``side=others`` is the mean over the other groups, each counting alike; ``deficit`` is theirs
    less that of the group singled out. With few images, ``worst_group`` is too low by chance and
    ``spread`` too high.

    Items of means over groups are linearised: their mean is the value itself, and resampling them
    gives the variance that resampling the groups would (the delta method). Raises RequestError for
    fewer than two groups with images, a group without a name, or no image in the one singled out.
    """
    places, labels = _places_by_group(data), data.labels.numpy()
    if len(names) <= max(places):
        raise RequestError(f"{len(names)} names of groups, but there is a group {max(places)}")
    if unseen not in places:
        known = ", ".join(map(str, places))
        raise RequestError(f"group {unseen} has no images; groups with images: {known}")
    # a comma and an equals sign would break a condition in two
    groups = [(f"group={re.sub('[,=]', ' ', names[group])}", its) for group, its in places.items()]
    others = _evenly([group for group in places if group != unseen])
    means = (
        ("accuracy", UNSEEN, {unseen: 1.0}),
        ("accuracy", OTHERS, others),
        ("deficit", "", others | {unseen: -1.0}),
        ("mean_accuracy", "", _evenly(list(places))),
    )
    members, recorder = cast.everyone(), Recorder(data)
    sure = [each.softmax(1) for each in base.all_logits(members, data)]
    answers = [each.argmax(1).numpy() for each in sure]
    wrong = answers[0] != labels
    for member, given, its in zip(members, answers, sure, strict=True):
        right = (given == labels).astype(np.float64)
        recorder.add(member, "accuracy", right, given)
        recorder.add_probabilities(member, its, sure[0])
        for condition, where in groups:
            recorder.add(member, "accuracy", right[where], given[where], condition, where)
        for name, condition, weights in means:
            values, where = _linearised(right, places, weights)
            recorder.add(member, name, values, given[where], condition, where)
        by_group = [float(right[where].mean()) for _, where in groups]
        recorder.add_value(member, "worst_group", min(by_group))
        recorder.add_value(member, "spread", max(by_group) - min(by_group))
        if member is cast.teacher:
            continue
        same = (given == answers[0]).astype(np.float64)
        for condition, where in (*groups, (UNSEEN, places[unseen])):
            kappa = stats.cohen_kappa(given[where], answers[0][where])
            recorder.add_value(member, "kappa", kappa, condition)
            mistakes, keep = where[wrong[where]], condition == UNSEEN
            for name, at in (("agreement", where), ("agreement_on_teacher_errors", mistakes)):
                recorder.add(member, name, same[at], given[at], condition, at, keep)
        values, where = _linearised(same, places, others)
        recorder.add(member, "agreement", values, given[where], OTHERS, where)
    return recorder.outcome()


def groups_in(data: ImageData) -> list[int]:
    """Numbers of the groups that have images, in order; none where the data knows no groups."""
    if FACTOR not in data.factors:
        return []
    return [int(group) for group in data.factors[FACTOR].unique() if group >= 0]


def neglected_group(cast: Cast, data: ImageData) -> int:
    """The group in which the teacher is furthest behind the independent students, or least right.

    Measured on the same images, its lag there is overestimated, and the independent students' luck
    makes every other arm look worse than them: compare with the controls.
    """
    places = _places_by_group(data)
    answers = base.all_answers([cast.teacher, *cast.arm("independent")], data)
    right = [(its == data.labels).numpy() for its in answers]

    def lag(group: int) -> float:
        taught, *alone = (float(each[places[group]].mean()) for each in right)
        return taught - float(np.mean(alone or [0.0]))

    return min(places, key=lag)


def _places_by_group(data: ImageData) -> _Places:
    present = groups_in(data)
    if len(present) < 2:
        raise RequestError(
            "the images have no two groups to compare; groups are the factor 'group' of a "
            f"data set, and here there {'is one' if present else 'are none'}"
        )
    of_image = np.asarray(data.factors[FACTOR])
    return {group: np.flatnonzero(of_image == group) for group in present}


def _linearised(
    values: NDArray, places: _Places, weights: Mapping[int, float]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A weighted sum of groups' means as one value per image, and the places of these images.

    The mean of the result is that sum; each image's distance from it is its influence on it.
    """
    total = sum(weight * values[places[group]].mean() for group, weight in weights.items())
    where = np.concatenate([places[group] for group in weights])
    parts = []
    for group, weight in weights.items():
        mine = values[places[group]]
        parts.append(total + weight * len(where) / len(mine) * (mine - mine.mean()))
    order = np.argsort(where, kind="stable")
    return np.concatenate(parts)[order], where[order]


def _evenly(groups: Sequence[int]) -> dict[int, float]:
    """Weights of a mean over groups in which each counts alike."""
    return dict.fromkeys(groups, 1 / len(groups))


PROPERTY = base.Property("group_accuracy", "bias", measure, MEASURES, rank=12, needs=("groups",))
