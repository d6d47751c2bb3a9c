"""Intervals, ratios, agreement beyond chance and verdicts: pure functions on arrays and tables.

The unit of analysis is the seed. Students of one seed share initialisation and order of images,
so every comparison is a mean of paired differences over seeds, with a t-interval whose variance
adds what would change with other test images (resampled by source glyph or photo). Where one
teacher was used, all of this is conditional on that teacher.

Tables are those of the probes: ``table`` with columns arm, seed, condition, measure, value, and
``items`` with columns item, source, arm, seed, condition, measure, value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from kdnotes.stats.words import VERDICTS, Direction, VerdictLabel, format_number  # noqa: F401

Side = Literal["greater", "less"]

SEEDS_FOR_A_VERDICT = 5
SMALLEST_GAP = 0.05
GAP_IN_SPREADS = 3.0
FAMILY_LEVEL = 0.05
NO_GAP = "no gap to close"
# A cast has one network of each of these: it is compared with the students of every seed.
SINGLE_NETWORK_ARMS = ("teacher", "second-teacher", "plain-teacher", "foreign")

_ENTRIES_PER_CHUNK = 5_000_000


class NotMeasuredError(ValueError):
    """The table holds nothing for an arm, a measure or a condition that was asked for."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and what the interval was made of.

    ``n`` is the number of (pairs of) seeds, ``degrees_of_freedom`` n - 1, ``seed_sd`` the standard
    deviation over them; ``item_standard_error`` is the part of ``standard_error`` that comes from
    the choice of test images, with degrees of freedom of its own. ``low`` and ``high`` are NaN
    where no interval can be given.
    """

    estimate: float
    low: float
    high: float
    n: int
    degrees_of_freedom: float
    standard_error: float
    seed_sd: float = float("nan")
    item_standard_error: float = 0.0
    item_degrees_of_freedom: float = float("inf")

    def format(self, digits: int = 2) -> str:
        """The estimate and its bounds, such as ``.38 [.31, .45]``."""
        estimate = format_number(self.estimate, digits)
        if not np.isfinite(self.low):
            return f"{estimate} [no interval]"
        return f"{estimate} [{format_number(self.low, digits)}, {format_number(self.high, digits)}]"


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

    def format(self, digits: int = 2) -> str:
        """The ratio with its interval, or the raw difference and why there is no ratio."""
        if self.ratio is not None:
            return self.ratio.format(digits)
        return f"{self.reason} (difference {self.difference.format(digits)})"


class Verdict(NamedTuple):
    """What is said about a claim, and why."""

    label: VerdictLabel
    reason: str


class Spread(NamedTuple):
    """Mean and central 95% range of ``n`` values."""

    mean: float
    low: float
    high: float
    n: int


class ErrorRates(NamedTuple):
    """Simulated shares of repetitions in which the procedure is wrong although nothing is there.

    ``reproduced`` and ``not_reproduced`` are per claim, before Holm; ``any_reproduced`` and
    ``any_not_reproduced`` count repetitions with at least one such verdict after Holm.
    """

    reproduced: float
    not_reproduced: float
    any_reproduced: float
    any_not_reproduced: float


class _SourceTotals(NamedTuple):
    """Sums and counts of item values per source and seed, both of shape (sources, seeds)."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]


def _root(variance: Any) -> float:
    """Square root that takes the -1e-20 of rounding for zero, and leaves NaN alone."""
    return float(np.sqrt(np.maximum(variance, 0.0)))


def _critical_value(
    upper: ArrayLike, seed_share: ArrayLike, degrees_of_freedom: ArrayLike, item_degrees: ArrayLike
) -> NDArray[np.float64]:
    """How many standard errors are exceeded with probability ``upper``.

    The t quantiles of the two parts of the variance, averaged by their shares in it: Cochran and
    Cox (1957). Satterthwaite's degrees of freedom give narrower intervals, but with five seeds they
    fail far out in the tails, where Holm's correction reads them: among 20 claims with nothing in
    them one was "reproduced" in 7% of simulations instead of 2.5%; here it is never more.
    """
    share = np.asarray(seed_share, dtype=np.float64)
    return -(
        share * stdtrit(degrees_of_freedom, upper) + (1 - share) * stdtrit(item_degrees, upper)
    )


