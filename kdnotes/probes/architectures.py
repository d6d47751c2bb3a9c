"""Which properties does one pair of architectures hand on? Several probes, each at one setting.

Nothing is measured here that the other probes do not measure. New are maps of transformers, the
teacher's likeness to itself (so that every property has the teacher at the end of its scale), and
the pair in every condition, so that several pairs fit into one table.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.probes import adversarial, base, cue_bias, fidelity, localization, representations
from kdnotes.probes.base import Cast, Measure, Member, Outcome, Property

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnotes.data import ImageData

ATTACK, MAP = adversarial.condition(), localization.condition()
# What is compared between pairs: a measure and its condition. The teacher has a value of each.
PROPERTIES: dict[str, tuple[str, str]] = {
    "which cue it follows": ("follows_digit", cue_bias.CONFLICT),
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
    ("fooling_rate", adversarial.condition("noise")),
    ("follows_either", cue_bias.CONFLICT),
    ("energy_marker", MAP),
    ("cam_cosine", MAP),
    ("cka_logits", ""),
    ("cka_diagonal", "layers=hidden"),
)
MEASURES = (
    Measure(
        "extra_gain",
        "gains more from its teacher in one pair than in another",
        "of=*",
        unit="difference of gains",
        low=-math.inf,
        high=math.inf,
    ),
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
    and `cue_bias.follows`. Maps are left out where one of the networks has none that can be
    read (see `with_maps`). The teacher's likeness to itself is 1. Raises RequestError as they do.
    """
    some = data.subset(torch.arange(min(attacked, len(data))))
    parts = [representations.measure(cast, some).without_accuracy(), fidelity.measure(cast, data)]
    # A second teacher is shown the teacher's images as a student would be; its own are not needed.
    others = cast.members if cast.second_teacher is None else (cast.second_teacher, *cast.members)
    opened = replace(cast, second_teacher=None, members=others)
    attack = adversarial.measure(opened, some, eps=(primary,), primary=primary, steps=steps)
    parts.append(attack.without_accuracy())
    mapped = [with_maps(member, data) for member in cast.everyone()]
    readable = [member for member in mapped if member is not None]
    if len(readable) == len(mapped):
        second = readable[1] if cast.second_teacher is not None else None
        students = tuple(readable[1 + (second is not None) :])
        drawn = Cast(readable[0], second, students, cast.classes)
        maps = localization.measure(drawn, data, layers={"last": -1})
        parts.append(maps.without_accuracy())
    if conflicts is not None:
        parts.append(cue_bias.follows(cast, conflicts))
    found = Outcome.combine(parts).keep(lambda rows: _named(rows, _KEPT))
    teacher = cast.teacher
    itself = Outcome.of_rows(
        (teacher.arm, teacher.seed, condition, name, 1.0)
        for name, condition in PROPERTIES.values()
        if name in _OWN_LIKENESS and _named(found.table, [(name, condition)]).any()
    )
    return Outcome.combine([found, itself]).under(f"pair={pair}")


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
            where = base.joined(f"pair={pair}", condition)
            own, other = (_values(outcome.table, name, where, each) for each in (arm, reference))
            gains.append(own - other)
        for seed, value in (gains[0] - gains[1]).dropna().items():
            rows.append((arm, seed, f"of={name}", "extra_gain", float(value)))
    return Outcome.of_rows(rows)


def with_maps(member: Member, data: ImageData) -> Member | None:
    """The network with taps that give maps (n, channels, h, w), None where there are none.

    A transformer's tokens are laid out as the map that its image was cut into, in a copy whose
    answers are the same. That is right where the answer is read from all tokens alike: a network
    with a class token reads its answer from that one, and the last layer's other tokens have no
    say. None, too, for tokens that make no square, maps below the size that Grad-CAM needs, and
    layers that put their channels last.
    """
    from kdnotes.networks import tapped

    images = base.pictures(data, torch.arange(1), base.device_of(member.network))
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
        network.set_submodule(tap, _through_maps(block, side))
    return replace(member, network=network, taps=tuple(f"{tap}.1" for tap in member.taps))


def _through_maps(block: nn.Module, side: int) -> nn.Module:
    """A block, then its tokens (n, side * side, channels), row by row, as a map (n, channels, side,
    side), then as tokens again."""
    from torch import nn

    class ToMap(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).unflatten(2, (side, side))

    class ToTokens(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.flatten(2).transpose(1, 2)

    return nn.Sequential(block, ToMap(), ToTokens())


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


PROPERTY = Property("architectures", "architectures", measure, MEASURES, rank=14)
