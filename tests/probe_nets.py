"""Small networks and data for the tests of the probes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from kdnotes.data import ImageData
from kdnotes.probes import base, representations
from kdnotes.probes.base import Cast, Member

CLASSES = 5
TAPS = ("body.0", "body.1")


class SmallNet(nn.Module):
    """Two convolutional stages (8 x 8 and 4 x 4 maps of a 16 x 16 image), mean, linear head."""

    def __init__(self, seed: int, width: int = 8, strides: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Sequential(
                    nn.Conv2d(3, width, 3, strides[0], 1, bias=False), nn.ReLU(inplace=True)
                ),
                nn.Sequential(
                    nn.Conv2d(width, width, 3, strides[1], 1, bias=False), nn.ReLU(inplace=True)
                ),
            )
            self.head = nn.Linear(width, CLASSES)
            self.center()

    @torch.no_grad()
    def center(self) -> None:
        """Take the mean from the logits and scale them: untrained, one class would always win."""
        self.head.bias.zero_()
        logits = self(some_data(seed=99).images / 255)
        self.head.weight /= logits.std(0).mean() / 3
        self.head.bias -= logits.mean(0) / (logits.std(0).mean() / 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body((images - 0.5) / 0.25).mean((2, 3)))


class Lookup(nn.Module):
    """Answers from a table (items, classes): the image's first value is its number."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, images: Tensor) -> Tensor:
        return self.table[(images[:, 0, 0, 0] * 255).round().long()]


def frozen(network: nn.Module) -> nn.Module:
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def net(seed: int, width: int = 8, strides: Sequence[int] = (2, 2)) -> nn.Module:
    return frozen(SmallNet(seed, width, strides))


def related_net(seed: int, amount: float) -> nn.Module:
    """A network near that of seed 0: its weights, moved at random."""
    network = SmallNet(0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            spread = weight.std()
            weight += amount * spread * torch.randn(weight.shape, generator=generator)
        network.center()
    return frozen(network)


def member(arm: str, seed: int, network: nn.Module, taps: tuple[str, ...] = TAPS) -> Member:
    return Member(arm, seed, network, taps)


def small_cast() -> Cast:
    """Teachers of twice the width, three independent students, two of one arm."""
    return Cast(
        member("teacher", 0, net(100, width=16)),
        member("second-teacher", 1, net(101, width=16)),
        tuple(
            [member("independent", seed, net(seed)) for seed in range(3)]
            + [member("kl", seed, net(10 + seed)) for seed in range(2)]
        ),
        tuple("abcde"),
    )


def related_cast() -> Cast:
    """Networks that mostly agree: the teacher of seed 0 and others around it."""
    return Cast(
        member("teacher", 0, related_net(0, 0.0)),
        member("second-teacher", 1, related_net(1, 0.2)),
        tuple(
            [member("independent", seed, related_net(10 + seed, 0.2)) for seed in range(3)]
            + [member("kl", seed, related_net(20 + seed, 0.1)) for seed in range(2)]
        ),
        tuple("abcde"),
    )


def lookup_cast(tables: dict[tuple[str, int], Tensor]) -> Cast:
    """Networks with given logits (items, classes); the teachers by their arms."""
    members = {key: member(*key, frozen(Lookup(table)), ()) for key, table in tables.items()}
    return Cast(
        members.pop(("teacher", 0)),
        members.pop(("second-teacher", 1), None),
        tuple(members.values()),
        tuple("abcde"),
    )


def some_data(count: int = 60, size: int = 16, seed: int = 0) -> ImageData:
    """Random smooth-ish images with labels, sources (two images each), a mask and two cues."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, size, mode="bilinear")
    images = (images + 0.3 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    mask = torch.zeros(count, size, size, dtype=torch.bool)
    mask[:, 2:9, 3:12] = True
    return ImageData(
        images=(images * 255).to(torch.uint8),
        labels=torch.randint(CLASSES, (count,), generator=generator),
        classes=tuple("abcde"),
        sources=torch.arange(count) // 2 + 1000,
        factors={
            "digit": torch.randint(CLASSES, (count,), generator=generator),
            "marker": torch.randint(CLASSES, (count,), generator=generator),
        },
        masks={"digit": mask, "marker": ~mask},
    )


def numbered_data(labels: Tensor, **factors: Tensor) -> ImageData:
    """Images for `Lookup`: each holds its own number."""
    count = len(labels)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4)
    return ImageData(images, labels, tuple("abcde"), torch.arange(count), factors)


def value_of(table, arm: str, seed: int, measure: str, condition: str = "") -> float:  # type: ignore[no-untyped-def]
    """The one value of a table."""
    rows = table[
        (table["arm"] == arm)
        & (table["seed"] == seed)
        & (table["measure"] == measure)
        & (table["condition"] == condition)
    ]
    assert len(rows) == 1, f"{len(rows)} rows"
    return float(rows["value"].iloc[0])


def values_of(items, arm: str, seed: int, measure: str, condition: str = ""):  # type: ignore[no-untyped-def]
    """Item values, indexed by item."""
    rows = items[
        (items["arm"] == arm)
        & (items["seed"] == seed)
        & (items["measure"] == measure)
        & (items["condition"] == condition)
    ]
    return rows.set_index("item")["value"]


def in_batches(size: int, measure, *args, **options):  # type: ignore[no-untyped-def]
    """What a probe finds when it reads so many images at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BATCH_SIZE", size)
        patch.setattr(representations, "BATCH_SIZE", size)
        return measure(*args, **options)