def _tail(
    distance: float, seed_share: float, degrees_of_freedom: float, item_degrees: float
) -> float:
    """Probability of exceeding ``distance`` standard errors: the inverse of the critical value."""
    if distance < 0:
        return 1 - _tail(-distance, seed_share, degrees_of_freedom, item_degrees)
    # The average of two quantiles lies between them, hence so does the probability.
    bounds = [float(stdtr(degrees, -distance)) for degrees in (degrees_of_freedom, item_degrees)]
    if seed_share in (0, 1):
        return bounds[0] if seed_share else bounds[1]
    low, high = max(min(bounds), 1e-300), max(*bounds, 1e-300)
    while high > low * (1 + 1e-10):
        middle = float(np.sqrt(low * high))
        if _critical_value(middle, seed_share, degrees_of_freedom, item_degrees) > distance:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of the values of n seeds with its t-interval.

    ``values`` has shape (n,). With one value the bounds are NaN. Raises ValueError for an empty
    or non-finite input. Source: Student (1908).
    """
    return paired_difference(values, 0.0, level=level)


def paired_difference(
    student_by_seed: ArrayLike,
    reference_by_seed: ArrayLike,
    item_standard_error: float = 0.0,
    item_degrees_of_freedom: float = float("inf"),
    level: float = 0.95,
) -> Interval:
    """Mean difference of students and references paired by seed, with its t-interval.

    Both inputs have shape (n,), in the order of the seeds; a reference of one value is compared
    with every student. The variance is that between seeds divided by n plus
    ``item_standard_error`` squared. The noise of single images in single networks is in both
    parts, so the interval is rather too wide than too narrow. With one seed the interval
    is conditional on these very networks, and NaN without an item standard error. Critical value:
    Cochran and Cox (1957). Raises ValueError for an empty or non-finite input.
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
    seed_sd = float(difference.std(ddof=1)) if n > 1 else float("nan")
    # Rounding leaves a sd of 1e-17 where all differences are the same number.
    if n > 1 and np.ptp(difference) <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        seed_sd = 0.0
    estimate = float(difference.mean())
    seed_variance = seed_sd**2 / n if n > 1 else 0.0
    item_variance = item_standard_error**2
    variance = seed_variance + item_variance
    standard_error = float(np.sqrt(variance))
    if variance == 0 and n > 1:
        half = 0.0
    elif variance > 0:
        half = standard_error * float(
            _critical_value(
                (1 - level) / 2, seed_variance / variance, max(n - 1, 1), item_degrees_of_freedom
            )
        )
    else:
        half = standard_error = float("nan")
    return Interval(
        estimate,
        estimate - half,
        estimate + half,
        n,
        n - 1.0,
        standard_error,
        seed_sd,
        item_standard_error,
        item_degrees_of_freedom,
    )


