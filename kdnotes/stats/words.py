"""The words for shares and verdicts, and the writing of numbers: the same in text and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["greater", "less", "equivalent"]
VerdictLabel = Literal["agrees", "disagrees", "open", "not applicable"]

# The symbol that stands for each word where space is short.
VERDICTS: dict[VerdictLabel, str] = {
    "agrees": "\N{CHECK MARK}",
    "disagrees": "\N{BALLOT X}",
    "open": "?",
    "not applicable": "\N{EN DASH}",
}

NEGLIGIBLE = 0.15  # a share whose interval lies within plus or minus this is none to speak of
CANNOT_TELL = "cannot tell"
NO_GAP = "no gap to close"
UNCERTAIN_GAP = "a gap too small or too uncertain to divide by"


def brief(word: str) -> str:
    """A word for how much where there is little room."""
    return "gap too small" if word == UNCERTAIN_GAP else word


def how_much(low: float, high: float) -> str:
    """How much was inherited, by the 95% interval of a share of the gap: the first that fits."""
    ladder = {
        "the opposite": high < 0,
        "none to speak of": low > -NEGLIGIBLE and high < NEGLIGIBLE,
        "most": low > 0.5,
        "part": low > NEGLIGIBLE,
        "a little": low > 0 and high < 0.5,
        "some, how much is open": low > 0,
    }
    known = math.isfinite(low) and math.isfinite(high)
    return next((word for word, fits in ladder.items() if known and fits), CANNOT_TELL)


def format_number(value: float, digits: int = 2) -> str:
    """Fixed decimals without the zero before the point: ``.38``, ``-.05``, ``1.20``."""
    if not math.isfinite(value):
        return "not defined"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
