"""One module per property: a cast and data in, a tidy table out."""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBMODULES = ("adversarial", "color_invariance", "fidelity", "localization", "outcome")
__all__ = list(_SUBMODULES)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
