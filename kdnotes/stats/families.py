"""Verdicts: on one claim, on a family of claims together, and how often they would be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from kdnotes.stats.intervals import GapClosed, Interval, critical_value
from kdnotes.stats.words import Direction, VerdictLabel, format_number

SEEDS_FOR_A_VERDICT = 5
FAMILY_LEVEL = 0.05
PRIMARIES = tuple(f"C{number}" for number in range(1, 13))


class Verdict(NamedTuple):
    """What is said about a claim, and why."""

    label: VerdictLabel
    reason: str


class ErrorRates(NamedTuple):
    """Shares of repetitions with a wrong verdict: on one claim alone, on any after Holm."""

    agrees: float
    disagrees: float
    any_agrees: float
    any_disagrees: float


def verdict(interval: Interval, direction: Direction, margin: float) -> Verdict:
    """What a 95% interval says of a claim: open if it holds the margin, or of few seeds."""
    if interval.n < SEEDS_FOR_A_VERDICT:
        return Verdict("open", f"fewer than {SEEDS_FOR_A_VERDICT} seeds")
    low, high, where = interval.low, interval.high, format_number(margin)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Verdict("open", "no interval")
    if direction == "equivalent":
        if -margin < low and high < margin:
            return Verdict("agrees", f"the interval lies inside ±{where}")
        if low > margin or high < -margin:
            return Verdict("disagrees", f"the interval lies outside ±{where}")
        return Verdict("open", f"the interval reaches across an end of ±{where}")
    if low <= margin <= high:
        return Verdict("open", f"the interval contains {where}")
    side, name = ("greater", "above") if low > margin else ("less", "below")
    label: VerdictLabel = "agrees" if side == direction else "disagrees"
    return Verdict(label, f"the interval lies {name} {where}")


def claim_p_values(
    result: Interval | GapClosed, direction: Direction, margin: float
) -> tuple[float, float]:
    """One-sided p-values for "agrees" and "disagrees", below .025 exactly where `verdict` says so.

    Equivalence is two one-sided tests (Schuirmann 1987).
    """
    greater, less = p_value(result, margin, "greater"), p_value(result, margin, "less")
    if direction == "equivalent":
        above, below = p_value(result, -margin, "greater"), p_value(result, -margin, "less")
        return max(above, less), min(greater, below)
    return (greater, less) if direction == "greater" else (less, greater)


def p_value(result: Interval | GapClosed, margin: float, side: Literal["greater", "less"]) -> float:
    """One-sided p-value against a margin: small where the effect lies on ``side`` of it.

    Of a gap closed ``difference - margin * gap`` is tested, as Fieller's interval does. NaN where
    there is no interval. With no variance at all it is 0 or 1.
    """
    if isinstance(result, GapClosed):
        result, margin = result.beyond(margin), 0.0
    standard_error = result.standard_error
    if not math.isfinite(standard_error):
        return math.nan
    distance = (result.estimate - margin) * (1 if side == "greater" else -1)
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
    """Adjusted p-values, (m,): Holm (1979). Raises ValueError for one outside [0, 1]."""
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    steps = p[order] * (p.size - np.arange(p.size))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def scorecard_verdicts(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Verdicts on all claims together: primaries under Holm, a chapter's others under BH.

    ``results``: the entries of ``claims.evaluate``. The twelve primaries are one family of
    two-sided level .05 (see `primaries`): a part of one that stays open is open. Every other claim
    is held against the false discovery rate of .05 among those of its chapter that can be tested:
    Benjamini and Hochberg (1995); checks of mathematics against nothing. Returns a row per claim in
    the given order and columns, ``verdict`` and ``reason`` after the correction, which only ever
    weakens, with is_primary, verdict_alone, p_two_sided and p_adjusted.
    """
    from scipy.stats import false_discovery_control

    frame = pd.DataFrame(list(results))
    if frame.empty:
        return frame
    frame = frame.astype(dict.fromkeys(("estimate", "low", "high"), float))
    frame["verdict_alone"], frame["is_primary"] = frame["verdict"], _decides(frame)
    tested, one_sided = _tested(frame)
    frame["p_two_sided"] = (2 * one_sided.min(axis=1)).clip(upper=1).where(tested)
    frame["p_adjusted"] = np.nan
    for row in primaries(frame).itertuples():
        parts = frame["is_primary"] & (frame["family"] == row.primary)
        frame.loc[parts & tested, "p_adjusted"] = row.p_holm
        if row.verdict == "open":
            _weaken(frame, parts, "among the twelve primary claims (Holm)")
    others = ~frame["is_primary"] & tested & (frame["family"] != "check")
    for _, part in frame[others].groupby("chapter", sort=False):
        frame.loc[part.index, "p_adjusted"] = false_discovery_control(part["p_two_sided"])
        unsure = frame.index.isin(part.index) & (frame["p_adjusted"] >= FAMILY_LEVEL)
        where = f"among the {len(part)} exploratory claims of its chapter (Benjamini-Hochberg)"
        _weaken(frame, unsure, where)
    return frame


