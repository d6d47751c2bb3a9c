"""The book's figures: one style, one palette, and one look for each arm in all of them.

They have no titles: the caption under a figure says what it shows.
"""

import importlib
from typing import Any

from kdnotes.figures import looks as looks

# Arms are declared where nothing is drawn: what needs pandas and matplotlib comes when it is used.
_HOMES = {
    "charts": "closed curve doses gains grouped paired panels plane points",
    "cover": "Row inherited",
    "drawing": "SMALL_FONT_SIZE WIDTH name_axes style subplots",
    "grids": "heatmap image_grid versions",
    "looks": "colour label",
    "tables": "NOTHING brief markdown_table number",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = ["looks", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
