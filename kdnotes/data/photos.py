"""Pixels of photos: decoded into memory, or read as they are asked for."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdnotes import progress
from kdnotes.data.folders import enumerated, refuse_damaged

HELD = 4e9  # bytes of images; a folder with more is read as it is asked for
_BLOCK = 64  # photos per task of the thread pool


@dataclass(frozen=True)
class StreamingImages:
    """Photos decoded when they are asked for: a source of images for folders beyond memory.

    Indices int64 (n,) give uint8 (n, 3, size, size), or a RequestError naming damaged files.
    """

    root: Path
    names: Sequence[str]
    size: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        names = [self.names[index] for index in indices.tolist()]
        images, damaged = _decoded(self.root, names, self.size, quiet=True)
        refuse_damaged(self.root, len(names), damaged)
        return torch.from_numpy(images)


def read(
    root: Path, names: Sequence[str], size: int, skip_damaged: bool
) -> tuple[Tensor | StreamingImages, Tensor]:
    """Images of the photos with these names, and the places (n,) of those that are kept.

    Damaged files are left out and named on stderr, or refused by a RequestError, if need be later.
    """
    held = len(names) * 3 * size * size <= HELD
    if not held and not skip_damaged:
        return StreamingImages(root, names, size), torch.arange(len(names))
    images, damaged = _decoded(root, names, size, keep=held)
    if not skip_damaged:
        refuse_damaged(root, len(names), damaged)
    kept = [place for place, name in enumerate(names) if name not in damaged]
    places = torch.tensor(kept).long()
    if damaged:
        said = f"skipped {len(damaged)} of {len(names)} files that cannot be read"
        print(f"kdnotes: {root}: {said}: {enumerated(sorted(damaged))}", file=sys.stderr)
    if not held:
        return StreamingImages(root, [names[place] for place in kept], size), places
    return torch.from_numpy(images[kept] if damaged else images), places


def _decoded(
    root: Path, names: Sequence[str], size: int, keep: bool = True, quiet: bool = False
) -> tuple[np.ndarray, dict[str, str]]:
    """Photos as uint8 (n, 3, size, size), none unless ``keep``; what is wrong with damaged ones."""
    images = np.empty((len(names) if keep else 0, 3, size, size), np.uint8)
    damaged: dict[str, str] = {}

    def block(start: int) -> None:
        for index in range(start, min(start + _BLOCK, len(names))):
            try:
                pixels = _pixels(root / names[index], size)
            except MemoryError:
                raise
            except Exception as error:  # damaged bytes make decoders raise almost anything
                unknown = isinstance(error, UnidentifiedImageError)
                said = str(error) or type(error).__name__
                damaged[names[index]] = "no image" if unknown else said
            else:
                if keep:
                    images[index] = pixels

    with (
        # Pillow warns of oddities in files; what cannot be read is reported as an error anyway.
        warnings.catch_warnings(action="ignore"),
        progress.shown("reading photos", len(names), quiet) as shown,
        ThreadPoolExecutor() as pool,
    ):
        for _ in pool.map(block, range(0, len(names), _BLOCK)):
            shown.advance(_BLOCK)
    return images, damaged


def _pixels(path: Path, size: int) -> np.ndarray:
    """The central square of a photo, upright and in colour, uint8 (3, size, size)."""
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # JPEG: decode large photos at a fraction
        ImageOps.exif_transpose(image, in_place=True)
        flat = _colour(image)
    return np.asarray(ImageOps.fit(flat, (size, size))).transpose(2, 0, 1)


def _colour(image: Image.Image) -> Image.Image:
    """A photo of any mode as RGB; what is transparent becomes white."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # grey of 16 bits, 65535 is white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixel values beyond 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is unknown")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
