"""Data sets by name: each declares itself in a file of `sources`, and nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kdnotes.data import sources
from kdnotes.data.image_data import ImageData
from kdnotes.data.spec import DataSpec, Strict
from kdnotes.errors import RequestError


class NoOptions(Strict):
    """Of a data set that can be had in one way only."""


@dataclass(frozen=True)
class Source:
    """A data set: what is known without reading it, and how to get it.

    name: with ``takes_path`` a path follows it behind a colon, with ``takes_list`` may follow a CSV
    of the files to take (split, file). load: images from a specification,
    its checked options and a data folder (None: the default one); fingerprint: from the same a name
    of the content behind them, for cache keys. options: the model that checks them. classes: their
    names, None where only the files tell. mirrored: whether training images may be mirrored. drawn:
    made on request, as many as asked for, with every factor known; of other data sets that have
    more images, a part is taken. size: side of its images in pixels, unless an option of that name
    says it. about: how many training images there are where no number is asked for, roughly, for
    estimates of time. Declaring one must not import torch: load does.
    """

    name: str
    load: Callable[[DataSpec, Any, Path | None], ImageData]
    fingerprint: Callable[[DataSpec, Any, Path | None], str]
    options: type[BaseModel] = NoOptions
    classes: tuple[str, ...] | None = None
    mirrored: bool = False
    drawn: bool = False
    takes_path: bool = False
    takes_list: bool = False
    size: int = 32
    about: int = 50_000

    def checked(self, options: dict[str, Any]) -> Any:
        """The options as this source's model. Raises RequestError naming what is known."""
        try:
            return self.options(**options)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, one['loc']))}: "
                + ("no such option" if one["type"] == "extra_forbidden" else one["msg"])
                for one in error.errors()
            )
            known = ", ".join(self.options.model_fields) or "none"
            raise RequestError(f"options of {self.name}: {wrong} (known: {known})") from error


@lru_cache(maxsize=1)
def _sources() -> dict[str, Source]:
    found: list[Source] = []
    for module in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        found += importlib.import_module(module.name).SOURCES
    for point in entry_points(group="kdnotes.data"):  # those of other packages
        found += point.load()
    return {each.name: each for each in found}


def names() -> tuple[str, ...]:
    """The names that `load` understands."""
    return tuple(
        f"{each.name}:PATH" if each.takes_path else each.name for each in _sources().values()
    )


def source(name: str) -> Source:
    """The data set that a name, such as ``scenes`` or ``imagefolder:PATH``, stands for.

    Raises RequestError where there is none.
    """
    first, colon, _ = name.partition(":")
    found = _sources().get(first)
    if found is None or (found.takes_path != bool(colon) and not (colon and found.takes_list)):
        raise RequestError(f"unknown data set {name!r}; known: {', '.join(names())}")
    return found


def with_fingerprint(spec: DataSpec, data_dir: Path | None) -> DataSpec:
    """The specification with the content of its files named, so that changed files change keys.

    Raises RequestError as `load`, except for damage inside files.
    """
    found = source(spec.name)
    mark = found.fingerprint(spec, found.checked(spec.options), data_dir)
    return spec.model_copy(update={"fingerprint": mark})


def load(spec: DataSpec, data_dir: Path | None = None) -> ImageData:
    """Make or read the images of a specification.

    Raises RequestError when name or options are unknown or the files are missing or unusable.
    """
    found = source(spec.name)
    data = found.load(spec, found.checked(spec.options), data_dir)
    return data if found.drawn or spec.count is None else data.sample(spec.count, spec.seed)
