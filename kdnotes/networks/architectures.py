"""The book's own small architectures, of timm's blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import BlurPool2d, ConvNormAct, HybridEmbed
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Staged(nn.Module):
    """Stages of convolutions, and a head on the last map; the parts are named as in timm."""

    stages: nn.Sequential

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stages(images)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


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
        stages = []
        channels = 3
        for width, depth in zip(widths, depths, strict=True):
            blocks = []
            for stride in (2, *(1,) * (depth - 1)):
                blocks.append(ConvNormAct(channels, width, 3, stride=stride, aa_layer=halving))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.num_features = channels
        self.head = nn.Linear(channels, num_classes)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        # Not maps.mean((2, 3)): its gradient is not channels last, and slows all that follows.
        pooled = maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        return pooled if pre_logits else self.head(pooled)


class PaperMNIST(Staged):
    """The study's MNIST network (that of the PyTorch MNIST example), with three input channels.

    ``widths`` (32, 64) are the study's; the hidden layer has twice the width of the second.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, widths[0], 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(widths[0], widths[1], 3), nn.ReLU()),
        )
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.25))
        self.resize = nn.AdaptiveAvgPool2d(12)
        self.num_features = 2 * widths[1]
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(144 * widths[1], self.num_features), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.pool(maps)
        if pooled.shape[2:] != (12, 12):  # images of another size than MNIST's
            pooled = self.resize(pooled)
        if pooled.requires_grad:  # flattening leaves it in an order that is slow behind
            pooled.register_hook(_channels_last)
        features = self.dropout(self.hidden(pooled))
        return features if pre_logits else self.head(features)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def small_resnet(widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int) -> nn.Module:
    """A ResNet of timm's basic blocks with a deep stem, whose last map is 4x4 at 32 pixels."""
    block: Any = BasicBlock  # timm annotates an instance where it wants the class
    options: dict[str, Any] = {"output_stride": 16, "stem_type": "deep", "stem_width": 16}
    body: Any = ResNet(block, depths, num_classes=num_classes, channels=widths, **options)
    body.maxpool = nn.Identity()
    return body


def small_vit(width: int, depth: int, num_classes: int) -> nn.Module:
    """A vision transformer for 32 pixels with mean pooling and no class token.

    Three strided convolutions instead of patches: a ViT on raw patches stays near chance for the
    first minutes of training.
    """
    stem = nn.Sequential(
        ConvNormAct(3, 32, 3, stride=2),
        ConvNormAct(32, 64, 3, stride=2),
        ConvNormAct(64, width, 3, stride=2),
    )
    return VisionTransformer(
        img_size=32,
        patch_size=1,
        num_classes=num_classes,
        global_pool="avg",
        class_token=False,
        embed_dim=width,
        depth=depth,
        num_heads=max(1, width // 32),
        embed_layer=partial(HybridEmbed, backbone=stem),
    )
