"""Intervals for one's own networks, often one of each kind and few images: possible or unknown.

Over images, and over networks where there are several. A share or a difference of shares cannot lie
beyond its range, and one that came out the same on all of a few images is not certain: as many
images more are counted at either end of the range as Agresti and Coull (1998) add for a share, and
Agresti and Min (2005) for a difference. On fewer than ten images nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from kdnotes import stats
from kdnotes.stats import Interval
from kdnotes.stats.words import CANNOT_TELL, how_much

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.probes.base import Measure, Outcome

FEWEST = 10  # images behind an interval
NO_TWIN = "no student trained alone"
NO_INTERVAL = "no interval"


@dataclass(frozen=True)
class Share:
    """How far from a student trained alone to the teacher, and a word for it; or why none is told.

    ends: the values that stand for 0 and 1.
    """

    ratio: Interval | None
    word: str
    ends: tuple[float, float]

    @property
    def is_told(self) -> bool:
        """Whether there is a word for how far, and not for why that is unknown."""
        return self.ratio is not None and self.word != CANNOT_TELL


def difference(found: Outcome, of: Measure, arm: str, reference: str | float) -> Interval:
    """An arm minus another, or minus a number; raises NotMeasuredError as `stats.contrast`."""
    arms = [arm, reference] if isinstance(reference, str) else [arm]
    values, covariance, degrees, images = _arms(found, of, arms)
    signs = np.array([1.0, -1.0][: len(arms)])
    variance, unit = float(signs @ covariance @ signs), of.high - of.low
    if isinstance(reference, str):
        variance += _doubt(unit, images)
        return _possible(signs @ values, variance, degrees, images, (-unit, unit), 2)
    if images and math.isfinite(unit):
        variance += 2 * (unit / (images + 4)) ** 2
    made = _possible(values[0], variance, degrees, images, (of.low, of.high), 4)
    moved = {name: getattr(made, name) - reference for name in ("estimate", "low", "high")}
    return replace(made, **moved)


def share(found: Outcome, of: Measure, arm: str = "student") -> Share:
    """From the independent students (else the measure's chance) to the teacher or a copy of it.

    Fieller's interval (1954), over images and networks. Raises NotMeasuredError.
    """
    rows = found.table[(found.table["measure"] == of.name) & found.table["value"].notna()]
    known = set(rows["arm"][rows["condition"] == of.condition])
    fixed: dict[str, float | None] = {"independent": of.chance, "teacher": of.twin}
    if of.of == "network":
        fixed = {"independent": None, "teacher": None}
    measured = [end for end in fixed if end in known and (end, of.of) != ("teacher", "pair")]
    arms = [arm, *measured]
    values, covariance, degrees, images = _arms(found, of, arms)
    means = dict(zip(arms, values.mean(1), strict=True)) if values.size else {}
    below, above = (means.get(end, otherwise) for end, otherwise in fixed.items())
    ends = (math.nan if below is None else below, math.nan if above is None else above)
    if not values.size:
        return Share(None, "nothing to measure", ends)
    if below is None or above is None:
        return Share(None, NO_TWIN if below is None else "no end to compare with", ends)
    columns = {arm: (1.0, 0.0), "independent": (-1.0, -1.0), "teacher": (0.0, 1.0)}
    weights = np.array([columns[each] for each in arms]).T
    start = 0.0 if "independent" in measured else below
    pairs = weights @ values - np.array([[start], [start]])
    pairs[1] += 0.0 if "teacher" in measured else above
    unit, n = of.high - of.low, pairs.shape[1]
    shared = weights @ covariance @ weights.T + _doubt(unit, images) * (weights @ weights.T) / 2
    student, gap = (
        _possible(pairs[row], float(shared[row, row]), degrees, images, (-unit, unit), 2)
        for row in (0, 1)
    )
    total = shared + (np.cov(pairs) / n if n > 1 else 0.0)
    ratio = _ratio(student, gap, total, float(n - 1) if n > 1 else degrees)
    if isinstance(ratio, str):
        return Share(None, ratio, ends)
    return Share(ratio, how_much(ratio.low, ratio.high), ends)


def _ratio(student: Interval, gap: Interval, total: NDArray, degrees: float) -> Interval | str:
    """Of two differences whose means have a covariance; or why there is none."""
    if not (np.isfinite(total).all() and math.isfinite(student.low)):
        return NO_INTERVAL
    half = float(-stdtrit(degrees, 0.025)) * math.sqrt(max(total[1, 1], 0.0))
    if abs(gap.estimate) - half <= stats.SMALLEST_GAP:
        small = abs(gap.estimate) - half <= 0 or abs(gap.estimate) <= stats.SMALLEST_GAP
        return stats.NO_GAP if small else stats.UNCERTAIN_GAP
    means = student.estimate, gap.estimate
    low, high = stats.fieller(*means, total[0, 0], total[0, 1], total[1, 1], degrees)
    ratio = means[0] / means[1]
    return replace(student, estimate=ratio, low=min(low, ratio), high=max(high, ratio))


def _arms(
    found: Outcome, of: Measure, arms: Sequence[str]
) -> tuple[NDArray, NDArray, float, int | None]:
    """Values (arms, networks), covariance by images, its degrees of freedom, images (None: none).

    An arm of one network is compared with every network of one that has several.
    """

    def here(frame: pd.DataFrame) -> pd.DataFrame:
        rows = frame[(frame["measure"] == of.name) & (frame["condition"] == of.condition)]
        return rows[rows["arm"].isin(list(arms))].astype({"arm": str})

    table, items = here(found.table), here(found.items)
    counts = table.groupby("arm")["seed"].nunique().drop("teacher", errors="ignore")
    alone = [arm for arm in arms if counts.get(arm) == 1] if counts.max() > 1 else []
    spare = [each for each in stats.SINGLE_NETWORK_ARMS if each not in arms]
    renamed = dict(zip(alone, spare, strict=False))
    table, items = (each.assign(arm=each["arm"].replace(renamed)) for each in (table, items))
    asked = [renamed.get(arm, arm) for arm in arms]
    values, covariance, degrees = stats.paired_arms(table, items, of.name, of.condition, asked)
    known = items[np.isfinite(items["value"])]
    return values, covariance, degrees, int(known["source"].nunique()) if len(known) else None


def _possible(
    values: NDArray,
    variance: float,
    degrees: float,
    images: int | None,
    limits: tuple[float, float],
    counted: int,
) -> Interval:
    """The mean of values (seeds,) with an interval within limits, or with none.

    variance: by images, with that of the images that were ``counted`` at the ends of the range.
    """
    if not values.size:
        return stats.NOTHING
    error = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
    if images is not None and (images < FEWEST or not math.isfinite(error)):
        made = stats.paired_difference(values, 0.0)
        return replace(made, low=math.nan, high=math.nan)
    made = stats.paired_difference(values, 0.0, error, degrees)
    low, high = limits
    if not math.isfinite(made.low) or not math.isfinite(high - low):
        return made
    towards = counted / (images + counted) if images else 0.0
    moved = towards * ((low + high) / 2 - made.estimate)
    below, above = min(made.low + moved, made.estimate), max(made.high + moved, made.estimate)
    return replace(made, low=max(low, below), high=min(high, above))


def _doubt(spread: float, images: int | None) -> float:
    """Variance of a difference of shares that one image more at either end would bring."""
    return (spread / (images + 2)) ** 2 if images and math.isfinite(spread) else 0.0
