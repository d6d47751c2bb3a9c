"""The cover: what a student inherits, a row for each property, with all ways of teaching."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnotes.figures import drawing, looks
from kdnotes.stats.words import CANNOT_TELL, brief

Answer = Mapping[str, Any]  # word, amount, share, estimate, low, high: see `Findings.answers`


@dataclass(frozen=True)
class Row:
    """A property: what ends "A student ...", in which world, and each method's answer.

    ``elsewhere``: the word on other images, by their name; ``note``: the mark of a footnote.
    """

    sentence: str
    world: str
    methods: Mapping[str, Answer]
    elsewhere: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True)
class _Page:
    """Where things are, in pixels; on a narrow page names stand above the bars."""

    width: int
    left: int  # of the bars
    right: int
    words: int
    there: int
    top: int
    each: int  # from one row to the next
    bars: tuple[int, int]  # depth of the first bar within its row, and from one to the next
    names: int  # depth of the name within its row
    size: int  # of text
    narrow: bool = False
    low: float = -0.2  # the shares at the ends of the scale
    high: float = 1.1

    def at(self, share: float) -> float:
        """The place of a share, that of the nearer end where it lies beyond."""
        inside = min(max(share, self.low), self.high)
        return self.left + (inside - self.low) / (self.high - self.low) * (self.right - self.left)

    @property
    def names_at(self) -> tuple[str, int]:
        """How the names of the rows are aligned, and at which place."""
        return ("left", self.left) if self.narrow else ("right", self.left - 18)


_WIDE = _Page(1400, 490, 920, 945, 1180, 84, 50, (12, 13), 18, 22)
_ALONE = _Page(1400, 490, 1130, 1160, 0, 84, 50, (12, 13), 18, 22)  # nothing known of other images
_NARROW = _Page(780, 40, 740, 740, 40, 130, 154, (84, 17), 24, 30, narrow=True)
_LOWEST, _HIGHEST = -0.6, 1.4  # intervals that reach further end in an arrow
_FADED = "#767676"  # the lightest grey that is legible on white


@drawing.styled
def inherited(
    rows: Sequence[Row], arms: Sequence[str], notes: Sequence[str], narrow: bool = False
) -> Figure:
    """A row per property, in the given order, with the share of the gap of each of the arms.

    The first arm's word stands beside it: bold, or grey where nobody can tell. A mark is hollow
    where the answer is open. ``notes`` are written below; ``narrow``: for a phone.
    """
    page = _NARROW if narrow else _WIDE if any(row.elsewhere for row in rows) else _ALONE
    letters = int((page.width - 60) / (page.size - 5) * 1.75)
    wrapped = [line for note in notes for line in textwrap.wrap(note, letters)]
    bottom = page.top + page.each * len(rows)
    legend, first_note = bottom + (120 if narrow else 88), bottom + (212 if narrow else 124)
    *depths, height = (first_note + (page.size + 4) * line for line in range(len(wrapped) + 1))
    figure = plt.figure(figsize=(page.width / 100, height / 100), dpi=100, layout="none")
    plt.close(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, page.width), ylim=(height, 0))
    axis.set_axis_off()
    shares = [each for row in rows for each in row.methods.values() if each["share"]]
    ends = [each[end] for each in shares for end in ("low", "high")]
    low, high = max(_LOWEST, min([page.low, *ends])), min(_HIGHEST, max([page.high, *ends]))
    page = replace(page, low=low, high=high)
    for number, row in enumerate(rows):
        _draw_row(axis, page, row, page.top + number * page.each, arms, shaded=number % 2 == 0)
    _draw_frame(axis, page, bottom, looks.of(arms[0]).short if arms else "")
    _legend(axis, page, legend, arms)
    for depth, line in zip(depths, wrapped, strict=True):
        _text(axis, 40 if narrow else 20, depth, line, page.size - 5, color="#444444")
    return figure


def _text(axis: Axes, x: float, y: float, text: str, size: float, **options: Any) -> None:
    """Text ``size`` pixels high, centred at a depth."""
    axis.text(x, y, text, **{"size": size * 0.72, "va": "center", "linespacing": 1.1, **options})


def _draw_row(
    axis: Axes, page: _Page, row: Row, top: float, arms: Sequence[str], shaded: bool
) -> None:
    narrow = page.narrow
    if shaded:
        span = (0, page.width) if narrow else (page.left - 6, page.right + 6)
        axis.fill_between(span, top, top + page.each, color="#F1F3F5", linewidth=0, zorder=0)
    divided = any(found["share"] for found in row.methods.values())
    for share in (0, 1) if divided else (0,):  # where there is no gap there is no other end
        reach = (top + page.bars[0] - 14, top + 128) if narrow else (top, top + page.each)
        axis.plot([page.at(share)] * 2, reach, color="#555555", lw=1.8, zorder=1)
    side, at = page.names_at
    below = top + page.names + 0.95 * page.size + (8 if narrow else 0)
    there = [f"{brief(word)} ({name})" for name, word in row.elsewhere.items()]
    _text(axis, at, top + page.names, row.sentence, page.size, ha=side)
    _text(axis, at, below, row.world, page.size - 6, ha=side, color=_FADED)
    first = row.methods[arms[0]]
    sure = first["share"] and first["word"] != CANNOT_TELL
    style = {"weight": "bold"} if sure else {"color": _FADED}
    said = brief(first["word"]) if narrow else textwrap.fill(brief(first["word"]), 16)
    size, middle = page.size - min(2 * said.count("\n"), 4), top + page.each / 2
    style["ha"] = "right" if narrow else "left"
    _text(axis, page.words, below if narrow else middle, said + row.note, size, **style)
    if narrow:
        others = f"on other images: {', '.join(there)}" if there else ""
        small = min(page.size - 6, (page.right - at) / (0.6 * max(len(others), 1)))
        _text(axis, at, top + page.each - 11, others, small, color="#333333")
    elif page.there:
        small = page.size - 3 - 2 * len(there)
        _text(axis, page.there, middle, "\n".join(there), small, color="#333333")
    if divided:
        for place, arm in enumerate(arms):
            _draw_mark(axis, page, arm, row.methods.get(arm), top + place * page.bars[1])
    else:
        _say_differences(axis, page, row, arms, top)


def _say_differences(axis: Axes, page: _Page, row: Row, arms: Sequence[str], top: float) -> None:
    """Where no method has a share of a gap: the plain differences, in words."""
    measured = {arm: row.methods[arm]["amount"] for arm in arms if arm in row.methods}
    said = [
        f"{looks.of(arm).short} {amount.partition(' (')[0].partition(' ')[2]}".replace(" ", "\xa0")
        for arm, amount in measured.items()
    ]
    text = textwrap.fill(f"minus alone: {', '.join(said)}", 44).replace("\xa0", " ")
    middle = top + (page.bars[0] + 16.0 if page.narrow else page.each / 2)
    _text(axis, page.at(0) + 14, middle, text, page.size - 6, color=_FADED, gid="differences")


def _draw_mark(axis: Axes, page: _Page, arm: str, found: Answer | None, top: float) -> None:
    if found is None or not found["share"]:
        return
    look, size, at = looks.of(arm), 0.72 * page.bars[1], top + page.bars[0]
    for end, pointing in (("low", "<"), ("high", ">")):
        if not page.low <= found[end] <= page.high:
            axis.plot(page.at(found[end]), at, pointing, color=look.colour, ms=6)
    span = [page.at(found["low"]), page.at(found["high"])]
    axis.plot(span, [at, at], color=look.colour, alpha=0.55, lw=size / 3, solid_capstyle="butt")
    if page.low <= found["estimate"] <= page.high:
        hollow = found["word"] == CANNOT_TELL
        face, edge = ("white", look.colour) if hollow else (look.colour, "white")
        drawn: dict[str, Any] = {"ms": size, "mfc": face, "mec": edge, "mew": 1.3, "gid": arm}
        axis.plot(page.at(found["estimate"]), at, look.marker, **drawn)


def _draw_frame(axis: Axes, page: _Page, bottom: float, first: str) -> None:
    narrow, small, above = page.narrow, page.size - 4, page.top - 36
    for share, name in ((0.0, "trained\nalone"), (1.0, "like the\nteacher")):
        _text(axis, page.at(share), above, name, page.size - 3, ha="center")
    for share, name in ((0.0, "0"), (0.5, ".5"), (1.0, "1")):
        _text(axis, page.at(share), bottom + 20, name, small, ha="center")
    what = "share of the way from a student trained alone to its teacher"
    middle, depth = (page.left + page.right) / 2, bottom + (60 if narrow else 46)
    _text(axis, middle, depth, textwrap.fill(what, 44 if narrow else 80), small - 1, ha="center")
    side, at = page.names_at
    over = 28 if narrow else above + 12
    _text(axis, at, over, "A student ...", page.size, ha=side, style="italic")
    hands = f"{first} hands on ..."
    if narrow:
        _text(axis, page.words, over, hands, page.size, ha="right", style="italic")
        return
    _text(axis, page.words, above, textwrap.fill(hands, 9), page.size - 3)
    if page.there:
        _text(axis, page.there, above, "on other\nimages", page.size - 3)


def _legend(axis: Axes, page: _Page, at: float, arms: Sequence[str]) -> None:
    """A mark and a name for each arm, and what a hollow mark is, in a line or two."""
    shown = [(look.marker, look.colour, look.colour, look.label) for look in map(looks.of, arms)]
    shown.append(("o", "white", _FADED, "hollow: cannot tell"))
    columns = 2 if page.narrow else len(shown)
    wide = (page.width - 60) / columns
    for number, (marker, face, edge, name) in enumerate(shown):
        x, y = 45 + number % columns * wide, at + 40 * (number // columns)
        axis.plot(x, y, marker, ms=11, mfc=face, mec=edge)
        _text(axis, x + 18, y, name, page.size - 4)
