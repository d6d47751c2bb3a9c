"""What every probe is made of: the networks compared, their answers, and what is written down.

Importing this, or a probe's declarations, does not import torch.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch

BATCH_SIZE = 250  # small nets on a CPU are as fast at 100 to 500 images; smaller needs less memory
TABLE_COLUMNS = ("arm", "seed", "condition", "measure", "value")
ITEM_COLUMNS = ("item", "source", "arm", "seed", "condition", "prediction", "measure", "value")
NAME_COLUMNS = ("arm", "condition", "measure")
NAMES_AS_TEXT = dict.fromkeys(NAME_COLUMNS, str)
_ITEM_KINDS = dict.fromkeys(NAME_COLUMNS, "category") | {"value": np.float32}
# A chapter that joins several casts in one table puts one of these before all its conditions.
CASTS = ("", "cast=*", "pair=*")

Row = tuple[str, int, str, str, float]  # arm, seed, condition, measure, value


@dataclass(frozen=True)
class Member:
    """One trained network of a cast, frozen: images (N, 3, H, W) in [0, 1] to logits (N, classes).

    ``taps``: the dotted paths of its feature layers, from shallow to deep.
    """

    arm: str
    seed: int
    network: torch.nn.Module
    taps: tuple[str, ...]

    def __post_init__(self) -> None:
        """Have every answer of the network checked, whichever probe asks for it."""
        if not hasattr(self.network, "answers_as"):
            self.network.answers_as = f"{self.arm}, seed {self.seed}"  # type: ignore[assignment]
            self.network.register_forward_hook(check_finite)


@dataclass(frozen=True)
class Cast:
    """A teacher, an optional second teacher of the same recipe, and the students compared."""

    teacher: Member
    second_teacher: Member | None
    members: tuple[Member, ...]
    classes: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the students' arms, in order of first appearance."""
        return tuple(dict.fromkeys(member.arm for member in self.members))

    def arm(self, name: str) -> tuple[Member, ...]:
        """All members of one arm, in order of their seeds."""
        return tuple(sorted((m for m in self.members if m.arm == name), key=lambda m: m.seed))

    def everyone(self) -> list[Member]:
        """The teacher, the second teacher if there is one, then all members."""
        return [each for each in (self.teacher, self.second_teacher, *self.members) if each]


def check_finite(network: torch.nn.Module, images: object, logits: torch.Tensor) -> None:
    refuse_not_finite(network, "logits", logits)


def refuse_not_finite(network: torch.nn.Module, what: str, values: torch.Tensor) -> None:
    """Raise FloatingPointError, naming a member's network, unless all values are finite.

    NaN is below everything and equal to nothing: a network of them would be given a verdict.
    """
    # A sum is not finite where a value is not, and takes one pass without a copy.
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise FloatingPointError(
            f"the {what} of {network.answers_as} are not all finite numbers (NaN or infinite): its "
            "weights are damaged or its training diverged, and nothing can be said of it"
        )


@dataclass(frozen=True)
class Measure:
    """What a probe measures under one main condition, as a reader meets it.

    sentence: completes "A student ..."; others: further conditions, with ``*`` for the value of a
    factor; reported: whether an audit shows it; chance: its value without teaching or looking, and
    twin: that of a copy of the teacher, None where they depend on the networks; direction: where
    more of the teacher's property is; of: one network, or the pair of it and the teacher; items:
    what it is a mean over; end: the arm at 1 of a share, where it is not the usual one.
    """

    name: str
    sentence: str
    condition: str = ""
    others: tuple[str, ...] = ()
    reported: bool = False
    unit: str = "share"
    low: float = 0.0
    high: float = 1.0
    chance: float | None = None
    twin: float | None = None
    direction: Literal["up", "down", "none"] = "up"
    of: Literal["network", "pair"] = "network"
    items: str = "images"
    end: str = ""

    @property
    def label(self) -> str:
        """For an axis: what networks do, and in which unit it is counted."""
        return f"{self.sentence[0].upper()}{self.sentence[1:]} ({self.unit})"

    def at(self, condition: str, sentence: str = "") -> Measure:
        """The same measure with another main condition, and what a student does there in words."""
        return replace(self, condition=condition, sentence=sentence or self.sentence)

    def is_measured_under(self, condition: str) -> bool:
        """Whether the probe can have measured it there, in one cast or in one among several."""
        own = (self.condition, *self.others)
        known = (re.escape(joined(cast, each)) for cast in CASTS for each in own)
        return any(re.fullmatch(each.replace(r"\*", "[^,]+"), condition) for each in known)


# Kinds of measures that differ in name, words and conditions only.
Alike = partial(Measure, of="pair", twin=1.0)
BeyondChance = partial(Measure, of="pair", twin=1.0, unit="kappa", low=-1.0, chance=0.0)
Difference = partial(Measure, unit="difference of shares", low=-1.0)


