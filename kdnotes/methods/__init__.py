"""Ways of teaching: one file each, found by looking into this folder and at entry points."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kdnotes.errors import RequestError
from kdnotes.methods import controls
from kdnotes.methods.base import Batch, Group, Method, Outputs
from kdnotes.store import checksum

GROUP = "kdnotes.methods"  # of entry points, by which other packages add theirs

__all__ = ["Batch", "Group", "Method", "Outputs", "controls"]


@lru_cache(maxsize=1)
def known() -> Mapping[str, type[Method]]:
    """All methods by name, the default ones first, by ``rank``; RequestError for unusable ones."""
    found: dict[str, type[Method]] = {}
    for method in _declared():
        if method.name in found:
            both = f"{found[method.name].__module__} and {method.__module__}"
            raise RequestError(f"two methods are called {method.name!r}: in {both}")
        found[method.name] = method
    return dict(sorted(found.items(), key=lambda item: (not item[1].by_default, item[1].rank)))


def _declared() -> Iterator[type[Method]]:
    for file in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(importlib.import_module(file.name)).values():
            if _is_method(value) and value.__module__ == file.name:
                yield value
    for entry in entry_points(group=GROUP):
        if not _is_method(value := entry.load()):
            raise RequestError(f"{entry.value}, an entry point of {GROUP}, is no class of a method")
        yield value


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


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
    return get(str(values.pop("name", ""))).model_validate(values)


@lru_cache
def code_mark(method: type[Method]) -> str:
    """Hash of a method's file: edits train its students again; RequestError if not `known`."""
    if known().get(method.name) is not method:
        raise RequestError(
            f"method {method.name!r} is a class of {method.__module__!r}, where the processes that "
            "train cannot find it (they see no notebook); write it into a file in kdnotes/methods, "
            f"or into a package of yours with an entry point in the group {GROUP}"
        )
    return checksum(Path(inspect.getfile(method)))[:16]
