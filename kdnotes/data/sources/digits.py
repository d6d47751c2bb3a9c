"""Handwritten digits at 28x28 in three domains: as they are, on colours, on photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kdnotes.data import drawing, glyphs
from kdnotes.data.image_data import ImageData, joined
from kdnotes.data.registry import Source
from kdnotes.data.spec import DataSpec
from kdnotes.lazy import torch

DOMAINS = ("orig", "color", "m")


class DigitOptions(BaseModel):
    """Domain of the digits: grey, on random colours, on patches of photographs, or all three."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: Literal["orig", "color", "m", "all"] = "orig"
    glyphs: Literal["bundled", "mnist"] = "bundled"


def load(spec: DataSpec, options: DigitOptions, data_dir: Path | None) -> ImageData:
    """Digits in one domain: uint8 (count, 3, 28, 28), or in all, one domain after the other.

    Domain ``color`` gives each image a random background colour; ``m`` takes the absolute
    difference to a patch of a photograph, as MNIST-M does (Ganin et al. 2016).
    """
    if options.domain != "all":
        return _drawn(spec, options.domain, options.glyphs, data_dir)
    each = [_drawn(spec, domain, options.glyphs, data_dir) for domain in DOMAINS]
    together = joined(each)
    number = torch.arange(len(DOMAINS)).repeat_interleave(len(each[0]))
    return replace(together, factors=together.factors | {"domain": number})


SOURCES = (
    Source(
        "digits",
        load,
        glyphs.fingerprint,
        DigitOptions,
        glyphs.CLASSES,
        drawn=True,
        size=28,
        about=2000,
    ),
)


def _drawn(
    spec: DataSpec, domain: str, origin: Literal["bundled", "mnist"], data_dir: Path | None
) -> ImageData:
    pool = glyphs.load(origin, spec.split, data_dir)
    generator = drawing.generator_for("digits", spec.split, spec.seed, {"domain": domain})
    chosen = torch.arange(len(pool.labels))
    if spec.count is not None:  # classes in turn
        chosen = drawing.choose(pool.labels, torch.arange(spec.count) % 10, generator)
    ink = pool.images[chosen]
    if ink.shape[-1] != 28:
        ink = torch.nn.functional.pad(drawing.enlarged(ink, 20), (4, 4, 4, 4))
    if domain == "orig":
        images = ink.expand(-1, 3, -1, -1)
    elif domain == "color":
        background = torch.rand((len(ink), 3, 1, 1), generator=generator)
        images = ink + (1 - ink) * background
    else:
        images = (drawing.photo_background(len(ink), 28, generator) - ink).abs()
    labels = pool.labels[chosen]
    return ImageData(
        drawing.to_bytes(images),
        labels,
        glyphs.CLASSES,
        pool.ids[chosen],
        factors={"digit": labels},
        masks={"digit": ink[:, 0] > 0.3},
    )
