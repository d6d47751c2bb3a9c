"""Training views of a batch; most have a number, by which a teacher's answer is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from kdnotes.data import Strict
from kdnotes.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Views(Strict):
    """A finite set of views: shifts by up to ``pad`` pixels in steps of ``step``, maybe mirrored.

    CIFAR's usual augmentation is ``pad`` 4, ``step`` 1 with ``flip``: 162 views of each image.
    """

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
        down, right = (crop // self.shifts) * self.step, (crop % self.shifts) * self.step
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
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
        if self.pad % self.step:
            raise ValueError(f"pad {self.pad} is no multiple of step {self.step}: no centre view")
        return self.pad // self.step * (self.shifts + 1)


class ColorJitter(Strict):
    """Strengths of random changes of colour, as in torchvision's ColorJitter."""

    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
    hue: float = Field(default=0.2, ge=0, le=0.5)


class Crops(Strict):
    """Random resized crops: squares of a share of the image's area, scaled back to its size."""

    smallest: float = Field(default=0.25, gt=0, le=1)
    largest: float = Field(default=1.0, gt=0, le=1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """One crop per image, (count, 3): share of the area; down, right as in `ResizedCrops`."""
        drawn = torch.rand((count, 3), generator=generator)
        drawn[:, 0] = self.smallest + (self.largest - self.smallest) * drawn[:, 0]
        return drawn


class ResizedCrops(Strict):
    """Random rectangles scaled to squares, maybe mirrored: ImageNet's usual training views.

    ``smallest`` and ``largest`` bound the rectangle's share of the area, ``aspect`` its longer by
    its shorter side; sides beyond the image's are cut. ``size``: side of the view in pixels, None
    meaning the image's own. These views are no finite set: teachers are live.
    """

    smallest: float = Field(default=0.08, gt=0, le=1)
    largest: float = Field(default=1.0, gt=0, le=1)
    aspect: float = Field(default=4 / 3, ge=1)
    flip: bool = True
    size: int | None = Field(default=None, ge=8)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """One view per image, (count, 5): height and width as shares, down, right, mirrored.

        Down and right run from 0 to 1 over the places where the rectangle lies inside.
        """
        drawn = torch.rand((count, 5), generator=generator)
        area = self.smallest + (self.largest - self.smallest) * drawn[:, 0]
        by_aspect = self.aspect ** (drawn[:, 1] - 0.5)  # the square root of the aspect
        drawn[:, 0] = (area.sqrt() / by_aspect).clamp(max=1)
        drawn[:, 1] = (area.sqrt() * by_aspect).clamp(max=1)
        drawn[:, 4] = (drawn[:, 4] < 0.5).float() if self.flip else 0
        return drawn

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        """Each float image (N, 3, H, W) in its view (N, 5), bilinearly: (N, 3, size, size)."""
        height, width, down, right, mirrored = views.unbind(1)
        theta = images.new_zeros((len(images), 2, 3))
        theta[:, 0, 0] = width * (1 - 2 * mirrored)
        theta[:, 1, 1] = height
        # In the grid's [-1, 1] coordinates.
        theta[:, 0, 2] = (2 * right - 1) * (1 - width)
        theta[:, 1, 2] = (2 * down - 1) * (1 - height)
        side = self.size or images.shape[-1]
        tools, shape = torch.nn.functional, [len(images), 3, side, side]
        grid = tools.affine_grid(theta, shape, align_corners=False)
        seen = tools.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return seen.contiguous(memory_format=torch.channels_last)

    def whole(self, images: Tensor) -> Tensor:
        """Each float image (N, 3, H, W) scaled as it is: (N, 3, size, size)."""
        views = images.new_tensor([1.0, 1.0, 0.5, 0.5, 0.0]).expand(len(images), 5)
        return self.apply(images, views)


def crop(images: Tensor, crops: Tensor) -> Tensor:
    """Each float image (N, 3, H, W) cut to its square crop (N, 3) and scaled back, bilinearly."""
    side = crops[:, 0].sqrt()
    views = torch.stack([side, side, crops[:, 1], crops[:, 2], torch.zeros_like(side)], 1)
    return ResizedCrops().apply(images, views)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as floats in [0, 1], channels last in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
