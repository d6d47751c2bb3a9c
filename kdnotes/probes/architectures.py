"""Which properties does one pair of architectures hand on? Several probes, each at one setting."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from functools import partial

from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.probes import adversarial, base, cue_bias, fidelity, localization, representations
from kdnotes.probes.base import Cast, ImageData, Measure, Outcome

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
EXTRA = "gains more from its teacher in one pair than in another"
_Gain = partial(Measure, unit="difference of gains", low=-math.inf, high=math.inf)
MEASURES = (_Gain("extra_gain", EXTRA, "of=*"),)
# What a chapter on pairs is about: one of the properties, across the border between two kinds.
CROSSED = Measure(
    "follows_digit",
    "of another kind than its teacher follows the digit, not the marker beside it",
    f"pair=vit-cnn,{cue_bias.CONFLICT}",
)
_OWN_LIKENESS = ("agreement", "kappa", "win_rate")  # 1 by construction, where anybody has a value


def under(pair: str, condition: str = "") -> str:
    """The condition of what was measured in one pair."""
    return base.joined(f"pair={pair}", condition)


def where(name: str, pair: str) -> tuple[str, str]:
    """Measure and condition of one of the `PROPERTIES` in one pair."""
    measured, condition = PROPERTIES[name]
    return measured, under(pair, condition)


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

    conflicts: images whose cues name different classes, without which no cue is followed. primary:
    size of the attack in 255ths, with so many steps. attacked: how many images the attack and the
    layers are measured on, both slow, and steady at a thousand. Maps are left out where a network
    has none that can be read. The teacher's likeness to itself is 1, the end of the scale.
    """
    some = data.subset(torch.arange(min(attacked, len(data))))
    parts = [representations.measure(cast, some).without_accuracy(), fidelity.measure(cast, data)]
    # A second teacher is shown the teacher's images as a student would be; its own are not needed.
    opened = replace(cast, second_teacher=None, members=tuple(cast.everyone()[1:]))
    attack = adversarial.measure(opened, some, eps=(primary,), primary=primary, steps=steps)
    parts.append(attack.without_accuracy())
    with suppress(RequestError):  # one of the networks has no maps that can be read
        parts.append(localization.measure(cast, data, layers={"last": -1}).without_accuracy())
    if conflicts is not None:
        parts.append(cue_bias.follows(cast, conflicts))
    found = Outcome.combine(parts).keep(_is_kept)
    teacher = cast.teacher
    itself = Outcome.of_rows(
        (teacher.arm, teacher.seed, condition, name, 1.0)
        for name, condition in PROPERTIES.values()
        if name in _OWN_LIKENESS and len(base.rows_of(found.table, name, condition))
    )
    return Outcome.combine([found, itself]).under(under(pair))


def extra_gains(outcome: Outcome, more: str, less: str) -> Outcome:
    """How much more KL students gain over independent ones in one pair than in another, by seed.

    Under ``of=MEASURE``, for properties measured in both pairs and seeds with all four networks.
    """

    def gain(name: str, condition: str) -> pd.Series:
        rows = base.rows_of(outcome.table, name, condition)
        by_arm = rows.pivot(index="seed", columns="arm", values="value")
        by_arm = by_arm.reindex(columns=["kl", "independent"]).astype(float)
        return by_arm["kl"] - by_arm["independent"]

    found = {
        name: gain(name, under(more, condition)) - gain(name, under(less, condition))
        for name, condition in PROPERTIES.values()
    }
    return Outcome.of_rows(
        ("kl", seed, f"of={name}", "extra_gain", float(value))
        for name, gains in found.items()
        for seed, value in gains.dropna().items()
    )


def _is_kept(rows: pd.DataFrame) -> pd.Series:
    wanted = pd.Series(False, index=rows.index)
    for measure, condition in _KEPT:  # comparing categories is fast, joining names is not
        wanted |= (rows["measure"] == measure) & (rows["condition"] == condition)
    return wanted


PROPERTY = base.Property("architectures", "architectures", measure, MEASURES, rank=14)
