"""Images with known factors: drawn scenes, digits, folders, torchvision's sets, and their views.

Each data set declares itself in a file of `sources`, and nothing else lists them. Importing this,
and planning with it, does not import torch; making or reading images does.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from kdnotes.data import sources
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.store import checksum

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_PREFIX = "imagefolder:"
TEST_SOURCE_OFFSET = 1_000_000_000  # first source of files' test splits: train and test share none

# --- which images, and what they are ------------------------------------------------------------


class Strict(BaseModel):
    """Values that stay as they are, of which none is misspelt: other fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(Strict):
    """Which images: enough to make the same ones again, and to name them in a cache key.

    ``name``: that of a source, for some with a path behind a colon. ``count`` None: all there are.
    ``fingerprint``: names the content of the files behind it.
    """

    name: str
    split: Literal["train", "test"]
    count: int | None = None
    seed: int = 0
    options: dict[str, Any] = {}
    fingerprint: str = ""

    def identity(self) -> dict[str, Any]:
        """What decides which images these are; where a folder lies does not."""
        values = self.model_dump()
        source, colon, _ = self.name.partition(":")
        if colon and self.fingerprint:
            values |= {"name": source, "options": {}}  # path and options are in the fingerprint
        return values

    def key(self) -> str:
        """Content hash of the specification."""
        return checksum(json.dumps(self.identity(), sort_keys=True).encode())[:16]


@dataclass(frozen=True)
class ImageData:
    """Images with everything that is known about them.

    images: uint8 (N, 3, H, W), or a streaming source of such; labels: int64 (N,); sources: int64
    (N,), the glyph or photo an image was made from, the unit that intervals resample; factors: per
    image (N,), such as the digit drawn; masks: bool (N, H, W), such as where the digit is; names:
    what the numbers of a factor stand for, where the data say so.
    """

    images: Any
    labels: Tensor
    classes: tuple[str, ...]
    sources: Tensor
    factors: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, uint8 (n, 3, H, W)."""
        return self.images[indices]

    def subset(self, indices: Tensor) -> ImageData:
        """The same data set reduced to the indices, held in memory."""
        return _rows([self], lambda parts: parts[0][indices])

    def sample(self, count: int, seed: int) -> ImageData:
        """As many images, chosen by the seed, in their order; all where there are no more."""
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count].sort().values)

    @property
    def size(self) -> int:
        """Side of the (square) images in pixels."""
        return int(self.batch(torch.tensor([0])).shape[-1])


def joined(parts: Sequence[ImageData]) -> ImageData:
    """Data sets of one kind, held in memory, one after the other."""
    return _rows(parts, torch.cat)


def _rows(parts: Sequence[ImageData], merge: Callable[[list[Any]], Tensor]) -> ImageData:
    """Data sets of one kind as one: what ``merge`` makes of each of their tensors."""
    first = parts[0]
    own: dict[str, Any] = {
        each: merge([getattr(part, each) for part in parts])
        for each in ("images", "labels", "sources")
    }
    for each in ("factors", "masks"):
        names = getattr(first, each)
        own[each] = {name: merge([getattr(part, each)[name] for part in parts]) for name in names}
    return replace(first, **own)


@dataclass(frozen=True)
class PerImage:
    """Tensors with one row per image; indexing picks the same images in all of them."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, indices: Tensor | slice) -> Self:
        rows = {each.name: getattr(self, each.name)[indices] for each in fields(self)}
        return replace(self, **rows)


# --- data sets by name --------------------------------------------------------------------------


class NoOptions(Strict):
    """Of a data set that can be had in one way only."""


@dataclass(frozen=True)
class Source:
    """A data set: what is known without reading it, and how to get it. Must not import torch.

    name: with ``takes_path`` a path follows it behind a colon, with ``takes_list`` may follow a CSV
    of the files to take (split, file). load: images from a specification, its checked options and a
    data folder (None: the default one); fingerprint: from the same a name of the content behind
    them, for cache keys. options: the model that checks them. classes: None where only the files
    tell. mirrored: whether training images may be. drawn: made on request, as many as asked for; of
    others a part is taken. size: side of its images in pixels, unless an option says it. about:
    rough number of training images, for estimates of time.
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
    modules = pkgutil.iter_modules(sources.__path__, f"{sources.__name__}.")
    declared = [importlib.import_module(module.name).SOURCES for module in modules]
    declared += [point.load() for point in entry_points(group="kdnotes.data")]  # of other packages
    return {each.name: each for each in chain(*declared)}


def names() -> tuple[str, ...]:
    """The names that `load` understands."""
    return tuple(f"{name}:PATH" if of.takes_path else name for name, of in _sources().items())


def source(name: str) -> Source:
    """The data set that a name such as ``imagefolder:PATH`` stands for; RequestError if none."""
    first, colon, _ = name.partition(":")
    found = _sources().get(first)
    if found is None or (found.takes_path != bool(colon) and not (colon and found.takes_list)):
        raise RequestError(f"unknown data set {name!r}; known: {', '.join(names())}")
    return found


def with_fingerprint(spec: DataSpec, data_dir: Path | None) -> DataSpec:
    """The specification with its files' content named, for keys; RequestError as `load`."""
    found = source(spec.name)
    mark = found.fingerprint(spec, found.checked(spec.options), data_dir)
    return spec.model_copy(update={"fingerprint": mark})


def load(spec: DataSpec, data_dir: Path | None = None) -> ImageData:
    """Make or read images; RequestError for unknown names or options, missing or unusable files."""
    found = source(spec.name)
    data = found.load(spec, found.checked(spec.options), data_dir)
    return data if found.drawn or spec.count is None else data.sample(spec.count, spec.seed)
