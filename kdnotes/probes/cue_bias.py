"""Shape or texture: which of two cues decides, where they name different classes?

Scenes bring their own conflicts (digit against marker). For photographs there are sets made by
style transfer, such as that of Geirhos et al. (2019): the shape of a cat with the skin of an
elephant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from kdnotes.data import ImageData
from kdnotes.data.folders import EXTENSIONS
from kdnotes.data.photos import StreamingImages
from kdnotes.errors import RequestError
from kdnotes.probes import localization
from kdnotes.probes.cast import Cast
from kdnotes.probes.forward import BATCH_SIZE, all_logits
from kdnotes.probes.localization import CONFLICT
from kdnotes.probes.outcome import Outcome, Recorder

SHARES = ("shape_answers", "texture_answers", "other_answers")
PHOTO_CUES = ("shape", "texture")


def measure(
    cast: Cast,
    data: ImageData,
    *,
    cues: tuple[str, str] = ("digit", "marker"),
    condition: str = CONFLICT,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Which cue the answers of every network name, on images whose two cues name two classes.

    cues: two of the data's factors, the shape's first. Only images on which they differ count.
    Measures:

    - ``shape_bias``: 1 where an answer is the shape's class, 0 where it is the texture's, NaN where
      it is neither; the mean is the shape bias of Geirhos et al. (2019).
    - ``shape_answers``, ``texture_answers``, ``other_answers`` (table only): shares of all these
      images. They sum to 1. Where labels are the shape's, the first is the accuracy on them.

    Raises RequestError when a factor is missing or no image has a conflict.
    """
    found = localization.follows(cast, data, cues=cues, batch_size=batch_size).items
    found = found[found["measure"] == f"follows_{cues[0]}"]
    recorder = Recorder(data)
    for member in cast.everyone():
        rows = found[(found["arm"] == member.arm) & (found["seed"] == member.seed)]
        values, answers = rows["value"].to_numpy(), rows["prediction"]
        recorder.add(member, "shape_bias", values, answers, condition, rows["item"])
        parts = (values == 1, values == 0, np.isnan(values))
        for name, counted in zip(SHARES, parts, strict=True):
            recorder.add(member, name, counted, answers, condition, rows["item"], False)
    return recorder.outcome()


def accuracy(
    cast: Cast, data: ImageData, *, condition: str = "", batch_size: int = BATCH_SIZE
) -> Outcome:
    """``accuracy`` of every network on ordinary images, the price at which a bias may come."""
    members = list(cast.everyone())
    recorder = Recorder(data)
    for member, logits in zip(members, all_logits(members, data, batch_size), strict=True):
        answers = logits.argmax(1)
        recorder.add(member, "accuracy", answers == data.labels, answers, condition)
    return recorder.outcome()


def shape_bias(predictions: ArrayLike, shape_labels: ArrayLike, texture_labels: ArrayLike) -> float:
    """Shape answers over shape and texture answers, in [0, 1]; NaN where there is neither.

    predictions, shape_labels, texture_labels: classes (n,). Images on which both cues name the same
    class do not count. As in model-vs-human's ``ShapeBias`` (Geirhos et al. 2019).
    """
    answers, shape, texture = (
        np.asarray(each) for each in (predictions, shape_labels, texture_labels)
    )
    conflict = shape != texture
    by_shape = int((conflict & (answers == shape)).sum())
    by_texture = int((conflict & (answers == texture)).sum())
    either = by_shape + by_texture
    return by_shape / either if either else float("nan")


class ConflictPhotos(NamedTuple):
    """Photographs with conflicting cues, and how many of the folder were of other classes."""

    data: ImageData
    left_out: int


def conflict_photos(folder: Path, classes: Sequence[str], size: int) -> ConflictPhotos:
    """Read a folder of photographs named as those of model-vs-human.

    The last folder names the class of the shape, the file's name ends in that of the texture:
    ``cat/cat1-dog2.png`` is cat 1 with the texture of dog 2. Folders above do not matter. classes:
    the networks' classes by name (upper or lower case); photographs that name others are left out.
    size: side of the images in pixels. ``labels`` are the shapes', factors ``shape`` and
    ``texture``; a source is the photograph that gave the shape.

    Raises RequestError when there is no such folder or no photograph of two known classes.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder} of photographs with conflicting cues")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
    named = {name: _cues_of(name, classes) for name in names}
    known = {name: cues for name, cues in named.items() if cues is not None}
    if not any(shape != texture for shape, texture, _ in known.values()):
        example = f"; the first is {names[0]}" if names else ""
        raise RequestError(
            f"none of {len(names)} images in {folder} is named like cat/cat1-dog2.png after two of "
            f"the networks' classes ({', '.join(classes[:10])}){example}"
        )
    shapes, textures, origins = zip(*known.values(), strict=True)
    numbers = {origin: number for number, origin in enumerate(dict.fromkeys(origins))}
    shape = torch.tensor(shapes)
    data = ImageData(
        images=StreamingImages(folder, list(known), size),
        labels=shape,
        classes=tuple(classes),
        sources=torch.tensor([numbers[origin] for origin in origins]),
        factors={"shape": shape, "texture": torch.tensor(textures)},
    )
    return ConflictPhotos(data, len(names) - len(known))


def _cues_of(name: str, classes: Sequence[str]) -> tuple[int, int, str] | None:
    """Shape and texture class and the shape's photograph, from a file's relative name."""
    path = Path(name)
    lower = [each.casefold() for each in classes]
    folder, stem = path.parent.name.casefold(), path.stem.casefold()
    # Class names may hold digits and hyphens themselves: the longest that fits is meant.
    fits = [each for each in lower if re.search(rf"-{re.escape(each)}\d*$", stem)]
    if folder not in lower or not fits:
        return None
    texture = max(fits, key=len)
    origin = re.sub(rf"-{re.escape(texture)}\d*$", "", stem)
    return lower.index(folder), lower.index(texture), f"{folder}/{origin}"
