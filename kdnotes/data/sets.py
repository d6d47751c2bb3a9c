"""Data sets as in-memory uint8 tensors with labels, sources, factors and masks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kdnotes.errors import RequestError

TORCHVISION_NAMES = ("mnist", "fashion-mnist", "cifar10", "cifar100")
FOLDER_PREFIX = "imagefolder:"


class ImageSource(Protocol):
    """Images by index: a uint8 tensor (N, 3, H, W), or a folder that is read as it goes."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


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

    @property
    def size(self) -> int:
        """Side of the (square) images in pixels."""
        return int(self.batch(torch.tensor([0])).shape[-1])


class DataSpec(BaseModel):
    """Which images: enough to make the same ones again, and to name them in a cache key.

    ``count`` None means all there are. ``options`` are the data set's own (for scenes, the fields
    of `scenes.SceneOptions`). ``fingerprint`` names the content of the files behind it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: Literal["train", "test"]
    count: int | None = None
    seed: int = 0
    options: dict[str, Any] = {}
    fingerprint: str = ""

    def identity(self) -> dict[str, Any]:
        """What decides which images these are; where a folder lies does not."""
        values = self.model_dump()
        if self.name.startswith(FOLDER_PREFIX) and self.fingerprint:
            values |= {"name": "imagefolder", "options": {}}  # both are in the fingerprint
        return values

    def key(self) -> str:
        """Content hash of the specification."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def names() -> tuple[str, ...]:
    """The names that `load` understands."""
    return ("scenes", "digits", *TORCHVISION_NAMES, f"{FOLDER_PREFIX}PATH")


def check_name(name: str) -> None:
    """Raise RequestError unless the name is one of `names`."""
    if name not in names() and not name.startswith(FOLDER_PREFIX):
        raise RequestError(f"unknown data set {name!r}; known: {', '.join(names())}")


def with_fingerprint(spec: DataSpec, data_dir: Path | None) -> DataSpec:
    """The specification with the content of its files named, so that changed files change keys."""
    check_name(spec.name)
    if spec.name in ("scenes", "digits"):
        from kdnotes.data import scenes

        mark = scenes.fingerprint(spec.options, data_dir)
    else:
        from kdnotes.data import folders

        mark = folders.fingerprint(spec.name, spec.split, data_dir, spec.options)
    return spec.model_copy(update={"fingerprint": mark})


def load(spec: DataSpec, data_dir: Path | None = None) -> ImageData:
    """Make or read the images of a specification.

    Raises RequestError when the name is unknown or the files are missing or unusable.
    """
    check_name(spec.name)
    if spec.name in ("scenes", "digits"):
        from kdnotes.data import scenes

        return scenes.load(spec.name, spec.split, spec.count, spec.seed, spec.options, data_dir)
    from kdnotes.data import folders

    data = folders.load(spec.name, spec.split, data_dir, spec.options)
    return data if spec.count is None else _seeded_subset(data, spec.count, spec.seed)


def _seeded_subset(data: ImageData, count: int, seed: int) -> ImageData:
    if count >= len(data):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:count].sort().values)
