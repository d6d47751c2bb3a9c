"""Does an answer survive a change of frame: another crop, a shift, a mirror?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Literal

from kdnotes import stats
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Cast, ImageData, Measure, Outcome, Recorder
from kdnotes.probes.changes import Change, Distance, Margin, measure_changes

SCALES = (0.3, 0.4, 0.5, 0.6)
SHIFTS = (1, 2, 4, 8)
CURVE_COUNT = 500  # images behind a point of a curve that no claim rests on
BOOK_SIDE = 32  # pixels along a side of the book's images; shifts grow with larger ones
FLIP = "kind=flip"
_NAMES = {"crop": "kind=crop,scale", "shift": "kind=shift,max"}
Kind = Literal["crop", "shift"]


def condition(kind: Kind, size: float | None = None) -> str:
    """What is measured between two crops of a share of the area, or two shifts by up to so many
    pixels; by default at the primary size."""
    return f"{_NAMES[kind]}={'primary' if size is None else f'{size:g}'}"


CROP, SHIFT = condition("crop"), condition("shift")
LEARNED = "keeps its answer in the mirror more often if its teacher has learned to"
CHANGES = ("kind=crop,scale=*", "kind=shift,max=*", "kind=flip,teacher=*")
MEASURES = (
    Measure("same_answer", "gives two crops of an image the same answer", CROP, CHANGES, True),
    Measure("same_answer", "gives two shifts of an image the same answer", SHIFT, (), True),
    Measure("accuracy_after", "is right about both of two crops", CROP, CHANGES),
    Margin(CROP, CHANGES),
    Distance("changes its probabilities with the crop", CROP, CHANGES),
    Measure("accuracy", "is right", "kind=shift", ("kind=flip,teacher=*",)),
    *base.probabilities("kind=shift", "", "kind=flip,teacher=*"),
    base.Difference("learned_minus_exact", LEARNED, FLIP, chance=0.0, direction="none"),
)


def measure(cast: Cast, data: ImageData, *, curves: bool = True) -> Outcome:
    """Crops and shifts at the book's settings, in proportion to the images; without ``curves`` at
    the primary sizes only."""
    unit = max(1, data.size // BOOK_SIDE)
    scales, shifts = (SCALES, [unit * each for each in SHIFTS]) if curves else ((), [])
    cropped = measure_views(cast, data, "crop", scales, 0.5)
    shifted = measure_views(cast, data, "shift", shifts, 4 * unit)
    return Outcome.combine([cropped, shifted.without_accuracy()])


def measure_views(
    cast: Cast,
    data: ImageData,
    kind: Kind,
    sizes: Sequence[float],
    primary: float,
    primary_only: Collection[str] = (),
    seed: int = 0,
) -> Outcome:
    """Answers of every network to two random crops, or shifts, of each image (`measure_changes`).

    sizes: shares of the area (`crop`), or pixels (`shift`). The ``primary`` one is measured on all
    images, with items, the others on ``CURVE_COUNT`` of them and not for arms in ``primary_only``.
    Views of an image have the same place in their room at all sizes. Raises RequestError for a
    share outside 0 to 1, or a shift below 1 or too large for the images.
    """
    most = 2 * data.size - 2
    for size in (*sizes, primary):
        if kind == "crop" and not 0 < size <= 1:
            raise RequestError(f"a crop's share of the area lies between 0 and 1, not {size:g}")
        if kind == "shift" and not 1 <= size <= most:
            images = f"images of {data.size}, not {size}"
            raise RequestError(f"a largest shift lies between 1 and {most} pixels for {images}")
    drawn, made = draw_places(len(data), seed), {"crop": crop, "shift": shift}[kind]
    some = torch.arange(fewer := min(CURVE_COUNT, len(data))) * len(data) // fewer

    def views(size: float, images: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(made(images, corners, size) for corners in drawn[places].unbind(1))

    changes = []
    for size in sorted({*sizes, primary}):
        is_primary = size == primary
        items_of = (condition(kind),) if is_primary else ()
        names = (condition(kind, size), *items_of)
        shown = torch.arange(len(data)) if is_primary else some
        changes.append(Change(names, partial(views, size), shown, items_of, is_primary))
    plain = "" if kind == "crop" else "kind=shift"
    return measure_changes(cast, data, changes, primary_only, plain)


def measure_mirrors(learned: Cast, exact: Cast, data: ImageData) -> Outcome:
    """Answers of every network to each image and to its mirror image: see `measure_changes`.

    ``learned`` is taught by a teacher that saw mirror images, ``exact`` by one that cannot tell
    them apart. ``learned_minus_exact``: same answers of the one's students less of the other's.
    """
    outcomes = []
    for name, cast in (("learned", learned), ("exact", exact)):
        where, every = f"{FLIP},teacher={name}", torch.arange(len(data))
        change = Change((where,), lambda images, _: (mirror(images),), every, (where,))
        outcomes.append(measure_changes(cast, data, [change], accuracy_condition=where))
    recorder = Recorder(data)
    same = [part.items[part.items["measure"] == "same_answer"] for part in outcomes]
    one, other = (dict(list(its.groupby(["arm", "seed"], observed=True))) for its in same)
    for member in learned.members:
        key = member.arm, member.seed
        if member.arm not in stats.SINGLE_NETWORK_ARMS and key in one and key in other:
            difference = one[key]["value"].to_numpy() - other[key]["value"].to_numpy()
            answers = one[key]["prediction"]
            recorder.add(member, "learned_minus_exact", difference, answers, FLIP)
    return Outcome.combine([*outcomes, recorder.outcome()])


def draw_places(count: int, seed: int) -> torch.Tensor:
    """Where two views of each image lie: down and right, float (count, 2 views, 2) in [0, 1)."""
    return torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed))


def crop(images: torch.Tensor, corners: torch.Tensor, scale: float) -> torch.Tensor:
    """Square crops of a share of the area, ``scale``, at the image's size again (bilinear).

    images: float (N, 3, H, W); corners (N, 2): down and right, as shares of the room that is left.
    """
    from kdnotes.data import views

    share = torch.full((len(images), 1), scale)
    return views.crop(images, torch.cat([share, corners], 1).to(images))


def shift(images: torch.Tensor, corners: torch.Tensor, largest: float) -> torch.Tensor:
    """Windows of the image's size in the image enlarged by ``largest`` pixels along either axis.

    images: float (N, 3, H, W), continued by its mirror image beyond its borders; corners (N, 2):
    down and right, in [0, 1), as shares of the ``largest`` + 1 whole pixels where one can begin.
    """
    largest = int(largest)
    offsets = (corners * (largest + 1)).long().to(images.device)
    before = largest // 2
    pad = (before, largest - before) * 2
    enlarged = torch.nn.functional.pad(images, pad, mode="reflect").permute(0, 2, 3, 1)
    height, width = images.shape[-2:]
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    window = enlarged[batch, rows[:, :, None], columns[:, None, :]]
    return window.permute(0, 3, 1, 2)  # channels last in memory


def mirror(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) with left and right exchanged."""
    return images.flip(3).contiguous(memory_format=torch.channels_last)


BRIEF = {"curves": False}
PROPERTY = base.Audited(
    "crop_shift", "crops and shifts", measure, MEASURES, 6, brief=BRIEF, share=0.3, passes=4.0
)
