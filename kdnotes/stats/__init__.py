"""Intervals, verdicts, and what a set of claims comes to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdnotes.stats.agreement import *  # noqa: F403
    from kdnotes.stats.families import *  # noqa: F403
    from kdnotes.stats.intervals import *  # noqa: F403
    from kdnotes.stats.words import *  # noqa: F403

# Found when first asked for: pandas and scipy take a second, which reading claims need not pay.
_HOMES = {
    "agreement": "agreement_on_wrong_items cohen_kappa error_consistency",
    "families": "PRIMARIES SEEDS_FOR_A_VERDICT Verdict claim_p_values holm p_value primaries"
    " scorecard_verdicts simulate_error_rate verdict with_arms_swapped",
    "intervals": "Interval NOTHING NotMeasuredError SINGLE_NETWORK_ARMS contrast paired_arms"
    " paired_difference t_interval SMALLEST_GAP GapClosed fieller gap_closed",
    "words": "NO_GAP UNCERTAIN_GAP VERDICTS Direction format_number",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
