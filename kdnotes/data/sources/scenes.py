"""Small colour scenes composed from real handwritten digits, with every factor known.

A scene shows a digit (the shape cue) and, if asked for, a disc with an oriented texture (the marker
cue) on the other side. Each cue tells the class with its own probability and is random otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kdnotes.data import DataSpec, ImageData, Source, Strict, drawing, joined
from kdnotes.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

STYLES = ("bright", "dark", "outline", "faint")
SIZE = 32
_CHUNK = 2000  # scenes drawn at a time
_DEFAULT_COUNT = {"train": 8000, "test": 2000}
_SEEDED_BY = {"size": SIZE, "clutter": 0}  # options of old, which seeds are still derived from


class SceneOptions(Strict):
    """What a set of scenes looks like.

    Probabilities ``shape_agreement``, ``marker_agreement`` and ``hue_agreement``: how often that
    cue equals the class (it is random otherwise). ``marker_contrast``: how strongly the marker's
    texture stands out, 0 not at all. ``placement`` 0 to 1: how far the digit moves, 1 being as far
    as it stays inside. ``digit_side``: smallest and largest side of the digit as a share of the
    image's. ``group_weights``: how often each drawing style of `STYLES` occurs.
    """

    glyphs: Literal["bundled", "mnist"] = "bundled"
    marker: bool = False
    shape_agreement: float = Field(default=1.0, ge=0, le=1)
    marker_agreement: float = Field(default=1.0, ge=0, le=1)
    marker_contrast: float = Field(default=1.0, ge=0, le=1)
    hue_agreement: float = Field(default=0.0, ge=0, le=1)
    placement: float = Field(default=0.5, ge=0, le=1)
    digit_side: tuple[float, float] = (0.5, 0.65)
    group_weights: tuple[float, ...] = (1.0,)


def load(spec: DataSpec, options: SceneOptions, data_dir: Path | None) -> ImageData:
    """Draw scenes: uint8 (count, 3, 32, 32) with masks, and factors digit, marker, side, group."""
    pool = drawing.glyphs(options.glyphs, spec.split, data_dir)
    total = _DEFAULT_COUNT[spec.split] if spec.count is None else spec.count
    asked = options.model_dump() | _SEEDED_BY
    generator = drawing.generator_for("scenes", spec.split, spec.seed, asked)
    starts = range(0, total, _CHUNK)
    return joined([_drawn(options, pool, min(_CHUNK, total - at), generator) for at in starts])


class MnistSceneOptions(SceneOptions):
    """The same, of digits from MNIST."""

    glyphs: Literal["bundled", "mnist"] = "mnist"


SOURCES = tuple(
    Source(name, load, drawing.fingerprint, options, drawing.CLASSES, drawn=True, about=8000)
    for name, options in (("scenes", SceneOptions), ("scenes-of-mnist", MnistSceneOptions))
)


def _drawn(
    options: SceneOptions, pool: drawing.Glyphs, total: int, generator: torch.Generator
) -> ImageData:
    labels = torch.randperm(total, generator=generator) % 10
    shape = drawing.cue(labels, options.shape_agreement, generator)
    chosen = drawing.choose(pool.labels, shape, generator)
    ink = pool.images if pool.images.shape[-1] >= 16 else drawing.enlarged(pool.images, SIZE)
    side = drawing.uniform(*options.digit_side, (total,), generator)
    angle = drawing.uniform(-0.15, 0.15, (total,), generator)
    offsets = drawing.uniform(-1, 1, (total, 2), generator)
    left = torch.rand(total, generator=generator) < 0.5
    center = 0.5 * SIZE + offsets * options.placement * (0.5 - side[:, None] / 2) * SIZE
    if options.marker:
        center[:, 0] = torch.where(left, 0.27, 0.73) * SIZE + offsets[:, 0] * 0.03 * SIZE
    coverage = drawing.pasted(ink[chosen], SIZE, center, side, angle)
    background = drawing.enlarged(torch.rand((total, 3, 4, 4), generator=generator), SIZE) * 0.5
    paint = drawing.bright_colors(total, generator, labels, options.hue_agreement)
    weights = torch.tensor(options.group_weights)
    group = torch.multinomial(weights, total, replacement=True, generator=generator)
    images, coverage = _in_style(group, background, coverage, paint)
    factors = {"digit": shape, "group": group, "side": (~left).long()}
    masks = {"digit": coverage[:, 0] > 0.3}
    if options.marker:
        marked = _marked(options, images, labels, left, generator)
        images, factors["marker"], masks["marker"] = marked
        masks["digit"] &= ~masks["marker"]
    pixels, sources = drawing.to_bytes(images), pool.ids[chosen]
    return ImageData(pixels, labels, drawing.CLASSES, sources, factors, masks)


def _marked(
    options: SceneOptions, images: Tensor, labels: Tensor, left: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a marker on the side where the digit is not; which markers, and where (mask).

    A marker is a disc with one of ten textures: five orientations, two frequencies.
    """
    total = len(labels)
    markers = drawing.cue(labels, options.marker_agreement, generator)
    spots = drawing.uniform(-1, 1, (total, 2), generator)
    across = torch.where(left, 0.77, 0.23) * SIZE + spots[:, 0] * 0.04 * SIZE
    down = 0.5 * SIZE + spots[:, 1] * 0.25 * SIZE
    steps = torch.arange(SIZE) + 0.5
    dx, dy = steps - across[:, None, None], steps[:, None] - down[:, None, None]
    disc = (0.16 * SIZE + 0.5 - (dx**2 + dy**2).sqrt()).clamp(0, 1)[:, None]
    angle = (markers % 5).float()[:, None, None] * (math.pi / 5)
    period = torch.where(markers < 5, 3.2, 6.0)[:, None, None]
    phase = drawing.uniform(0, 2 * math.pi, (total, 1, 1), generator)
    along = dx * torch.cos(angle) + dy * torch.sin(angle)
    swing = torch.sin(2 * math.pi * along / period + phase)[:, None]
    wave = 0.5 + 0.5 * options.marker_contrast * swing
    light = drawing.bright_colors(total, generator)
    dark = drawing.bright_colors(total, generator) * 0.15
    texture = wave * light + (1 - wave) * dark
    return disc * texture + (1 - disc) * images, markers, disc[:, 0] > 0.5


def _in_style(
    group: Tensor, background: Tensor, coverage: Tensor, paint: Tensor
) -> tuple[Tensor, Tensor]:
    """The digit drawn over the background in each image's group style (`STYLES`), and where."""
    _, dark, outline, faint = (group[:, None, None, None] == n for n in range(len(STYLES)))
    largest = torch.nn.functional.max_pool2d
    rims = (largest(coverage, 3, 1, 1) + largest(-coverage, 3, 1, 1)).clamp(0, 1)
    coverage = torch.where(outline, rims, coverage)
    images = coverage * paint + (1 - coverage) * background
    images = background + torch.where(faint, 0.35, 1.0) * (images - background)
    return torch.where(dark, 1 - images, images), coverage
