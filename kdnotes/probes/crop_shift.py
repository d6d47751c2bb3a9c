"""Does an answer survive a change of frame: another crop, a shift, a mirror?

Two views are made of each image, the same ones for all networks, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdnotes import stats
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Cast, Measure, Member, Outcome, Property, Recorder

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.data import ImageData

SCALES = (0.3, 0.4, 0.5, 0.6)
SHIFTS = (1, 2, 4, 8)
CURVE_COUNT = 500  # images behind a point of a curve that no claim rests on
BOOK_SIDE = 32  # pixels along a side of the book's images; shifts grow with larger ones
FLIP = "kind=flip"
_NAMES = {"crop": "kind=crop,scale", "shift": "kind=shift,max"}
_Kind = Literal["crop", "shift"]
_Views = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]


def condition(kind: _Kind, size: float | None = None) -> str:
    """What is measured between two crops of a share of the area, or two shifts by up to so many
    pixels; without a size, at the primary one."""
    return f"{_NAMES[kind]}={'primary' if size is None else f'{size:g}'}"


def positions(kind: _Kind, sizes: Sequence[float]) -> dict[str, float]:
    """Shares of the area, or pixels, by their conditions: the places on a figure's axis."""
    return {condition(kind, size): size for size in sorted(sizes)}


CROP, SHIFT = condition("crop"), condition("shift")
CHANGES = ("kind=crop,scale=*", "kind=shift,max=*", "kind=flip,teacher=*")
MEASURES = (
    Measure("same_answer", "gives two crops of an image the same answer", CROP, CHANGES, True),
    Measure("same_answer", "gives two shifts of an image the same answer", SHIFT, (), True),
    Measure("accuracy_after", "is right about both of two crops", CROP, CHANGES),
    Measure("margin_after", "prefers its first answer to its second", CROP, CHANGES),
    Measure(
        "softmax_distance",
        "changes its probabilities with the crop",
        CROP,
        CHANGES,
        unit="distance",
        high=2**0.5,
        direction="down",
    ),
    Measure("accuracy", "is right", "kind=shift", ("kind=flip,teacher=*",)),
    Measure(
        "learned_minus_exact",
        "keeps its answer in the mirror more often if its teacher has learned to",
        FLIP,
        unit="difference of shares",
        low=-1.0,
        chance=0.0,
        direction="none",
    ),
)


