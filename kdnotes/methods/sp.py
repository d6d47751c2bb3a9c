"""SP: images that are alike to the teacher become alike to the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from kdnotes.lazy import torch
from kdnotes.methods.base import Batch, Group, Method, at_least_single

if TYPE_CHECKING:
    from torch import Tensor


class SP(Method):
    """Similarity-preserving distillation, on the input of the last layer.

    Of a batch of B images, G holds each image's similarity to every other (the dot products of
    their features), each row brought to unit length; the loss is the squared distance between the
    student's and the teacher's G, divided by B^2.
    """

    name = "sp"
    label = "SP (similarities)"
    short = "SP"
    colour = "#A50026"
    marker = "v"
    line = (0, (3, 1, 1, 1))
    source = (
        "Tung and Mori 2019, arXiv 1907.09682, equations 2-4; weight of their CIFAR-10 networks, "
        "whose batches have 128 images"
    )

    weight: float = Field(default=3000.0, ge=0, description="weight of the squared distance")

    def term(self, batch: Batch) -> Tensor:
        """The squared distance; where processes share a batch, the similarities are all images'."""
        with torch.autocast(batch.indices.device.type, enabled=False):
            student = similarities(batch.student.features, batch.group)
            teacher = similarities(batch.teacher.features.detach(), batch.group)
            return torch.nn.functional.mse_loss(student, teacher)


def similarities(features: Tensor, group: Group) -> Tensor:
    """Rows of G for the images (n, ...) of this process: (n, B), of unit length."""
    everybody = group.gathered(at_least_single(features).flatten(1))
    own = everybody[group.share(len(everybody))]
    return torch.nn.functional.normalize(own @ everybody.T, dim=1)
