"""How every arm and every verdict is named and drawn, wherever it is seen.

Whoever makes an arm declares its look, once; whoever draws one asks here. Nothing that draws is
imported, so that arms can be declared where nothing is drawn.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """Names, colour (#RRGGBB), marker and line (as matplotlib writes them) of an arm.

    An arm drawn hollow is the plain twin of a filled one.
    """

    label: str
    short: str
    colour: str
    marker: str
    line: Any
    hollow: bool = False


# The colour of each verdict, whose words and signs are those of kdnotes.stats.VERDICTS.
VERDICTS: dict[str, str] = {
    "agrees": "#007F5C",
    "disagrees": "#C04A00",
    "open": "#666666",
    "not applicable": "#666666",
}

# The book's palette: the eight colours of Okabe and Ito (2008, "Color Universal Design"), with grey
# for the students without a teacher; green and purple are darkened and yellow is replaced by brown,
# so that all arms of one figure stay apart under red-green blindness and on white.
# An arm that nobody declared draws from here by a checksum of its name: fixed, if not unique.
_SPARE = (("#332288", "h"), ("#882255", "p"), ("#44AA99", "8"), ("#999933", "H"))

_declared: dict[str, Look] = {}


def declare(arm: str, look: Look) -> None:
    """Give an arm its look; the last word counts, so that a cell can be edited and run again."""
    _declared[arm] = look


def of(arm: str) -> Look:
    """The look of an arm; one that nobody declared gets a spare one, always the same."""
    if arm in _declared:
        return _declared[arm]
    colour, marker = _SPARE[zlib.crc32(arm.encode()) % len(_SPARE)]
    name = arm.replace("-", " ").capitalize()
    return Look(name, name, colour, marker, "-")


def label(arm: str) -> str:
    """Readable name of an arm, such as "KL (soft labels)" for kl."""
    return of(arm).label


def colour(arm: str) -> str:
    """Colour of an arm as #RRGGBB, the same in every figure."""
    return of(arm).colour


def order() -> tuple[str, ...]:
    """All declared arms, in the order of their declaration: that of tables and figures."""
    return tuple(_declared)
