"""Helper package of the book "What does the student inherit?".

Submodules are imported when first touched, so that ``import kdnotes as kd`` costs nothing.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "book",
    "cast",
    "chapter",
    "claims",
    "data",
    "models",
    "objectives",
    "plots",
    "probes",
    "results",
    "stats",
    "study",
    "train",
    "transforms",
    "zoo",
)
__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
