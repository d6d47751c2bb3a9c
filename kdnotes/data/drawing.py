"""What scenes and digits are drawn with: seeded choices, colours, backgrounds, discs and glyphs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdnotes.data import glyphs
from kdnotes.lazy import torch
from kdnotes.store import checksum

if TYPE_CHECKING:
    from torch import Tensor


def generator_for(*parts: Any) -> torch.Generator:
    """A generator whose seed is derived from all that is asked for."""
    text = json.dumps([glyphs.REVISION, *parts], sort_keys=True)
    return torch.Generator().manual_seed(int(checksum(text.encode())[:14], 16))


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers between low and high."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def cue(labels: Tensor, agreement: float, generator: torch.Generator) -> Tensor:
    """The label with probability ``agreement``, a uniformly random class otherwise."""
    random = torch.randint(10, labels.shape, generator=generator)
    agrees = torch.rand(labels.shape, generator=generator) < agreement
    return torch.where(agrees, labels, random)


def choose(pool_labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """For each wanted class, the index of a random glyph of it; all are used before any repeats."""
    chosen = torch.empty_like(wanted)
    for digit in range(10):
        places = (wanted == digit).nonzero()[:, 0]
        of_class = (pool_labels == digit).nonzero()[:, 0]
        rounds = math.ceil(len(places) / len(of_class))
        orders = [torch.randperm(len(of_class), generator=generator) for _ in range(rounds)]
        if rounds:
            chosen[places] = of_class[torch.cat(orders)[: len(places)]]
    return chosen


def enlarged(ink: Tensor, size: int) -> Tensor:
    """Glyphs (N, 1, h, w) scaled to a larger size so that their pixels do not show."""
    return torch.nn.functional.interpolate(
        ink, (size, size), mode="bicubic", align_corners=False
    ).clamp(0, 1)


def pasted(ink: Tensor, size: int, center: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """Glyphs (N, 1, h, w) placed on an empty canvas; centres in pixels, sides as a share."""
    cosine, sine = torch.cos(angle) / side, torch.sin(angle) / side
    shift = 1 - 2 * center / size  # from pixel centre to the grid's [-1, 1] coordinates, negated
    theta = torch.stack(
        [
            torch.stack([cosine, sine, cosine * shift[:, 0] + sine * shift[:, 1]], 1),
            torch.stack([-sine, cosine, -sine * shift[:, 0] + cosine * shift[:, 1]], 1),
        ],
        1,
    )
    grid = torch.nn.functional.affine_grid(theta, [len(ink), 1, size, size], align_corners=False)
    return torch.nn.functional.grid_sample(
        ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def outlines(coverage: Tensor) -> Tensor:
    """The rims (N, 1, H, W) of what is covered."""
    grown = torch.nn.functional.max_pool2d(coverage, 3, stride=1, padding=1)
    shrunk = -torch.nn.functional.max_pool2d(-coverage, 3, stride=1, padding=1)
    return (grown - shrunk).clamp(0, 1)


def smooth_background(total: int, size: int, generator: torch.Generator) -> Tensor:
    """Dark, smoothly varying colours (N, 3, size, size)."""
    coarse = torch.rand((total, 3, 4, 4), generator=generator)
    return enlarged(coarse, size) * 0.5


def photo_background(
    total: int,
    size: int,
    generator: torch.Generator,
    photos: Sequence[Tensor] = (),
    step: int = 2,
) -> Tensor:
    """Patches (N, 3, size, size) of photographs (3, H, W), of two that are bundled if none.

    Of every ``step``-th pixel: every second one holds more of large photographs.
    """
    photos = photos or glyphs.photographs()
    which = torch.randint(len(photos), (total,), generator=generator).tolist()
    spots = torch.rand((total, 2), generator=generator).tolist()
    patches = []
    for photo_index, (down, right) in zip(which, spots, strict=True):
        photo = photos[photo_index]
        top = int(down * (photo.shape[1] - step * size))
        left = int(right * (photo.shape[2] - step * size))
        patches.append(photo[:, top : top + step * size : step, left : left + step * size : step])
    return torch.stack(patches)


def disc(
    markers: Tensor, size: int, center: Tensor, contrast: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Discs with one of ten textures (five orientations, two frequencies): colour and coverage."""
    total = len(markers)
    radius = 0.16 * size
    steps = torch.arange(size) + 0.5
    dx = steps[None, None, :] - center[:, 0, None, None]
    dy = steps[None, :, None] - center[:, 1, None, None]
    coverage = (radius + 0.5 - (dx**2 + dy**2).sqrt()).clamp(0, 1)[:, None]
    angle = (markers % 5).float() * (math.pi / 5)
    period = torch.where(markers < 5, 3.2, 6.0) * (size / 32)
    phase = uniform(0, 2 * math.pi, (total, 1, 1), generator)
    along = dx * torch.cos(angle)[:, None, None] + dy * torch.sin(angle)[:, None, None]
    swing = torch.sin(2 * math.pi * along / period[:, None, None] + phase)[:, None]
    wave = 0.5 + 0.5 * contrast * swing
    light = bright_colors(total, generator)
    dark = bright_colors(total, generator) * 0.15
    return wave * light + (1 - wave) * dark, coverage


def bright_colors(
    total: int, generator: torch.Generator, labels: Tensor | None = None, agreement: float = 0
) -> Tensor:
    """Bright colours (N, 3, 1, 1); with the given probability the hue is the label's own."""
    hue = torch.rand(total, generator=generator)
    saturation = uniform(0.5, 1.0, (total,), generator)
    value = uniform(0.75, 1.0, (total,), generator)
    if labels is not None:
        near = (labels.float() + uniform(-0.25, 0.25, (total,), generator)) / 10
        tells = torch.rand(total, generator=generator) < agreement
        hue = torch.where(tells, near % 1, hue)
    return hsv_to_rgb(hue, saturation, value)[..., None, None]


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours (N, 3) from hue, saturation and value (N,), each in [0, 1] (hue in turns)."""
    shifted = (hue[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    part = torch.minimum(shifted, 4 - shifted).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * part)


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
