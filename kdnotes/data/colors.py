"""Changes of colour on batches of float images, by torchvision's formulas.

Libraries draw factors or the order of steps per batch, or take no generator: here each image has
its own, however images are batched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdnotes.data import PerImage


@dataclass(frozen=True)
class JitterFactors(PerImage):
    """One change of colour per image.

    brightness, contrast, saturation: factors (N,), 1 changes nothing; hue: turns (N,), 0 changes
    nothing; order: int64 (N, 4), how these steps, 0 to 3, follow each other.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor


def draw_jitter(
    count: int,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    generator: torch.Generator,
) -> JitterFactors:
    """Factors for ``count`` images, uniform as in torchvision's ColorJitter, in random order.

    Brightness, contrast and saturation lie in [max(0, 1 - s), 1 + s], hue in [-h, h] turns. With
    generators of one seed, a weaker jitter is the stronger one scaled down.
    """
    unit = torch.rand(4, count, generator=generator)
    order = torch.rand(count, 4, generator=generator).argsort(1)
    ranges = [(max(0.0, 1 - most), 1 + most) for most in (brightness, contrast, saturation)]
    ranges += [(-hue, hue)]
    lighter, apart, fuller, turns = (
        low + (high - low) * row for (low, high), row in zip(ranges, unit, strict=True)
    )
    return JitterFactors(lighter, apart, fuller, turns, order)


def jitter(images: Tensor, factors: JitterFactors) -> Tensor:
    """Images, float (N, 3, H, W) in [0, 1], in other colours; ValueError if factors are missing."""
    if len(images) != len(factors):
        raise ValueError(f"{len(images)} images but {len(factors)} sets of factors")
    # Planes that lie together in memory make the steps below twice as fast as channels_last.
    changed = images.clone(memory_format=torch.contiguous_format)
    amounts = (factors.brightness, factors.contrast, factors.saturation, factors.hue)
    for position in factors.order.unbind(1):
        for number, amount in enumerate(amounts):
            chosen = (position == number).nonzero().flatten().to(images.device)
            changed[chosen] = _step(number, changed[chosen], amount.to(images.device)[chosen])
    return changed


def rotate_hue(images: Tensor, turns: Tensor | float) -> Tensor:
    """Images, float (N, 3, H, W) in [0, 1], with the hue turned around the HSV circle.

    turns: one number or (N,), 1 is the full circle. Takes an eighth of the time of torchvision's.
    """
    turns = torch.as_tensor(turns, dtype=images.dtype, device=images.device).expand(len(images))
    red, green, blue = images.contiguous().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = torch.where(chroma > 0, chroma, 1).reciprocal_()
    # Sixths of the circle: red at 0, green at 2, blue at 4. Grey has none, and chroma 0 below.
    sector = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    sector += 6 * turns[:, None, None]
    turned = torch.empty_like(images, memory_format=torch.contiguous_format)
    for channel in range(3):
        # A channel is at its full value up to one sixth from its own hue, at its least from two on.
        distance = sector - 2 * channel
        distance = (distance - 6 * torch.round(distance / 6)).abs_()
        share = distance.sub_(1).clamp_(0, 1)
        torch.addcmul(value, share, chroma, value=-1, out=turned[:, channel])
    return turned


def _step(number: int, images: Tensor, amount: Tensor) -> Tensor:
    """One of the four steps; the first three blend images with black, mean grey, or their grey."""
    if number == 3:
        return rotate_hue(images, amount)
    other: Tensor | float = 0.0
    if number > 0:
        red, green, blue = images.split(1, 1)
        grey = 0.2989 * red + 0.587 * green + 0.114 * blue
        other = grey.mean((2, 3), keepdim=True) if number == 1 else grey
    weight = amount[:, None, None, None]
    return (weight * images + (1 - weight) * other).clamp_(0, 1)
