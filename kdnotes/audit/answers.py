"""What follows from everyone's answers alone: flips, calibration, classes and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from kdnotes import stats
from kdnotes.audit.inputs import ARMS
from kdnotes.audit.judging import FEWEST
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.probes import base, fidelity
from kdnotes.probes.base import Measure, Outcome, Recorder

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast

DRAWS = 200  # resamples of the images behind an interval of a calibration error
_Flip = partial(Measure, unit="share of all images", of="pair", reported=True)
INHERITED_MISTAKES = _Flip(
    "mistakes_inherited", "gives the teacher's wrong answer where one trained alone is right"
)
INHERITED_CORRECTIONS = _Flip(
    "corrections_inherited", "is right, as the teacher is, where one trained alone is wrong"
)
NEGATIVE_FLIPS = _Flip("negative_flips", "is wrong where one trained alone is right")
POSITIVE_FLIPS = _Flip("positive_flips", "is right where one trained alone is wrong")
LOST = _Flip("lost_answers", "is wrong where the teacher is right")
FLIPS = (INHERITED_MISTAKES, INHERITED_CORRECTIONS, NEGATIVE_FLIPS, POSITIVE_FLIPS, LOST)


def measure(cast: Cast, data: ImageData, logits: Sequence[Tensor] | None = None) -> Outcome:
    """Fidelity, how sure each network is of its answer (``confidence``), and `FLIPS` by image.

    logits: of everyone, where they are known; else the networks are asked.
    """
    members = cast.everyone()
    logits = logits or base.all_logits(members, data)
    found = fidelity.of_logits(cast, data, logits)
    sure = [each.softmax(1).max(1) for each in logits]
    recorder, answers = Recorder(data), {}
    for member, its in zip(members, sure, strict=True):
        recorder.add(member, "confidence", its.values, its.indices)
        answers[member.arm, member.seed] = its.indices
    teachers, labels = answers["teacher", cast.teacher.seed], data.labels
    twins = [its for (arm, _), its in answers.items() if arm == "independent"]
    for place, student in enumerate(cast.arm("student")):
        own = answers["student", student.seed]
        right, should = own == labels, teachers == labels
        values = {LOST: should & ~right}
        if twins:
            alone = twins[min(place, len(twins) - 1)] == labels
            values[INHERITED_MISTAKES] = alone & ~should & (own == teachers)
            values[INHERITED_CORRECTIONS] = ~alone & should & right
            values |= {NEGATIVE_FLIPS: alone & ~right, POSITIVE_FLIPS: ~alone & right}
        for flip, happens in values.items():
            recorder.add(student, flip.name, happens, own)
    return Outcome.combine([found, recorder.outcome()])


def by_image(found: Outcome, measure: str, arm: str, of: str = "value") -> pd.DataFrame:
    """Values, or predictions, of an arm's networks (columns) by image (rows)."""
    rows = found.items[(found.items["measure"] == measure) & (found.items["condition"] == "")]
    rows = rows[rows["arm"] == arm]
    return rows.pivot(index="item", columns="seed", values=of)


def by_arm(found: Outcome, measure: str, of: str = "value") -> dict[str, pd.DataFrame]:
    """The same of every arm that has some."""
    return {arm: frame for arm in ARMS if len(frame := by_image(found, measure, arm, of))}


def by_name(found: Outcome, names: Sequence[str]) -> pd.DataFrame:
    """By the images' names (a class, a group): who is right how often, and whether that changed.

    Rows sorted by p: name, images, gained and lost (right where one trained alone, or else the
    teacher, is wrong, and the other way round; means over networks), the arms' accuracies, p of the
    exact sign test on images that changed, and p_holm, corrected for all names at once (Holm 1979).
    Images without a name are left out.
    """
    right = by_arm(found, "accuracy")
    students, others = (
        right["student"].to_numpy(),
        right.get("independent", right["teacher"]).to_numpy(),
    )
    change = students - (others if others.shape == students.shape else others[:, :1])
    named = np.asarray(names)[right["student"].index.to_numpy()]
    rows = []
    for name in sorted(set(named.tolist()) - {""}):
        mine = named == name
        net = change[mine].mean(1)
        up, down = int((net > 0).sum()), int((net < 0).sum())
        row: dict[str, Any] = {"name": name, "images": int(mine.sum())}
        for what, sign in (("gained", 1), ("lost", -1)):
            row[what] = float((sign * change[mine] > 0).mean(1).sum())
        row |= {arm: float(frame.to_numpy()[mine].mean()) for arm, frame in right.items()}
        rows.append(row | {"p": float(binomtest(up, up + down).pvalue) if up + down else 1.0})
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = stats.holm(table["p"])
        table = table.sort_values("p", kind="stable", ignore_index=True)
    return table


def reliability(found: Outcome, arm: str, bins: int = 10) -> list[tuple[float, float, int]]:
    """Answers of an arm's networks in bins of equal width of how sure they were of them.

    Of each bin that has some: how sure on average, how often right, how many answers.
    """
    sure, right = (
        by_image(found, name, arm).to_numpy().ravel() for name in ("confidence", "accuracy")
    )
    which = np.minimum((sure * bins).astype(int), bins - 1)
    inside = [which == each for each in np.unique(which)]
    return [(float(sure[its].mean()), float(right[its].mean()), int(its.sum())) for its in inside]


def calibration(found: Outcome) -> dict[str, stats.Interval]:
    """Expected calibration errors of the arms, and of student minus independent ("difference").

    Intervals by resampling images, the same ones for all arms; none on fewer than ten images.
    """
    sure, right = by_arm(found, "confidence"), by_arm(found, "accuracy")
    count = len(sure["student"])
    rng = np.random.default_rng(0)
    drawn = [rng.integers(count, size=count) for _ in range(DRAWS if count >= FEWEST else 0)]
    errors = {
        arm: np.array([_error(own, right[arm], each) for each in (np.arange(count), *drawn)])
        for arm, own in sure.items()
    }
    if "independent" in errors:
        errors["difference"] = errors["student"] - errors["independent"]
    made = {}
    for name, (value, *others) in errors.items():
        error = float(np.std(others)) if others else math.nan
        low, high = value - 1.96 * error, value + 1.96 * error
        if others:
            low, high = max(-1.0 if name == "difference" else 0.0, low), min(1.0, high)
        made[name] = stats.Interval(float(value), float(low), float(high), 1, 0.0, error)
    return made


def _error(sure: pd.DataFrame, right: pd.DataFrame, which: NDArray) -> float:
    """Mean over networks (columns) of the expected calibration error on some images."""
    from torchmetrics.functional.classification import binary_calibration_error

    errors = []
    for seed in sure:
        values: Any = (torch.from_numpy(each[seed].to_numpy()[which]) for each in (sure, right))
        own, hits = values
        errors.append(float(binary_calibration_error(own, hits.long(), fidelity.CALIBRATION_BINS)))
    return float(np.mean(errors))


def at_chance(found: Outcome, classes: int) -> list[str]:
    """Networks that are right no more often than by guessing among so many classes."""
    named = []
    for arm, networks in by_arm(found, "accuracy").items():
        for seed, right in networks.items():
            test = binomtest(int(right.sum()), len(right), 1 / classes, alternative="greater")
            if test.pvalue > 0.05:
                named.append(f"{arm} {seed}" if seed else arm)
    return named
