"""How findings are said: shares of a gap in words, one sentence for all methods, how sure it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdnotes import figures, probes, stats
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.probes.base import Measure
from kdnotes.stats.words import CANNOT_TELL, NO_GAP, UNCERTAIN_GAP, format_number, how_much

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shares = Mapping[str, "stats.GapClosed"]

NOT_MEASURED = "not measured"
DASH = "\N{EN DASH}"
# What each word comes to, after the methods that it is said of.
LESSONS = {
    "most": "a student goes most of the way from one trained alone to {end}",
    "part": "a student goes part of the way from one trained alone to {end}",
    "a little": "a student moves towards {end}, and stays nearer to one trained alone",
    "some, how much is open": "a student moves towards {end}; how far, only more could tell",
    "none to speak of": "a student is about where it would be without a teacher",
    "the opposite": "a student is further from {end} than one trained alone",
    CANNOT_TELL: "only more students could tell whether anything is handed on",
    NO_GAP: "one trained alone is not clearly apart from {end}: there is no gap to close",
    UNCERTAIN_GAP: "one trained alone is too little apart from {end} for a share of the way",
    NOT_MEASURED: "this was not measured",
}


class Text(str):
    """Markdown, which a notebook shows as a part of the page's text."""

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class FirstScreen:
    """The answer, a picture of it, and how sure it is; a notebook shows them in this order."""

    answer: Text
    picture: Figure | None
    sure: Text

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(*(part for part in (self.answer, self.picture, self.sure) if part is not None))


def short(arm: str) -> str:
    """An arm's name as it stands in the text."""
    return figures.looks.of(arm).short


def listed(texts: Mapping[str, str]) -> str:
    """What is said of several arms: ``KL: .16 [.10, .21]; Hint: not measured``."""
    return "; ".join(f"{short(arm)}: {text or NOT_MEASURED}" for arm, text in texts.items())


def word(share: stats.GapClosed) -> str:
    """How much was inherited; where nothing can be divided, which of the two cases it is."""
    if share.ratio is not None:
        return how_much(share.ratio.low, share.ratio.high)
    if not share.difference.n:
        return NOT_MEASURED
    return share.reason if share.reason in (NO_GAP, UNCERTAIN_GAP) else CANNOT_TELL


def number(share: stats.GapClosed) -> str:
    """The share with its interval, else the plain difference; empty where neither was measured."""
    if share.ratio is not None:
        return share.ratio.format()
    return f"difference {share.difference.format()}" if share.difference.n else ""


def number_or_why(share: stats.GapClosed) -> str:
    """The share with its interval, else why there is none, with the plain difference."""
    plain = number(share)
    return plain if share.ratio is not None or not plain else f"{word(share)} ({plain})"


def amount(share: stats.GapClosed, unit: str) -> str:
    """The same with what it is counted in."""
    counted_in = f"({unit})" if share.ratio is None else "of the gap"
    return f"{number(share)} {counted_in}" if number(share) else DASH


def sentence(measure: Measure, shares: Shares, gap: str) -> str:
    """How much each method hands on; ``gap`` is said where there is nothing to divide by."""
    verb = "is" if measure.sentence.startswith("is ") else "does"
    alike = f", as its teacher {verb}" if measure.of == "network" else ""
    found = {word(share) for share in shares.values()}
    if found in ({NO_GAP}, {UNCERTAIN_GAP}):
        differences = {arm: share.difference.format() for arm, share in shares.items()}
        plain = "; ".join(f"{short(arm)} minus alone {each}" for arm, each in differences.items())
        says = f"{plain}. For a share of the way there is {found.pop()} ({gap})"
    else:
        says = _clauses(shares) or "no way of teaching was compared"
    return f"A student {measure.sentence}{alike}: {says}."


def _clauses(shares: Shares) -> str:
    """One for each method; the verb stands with the first that hands on anything."""
    said, verb, of = [], " hands on", " of it"
    for arm, share in shares.items():
        much = word(share)
        if share.ratio is None or much == CANNOT_TELL:
            plain = "" if share.ratio else number(share)
            said.append(f"{short(arm)}: {much}{plain and ', '}{plain}")
        else:
            part = of if much in ("most", "part") else ""
            said.append(f"{short(arm)}{verb} {much}{part}, {number(share)}")
            verb = of = ""
    return "; ".join(said)


def how_to_read(shares: Shares, end: str, elsewhere: bool, silent: bool) -> str:
    """How to read the table of an answer, with what of it is there."""
    divided = [share.ratio is not None for share in shares.values()]
    far = "its teacher" if end == "teacher" else f"the {short(end).lower()}"
    parts = {
        "In brackets: 95% intervals": True,
        f"of the gap: the way from one trained alone (0) to {far} (1)": any(divided),
        "difference: minus one trained alone": not all(divided),
        "a word holds for all of its interval": any(divided),
        "no other run of this is published": not elsewhere,
        f"{DASH}: the paper says nothing of it": silent,
    }
    return f"<small>{'; '.join(part for part, applies in parts.items() if applies)}.</small>"