def probabilities(condition: str = "", *others: str) -> tuple[Measure, Measure]:
    """What probes keep of each image besides answers, so that calibration needs no new run."""
    return (
        Measure("probability_true", "is sure of the right class", condition, others),
        Measure("probability_teacher", "is sure of its teacher's answer", condition, others),
    )


PROBABILITIES = probabilities()


@dataclass(frozen=True)
class Property:
    """What one probe asks of networks: declared in its file, found there by whoever reports it.

    title, rank: what reports call it, and its place in them; needs: of layers or images; audited:
    whether an audit measures it, then with the arguments ``brief`` on a ``share`` of the images, in
    so many forward ``passes`` of each image and network.
    """

    name: str
    title: str
    measure: Callable[..., Outcome]
    measures: tuple[Measure, ...]
    rank: int
    needs: tuple[Literal["maps", "gradients", "masks", "cues", "groups", "domains"], ...] = ()
    audited: bool = False
    brief: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    passes: float = 1.0


Audited = partial(Property, audited=True)


def joined(*conditions: str) -> str:
    """Conditions as one, those that are empty left out."""
    return ",".join(each for each in conditions if each)


_at_a_time: ContextVar[int] = ContextVar("images at a time", default=sys.maxsize)


@contextmanager
def at_most(images: int) -> Iterator[None]:
    """No batch is larger within the block: what large images or networks leave room for."""
    before = _at_a_time.set(images)
    try:
        yield
    finally:
        _at_a_time.reset(before)


def at_a_time(wanted: int = BATCH_SIZE) -> int:
    """How many images to show at a time, where ``wanted`` would be quickest for small ones."""
    return min(wanted, _at_a_time.get())


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network's weights are; the CPU for a network that has none."""
    first = next(iter((*network.parameters(), *network.buffers())), None)
    return torch.device("cpu") if first is None else first.device


def pictures(
    data: ImageData, places: torch.Tensor, device: torch.device | None = None
) -> torch.Tensor:
    """Images at some places, float (n, 3, H, W) in [0, 1]."""
    from kdnotes.data.views import to_float

    return to_float(data.batch(places).to(device=device))


