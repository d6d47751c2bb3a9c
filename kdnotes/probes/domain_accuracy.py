"""How accurate is a network in domains that only the teacher was trained on?

Each domain is read once for all networks. A domain with colours can be shown a second time without
them, which tells a network's trouble with colour from its trouble with brightness.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from kdnotes import stats
from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.fidelity import pairs_of_independents
from kdnotes.probes.forward import BATCH_SIZE, batches, device_of, logits_of
from kdnotes.probes.outcome import Outcome, Recorder


def measure(
    cast: Cast,
    domains: Mapping[str, ImageData],
    *,
    grey_arms: Collection[str] = (),
    factor: str = "domain",
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Accuracy of every network in every domain, and how far it answers as the teacher does.

    Conditions: ``domain=NAME``, and ``domain=NAME,colours=grey`` for the same images with their
    colours taken out (`grey`): for the arms in ``grey_arms`` only, and not where the images of a
    domain are grey as they are; another ``factor`` takes the place of the word ``domain``.
    Measures, per image:

    - ``accuracy``.
    - ``agreement``: is the answer the teacher's? For all networks but the teacher; in the domains
      as they are.

    In the table only: ``kappa`` of the answers with the teacher's (1 for twins, 0 for chance at the
    same accuracies), and ``agreement`` and ``kappa`` of each pair of independent students, under
    ``domain=NAME,against=SEED`` and the lower of the two seeds: the spread by chance.

    Raises RequestError when there is no domain, or one without images.
    """
    if not domains:
        raise RequestError("no domain to measure in")
    members = list(cast.everyone())
    parts = []
    for name, data in domains.items():
        recorder = Recorder(data)
        plain, greyed = _answers(members, data, grey_arms, batch_size)
        condition = f"{factor}={name}"
        for number, member in enumerate(members):
            recorder.add(member, "accuracy", plain[number] == data.labels, plain[number], condition)
            if number:
                _compare(recorder, member, plain[number], plain[0], condition)
            if number in greyed:
                right = greyed[number] == data.labels
                recorder.add(member, "accuracy", right, greyed[number], f"{condition},colours=grey")
        _pairs_of_independents(recorder, members, plain, condition)
        parts.append(recorder.outcome())
    return Outcome.combine(parts)


def by_folder(data: ImageData, folders: Sequence[str]) -> dict[str, ImageData]:
    """The images of each domain folder (factor ``domain``) by its name, in the order of folders.

    A comma and an equals sign, which would break a condition in two, become spaces.
    """
    known = data.names["domain"]
    return {
        re.sub("[,=]", " ", name): data.subset(
            (data.factors["domain"] == known.index(name)).nonzero().flatten()
        )
        for name in folders
    }


def grey(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with the mean of the three channels in each: their part in R = G = B."""
    return images.mean(1, keepdim=True).expand_as(images)


def _answers(
    members: list[Member], data: ImageData, grey_arms: Collection[str], batch_size: int
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Answers (N,) of every network, and of some of them to the images in grey."""
    plain: list[list[Tensor]] = [[] for _ in members]
    greyed: dict[int, list[Tensor]] = defaultdict(list)
    coloured = False
    for _, images in batches(data, device_of(members[0].network), batch_size):
        without = grey(images).contiguous(memory_format=torch.channels_last)
        coloured = coloured or not torch.allclose(without, images, atol=1e-6)
        for number, member in enumerate(members):
            plain[number].append(logits_of(member.network, images).argmax(1))
            if coloured and member.arm in grey_arms:
                greyed[number].append(logits_of(member.network, without).argmax(1))
    count = len(data)
    joined = {number: torch.cat(part) for number, part in greyed.items()}
    # Leading batches without colour were not shown again: grey or not, the answers are the same.
    for number, answers in joined.items():
        first = torch.cat(plain[number])[: count - len(answers)]
        joined[number] = torch.cat([first, answers])
    return [torch.cat(part) for part in plain], joined


def _compare(
    recorder: Recorder, member: Member, answers: Tensor, teachers: Tensor, condition: str
) -> None:
    recorder.add(member, "agreement", answers == teachers, answers, condition)
    kappa = stats.cohen_kappa(answers, teachers)
    recorder.add_summary(member.arm, member.seed, "kappa", kappa, condition)


def _pairs_of_independents(
    recorder: Recorder, members: list[Member], answers: list[Tensor], condition: str
) -> None:
    for first, its, second, others in pairs_of_independents(members, answers):
        where = f"{condition},against={second.seed}"
        same = float((its == others).double().mean())
        recorder.add_summary(first.arm, first.seed, "agreement", same, where)
        recorder.add_summary(first.arm, first.seed, "kappa", stats.cohen_kappa(its, others), where)
