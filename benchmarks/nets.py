"""ResNets in CIFAR's shape (He et al. 2016, section 4.2), of timm's blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdnotes.networks import Normalized

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class CifarResNet(nn.Module):
    """6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels, maps of 32, 16 and 8."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        from timm.models.resnet import BasicBlock

        if (depth - 2) % 6:
            raise ValueError(f"a depth is 6n + 2, such as 20 or 56, not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU(inplace=True)
        channels = 16
        for number, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for position in range((depth - 2) // 6):
                stride = 2 if position == 0 and number > 1 else 1
                shortcut = None
                if stride == 2:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)
                    )
                blocks.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.head = nn.Linear(channels, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map (N, 64, 8, 8)."""
        maps = self.act1(self.bn1(self.conv1(images)))
        for number in (1, 2, 3):
            maps = self.get_submodule(f"layer{number}")(maps)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features (N, 64), or logits."""
        pooled = maps.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def cifar_resnet(depth: int, seed: int, num_classes: int = 10) -> Normalized:
    """An initialised ResNet for [0, 1] images; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body: Any = CifarResNet(depth, num_classes)
    return Normalized(body, MEAN, STD)


def blocks_of(depth: int) -> tuple[str, ...]:
    """Dotted paths of all residual blocks, from shallow to deep."""
    each = (depth - 2) // 6
    return tuple(f"body.layer{stage}.{block}" for stage in (1, 2, 3) for block in range(each))
