"""Ways of teaching: one file each, found by looking into this folder and at entry points."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from kdnotes.errors import RequestError
from kdnotes.methods import controls
from kdnotes.methods.base import Batch, Method, Outputs, code_mark, source_file

GROUP = "kdnotes.methods"

__all__ = [
    "GROUP",
    "Batch",
    "Method",
    "Outputs",
    "by_default",
    "code_mark",
    "controls",
    "from_settings",
    "get",
    "known",
    "source_file",
]


@lru_cache(maxsize=1)
def known() -> Mapping[str, type[Method]]:
    """All methods by name: those of this folder in order of their ``order``, then others'.

    Raises RequestError where two have one name.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in entry_points(group=GROUP):
        entry.load()
    found: dict[str, type[Method]] = {}
    for method in _subclasses(Method):
        if method.name in found:
            raise RequestError(
                f"two methods are called {method.name!r}: {source_file(found[method.name])} and "
                f"{source_file(method)}"
            )
        found[method.name] = method
    return dict(sorted(found.items(), key=lambda item: (not item[1].by_default, item[1].rank)))


def by_default() -> tuple[str, ...]:
    """Names of the methods that chapters compare when none are named."""
    return tuple(name for name, method in known().items() if method.by_default)


def get(name: str) -> type[Method]:
    """The method of a name. Raises RequestError, naming those there are."""
    if name not in known():
        near = difflib.get_close_matches(name, known(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RequestError(f"unknown method {name!r}{hint}; known: {', '.join(known())}")
    return known()[name]


def from_settings(settings: Mapping[str, Any]) -> Method:
    """A method from what it was written down as: its name and its settings."""
    values = dict(settings)
    return get(values.pop("name")).model_validate(values)


def _subclasses(of: type[Method]) -> list[type[Method]]:
    direct = of.__subclasses__()
    return [*direct, *(deeper for each in direct for deeper in _subclasses(each))]
