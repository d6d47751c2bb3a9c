"""Verdicts: on one claim, on a family of claims together, and how often they would be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from kdnotes.stats.intervals import Interval, critical_value
from kdnotes.stats.shares import GapClosed
from kdnotes.stats.words import Direction, VerdictLabel, format_number

SEEDS_FOR_A_VERDICT = 5
FAMILY_LEVEL = 0.05


class Verdict(NamedTuple):
    """What is said about a claim, and why."""

    label: VerdictLabel
    reason: str


class ErrorRates(NamedTuple):
    """Simulated shares of repetitions in which the procedure is wrong although nothing is there.

    ``reproduced`` and ``not_reproduced`` are per claim, before Holm; ``any_reproduced`` and
    ``any_not_reproduced`` count repetitions with at least one such verdict after Holm.
    """

    reproduced: float
    not_reproduced: float
    any_reproduced: float
    any_not_reproduced: float


def verdict(interval: Interval, direction: Direction, margin: float) -> Verdict:
    """What a 95% interval says about a claim.

    "reproduced" where the interval lies wholly on the claimed side of ``margin`` (for
    ``equivalent``: inside plus or minus ``margin``), "not reproduced" where it lies wholly on the
    other side, else "inconclusive", as with fewer than five seeds.
    """
    if interval.n < SEEDS_FOR_A_VERDICT:
        return Verdict("inconclusive", f"fewer than {SEEDS_FOR_A_VERDICT} seeds")
    low, high, where = interval.low, interval.high, format_number(margin)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Verdict("inconclusive", "no interval")
    if direction == "equivalent":
        if -margin < low and high < margin:
            return Verdict("reproduced", f"the interval lies inside ±{where}")
        if low > margin or high < -margin:
            return Verdict("not reproduced", f"the interval lies outside ±{where}")
        return Verdict("inconclusive", f"the interval reaches across an end of ±{where}")
    if low <= margin <= high:
        return Verdict("inconclusive", f"the interval contains {where}")
    side, name = ("greater", "above") if low > margin else ("less", "below")
    label: VerdictLabel = "reproduced" if side == direction else "not reproduced"
    return Verdict(label, f"the interval lies {name} {where}")


def claim_p_values(
    result: Interval | GapClosed, direction: Direction, margin: float
) -> tuple[float, float]:
    """One-sided p-values for "reproduced" and for "not reproduced".

    Each is below .025 exactly where ``verdict`` says so from a 95% interval. Equivalence is
    two one-sided tests (Schuirmann 1987).
    """
    greater, less = p_value(result, margin, "greater"), p_value(result, margin, "less")
    if direction == "equivalent":
        above, below = p_value(result, -margin, "greater"), p_value(result, -margin, "less")
        return max(above, less), min(greater, below)
    return (greater, less) if direction == "greater" else (less, greater)


def p_value(result: Interval | GapClosed, margin: float, side: Literal["greater", "less"]) -> float:
    """One-sided p-value against a margin: small where the effect lies on ``side`` of it.

    For a gap closed the test is of ``difference - margin * gap``, so that it agrees with Fieller's
    interval. NaN where no interval can be given. With no variance at all it is 0 or 1.
    """
    if isinstance(result, GapClosed):
        result, margin = result.beyond(margin), 0.0
    standard_error = result.standard_error
    if not math.isfinite(standard_error):
        return math.nan
    distance = result.estimate - margin
    if side == "less":
        distance = -distance
    if standard_error == 0:
        return 0.0 if distance > 0 else 1.0
    seed_share = max(0.0, 1 - (result.item_standard_error / standard_error) ** 2)
    degrees = max(result.degrees_of_freedom, 1.0), result.item_degrees_of_freedom
    return _tail(distance / standard_error, seed_share, *degrees)


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
        if critical_value(middle, seed_share, degrees_of_freedom, item_degrees) > distance:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


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


def scorecard_verdicts(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Verdicts on all claims together, with Holm's correction over the primary contrasts.

    ``results`` are the entries of ``claims.evaluate``, or the same read back from JSON. The family
    is every claim with a p-value and enough seeds (decided before any data); its two-sided level is
    .05, shared by "reproduced" and "not reproduced". Returns one row per claim in the given order,
    with all given columns, ``verdict`` and ``reason`` after the correction (which only ever weakens
    a verdict), and the new columns verdict_alone, p_two_sided and p_holm.
    """
    frame = pd.DataFrame(list(results))
    if frame.empty:
        return frame
    numbers = ["estimate", "low", "high"]
    frame[numbers] = frame[numbers].astype(float)
    one_sided = frame[["p_reproduced", "p_not_reproduced"]].astype(float)
    tested = one_sided.notna().all(axis=1) & (frame["seeds"] >= SEEDS_FOR_A_VERDICT)
    tested &= frame["verdict"] != "not applicable"
    frame["verdict_alone"] = frame["verdict"]
    frame["p_two_sided"] = (2 * one_sided.min(axis=1)).clip(upper=1).where(tested)
    frame["p_holm"] = np.nan
    frame.loc[tested, "p_holm"] = holm(frame.loc[tested, "p_two_sided"])
    firm = frame["verdict"].isin(["reproduced", "not reproduced"])
    weakened = tested & firm & (frame["p_holm"] >= FAMILY_LEVEL)
    frame.loc[weakened, "verdict"] = "inconclusive"
    frame.loc[weakened, "reason"] += (
        f", but not after Holm's correction over {int(tested.sum())} claims"
    )
    return frame


def simulate_error_rate(
    seed_sd: ArrayLike,
    item_standard_error: ArrayLike,
    n_seeds: ArrayLike,
    n_claims: int,
    rng: np.random.Generator,
    repetitions: int = 10_000,
) -> ErrorRates:
    """How often this procedure would give a verdict where the truth sits on the margin.

    ``seed_sd`` (standard deviation of paired differences), ``item_standard_error`` and ``n_seeds``
    are one number or one per claim, as measured. Each repetition draws ``n_claims`` sets of normal
    differences around the margin plus an error of the test images that all seeds share, then
    applies the interval of ``paired_difference`` and Holm's correction. Claims are drawn
    independently; Holm's guarantee does not need that.
    """
    sd = np.broadcast_to(np.asarray(seed_sd, dtype=np.float64), (n_claims,))
    item = np.broadcast_to(np.asarray(item_standard_error, dtype=np.float64), (n_claims,))
    n = np.broadcast_to(np.asarray(n_seeds), (n_claims,))
    values = rng.normal(size=(repetitions, n_claims, int(n.max()))) * sd[:, None]
    there = np.arange(n.max()) < n[:, None]
    distance = values.mean(axis=2, where=there) + rng.normal(size=(repetitions, n_claims)) * item
    seed_variance = values.var(axis=2, ddof=1, where=there) / n
    variance = seed_variance + item**2
    share = np.divide(seed_variance, variance, out=np.ones_like(variance), where=variance > 0)
    # Critical values of Holm's steps, (steps, claims): for 0, 1, ... claims rejected before.
    upper = FAMILY_LEVEL / 2 / (n_claims - np.arange(n_claims))[:, None]
    of_seeds, of_items = -stdtrit(n - 1.0, upper), -stdtrit(math.inf, upper)
    standard_error = np.sqrt(variance)

    def beyond(step: NDArray[np.int64]) -> NDArray[np.bool_]:
        critical = share * of_seeds[step] + (1 - share) * of_items[step]
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