def contradict(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two answers cannot both be: intervals on two sides of zero, or none and some."""
    if None in (one["low"], one["high"], other["low"], other["high"]):
        return False
    sides = [int(each["low"] > 0) - int(each["high"] < 0) for each in (one, other)]
    words = {one["word"], other["word"]}
    some_and_none = "none to speak of" in words and len(words) > 1 and any(sides)
    return sides[0] * sides[1] < 0 or some_and_none


def lessons(shares: Shares, end: str) -> str:
    """What the words come to for a student of the arm ``end``, one sentence for each word."""
    there = {"teacher": "its teacher", "second-teacher": "a teacher of the same kind"}
    far = there.get(end, short(end))
    methods = _by({arm: word(share) for arm, share in shares.items()})
    said = {word: LESSONS[word].format(end=far) for word in methods}
    return " ".join(f"{' and '.join(who)}: {said[word]}." for word, who in methods.items())


def _by(of_arms: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the arms by what is said of them."""
    found: dict[str, list[str]] = {}
    for arm, said in of_arms.items():
        found.setdefault(said, []).append(short(arm))
    return found


def how_sure(
    shares: Shares,
    seeds: Mapping[str, list[int]],
    teachers: Mapping[str, int],
    items: pd.DataFrame,
    called: str,
) -> str:
    """What the intervals are made of, what makes them as wide as they are, what they leave out.

    seeds: of the students of each method; teachers: how many there are of each kind; items: the
    outcomes of single images, or of what else they are ``called``.
    """
    students = ", ".join(f"{len(mine)} {short(arm)}" for arm, mine in seeds.items()) or "none"
    known = sorted({seed for mine in seeds.values() for seed in mine})
    if known:
        span = f"seeds {known[0]} to {known[-1]}" if len(known) > 1 else f"seed {known[0]}"
        students += f" ({span})"
    made = [f"students: {students}"]
    made += [f"{short(arm).lower()}s: {count}" for arm, count in teachers.items()]
    images = items["item"].nunique() if len(items) else 0
    made.append(f"test {called}: {images:,}" if images else f"no single {called}, so seeds alone")
    if images and (originals := items["source"].nunique()) < images:
        made[-1] += f", made from {originals:,} originals"
    widest = {arm: share.ratio or share.difference for arm, share in shares.items()}
    causes = _by({arm: _limit(found, called) for arm, found in widest.items()})
    limits = "; ".join(f"{cause} ({', '.join(arms)})" for cause, arms in causes.items() if cause)
    return (
        f"**How sure?** Behind the intervals: {'; '.join(made)}. "
        + (f"What limits them most: {limits}. " if limits else "")
        + "They do not cover another teacher, other training images or another machine."
    )


def _limit(found: stats.Interval, called: str) -> str:
    """What makes an interval as wide as it is; nothing where there is none."""
    if found.n < 2:
        return "there being one student only" if found.n else ""
    of_images = found.item_standard_error**2
    differ = found.standard_error**2 - of_images > of_images
    return "how students of different seeds differ" if differ else f"which {called} were tested"


# --- claims -----------------------------------------------------------------------------------

_CONDITIONS = {
    "domain=orig": "plain digits",
    "domain=color": "coloured grounds",
    "domain=m": "digits blended into pictures",
    "folder=photo": "photos",
    "pair=vit-cnn": "ViT to CNN",
    "of=follows_digit": "the cue followed",
    "of=fooling_rate": "being fooled",
    "cast=fair": "fair teacher",
}


def asked(claim: Mapping[str, Any]) -> str:
    """What decides a claim, in the words of the measure that it is about.

    ``Is fooled by the same images (share): KL minus alone lies above 0.``
    """
    name, condition = claim["measure"], claim["condition"]
    try:
        measure = probes.check_measure(name, condition)
    except RequestError:  # a saved claim may be about what is measured no more
        measure = Measure(name, name.replace("_", " "), unit="")
    arm, reference = short(claim["arm"]), claim["reference"]
    other = _called(reference) if isinstance(reference, str) else format_number(reference)
    what = f"{arm} minus {other}"
    if claim["kind"] == "gap closed":
        what = f"the share of the way from {other} to {_called(claim['ceiling'])} that {arm} goes"
    if (same := claim["equivalence_margin"]) is not None:
        lies = f"between -{format_number(same)} and {format_number(same)}"
    else:
        margin = format_number(claim["margin"]) if claim["margin"] else "0"
        lies = f"{'above' if claim['direction'] == 'greater' else 'below'} {margin}"
    about = f"{measure.sentence[0].upper()}{measure.sentence[1:]}"
    about += _where(condition, measure.condition) + (f" ({measure.unit})" if measure.unit else "")
    return f"{about}: {what} lies {lies}."


def _called(arm: str) -> str:
    """An arm as what another is compared with."""
    return "alone" if arm == "independent" else short(arm)


def _where(condition: str, usual: str) -> str:
    """A condition in words, without what is understood."""
    factors = [each for each in condition.split(",") if each and each not in usual.split(",")]
    words = [
        _CONDITIONS.get(each) or re.sub("[-_=]", " ", each).strip()
        for each in factors
        if not each.endswith("=primary")
    ]
    return f" [{', '.join(words)}]" if words else ""
