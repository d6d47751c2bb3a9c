"""Small colour scenes composed from real handwritten digits, with every factor known.

A scene shows a digit (the shape cue) and, if asked for, a disc with an oriented texture (the
marker cue) on the other side. Each cue tells the class with its own probability and is random
otherwise, so that what a network relies on can be measured against ground truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kdnotes.data import drawing, glyphs
from kdnotes.data.image_data import ImageData, joined
from kdnotes.data.registry import Source
from kdnotes.data.spec import DataSpec, Strict
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
    """Draw scenes: uint8 (count, 3, 32, 32) with factors and masks.

    Factors: digit, marker, side (0: digit left) and group, the number in `STYLES`. The same
    options, split, count and seed give the same pixels.
    """
    pool = glyphs.load(options.glyphs, spec.split, data_dir)
    total = _DEFAULT_COUNT[spec.split] if spec.count is None else spec.count
    asked = options.model_dump() | _SEEDED_BY
    generator = drawing.generator_for("scenes", spec.split, spec.seed, asked)
    starts = range(0, total, _CHUNK)
    return joined([_drawn(options, pool, min(_CHUNK, total - at), generator) for at in starts])


class MnistSceneOptions(SceneOptions):
    """The same, of digits from MNIST: fifty times as many as the bundled ones."""

    glyphs: Literal["bundled", "mnist"] = "mnist"


SOURCES = tuple(
    Source(name, load, glyphs.fingerprint, options, glyphs.CLASSES, drawn=True, about=8000)
    for name, options in (("scenes", SceneOptions), ("scenes-of-mnist", MnistSceneOptions))
)


def _drawn(
    options: SceneOptions, pool: glyphs.Glyphs, total: int, generator: torch.Generator
) -> ImageData:
    labels = torch.randperm(total, generator=generator) % 10
    shape = drawing.cue(labels, options.shape_agreement, generator)
    chosen = drawing.choose(pool.labels, shape, generator)
    ink = pool.images if pool.images.shape[-1] >= 16 else drawing.enlarged(pool.images, SIZE)
    side = drawing.uniform(*options.digit_side, (total,), generator)
    angle = drawing.uniform(-0.15, 0.15, (total,), generator)
    offsets = drawing.uniform(-1, 1, (total, 2), generator)
    left = torch.rand(total, generator=generator) < 0.5
    if options.marker:
        digit_x = torch.where(left, 0.27, 0.73) * SIZE + offsets[:, 0] * 0.03 * SIZE
    else:
        digit_x = 0.5 * SIZE + offsets[:, 0] * options.placement * (0.5 - side / 2) * SIZE
    digit_y = 0.5 * SIZE + offsets[:, 1] * options.placement * (0.5 - side / 2) * SIZE
    center = torch.stack([digit_x, digit_y], 1)
    coverage = drawing.pasted(ink[chosen], SIZE, center, side, angle)
    background = drawing.smooth_background(total, SIZE, generator)
    paint = drawing.bright_colors(total, generator, labels, options.hue_agreement)
    images, coverage, group = _in_style(options, background, coverage, paint, generator)
    factors = {"digit": shape, "group": group, "side": (~left).long()}
    masks = {"digit": coverage[:, 0] > 0.3}
    if options.marker:
        images, factors["marker"], masks["marker"] = _marked(
            options, images, labels, left, generator
        )
        masks["digit"] &= ~masks["marker"]
    return ImageData(
        drawing.to_bytes(images),
        labels,
        glyphs.CLASSES,
        pool.ids[chosen],
        factors=factors,
        masks=masks,
    )


def _marked(
    options: SceneOptions, images: Tensor, labels: Tensor, left: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a marker on the side where the digit is not; which markers, and where (mask)."""
    markers = drawing.cue(labels, options.marker_agreement, generator)
    spots = drawing.uniform(-1, 1, (len(labels), 2), generator)
    across = torch.where(left, 0.77, 0.23) * SIZE + spots[:, 0] * 0.04 * SIZE
    down = 0.5 * SIZE + spots[:, 1] * 0.25 * SIZE
    center = torch.stack([across, down], 1)
    texture, disc = drawing.disc(markers, SIZE, center, options.marker_contrast, generator)
    return disc * texture + (1 - disc) * images, markers, disc[:, 0] > 0.5


def _in_style(
    options: SceneOptions,
    background: Tensor,
    coverage: Tensor,
    paint: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """The digit drawn over the background in each image's group style (`STYLES`)."""
    weights = torch.tensor(options.group_weights)
    group = torch.multinomial(weights, len(paint), replacement=True, generator=generator)
    style = group[:, None, None, None]
    outlined = (group == STYLES.index("outline")).nonzero()[:, 0]
    if len(outlined):
        rims = drawing.outlines(coverage[outlined])
        coverage = coverage.index_copy(0, outlined, rims)
    images = coverage * paint + (1 - coverage) * background
    strength = torch.where(style == STYLES.index("faint"), 0.35, 1.0)
    images = background + strength * (images - background)
    return torch.where(style == STYLES.index("dark"), 1 - images, images), coverage, group
