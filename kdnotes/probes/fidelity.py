"""Does the student answer as the teacher does, beyond what its accuracy alone would bring?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from kdnotes import stats
from kdnotes.data import ImageData
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.forward import BATCH_SIZE, all_logits, record_accuracy
from kdnotes.probes.outcome import Outcome, Recorder

CALIBRATION_BINS = 15

_Answers = TypeVar("_Answers")


def measure(cast: Cast, data: ImageData, *, batch_size: int = BATCH_SIZE) -> Outcome:
    """Answers and probabilities of every network, compared with the teacher's.

    The second teacher is compared as the students are: it is what could be reached without the
    teacher. Measures, per image:

    - ``accuracy``, of all networks.
    - ``agreement``: is the answer the teacher's? ``agreement_on_teacher_errors``: the same, over
      the images that the teacher gets wrong.
    - ``predictive_kl``: KL(teacher || network) of the probabilities, in nats (Stanton et al. 2021).

    In the table only:

    - ``kappa`` (of answers) and ``error_consistency`` (of being right), 1 for twins, 0 for chance
      at the same accuracies; NaN where chance leaves nothing to agree on.
    - ``calibration_error`` of all networks: expected difference between confidence and accuracy
      over 15 bins (Guo et al. 2017).
    - for each pair of independent students, under the condition ``against=SEED`` and the lower of
      the two seeds: ``agreement``, ``kappa`` and ``error_consistency``, the spread by chance.
    """
    members = list(cast.everyone())
    logits = all_logits(members, data, batch_size)
    answers = [each.argmax(1) for each in logits]
    labels = data.labels
    recorder = Recorder(data)
    for member, its_logits, its_answers in zip(members, logits, answers, strict=True):
        record_accuracy(recorder, member, its_answers)
        error = _calibration_error(its_logits, labels)
        recorder.add_summary(member.arm, member.seed, "calibration_error", error)
    teachers, teachers_logits = answers[0], logits[0]
    teacher_errors = (teachers != labels).nonzero().flatten()
    for member, its_logits, its_answers in zip(members[1:], logits[1:], answers[1:], strict=True):
        same = its_answers == teachers
        recorder.add(member, "agreement", same, its_answers)
        recorder.add(
            member,
            "agreement_on_teacher_errors",
            same[teacher_errors],
            its_answers[teacher_errors],
            items=teacher_errors,
        )
        distance = _predictive_kl(teachers_logits, its_logits)
        recorder.add(member, "predictive_kl", distance, its_answers)
        for name, value in _beyond_chance(teachers, its_answers, labels).items():
            recorder.add_summary(member.arm, member.seed, name, value)
    for first, first_answers, second, its_answers in pairs_of_independents(members, answers):
        found = _beyond_chance(first_answers, its_answers, labels)
        found["agreement"] = float((first_answers == its_answers).double().mean())
        for name, value in found.items():
            recorder.add_summary(first.arm, first.seed, name, value, f"against={second.seed}")
    return recorder.outcome()


def pairs_of_independents(
    members: Sequence[Member], answers: Sequence[_Answers]
) -> Iterator[tuple[Member, _Answers, Member, _Answers]]:
    """Every two independent students with what is theirs, the one of the lower seed first.

    How alike they are is what two networks without any contact come to.
    """
    students = [pair for pair in zip(members, answers, strict=True) if pair[0].arm == "independent"]
    students.sort(key=lambda pair: pair[0].seed)
    for (first, its), (second, others) in itertools.combinations(students, 2):
        yield first, its, second, others


def _predictive_kl(teachers: Tensor, students: Tensor) -> Tensor:
    """KL divergence (N,) in nats of the students' probabilities from the teachers'."""
    reference, own = (logits.double().log_softmax(1) for logits in (teachers, students))
    return (reference.exp() * (reference - own)).sum(1)


def _beyond_chance(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "kappa": stats.cohen_kappa(first, second),
        "error_consistency": stats.error_consistency(first == labels, second == labels),
    }


def _calibration_error(logits: Tensor, labels: Tensor) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(
        multiclass_calibration_error(
            logits.softmax(1), labels, logits.shape[1], n_bins=CALIBRATION_BINS
        )
    )
