"""Intervals over seeds: of means, of paired differences, and of shares of a gap.

Students of one seed share first weights and order of images, so every comparison is a mean of
paired differences. Its variance is that over seeds, s^2/n, plus what other test images would change
for all seeds alike, resampled by source glyph or photo; what they would change for one seed alone
is in s^2/n already. Where there was one teacher, all of this is conditional on it.

Tables are those of the probes: ``table`` with columns arm, seed, condition, measure, value, and
``items`` with columns item and source besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame, Series
from scipy.special import stdtrit

from kdnotes.stats.words import NO_GAP, UNCERTAIN_GAP, format_number

Array = NDArray[np.float64]

# A cast has one network of each of these: it is compared with the students of every seed.
SINGLE_NETWORK_ARMS = ("teacher", "second-teacher", "plain-teacher", "foreign")
LEVEL = 0.95
REPETITIONS = 1000  # resamples of the test images
ENTRIES_AT_ONCE = 5_000_000  # of sources in resamples, 40 MB
SMALLEST_GAP = 0.05
GAP_IN_SPREADS = 3.0


class NotMeasuredError(ValueError):
    """The table holds nothing for an arm, a measure or a condition that was asked for."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and what the interval was made of.

    ``n``: (pairs of) seeds; ``seed_sd``: over them; ``item_standard_error``: the part of
    ``standard_error`` that test images give all seeds alike. Bounds are NaN where there are none.
    """

    estimate: float
    low: float
    high: float
    n: int
    degrees_of_freedom: float
    standard_error: float
    seed_sd: float = math.nan
    item_standard_error: float = 0.0
    item_degrees_of_freedom: float = math.inf

    def format(self, digits: int = 2) -> str:
        """The estimate and its bounds, such as ``.38 [.31, .45]``."""
        estimate, *ends = (
            format_number(value, digits) for value in (self.estimate, self.low, self.high)
        )
        return f"{estimate} [{', '.join(ends) if math.isfinite(self.low) else 'no interval'}]"


# Where no seed has a value.
NOTHING = Interval(math.nan, math.nan, math.nan, 0, *(math.nan for _ in range(5)))


def standard_deviation(variance: float) -> float:
    """Square root that takes the -1e-20 of rounding for zero, and leaves NaN alone."""
    return float(np.sqrt(np.maximum(variance, 0.0)))


def critical_value(
    upper: ArrayLike, seed_share: ArrayLike, degrees_of_freedom: ArrayLike, item_degrees: ArrayLike
) -> Array:
    """How many standard errors are exceeded with probability ``upper``.

    The t quantiles of the two parts of the variance, averaged by their shares in it: Cochran and
    Cox (1957). Satterthwaite's degrees of freedom fail with five seeds far out in the tails, where
    Holm reads them: among 20 claims with nothing in them one was "agrees" in 7% of simulations
    instead of 2.5%; here it is never more.
    """
    share = np.asarray(seed_share, dtype=np.float64)
    return -(
        share * stdtrit(degrees_of_freedom, upper) + (1 - share) * stdtrit(item_degrees, upper)
    )


def t_interval(values: ArrayLike) -> Interval:
    """The mean of n seeds, (n,), with its t-interval: Student (1908); see `paired_difference`."""
    return paired_difference(values, 0.0)


def paired_difference(
    student_by_seed: ArrayLike,
    reference_by_seed: ArrayLike,
    item_standard_error: float = 0.0,
    item_degrees_of_freedom: float = math.inf,
) -> Interval:
    """Mean difference of students and references paired by seed, with its 95% t-interval.

    Both inputs have shape (n,), in the order of the seeds, or the reference one value for all.
    ``item_standard_error``, of the test images that all seeds share, adds to the variance; without
    it the bounds of one seed are NaN. Critical value: Cochran and Cox (1957). Raises ValueError for
    an empty or non-finite input.
    """
    student = np.atleast_1d(np.asarray(student_by_seed, dtype=np.float64))
    reference = np.atleast_1d(np.asarray(reference_by_seed, dtype=np.float64))
    if student.ndim != 1 or student.size == 0 or reference.size not in (1, student.size):
        raise ValueError(
            f"need one value per seed: {student.shape} students, {reference.shape} references"
        )
    difference = student - reference
    if not np.isfinite(difference).all():
        raise ValueError("values of seeds must be finite")
    n = difference.size
    seed_sd = float(difference.std(ddof=1)) if n > 1 else math.nan
    # Rounding leaves a sd of 1e-17 where all differences are the same number.
    if n > 1 and np.ptp(difference) <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        seed_sd = 0.0
    seed_variance = seed_sd**2 / n if n > 1 else 0.0
    variance = seed_variance + item_standard_error**2
    standard_error = math.sqrt(variance) if n > 1 or variance > 0 else math.nan
    half = standard_error
    if variance > 0:
        degrees = max(n - 1, 1), item_degrees_of_freedom
        half *= float(critical_value((1 - LEVEL) / 2, seed_variance / variance, *degrees))
    estimate = float(difference.mean())
    parts = standard_error, seed_sd, item_standard_error, item_degrees_of_freedom
    return Interval(estimate, estimate - half, estimate + half, n, n - 1.0, *parts)


def contrast(
    table: DataFrame,
    items: DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str | float,
) -> Interval:
    """An arm minus a reference, from the tidy tables of a probe, with its interval over seeds.

    ``reference``: a constant, or another arm, paired by seed (one fixed network with every seed).
    Test images of ``items`` are resampled by source, with the same draws in every call. All is NaN
    without a seed of finite values. Raises NotMeasuredError for what the table does not hold,
    ValueError where a seed has several values.
    """
    arms = [arm, reference] if isinstance(reference, str) else [arm]
    values, covariance, item_degrees = paired_arms(table, items, measure, condition, arms)
    if not values.size:
        return NOTHING
    signs = np.array([1.0, -1.0][: len(arms)])
    other: ArrayLike = values[1] if isinstance(reference, str) else reference
    item_error = standard_deviation(signs @ covariance @ signs)
    return paired_difference(values[0], other, item_error, item_degrees)


def paired_arms(
    table: DataFrame, items: DataFrame | None, measure: str, condition: str, arms: Sequence[str]
) -> tuple[Array, Array, float]:
    """The finite values of arms at the seeds that all have, (arms, seeds); raises as `contrast`.

    With the covariance (arms, arms) that test images give the arms' means alike at all seeds, zero
    without items, and its degrees of freedom. An estimate, by which a variance can be below 0.
    """
    what = f"'{measure}' under '{condition}'" if condition else f"'{measure}'"
    selected = _select(table, measure, condition)
    by_arm = {arm: _values_by_seed(selected, arm, what) for arm in arms}
    fixed = {arm for arm, values in by_arm.items() if _is_fixed(arm, len(values))}
    # Where every network is fixed there is one pair.
    varying = [arm for arm in arms if arm not in fixed] or arms[:1]
    seeds = sorted(set.intersection(*(set(by_arm[arm].index) for arm in varying)))
    values = [
        np.repeat(by_arm[arm].to_numpy(), len(seeds)) if arm in fixed else by_arm[arm][seeds]
        for arm in arms
    ]
    return np.stack(values), *_item_covariance(items, measure, condition, arms, np.array(seeds))


def _select(frame: DataFrame, measure: str, condition: str) -> DataFrame:
    return frame[(frame["measure"] == measure) & (frame["condition"] == condition)]


def _is_fixed(arm: str, networks: int) -> bool:
    return arm in SINGLE_NETWORK_ARMS and networks == 1


def _values_by_seed(selected: DataFrame, arm: str, what: str) -> Series:
    """Finite values of one arm, indexed and sorted by seed."""
    values = selected[selected["arm"] == arm].set_index("seed")["value"].astype(np.float64)
    if values.empty:
        known = ", ".join(map(str, selected["arm"].unique())) or "none"
        raise NotMeasuredError(f"no {what} for arm '{arm}'; measured: {known}")
    if values.index.has_duplicates:
        raise ValueError(f"several values of {what} for one seed of arm '{arm}'")
    return values[np.isfinite(values)].sort_index()


def _item_covariance(
    items: DataFrame | None, measure: str, condition: str, arms: Sequence[str], seeds: NDArray
) -> tuple[Array, float]:
    """Item covariance of the arms' means over seeds, 0 of arms without items, and its degrees."""
    covariance = np.zeros((len(arms), len(arms)))
    if items is None or items.empty or not seeds.size:
        return covariance, math.inf
    rows = _select(items, measure, condition)
    rows = rows[rows["arm"].isin(list(arms)) & np.isfinite(rows["value"])]
    names, sources = np.unique(rows["source"].to_numpy(), return_inverse=True)
    seed_of_row = rows["seed"].to_numpy()
    value_of_row = rows["value"].to_numpy(dtype=np.float64)
    totals = {}
    for index, arm in enumerate(arms):
        mine = (rows["arm"] == arm).to_numpy()
        own = np.unique(seed_of_row[mine])
        known = own if _is_fixed(arm, len(own)) else seeds
        mine = mine & np.isin(seed_of_row, known)
        if mine.any():
            cell = sources[mine] * len(known) + np.searchsorted(known, seed_of_row[mine])
            cells = (len(names), len(known))
            sums, counts = (
                np.bincount(cell, each, math.prod(cells)).reshape(cells).astype(np.float64)
                for each in (value_of_row[mine], None)
            )
            totals[index] = sums, counts
    if not totals:
        return covariance, math.inf
    measured = list(totals)
    covariance[np.ix_(measured, measured)] = _bootstrap_covariance(list(totals.values()))
    return covariance, max(len(names) - 1.0, 1.0)


