"""What a probe returns: one row per network and measure, and one row per image behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from kdnotes.data import ImageData
from kdnotes.probes.cast import Member

TABLE_COLUMNS = ("arm", "seed", "condition", "measure", "value")
ITEM_COLUMNS = (
    "item",
    "source",
    "arm",
    "seed",
    "condition",
    "prediction",
    "measure",
    "value",
)
NAME_COLUMNS = ("arm", "condition", "measure")


@dataclass(frozen=True)
class Outcome:
    """Tidy results of one or more probes.

    table: arm, seed, condition, measure, value; value is the mean over the images for which the
    measure is defined (NaN where there is none), or a value that has no images behind it.
    items: item, source, arm, seed, condition, prediction (int16), measure, value (float32, NaN
    where the measure is undefined). Names are categorical in items: group with observed=True.
    """

    table: pd.DataFrame
    items: pd.DataFrame

    @staticmethod
    def combine(outcomes: Iterable[Outcome]) -> Outcome:
        """All rows of several outcomes, in their order.

        Raises ValueError when there is none, or when two outcomes hold a value for the same arm,
        seed, condition and measure.
        """
        parts = list(outcomes)
        if not parts:
            raise ValueError("no outcomes to combine")
        table = pd.concat([part.table for part in parts], ignore_index=True)
        _check_unique(table)
        # Names without a row have categories of no type, which go with no others.
        filled = [part.items for part in parts if len(part.items)] or [parts[0].items]
        items = {
            name: _joined([part[name] for part in filled], name in NAME_COLUMNS)
            for name in ITEM_COLUMNS
        }
        return Outcome(table, pd.DataFrame(items))


@dataclass
class Recorder:
    """Collects the values of a probe and puts them into an Outcome."""

    data: ImageData
    rows: list[tuple[str, int, str, str, float]] = field(default_factory=list)
    blocks: list[tuple[str, int, str, str, NDArray, NDArray, NDArray]] = field(default_factory=list)

    def add(
        self,
        member: Member,
        measure: str,
        values: ArrayLike,
        predictions: ArrayLike,
        condition: str = "",
        items: ArrayLike | None = None,
        keep_items: bool = True,
    ) -> None:
        """Values (n,) of one network for the images at ``items`` (n,); all images by default.

        predictions: its answers (n,) that go with them. Without ``keep_items`` only the mean stays.
        Raises ValueError when the lengths differ.
        """
        numbers = np.asarray(values, np.float32)
        answers = np.asarray(predictions, np.int16)
        which = np.arange(len(self.data)) if items is None else np.asarray(items)
        if not len(numbers) == len(answers) == len(which):
            raise ValueError(
                f"{measure}: {len(numbers)} values, {len(answers)} predictions, {len(which)} items"
            )
        self.add_summary(member.arm, member.seed, measure, mean_of_defined(numbers), condition)
        if keep_items:
            block = (member.arm, member.seed, condition, measure)
            self.blocks.append((*block, which.astype(np.int32), answers, numbers))

    def add_summary(
        self, arm: str, seed: int, measure: str, value: float, condition: str = ""
    ) -> None:
        """One value of a network that is no mean over images."""
        self.rows.append((arm, seed, condition, measure, float(value)))

    def outcome(self) -> Outcome:
        """Everything recorded. Raises ValueError when a value was recorded twice."""
        table = pd.DataFrame(self.rows, columns=list(TABLE_COLUMNS))
        _check_unique(table)
        lengths = [len(block[4]) for block in self.blocks]
        which = _concatenated([block[4] for block in self.blocks], np.int32)
        sources = np.asarray(self.data.sources)
        items = pd.DataFrame(
            {
                "item": which,
                "source": sources[which],
                "arm": _repeated([block[0] for block in self.blocks], lengths),
                "seed": np.repeat(np.array([block[1] for block in self.blocks], np.int64), lengths),
                "condition": _repeated([block[2] for block in self.blocks], lengths),
                "prediction": _concatenated([block[5] for block in self.blocks], np.int16),
                "measure": _repeated([block[3] for block in self.blocks], lengths),
                "value": _concatenated([block[6] for block in self.blocks], np.float32),
            }
        )
        return Outcome(table, items)


def mean_of_defined(values: NDArray) -> float:
    """Mean of the values that are not NaN, in double precision; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean(dtype=np.float64)) if len(defined) else float("nan")


def _check_unique(table: pd.DataFrame) -> None:
    repeated = table[table.duplicated(list(TABLE_COLUMNS[:-1]))]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"two values of {first['measure']!r} for arm {first['arm']!r}, seed {first['seed']}, "
            f"condition {first['condition']!r}"
        )


def _repeated(names: Sequence[str], lengths: Sequence[int]) -> pd.Categorical:
    codes, categories = pd.factorize(np.array(names, dtype=object))
    return pd.Categorical.from_codes(np.repeat(codes, lengths), categories=categories)


def _concatenated(parts: Sequence[NDArray], dtype: type) -> NDArray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _joined(columns: list[pd.Series], categorical: bool) -> pd.Series | pd.Categorical:
    if categorical:
        return pd.api.types.union_categoricals(columns)
    return pd.concat(columns, ignore_index=True)
