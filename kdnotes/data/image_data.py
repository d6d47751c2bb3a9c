"""Images in memory or read as they are asked for, with labels, sources, factors and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from kdnotes.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

TEST_SOURCE_OFFSET = 1_000_000_000  # first source of files' test splits: train and test share none


@dataclass(frozen=True)
class ImageData:
    """Images with everything that is known about them.

    images: uint8 (N, 3, H, W), or a streaming source of such; labels: int64 (N,); sources: int64
    (N,), the glyph or photo an image was made from, the unit that intervals resample; factors: per
    image (N,), such as the digit drawn; masks: bool (N, H, W), such as where the digit is; names:
    what the numbers of a factor stand for, where the data say so.
    """

    images: Any
    labels: Tensor
    classes: tuple[str, ...]
    sources: Tensor
    factors: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, uint8 (n, 3, H, W)."""
        return self.images[indices]

    def subset(self, indices: Tensor) -> ImageData:
        """The same data set reduced to the indices, held in memory."""
        return replace(
            self,
            images=self.batch(indices),
            labels=self.labels[indices],
            sources=self.sources[indices],
            factors={name: values[indices] for name, values in self.factors.items()},
            masks={name: values[indices] for name, values in self.masks.items()},
        )

    def sample(self, count: int, seed: int) -> ImageData:
        """As many images, chosen by the seed, in their order; all where there are no more."""
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count].sort().values)

    @property
    def size(self) -> int:
        """Side of the (square) images in pixels."""
        return int(self.batch(torch.tensor([0])).shape[-1])


def joined(parts: Sequence[ImageData]) -> ImageData:
    """Data sets of one kind, held in memory, one after the other."""
    first = parts[0]
    return replace(
        first,
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        sources=torch.cat([part.sources for part in parts]),
        factors={name: torch.cat([part.factors[name] for part in parts]) for name in first.factors},
        masks={name: torch.cat([part.masks[name] for part in parts]) for name in first.masks},
    )


def file_sources(numbers: Tensor, split: str) -> Tensor:
    """Sources (N,) of images from files, each its own, by their number in the split."""
    return numbers + (TEST_SOURCE_OFFSET if split == "test" else 0)


@dataclass(frozen=True)
class PerImage:
    """Tensors with one row per image; indexing picks the same images in all of them."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, indices: Tensor | slice) -> Self:
        return replace(
            self, **{each.name: getattr(self, each.name)[indices] for each in fields(self)}
        )
