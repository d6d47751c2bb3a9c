"""Do teacher and student answer alike where neither was trained, as on sketches and edges?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdnotes import stats
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, BeyondChance, Cast, ImageData, Measure, Outcome, Recorder

if TYPE_CHECKING:
    from kdnotes.data.renderings import Draws

UNSEEN, ALL = "domain=unseen", ("domain=*",)
DRAWN = "sketches, silhouettes and the like"
MORE = "agrees with its teacher more on unseen domains"
PAIRS = (*ALL, "domain=*,against=*")
MEASURES = (
    Alike("consensus", f"gives the teacher's answer to {DRAWN}", UNSEEN, PAIRS, True),
    Measure("accuracy", f"is right about {DRAWN}", UNSEEN, ALL, True),
    base.Difference("extra_consensus", f"{MORE} than on the seen one", of="pair", twin=0.0),
    BeyondChance("kappa", f"answers as the teacher does to {DRAWN}, beyond chance", UNSEEN, PAIRS),
    BeyondChance("error_consistency", f"errs on the same of {DRAWN}, beyond chance", UNSEEN, ALL),
    Alike("consensus_on_teacher_errors", "repeats the teacher's mistakes", UNSEEN, ALL),
)


def measure(cast: Cast, data: ImageData, *, ground: str = "own", seed: int = 0) -> Outcome:
    """Answers of every network in the seen domain and in five renderings of the same images.

    Under ``domain=unseen`` stands the mean over the five. Silhouettes are of the mask ``digit``
    where the data have one; ``ground`` is that of `renderings.render`. ``consensus``,
    ``extra_consensus`` and ``accuracy`` without a condition (the seen domain's) are per image; all
    else stands in the table only, NaN where undefined, which a mean over domains leaves out.
    """
    from kdnotes.data.renderings import DOMAINS

    members, recorder = cast.everyone(), Recorder(data)
    answers = _answers(members, data, ground, seed)
    labels, teachers = data.labels, answers[0]
    likeness = {
        "kappa": stats.cohen_kappa,
        "error_consistency": lambda a, b: stats.error_consistency(a == labels, b == labels),
        "consensus_on_teacher_errors": lambda a, b: stats.agreement_on_wrong_items(b, a, labels),
    }
    parts = {name: (name,) for name in teachers} | {"unseen": DOMAINS}
    for member, its in zip(members, answers, strict=True):
        recorder.add_accuracy(member, its["seen"])
        same = {name: (teachers[name] == its[name]).float() for name in its}
        same["unseen"] = torch.stack([same[name] for name in DOMAINS]).mean(0)
        for name, domains in parts.items():
            where = f"domain={name}"
            right = np.mean([base.share_alike(its[each], labels) for each in domains])
            recorder.add_value(member, "accuracy", float(right), where)
            if member is cast.teacher:
                continue
            # What goes with a mean over five answers is the answer to the image itself.
            recorder.add(member, "consensus", same[name], its.get(name, its["seen"]), where)
            for measure, alike in likeness.items():
                recorder.add_value(member, measure, _over(domains, alike)(teachers, its), where)
        if member is not cast.teacher:
            extra = same["unseen"] - same["seen"]
            recorder.add(member, "extra_consensus", extra, its["seen"])
    pairs = {"consensus": base.share_alike, "kappa": stats.cohen_kappa}
    for name, domains in parts.items():
        over = {measure: _over(domains, alike) for measure, alike in pairs.items()}
        recorder.add_pairs(members, answers, over, f"domain={name}")
    return recorder.outcome()


def renderings_of(
    data: ImageData, places: torch.Tensor, draws: Draws, ground: str = "own"
) -> dict[str, torch.Tensor]:
    """Images at some places, float (n, 3, H, W), as they are and in the five domains."""
    from kdnotes.data.renderings import render

    images, mine = base.pictures(data, places), draws[places]
    shapes = data.masks["digit"][places] if "digit" in data.masks else None
    others = base.pictures(data, mine.partner)
    return {"seen": images, **render(images, others, mine, shapes, ground)}


def _answers(
    members: Sequence[base.Member], data: ImageData, ground: str, seed: int
) -> list[dict[str, torch.Tensor]]:
    """Answers (N,) of every network by domain, each batch drawn once for all of them."""
    from kdnotes.data.renderings import draw

    device, draws = base.device_of(members[0].network), draw(data.labels, seed)
    parts: list[dict[str, list[torch.Tensor]]] = [{} for _ in members]
    for places in torch.arange(len(data)).split(base.at_a_time()):
        for domain, images in renderings_of(data, places, draws, ground).items():
            shown = images.to(device)
            for member, part in zip(members, parts, strict=True):
                part.setdefault(domain, []).append(base.answers_of(member.network, shown))
    return [{name: torch.cat(each) for name, each in part.items()} for part in parts]


def _over(domains: Sequence[str], alike: Callable[..., float]) -> Callable[..., float]:
    """The mean over domains of a likeness of two networks' answers by domain."""
    return lambda first, second: base.mean_of_defined(
        np.array([alike(first[name], second[name]) for name in domains])
    )


PROPERTY = base.Audited(
    "unseen_domains", "unseen domains", measure, MEASURES, rank=7, share=0.3, passes=5.0
)
