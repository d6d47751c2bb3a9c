"""Small colour scenes composed from real handwritten digits, with every factor known.

A scene shows a digit (the shape cue) and, if asked for, a disc with an oriented texture (the
marker cue) on the other side. Each cue tells the class with its own probability and is random
otherwise, so that what a network relies on can be measured against ground truth.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from kdnotes.data import ImageData, glyphs
from kdnotes.data.glyphs import Glyphs
from kdnotes.errors import RequestError

REVISION = 1  # raise it when the same options give other pixels: cached networks depend on them
CLASSES = tuple(str(digit) for digit in range(10))
STYLES = ("bright", "dark", "outline", "faint")
_CHUNK = 2000
_DEFAULT_COUNT = {"train": 8000, "test": 2000}


class SceneOptions(BaseModel):
    """What a set of scenes looks like.

    Probabilities ``shape_agreement``, ``marker_agreement`` and ``hue_agreement``: how often that
    cue equals the class (it is random otherwise). ``marker_contrast``: how strongly the marker's
    texture stands out, 0 not at all. ``placement`` 0 to 1: how far the digit moves,
    1 being as far as it stays inside. ``digit_side``: smallest and largest side of the digit as a
    share of the image's. ``clutter``: fragments of other digits strewn in. ``group_weights``: how
    often each drawing style of `STYLES` occurs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=32, ge=16, le=256)
    glyphs: Literal["bundled", "mnist"] = "bundled"
    marker: bool = False
    shape_agreement: float = Field(default=1.0, ge=0, le=1)
    marker_agreement: float = Field(default=1.0, ge=0, le=1)
    marker_contrast: float = Field(default=1.0, ge=0, le=1)
    hue_agreement: float = Field(default=0.0, ge=0, le=1)
    placement: float = Field(default=0.5, ge=0, le=1)
    digit_side: tuple[float, float] = (0.5, 0.65)
    clutter: int = Field(default=0, ge=0, le=12)
    group_weights: tuple[float, ...] = (1.0,)


