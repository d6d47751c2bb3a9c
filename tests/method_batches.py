"""Batches for methods outside of training, and CRD as a function of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdnotes.methods import Batch, Group, Method, Outputs
from kdnotes.methods.crd import CRD


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def batch(
    student: Outputs, teacher: Outputs, labels: Tensor | None = None, **changes: Any
) -> Batch:
    """A batch whose soft labels are the teacher's."""
    count = len(next(output for output in student if output is not None))
    fields = {
        "labels": torch.zeros(count, dtype=torch.int64) if labels is None else labels,
        "indices": torch.arange(count),
        "soft_labels": lambda tau: torch.softmax(teacher.logits / tau, 1),
        "generator": generator(),
    }
    return Batch(student=student, teacher=teacher, **(fields | changes))


def taught(method: Method, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> float:
    """A method's term for logits, or for features, whichever it looks at."""
    both = (Outputs(values, values) for values in (student, teacher))
    return method.term(batch(*both, labels=labels)).item()


class Contrast(torch.nn.Module):
    """CRD with its layers and banks: features, image numbers and a generator in, the loss out."""

    def __init__(
        self,
        labels: Tensor,
        widths: tuple[int, int],
        seed: int = 0,
        group: Group | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.method, self.group = CRD(**settings), group or Group()
        student, teacher = (Outputs(features=torch.zeros(1, width)) for width in widths)
        self.beside = self.method.prepare(batch(student, teacher), labels, seed)

    def forward(
        self, student: Tensor, teacher: Tensor, indices: Tensor, numbers: torch.Generator
    ) -> Tensor:
        both = (Outputs(features=values) for values in (student, teacher))
        seen = batch(
            *both, indices=indices, generator=numbers, beside=self.beside, group=self.group
        )
        return self.method.term(seen)
