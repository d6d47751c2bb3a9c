"""Whom does a network serve worse? Accuracy in each group of images, and what one group lacks.

The group of an image is a factor of the data: a drawing style, the camera it was taken with, or
whatever a table says. One group is singled out beforehand, such as one that the teacher never saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdnotes import stats
from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.forward import BATCH_SIZE, batches, device_of, logits_of, record_accuracy
from kdnotes.probes.outcome import Outcome, Recorder

FACTOR = "group"


def measure(
    cast: Cast,
    data: ImageData,
    *,
    unseen: int | None = None,
    names: Sequence[str] | None = None,
    within: str = "",
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Accuracy of every network, and the students' agreement with the teacher, group by group.

    unseen: number of the group singled out; by default that of `neglected_group`. names: of the
    groups, by number (by default the numbers). within: put before every condition, such as
    ``cast=fair`` (without it, what follows stands alone). Images with a negative group belong to
    none and count for ``accuracy`` (no condition) only. Conditions: ``group=NAME``; ``side=unseen``
    for the group singled out; ``side=others`` for the mean over all other groups, each counting
    alike. Measures:

    - ``accuracy``, also without a condition (over all images as they come).
    - ``deficit`` (no condition): accuracy of the others less that of the group singled out; 0 is
      even, above 0 the group is served worse.
    - ``mean_accuracy`` (no condition): over groups, each counting alike.
    - ``worst_group``, ``spread`` (no condition, table only): accuracy of the worst group; of the
      best less that of the worst. With few images a group the first is too low by chance and the
      second too high, for every network.
    - of all but the teacher: ``agreement`` with it, ``kappa`` (table only), and
      ``agreement_on_teacher_errors``: is the answer to an image that the teacher gets wrong the
      teacher's own wrong answer?

    Items of means over groups are linearised: their mean is the value itself, and resampling them
    gives the variance that resampling the groups would (the delta method).

    Raises RequestError when there are fewer than two groups with images, or the group singled out
    has none.
    """
    members = list(cast.everyone())
    answers = _answers(members, data, batch_size)
    groups = _Groups.of(data, names)
    if unseen is None:
        unseen = groups.most_neglected(cast, dict(zip(map(id, members), answers, strict=True)))
    groups.check(unseen)
    recorder = Recorder(data)
    for member, its_answers in zip(members, answers, strict=True):
        if not within:
            record_accuracy(recorder, member, its_answers)
        else:
            right = its_answers == data.labels
            recorder.add(member, "accuracy", right, its_answers, within)
        _record_accuracies(recorder, groups, unseen, member, its_answers, within)
        if member is not cast.teacher:
            _record_agreement(recorder, groups, unseen, member, its_answers, answers[0], within)
    return recorder.outcome()


def groups_in(data: ImageData) -> list[int]:
    """Numbers of the groups that have images, in order; none where the data knows no groups."""
    if FACTOR not in data.factors:
        return []
    return [int(group) for group in data.factors[FACTOR].unique() if group >= 0]


def neglected_group(cast: Cast, data: ImageData, batch_size: int = BATCH_SIZE) -> int:
    """The group in which the teacher is furthest behind the independent students.

    Without independent students, the one in which its accuracy is lowest. Where it is measured on
    the same images, the teacher's lag there is overestimated, and the independent students' luck
    makes every other arm look worse than them: compare with the controls. Raises RequestError when
    there are fewer than two groups with images.
    """
    members = [cast.teacher, *cast.arm("independent")]
    answers = _answers(members, data, batch_size)
    by_member = dict(zip(map(id, members), answers, strict=True))
    return _Groups.of(data, None).most_neglected(cast, by_member)


