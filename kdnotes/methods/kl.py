"""KL: the student answers as the teacher does, softened by a temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from kdnotes.lazy import torch
from kdnotes.methods.base import Batch, Method, at_least_single

if TYPE_CHECKING:
    from torch import Tensor


class KL(Method):
    """Soft labels: tau^2 times the divergence of the softened answers from the teacher's."""

    name = "kl"
    label = "KL (soft labels)"
    short = "KL"
    colour = "#0072B2"
    marker = "s"
    source = "Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2; weights of RepDistiller"
    by_default = True
    rank = 1
    details = "temperature {tau:g}"
    from_logits = True

    gamma: float = Field(default=0.1, ge=0, description="weight of the cross-entropy")
    weight: float = Field(default=0.9, ge=0, description="weight of the divergence")
    tau: float = Field(default=4.0, gt=0, description="temperature that divides both logits")

    def term(self, batch: Batch) -> Tensor:
        """tau^2 * KL(teacher || student) of the softened answers, in nats."""
        return divergence(batch.student.logits, batch.soft_labels(self.tau), self.tau)


def divergence(student_logits: Tensor, probabilities: Tensor, tau: float) -> Tensor:
    """tau^2 * KL(target || student at temperature tau), the scalar batch mean, in nats.

    ``student_logits`` and ``probabilities`` (N, classes), the latter already at the temperature.
    The gradient is that of the paper's tau^2-scaled cross-entropy with these soft labels.
    """
    log_student = torch.log_softmax(at_least_single(student_logits) / tau, dim=1)
    target = at_least_single(probabilities.detach())
    return tau**2 * torch.nn.functional.kl_div(log_student, target, reduction="batchmean")
