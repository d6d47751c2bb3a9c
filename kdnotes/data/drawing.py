"""What scenes and digits are drawn with: real handwritten digits, seeded choices, backgrounds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kdnotes.data import DataSpec, NoOptions
from kdnotes.data.sources import torchvision_sets
from kdnotes.lazy import torch
from kdnotes.store import checksum

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

REVISION = 1  # raise it when the same options give other pixels: cached networks depend on them
SPLIT_SEED = 20531  # one split for all, so that no test glyph is ever seen in training
TEST_SHARE = 1 / 3
CLASSES = tuple("0123456789")


class Glyphs(NamedTuple):
    """Handwritten digits: images float [0, 1] (N, 1, h, w), labels (N,), ids (N,)."""

    images: Tensor
    labels: Tensor
    ids: Tensor


@lru_cache(maxsize=8)
def glyphs(
    origin: Literal["bundled", "mnist"], split: Literal["train", "test"], data_dir: Path | None
) -> Glyphs:
    """Glyphs of one split, train and test sharing none; RequestError if MNIST is missing.

    ``bundled``: scikit-learn's 1,797 digits (Alpaydin and Kaynak 1998), split by class.
    """
    import numpy as np

    if origin == "mnist":
        data = torchvision_sets.load(DataSpec(name="mnist", split=split), NoOptions(), data_dir)
        ids = torch.arange(len(data)) + (0 if split == "train" else 1_000_000)
        return Glyphs(data.images[:, :1].float() / 255, data.labels, ids)
    images, labels = _bundled()
    chosen = []
    generator = np.random.default_rng(SPLIT_SEED)
    for digit in range(10):
        of_class = generator.permutation(np.flatnonzero(labels == digit))
        first_train = round(len(of_class) * TEST_SHARE)
        chosen.append(of_class[:first_train] if split == "test" else of_class[first_train:])
    rows = np.sort(np.concatenate(chosen))
    parts = (images[rows][:, None], labels[rows], rows)
    return Glyphs(*(torch.from_numpy(part) for part in parts))


def fingerprint(spec: DataSpec, options: Any, data_dir: Path | None) -> str:
    """Name of the drawing code and of the glyphs, which are an option, for cache keys."""
    if options.glyphs == "mnist":
        mnist = spec.model_copy(update={"name": "mnist"})
        return f"{REVISION}-{torchvision_sets.fingerprint(mnist, NoOptions(), data_dir)}"
    images, labels = _bundled()
    return f"{REVISION}-{checksum(images.tobytes() + labels.tobytes())[:16]}"


@lru_cache(maxsize=1)
def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn's load_digits reads, without the two seconds that importing it takes."""
    import numpy as np

    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")  # 8x8 pixels from 0 to 16, then the digit
    images = (table[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32)
    return images, table[:, -1].astype(np.int64)


@lru_cache(maxsize=1)
def photographs() -> tuple[Tensor, ...]:
    """The two photographs that come with scikit-learn, float [0, 1] (3, H, W)."""
    from sklearn.datasets import load_sample_images

    images = map(torch.tensor, load_sample_images().images)
    return tuple(image.permute(2, 0, 1).contiguous().float() / 255 for image in images)


def generator_for(*parts: Any) -> torch.Generator:
    """A generator whose seed is derived from all that is asked for."""
    text = json.dumps([REVISION, *parts], sort_keys=True)
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
    larger = torch.nn.functional.interpolate(ink, (size, size), mode="bicubic")
    return larger.clamp(0, 1)


def pasted(ink: Tensor, size: int, center: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """Glyphs (N, 1, h, w) placed on an empty canvas; centres in pixels, sides as a share."""
    cosine, sine = torch.cos(angle) / side, torch.sin(angle) / side
    shift = 1 - 2 * center / size  # from pixel centre to the grid's [-1, 1] coordinates, negated
    upper = torch.stack([cosine, sine, cosine * shift[:, 0] + sine * shift[:, 1]], 1)
    lower = torch.stack([-sine, cosine, -sine * shift[:, 0] + cosine * shift[:, 1]], 1)
    theta, tools = torch.stack([upper, lower], 1), torch.nn.functional
    grid = tools.affine_grid(theta, [len(ink), 1, size, size], align_corners=False)
    return tools.grid_sample(ink, grid, align_corners=False)


def photo_background(
    total: int, size: int, generator: torch.Generator, photos: Sequence[Tensor]
) -> Tensor:
    """Patches (N, 3, size, size) of photos (3, H, W); if none, of two, by every second pixel."""
    step, photos = 1 if photos else 2, photos or photographs()
    which = torch.randint(len(photos), (total,), generator=generator).tolist()
    spots = torch.rand((total, 2), generator=generator).tolist()
    patches = []
    for photo_index, (down, right) in zip(which, spots, strict=True):
        photo = photos[photo_index]
        top = int(down * (photo.shape[1] - step * size))
        left = int(right * (photo.shape[2] - step * size))
        patches.append(photo[:, top : top + step * size : step, left : left + step * size : step])
    return torch.stack(patches)


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
