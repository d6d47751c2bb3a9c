"""Do teacher and student answer alike where neither was trained: on sketches, silhouettes, edges?

Each image is drawn anew in five ways (`kdnotes.data.renderings`), once for all networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdnotes import stats
from kdnotes.data import ImageData
from kdnotes.data.renderings import DOMAINS, Draws, draw, render
from kdnotes.data.views import to_float
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.fidelity import pairs_of_independents
from kdnotes.probes.forward import BATCH_SIZE, device_of, logits_of, record_accuracy
from kdnotes.probes.outcome import Outcome, Recorder

SEEN, UNSEEN = "domain=seen", "domain=unseen"


def measure(
    cast: Cast,
    data: ImageData,
    *,
    ground: str = "own",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Answers of every network in the seen domain and in five renderings of the same images.

    Conditions: ``domain=seen``, ``domain=sketch``, ``stylised``, ``silhouette``, ``edge`` and
    ``cue-conflict``, and ``domain=unseen``, the mean over the five. Silhouettes are of the mask
    ``digit`` where the data have one; ``ground`` is that of `renderings.render`. The second
    teacher is compared as the students are.

    - ``consensus``, per image: is the answer the teacher's, right or wrong?
    - ``extra_consensus`` (no condition), per image: consensus on the unseen domains less that on
      the seen one.
    - ``accuracy``, of all networks (also without a condition: on the seen domain).
    - table only: ``kappa`` (of answers), ``error_consistency`` (of being right),
      ``consensus_on_teacher_errors``; NaN where undefined, which a mean over domains leaves out.
    - for each pair of independent students, under ``domain=D,against=SEED`` and the lower of the
      two seeds: ``consensus`` and ``kappa``, the spread by chance.
    """
    members = list(cast.everyone())
    answers: dict[str, list[Tensor]] = {}
    parts: dict[tuple[str, int], list[Tensor]] = {}
    for domain, images in _drawn(cast, data, ground, seed, batch_size):
        for number, member in enumerate(members):
            found = logits_of(member.network, images).argmax(1)
            parts.setdefault((domain, number), []).append(found)
    for domain in ("seen", *DOMAINS):
        answers[domain] = [torch.cat(parts[domain, number]) for number in range(len(members))]
    recorder = Recorder(data)
    for number, member in enumerate(members):
        _record_accuracies(recorder, member, {name: each[number] for name, each in answers.items()})
    for number, member in enumerate(members[1:], start=1):
        pairs = {name: (each[0], each[number]) for name, each in answers.items()}
        _record_likeness(recorder, member, pairs)
    for one, first, other, second in pairs_of_independents(members, range(len(members))):
        pairs = {name: (each[first], each[second]) for name, each in answers.items()}
        _record_pair(recorder, one, other.seed, pairs)
    return recorder.outcome()


def renderings_of(
    data: ImageData, places: Tensor, draws: Draws, ground: str = "own"
) -> dict[str, Tensor]:
    """Images at some places, float (n, 3, H, W), as they are and in the five domains."""
    images = to_float(data.batch(places))
    mine = draws[places]
    shapes = data.masks["digit"][places] if "digit" in data.masks else None
    others = to_float(data.batch(mine.partner))
    return {"seen": images, **render(images, others, mine, shapes, ground)}


def _drawn(
    cast: Cast, data: ImageData, ground: str, seed: int, batch_size: int
) -> Iterator[tuple[str, Tensor]]:
    """Domain and images on the networks' device, batch by batch."""
    device = device_of(cast.teacher.network)
    draws = draw(data.labels, seed)
    for places in torch.arange(len(data)).split(batch_size):
        for domain, images in renderings_of(data, places, draws, ground).items():
            yield domain, images.to(device)


def _record_accuracies(recorder: Recorder, member: Member, answers: dict[str, Tensor]) -> None:
    labels = recorder.data.labels
    record_accuracy(recorder, member, answers["seen"])
    shares = {name: float((each == labels).double().mean()) for name, each in answers.items()}
    shares["unseen"] = sum(shares[name] for name in DOMAINS) / len(DOMAINS)
    for name, share in shares.items():
        recorder.add_summary(member.arm, member.seed, "accuracy", share, f"domain={name}")


def _record_likeness(
    recorder: Recorder, member: Member, pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Likeness to the teacher; ``pairs`` holds its and the network's answers by domain."""
    labels = recorder.data.labels
    same = {name: (teachers == own).float() for name, (teachers, own) in pairs.items()}
    same["unseen"] = torch.stack([same[name] for name in DOMAINS]).mean(0)
    beyond: dict[str, dict[str, float]] = {"kappa": {}, "error_consistency": {}}
    beyond["consensus_on_teacher_errors"] = {}
    for name, (teachers, own) in pairs.items():
        beyond["kappa"][name] = stats.cohen_kappa(teachers, own)
        beyond["error_consistency"][name] = stats.error_consistency(
            teachers == labels, own == labels
        )
        beyond["consensus_on_teacher_errors"][name] = stats.agreement_on_wrong_items(
            own, teachers, labels
        )
    seen_answers = pairs["seen"][1]
    for name, values in same.items():
        # What goes with a mean over five answers is the answer to the image itself.
        own = pairs[name][1] if name in pairs else seen_answers
        recorder.add(member, "consensus", values, own, f"domain={name}")
    recorder.add(member, "extra_consensus", same["unseen"] - same["seen"], seen_answers)
    for measure, by_domain in beyond.items():
        for name, value in (by_domain | {"unseen": _mean_unseen(by_domain)}).items():
            recorder.add_summary(member.arm, member.seed, measure, value, f"domain={name}")


def _record_pair(
    recorder: Recorder, first: Member, other_seed: int, pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Likeness of two independent students, by domain."""
    found = {
        "consensus": {name: float((a == b).double().mean()) for name, (a, b) in pairs.items()},
        "kappa": {name: stats.cohen_kappa(a, b) for name, (a, b) in pairs.items()},
    }
    for measure, by_domain in found.items():
        for name, value in (by_domain | {"unseen": _mean_unseen(by_domain)}).items():
            condition = f"domain={name},against={other_seed}"
            recorder.add_summary(first.arm, first.seed, measure, value, condition)


def _mean_unseen(by_domain: dict[str, float]) -> float:
    """Mean over the unseen domains in which a value is defined."""
    return _mean([by_domain[name] for name in DOMAINS])


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if math.isfinite(value)]
    return sum(defined) / len(defined) if defined else float("nan")
