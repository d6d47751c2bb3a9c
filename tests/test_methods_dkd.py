"""DKD against a case worked by hand, the authors' numbers, and KL, which it takes apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from method_batches import batch, logits, taught
from oracles import of_torchdistill

from kdnotes.methods import Outputs
from kdnotes.methods.dkd import DKD
from kdnotes.methods.kl import KL

NUMBERS = json.loads((Path(__file__).parent / "oracles" / "mdistiller.json").read_text())


def test_worked_by_hand() -> None:
    # At tau = 2 the teacher gives 1/2, 3/8 and 1/8, the student a third each; the first is true.
    # TCKD: 1/2 ln((1/2)/(1/3)) + 1/2 ln((1/2)/(2/3)); NCKD: 3/4 ln((3/4)/(1/2)) + 1/4 ln(1/2).
    teacher = 2 * torch.tensor([[4.0, 3.0, 1.0]]).double().log()
    student = torch.zeros(1, 3).double()
    tckd = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    nckd = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    method = DKD(alpha=3, beta=5, tau=2)
    expected = 4 * (3 * tckd + 5 * nckd)
    assert taught(method, student, teacher, torch.tensor([0])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", NUMBERS, ids=str)
def test_equals_the_authors_function(case: dict[str, float]) -> None:
    student, teacher, labels = of_torchdistill.logits()
    method = DKD(**{name: case[name] for name in ("alpha", "beta", "tau")})
    assert taught(method, student, teacher, labels) == pytest.approx(case["loss"], rel=1e-12)


def test_kl_is_its_parts_with_the_teachers_weights() -> None:
    student, teacher, label = logits(1, 6, seed=1), logits(1, 6, seed=2), torch.tensor([4])
    others = 1 - torch.softmax(teacher / 3, 1)[0, 4].item()
    value = taught(DKD(alpha=1, beta=others, tau=3), student, teacher, label)
    assert value == pytest.approx(taught(KL(tau=3), student, teacher), rel=1e-12)


def test_a_certain_teacher_in_half_precision_gives_finite_slopes() -> None:
    student = logits(8, 10, seed=1).bfloat16().requires_grad_()
    teacher = logits(8, 10, seed=2, scale=60.0).requires_grad_()
    both = Outputs(student), Outputs(teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = DKD().term(batch(*both, labels=teacher.argmax(1)))
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None
