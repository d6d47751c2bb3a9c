"""Which properties does one pair of architectures hand on? Several probes, each at one setting.

Nothing is measured here that the other probes do not measure. New are maps of transformers, the
teacher's likeness to itself (so that every property has the teacher at the end of its scale), and
the pair in every condition, so that several pairs fit into one table.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.networks import tapped
from kdnotes.probes import adversarial, fidelity, localization, representations
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.forward import device_of
from kdnotes.probes.outcome import TABLE_COLUMNS, Outcome

ATTACK = "attack=teacher,eps=primary"
MAP = "layer=last,class=true"
# What is compared between pairs: a measure and its condition. The teacher has a value of each.
PROPERTIES: dict[str, tuple[str, str]] = {
    "which cue it follows": ("follows_digit", localization.CONFLICT),
    "where it looks": ("energy_digit", MAP),
    "maps like the teacher's": ("win_rate", MAP),
    "fooled by the teacher's images": ("fooling_rate", ATTACK),
    "same answers": ("agreement", ""),
    "same answers beyond chance": ("kappa", ""),
    "layers like the teacher's": ("cka_last", ""),
}
_KEPT = (
    *PROPERTIES.values(),
    ("accuracy", ""),
    ("agreement_on_teacher_errors", ""),
    ("attack_success", ATTACK),
    ("fooling_rate", "attack=noise,eps=primary"),
    ("follows_either", localization.CONFLICT),
    ("energy_marker", MAP),
    ("cam_cosine", MAP),
    ("cka_logits", ""),
    ("cka_diagonal", "layers=hidden"),
)
_OWN_LIKENESS = ("agreement", "kappa", "win_rate")  # 1 by construction, where anybody has a value


def measure(
    cast: Cast,
    data: ImageData,
    *,
    pair: str,
    conflicts: ImageData | None = None,
    primary: int = 4,
    steps: int = 5,
    attacked: int = 1000,
) -> Outcome:
    """`PROPERTIES` of every network of one pair of architectures, under ``pair=PAIR,...``.

    data: images like the students' own. conflicts: images whose cues name different classes,
    without which no cue is followed. primary: size of the attack in 255ths, with so many steps.
    attacked: how many images, the first ones, the attack and the layers are measured on: both are
    slow, and steady at a thousand.
    See `representations.measure`, `fidelity.measure`, `adversarial.measure`, `localization.measure`
    and `localization.follows`. Maps are left out where one of the networks has none that can be
    read (see `with_maps`). The teacher's likeness to itself is 1. Raises RequestError as they do.
    """
    some = data.subset(torch.arange(min(attacked, len(data))))
    parts = [_without(representations.measure(cast, some)), fidelity.measure(cast, data)]
    # A second teacher is shown the teacher's images as a student would be; its own are not needed.
    others = cast.members if cast.second_teacher is None else (cast.second_teacher, *cast.members)
    opened = replace(cast, second_teacher=None, members=others)
    options: dict[str, Any] = {"eps": (primary,), "primary": primary, "steps": steps}
    parts.append(_without(adversarial.measure(opened, some, **options)))
    mapped = [with_maps(member, data) for member in cast.everyone()]
    readable = [member for member in mapped if member is not None]
    if len(readable) == len(mapped):
        second = readable[1] if cast.second_teacher is not None else None
        students = tuple(readable[1 + (second is not None) :])
        drawn = Cast(readable[0], second, students, cast.classes)
        parts.append(_without(localization.measure(drawn, data, layers={"last": -1})))
    if conflicts is not None:
        parts.append(localization.follows(cast, conflicts))
    found = _only(Outcome.combine(parts), lambda rows: _named(rows, _KEPT))
    own = [(m, c) for m, c in PROPERTIES.values() if m in _OWN_LIKENESS]
    own = [(m, c) for m, c in own if _named(found.table, [(m, c)]).any()]
    teacher = cast.teacher
    rows = [(teacher.arm, teacher.seed, condition, name, 1.0) for name, condition in own]
    extra = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    table = pd.concat([found.table, extra], ignore_index=True)
    return under(Outcome(table, found.items), f"pair={pair}")


def under(outcome: Outcome, condition: str) -> Outcome:
    """The same rows, with ``condition`` put before each row's own."""

    def longer(name: str) -> str:
        return f"{condition},{name}" if name else condition

    items = outcome.items
    names = items["condition"].astype("category")
    items = items.assign(condition=names.cat.rename_categories(longer))
    table = outcome.table.assign(condition=outcome.table["condition"].map(longer))
    return Outcome(table, items)