@dataclass(frozen=True)
class _Change:
    """Two views of each image (float images, their places -> views), and the places shown.

    names: its conditions; items are kept for a primary change, under the last of its names.
    ``from_itself``: the first view is the image as it is.
    """

    names: tuple[str, ...]
    views: _Views
    shown: Tensor
    is_primary: bool = True
    from_itself: bool = False


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Crops and shifts at the book's settings, shifts in proportion to the images."""
    unit = max(1, data.size // BOOK_SIDE)
    shifts = [unit * shift for shift in SHIFTS]
    shifted = measure_shifts(cast, data, shifts=shifts, primary=4 * unit)
    shifted = shifted.keep(lambda rows: rows["measure"] != "accuracy")
    return Outcome.combine([measure_crops(cast, data), shifted])


def measure_crops(
    cast: Cast,
    data: ImageData,
    *,
    scales: Sequence[float] = SCALES,
    primary: float = 0.5,
    primary_only: Collection[str] = (),
    curve_count: int = CURVE_COUNT,
    seed: int = 0,
) -> Outcome:
    """Answers of every network to two random square crops of each image, both resized back.

    scales: the crops' shares of the area. The ``primary`` one is measured on all images, the others
    on ``curve_count`` of them and not for arms in ``primary_only``. Crops of one image at several
    scales have the same place in the room that is left, so that scales compare like with like.
    Per image (items for the primary scale only): ``same_answer``, right or wrong (the paper's
    agreement score), and ``accuracy_after``, the share of the two answers that is right. In the
    table only: ``margin_after``, probability of the first answer less that of the second, and
    ``softmax_distance``, Euclidean, between the two (the invariance measure of Odagiu et al. 2024).
    ``accuracy`` (no condition) is on the images as they are.

    Raises RequestError when a scale is not above 0 and at most 1.
    """
    for scale in (*scales, primary):
        if not 0 < scale <= 1:
            raise RequestError(f"a crop's share of the area lies between 0 and 1, not {scale:g}")
    corners = draw_places(len(data), seed)

    def views_at(scale: float) -> _Views:
        return lambda images, places: (
            crop(images, corners[places, 0], scale),
            crop(images, corners[places, 1], scale),
        )

    views = {scale: views_at(scale) for scale in {*scales, primary}}
    changes = _changes("crop", views, primary, len(data), curve_count)
    return _measure(cast, data, changes, "", primary_only)


def measure_shifts(
    cast: Cast,
    data: ImageData,
    *,
    shifts: Sequence[int] = SHIFTS,
    primary: int = 4,
    primary_only: Collection[str] = (),
    curve_count: int = CURVE_COUNT,
    seed: int = 0,
) -> Outcome:
    """Answers of every network to two random windows of each image, mirrored on at its borders.

    The windows have the image's size and lie at whole pixels in the image enlarged by so many
    pixels along either axis, so they are shifted against each other by up to that many. Measures as
    in `measure_crops`, with ``accuracy`` under ``kind=shift``.

    Raises RequestError when a shift is below 1 or too large for the images.
    """
    size = data.size
    for largest in (*shifts, primary):
        if not 1 <= largest < 2 * size - 1:
            raise RequestError(
                f"a largest shift lies between 1 and {2 * size - 2} pixels for images of {size}, "
                f"not {largest}"
            )
    places_in_room = draw_places(len(data), seed)

    def views_at(largest: int) -> _Views:
        def two(images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            first, second = (places_in_room[places] * (largest + 1)).long().unbind(1)
            return shift(images, first, largest), shift(images, second, largest)

        return two

    views: dict[float, _Views] = {largest: views_at(largest) for largest in {*shifts, primary}}
    changes = _changes("shift", views, primary, len(data), curve_count)
    return _measure(cast, data, changes, "kind=shift", primary_only)


def measure_mirrors(learned: Cast | None, exact: Cast | None, data: ImageData) -> Outcome:
    """Answers of every network to each image and to its mirror image.

    ``learned`` is taught by a teacher that saw mirror images, ``exact`` by one that cannot tell
    them apart; either may be missing, not both. Conditions: ``kind=flip,teacher=learned`` and
    ``kind=flip,teacher=exact``; measures as in `measure_crops`, with ``accuracy_after`` of the
    mirror image and ``accuracy`` under the same conditions. With both casts also, under
    ``kind=flip``, ``learned_minus_exact``: same answer of a student of the one teacher less that
    of the student of the other, for every arm and seed that both casts have.

    Raises ValueError when both casts are missing.
    """

    def views(images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return images, mirror(images)

    outcomes = []
    for name, cast in (("learned", learned), ("exact", exact)):
        if cast is not None:
            where = f"{FLIP},teacher={name}"
            change = _Change((where,), views, torch.arange(len(data)), from_itself=True)
            outcomes.append(_measure(cast, data, [change], where, ()))
    if learned is not None and exact is not None:
        outcomes.append(_learned_minus_exact(learned, outcomes, data))
    return Outcome.combine(outcomes)


def draw_places(count: int, seed: int) -> Tensor:
    """Where two views of each image lie: down and right, float (count, 2 views, 2) in [0, 1)."""
    return torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed))


def crop(images: Tensor, corners: Tensor, scale: float) -> Tensor:
    """Square crops of a share of the area, resized to the image's size (bilinear).

    images: float (N, 3, H, W); corners (N, 2): down and right, as shares of the room that the crop
    leaves; scale: its share of the area, 1 being the whole image.
    """
    from kdnotes.data import views

    share = torch.full((len(images), 1), scale)
    return views.crop(images, torch.cat([share, corners], 1).to(images))


def shift(images: Tensor, offsets: Tensor, largest: int) -> Tensor:
    """Windows of the image's size in the image enlarged by ``largest`` pixels along either axis.

    images: float (N, 3, H, W), continued by its mirror image beyond its borders; offsets: int64
    (N, 2), down and right, 0 to ``largest``. At ``largest // 2`` the image is as it was.
    """
    before = largest // 2
    after = largest - before
    pad = (before, after, before, after)
    enlarged = torch.nn.functional.pad(images, pad, mode="reflect").permute(0, 2, 3, 1)
    height, width = images.shape[-2:]
    offsets = offsets.to(images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    window = enlarged[batch, rows[:, :, None], columns[:, None, :]]
    return window.permute(0, 3, 1, 2)  # channels last in memory


def mirror(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with left and right exchanged."""
    return images.flip(3).contiguous(memory_format=torch.channels_last)


def _changes(
    kind: _Kind, views: Mapping[float, _Views], primary: float, count: int, curve_count: int
) -> list[_Change]:
    """One change for each size; images for a curve are spread evenly over all."""
    fewer = min(curve_count, count)
    some, everything = torch.arange(fewer) * count // fewer, torch.arange(count)
    changes = []
    for size in sorted(views):
        name, is_primary = condition(kind, size), size == primary
        names = (name, condition(kind)) if is_primary else (name,)
        shown = everything if is_primary else some
        changes.append(_Change(names, views[size], shown, is_primary))
    return changes


def _measure(
    cast: Cast,
    data: ImageData,
    changes: Sequence[_Change],
    accuracy_condition: str,
    primary_only: Collection[str],
) -> Outcome:
    """Both views of each change for all networks, each view made once."""
    members = list(cast.everyone())
    pairs: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    plain: list[list[Tensor]] = [[] for _ in members]
    for indices, images in base.batches(data, base.device_of(cast.teacher.network)):
        for member, part in zip(members, plain, strict=True):
            part.append(base.logits_of(member.network, images).softmax(1))
        for place, change in enumerate(changes):
            here = torch.isin(indices, change.shown)
            if not here.any():
                continue
            views = change.views(images[here.to(images.device)], indices[here])
            for number, member in enumerate(members):
                if member.arm in primary_only and not change.is_primary:
                    continue
                one = plain[number][-1][here]
                if not change.from_itself:
                    one = base.logits_of(member.network, views[0]).softmax(1)
                pair = one, base.logits_of(member.network, views[1]).softmax(1)
                pairs.setdefault((number, place), []).append(pair)
    recorder = Recorder(data)
    for member, part in zip(members, plain, strict=True):
        recorder.add_accuracy(member, torch.cat(part).argmax(1), accuracy_condition)
    for (number, place), parts in pairs.items():
        first, second = (torch.cat(halves) for halves in zip(*parts, strict=True))
        _record(recorder, members[number], changes[place], first, second)
    return recorder.outcome()


def _record(
    recorder: Recorder, member: Member, change: _Change, first: Tensor, second: Tensor
) -> None:
    """All measures of two views' probabilities (n, classes)."""
    labels = recorder.data.labels[change.shown]
    one, other = first.argmax(1), second.argmax(1)
    right = [other == labels] if change.from_itself else [one == labels, other == labels]
    values = {"same_answer": one == other, "accuracy_after": torch.stack(right).float().mean(0)}
    after = second if change.from_itself else torch.cat([first, second])
    best = after.double().topk(2, dim=1).values
    margin = float((best[:, 0] - best[:, 1]).mean())
    distance = float((first - second).double().norm(dim=1).mean())
    for name in change.names:
        keep = change.is_primary and name == change.names[-1]
        for label, each in values.items():
            recorder.add(member, label, each, other, name, change.shown, keep)
        recorder.add_value(member, "margin_after", margin, name)
        recorder.add_value(member, "softmax_distance", distance, name)


def _learned_minus_exact(learned: Cast, outcomes: Sequence[Outcome], data: ImageData) -> Outcome:
    """Per image, same answer under the learned teacher less that under the exact one."""
    recorder = Recorder(data)
    rows = [part.items[part.items["measure"] == "same_answer"] for part in outcomes]
    for member in learned.members:
        mine = [
            items[(items["arm"] == member.arm) & (items["seed"] == member.seed)] for items in rows
        ]
        if member.arm not in stats.SINGLE_NETWORK_ARMS and all(map(len, mine)):
            difference = mine[0]["value"].to_numpy() - mine[1]["value"].to_numpy()
            answers = mine[0]["prediction"].to_numpy()
            recorder.add(member, "learned_minus_exact", difference, answers, FLIP)
    return recorder.outcome()


PROPERTY = Property("crop_shift", "crops and shifts", measure, MEASURES, rank=6, audited=True)
