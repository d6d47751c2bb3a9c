"""One module per property: a cast and data in, a tidy table out, and what it measures declared.

Modules are found by looking into this folder; reading all declarations does not import torch.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.probes.base import Measure, Property

_MODULES = tuple(module.name for module in pkgutil.iter_modules(__path__))
__all__ = [*_MODULES, "check_measure", "measures", "properties"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def properties() -> tuple[Property, ...]:
    """What every module of this folder declares as its ``PROPERTY``, in the order of reports."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in _MODULES)
    declared = (module.PROPERTY for module in modules if hasattr(module, "PROPERTY"))
    return tuple(sorted(declared, key=lambda each: each.rank))


def measures() -> tuple[Measure, ...]:
    """Every measure of every property, in the order of reports."""
    return tuple(measure for each in properties() for measure in each.measures)


def check_measure(name: str, condition: str = "") -> Measure:
    """The measure of a name that is declared for a condition, the one that is mainly so first.

    Raises RequestError, naming the measures or conditions that come near, where there is none.
    """
    declared = [measure for measure in measures() if measure.name == name]
    if not declared:
        known = sorted({measure.name for measure in measures()})
        near = difflib.get_close_matches(name, known, n=3) or known
        raise RequestError(f"no probe measures {name!r}; declared: {', '.join(near)}")
    fitting = [measure for measure in declared if measure.is_measured_under(condition)]
    if not fitting:
        under = (each for measure in declared for each in (measure.condition, *measure.others))
        raise RequestError(
            f"{name!r} is not measured under {condition!r}; it is under "
            f"{', '.join(map(repr, dict.fromkeys(under)))}, and under these after cast=NAME or "
            "pair=NAME"
        )
    mainly = [each for each in fitting if replace(each, others=()).is_measured_under(condition)]
    exactly = [each for each in mainly if each.condition == condition]
    return (*exactly, *mainly, *fitting)[0]
