"""Does the student answer as the teacher does, beyond what its accuracy alone would bring?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdnotes import stats
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, BeyondChance, Cast, ImageData, Measure, Outcome, Recorder

CALIBRATION_BINS = 15
AGAINST = ("against=*",)
MEASURES = (
    Alike("agreement", "gives the teacher's answer", "", AGAINST, True),
    Alike("agreement_on_teacher_errors", "repeats the teacher's mistakes", reported=True),
    BeyondChance("kappa", "answers as the teacher does, beyond chance", "", AGAINST),
    BeyondChance("error_consistency", "errs where the teacher errs, beyond chance", "", AGAINST),
    Alike(
        "predictive_kl",
        "is as sure of each class as the teacher is",
        unit="divergence in nats",
        high=math.inf,
        twin=0.0,
        direction="down",
    ),
    Measure("calibration_error", "is more or less sure than it is right", direction="none"),
    *base.PROBABILITIES,
)


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Answers and probabilities of every network, compared with the teacher's: see `of_logits`."""
    return of_logits(cast, data, base.all_logits(cast.everyone(), data))


def of_logits(cast: Cast, data: ImageData, logits: Sequence[torch.Tensor]) -> Outcome:
    """The same from everyone's logits (N, classes), in the cast's order; no network is asked.

    ``calibration_error`` is the expected difference over 15 bins (Guo et al. 2017),
    ``predictive_kl`` KL(teacher || network), per image (Stanton et al. 2021); kappas are NaN where
    chance leaves nothing to agree on.
    """
    members, answers = cast.everyone(), [each.argmax(1) for each in logits]
    labels, teachers = data.labels, answers[0]
    mistakes = (teachers != labels).nonzero().flatten()
    beyond_chance = {
        "kappa": stats.cohen_kappa,
        "error_consistency": lambda a, b: stats.error_consistency(a == labels, b == labels),
    }
    recorder = Recorder(data)
    for member, its_logits, its in zip(members, logits, answers, strict=True):
        recorder.add_accuracy(member, its)
        recorder.add_probabilities(member, its_logits.softmax(1), logits[0].softmax(1))
        recorder.add_value(member, "calibration_error", _calibration_error(its_logits, labels))
        if member is cast.teacher:
            continue
        same = its == teachers
        recorder.add(member, "agreement", same, its)
        where = same[mistakes], its[mistakes], "", mistakes
        recorder.add(member, "agreement_on_teacher_errors", *where)
        recorder.add(member, "predictive_kl", _divergence(logits[0], its_logits), its)
        for name, alike in beyond_chance.items():
            recorder.add_value(member, name, alike(teachers, its))
    recorder.add_pairs(members, answers, beyond_chance | {"agreement": base.share_alike})
    return recorder.outcome()


def _divergence(teachers: torch.Tensor, students: torch.Tensor) -> torch.Tensor:
    """KL divergence (N,) in nats of the students' probabilities from the teachers'."""
    reference, own = (logits.double().log_softmax(1) for logits in (teachers, students))
    return (reference.exp() * (reference - own)).sum(1)


def _calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    shown = logits.softmax(1), labels, logits.shape[1]
    return float(multiclass_calibration_error(*shown, n_bins=CALIBRATION_BINS))


PROPERTY = base.Audited("fidelity", "fidelity", measure, MEASURES, rank=2)
