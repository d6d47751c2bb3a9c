"""Helper package of the book "What does the student inherit?"; submodules load when touched."""

from __future__ import annotations

import pkgutil
import warnings
from typing import Any

__version__ = "0.1.0"

# Libraries that timm and rich bring along ask for ipywidgets as soon as they are in a notebook, and
# a warning on a page of the book fails its build.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message='install "ipywidgets" for Jupyter support')

# Where each name lies: a module, or an attribute of one behind a colon.
_WHERE = {
    **{wing: f"kdnotes.{wing}" for wing in ("audit", "data", "figures", "methods", "networks")},
    **{wing: f"kdnotes.{wing}" for wing in ("paths", "probes", "stats", "study", "training")},
    "arms": "kdnotes.study.arms",
    "claims": "kdnotes.stats.claims",
    "cover": "kdnotes.book.cover",
    "report": "kdnotes.book.report",
    "results": "kdnotes.book.results",
    "running": "kdnotes.book.running",
    "ColorJitter": "kdnotes.data.views:ColorJitter",
    "Crops": "kdnotes.data.views:Crops",
    "cast": "kdnotes.audit:cast",
    "images": "kdnotes.audit:images",
    "measure": "kdnotes.audit:measure",
    "begin": "kdnotes.book.running:begin",
    "trained": "kdnotes.book.running:trained",
    "conclude": "kdnotes.book.report:conclude",
    "finish": "kdnotes.book.report:finish",
    "independent": "kdnotes.study.arms:INDEPENDENT",
    "Findings": "kdnotes.probes.findings:Findings",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(_WHERE[name])


def __dir__() -> list[str]:
    return sorted(__all__)
