"""One module per property: a cast and data in, a tidy table out."""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBMODULES = (
    "adversarial",
    "architectures",
    "boundaries",
    "color_invariance",
    "crop_shift",
    "cue_bias",
    "domain_accuracy",
    "dose",
    "fidelity",
    "group_accuracy",
    "identifiability",
    "localization",
    "matched",
    "outcome",
    "representations",
    "unseen_domains",
)
__all__ = list(_SUBMODULES)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