@dataclass(frozen=True)
class _Groups:
    """Which images belong to which group: places by group number, and the groups' names."""

    places: Mapping[int, NDArray[np.int64]]
    names: Mapping[int, str]
    labels: Tensor

    @staticmethod
    def of(data: ImageData, names: Sequence[str] | None) -> _Groups:
        present = groups_in(data)
        if len(present) < 2:
            raise RequestError(
                "the images have no two groups to compare; groups are the factor 'group' of a "
                f"data set, and here there {'is one' if present else 'are none'}"
            )
        if names is not None and len(names) <= present[-1]:
            raise RequestError(f"{len(names)} names of groups, but there is a group {present[-1]}")
        called = {group: names[group] if names else str(group) for group in present}
        # a comma and an equals sign would break a condition in two
        called = {group: re.sub("[,=]", " ", name) for group, name in called.items()}
        of_image = np.asarray(data.factors[FACTOR])
        places = {group: np.flatnonzero(of_image == group) for group in present}
        return _Groups(places, called, data.labels)

    def check(self, group: int) -> None:
        """Raise RequestError unless the group has images."""
        if group not in self.places:
            known = ", ".join(map(str, self.places))
            raise RequestError(f"group {group} has no images; groups with images: {known}")

    def accuracies(self, answers: Tensor) -> dict[int, float]:
        """Accuracy by group number."""
        right = np.asarray(answers == self.labels)
        return {group: float(right[places].mean()) for group, places in self.places.items()}

    def most_neglected(self, cast: Cast, answers: Mapping[int, Tensor]) -> int:
        """See `neglected_group`; answers (N,) by the members' identity."""
        teachers = self.accuracies(answers[id(cast.teacher)])
        alone = [self.accuracies(answers[id(each)]) for each in cast.arm("independent")]
        expected = {group: np.mean([each[group] for each in alone] or [0.0]) for group in teachers}
        return min(teachers, key=lambda group: teachers[group] - expected[group])

    def linearised(
        self, values: NDArray, weights: Mapping[int, float]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """A weighted sum of groups' means as one value per image, and the places of these images.

        values (N,); groups without a weight are left out. The mean of the result is the sum of
        weights times means; each image's distance from it is its influence on it.
        """
        total = sum(weight * values[self.places[group]].mean() for group, weight in weights.items())
        count = sum(len(self.places[group]) for group in weights)
        parts = [
            total
            + weight
            * count
            / len(self.places[group])
            * (values[self.places[group]] - values[self.places[group]].mean())
            for group, weight in weights.items()
        ]
        where = np.concatenate([self.places[group] for group in weights])
        order = np.argsort(where, kind="stable")
        return np.concatenate(parts)[order], where[order]

    def evenly(self, groups: Sequence[int]) -> dict[int, float]:
        """Weights of a mean over groups in which each counts alike."""
        return dict.fromkeys(groups, 1 / len(groups))


def _answers(members: Sequence[Member], data: ImageData, batch_size: int) -> list[Tensor]:
    """Answers (N,) of every network to every image, on the CPU."""
    parts: list[list[Tensor]] = [[] for _ in members]
    for _, images in batches(data, device_of(members[0].network), batch_size):
        for member, part in zip(members, parts, strict=True):
            part.append(logits_of(member.network, images).argmax(1))
    return [torch.cat(part) for part in parts]


def _under(within: str, condition: str) -> str:
    return ",".join(part for part in (within, condition) if part)


def _record_accuracies(
    recorder: Recorder, groups: _Groups, unseen: int, member: Member, answers: Tensor, within: str
) -> None:
    right = np.asarray(answers == groups.labels, np.float64)
    given = np.asarray(answers)
    others = [group for group in groups.places if group != unseen]
    by_group = groups.accuracies(answers)
    for group, places in groups.places.items():
        condition = _under(within, f"group={groups.names[group]}")
        recorder.add(member, "accuracy", right[places], given[places], condition, places)
    of_others = groups.evenly(others)
    against = {**of_others, unseen: -1.0}
    for measure_name, condition, weights in (
        ("accuracy", "side=unseen", {unseen: 1.0}),
        ("accuracy", "side=others", of_others),
        ("deficit", "", against),
        ("mean_accuracy", "", groups.evenly(list(groups.places))),
    ):
        values, places = groups.linearised(right, weights)
        where = _under(within, condition)
        recorder.add(member, measure_name, values, given[places], where, places)
    best, worst = max(by_group.values()), min(by_group.values())
    recorder.add_summary(member.arm, member.seed, "worst_group", worst, within)
    recorder.add_summary(member.arm, member.seed, "spread", best - worst, within)


def _record_agreement(
    recorder: Recorder,
    groups: _Groups,
    unseen: int,
    member: Member,
    answers: Tensor,
    teachers: Tensor,
    within: str,
) -> None:
    given, taught = np.asarray(answers), np.asarray(teachers)
    same = (given == taught).astype(np.float64)
    wrong = np.asarray(teachers != groups.labels)
    for group, places in groups.places.items():
        names = [f"group={groups.names[group]}"]
        if group == unseen:
            names.append("side=unseen")
        mistakes = places[wrong[places]]
        beyond_chance = stats.cohen_kappa(given[places], taught[places])
        for name in names:
            where, keep = _under(within, name), name == "side=unseen"
            recorder.add(member, "agreement", same[places], given[places], where, places, keep)
            recorder.add_summary(member.arm, member.seed, "kappa", beyond_chance, where)
            recorder.add(
                member,
                "agreement_on_teacher_errors",
                same[mistakes],
                given[mistakes],
                where,
                mistakes,
                keep,
            )
    others = groups.evenly([group for group in groups.places if group != unseen])
    values, places = groups.linearised(same, others)
    where = _under(within, "side=others")
    recorder.add(member, "agreement", values, given[places], where, places)
