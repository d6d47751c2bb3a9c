"""What follows from everyone's answers alone: flips, calibration, classes and groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdnotes import stats
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


class Bin(NamedTuple):
    """Answers that a network was about equally sure of: how sure, how often right, how many."""

    sure: float
    right: float
    images: int


def measure(cast: Cast, data: ImageData, logits: Sequence[Tensor] | None = None) -> Outcome:
    """Fidelity, how sure each network is of its answer (``confidence``), and `FLIPS` by image.

    logits: of everyone, where they are known; else the networks are asked.
    """
    members = list(cast.everyone())
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
        values = {LOST.name: (teachers == labels) & (own != labels)}
        if twins:
            alone = twins[min(place, len(twins) - 1)]
            values |= {
                INHERITED_MISTAKES.name: (alone == labels)
                & (teachers != labels)
                & (own == teachers),
                INHERITED_CORRECTIONS.name: (alone != labels)
                & (teachers == labels)
                & (own == labels),
                NEGATIVE_FLIPS.name: (alone == labels) & (own != labels),
                POSITIVE_FLIPS.name: (alone != labels) & (own == labels),
            }
        for name, happens in values.items():
            recorder.add(student, name, happens, own)
    return Outcome.combine([found, recorder.outcome()])


def by_image(found: Outcome, measure: str, arm: str, of: str = "value") -> pd.DataFrame:
    """Values, or predictions, of an arm's networks (columns) by image (rows)."""
    rows = found.items[(found.items["measure"] == measure) & (found.items["condition"] == "")]
    rows = rows[rows["arm"] == arm]
    return rows.pivot(index="item", columns="seed", values=of)


def by_name(found: Outcome, reference: str, names: Sequence[str]) -> pd.DataFrame:
    """By the images' names (a class, a group): who is right how often, and whether that changed.

    Rows sorted by p: name, images, gained and lost (right where the reference is wrong, and the
    other way round; means over networks), the arms' accuracies, p of the exact sign test on images
    that changed, and p_holm, corrected for all names at once (Holm 1979). Images without a name are
    left out.
    """
    from scipy.stats import binomtest

    right = {arm: by_image(found, "accuracy", arm) for arm in ("teacher", "student", "independent")}
    right = {arm: frame for arm, frame in right.items() if len(frame)}
    students, others = right["student"], right[reference]
    same = others.shape[1] == students.shape[1]
    change = students.to_numpy() - (others.to_numpy() if same else others.to_numpy()[:, :1])
    named = np.asarray(names)[students.index.to_numpy()]
    rows = []
    for name in dict.fromkeys(each for each in names if each):
        mine = named == name
        if not mine.any():
            continue
        net = change[mine].mean(1)
        up, down = int((net > 0).sum()), int((net < 0).sum())
        p = float(binomtest(up, up + down).pvalue) if up + down else 1.0
        means = {arm: float(frame.to_numpy()[mine].mean()) for arm, frame in right.items()}
        gained, lost = (float((sign * change[mine] > 0).mean(1).sum()) for sign in (1, -1))
        rows.append(
            {
                "name": name,
                "images": int(mine.sum()),
                "gained": gained,
                "lost": lost,
                **means,
                "p": p,
            }
        )
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = stats.holm(table["p"])
        table = table.sort_values(["p", "name"], kind="stable", ignore_index=True)
    return table


def reliability(found: Outcome, arm: str, bins: int = 10) -> list[Bin]:
    """Answers of an arm's networks in bins of equal width of how sure they were of them."""
    sure, right = (
        by_image(found, name, arm).to_numpy().ravel() for name in ("confidence", "accuracy")
    )
    which = np.minimum((sure * bins).astype(int), bins - 1)
    inside = [which == each for each in range(bins)]
    return [
        Bin(float(sure[mine].mean()), float(right[mine].mean()), int(mine.sum()))
        for mine in inside
        if mine.any()
    ]


def calibration(found: Outcome) -> dict[str, stats.Interval]:
    """Expected calibration errors of the arms, and of student minus independent ("difference").

    Intervals by resampling images, the same ones for all arms; none on fewer than ten images.
    """
    from kdnotes.audit.judging import FEWEST

    arms = [arm for arm in ("teacher", "student", "independent") if arm in set(found.table["arm"])]
    pairs = {
        arm: [by_image(found, name, arm).to_numpy().T for name in ("confidence", "accuracy")]
        for arm in arms
    }
    count = pairs["student"][0].shape[1]
    rng = np.random.default_rng(0)
    drawn = [rng.integers(count, size=count) for _ in range(DRAWS if count >= FEWEST else 0)]
    errors = {
        arm: [_error(sure, right, each) for each in (np.arange(count), *drawn)]
        for arm, (sure, right) in pairs.items()
    }
    if "independent" in errors:
        both = zip(errors["student"], errors["independent"], strict=True)
        errors["difference"] = [own - alone for own, alone in both]
    made = {}
    for name, (value, *others) in errors.items():
        half = 1.96 * float(np.std(others)) if others else float("nan")
        least = -1.0 if name == "difference" else 0.0
        bounds = max(least, value - half), min(1.0, value + half)
        low, high = bounds if others else (float("nan"), float("nan"))
        made[name] = stats.Interval(value, low, high, 1, 0.0, half / 1.96)
    return made


def _error(sure: NDArray, right: NDArray, which: NDArray) -> float:
    """Mean over networks (rows) of the expected calibration error on some images."""
    from torchmetrics.functional.classification import binary_calibration_error

    errors: list[Any] = [
        binary_calibration_error(
            torch.from_numpy(own[which]),
            torch.from_numpy(hits[which]).long(),
            fidelity.CALIBRATION_BINS,
        )
        for own, hits in zip(sure, right, strict=True)
    ]
    return float(np.mean([float(each) for each in errors]))


def at_chance(found: Outcome, classes: int) -> list[str]:
    """Networks that are right no more often than by guessing among so many classes."""
    from scipy.stats import binomtest

    named = []
    for (arm, seed), rows in found.items[
        (found.items["measure"] == "accuracy") & (found.items["condition"] == "")
    ].groupby(["arm", "seed"], observed=True, sort=False):
        test = binomtest(int(rows["value"].sum()), len(rows), 1 / classes, alternative="greater")
        if test.pvalue > 0.05:
            named.append(f"{arm} {seed}" if seed else str(arm))
    return named
