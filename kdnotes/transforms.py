"""Training views of a batch: pure functions of images and drawn parameters.

The views of students form a finite set with a number each, so that a teacher's answer to (image,
view) can be stored once and looked up ever after.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F


class Views(BaseModel):
    """A finite set of views: shifts by up to ``pad`` pixels in steps of ``step``, maybe mirrored.

    ``pad`` 4, ``step`` 1 with ``flip`` is CIFAR's usual augmentation: 162 views of each image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pad: int = Field(default=2, ge=0, le=64)
    step: int = Field(default=2, ge=1, le=16)
    flip: bool = False

    @property
    def shifts(self) -> int:
        """Number of positions along one axis."""
        return 2 * self.pad // self.step + 1

    def __len__(self) -> int:
        return self.shifts**2 * (2 if self.flip else 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """One view number per image, int64 (count,), uniform over all views."""
        return torch.randint(len(self), (count,), generator=generator)

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        """Each image (N, 3, H, W) of any dtype in its view (N,); outside is black.

        View 0 is the topmost, leftmost crop; the centre view shows the image as it is.
        """
        if len(self) == 1:
            return images
        crop = views % self.shifts**2
        down = (crop // self.shifts) * self.step
        right = (crop % self.shifts) * self.step
        padded = F.pad(images, (self.pad,) * 4)
        size_y, size_x = images.shape[-2:]
        rows = down[:, None] + torch.arange(size_y, device=images.device)
        columns = right[:, None] + torch.arange(size_x, device=images.device)
        if self.flip:
            mirrored = (views >= self.shifts**2)[:, None]
            columns = torch.where(mirrored, columns.flip(1), columns)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        shifted = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
        return shifted.permute(0, 3, 1, 2)  # channels last in memory, as convolutions like it

    @property
    def centre(self) -> int:
        """The number of the view that leaves an image as it is."""
        middle = self.pad // self.step
        if self.pad % self.step:
            raise ValueError(f"pad {self.pad} is no multiple of step {self.step}: no centre view")
        return middle * self.shifts + middle


class ColorJitter(BaseModel):
    """Strengths of random changes of colour, as in torchvision's ColorJitter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
    hue: float = Field(default=0.2, ge=0, le=0.5)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as floats in [0, 1], channels last in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
