"""The book's figures: one style, one palette, and one look for each arm in all of them.

They are drawn from tidy tables (columns arm, seed, condition, measure, value) and have no titles:
the caption under a figure says what it shows.
"""

import importlib
from typing import Any

from kdnotes.figures import looks as looks
from kdnotes.figures.looks import VERDICTS as VERDICTS
from kdnotes.figures.looks import colour as colour
from kdnotes.figures.looks import label as label

# Arms are declared where nothing is drawn: what needs pandas and matplotlib comes when it is used.
_HOMES = {
    "drawing": ["SMALL_FONT_SIZE", "WIDTH", "name_axes", "style", "subplots"],
    "tables": ["NOTHING", "brief", "markdown_table", "number"],
    "rows": ["closed", "grouped", "panels", "points"],
    "curves": ["curve", "doses", "gains", "paired", "plane"],
    "grids": ["heatmap", "image_grid", "versions"],
    "casts": ["Kind", "taught"],
    "cover": ["Row", "inherited"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["VERDICTS", "colour", "label", "looks", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
