"""What a run found, asked for in the words of the book: means, differences, shares, a first screen.

Two vocabularies, never mixed: how much was inherited (a share of the gap and a word for it), and
whether that agrees with the paper (the verdict on a claim, which alone has a symbol). Nothing here
raises for what was not measured: it is said in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdnotes import figures, stats
from kdnotes.lazy import pandas as pd
from kdnotes.probes import wording
from kdnotes.probes.base import NAMES_AS_TEXT, Measure, Outcome, joined, rows_of
from kdnotes.probes.wording import DASH, NOT_MEASURED, FirstScreen, Text
from kdnotes.stats import claims as of_the_paper
from kdnotes.stats.words import VERDICTS, brief, format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Name = str | None  # of a measure, a condition or an arm; None: the main one


@dataclass(frozen=True, eq=False)
class Findings:
    """The tables of a run with the measure that it is about, under its main condition.

    methods: the arms whose inheritance is asked for; reference: the arm at 0 of a share; claims:
    entries of `kdnotes.claims.evaluate`; elsewhere: what published runs answered (see `answers`),
    by the name of their images; changed: what differs from the preset, and what that changed.
    """

    outcome: Outcome
    measure: Measure
    methods: Sequence[str] = ()
    reference: str = "independent"
    claims: Sequence[Mapping[str, Any]] = ()
    elsewhere: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changed: str = ""

    @property
    def end(self) -> str:
        """The arm at 1 of a share: a teacher agrees with itself, so pairs have the second one."""
        return self.measure.end or ("second-teacher" if self.measure.of == "pair" else "teacher")

    @property
    def pupil(self) -> str:
        """The arm whose students stand for the taught ones: KL, or else the first method."""
        return "kl" if "kl" in self.methods else self.methods[0]

    def about(self, measure: Measure) -> Findings:
        """The same run, told by another measure."""
        return replace(self, measure=measure)

    def against(self, reference: str) -> Findings:
        """The same run, with another arm at 0 of a share and as what differences are taken from."""
        return replace(self, reference=reference)

    def on(self, images: Iterable[int]) -> Findings:
        """The same run on some of its images, by their places in the test set."""
        kept = self.outcome.items[self.outcome.items["item"].isin(list(images))]
        by = ["arm", "seed", "condition", "measure"]
        means = kept.groupby(by, observed=True, sort=False)["value"].mean().reset_index()
        table = means.astype(NAMES_AS_TEXT)
        return replace(self, outcome=Outcome(table, kept))

    def values(self, arm: str, measure: Name = None, condition: Name = None) -> pd.Series:
        """Finite values of an arm by seed; empty where there are none."""
        rows = rows_of(self.outcome.table, *self._where(measure, condition), [arm])
        return rows.set_index("seed")["value"].dropna().sort_index()

    def difference(
        self,
        arm: str,
        reference: Name | float = None,
        measure: Name = None,
        condition: Name = None,
    ) -> stats.Interval:
        """An arm minus another, paired by seed, or a constant; n is 0 where none was measured."""
        asked = (*self._where(measure, condition), arm)
        other = self.reference if reference is None else reference
        try:
            return stats.contrast(self.outcome.table, self.outcome.items, *asked, other)
        except stats.NotMeasuredError:
            return stats.Interval(math.nan, math.nan, math.nan, 0, math.nan, math.nan)

    def gains_most(self) -> str:
        """The method whose students have most beyond the reference, in the measure's direction."""
        sign = -1.0 if self.measure.direction == "down" else 1.0
        gains = {arm: sign * self.difference(arm).estimate for arm in self.methods}
        return max(gains, key=lambda arm: -math.inf if math.isnan(gains[arm]) else gains[arm])

    def strangers(self, measure: Name = None, condition: Name = None) -> pd.Series:
        """How alike every two independent students are: what comes of chance for a pair."""
        table, (name, under) = self.outcome.table, self._where(measure, condition)
        pairs = table["condition"].str.startswith(joined(under, "against="))
        return table[pairs & (table["measure"] == name)]["value"].dropna()

    def share(
        self, arm: str, end: Name = None, measure: Name = None, condition: Name = None
    ) -> stats.GapClosed:
        """How far an arm is on the way from the reference to an end."""
        where, ends = self._where(measure, condition), (self.reference, end or self.end)
        try:
            return stats.gap_closed(self.outcome.table, self.outcome.items, *where, arm, *ends)
        except stats.NotMeasuredError:
            difference, gap = (self.difference(each, None, *where) for each in (arm, ends[1]))
            return stats.GapClosed(None, difference, gap, NOT_MEASURED, *(math.nan,) * 3)

    def apart(self, arm: str, count: int = 2) -> pd.DataFrame:
        """Images on which an arm gains most over the reference, then those where it loses most.

        By the image's place: how many networks of either arm have the measure there (or its
        sum), and the same ``said`` as ``KL 5/5, Independent 1/5``.
        """
        pair = [arm, self.reference]
        rows = rows_of(self.outcome.items, *self._where(), pair)
        rows = rows.fillna({"value": 0}).astype({"arm": str})
        counts = rows.groupby(["item", "arm"])["value"].sum().unstack()
        counts = counts.reindex(columns=pair).dropna()
        order = (counts[arm] - counts[self.reference]).sort_values(kind="stable").index
        ends = min(count, len(order) // 2)
        counts = counts.loc[[*order[::-1][:ends], *order[:ends]]]
        of = rows.groupby("arm")["seed"].nunique()
        said = [
            ", ".join(f"{wording.short(each)} {row[each]:g}/{of[each]}" for each in pair)
            for _, row in counts.iterrows()
        ]
        return counts.assign(said=said)

    def mean(self, arm: str, measure: Name = None, condition: Name = None) -> str:
        """Mean over the seeds of an arm, as the book prints numbers."""
        values = self.values(arm, measure, condition)
        return format_number(values.mean()) if len(values) else NOT_MEASURED

    def means(self, arms: Iterable[str], measure: Name = None, condition: Name = None) -> str:
        """The means of several arms: ``KL .87, Hint .83``."""
        found = {wording.short(arm): self.mean(arm, measure, condition) for arm in arms}
        return ", ".join(f"{name} {mean}" for name, mean in found.items())

    def differences(
        self,
        arms: Iterable[str],
        reference: Name | Mapping[str, str] = None,
        measure: Name = None,
        condition: Name = None,
    ) -> str:
        """Several arms minus another, or minus the one that each is mapped to."""
        pairs = _paired(arms, reference)
        found = {arm: self.difference(arm, of, measure, condition) for arm, of in pairs.items()}
        return wording.listed({arm: each.format() if each.n else "" for arm, each in found.items()})

    def shares(self, arms: Iterable[str], end: Name | Mapping[str, str] = None) -> str:
        """How far several arms are on the way to an end, or to the one that each is mapped to."""
        found = {arm: self.share(arm, to) for arm, to in _paired(arms, end).items()}
        return wording.listed({arm: wording.number_or_why(each) for arm, each in found.items()})

    def table(
        self,
        arms: Iterable[str],
        measures: Iterable[str] | Mapping[str, str | tuple[str, str]] = (),
        reference: Name | Mapping[str, str] = None,
    ) -> Text:
        """A row per arm: means, or with a reference (or one for each) the differences from it.

        measures: names, or by heading a name, with a condition where it is not the main one.
        """
        if not isinstance(measures, Mapping):
            names = list(measures) or [self.measure.name]
            measures = {name.replace("_", " "): name for name in names}

        def cell(arm: str, other: Name, where: str | tuple[str, str]) -> Any:
            of = (where,) if isinstance(where, str) else where
            if reference is None:
                values = self.values(arm, *of)
                return values.mean() if len(values) else NOT_MEASURED
            found = self.difference(arm, other, *of)
            return found if found.n else NOT_MEASURED

        pairs = _paired(arms, reference)
        frame = pd.DataFrame({"arm": list(pairs)})
        for head, where in measures.items():
            frame[head] = [cell(arm, other, where) for arm, other in pairs.items()]
        return Text(figures.markdown_table(frame))

    def trained(self, networks: pd.DataFrame, condition: str = "") -> Text:
        """Who was trained how (the plan's table), and how accurate each is (under a condition)."""
        shown = networks.drop(columns=["images", "epochs"], errors="ignore")
        right = [self.values(arm, "accuracy", condition).mean() for arm in shown["arm"]]
        return Text(figures.markdown_table(shown.assign(**{"test accuracy": right}), digits=3))

    def verdicts(self) -> Text:
        """All claims: what decides each, what the paper has, what was found."""
        return Text(of_the_paper.verdict_table(self.claims))

    def points(
        self, arms: Iterable[str] | None = None, lines: Mapping[str, float] | None = None
    ) -> Figure | None:
        """A picture of every network of the arms that were measured; None where none was.

        Teachers are lines through it, unless one is among the arms, as are ``lines`` by name.
        """
        known = [arm for arm in arms or (self.reference, *self.methods) if len(self.values(arm))]
        where = (*self._where(), known, self.measure.label, lines, self.end not in known)
        return figures.points(self.outcome.table, *where) if known else None

    def closed(self, arms: Iterable[str] | None = None) -> Figure:
        """A picture of how much of the gap, for a pair's measure of the headroom, is closed."""
        what = "headroom" if self.end == "second-teacher" else "gap"
        shares = {arm: self.share(arm) for arm in arms or self.methods}
        return figures.closed(shares, f"Share of the {what} closed")

    def sentence(self) -> Text:
        """The answer in one sentence: how much each method hands on."""
        return Text(wording.sentence(self.measure, self._taught, self._gap))

    def first_screen(self) -> FirstScreen:
        """The answer with a row per method, a picture of every network, how sure."""
        others = ["published runs"] if self.elsewhere else []
        heads = "method", "how much", "amount", *others, "as in the paper?"
        rows = [heads, (":--",) * len(heads)]
        for arm, share in self._taught.items():
            found = brief(wording.word(share)), wording.amount(share, self.measure.unit)
            there = [self._word_elsewhere(arm)] if others else []
            rows.append((wording.short(arm), *found, *there, self._verdict(arm)))
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        silent = any(DASH in row for row in rows)
        reading = wording.how_to_read(self._taught, self.end, bool(others), silent)
        answer = "\n\n".join(filter(None, [self.sentence(), self.changed, table, reading]))
        sure = f"*The gap ({self.measure.unit}):* {self._gap}.\n\n{self._how_sure()}"
        return FirstScreen(Text(answer), self.points(), Text(sure))

    def take_away(self) -> Text:
        """What the answer comes to, whether it is the paper's, and what other images say to it."""
        here, said = self.answers()["methods"], {arm: self._verdict(arm) for arm in self.methods}
        parts = [f"**Here.** {wording.lessons(self._taught, self.end)}"]
        if verdicts := wording.listed({arm: each for arm, each in said.items() if each != DASH}):
            parts.append(f"**As in the paper?** {verdicts}.")
        for name, there in self._elsewhere.items():
            told = {arm: f"{each['word']}, {each['amount']}" for arm, each in there.items()}
            unlike = [arm for arm, each in there.items() if wording.contradict(here[arm], each)]
            other = f" Not so here: {', '.join(map(wording.short, unlike))}." if unlike else ""
            parts.append(f"**On {name}.** {wording.listed(told)}.{other}")
        return Text("\n\n".join(parts))

    def answers(self) -> dict[str, Any]:
        """The first screen as data: the sentence, and for each method a word and an interval.

        ``share`` says whether that is of a share of the gap, or else of the plain difference.
        """
        methods = {}
        for arm, share in self._taught.items():
            interval = share.ratio or share.difference
            methods[arm] = {
                "word": wording.word(share),
                "amount": wording.amount(share, self.measure.unit),
                "share": share.ratio is not None,
                "seeds": interval.n,
                **{name: getattr(interval, name) for name in ("estimate", "low", "high")},
            }
        about = {"measure": self.measure.name, "condition": self.measure.condition}
        about |= {"unit": self.measure.unit, "sentence": self.sentence()}
        return about | {"methods": methods}

    @cached_property
    def _taught(self) -> dict[str, stats.GapClosed]:
        """How far every method's students are on the way."""
        return {arm: self.share(arm) for arm in self.methods}

    @cached_property
    def _gap(self) -> str:
        gap, ends = self.difference(self.end), (self.end, self.reference)
        said = " minus ".join(self.means([arm]) for arm in ends)
        return f"{said}: {gap.format()}" if gap.n else said

    @property
    def _elsewhere(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """What other images answered about each method, by their name; where the same was asked."""
        return {
            name: {arm: there["methods"][arm] for arm in self.methods if arm in there["methods"]}
            for name, there in self.elsewhere.items()
            if (there["measure"], there["condition"]) == self._where()
        }

    def _word_elsewhere(self, arm: str) -> str:
        words = {name: its[arm]["word"] for name, its in self._elsewhere.items() if arm in its}
        said = [f"{name}: {brief(word)}" for name, word in words.items() if word != NOT_MEASURED]
        return "; ".join(said) or NOT_MEASURED

    def _verdict(self, arm: str) -> str:
        """The verdict on the first claim that an arm has more or less than the reference."""
        about = (arm, *self._where(), self.reference)
        for claim in self.claims:
            if tuple(claim[key] for key in ("arm", "measure", "condition", "reference")) == about:
                return f"{VERDICTS[claim['verdict']]} {claim['verdict']}"
        return DASH

    def _how_sure(self) -> str:
        seeds = {arm: list(self.values(arm).index) for arm in self.methods}
        everyone = self.outcome.table.groupby("arm")["seed"].nunique()
        teachers = {arm: int(everyone.get(arm, 0)) for arm in ("teacher", self.end)}
        items = rows_of(self.outcome.items, *self._where(), [self.reference, *self.methods])
        return wording.how_sure(self._taught, seeds, teachers, items, self.measure.items)

    def _where(self, measure: Name = None, condition: Name = None) -> tuple[str, str]:
        under = self.measure.condition if condition is None else condition
        return measure or self.measure.name, under


def _paired(arms: Iterable[str], other: Name | Mapping[str, str]) -> dict[str, Name]:
    return {arm: other[arm] if isinstance(other, Mapping) else other for arm in arms}
