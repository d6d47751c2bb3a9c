"""The words for verdicts and the writing of numbers, the same in text and figures."""

from __future__ import annotations

import math
from typing import Literal

Direction = Literal["greater", "less", "equivalent"]
VerdictLabel = Literal["reproduced", "not reproduced", "inconclusive", "not applicable"]

# The symbol that stands for each word where space is short.
VERDICTS: dict[VerdictLabel, str] = {
    "reproduced": "\N{CHECK MARK}",
    "not reproduced": "\N{BALLOT X}",
    "inconclusive": "?",
    "not applicable": "\N{EN DASH}",
}


def format_number(value: float, digits: int = 2) -> str:
    """Fixed decimals without the zero before the point: ``.38``, ``-.05``, ``1.20``."""
    if not math.isfinite(value):
        return "not defined"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