def primaries(claims: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on the twelve primary claims, C1 to C12, under Holm: one row for each.

    ``claims``: rows as in `scorecard_verdicts`. One with several parts agrees where all of them do
    (with their largest p: the intersection-union test, Berger 1982), and disagrees where any of
    them does (with the smallest, times their number). One not run on the images that decide it, or
    with a part that cannot be tested, has p = 1. Columns: primary, claims (ids), p_two_sided,
    p_holm, verdict, reason.
    """
    deciding, (tested, one_sided) = claims[_decides(claims)], _tested(claims)
    rows = []
    for name in PRIMARIES:
        parts = deciding[deciding["family"] == name]
        agree = against = 1.0
        if len(parts) and tested[parts.index].all():
            p_values = one_sided.loc[parts.index]
            agree = p_values["p_agrees"].max()
            against = p_values["p_disagrees"].min() * len(parts)
        p = min(2 * min(agree, against), 1.0)
        rows.append((name, list(parts["id"]), p, "agrees" if agree < against else "disagrees"))
    frame = pd.DataFrame(rows, columns=["primary", "claims", "p_two_sided", "verdict"])
    frame["p_holm"], frame["reason"] = holm(frame["p_two_sided"]), ""
    for place, row in frame.iterrows():
        label, reason = _of_parts(deciding[deciding["id"].isin(row["claims"])], row)
        frame.loc[place, ["verdict", "reason"]] = label, reason
    return frame


def _of_parts(parts: pd.DataFrame, row: pd.Series) -> tuple[VerdictLabel, str]:
    if parts.empty:
        return "open", "not run on the images that decide it"
    first = parts.drop_duplicates("verdict").set_index("verdict")["reason"]
    if "not applicable" in first:
        return "not applicable", first["not applicable"]
    if row["p_holm"] < FAMILY_LEVEL:
        return row["verdict"], "; ".join(parts["reason"])
    if row["p_two_sided"] == 1 and "open" in first:  # by itself, before any correction
        return "open", first["open"]
    return "open", f"p = {format_number(row['p_holm'], 3)} among the twelve (Holm)"


def _decides(claims: pd.DataFrame) -> pd.Series:
    """Whether each claim is a part of a primary, and was run on the images that decide it."""
    there = claims["family"].isin(PRIMARIES)
    return there & (claims["decided_on"] == claims["dataset"])


def _tested(claims: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Whether each claim can be tested, and the two one-sided p-values of all."""
    one_sided = claims[["p_agrees", "p_disagrees"]].astype(float)
    tested = one_sided.notna().all(axis=1) & (claims["seeds"] >= SEEDS_FOR_A_VERDICT)
    return tested & (claims["verdict"] != "not applicable"), one_sided


def _weaken(frame: pd.DataFrame, which: Any, where: str) -> None:
    firm = which & frame["verdict"].isin(["agrees", "disagrees"])
    frame.loc[firm, "verdict"] = "open"
    frame.loc[firm, "reason"] += f", but not {where}"


def simulate_error_rate(
    seed_sd: ArrayLike,
    item_standard_error: ArrayLike,
    n_seeds: ArrayLike,
    n_claims: int,
    rng: np.random.Generator,
    repetitions: int = 10_000,
    family: int | None = None,
) -> ErrorRates:
    """How often this procedure would give a verdict where the truth sits on the margin.

    ``seed_sd`` (of paired differences), ``item_standard_error`` and ``n_seeds`` are one number or
    one per claim. Draws of ``n_claims`` sets of normal differences around the margin, with an error
    of the test images that all seeds share, meet the interval of `paired_difference` and Holm's
    correction over ``family`` claims (by default these), the others of which have p = 1.
    """
    sd, item, n = (
        np.broadcast_to(np.asarray(given), (n_claims,))
        for given in (seed_sd, item_standard_error, n_seeds)
    )
    values = rng.normal(size=(repetitions, n_claims, int(n.max()))) * sd[:, None]
    there = np.arange(n.max()) < n[:, None]
    distance = values.mean(axis=2, where=there) + rng.normal(size=(repetitions, n_claims)) * item
    seed_variance = values.var(axis=2, ddof=1, where=there) / n
    variance = seed_variance + item**2
    share = np.divide(seed_variance, variance, out=np.ones_like(variance), where=variance > 0)
    # Critical values of Holm's steps, (steps, claims): for 0, 1, ... claims rejected before.
    upper = FAMILY_LEVEL / 2 / ((family or n_claims) - np.arange(n_claims))[:, None]
    of_seeds, of_items = -stdtrit(n - 1.0, upper), -stdtrit(math.inf, upper)
    size, standard_error = np.abs(distance), np.sqrt(variance)
    critical = critical_value(FAMILY_LEVEL / 2, share, n - 1.0, math.inf)
    alone = size > critical * standard_error
    rejected = np.zeros_like(alone)
    for _ in range(n_claims):  # Holm takes that many steps at most; each can only reject more
        step = np.minimum(rejected.sum(axis=1), n_claims - 1)
        critical = share * of_seeds[step] + (1 - share) * of_items[step]
        before, rejected = rejected, size > critical * standard_error
        if (rejected.sum(axis=1) == before.sum(axis=1)).all():
            break
    above = distance > 0
    return ErrorRates(
        agrees=float((alone & above).mean()),
        disagrees=float((alone & ~above).mean()),
        any_agrees=float((rejected & above).any(axis=1).mean()),
        any_disagrees=float((rejected & ~above).any(axis=1).mean()),
    )


def with_arms_swapped(
    table: pd.DataFrame, items: pd.DataFrame, arms: tuple[str, str], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of one measure in which two arms have exchanged outcomes on half of the sources.

    It is drawn for each seed, so that the arms differ by chance alone: whatever the procedure then
    says is wrong.
    """
    keys = items[["source", "seed"]].drop_duplicates()
    keys = keys.assign(swapped=rng.random(len(keys)) < 0.5)
    marked = items.astype({"arm": str}).merge(keys, on=["source", "seed"])
    other = marked["arm"].map({arms[0]: arms[1], arms[1]: arms[0]})
    exchanged = marked.assign(arm=marked["arm"].where(~marked["swapped"], other))
    means = exchanged.groupby(["arm", "seed"])["value"].mean()
    places = pd.MultiIndex.from_frame(table[["arm", "seed"]])
    return table.assign(value=means.reindex(places).to_numpy()), exchanged
