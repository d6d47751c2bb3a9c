"""Shape or texture: which of two cues decides, where they name different classes?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdnotes.data.folders import EXTENSIONS
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.paths import base_folder
from kdnotes.probes import base
from kdnotes.probes.base import Cast, ImageData, Measure, Member, Outcome, Recorder

CONFLICT = "conflict"  # the condition of what is measured where two cues name different classes
MARKED = ("conflict,teacher=*",)
SHARES = ("shape_answers", "texture_answers", "other_answers")
SCENE_CUES, PHOTO_CUES = ("digit", "marker"), ("shape", "texture")
MEASURES = (
    Measure("shape_bias", "decides by the shape, not the texture", CONFLICT, MARKED),
    Measure("shape_answers", "names the shape's class", CONFLICT, MARKED),
    Measure("texture_answers", "names the texture's class", CONFLICT, MARKED),
    Measure("other_answers", "names the class of neither cue", CONFLICT, MARKED),
    Measure("follows_digit", "follows the digit, not the marker beside it", CONFLICT),
    Measure("follows_marker", "follows the marker, not the digit", CONFLICT),
    Measure("follows_either", "follows one of the two cues", CONFLICT),
)


def disagreeing(data: ImageData) -> tuple[torch.Tensor, list[str]]:
    """Places of the scenes whose cues differ, and each as a title: ``digit 3, marker 5``."""
    first, second = (data.factors[cue] for cue in SCENE_CUES)
    places = (first != second).nonzero().flatten()
    return places, [f"digit {first[place]}, marker {second[place]}" for place in places]


def measure(
    cast: Cast, data: ImageData, *, cues: tuple[str, str] = SCENE_CUES, condition: str = CONFLICT
) -> Outcome:
    """Which cue the answers of every network name, on images whose two cues name two classes.

    cues: two of the data's factors, the shape's first. ``shape_bias`` is 1 where an answer is the
    shape's class, 0 where it is the texture's, NaN where it is neither (its mean: Geirhos et al.
    2019). The shares (table only) are of all these images. Raises RequestError when a factor is
    missing or no image has a conflict.
    """
    recorder = Recorder(data)
    for member, answers, items, by_cue in _followed(cast, data, cues):
        values = by_cue[cues[0]]
        recorder.add(member, "shape_bias", values, answers, condition, items)
        for name, counted in zip(SHARES, (values == 1, values == 0, values.isnan()), strict=True):
            recorder.add(member, name, counted, answers, condition, items, keep_items=False)
    return recorder.outcome()


def follows(cast: Cast, data: ImageData) -> Outcome:
    """The same in scenes, by the cues' names: ``follows_digit``, ``_marker`` and ``_either``."""
    recorder = Recorder(data)
    for member, answers, items, by_cue in _followed(cast, data, SCENE_CUES):
        for cue, values in (*by_cue.items(), ("either", ~by_cue["digit"].isnan())):
            recorder.add(member, f"follows_{cue}", values, answers, CONFLICT, items)
    return recorder.outcome()


def _followed(
    cast: Cast, data: ImageData, cues: tuple[str, str]
) -> Iterator[tuple[Member, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
    """Each network, its answers (n,) to the images (n,) with a conflict, and by cue (n,): 1 where
    the answer is its class, 0 where it is the other's, NaN where it is neither."""
    for cue in cues:
        if cue not in data.factors:
            known = ", ".join(data.factors) or "none"
            raise RequestError(f"the data has no factor {cue!r}; it has {known}")
    named = [data.factors[cue] for cue in cues]
    conflicts = (named[0] != named[1]).nonzero().flatten()
    if len(conflicts) == 0:
        raise RequestError(f"{cues[0]} and {cues[1]} never name different classes in this data")
    members = cast.everyone()
    given = base.all_answers(members, data.subset(conflicts))
    for member, answers in zip(members, given, strict=True):
        by_cue = [answers == classes[conflicts] for classes in named]
        either = by_cue[0] | by_cue[1]
        follow = [chosen.float().where(either, torch.nan) for chosen in by_cue]
        yield member, answers, conflicts, dict(zip(cues, follow, strict=True))


def conflict_photos(folder: str | Path, classes: Sequence[str], size: int) -> tuple[ImageData, int]:
    """Photographs named as those of model-vs-human, and how many were left out as of other classes.

    ``cat/cat1-dog2.png`` is cat 1 with the texture of dog 2; folders above and upper case do not
    matter. ``labels`` are the shapes', factors ``shape`` and ``texture``; a source is the
    photograph that gave the shape. Raises RequestError as `conflicts_in` does.
    """
    from kdnotes.data.photos import StreamingImages

    known, left_out = conflicts_in(folder, classes)
    shapes, textures, origins = zip(*known.values(), strict=True)
    numbers = {origin: number for number, origin in enumerate(dict.fromkeys(origins))}
    shape = torch.tensor(shapes)
    data = ImageData(
        images=StreamingImages(base_folder() / Path(folder).expanduser(), list(known), size),
        labels=shape,
        classes=tuple(classes),
        sources=torch.tensor([numbers[origin] for origin in origins]),
        factors={"shape": shape, "texture": torch.tensor(textures)},
    )
    return data, left_out


def conflicts_in(
    folder: str | Path, classes: Sequence[str]
) -> tuple[dict[str, tuple[int, int, str]], int]:
    """Shape, texture and the shape's photograph by name, and how many images are left out.

    Raises RequestError when there is no such folder or no photograph of two known classes.
    """
    folder = base_folder() / Path(folder).expanduser()
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder} of photographs with conflicting cues")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
    known = {name: cues for name in names if (cues := _cues_of(Path(name), classes))}
    if not any(shape != texture for shape, texture, _ in known.values()):
        example = f"; the first is {names[0]}" if names else ""
        raise RequestError(
            f"none of {len(names)} images in {folder} is named like cat/cat1-dog2.png after two of "
            f"the networks' classes ({', '.join(classes[:10])}){example}"
        )
    return known, len(names) - len(known)


def _cues_of(path: Path, classes: Sequence[str]) -> tuple[int, int, str] | None:
    """Shape and texture class and the shape's photograph, from a file's relative name."""
    lower = [each.casefold() for each in classes]
    folder, stem = path.parent.name.casefold(), path.stem.casefold()
    # Class names may hold digits and hyphens themselves: the longest that fits is meant.
    fits = filter(None, (re.search(rf"-({re.escape(each)})\d*$", stem) for each in lower))
    ending = max(fits, key=lambda fit: len(fit[1]), default=None)
    if folder not in lower or ending is None:
        return None
    return lower.index(folder), lower.index(ending[1]), f"{folder}/{stem[: ending.start()]}"


PROPERTY = base.Property(
    "cue_bias", "shape and cue bias", measure, MEASURES, rank=8, needs=("cues",)
)
