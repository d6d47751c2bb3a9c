"""DKD: KL in two parts, the certainty of the true class and the order of the others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from kdnotes.lazy import torch
from kdnotes.methods.base import Batch, Method, at_least_single

if TYPE_CHECKING:
    from torch import Tensor


class DKD(Method):
    """Decoupled distillation: alpha * TCKD + beta * NCKD, both times tau^2.

    TCKD is the divergence of the two probabilities "the true class" and "another one", NCKD that of
    the probabilities among the other classes; KL is the sum of TCKD and of NCKD times the teacher's
    probability of another class.
    """

    name = "dkd"
    label = "DKD (decoupled soft labels)"
    short = "DKD"
    colour = "#5E3C99"
    marker = "p"
    line = "--"
    source = (
        "Zhao et al. 2022, arXiv 2203.08679, equation 7; settings of their ResNet32x4 pair on "
        "CIFAR-100, without the warm-up of the weight over the first epochs"
    )
    details = "{alpha:g} true, {beta:g} others, temperature {tau:g}"
    from_logits = True

    alpha: float = Field(default=1.0, ge=0, description="weight of the true class's part")
    beta: float = Field(default=8.0, ge=0, description="weight of the other classes' part")
    tau: float = Field(default=4.0, gt=0, description="temperature")

    def term(self, batch: Batch) -> Tensor:
        """alpha * TCKD + beta * NCKD, in nats."""
        target = batch.soft_labels(self.tau).detach()
        log_student = torch.log_softmax(at_least_single(batch.student.logits) / self.tau, dim=1)
        true = batch.labels.unsqueeze(1)
        others = torch.arange(target.shape[1] - 1, device=true.device)
        others = others + (others >= true)  # (B, classes - 1), all classes but the true one
        target_others, student_others = target.gather(1, others), log_student.gather(1, others)
        all_others = student_others.logsumexp(1, keepdim=True)
        divergence = partial(torch.nn.functional.kl_div, reduction="batchmean")
        tckd = divergence(
            torch.cat([log_student.gather(1, true), all_others], 1),
            torch.cat([target.gather(1, true), target_others.sum(1, keepdim=True)], 1),
        )
        among_others = torch.nn.functional.normalize(target_others, p=1, dim=1)
        nckd = divergence(student_others - all_others, among_others)
        return self.tau**2 * (self.alpha * tckd + self.beta * nckd)
