"""Hint: the student's features at one layer become the teacher's, up to a learned map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from kdnotes.lazy import torch
from kdnotes.methods.base import Batch, Method, at_least_single

if TYPE_CHECKING:
    from torch import Tensor, nn


class Hint(Method):
    """Mean-squared error between one layer of the teacher and the student's, through a projection.

    ``student_layer`` and ``teacher_layer``: a dotted path, "logits", or a depth as "2/3", the last
    layer of the second third of the network's stages.
    """

    name = "hint"
    label = "Hint (feature maps)"
    short = "Hint"
    colour = "#E69F00"
    marker = "^"
    line = "-."
    source = (
        "Romero et al. 2015 (FitNets), arXiv 1412.6550, trained in one stage as in RepDistiller"
    )
    by_default = True
    rank = 2
    details = "layer {student_layer}"

    weight: float = Field(default=10.0, ge=0, description="weight of the squared error")
    student_layer: str = Field(default="2/3", min_length=1)
    teacher_layer: str = Field(default="2/3", min_length=1)

    def layers(self) -> tuple[str, str]:
        """The student's and the teacher's layer that are matched."""
        return self.student_layer, self.teacher_layer

    def prepare(self, example: Batch, labels: Tensor, seed: int) -> nn.Module:
        """The projection from the student's layer to the shape of the teacher's."""
        student, teacher = example.student.layer, example.teacher.layer
        return projection(student.shape[1:], teacher.shape[1:], signed=bool((teacher < 0).any()))

    def term(self, batch: Batch) -> Tensor:
        """The mean-squared error over all elements."""
        return squared_error(batch.beside(batch.student.layer), batch.teacher.layer)


def squared_error(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean-squared error between the student's projected features and the teacher's.

    Both of one shape, (N, C, H, W) or (N, D); the mean over all elements, without the factor 1/2 of
    the paper's equation 3, as in RepDistiller.
    """
    if student_map.ndim == 4:
        # Channels last as they lie: the gradient is laid out like the plain order of dimensions,
        # and in another order than the maps' it makes every layer behind it slower.
        student_map, teacher_map = student_map.permute(0, 2, 3, 1), teacher_map.permute(0, 2, 3, 1)
    error = torch.nn.functional.mse_loss
    return error(at_least_single(student_map), at_least_single(teacher_map.detach()))


def projection(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], signed: bool = False
) -> nn.Module:
    """Learned map from the student's features (N, *student_shape) to (N, *teacher_shape).

    Maps (C, H, W) get a convolution, BatchNorm and ReLU: with a teacher's map r times smaller a
    kernel of 2r - 1 at stride r (1x1 for equal sizes, 3x3 for half), r times larger its transpose
    (4x4 for double), otherwise smaller a kernel of 1 + size - size', and for all the rest a 1x1
    kernel and bilinear resizing. Vectors (D,) get a linear layer alone, since logits have both
    signs. ``signed``: no ReLU, for a map whose values may be negative (before an activation, or of
    a transformer). Weights are drawn from torch's global generator.

    Raises ``ValueError`` unless both shapes are maps or both are vectors. Source: sizes follow
    ConvReg of Tian's RepDistiller, which stops at a factor of two.
    """
    if len(student_shape) != len(teacher_shape) or len(student_shape) not in (1, 3):
        raise ValueError(
            f"student {tuple(student_shape)} and teacher {tuple(teacher_shape)} must both be "
            "maps (C, H, W) or both vectors (D,)"
        )
    nn = torch.nn
    if len(student_shape) == 1:
        return nn.Linear(student_shape[0], teacher_shape[0])
    width = teacher_shape[0]
    return nn.Sequential(
        *_resizing(student_shape[0], width, student_shape[1:], teacher_shape[1:]),
        nn.BatchNorm2d(width),
        nn.Identity() if signed else nn.ReLU(inplace=True),
    )


def _resizing(
    channels: int, width: int, size: tuple[int, ...], target: tuple[int, ...]
) -> tuple[nn.Module, ...]:
    """Layers that take (N, channels, *size) to (N, width, *target)."""
    nn = torch.nn
    height, breadth = size
    if (ratio := height // target[0]) and size == (ratio * target[0], ratio * target[1]):
        kernel = 2 * ratio - 1
        return (nn.Conv2d(channels, width, kernel, stride=ratio, padding=ratio - 1),)
    if (ratio := target[0] // height) and target == (ratio * height, ratio * breadth):
        padding = ratio // 2
        kernel = ratio + 2 * padding
        return (nn.ConvTranspose2d(channels, width, kernel, stride=ratio, padding=padding),)
    if height >= target[0] and breadth >= target[1]:
        return (nn.Conv2d(channels, width, (1 + height - target[0], 1 + breadth - target[1])),)
    return (
        nn.Conv2d(channels, width, 1),
        nn.Upsample(size=(target[0], target[1]), mode="bilinear", align_corners=False),
    )
