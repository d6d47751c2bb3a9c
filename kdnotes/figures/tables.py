"""What figures and pages read from a tidy table, and how they print it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdnotes import stats
from kdnotes.figures import looks
from kdnotes.stats import GapClosed, Interval

NOTHING = "\N{EN DASH}"
TEACHERS = ("teacher", "second-teacher")

Which = tuple[str, str]  # a measure and its condition


def select(table: pd.DataFrame, measure: str, condition: str = "") -> pd.DataFrame:
    """One measure of a tidy table under one condition: a row per seed, a column per arm.

    Values that are not finite are NaN. Raises NotMeasuredError for what the table does not hold.
    """
    rows = table[table["measure"] == measure]
    chosen = rows[rows["condition"] == condition]
    if chosen.empty:
        known = "; ".join((table["measure"] if rows.empty else rows["condition"]).unique())
        raise stats.NotMeasuredError(f"no '{measure}' under '{condition}'; measured: {known}")
    values = chosen.pivot(index="seed", columns="arm", values="value").astype(np.float64)
    return values.where(np.isfinite(values))


def choose(measured: Iterable[str], arms: Sequence[str] | None = None) -> list[str]:
    """The arms asked for, or all measured as they were declared; else raises NotMeasuredError."""
    measured = list(measured)
    if unknown := [arm for arm in arms or () if arm not in measured]:
        what = f"no arm {', '.join(map(repr, unknown))}; measured: {', '.join(measured)}"
        raise stats.NotMeasuredError(what)
    if arms is not None:
        return list(arms)
    place = {arm: number for number, arm in enumerate(looks.order())}
    return sorted(measured, key=lambda arm: place.get(arm, len(place)))


def teachers_in(values: pd.DataFrame) -> dict[str, float]:
    """The values of teachers among those that `select` found, which students are seen beside."""
    return {arm: float(values[arm].mean()) for arm in TEACHERS if arm in values}


def number(value: float | np.floating | Interval | GapClosed, digits: int = 2) -> str:
    """A number, interval or share of a gap as the book prints it, such as ``.38``, or a dash."""
    if isinstance(value, Interval) and math.isnan(value.estimate):
        return NOTHING
    if isinstance(value, Interval | GapClosed):
        return value.format(digits)
    return stats.format_number(float(value), digits) if math.isfinite(value) else NOTHING


def brief(value: float | str) -> str:
    """A setting with as many digits as it needs: ``.25``, ``1500``, ``2/3``."""
    text = value if isinstance(value, str) else f"{value:.10g}"
    return text if text == "0" else text.removeprefix("0")


def markdown_table(frame: pd.DataFrame, digits: int = 2) -> str:
    """A Markdown table of a frame: fractions by `number`, arms by name, the rest as it is."""

    def text(value: Any) -> str:
        if isinstance(value, float | np.floating | Interval | GapClosed):
            return number(value, digits)
        shown = NOTHING if value is None or value is pd.NA else str(value)
        return shown.replace("|", r"\|").replace("\n", " ")

    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(map(text, cells))} |"

    shown = frame.assign(arm=frame["arm"].map(looks.label)) if "arm" in frame else frame
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in shown.dtypes]
    head = ["" if name == "arm" else str(name) for name in shown]
    rows = [line(values) for values in shown.itertuples(index=False, name=None)]
    return "\n".join([line(head), line("---:" if right else ":---" for right in numeric), *rows])
