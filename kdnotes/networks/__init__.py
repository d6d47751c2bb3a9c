"""Networks: building them, and reading what they compute on the way."""

from __future__ import annotations

import pkgutil
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
    from kdnotes.networks.features import *  # noqa: F403
    from kdnotes.networks.weights import *  # noqa: F403
    from kdnotes.networks.wrapping import *  # noqa: F403

# Found when first asked for: torch and timm take seconds, which planning need not pay.
_HOMES = {
    "features": "differentiable features_at features_of forward_with_features hint_layer tapped "
    "taps",
    "weights": "Opened load_published open_network",
    "wrapping": "Composite Normalized example freeze",
}
__all__ = ["PRESET_NETS", "TRAINED_HERE", "build", "check_name", "map_sides", "multiply_adds"]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            return pkgutil.resolve_name(f"{__name__}.{module}:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
