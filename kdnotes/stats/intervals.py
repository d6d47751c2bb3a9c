"""Intervals over seeds: means, paired differences, and contrasts of two arms.

The unit of analysis is the seed. Students of one seed share initialisation and order of images,
so every comparison is a mean of paired differences over seeds, with a t-interval. Its variance is
that over seeds, s^2/n, plus what other test images would change for all seeds alike (resampled by
source glyph or photo). What they would change for one seed alone, the interaction of seeds and
images, varies from seed to seed and is in s^2/n already: it is estimated and not counted again.
Where one teacher was used, all of this is conditional on that teacher.

Tables are those of the probes: ``table`` with columns arm, seed, condition, measure, value, and
``items`` with columns item, source, arm, seed, condition, measure, value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from kdnotes.stats.words import format_number

Array = NDArray[np.float64]

# A cast has one network of each of these: it is compared with the students of every seed.
SINGLE_NETWORK_ARMS = ("teacher", "second-teacher", "plain-teacher", "foreign")
LEVEL = 0.95
REPETITIONS = 1000  # resamples of the test images
ENTRIES_AT_ONCE = 5_000_000  # of sources in resamples, 40 MB


class NotMeasuredError(ValueError):
    """The table holds nothing for an arm, a measure or a condition that was asked for."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and what the interval was made of.

    ``n`` is the number of (pairs of) seeds, ``degrees_of_freedom`` n - 1, ``seed_sd`` the standard
    deviation over them; ``item_standard_error`` is the part of ``standard_error`` that comes from
    the choice of test images and is the same for all seeds, with degrees of freedom of its own.
    ``low`` and ``high`` are NaN where no interval can be given.
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
        estimate = format_number(self.estimate, digits)
        if not math.isfinite(self.low):
            return f"{estimate} [no interval]"
        return f"{estimate} [{format_number(self.low, digits)}, {format_number(self.high, digits)}]"


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
    Cox (1957). Satterthwaite's degrees of freedom give narrower intervals, but with five seeds they
    fail far out in the tails, where Holm's correction reads them: among 20 claims with nothing in
    them one was "agrees" in 7% of simulations instead of 2.5%; here it is never more.
    """
    share = np.asarray(seed_share, dtype=np.float64)
    return -(
        share * stdtrit(degrees_of_freedom, upper) + (1 - share) * stdtrit(item_degrees, upper)
    )


def t_interval(values: ArrayLike) -> Interval:
    """Mean of the values of n seeds, shape (n,), with its 95% t-interval.

    With one value the bounds are NaN. Raises ValueError for an empty or non-finite input. Source:
    Student (1908).
    """
    return paired_difference(values, 0.0)


def paired_difference(
    student_by_seed: ArrayLike,
    reference_by_seed: ArrayLike,
    item_standard_error: float = 0.0,
    item_degrees_of_freedom: float = math.inf,
) -> Interval:
    """Mean difference of students and references paired by seed, with its 95% t-interval.

    Both inputs have shape (n,), in the order of the seeds; a reference of one value is compared
    with every student. The variance is that between seeds divided by n plus
    ``item_standard_error`` squared, the part of the test images that all seeds share. With one seed
    the interval is conditional on these very networks, and NaN without an item standard error.
    Critical value: Cochran and Cox (1957). Raises ValueError for an empty or non-finite input.
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
    table: pd.DataFrame,
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str | float,
) -> Interval:
    """An arm minus a reference, from the tidy tables of a probe, with its interval over seeds.

    ``reference`` is another arm (paired by seed number; arms of one fixed network such as the
    teacher are compared with every seed) or a constant (a win rate against .5). Where ``items``
    has rows of the measure, test images are resampled by source, with the same draws in every
    call. Seeds without a finite value in both arms are left out; with none left all numbers are
    NaN. Raises NotMeasuredError where the table has no row, ValueError where a seed has several.
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
    table: pd.DataFrame,
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arms: Sequence[str],
) -> tuple[Array, Array, float]:
    """The finite values of arms at the seeds that all have, (arms, seeds); raises as `contrast`.

    With the covariance (arms, arms) that the choice of test images gives the arms' means alike at
    all seeds, zero without items, and its degrees of freedom. It is an estimate: the variance of a
    difference of arms can come out below 0, and then counts as 0.
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


