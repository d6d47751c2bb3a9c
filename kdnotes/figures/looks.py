"""How every arm is named and drawn: whoever makes one declares its look, once.

Nothing that draws is imported, so that arms can be declared where nothing is drawn.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """Names, colour (#RRGGBB), marker and line (matplotlib's) of an arm, hollow if a plain twin."""

    name: str
    label: str
    short: str
    colour: str
    marker: str
    line: Any = "-"
    hollow: bool = False


# The book's palette: the eight colours of Okabe and Ito (2008, "Color Universal Design"), with grey
# for the students without a teacher; green and purple are darkened and yellow is replaced by brown,
# so that all arms of one figure stay apart under red-green blindness and on white.
# An arm that nobody declared draws from here by a checksum of its name: fixed, if not unique.
_SPARE = (("#332288", "h"), ("#882255", "p"), ("#44AA99", "8"), ("#999933", "H"))
_declared: dict[str, Look] = {}


def declare(look: Look) -> None:
    """Give an arm its look; the last word counts, so that a cell can be edited and run again."""
    _declared[look.name] = look


def of(arm: str) -> Look:
    """The look of an arm; one that nobody declared gets a spare one, always the same."""
    if arm in _declared:
        return _declared[arm]
    name = arm.replace("-", " ").capitalize()
    return Look(arm, name, name, *_SPARE[zlib.crc32(arm.encode()) % len(_SPARE)])


def label(arm: str) -> str:
    """Readable name of an arm, such as "KL (soft labels)" for kl."""
    return of(arm).label


def colour(arm: str) -> str:
    """Colour of an arm as #RRGGBB, the same in every figure."""
    return of(arm).colour


def order() -> tuple[str, ...]:
    """All declared arms, in the order of their declaration: that of tables and figures."""
    return tuple(_declared)
