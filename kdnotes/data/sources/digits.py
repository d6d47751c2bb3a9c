"""Handwritten digits at 28x28 in three domains: as they are, on colours, on photographs."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from kdnotes.data import DataSpec, ImageData, Source, Strict, drawing, joined
from kdnotes.data.folders import EXTENSIONS
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.paths import base_folder
from kdnotes.store import checksum

DOMAINS = ("orig", "color", "m")


class DigitOptions(Strict):
    """Domain of the digits: grey, on random colours, on patches of photographs, or all three.

    ``grounds``: a folder with photographs for these patches in its folders train and test; with
    that of BSDS500 and MNIST's glyphs, domain m is MNIST-M.
    """

    domain: Literal["orig", "color", "m", "all"] = "orig"
    glyphs: Literal["bundled", "mnist"] = "bundled"
    grounds: str = ""


def load(spec: DataSpec, options: DigitOptions, data_dir: Path | None) -> ImageData:
    """Digits in one domain, uint8 (count, 3, 28, 28), or in all; ``m`` is Ganin et al.'s (2016)."""
    if options.domain != "all":
        return _drawn(spec, options, options.domain, data_dir)
    together = joined([_drawn(spec, options, domain, data_dir) for domain in DOMAINS])
    domain = torch.arange(len(DOMAINS)).repeat_interleave(len(together) // len(DOMAINS))
    return replace(together, factors=together.factors | {"domain": domain})


def fingerprint(spec: DataSpec, options: DigitOptions, data_dir: Path | None) -> str:
    """Name of the drawing code, the glyphs and the photographs of grounds, for cache keys."""
    mark = drawing.fingerprint(spec, options, data_dir)
    if not options.grounds:
        return mark
    files = [checksum(path) for path in _grounds(options.grounds, spec.split)]
    return f"{mark}-{checksum(' '.join(files).encode())[:16]}"


def _grounds(folder: str, split: str) -> list[Path]:
    """Files of photographs in a folder's train or test. Raises RequestError where there is none."""
    root = base_folder() / Path(folder).expanduser() / split
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        wanted = "name a folder that has some in its folders train and test"
        raise RequestError(f"no photographs in {folder}/{split} (grounds): {wanted}")
    return found


@lru_cache(maxsize=2)
def _photographs(folder: str, split: str) -> tuple[torch.Tensor, ...]:
    """Photographs of a split, float [0, 1] (3, H, W). Raises RequestError for unusable ones."""
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    photos = []
    for path in _grounds(folder, split):
        try:
            with Image.open(path) as photo:
                photos.append(to_tensor(photo.convert("RGB")))
        except OSError as error:
            raise RequestError(f"{path} (grounds) is no image that can be read") from error
        if min(photos[-1].shape[1:]) < 28:
            raise RequestError(f"{path} (grounds) is smaller than a digit, 28 x 28 pixels")
    return tuple(photos)


SOURCES = (
    Source(
        "digits", load, fingerprint, DigitOptions, drawing.CLASSES, drawn=True, size=28, about=2000
    ),
)


def _drawn(spec: DataSpec, options: DigitOptions, domain: str, data_dir: Path | None) -> ImageData:
    pool = drawing.glyphs(options.glyphs, spec.split, data_dir)
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
        photos = _photographs(options.grounds, spec.split) if options.grounds else ()
        images = (drawing.photo_background(len(ink), 28, generator, photos) - ink).abs()
    pixels, labels, sources = drawing.to_bytes(images), pool.labels[chosen], pool.ids[chosen]
    factors, masks = {"digit": labels}, {"digit": ink[:, 0] > 0.3}
    return ImageData(pixels, labels, drawing.CLASSES, sources, factors, masks)
