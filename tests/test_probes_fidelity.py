"""Agreement with the teacher against hand-worked cases, scikit-learn and plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from probe_nets import lookup_cast, numbered_data, small_cast, some_data, value_of, values_of
from sklearn.metrics import cohen_kappa_score

from kdnotes.probes import fidelity
from kdnotes.probes.base import Cast, Member, all_logits

LABELS = torch.tensor([0, 1, 2, 3])


def answering(*classes: int) -> torch.Tensor:
    return 4 * torch.nn.functional.one_hot(torch.tensor(classes), 5).float()


def test_hand_worked_case() -> None:
    cast = lookup_cast(
        {
            ("teacher", 0): answering(0, 1, 3, 0),  # wrong on items 2 and 3
            ("second-teacher", 1): answering(0, 1, 2, 3),
            ("independent", 0): answering(0, 2, 3, 1),
            ("independent", 1): answering(0, 2, 2, 1),
        }
    )
    outcome = fidelity.measure(cast, numbered_data(LABELS))
    table = outcome.table
    assert value_of(table, "teacher", 0, "accuracy") == 0.5
    assert value_of(table, "independent", 0, "accuracy") == 0.25
    assert value_of(table, "second-teacher", 1, "agreement") == 0.5
    assert value_of(table, "independent", 0, "agreement") == 0.5
    assert value_of(table, "independent", 0, "agreement_on_teacher_errors") == 0.5
    assert value_of(table, "second-teacher", 1, "agreement_on_teacher_errors") == 0
    errors = values_of(outcome.items, "independent", 0, "agreement_on_teacher_errors")
    assert errors.to_dict() == {2: 1, 3: 0}
    assert value_of(table, "independent", 0, "agreement", "against=1") == 0.75
    # teacher right on 0, 1; independent 0 right on 0: chance .5 * .25 + .5 * .75 = .5
    assert value_of(table, "independent", 0, "error_consistency") == pytest.approx(0.5)
    assert not (table["measure"].eq("agreement") & table["arm"].eq("teacher")).any()


def test_kappas_equal_scikit_learns() -> None:
    data, cast = some_data(200), small_cast()
    table = fidelity.measure(cast, data).table
    members = list(cast.everyone())
    answers = {
        (member.arm, member.seed): logits.argmax(1).numpy()
        for member, logits in zip(members, all_logits(members, data), strict=True)
    }
    teacher, labels = answers["teacher", 0], data.labels.numpy()
    for arm, seed in [("second-teacher", 1), ("independent", 2), ("kl", 0)]:
        own = answers[arm, seed]
        assert value_of(table, arm, seed, "kappa") == pytest.approx(cohen_kappa_score(teacher, own))
        expected = cohen_kappa_score(teacher == labels, own == labels)
        assert value_of(table, arm, seed, "error_consistency") == pytest.approx(expected)
    pair = cohen_kappa_score(answers["independent", 0], answers["independent", 2])
    assert value_of(table, "independent", 0, "kappa", "against=2") == pytest.approx(pair)
    pairs = table[table["condition"].str.startswith("against=") & table["measure"].eq("kappa")]
    assert len(pairs) == 3  # of three independent students


def test_divergence_and_calibration_equal_direct_computation() -> None:
    data, cast = some_data(200), small_cast()
    table = fidelity.measure(cast, data).table
    teacher, student = (
        all_logits([member], data)[0].double().softmax(1).numpy()
        for member in (cast.teacher, cast.arm("kl")[1])
    )
    expected = (teacher * np.log(teacher / student)).sum(1).mean()
    assert value_of(table, "kl", 1, "predictive_kl") == pytest.approx(expected, rel=1e-5)
    confidence, right = student.max(1), student.argmax(1) == data.labels.numpy()
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(
        abs(confidence[bins == each].mean() - right[bins == each].mean()) * (bins == each).mean()
        for each in np.unique(bins)
    )
    assert value_of(table, "kl", 1, "calibration_error") == pytest.approx(error, abs=1e-5)


def test_a_twin_of_the_teacher_agrees_in_everything() -> None:
    cast = small_cast()
    twin = Member("kl", 7, cast.teacher.network, cast.teacher.taps)
    both = Cast(cast.teacher, None, (*cast.members, twin), cast.classes)
    table = fidelity.measure(both, some_data()).table
    for measure in ("agreement", "agreement_on_teacher_errors", "kappa", "error_consistency"):
        assert value_of(table, "kl", 7, measure) == 1
    assert value_of(table, "kl", 7, "predictive_kl") == 0
    assert not table["arm"].eq("second-teacher").any()


def test_a_teacher_without_errors_leaves_nothing_to_agree_on() -> None:
    cast = lookup_cast({("teacher", 0): answering(0, 1, 2, 3), ("kl", 0): answering(0, 1, 2, 2)})
    outcome = fidelity.measure(cast, numbered_data(LABELS))
    value = value_of(outcome.table, "kl", 0, "agreement_on_teacher_errors")
    assert math.isnan(value)
    assert len(values_of(outcome.items, "kl", 0, "agreement_on_teacher_errors")) == 0
