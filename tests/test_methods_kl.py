"""KL against a hand-worked case, scipy, torch, torchdistill's numbers and timm."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from method_batches import batch, logits, taught
from oracles import of_torchdistill
from pydantic import ValidationError
from scipy.special import rel_entr, softmax
from torch import Tensor
from torch.nn import functional as F

from kdnotes.methods import Outputs
from kdnotes.methods.kl import KL, divergence

NUMBERS = json.loads((Path(__file__).parent / "oracles" / "torchdistill.json").read_text())


def kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    return KL(tau=tau).term(batch(Outputs(student), Outputs(teacher)))


def test_worked_by_hand() -> None:
    # At tau = 2 the teacher's logits 2 ln 3 and 0 become 3/4 and 1/4, the student's become 1/2:
    # 4 * (3/4 ln(3/2) + 1/4 ln(1/2)) = 3 ln 3 - 4 ln 2.
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    assert kl(student, teacher, 2.0).item() == pytest.approx(3 * math.log(3) - 4 * math.log(2))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 8.0])
def test_equals_scipy_and_torch(tau: float) -> None:
    student, teacher = logits(7, 5, seed=1), logits(7, 5, seed=2)
    value = kl(student, teacher, tau).item()
    soft_student, soft_teacher = (softmax(x.numpy() / tau, axis=1) for x in (student, teacher))
    assert value == pytest.approx(tau**2 * rel_entr(soft_teacher, soft_student).sum(1).mean())
    summed = F.kl_div(
        F.log_softmax(student / tau, 1),
        F.log_softmax(teacher / tau, 1),
        reduction="sum",
        log_target=True,
    )
    assert value == pytest.approx(tau**2 * summed.item() / 7)


def test_equals_torchdistill() -> None:
    student, teacher, labels = of_torchdistill.logits()
    method = KL(gamma=of_torchdistill.GAMMA, weight=of_torchdistill.WEIGHT, tau=of_torchdistill.TAU)
    value = method.weight * taught(method, student, teacher)
    value += method.gamma * F.cross_entropy(student, labels).item()
    assert value == pytest.approx(NUMBERS["kl"], rel=1e-12)


def test_at_temperature_one_equals_timm() -> None:
    # Soft-target cross-entropy exceeds the divergence by the teacher's entropy.
    from timm.loss import SoftTargetCrossEntropy

    student, teacher = logits(6, 4, seed=1), logits(6, 4, seed=2)
    soft = torch.softmax(teacher, 1)
    entropy = torch.distributions.Categorical(probs=soft).entropy().mean()
    expected = SoftTargetCrossEntropy()(student, soft) - entropy
    assert kl(student, teacher, 1.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_is_that_of_the_scaled_cross_entropy() -> None:
    tau, teacher = 4.0, logits(6, 4, seed=2)
    student = logits(6, 4, seed=1).requires_grad_()
    (ours,) = torch.autograd.grad(kl(student, teacher, tau), student)
    soft = torch.softmax(teacher / tau, 1)
    paper = -(tau**2) * (soft * torch.log_softmax(student / tau, 1)).sum(1).mean()
    (theirs,) = torch.autograd.grad(paper, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_nothing_is_sent_to_the_teacher() -> None:
    student, teacher = logits(3, 4, seed=1).requires_grad_(), logits(3, 4, seed=2).requires_grad_()
    kl(student, teacher, 4.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_zero_only_for_the_same_distribution() -> None:
    teacher = logits(5, 4)
    assert kl(teacher + 3.0, teacher, 4.0).item() == pytest.approx(0.0, abs=1e-12)
    assert kl(teacher * 1.1, teacher, 4.0).item() > 1e-3


def test_one_hot_labels_are_accepted() -> None:
    # A one-hot target has no entropy: what is left is the cross-entropy.
    student, labels = logits(6, 4), torch.arange(6) % 4
    value = divergence(student, F.one_hot(labels, 4).double(), 1.0)
    assert value.item() == pytest.approx(F.cross_entropy(student, labels).item(), rel=1e-12)


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(64, 10, seed=1).bfloat16(), logits(64, 10, seed=2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = divergence(student, torch.softmax(teacher.float() / 4, 1), 4.0)
    assert value.dtype == torch.float32
    expected = kl(student.double(), teacher.double(), 4.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(tau: float) -> None:
    with pytest.raises(ValidationError, match="tau"):
        KL(tau=tau)
