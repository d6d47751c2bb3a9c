"""Does an answer survive a change of the image? What probes of such changes have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Cast, ImageData, Measure, Outcome, Recorder

Margin = partial(Measure, "margin_after", "prefers its first answer to its second")
Distance = partial(Measure, "softmax_distance", unit="distance", high=2**0.5, direction="down")


@dataclass(frozen=True)
class Change:
    """How images are changed, the same way for all networks.

    names: its conditions; views: from float images (n, 3, H, W) and their places (n,) to two views
    that are compared, or one that is compared with the image as it is; shown: places of the images
    that are changed; items_of: names under which values image by image are kept; is_primary:
    whether all arms are shown it.
    """

    names: tuple[str, ...]
    views: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
    shown: torch.Tensor
    items_of: tuple[str, ...] = ()
    is_primary: bool = True


def measure_changes(
    cast: Cast,
    data: ImageData,
    changes: Sequence[Change],
    primary_only: Collection[str] = (),
    accuracy_condition: str = "",
    in_double: bool = True,
) -> Outcome:
    """Answers of every network to two views of each image, each view made once for all of them.

    Per image: ``same_answer``, right or wrong (the paper's agreement score), and the share of
    right answers, ``accuracy_after``. In the table only, from float64 where ``in_double``:
    ``margin_after``, probability of the first answer less that of the second, and
    ``softmax_distance``, Euclidean (Odagiu et al. 2024). Arms in ``primary_only`` are shown
    primary changes.
    """
    members = cast.everyone()
    plain: list[list[torch.Tensor]] = [[] for _ in members]
    changed: dict[tuple[int, int], list[list[torch.Tensor]]] = defaultdict(list)
    for indices, images in base.batches(data, base.device_of(cast.teacher.network)):
        for member, part in zip(members, plain, strict=True):
            part.append(base.logits_of(member.network, images).softmax(1))
        for place, change in enumerate(changes):
            here = torch.isin(indices, change.shown)
            if not here.any():
                continue
            views = change.views(images[here.to(images.device)], indices[here])
            for number, member in enumerate(members):
                if change.is_primary or member.arm not in primary_only:
                    seen = [base.logits_of(member.network, view).softmax(1) for view in views]
                    changed[number, place].append(seen)
    recorder = Recorder(data)
    before = [torch.cat(part) for part in plain]
    for member, its in zip(members, before, strict=True):
        recorder.add_accuracy(member, its.argmax(1), accuracy_condition)
        recorder.add_probabilities(member, its, before[0], accuracy_condition)
    precision = torch.float64 if in_double else torch.float32
    for (number, place), parts in changed.items():
        member, change = members[number], changes[place]
        after = [torch.cat(part) for part in zip(*parts, strict=True)]
        first, second = (before[number][change.shown], *after)[-2:]
        answers = second.argmax(1)
        right = torch.stack([each.argmax(1) == data.labels[change.shown] for each in after])
        best = torch.cat(after).to(precision).topk(2, dim=1).values
        means = {
            "margin_after": (best[:, 0] - best[:, 1]).double().mean(),
            "softmax_distance": (first - second).to(precision).norm(dim=1).double().mean(),
        }
        same, mean_right = first.argmax(1) == answers, right.float().mean(0)
        for name in change.names:
            more = answers, name, change.shown, name in change.items_of
            recorder.add(member, "same_answer", same, *more)
            recorder.add(member, "accuracy_after", mean_right, *more)
            for measure, value in means.items():
                recorder.add_value(member, measure, value.item(), name)
    return recorder.outcome()
