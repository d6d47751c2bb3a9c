"""How accurate is a network in domains that only the teacher was trained on?"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from kdnotes import stats
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, BeyondChance, Cast, ImageData, Measure, Outcome, Recorder

ELSEWHERE = ("domain=*,colours=grey", "folder=*")
PAIRS = ("domain=*,against=*", "folder=*", "folder=*,against=*")
MEASURES = (
    Measure("accuracy", "is right in the domain", "domain=*", ELSEWHERE),
    Alike("agreement", "gives the teacher's answer in the domain", "domain=*", PAIRS),
    BeyondChance("kappa", "answers as the teacher does, beyond chance", "domain=*", PAIRS),
    *base.probabilities("domain=*", "folder=*"),
)


def measure(
    cast: Cast,
    domains: Mapping[str, ImageData],
    *,
    grey_arms: Collection[str] = (),
    factor: str = "domain",
) -> Outcome:
    """Accuracy of every network in every domain, and how far it answers as the teacher does.

    Under ``domain=NAME`` (or another ``factor``), and for the arms in ``grey_arms`` under
    ``domain=NAME,colours=grey`` for the same images without their colours, where they have some.
    Raises RequestError when there is no domain, or one without images.
    """
    if not domains:
        raise RequestError("no domain to measure in")
    members, parts = cast.everyone(), []
    likeness = {"agreement": base.share_alike, "kappa": stats.cohen_kappa}
    for name, data in domains.items():
        recorder, condition = Recorder(data), f"{factor}={name}"
        sure = [each.softmax(1) for each in base.all_logits(members, data)]
        answers = [each.argmax(1) for each in sure]
        for member, its, its_sure in zip(members, answers, sure, strict=True):
            recorder.add_accuracy(member, its, condition)
            recorder.add_probabilities(member, its_sure, sure[0], condition)
            if member is not cast.teacher:
                recorder.add(member, "agreement", its == answers[0], its, condition)
                recorder.add_value(member, "kappa", stats.cohen_kappa(its, answers[0]), condition)
        greyed = [member for member in members if member.arm in grey_arms]
        if greyed and _has_colour(data, base.device_of(cast.teacher.network)):
            for member, its in zip(greyed, base.all_answers(greyed, data, grey), strict=True):
                recorder.add_accuracy(member, its, f"{condition},colours=grey")
        recorder.add_pairs(members, answers, likeness, condition)
        parts.append(recorder.outcome())
    return Outcome.combine(parts)


def by_folder(data: ImageData, folders: Sequence[str]) -> dict[str, ImageData]:
    """The images of each domain folder by its name, in the order of folders.

    A comma and an equals sign, which would break a condition in two, become spaces.
    """
    numbers = {name: data.names["domain"].index(name) for name in folders}
    return {
        re.sub("[,=]", " ", name): data.subset((data.factors["domain"] == number).argwhere()[:, 0])
        for name, number in numbers.items()
    }


def grey(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) with the mean of the three channels in each: their part in R = G = B."""
    without = images.mean(1, keepdim=True).expand_as(images)
    return without.contiguous(memory_format=torch.channels_last)


def _has_colour(data: ImageData, device: torch.device) -> bool:
    shown = base.batches(data, device)
    return any(not torch.allclose(grey(images), images, atol=1e-6) for _, images in shown)


PROPERTY = base.Property(
    "domain_accuracy", "domain adaptation", measure, MEASURES, rank=9, needs=("domains",)
)