class DigitOptions(BaseModel):
    """Domain of the 28x28 digits: grey, on random colours, on patches of photographs, or all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: Literal["orig", "color", "m", "all"] = "orig"
    glyphs: Literal["bundled", "mnist"] = "bundled"


def load(
    name: str,
    split: str,
    count: int | None,
    seed: int,
    options: dict[str, Any],
    data_dir: Path | None,
) -> ImageData:
    """Scenes or digits by name; raises RequestError when an option is unknown or out of range."""
    if name == "digits":
        return digits(parse(DigitOptions, options), split, count, seed, data_dir)
    return scenes(parse(SceneOptions, options), split, count, seed, data_dir)


def parse(model: type[Any], options: dict[str, Any]) -> Any:
    """Options as a checked model; raises RequestError naming what is wrong and what is known."""
    try:
        return model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(model.model_fields)
        raise RequestError(f"option {where!r}: {first['msg']} (known options: {known})") from error


def fingerprint(options: dict[str, Any], data_dir: Path | None) -> str:
    """Name of the glyphs and of the drawing code behind a set of scenes."""
    origin = options.get("glyphs", "bundled")
    return f"{REVISION}-{glyphs.fingerprint(origin, data_dir)}"


def scenes(
    options: SceneOptions, split: str, count: int | None, seed: int, data_dir: Path | None = None
) -> ImageData:
    """Draw scenes: uint8 (count, 3, size, size) with factors and masks.

    Factors: digit, marker, side (0: digit left) and group, the number in `STYLES`. The same
    options, split, count and seed give the same pixels.
    """
    pool = glyphs.load(options.glyphs, split, data_dir)
    total = _DEFAULT_COUNT[split] if count is None else count
    generator = _generator("scenes", split, seed, options.model_dump())
    parts = [
        _draw(options, pool, min(_CHUNK, total - start), generator)
        for start in range(0, total, _CHUNK)
    ]
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    masks = {"digit": joined.pop("digit_mask")}
    marker_mask = joined.pop("marker_mask", None)
    if marker_mask is not None:
        masks["marker"] = marker_mask
    return ImageData(
        images=joined.pop("images"),
        labels=joined.pop("labels"),
        classes=CLASSES,
        sources=joined.pop("sources"),
        factors=joined,
        masks=masks,
    )


def digits(
    options: DigitOptions, split: str, count: int | None, seed: int, data_dir: Path | None = None
) -> ImageData:
    """Digits at 28x28 in one domain: uint8 (count, 3, 28, 28).

    Domain ``color`` gives each image a random background colour; ``m`` takes the absolute
    difference to a patch of a photograph, as MNIST-M does (Ganin et al. 2016).
    """
    if options.domain == "all":
        return _all_domains(options, split, count, seed, data_dir)
    pool = glyphs.load(options.glyphs, split, data_dir)
    generator = _generator("digits", split, seed, {"domain": options.domain})
    if count is None:
        chosen = torch.arange(len(pool.labels))
    else:
        chosen = _balanced_choice(pool.labels, count, generator)
    ink = pool.images[chosen]
    if ink.shape[-1] != 28:
        ink = F.interpolate(ink, (20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
        ink = F.pad(ink, (4, 4, 4, 4))
    total = len(chosen)
    if options.domain == "orig":
        images = ink.expand(-1, 3, -1, -1)
    elif options.domain == "color":
        background = torch.rand((total, 3, 1, 1), generator=generator)
        images = ink + (1 - ink) * background
    else:
        images = (_photo_patches(total, 28, generator) - ink).abs()
    return ImageData(
        images=_to_bytes(images),
        labels=pool.labels[chosen],
        classes=CLASSES,
        sources=pool.ids[chosen],
        factors={"digit": pool.labels[chosen]},
        masks={"digit": ink[:, 0] > 0.3},
    )


def _all_domains(
    options: DigitOptions, split: str, count: int | None, seed: int, data_dir: Path | None
) -> ImageData:
    """The same digits in each of the three domains, one domain after the other."""
    each = [
        digits(options.model_copy(update={"domain": domain}), split, count, seed, data_dir)
        for domain in ("orig", "color", "m")
    ]
    return ImageData(
        images=torch.cat([part.images for part in each]),
        labels=torch.cat([part.labels for part in each]),
        classes=CLASSES,
        sources=torch.cat([part.sources for part in each]),
        factors={
            "digit": torch.cat([part.labels for part in each]),
            "domain": torch.arange(3).repeat_interleave(len(each[0])),
        },
        masks={"digit": torch.cat([part.masks["digit"] for part in each])},
    )


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours (N, 3) from hue, saturation and value (N,), each in [0, 1] (hue in turns)."""
    shifted = (hue[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    part = torch.minimum(shifted, 4 - shifted).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * part)


def _generator(*parts: Any) -> torch.Generator:
    text = json.dumps([REVISION, *parts], sort_keys=True)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _cue(labels: Tensor, agreement: float, generator: torch.Generator) -> Tensor:
    """The label with probability ``agreement``, a uniformly random class otherwise."""
    random = torch.randint(10, labels.shape, generator=generator)
    agrees = torch.rand(labels.shape, generator=generator) < agreement
    return torch.where(agrees, labels, random)


def _balanced_choice(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of ``count`` glyphs, classes in turn, each class in a random order that repeats."""
    wanted = torch.arange(count) % 10
    return _choose(labels, wanted, generator)


def _choose(pool_labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
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


def _smooth_background(total: int, size: int, generator: torch.Generator) -> Tensor:
    coarse = torch.rand((total, 3, 4, 4), generator=generator)
    fine = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return fine.clamp(0, 1) * 0.5


def _photo_patches(total: int, size: int, generator: torch.Generator) -> Tensor:
    photos = glyphs.photographs()
    which = torch.randint(len(photos), (total,), generator=generator).tolist()
    spots = torch.rand((total, 2), generator=generator).tolist()
    patches = []
    for photo_index, (down, right) in zip(which, spots, strict=True):
        photo = photos[photo_index]
        top = int(down * (photo.shape[1] - 2 * size))
        left = int(right * (photo.shape[2] - 2 * size))
        # Every second pixel: a patch then holds more of the photograph's structure.
        patches.append(photo[:, top : top + 2 * size : 2, left : left + 2 * size : 2])
    return torch.stack(patches)


def _enlarged(ink: Tensor) -> Tensor:
    """Glyphs (N, 1, h, w), small ones enlarged so that their pixels do not show."""
    if ink.shape[-1] >= 16:
        return ink
    return F.interpolate(ink, (32, 32), mode="bicubic", align_corners=False).clamp(0, 1)


def _paste(ink: Tensor, size: int, center: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """Glyphs (N, 1, h, w) placed on an empty canvas; centres in pixels, sides as a share."""
    cosine, sine = torch.cos(angle) / side, torch.sin(angle) / side
    shift = 1 - 2 * center / size  # from pixel centre to the grid's [-1, 1] coordinates, negated
    theta = torch.stack(
        [
            torch.stack([cosine, sine, cosine * shift[:, 0] + sine * shift[:, 1]], 1),
            torch.stack([-sine, cosine, -sine * shift[:, 0] + cosine * shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [len(ink), 1, size, size], align_corners=False)
    return F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _disc(
    markers: Tensor, size: int, center: Tensor, contrast: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Discs with one of ten textures (five orientations, two frequencies): colour and coverage."""
    total = len(markers)
    radius = 0.16 * size
    steps = torch.arange(size) + 0.5
    dx = steps[None, None, :] - center[:, 0, None, None]
    dy = steps[None, :, None] - center[:, 1, None, None]
    coverage = (radius + 0.5 - (dx**2 + dy**2).sqrt()).clamp(0, 1)[:, None]
    angle = (markers % 5).float() * (math.pi / 5)
    period = torch.where(markers < 5, 3.2, 6.0) * (size / 32)
    phase = _uniform(0, 2 * math.pi, (total, 1, 1), generator)
    along = dx * torch.cos(angle)[:, None, None] + dy * torch.sin(angle)[:, None, None]
    swing = torch.sin(2 * math.pi * along / period[:, None, None] + phase)[:, None]
    wave = 0.5 + 0.5 * contrast * swing
    light = _random_color(total, generator, None, 0.0)[..., None, None]
    dark = _random_color(total, generator, None, 0.0)[..., None, None] * 0.15
    return wave * light + (1 - wave) * dark, coverage


def _random_color(
    total: int, generator: torch.Generator, labels: Tensor | None, hue_agreement: float
) -> Tensor:
    """Bright colours (N, 3); with the given probability the hue is the label's own."""
    hue = torch.rand(total, generator=generator)
    saturation = _uniform(0.5, 1.0, (total,), generator)
    value = _uniform(0.75, 1.0, (total,), generator)
    if labels is not None:
        near = (labels.float() + _uniform(-0.25, 0.25, (total,), generator)) / 10
        tells = torch.rand(total, generator=generator) < hue_agreement
        hue = torch.where(tells, near % 1, hue)
    return hsv_to_rgb(hue, saturation, value)


def _draw(
    options: SceneOptions, pool: Glyphs, total: int, generator: torch.Generator
) -> dict[str, Tensor]:
    size = options.size
    labels = torch.randperm(total, generator=generator) % 10
    shape = _cue(labels, options.shape_agreement, generator)
    chosen = _choose(pool.labels, shape, generator)
    ink = _enlarged(pool.images)[chosen]
    side = _uniform(*options.digit_side, (total,), generator)
    angle = _uniform(-0.15, 0.15, (total,), generator)
    offsets = _uniform(-1, 1, (total, 2), generator)
    left = torch.rand(total, generator=generator) < 0.5
    if options.marker:
        digit_x = torch.where(left, 0.27, 0.73) * size + offsets[:, 0] * 0.03 * size
    else:
        digit_x = 0.5 * size + offsets[:, 0] * options.placement * (0.5 - side / 2) * size
    digit_y = 0.5 * size + offsets[:, 1] * options.placement * (0.5 - side / 2) * size
    coverage = _paste(ink, size, torch.stack([digit_x, digit_y], 1), side, angle)

    background = _smooth_background(total, size, generator)
    for _ in range(options.clutter):
        background = _strew(background, pool, generator)
    color = _random_color(total, generator, labels, options.hue_agreement)
    images, coverage, group = _in_style(options, background, coverage, color, generator)
    result = {
        "labels": labels,
        "sources": pool.ids[chosen],
        "digit": shape,
        "group": group,
        "side": (~left).long(),
        "digit_mask": coverage[:, 0] > 0.3,
    }
    if options.marker:
        markers = _cue(labels, options.marker_agreement, generator)
        spots = _uniform(-1, 1, (total, 2), generator)
        marker_x = torch.where(left, 0.77, 0.23) * size + spots[:, 0] * 0.04 * size
        marker_y = 0.5 * size + spots[:, 1] * 0.25 * size
        marker_center = torch.stack([marker_x, marker_y], 1)
        texture, disc = _disc(markers, size, marker_center, options.marker_contrast, generator)
        images = disc * texture + (1 - disc) * images
        result |= {"marker": markers, "marker_mask": disc[:, 0] > 0.5}
        result["digit_mask"] &= ~result["marker_mask"]
    result["images"] = _to_bytes(images)
    return result


def _in_style(
    options: SceneOptions,
    background: Tensor,
    coverage: Tensor,
    color: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """The digit drawn over the background in each image's group style (`STYLES`)."""
    weights = torch.tensor(options.group_weights)
    group = torch.multinomial(weights, len(color), replacement=True, generator=generator)
    style = group[:, None, None, None]
    outlined = (group == STYLES.index("outline")).nonzero()[:, 0]
    if len(outlined):
        coverage = coverage.index_copy(0, outlined, _outlines(coverage[outlined]))
    paint = color[..., None, None]
    images = coverage * paint + (1 - coverage) * background
    strength = torch.where(style == STYLES.index("faint"), 0.35, 1.0)
    images = background + strength * (images - background)
    return torch.where(style == STYLES.index("dark"), 1 - images, images), coverage, group


def _outlines(coverage: Tensor) -> Tensor:
    """The rims (N, 1, H, W) of what is covered."""
    grown = F.max_pool2d(coverage, 3, stride=1, padding=1)
    shrunk = -F.max_pool2d(-coverage, 3, stride=1, padding=1)
    return (grown - shrunk).clamp(0, 1)


def _strew(background: Tensor, pool: Glyphs, generator: torch.Generator) -> Tensor:
    """Lay one small fragment of a random digit, in a random colour, on every background."""
    total, _, size, _ = background.shape
    chosen = torch.randint(len(pool.labels), (total,), generator=generator)
    fragment = pool.images[chosen]
    half = fragment.shape[-1] // 2
    corner = torch.randint(4, (total,), generator=generator)
    quarters = fragment.unfold(2, half, half).unfold(3, half, half)[:, :, :2, :2]
    piece = quarters.flatten(2, 3)[torch.arange(total), :, corner]
    center = _uniform(0.1, 0.9, (total, 2), generator) * size
    side = _uniform(0.15, 0.3, (total,), generator)
    angle = _uniform(-math.pi, math.pi, (total,), generator)
    coverage = _paste(piece, size, center, side, angle)
    color = _random_color(total, generator, None, 0.0)[..., None, None]
    return coverage * color + (1 - coverage) * background


def _to_bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
