"""Does an answer survive a change of frame: another crop, a shift, a mirror?

Two views are made of each image, the same ones for all networks, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from kdnotes.data import ImageData, views
from kdnotes.errors import RequestError
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.forward import BATCH_SIZE, batches, device_of, logits_of
from kdnotes.probes.outcome import Outcome, Recorder
from kdnotes.stats import SINGLE_NETWORK_ARMS

SCALES = (0.3, 0.4, 0.5, 0.6)
SHIFTS = (1, 2, 4, 8)
CURVE_COUNT = 500  # images behind a point of a curve that no claim rests on

_Views = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Change:
    """Two views of each image (float images, their places -> views), and how many are shown.

    ``from_itself``: the first view is the image as it is.
    """

    condition: str
    views: _Views
    is_primary: bool
    count: int
    from_itself: bool = False

    def places(self, number: int) -> Tensor:
        """The images that are shown, evenly spread over all ``number`` of them."""
        count = min(self.count, number)
        return torch.arange(count) * number // count


def measure_crops(
    cast: Cast,
    data: ImageData,
    *,
    scales: Sequence[float] = SCALES,
    primary: float = 0.5,
    primary_only: Collection[str] = (),
    curve_count: int = CURVE_COUNT,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Answers of every network to two random square crops of each image, both resized back.

    Conditions: ``kind=crop,scale=S``, S being the crops' share of the area; the ``primary`` scale
    stands there once more as ``kind=crop,scale=primary``. It is measured on all images, the others
    on ``curve_count`` of them and not for arms in ``primary_only``. Crops of one image at several
    scales have the same place in the room that is left, so that scales compare like with like.
    Measures, per image (items for the primary scale only):

    - ``same_answer``: the same answer to both crops, right or wrong (the paper's agreement score).
    - ``accuracy_after``: share of the two answers that is right.
    - ``margin_after`` (table only): probability of the first answer less that of the second.
    - ``softmax_distance`` (table only): Euclidean distance between the probabilities of the two
      (the invariance measure of Odagiu et al. 2024).
    - ``accuracy`` (no condition), on the images as they are.

    Raises RequestError when a scale is not above 0 and at most 1.
    """
    for scale in (*scales, primary):
        if not 0 < scale <= 1:
            raise RequestError(f"a crop's share of the area lies between 0 and 1, not {scale:g}")
    corners = draw_places(len(data), seed)

    def views_at(scale: float) -> _Views:
        def views(images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            first, second = corners[places].unbind(1)
            return crop(images, first, scale), crop(images, second, scale)

        return views

    changes = [
        _Change(f"kind=crop,scale={scale:g}", views_at(scale), scale == primary, curve_count)
        for scale in sorted({*scales, primary})
    ]
    return _measure(cast, data, changes, "kind=crop,scale=primary", "", primary_only, batch_size)


def measure_shifts(
    cast: Cast,
    data: ImageData,
    *,
    shifts: Sequence[int] = SHIFTS,
    primary: int = 4,
    primary_only: Collection[str] = (),
    curve_count: int = CURVE_COUNT,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Answers of every network to two random windows of each image, mirrored on at its borders.

    The windows have the image's size and lie at whole pixels in the image enlarged by M pixels
    along either axis, so they are shifted against each other by up to M. Conditions:
    ``kind=shift,max=M`` and ``kind=shift,max=primary``. Measures as in `measure_crops`, with
    ``accuracy`` under ``kind=shift``.

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
        def views(images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            offsets = (places_in_room[places] * (largest + 1)).long()
            first, second = offsets.unbind(1)
            return shift(images, first, largest), shift(images, second, largest)

        return views

    changes = [
        _Change(f"kind=shift,max={largest}", views_at(largest), largest == primary, curve_count)
        for largest in sorted({*shifts, primary})
    ]
    return _measure(
        cast, data, changes, "kind=shift,max=primary", "kind=shift", primary_only, batch_size
    )


def measure_mirrors(
    learned: Cast | None,
    exact: Cast | None,
    data: ImageData,
    *,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Answers of every network to each image and to its mirror image.

    ``learned`` is taught by a teacher that saw mirror images, ``exact`` by one that cannot tell
    them apart; either may be missing, not both. Conditions: ``kind=flip,teacher=learned`` and
    ``kind=flip,teacher=exact``; measures as in `measure_crops`, with ``accuracy_after`` of the
    mirror image and ``accuracy`` under the same conditions. With both casts also, under
    ``kind=flip``, ``learned_minus_exact``: same answer of a student of the one teacher less that
    of the student of the other, for every arm and seed that both casts have.

    Raises ValueError when both casts are missing.
    """
    casts = {"learned": learned, "exact": exact}

    def views(images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return images, mirror(images)

    outcomes = []
    for name, cast in casts.items():
        if cast is not None:
            condition = f"kind=flip,teacher={name}"
            change = _Change(condition, views, True, len(data), from_itself=True)
            parts = (condition, condition, (), batch_size)
            outcomes.append(_measure(cast, data, [change], *parts))
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
    share = torch.full((len(images), 1), scale)
    return views.crop(images, torch.cat([share, corners], 1).to(images))


def shift(images: Tensor, offsets: Tensor, largest: int) -> Tensor:
    """Windows of the image's size in the image enlarged by ``largest`` pixels along either axis.

    images: float (N, 3, H, W), continued by its mirror image beyond its borders; offsets: int64
    (N, 2), down and right, 0 to ``largest``. At ``largest // 2`` the image is as it was.
    """
    before = largest // 2
    after = largest - before
    enlarged = F.pad(images, (before, after, before, after), mode="reflect")
    height, width = images.shape[-2:]
    offsets = offsets.to(images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    window = enlarged.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return window.permute(0, 3, 1, 2)  # channels last in memory


def mirror(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with left and right exchanged."""
    return images.flip(3).contiguous(memory_format=torch.channels_last)


def _measure(
    cast: Cast,
    data: ImageData,
    changes: Sequence[_Change],
    primary: str,
    accuracy_condition: str,
    primary_only: Collection[str],
    batch_size: int,
) -> Outcome:
    """Both views of each change for all networks; the primary change on all images."""
    members = list(cast.everyone())
    everything = torch.arange(len(data))
    shown = [everything if each.is_primary else each.places(len(data)) for each in changes]
    pairs: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    plain: list[list[Tensor]] = [[] for _ in members]
    for indices, images in batches(data, device_of(cast.teacher.network), batch_size):
        before = [logits_of(member.network, images).softmax(1) for member in members]
        for part, probabilities in zip(plain, before, strict=True):
            part.append(probabilities.argmax(1))
        for place, change in enumerate(changes):
            here = torch.isin(indices, shown[place])
            if not here.any():
                continue
            first, second = change.views(images[here.to(images.device)], indices[here])
            for number, member in enumerate(members):
                if member.arm in primary_only and not change.is_primary:
                    continue
                one = before[number][here]
                if not change.from_itself:
                    one = logits_of(member.network, first).softmax(1)
                pair = one, logits_of(member.network, second).softmax(1)
                pairs.setdefault((number, place), []).append(pair)
    recorder = Recorder(data)
    for number, member in enumerate(members):
        answers = torch.cat(plain[number])
        recorder.add(member, "accuracy", answers == data.labels, answers, accuracy_condition)
    for (number, place), parts in pairs.items():
        change = changes[place]
        first, second = (torch.cat(halves) for halves in zip(*parts, strict=True))
        names = {change.condition, primary} if change.is_primary else {change.condition}
        for name in sorted(names):
            show = _Shown(recorder, shown[place], name, keep_items=name == primary)
            show.record(members[number], first, second, change.from_itself)
    return recorder.outcome()


@dataclass(frozen=True)
class _Shown:
    """Where the measures of a change go: the images that were shown, and the condition's name."""

    recorder: Recorder
    items: Tensor
    condition: str
    keep_items: bool

    def record(self, member: Member, first: Tensor, second: Tensor, from_itself: bool) -> None:
        """All measures of two views' probabilities (n, classes)."""
        labels = self.recorder.data.labels[self.items]
        one, other = first.argmax(1), second.argmax(1)
        right = [other == labels] if from_itself else [one == labels, other == labels]
        values = {"same_answer": one == other, "accuracy_after": torch.stack(right).float().mean(0)}
        for measure, each in values.items():
            self.recorder.add(
                member, measure, each, other, self.condition, self.items, self.keep_items
            )
        after = second if from_itself else torch.cat([first, second])
        best = after.double().topk(2, dim=1).values
        summaries = {
            "margin_after": (best[:, 0] - best[:, 1]).mean(),
            "softmax_distance": (first - second).double().norm(dim=1).mean(),
        }
        for measure, value in summaries.items():
            self.recorder.add_summary(
                member.arm, member.seed, measure, float(value), self.condition
            )


def _learned_minus_exact(learned: Cast, outcomes: Sequence[Outcome], data: ImageData) -> Outcome:
    """Per image, same answer under the learned teacher less that under the exact one."""
    recorder = Recorder(data)
    rows = [part.items[part.items["measure"] == "same_answer"] for part in outcomes]
    for member in learned.members:
        mine = [_of(part, member) for part in rows]
        if member.arm not in SINGLE_NETWORK_ARMS and all(map(len, mine)):
            difference = mine[0]["value"].to_numpy() - mine[1]["value"].to_numpy()
            answers = mine[0]["prediction"].to_numpy()
            recorder.add(member, "learned_minus_exact", difference, answers, "kind=flip")
    return recorder.outcome()


def _of(items: pd.DataFrame, member: Member) -> pd.DataFrame:
    return items[(items["arm"] == member.arm) & (items["seed"] == member.seed)]
