"""Networks: building them, and reading what they compute on the way."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdnotes.networks.building import (
    PRESET_NETS,
    TRAINED_HERE,
    build,
    check_name,
    map_sides,
    multiply_adds,
)

if TYPE_CHECKING:
    from kdnotes.networks.anatomy import *  # noqa: F403
    from kdnotes.networks.features import *  # noqa: F403
    from kdnotes.networks.weights import *  # noqa: F403
    from kdnotes.networks.wrapping import *  # noqa: F403

# Found when first asked for: torch and timm take seconds, which planning need not pay.
_HOMES = {
    "anatomy": "layout_of",
    "features": "differentiable features_at features_of forward_with_features "
    "hint_layer tapped taps",
    "weights": "Opened load_published open_network",
    "wrapping": "Composite Normalized example freeze logits_once",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = [
    "PRESET_NETS",
    "TRAINED_HERE",
    "build",
    "check_name",
    "map_sides",
    "multiply_adds",
    *_HOME_OF,
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
