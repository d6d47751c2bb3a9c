"""The book's own small architectures, of timm's blocks."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import BlurPool2d, ConvNormAct, HybridEmbed
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Staged(nn.Module):
    """Stages of convolutions, and a head on the last map."""

    stages: nn.Sequential

    def forward_head(self, maps: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.stages(images))


class SmallVGG(Staged):
    """A VGG-like net: stages that each halve the image first, global average pool, linear head.

    ``blur``: halve by timm's BlurPool behind an unstrided convolution (Zhang 2019, arXiv
    1904.11486), so that small shifts of the image change the maps less.
    """

    def __init__(
        self, widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int, blur: bool = False
    ) -> None:
        super().__init__()
        halving = BlurPool2d if blur else None
        self.stages = nn.Sequential()
        channels = 3
        for width, depth in zip(widths, depths, strict=True):
            stage = nn.Sequential()
            for stride in (2, *(1,) * (depth - 1)):
                stage.append(ConvNormAct(channels, width, 3, stride=stride, aa_layer=halving))
                channels = width
            self.stages.append(stage)
        self.head = nn.Linear(channels, num_classes)

    def forward_head(self, maps: Tensor) -> Tensor:
        # Not maps.mean((2, 3)): its gradient is not channels last, and slows all that follows.
        return self.head(maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1))


class PaperMNIST(Staged):
    """The study's MNIST network (``widths`` 32, 64: PyTorch's example), with three channels."""

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        first, second = widths
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, first, 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(first, second, 3), nn.ReLU()),
        )
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.25))
        self.resize = nn.AdaptiveAvgPool2d(12)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(144 * second, 2 * second), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(2 * second, num_classes)

    def forward_head(self, maps: Tensor) -> Tensor:
        pooled = self.pool(maps)
        if pooled.shape[2:] != (12, 12):  # images of another size than MNIST's
            pooled = self.resize(pooled)
        if pooled.requires_grad:  # flattening leaves it in an order that is slow behind
            in_order = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
            pooled.register_hook(in_order)
        return self.head(self.dropout(self.hidden(pooled)))


def small_resnet(widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int) -> nn.Module:
    """A ResNet of timm's basic blocks with a deep stem, whose last map is 4x4 at 32 pixels."""
    block: Any = BasicBlock  # timm annotates an instance where it wants the class
    stem: dict[str, Any] = {"output_stride": 16, "stem_type": "deep", "stem_width": 16}
    body: Any = ResNet(block, depths, num_classes=num_classes, channels=widths, **stem)
    body.maxpool = nn.Identity()
    return body


def small_vit(width: int, depth: int, num_classes: int) -> nn.Module:
    """A vision transformer for 32 pixels with mean pooling and no class token."""
    # No patches: on raw ones, a ViT stays near chance for the first minutes of training.
    widths = (3, 32, 64, width)
    stem = nn.Sequential(*(ConvNormAct(*pair, 3, stride=2) for pair in pairwise(widths)))
    embed = partial(HybridEmbed, backbone=stem)
    options: dict[str, Any] = {"patch_size": 1, "global_pool": "avg", "class_token": False}
    size: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": max(1, width // 32)}
    return VisionTransformer(32, num_classes=num_classes, embed_layer=embed, **options, **size)