def _select(frame: pd.DataFrame, measure: str, condition: str) -> pd.DataFrame:
    return frame[(frame["measure"] == measure) & (frame["condition"] == condition)]


def _is_fixed(arm: str, networks: int) -> bool:
    return arm in SINGLE_NETWORK_ARMS and networks == 1


def _values_by_seed(selected: pd.DataFrame, arm: str, what: str) -> pd.Series:
    """Finite values of one arm, indexed and sorted by seed."""
    rows = selected[selected["arm"] == arm]
    if rows.empty:
        known = ", ".join(dict.fromkeys(str(name) for name in selected["arm"])) or "none"
        raise NotMeasuredError(f"no {what} for arm '{arm}'; measured: {known}")
    if rows["seed"].duplicated().any():
        raise ValueError(f"several values of {what} for one seed of arm '{arm}'")
    values = pd.Series(rows["value"].to_numpy(dtype=np.float64), index=rows["seed"].to_numpy())
    return values[np.isfinite(values)].sort_index()


def _item_covariance(
    items: pd.DataFrame | None, measure: str, condition: str, arms: Sequence[str], seeds: NDArray
) -> tuple[Array, float]:
    """Item covariance of the arms' means over seeds, and its degrees of freedom.

    An arm without items of its own (the teacher, fooled by all of its images by construction)
    counts as a constant.
    """
    covariance = np.zeros((len(arms), len(arms)))
    if items is None or items.empty or not seeds.size:
        return covariance, math.inf
    rows = _select(items, measure, condition)
    rows = rows[rows["arm"].isin(list(arms)) & np.isfinite(rows["value"])]
    names, sources = np.unique(rows["source"].to_numpy(), return_inverse=True)
    seed_of_row = rows["seed"].to_numpy()
    value_of_row = rows["value"].to_numpy(dtype=np.float64)
    totals, measured = [], []
    for index, arm in enumerate(arms):
        mine = (rows["arm"] == arm).to_numpy()
        own = np.unique(seed_of_row[mine])
        known = own if _is_fixed(arm, len(own)) else seeds
        mine = mine & np.isin(seed_of_row, known)
        if not mine.any():
            continue
        cell = sources[mine] * len(known) + np.searchsorted(known, seed_of_row[mine])
        length = len(names) * len(known)
        by_cell = (np.bincount(cell, each, length) for each in (value_of_row[mine], None))
        sums, counts = (each.reshape(-1, len(known)).astype(np.float64) for each in by_cell)
        totals.append((sums, counts))
        measured.append(index)
    if not measured:
        return covariance, math.inf
    covariance[np.ix_(measured, measured)] = _bootstrap_covariance(totals)
    return covariance, max(len(names) - 1.0, 1.0)


def _bootstrap_covariance(arms: Sequence[tuple[Array, Array]]) -> Array:
    """Covariance of the arms' means over seeds through sources, without their part in s^2/n.

    ``arms`` are sums and counts of item values per source and seed, both (sources, seeds), or
    (sources, 1) for one network that is compared with all seeds. Sources are drawn with
    replacement, all renderings of one glyph or photo together; the factor G/(G-1) for G sources is
    that of Cameron and Miller (2015). For G sources and n seeds the covariance of the means over
    seeds is T = I/G + E/(nG), with I of the sources and E of their interaction with seeds; that of
    one seed's means is S = I/G + E/G on average. So E/(nG) = (S - T)/(n - 1) is taken off, for the
    variance over seeds has it. With one seed there is no telling, and T is returned. NaN with fewer
    than two sources.
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
        drawn_means.append(
            np.stack([np.broadcast_to(column, (rows, seeds)) for column in columns], axis=1)
        )
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