def _bootstrap_covariance(
    arms: Sequence[_SourceTotals], rng: np.random.Generator, repetitions: int
) -> NDArray[np.float64]:
    """Covariance of the arms' means over seeds when sources are drawn with replacement."""
    measured = np.any([totals.counts.any(axis=1) for totals in arms], axis=0)
    arms = [_SourceTotals(each.sums[measured], each.counts[measured]) for each in arms]
    number = int(measured.sum())
    if number < 2:
        return np.full((len(arms), len(arms)), np.nan)
    chunk = max(1, min(repetitions, _ENTRIES_PER_CHUNK // number))
    means = []
    for start in range(0, repetitions, chunk):
        rows = min(chunk, repetitions - start)
        drawn = rng.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        weights = weights.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = [(weights @ each.sums) / (weights @ each.counts) for each in arms]
        means.append(np.stack([column.mean(axis=1) for column in columns], axis=1))
    replicates = np.concatenate(means)
    # A rare measure (the teacher's few errors) may be absent from a whole resample.
    replicates = replicates[np.isfinite(replicates).all(axis=1)]
    if len(replicates) < 2:
        return np.full((len(arms), len(arms)), np.nan)
    covariance = np.atleast_2d(np.cov(replicates, rowvar=False))
    return covariance * number / (number - 1)


def cluster_bootstrap_standard_error(
    values: ArrayLike,
    sources: ArrayLike,
    rng: np.random.Generator,
    reference: ArrayLike | None = None,
    repetitions: int = 1000,
) -> float:
    """Standard error of a mean (difference) over seeds when test images are resampled by source.

    ``values`` has shape (items, seeds), ``sources`` (items,); ``reference`` has as many rows as
    ``values`` and is subtracted. NaN marks an item that does not count (each mean is over its own
    items). All renderings of one glyph or photo are drawn together, since they are not independent;
    the factor G/(G-1) for G sources is that of Cameron and Miller (2015). NaN with fewer than two
    sources. Raises ValueError where the numbers of rows differ.
    """
    names, codes = np.unique(np.asarray(sources), return_inverse=True)
    arms = []
    for given in (values, reference):
        if given is None:
            continue
        matrix = np.asarray(given, dtype=np.float64)
        matrix = matrix[:, None] if matrix.ndim == 1 else matrix
        if len(matrix) != len(codes):
            raise ValueError(f"{len(matrix)} rows of values for {len(codes)} sources")
        present = np.isfinite(matrix)
        sums = np.zeros((len(names), matrix.shape[1]))
        counts = np.zeros_like(sums)
        np.add.at(sums, codes, np.where(present, matrix, 0.0))
        np.add.at(counts, codes, present)
        arms.append(_SourceTotals(sums, counts))
    signs = np.array([1.0, -1.0][: len(arms)])
    return _root(signs @ _bootstrap_covariance(arms, rng, repetitions) @ signs)


def _select(frame: pd.DataFrame, measure: str, condition: str) -> pd.DataFrame:
    return frame[(frame["measure"] == measure) & (frame["condition"] == condition)]


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


def _pair(values: Mapping[str, pd.Series]) -> list[int]:
    """Seeds that all arms share; an arm of one fixed network is compared with every seed."""
    fixed = {arm for arm in values if arm in SINGLE_NETWORK_ARMS and len(values[arm]) == 1}
    by_seed = [set(series.index) for arm, series in values.items() if arm not in fixed]
    if not by_seed:
        return list(next(iter(values.values())).index)
    return sorted(set.intersection(*by_seed))


def _at_seeds(values: pd.Series, arm: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    if arm in SINGLE_NETWORK_ARMS and len(values) == 1:
        return np.repeat(values.to_numpy(), len(seeds))
    return values.loc[list(seeds)].to_numpy()


def _item_covariance(
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    rng: np.random.Generator,
    repetitions: int,
) -> tuple[NDArray[np.float64], float]:
    """Item covariance of the arms' means, and its degrees of freedom; zeros without items.

    An arm without items of its own (the teacher, fooled by all of its images by construction)
    counts as a constant.
    """
    nothing = np.zeros((len(arms), len(arms))), float("inf")
    if items is None or items.empty:
        return nothing
    selected = _select(items, measure, condition)
    selected = selected[selected["arm"].isin(list(arms)) & np.isfinite(selected["value"])]
    if selected.empty:
        return nothing
    names, sources = np.unique(selected["source"].to_numpy(), return_inverse=True)
    seed_of_row = selected["seed"].to_numpy()
    value_of_row = selected["value"].to_numpy(dtype=np.float64)
    totals, measured = [], []
    for index, arm in enumerate(arms):
        mine = (selected["arm"] == arm).to_numpy()
        fixed = arm in SINGLE_NETWORK_ARMS and len(np.unique(seed_of_row[mine])) == 1
        known = np.unique(seed_of_row[mine]) if fixed else np.asarray(seeds)
        mine = mine & np.isin(seed_of_row, known)
        if not mine.any():
            continue
        cell = sources[mine] * len(known) + np.searchsorted(known, seed_of_row[mine])
        shape, length = (len(names), len(known)), len(names) * len(known)
        sums = np.bincount(cell, weights=value_of_row[mine], minlength=length)
        counts = np.bincount(cell, minlength=length)
        totals.append(
            _SourceTotals(
                sums.reshape(shape).astype(np.float64), counts.reshape(shape).astype(np.float64)
            )
        )
        measured.append(index)
    if not measured:
        return nothing
    covariance = np.zeros((len(arms), len(arms)))
    covariance[np.ix_(measured, measured)] = _bootstrap_covariance(totals, rng, repetitions)
    return covariance, max(len(names) - 1.0, 1.0)


def _describe(measure: str, condition: str) -> str:
    return f"'{measure}' under '{condition}'" if condition else f"'{measure}'"


def contrast(
    table: pd.DataFrame,
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str | float,
    rng: np.random.Generator | None = None,
    repetitions: int = 1000,
) -> Interval:
    """An arm minus a reference, from the tidy tables of a probe, with its interval over seeds.

    ``reference`` is another arm (paired by seed number; arms of one fixed network such as the
    teacher are compared with every seed) or a constant (a win rate against .5). Where ``items``
    has rows of the measure, test images are resampled by source (see ``paired_difference`` and
    ``cluster_bootstrap_standard_error``), by default with the same draws in every call. Seeds
    without a finite value in both arms are left out; with none left all numbers are NaN. Raises
    NotMeasuredError where the table has no row, ValueError where a seed has several.
    """
    what = _describe(measure, condition)
    selected = _select(table, measure, condition)
    arms = [arm, reference] if isinstance(reference, str) else [arm]
    values = {name: _values_by_seed(selected, name, what) for name in arms}
    seeds = _pair(values)
    if not seeds:
        nan = float("nan")
        return Interval(nan, nan, nan, 0, nan, nan)
    covariance, item_degrees = _item_covariance(
        items, measure, condition, arms, seeds, rng or np.random.default_rng(0), repetitions
    )
    signs = np.array([1.0, -1.0][: len(arms)])
    student = _at_seeds(values[arm], arm, seeds)
    other: ArrayLike = (
        _at_seeds(values[reference], reference, seeds) if isinstance(reference, str) else reference
    )
    return paired_difference(student, other, _root(signs @ covariance @ signs), item_degrees)


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
    root = float(np.sqrt(max(linear**2 - square * constant, 0.0)))
    return (linear - root) / square, (linear + root) / square


def gap_closed(
    table: pd.DataFrame,
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str = "independent",
    ceiling: str = "teacher",
    rng: np.random.Generator | None = None,
    repetitions: int = 1000,
) -> GapClosed:
    """(arm - reference) / (ceiling - reference), for measures of one network.

    Both differences are paired by seed; the interval is Fieller's (1954), with the covariance of
    the two means over seeds plus that over resampled sources, and with n - 1 degrees of freedom
    throughout. No ratio is given unless the lower bound of the gap's size exceeds both .05 and
    three times the standard deviation of the gap between seeds. The ratio's ``standard_error`` is
    that of the delta method. Raises as ``contrast`` does.
    """
    what = _describe(measure, condition)
    selected = _select(table, measure, condition)
    arms = [arm, reference, ceiling]
    values = {name: _values_by_seed(selected, name, what) for name in arms}
    seeds = _pair(values)
    nan = float("nan")
    n = len(seeds)
    generator = rng or np.random.default_rng(0)
    if n < 2:
        tables = (table, items, measure, condition)
        difference = contrast(*tables, arm, reference, generator, repetitions)
        gap = contrast(*tables, ceiling, reference, generator, repetitions)
        return GapClosed(None, difference, gap, "needs two seeds", nan, nan, nan)
    student, below, above = (_at_seeds(values[name], name, seeds) for name in arms)
    item_covariance, item_degrees = _item_covariance(
        items, measure, condition, arms, seeds, generator, repetitions
    )
    # Rows: student minus reference, ceiling minus reference.
    to_differences = np.array([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]])
    item_part = to_differences @ item_covariance @ to_differences.T
    seed_part = np.cov(student - below, above - below) / n
    total = seed_part + item_part
    variance, covariance, gap_variance = total[0, 0], total[0, 1], total[1, 1]
    difference = paired_difference(student, below, _root(item_part[0, 0]), item_degrees)
    gap = paired_difference(above, below, _root(item_part[1, 1]), item_degrees)

    def without_ratio(reason: str) -> GapClosed:
        return GapClosed(None, difference, gap, reason, variance, covariance, gap_variance)

    if not np.isfinite(gap.low):
        return without_ratio("no interval for the gap")
    # The same n - 1 degrees of freedom as for the ratio, whose interval is then always bounded.
    # A share is one whichever way the teacher lies: a fairer one has a smaller deficit.
    lowest = abs(gap.estimate) - float(stdtrit(n - 1.0, 0.975)) * _root(gap_variance)
    if not lowest > max(SMALLEST_GAP, GAP_IN_SPREADS * gap.seed_sd):
        return without_ratio(NO_GAP)
    low, high = fieller(
        difference.estimate, gap.estimate, variance, covariance, gap_variance, n - 1.0
    )
    estimate = difference.estimate / gap.estimate
    along = np.array([1.0, -estimate]) / gap.estimate
    ratio = Interval(
        estimate,
        low,
        high,
        n,
        n - 1.0,
        _root(along @ total @ along),
        _root(n * along @ seed_part @ along),
        _root(along @ item_part @ along),
    )
    return GapClosed(ratio, difference, gap, "", variance, covariance, gap_variance)


def headroom_closed(
    table: pd.DataFrame,
    items: pd.DataFrame | None,
    measure: str,
    condition: str,
    arm: str,
    reference: str = "independent",
    rng: np.random.Generator | None = None,
    repetitions: int = 1000,
) -> GapClosed:
    """``gap_closed`` for measures of a pair with the teacher, such as agreement.

    The teacher agrees with itself by construction, so a second teacher of the same recipe and
    another seed takes its place: the headroom is what training anew would give.
    """
    return gap_closed(
        table, items, measure, condition, arm, reference, "second-teacher", rng, repetitions
    )


def cohen_kappa(predictions_a: ArrayLike, predictions_b: ArrayLike) -> float:
    """Agreement of two raters beyond chance: 1 is always, 0 as often as by chance.

    Both inputs have shape (items,). NaN where chance agreement is complete (both always give the
    same single answer). Raises ValueError for empty or unequal inputs. Source: Cohen (1960).
    """
    a, b = np.asarray(predictions_a), np.asarray(predictions_b)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"need two equally long lists of answers, not {a.shape} and {b.shape}")
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    share_a = np.bincount(codes[: a.size], minlength=len(names)) / a.size
    share_b = np.bincount(codes[a.size :], minlength=len(names)) / a.size
    by_chance = float(share_a @ share_b)
    if by_chance >= 1:
        return float("nan")
    return (float((a == b).mean()) - by_chance) / (1 - by_chance)


def error_consistency(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Kappa of being right or wrong on the same items, whatever the answers.

    Both inputs are boolean of shape (items,). NaN where both are right (or wrong) on every item.
    Source: Geirhos, Meding and Wichmann (2020).
    """
    return cohen_kappa(np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool))


def agreement_on_wrong_items(
    student_predictions: ArrayLike, teacher_predictions: ArrayLike, labels: ArrayLike
) -> float:
    """Share of the teacher's wrong answers that the student gives as well.

    All inputs have shape (items,). NaN where the teacher makes no mistake.
    """
    student, teacher = np.asarray(student_predictions), np.asarray(teacher_predictions)
    wrong = teacher != np.asarray(labels)
    return float((student[wrong] == teacher[wrong]).mean()) if wrong.any() else float("nan")


def null_spread(values_of_pairs_of_independents: ArrayLike) -> Spread:
    """What a pairwise measure looks like when nothing was transferred.

    Mean and 2.5 to 97.5% range over pairs of independent students, shape (pairs,). Raises
    ValueError without a finite value.
    """
    values = np.asarray(values_of_pairs_of_independents, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError("no pair of independent students was measured")
    low, high = np.percentile(values, [2.5, 97.5])
    return Spread(float(values.mean()), float(low), float(high), int(values.size))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values that control the chance of any false positive among m tests.

    Input and output have shape (m,), in the same order. Raises ValueError for a p-value outside
    [0, 1]. Source: Holm (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    steps = p[order] * (p.size - np.arange(p.size))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def p_value(result: Interval | GapClosed, margin: float, side: Side) -> float:
    """One-sided p-value against a margin: small where the effect lies on ``side`` of it.

    For a gap closed the test is of ``difference - margin * gap``, so that it agrees with Fieller's
    interval. NaN where no interval can be given. With no variance at all it is 0 or 1.
    """
    if isinstance(result, GapClosed):
        if result.ratio is None:
            return float("nan")
        distance = result.difference.estimate - margin * result.gap.estimate
        distance = math.copysign(1.0, result.gap.estimate) * distance
        variance = (
            result.variance - 2 * margin * result.covariance + margin**2 * result.gap_variance
        )
        # All of it counts as variance between seeds, as in Fieller's interval.
        standard_error, seed_share = _root(variance), 1.0
        degrees_of_freedom, item_degrees = result.ratio.degrees_of_freedom, float("inf")
    else:
        distance = result.estimate - margin
        standard_error = result.standard_error
        degrees_of_freedom = max(result.degrees_of_freedom, 1.0)
        item_degrees = result.item_degrees_of_freedom
        seed_share = 1.0
        if standard_error > 0:
            seed_share = max(0.0, 1 - (result.item_standard_error / standard_error) ** 2)
    if not np.isfinite(standard_error):
        return float("nan")
    if side == "less":
        distance = -distance
    if standard_error == 0:
        return 0.0 if distance > 0 else 1.0
    return _tail(distance / standard_error, seed_share, degrees_of_freedom, item_degrees)


def claim_p_values(
    result: Interval | GapClosed,
    direction: Direction,
    margin: float,
    equivalence_margin: float | None = None,
) -> tuple[float, float]:
    """One-sided p-values for "reproduced" and for "not reproduced".

    Each is below .025 exactly where ``verdict`` says so from a 95% interval. Equivalence is
    two one-sided tests (Schuirmann 1987).
    """
    if direction == "equivalent":
        bound = _bound(equivalence_margin)
        inside = (p_value(result, -bound, "greater"), p_value(result, bound, "less"))
        outside = (p_value(result, bound, "greater"), p_value(result, -bound, "less"))
        return max(inside), min(outside)
    greater, less = p_value(result, margin, "greater"), p_value(result, margin, "less")
    return (greater, less) if direction == "greater" else (less, greater)


def _bound(equivalence_margin: float | None) -> float:
    if equivalence_margin is None or not equivalence_margin > 0:
        raise ValueError("a claim of equivalence needs a positive equivalence margin")
    return equivalence_margin


def verdict(
    interval: Interval,
    direction: Direction,
    margin: float,
    equivalence_margin: float | None = None,
    seeds: int | None = None,
) -> Verdict:
    """What a 95% interval says about a claim.

    "reproduced" where the interval lies wholly on the claimed side of ``margin`` (for
    ``equivalent``: inside plus or minus ``equivalence_margin``), "not reproduced" where it lies
    wholly on the other side, else "inconclusive", as with fewer than five seeds (``seeds``, by
    default the interval's n). Raises ValueError for equivalence without a margin.
    """
    number = interval.n if seeds is None else seeds
    if number < SEEDS_FOR_A_VERDICT:
        return Verdict("inconclusive", f"fewer than {SEEDS_FOR_A_VERDICT} seeds")
    low, high = interval.low, interval.high
    if not (np.isfinite(low) and np.isfinite(high)):
        return Verdict("inconclusive", "no interval")
    if direction == "equivalent":
        bound = _bound(equivalence_margin)
        span = f"±{format_number(bound)}"
        if -bound < low and high < bound:
            return Verdict("reproduced", f"the interval lies inside {span}")
        if low > bound or high < -bound:
            return Verdict("not reproduced", f"the interval lies outside {span}")
        return Verdict("inconclusive", f"the interval reaches across an end of {span}")
    where = format_number(margin)
    if low > margin:
        label: VerdictLabel = "reproduced" if direction == "greater" else "not reproduced"
        return Verdict(label, f"the interval lies above {where}")
    if high < margin:
        label = "reproduced" if direction == "less" else "not reproduced"
        return Verdict(label, f"the interval lies below {where}")
    return Verdict("inconclusive", f"the interval contains {where}")


def scorecard_verdicts(results: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Verdicts on all claims together, with Holm's correction over the primary contrasts.

    ``results`` are the entries of ``claims.evaluate``, or the same read back from JSON, as
    a list or a table. The family is every claim with a p-value and enough seeds (decided before
    any data); its two-sided level is .05, shared by "reproduced" and "not reproduced". Returns one
    row per claim in the given order, with all given columns, ``verdict`` and ``reason`` after the
    correction (which only ever weakens a verdict), and the new columns verdict_alone, p_two_sided
    and p_holm.
    """
    if isinstance(results, pd.DataFrame):
        results = results.to_dict("records")
    rows = [dict(result) for result in results]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    for column in ("estimate", "low", "high"):
        frame[column] = frame[column].astype(float)
    frame["verdict_alone"] = frame["verdict"]
    one_sided = np.array(
        [[row["p_reproduced"], row["p_not_reproduced"]] for row in rows], dtype=np.float64
    )
    tested = np.isfinite(one_sided).all(axis=1)
    tested &= (frame["seeds"] >= SEEDS_FOR_A_VERDICT).to_numpy(dtype=bool)
    tested &= (frame["verdict_alone"] != "not applicable").to_numpy(dtype=bool)
    two_sided = np.where(tested, np.minimum(2 * one_sided.min(axis=1), 1.0), np.nan)
    adjusted = np.full(len(rows), np.nan)
    adjusted[tested] = holm(two_sided[tested])
    frame["p_two_sided"], frame["p_holm"] = two_sided, adjusted
    verdicts, reasons = [], []
    for row, is_tested, p_adjusted in zip(rows, tested, adjusted, strict=True):
        label, reason = row["verdict"], row["reason"]
        firm = label in ("reproduced", "not reproduced")
        if is_tested and firm and p_adjusted >= FAMILY_LEVEL:
            label = "inconclusive"
            reason = f"{reason}, but not after Holm's correction over {int(tested.sum())} claims"
        verdicts.append(label)
        reasons.append(reason)
    frame["verdict"], frame["reason"] = verdicts, reasons
    return frame


def simulate_error_rate(
    seed_sd: ArrayLike,
    item_standard_error: ArrayLike,
    n_seeds: int,
    n_claims: int,
    rng: np.random.Generator,
    margin: float = 0.0,
    repetitions: int = 10_000,
) -> ErrorRates:
    """How often this procedure would give a verdict where the truth sits on the margin.

    ``seed_sd`` (standard deviation of paired differences) and ``item_standard_error`` are one
    number or one per claim, as measured. Each repetition draws ``n_claims`` sets of ``n_seeds``
    normal differences around ``margin`` plus an error of the test images that all seeds share,
    then applies the interval of ``paired_difference`` and Holm's correction. Claims are drawn
    independently; Holm's guarantee does not need that.
    """
    sd = np.broadcast_to(np.asarray(seed_sd, dtype=np.float64), (n_claims,))
    item = np.broadcast_to(np.asarray(item_standard_error, dtype=np.float64), (n_claims,))
    values = rng.normal(size=(repetitions, n_claims, n_seeds)) * sd[:, None] + margin
    estimate = values.mean(axis=2) + rng.normal(size=(repetitions, n_claims)) * item
    seed_variance = values.var(axis=2, ddof=1) / n_seeds
    variance = seed_variance + item**2
    distance = estimate - margin
    share = np.divide(seed_variance, variance, out=np.ones_like(variance), where=variance > 0)
    # Critical values of Holm's steps: a table for 0, 1, ... claims rejected before.
    upper = FAMILY_LEVEL / 2 / (n_claims - np.arange(n_claims))
    of_seeds, of_items = -stdtrit(n_seeds - 1.0, upper), -stdtrit(float("inf"), upper)
    standard_error = np.sqrt(variance)

    def beyond(step: NDArray[np.int64]) -> NDArray[np.bool_]:
        critical = share * of_seeds[step][:, None] + (1 - share) * of_items[step][:, None]
        return np.abs(distance) > critical * standard_error

    alone = beyond(np.full(repetitions, n_claims - 1))
    # Holm goes on as long as the next step rejects more than the last one.
    rejected = beyond(np.zeros(repetitions, dtype=np.int64))
    before = np.zeros(repetitions, dtype=np.int64)
    while (rejected.sum(axis=1) > before).any():
        before = rejected.sum(axis=1)
        rejected = beyond(np.minimum(before, n_claims - 1))
    above = distance > 0
    return ErrorRates(
        reproduced=float((alone & above).mean()),
        not_reproduced=float((alone & ~above).mean()),
        any_reproduced=float((rejected & above).any(axis=1).mean()),
        any_not_reproduced=float((rejected & ~above).any(axis=1).mean()),
    )


def summary(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean over seeds per arm, condition and measure, for plots and printed tables.

    Returns columns arm, condition, measure, mean, low, high, n, sd in the order of first
    appearance; non-finite values are left out, and bounds are NaN for a single network.
    """
    rows = []
    keys = ["arm", "condition", "measure"]
    finite = table[np.isfinite(table["value"].to_numpy(dtype=np.float64))]
    for (arm, condition, measure), group in finite.groupby(keys, sort=False, observed=True):
        interval = t_interval(group["value"].to_numpy(), level)
        bounds = (interval.estimate, interval.low, interval.high)
        rows.append((arm, condition, measure, *bounds, interval.n, interval.seed_sd))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "n", "sd"])