def extra_gains(
    outcome: Outcome,
    more: str,
    less: str,
    *,
    arm: str = "kl",
    reference: str = "independent",
    properties: Mapping[str, tuple[str, str]] = PROPERTIES,
) -> Outcome:
    """How much more an arm gains in one pair than in another, seed by seed.

    The gain of a pair is the arm minus the reference of the same seed. Rows are of the measure
    ``extra_gain`` under ``of=MEASURE``, with the arm as it is; a property that was not measured in
    both pairs, or a seed without all four networks, has none. They have no items.
    """
    rows = []
    for name, condition in properties.values():
        gains = []
        for pair in (more, less):
            where = f"pair={pair},{condition}".rstrip(",")
            own, other = (_values(outcome.table, name, where, each) for each in (arm, reference))
            gains.append(own - other)
        for seed, value in (gains[0] - gains[1]).dropna().items():
            rows.append((arm, seed, f"of={name}", "extra_gain", float(value)))
    return Outcome(pd.DataFrame(rows, columns=list(TABLE_COLUMNS)), outcome.items.iloc[:0])


def with_maps(member: Member, data: ImageData) -> Member | None:
    """The network with taps that give maps (n, channels, h, w), None where there are none.

    A transformer's tokens are laid out as the map that its image was cut into, in a copy whose
    answers are the same. That is right where the answer is read from all tokens alike: a network
    with a class token reads its answer from that one, and the last layer's other tokens have no
    say. None, too, for tokens that make no square, maps below the size that Grad-CAM needs, and
    layers that put their channels last.
    """
    device = device_of(member.network)
    images = to_float(data.batch(torch.arange(1)).to(device))
    with torch.inference_mode(), tapped(member.network, member.taps) as outputs:
        member.network(images)
        last = outputs[member.taps[-1]]
    body: Any = getattr(member.network, "body", None)
    if last.ndim == 4:
        channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"
        large = min(last.shape[2:]) >= localization.SMALLEST_MAP
        return member if large and not channels_last else None
    class_tokens: int = getattr(body, "num_prefix_tokens", 0)
    if last.ndim != 3 or class_tokens:
        return None
    side = math.isqrt(last.shape[1])
    if side**2 != last.shape[1] or side < localization.SMALLEST_MAP:
        return None
    network = copy.deepcopy(member.network)
    for tap in member.taps:
        block = network.get_submodule(tap)
        network.set_submodule(tap, nn.Sequential(block, _ToMap(side), _ToTokens()))
    return replace(member, network=network, taps=tuple(f"{tap}.1" for tap in member.taps))


class _ToMap(nn.Module):
    """Tokens (n, side * side, channels), row by row, as a map (n, channels, side, side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (self.side, self.side))


class _ToTokens(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)


def _without(outcome: Outcome) -> Outcome:
    """All but the accuracy, which every probe measures."""
    return _only(outcome, lambda rows: rows["measure"] != "accuracy")


def _only(outcome: Outcome, wanted: Callable[[pd.DataFrame], pd.Series]) -> Outcome:
    table, items = outcome.table, outcome.items
    items = items[wanted(items)].reset_index(drop=True)
    for name in ("condition", "measure"):
        items[name] = items[name].cat.remove_unused_categories()
    return Outcome(table[wanted(table)].reset_index(drop=True), items)


def _named(rows: pd.DataFrame, which: Iterable[tuple[str, str]]) -> pd.Series:
    """Is a row of one of the named measures, under the condition that goes with it?"""
    wanted = pd.Series(False, index=rows.index)
    for measure, condition in which:  # comparing categories is fast, joining names is not
        wanted |= (rows["measure"] == measure) & (rows["condition"] == condition)
    return wanted


def _values(table: pd.DataFrame, name: str, condition: str, arm: str) -> pd.Series:
    rows = table[(table["measure"] == name) & (table["condition"] == condition)]
    rows = rows[rows["arm"] == arm]
    return pd.Series(rows["value"].to_numpy(dtype=float), index=rows["seed"].to_numpy())