def batches(
    data: ImageData, device: torch.device, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Indices int64 (n,) on the CPU with their images, float (n, 3, H, W) in [0, 1] on the device.

    Raises RequestError when there are no images.
    """
    if len(data) == 0:
        raise RequestError("the data set holds no images to measure on")
    for indices in torch.arange(len(data)).split(at_a_time(batch_size)):
        yield indices, pictures(data, indices, device)


def logits_of(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes) on the CPU in float32, without a graph."""
    with torch.inference_mode():
        return network(images).float().cpu()


def answers_of(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Answers int64 (n,) on the CPU."""
    return logits_of(network, images).argmax(1)


def all_logits(
    members: Sequence[Member],
    data: ImageData,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
    batch_size: int = BATCH_SIZE,
) -> list[torch.Tensor]:
    """Logits (N, classes) on the CPU of every network on every image, read once, maybe changed."""
    # Written where all will stand, and not kept in parts between what networks use and free.
    found: list[torch.Tensor] = []
    for places, images in batches(data, device_of(members[0].network), batch_size):
        shown = change(images)
        for number, member in enumerate(members):
            logits = logits_of(member.network, shown)
            if len(found) == number:
                found.append(torch.empty(len(data), *logits.shape[1:]))
            found[number][places] = logits
    return found


def all_answers(members: Sequence[Member], data: ImageData, *change: Any) -> list[torch.Tensor]:
    """Answers int64 (N,) of every network to every image, maybe changed first, on the CPU."""
    return [logits.argmax(1) for logits in all_logits(members, data, *change)]


@dataclass(frozen=True)
class Outcome:
    """Tidy results of one or more probes, with TABLE_COLUMNS and ITEM_COLUMNS.

    A ``value`` of the table is the mean over the images for which the measure is defined; in the
    items (float32) it is NaN where it is not. Names are categories there: group with observed=True.
    """

    table: pd.DataFrame
    items: pd.DataFrame

    @staticmethod
    def of_rows(rows: Iterable[Row]) -> Outcome:
        """An outcome of values that have no images behind them."""
        table = pd.DataFrame(list(rows), columns=list(TABLE_COLUMNS))
        _check_unique(table)
        return Outcome(table, _items([], np.empty(0, np.int64)))

    @staticmethod
    def combine(outcomes: Iterable[Outcome]) -> Outcome:
        """All rows, in order. Raises ValueError for no outcome, or one value in two of them."""
        parts = list(outcomes)
        if not parts:
            raise ValueError("no outcomes to combine")
        table = pd.concat([part.table for part in parts], ignore_index=True)
        _check_unique(table)
        # Names without a row have categories of no type, which go with no others.
        filled = [part.items for part in parts if len(part.items)] or [parts[0].items]
        items = {
            name: pd.api.types.union_categoricals([part[name] for part in filled])
            if name in NAME_COLUMNS
            else pd.concat([part[name] for part in filled], ignore_index=True)
            for name in ITEM_COLUMNS
        }
        return Outcome(table, pd.DataFrame(items))

    @staticmethod
    def averaged(first: Outcome, second: Outcome) -> Outcome:
        """The mean of two outcomes with the same rows: of the students of two teachers.

        The networks of an arm go by their place among its seeds, and keep those of the first.
        Undefined values are left out. Raises ValueError where a row is not in both.
        """

        seeds = [each.table.groupby("arm")["seed"].unique() for each in (first, second)]
        of_first = {
            (arm, there): here
            for arm in seeds[0].index.intersection(seeds[1].index)
            for there, here in zip(sorted(seeds[1][arm]), sorted(seeds[0][arm]), strict=False)
        }

        def together(one: pd.DataFrame, two: pd.DataFrame, by: Sequence[str]) -> Any:
            named = zip(two["arm"], two["seed"], strict=True)
            two = two.assign(seed=[of_first.get(each, each[1]) for each in named])
            return pd.concat([one, two]).groupby(list(by), sort=False)

        tables = together(first.table, second.table, TABLE_COLUMNS[:-1])
        if len(lacking := tables.size()[lambda count: count != 2]):
            raise ValueError(f"measured with one of the two teachers only: {lacking.index[0]}")
        table = tables.agg({"value": "mean"}).reset_index()
        if not len(first.items):
            return Outcome(table, first.items)
        one, two = (each.items.astype(NAMES_AS_TEXT) for each in (first, second))
        images = together(one, two, ["item", "source", "arm", "seed", "condition", "measure"])
        items = images.agg({"value": "mean", "prediction": "first"}).reset_index()
        return Outcome(table, items[list(ITEM_COLUMNS)].astype(_ITEM_KINDS))

    def under(self, condition: str) -> Outcome:
        """The same rows, with ``condition`` put before each row's own."""
        whole = [joined(condition, own) for own in self.table["condition"]]
        names = self.items["condition"].cat.rename_categories(lambda own: joined(condition, own))
        return Outcome(self.table.assign(condition=whole), self.items.assign(condition=names))

    def keep(self, wanted: Callable[[pd.DataFrame], pd.Series]) -> Outcome:
        """The rows and items for which a function of such a frame is true."""
        table = self.table[wanted(self.table)].reset_index(drop=True)
        return Outcome(table, self.items).keep_items(wanted)

    def keep_items(self, wanted: Callable[[pd.DataFrame], pd.Series]) -> Outcome:
        """All rows, and the items for which a function of their frame is true."""
        items = self.items[wanted(self.items)].reset_index(drop=True)
        names = {name: items[name].cat.remove_unused_categories() for name in NAME_COLUMNS}
        return Outcome(self.table, items.assign(**names))

    def slope(
        self, measure: str, condition: str, arms: Sequence[str], of: str, name: str
    ) -> Outcome:
        """How a measure rises along several arms: the measure ``name`` of a made-up arm ``of``.

        The least-squares slope per step, for each seed that all of them have, and image by image.
        """
        places = np.arange(len(arms)) - (len(arms) - 1) / 2
        weights = pd.Series(places / (places**2).sum(), index=list(arms))

        def along(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
            kept = rows_of(rows, measure, condition, arms).astype({"arm": str})
            values = kept.pivot(index=by, columns="arm", values="value").dropna()
            slopes = values.reindex(columns=list(arms)).astype(np.float64) @ weights
            fixed = {"arm": of, "condition": condition, "measure": name}
            return slopes.rename("value").reset_index().assign(**fixed, prediction=np.int16(-1))

        table, items = along(self.table, ["seed"]), along(self.items, ["item", "source", "seed"])
        return Outcome(table[list(TABLE_COLUMNS)], items[list(ITEM_COLUMNS)].astype(_ITEM_KINDS))

    def without_accuracy(self) -> Outcome:
        """All but what many probes measure alike: accuracy and certainty on unchanged images."""
        alike = ["accuracy", *(measure.name for measure in PROBABILITIES)]
        return self.keep(lambda rows: ~rows["measure"].isin(alike) | (rows["condition"] != ""))


@dataclass
class Recorder:
    """Collects the values of a probe and puts them into an Outcome."""

    data: ImageData
    rows: list[Row] = field(default_factory=list)
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
        """Values and predictions (n,) of one network for the images at ``items``, by default all.

        Without ``keep_items`` only the mean stays. Raises ValueError when the lengths differ.
        """
        numbers, answers = np.asarray(values, np.float32), np.asarray(predictions, np.int16)
        which = np.arange(len(self.data)) if items is None else np.asarray(items)
        if not len(numbers) == len(answers) == len(which):
            raise ValueError(
                f"{measure}: {len(numbers)} values, {len(answers)} predictions, {len(which)} items"
            )
        self.add_value(member, measure, mean_of_defined(numbers), condition)
        if keep_items:
            block = (member.arm, member.seed, condition, measure)
            self.blocks.append((*block, which.astype(np.int32), answers, numbers))

    def add_value(self, member: Member, measure: str, value: float, condition: str = "") -> None:
        """One value of a network that is no mean over images."""
        self.rows.append((member.arm, member.seed, condition, measure, float(value)))

    def add_accuracy(self, member: Member, answers: torch.Tensor, condition: str = "") -> None:
        """The measure that stands beside every other: are the answers (N,) right?"""
        self.add(member, "accuracy", answers == self.data.labels, answers, condition)

    def add_probabilities(
        self,
        member: Member,
        probabilities: torch.Tensor,
        teachers: torch.Tensor,
        condition: str = "",
    ) -> None:
        """Probabilities (N, classes) of the true class, and of the answer of the ``teachers``."""
        for measure, of in zip(PROBABILITIES, (self.data.labels, teachers.argmax(1)), strict=True):
            chosen = probabilities.gather(1, of[:, None])[:, 0]
            self.add(member, measure.name, chosen, probabilities.argmax(1), condition)

    def add_pairs(
        self,
        members: Sequence[Member],
        answers: Sequence[Any],
        likeness: Mapping[str, Callable[[Any, Any], float]],
        condition: str = "",
    ) -> None:
        """How alike every two independent students are: the lower seed, ``against=`` the other."""
        pairs = zip(members, answers, strict=True)
        alone = sorted((p for p in pairs if p[0].arm == "independent"), key=lambda p: p[0].seed)
        for (first, its), (second, others) in itertools.combinations(alone, 2):
            for measure, alike in likeness.items():
                where = joined(condition, f"against={second.seed}")
                self.add_value(first, measure, alike(its, others), where)

    def outcome(self) -> Outcome:
        """Everything recorded. Raises ValueError when a value was recorded twice."""
        values = Outcome.of_rows(self.rows)
        return Outcome(values.table, _items(self.blocks, np.asarray(self.data.sources)))


def share_alike(first: torch.Tensor, second: torch.Tensor) -> float:
    """Share of equal answers, in double precision."""
    return float((first == second).double().mean())


def mean_of_defined(values: NDArray) -> float:
    """Mean of the values that are not NaN, in double precision; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean(dtype=np.float64)) if len(defined) else float("nan")


def rows_of(
    frame: pd.DataFrame, measure: str, condition: str, arms: Collection[str] | None = None
) -> pd.DataFrame:
    """The rows of a measure under a condition, of some arms or of all."""
    wanted = (frame["measure"] == measure) & (frame["condition"] == condition)
    return frame[wanted if arms is None else wanted & frame["arm"].isin(list(arms))]


def _check_unique(table: pd.DataFrame) -> None:
    repeated = table[table.duplicated(list(TABLE_COLUMNS[:-1]))]
    if len(repeated):
        arm, seed, condition, measure, _ = repeated.iloc[0]
        where = f"arm {arm!r}, seed {seed}, condition {condition!r}"
        raise ValueError(f"two values of {measure!r} for {where}")


def _items(blocks: Sequence[tuple], sources: NDArray) -> pd.DataFrame:
    """Blocks of values by network, condition and measure as one frame with ITEM_COLUMNS."""
    lengths = [len(block[-1]) for block in blocks]

    def repeated(place: int) -> pd.Categorical:
        # Without a row pandas cannot tell that names are text, and would not join them with others.
        names = np.array([block[place] for block in blocks], dtype=object if blocks else "str")
        return pd.Categorical(names, pd.unique(names)).repeat(lengths)

    def stacked(place: int, dtype: type) -> NDArray:
        return np.concatenate([np.empty(0, dtype), *(block[place] for block in blocks)])

    which = stacked(4, np.int32)
    return pd.DataFrame(
        {
            "item": which,
            "source": sources[which],
            "arm": repeated(0),
            "seed": np.repeat(np.array([block[1] for block in blocks], np.int64), lengths),
            "condition": repeated(2),
            "prediction": stacked(5, np.int16),
            "measure": repeated(3),
            "value": stacked(6, np.float32),
        }
    )
