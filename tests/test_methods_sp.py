"""SP against the publication's formula, torchdistill's numbers, and a batch in two halves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from method_batches import batch, logits, taught
from oracles import of_torchdistill
from torch import Tensor

from kdnotes.methods import Group, Outputs
from kdnotes.methods.sp import SP

NUMBERS = json.loads((Path(__file__).parent / "oracles" / "torchdistill.json").read_text())


def formula(student: Tensor, teacher: Tensor, order: int) -> float:
    """Equations 2 to 4, one row at a time; ``order``: of the norm that rows are divided by."""
    total, count = 0.0, len(student)
    for row in range(count):
        similar = [values.numpy()[row] @ values.numpy().T for values in (student, teacher)]
        unit = [values / np.linalg.norm(values, order) for values in similar]
        total += float(((unit[0] - unit[1]) ** 2).sum())
    return total / count**2


def test_equals_the_formula_and_torchdistill() -> None:
    student, teacher = of_torchdistill.features()
    value = taught(SP(), student, teacher)
    assert value == pytest.approx(formula(student, teacher, 2), rel=1e-12)
    assert value == pytest.approx(NUMBERS["sp"], rel=1e-12)
    # As it stands, torchdistill divides rows by their sums: that is all in which it differs.
    assert formula(student, teacher, 1) == pytest.approx(NUMBERS["sp_rows_of_sum_one"], rel=1e-12)


def test_worked_by_hand() -> None:
    # The student finds two images alike (rows (1, 1)/sqrt 2), the teacher at right angles: each row
    # is off by (1 - r, -r) with r = 1/sqrt 2, whose squares add up to 2 - 2r.
    student, teacher = torch.ones(2, 1).double(), torch.eye(2).double()
    assert taught(SP(), student, teacher) == pytest.approx(2 * (2 - 2**0.5) / 4)


def test_only_directions_count_and_the_teacher_gets_nothing() -> None:
    student, teacher = logits(6, 3, seed=1).requires_grad_(), logits(6, 5, seed=2).requires_grad_()
    both = Outputs(features=student), Outputs(features=teacher)
    value = SP().term(batch(*both))
    value.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert taught(SP(), 7 * student.detach(), teacher.detach()) == pytest.approx(value.item())


class Half(Group):
    """One of two processes, that knows what the other has."""

    def __init__(self, whole: list[Tensor], second: bool) -> None:
        self.whole, self.second = whole, second

    def share(self, batch: int) -> slice:
        return slice(batch // 2, batch) if self.second else slice(0, batch // 2)

    def gathered(self, values: Tensor) -> Tensor:
        return next(each for each in self.whole if each.shape[1:] == values.shape[1:])


def test_two_processes_have_the_value_and_slope_of_one() -> None:
    student, teacher = logits(6, 3, seed=1).requires_grad_(), logits(6, 5, seed=2)
    alone = SP().term(batch(Outputs(features=student), Outputs(features=teacher)))
    (slope,) = torch.autograd.grad(alone, student)
    terms = []
    for second in (False, True):
        group = Half([student, teacher], second)
        own = (Outputs(features=values[group.share(6)]) for values in (student, teacher))
        terms.append(SP().term(batch(*own, group=group)))
    assert sum(terms).item() / 2 == pytest.approx(alone.item())
    (together,) = torch.autograd.grad(sum(terms) / 2, student)
    torch.testing.assert_close(together, slope)


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(8, 50, seed=1).bfloat16(), logits(8, 60, seed=2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = taught(SP(), student, teacher)
    assert value == pytest.approx(formula(student.double(), teacher.double(), 2), rel=1e-4)
