"""Does the student answer as the teacher does, beyond what its accuracy alone would bring?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from kdnotes import stats
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, BeyondChance, Cast, ImageData, Measure, Outcome, Recorder

CALIBRATION_BINS = 15
AGAINST = ("against=*",)
_Divergence = partial(Alike, unit="divergence in nats", high=math.inf, twin=0.0, direction="down")
MEASURES = (
    Alike("agreement", "gives the teacher's answer", "", AGAINST, True),
    Alike("agreement_on_teacher_errors", "repeats the teacher's mistakes", reported=True),
    BeyondChance("kappa", "answers as the teacher does, beyond chance", "", AGAINST),
    BeyondChance("error_consistency", "errs where the teacher errs, beyond chance", "", AGAINST),
    _Divergence("predictive_kl", "is as sure of each class as the teacher is"),
    Measure("calibration_error", "is more or less sure than it is right", direction="none"),
    *base.PROBABILITIES,
)


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Answers and probabilities of every network, compared with the teacher's: see `of_logits`."""
    return of_logits(cast, data, base.all_logits(cast.everyone(), data))


def of_logits(cast: Cast, data: ImageData, logits: Sequence[torch.Tensor]) -> Outcome:
    """The same from everyone's logits (N, classes), in the cast's order; no network is asked.

    ``calibration_error`` is that of Guo et al. (2017), ``predictive_kl`` KL(teacher || network) per
    image (Stanton et al. 2021); kappas are NaN where chance leaves nothing to agree on.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

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
        recorder.add_probabilities(member, sure := its_logits.softmax(1), logits[0].softmax(1))
        error = multiclass_calibration_error(sure, labels, sure.shape[1], n_bins=CALIBRATION_BINS)
        recorder.add_value(member, "calibration_error", float(error))
        if member is cast.teacher:
            continue
        same = its == teachers
        recorder.add(member, "agreement", same, its)
        where = same[mistakes], its[mistakes], "", mistakes
        recorder.add(member, "agreement_on_teacher_errors", *where)
        reference, own = (each.double().log_softmax(1) for each in (logits[0], its_logits))
        divergence = (reference.exp() * (reference - own)).sum(1)
        recorder.add(member, "predictive_kl", divergence, its)
        for name, alike in beyond_chance.items():
            recorder.add_value(member, name, alike(teachers, its))
    recorder.add_pairs(members, answers, beyond_chance | {"agreement": base.share_alike})
    return recorder.outcome()


PROPERTY = base.Audited("fidelity", "fidelity", measure, MEASURES, rank=2)
