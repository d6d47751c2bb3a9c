"""Shares of a gap: how much of the way from the independent students to the teacher is gone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from kdnotes.stats.intervals import (
    NOTHING,
    Interval,
    contrast,
    paired_arms,
    paired_difference,
    standard_deviation,
)
from kdnotes.stats.words import NO_GAP, UNCERTAIN_GAP

SMALLEST_GAP = 0.05
GAP_IN_SPREADS = 3.0


@dataclass(frozen=True)
class GapClosed:
    """How much of a gap a student closes, or the raw difference where there is no gap.

    ``ratio`` is None where the gap is too small or too uncertain to divide by; ``reason`` then
    says so. ``variance``, ``covariance`` and ``gap_variance`` are those of the means of the
    difference (student minus reference) and of the gap (ceiling minus reference).
    """

    ratio: Interval | None
    difference: Interval
    gap: Interval
    reason: str
    variance: float
    covariance: float
    gap_variance: float

    def __float__(self) -> float:
        """The share as a plain number, NaN where there is no ratio."""
        return math.nan if self.ratio is None else self.ratio.estimate

    def format(self, digits: int = 2) -> str:
        """The ratio with its interval, or the raw difference and why there is no ratio."""
        if self.ratio is not None:
            return self.ratio.format(digits)
        if not self.difference.n:
            return self.reason
        return f"{self.reason} (difference {self.difference.format(digits)})"

    def beyond(self, share: float) -> Interval:
        """By how much the difference exceeds a share of the gap; above 0 where the ratio does.

        All of its variance counts as variance between seeds, as in Fieller's interval.
        """
        if self.ratio is None:
            return NOTHING
        estimate = self.difference.estimate - share * self.gap.estimate
        variance = self.variance - 2 * share * self.covariance + share**2 * self.gap_variance
        return Interval(
            math.copysign(1.0, self.gap.estimate) * estimate,
            math.nan,
            math.nan,
            self.ratio.n,
            self.ratio.degrees_of_freedom,
            standard_deviation(variance),
        )


def gap_closed(
    table: pd.DataFrame,
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str = "independent",
    ceiling: str = "teacher",
) -> GapClosed:
    """(arm - reference) / (ceiling - reference), for measures of one network.

    Both differences are paired by seed; the interval is Fieller's (1954), with the covariance of
    the two means over seeds plus that over resampled sources, and with n - 1 degrees of freedom
    throughout. No ratio is given unless the lower bound of the gap's size exceeds both .05 and
    three times the standard deviation of the gap between seeds: there is no gap where its interval
    holds 0 or lies within .05 of it, else it is too small or uncertain. The ratio's
    ``standard_error`` is that of the delta method. Raises as ``contrast`` does.
    """
    tables = (table, items, measure, condition)
    arms = [arm, reference, ceiling]
    (student, below, above), covariance, item_degrees = paired_arms(*tables, arms)
    n = student.size
    if n < 2:
        difference, gap = (contrast(*tables, each, reference) for each in (arm, ceiling))
        return GapClosed(None, difference, gap, "needs two seeds", math.nan, math.nan, math.nan)
    # Rows: student minus reference, ceiling minus reference.
    to_differences = np.array([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]])
    item_part = _without_negative(to_differences @ covariance @ to_differences.T)
    seed_part = np.cov(student - below, above - below) / n
    total = seed_part + item_part
    difference, gap = (
        paired_difference(values, below, standard_deviation(variance), item_degrees)
        for values, variance in ((student, item_part[0, 0]), (above, item_part[1, 1]))
    )
    covariances = total[0, 0], total[0, 1], total[1, 1]
    if reason := _why_no_ratio(gap, total[1, 1]):
        return GapClosed(None, difference, gap, reason, *covariances)
    low, high = fieller(difference.estimate, gap.estimate, *covariances, n - 1.0)
    estimate = difference.estimate / gap.estimate
    along = np.array([1.0, -estimate]) / gap.estimate
    variances = along @ total @ along, n * along @ seed_part @ along, along @ item_part @ along
    ratio = Interval(estimate, low, high, n, n - 1.0, *map(standard_deviation, variances))
    return GapClosed(ratio, difference, gap, "", *covariances)


def _without_negative(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest covariance, in the least squares of its entries, in which no variance is below 0.

    Source: Higham (1988), theorem 2.1: its negative eigenvalues become 0.
    """
    if not np.isfinite(covariance).all():
        return covariance
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def _why_no_ratio(gap: Interval, variance: float) -> str:
    if not math.isfinite(gap.low):
        return "no interval for the gap"
    # The same n - 1 degrees of freedom as for the ratio, whose interval is then always bounded.
    # A share is one whichever way the teacher lies: a fairer one has a smaller deficit.
    half = float(stdtrit(gap.n - 1.0, 0.975)) * standard_deviation(variance)
    if abs(gap.estimate) - half > max(SMALLEST_GAP, GAP_IN_SPREADS * gap.seed_sd):
        return ""
    there = gap.low > 0 or gap.high < 0
    return UNCERTAIN_GAP if there and max(-gap.low, gap.high) > SMALLEST_GAP else NO_GAP


def fieller(
    numerator: float,
    denominator: float,
    variance: float,
    covariance: float,
    denominator_variance: float,
    degrees_of_freedom: float,
) -> tuple[float, float]:
    """95% bounds of a ratio of two correlated means.

    They are the values r at which ``numerator - r * denominator`` is just not significantly
    different from zero. Raises ValueError where the denominator itself is not significantly
    different from zero: the set is then unbounded. Source: Fieller (1954).
    """
    t_squared = float(stdtrit(degrees_of_freedom, 0.975)) ** 2
    square = denominator**2 - t_squared * denominator_variance
    linear = numerator * denominator - t_squared * covariance
    constant = numerator**2 - t_squared * variance
    if square <= 0:
        raise ValueError("the denominator's interval contains zero: the ratio is unbounded")
    root = math.sqrt(max(linear**2 - square * constant, 0.0))
    return (linear - root) / square, (linear + root) / square