def _bootstrap_covariance(arms: Sequence[tuple[Array, Array]]) -> Array:
    """Covariance of the arms' means over seeds through sources, without their part in s^2/n.

    ``arms``: sums and counts of item values per source and seed, (sources, seeds), or (sources, 1)
    of one network for all seeds. Sources are drawn with replacement, with the factor G/(G-1) of
    Cameron and Miller (2015) for G of them. The covariance of the means over n seeds is
    T = I/G + E/(nG), with I of the sources and E of their interaction with seeds; that of one
    seed's means S = I/G + E/G on average. So E/(nG) = (S - T)/(n - 1), which the variance over
    seeds has, is taken off, unless there is one seed. NaN with fewer than two sources.
    """
    rng = np.random.default_rng(0)
    measured = np.any([counts.any(axis=1) for _, counts in arms], axis=0)
    arms = [(sums[measured], counts[measured]) for sums, counts in arms]
    number = int(measured.sum())
    unknown = np.full((len(arms), len(arms)), np.nan)
    if number < 2:
        return unknown
    seeds = max(sums.shape[1] for sums, _ in arms)
    chunk = max(1, min(REPETITIONS, ENTRIES_AT_ONCE // number))
    drawn_means = []
    for start in range(0, REPETITIONS, chunk):
        rows = min(chunk, REPETITIONS - start)
        drawn = rng.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        weights = weights.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = [(weights @ sums) / (weights @ counts) for sums, counts in arms]
        wide = [np.broadcast_to(column, (rows, seeds)) for column in columns]
        drawn_means.append(np.stack(wide, axis=1))
    replicates = np.concatenate(drawn_means)  # (draws, arms, seeds)
    # A rare measure (the teacher's few errors) may be absent from a whole resample.
    replicates = replicates[np.isfinite(replicates).all(axis=(1, 2))]
    if len(replicates) < 2:
        return unknown
    centred = replicates - replicates.mean(axis=0)
    means = centred.mean(axis=2)
    together = means.T @ means
    if seeds > 1:
        alone = np.einsum("ras,rbs->ab", centred, centred, optimize=True) / seeds
        together = together - (alone - together) / (seeds - 1)
    return together / (len(replicates) - 1) * number / (number - 1)


@dataclass(frozen=True)
class GapClosed:
    """How much of a gap a student closes, or the raw difference where there is no gap.

    ``ratio`` is None where the gap cannot be divided by, for a ``reason``. The variances are those
    of the means of the difference (student minus reference) and the gap (ceiling minus reference).
    """

    ratio: Interval | None
    difference: Interval
    gap: Interval
    reason: str
    variance: float = math.nan
    covariance: float = math.nan
    gap_variance: float = math.nan

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
        """By how much the difference exceeds a share of the gap; all variance is of seeds."""
        if self.ratio is None:
            return NOTHING
        estimate = self.difference.estimate - share * self.gap.estimate
        variance = self.variance - 2 * share * self.covariance + share**2 * self.gap_variance
        signed = math.copysign(1.0, self.gap.estimate) * estimate
        degrees, error = self.ratio.degrees_of_freedom, standard_deviation(variance)
        return Interval(signed, math.nan, math.nan, self.ratio.n, degrees, error)


def gap_closed(
    table: DataFrame,
    items: DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str = "independent",
    ceiling: str = "teacher",
) -> GapClosed:
    """(arm - reference) / (ceiling - reference), for measures of one network.

    Both are paired by seed. The interval is Fieller's (1954), with the covariance of the means over
    seeds plus that over resampled sources, and n - 1 degrees of freedom. There is no ratio unless
    the lower bound of the gap's size exceeds both .05 and three of its standard deviations between
    seeds. ``standard_error``: by the delta method. Raises as `contrast`.
    """
    tables = (table, items, measure, condition)
    arms = [arm, reference, ceiling]
    (student, below, above), covariance, item_degrees = paired_arms(*tables, arms)
    n = student.size
    if n < 2:
        difference, gap = (contrast(*tables, each, reference) for each in (arm, ceiling))
        return GapClosed(None, difference, gap, "needs two seeds")
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


def _without_negative(covariance: Array) -> Array:
    """The nearest covariance in least squares: Higham (1988), theorem 2.1."""
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
    """95% bounds of a ratio of two correlated means: Fieller (1954).

    Raises ValueError where there are none: the denominator may be 0.
    """
    t_squared = float(stdtrit(degrees_of_freedom, 0.975)) ** 2
    square = denominator**2 - t_squared * denominator_variance
    linear = numerator * denominator - t_squared * covariance
    constant = numerator**2 - t_squared * variance
    if square <= 0:
        raise ValueError("the denominator's interval contains zero: the ratio is unbounded")
    root = math.sqrt(max(linear**2 - square * constant, 0.0))
    return (linear - root) / square, (linear + root) / square
