"""Networks as they are used: [0, 1] images in, and frozen with BatchNorm folded for measuring."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_Network = TypeVar("_Network", bound=nn.Module)


class Normalized(nn.Module):
    """A network with its normalisation in front: [0, 1] images in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [0, 1] as the body wants them."""
        if not images.is_contiguous(memory_format=torch.channels_last):
            return (images - self.mean) / self.std
        # The same row by row: three numbers at a time would take several times as long.
        width, channels = images.shape[3], images.shape[1]
        rows = images.permute(0, 2, 3, 1).flatten(2)
        rows = rows - self.mean.flatten().repeat(width)
        rows = rows.div_(self.std.flatten().repeat(width))
        return rows.unflatten(2, (width, channels)).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.normalize(images))


class Composite(nn.Module):
    """Several networks as one: the mean of their logits with given shares, [0, 1] images in.

    ``mirrored``: over each image and its mirror image as well. It has no feature layers of its own.
    """

    def __init__(
        self, parts: list[Normalized], shares: tuple[float, ...] = (), mirrored: bool = False
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shares = shares or (1 / len(parts),) * len(parts)
        self.mirrored = mirrored

    def forward(self, images: Tensor) -> Tensor:
        seen = (images, images.flip(3)) if self.mirrored else (images,)
        logits = [
            share * part(view) / len(seen)
            for share, part in zip(self.shares, self.parts, strict=True)
            for view in seen
        ]
        return torch.stack(logits).sum(0)


def freeze(network: _Network) -> _Network:
    """A copy for measuring: evaluation mode, BatchNorm folded, no gradients, channels last.

    Folded logits equal the original's to about 1e-5. The original is left alone.
    """
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    _fold_batch_norm(frozen)
    return frozen.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm that follows a convolution into it, in place; evaluation mode only.

    Understands timm's ConvNormAct and BatchNormAct2d (whose activation is kept), and neighbours in
    a Sequential or in ResNet-style attribute pairs (conv1/bn1, ...).
    """
    for child in module.children():
        _fold_batch_norm(child)
    pairs = [("conv", "bn"), ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
    if isinstance(module, nn.Sequential):
        pairs = list(pairwise(module._modules))
    for conv_name, norm_name in pairs:
        holder, conv = module, getattr(module, conv_name, None)
        norm = getattr(module, norm_name, None)
        if isinstance(conv, nn.Sequential) and len(conv):  # a deep stem: its last convolution
            holder, conv_name, conv = conv, str(len(conv) - 1), conv[-1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(holder, conv_name, fuse_conv_bn_eval(conv, norm))
            # timm's fused norm keeps dropout and activation, plain BatchNorm nothing.
            rest = (getattr(norm, name, nn.Identity()) for name in ("drop", "act"))
            kept = [part for part in rest if not isinstance(part, nn.Identity)]
            setattr(module, norm_name, kept[0] if len(kept) == 1 else nn.Sequential(*kept))
