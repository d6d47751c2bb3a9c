"""What a chapter found, as files: a tidy table, per-item outcomes, claims and provenance.

A chapter writes NAME.csv, NAME.items.parquet and NAME.json into one folder, each complete or not at
all, without absolute paths. The JSON comes last and holds the checksums of the others and a seal;
what does not match is refused where it is read.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, field_validator
from pydantic_core import to_json

from kdnotes import paths, store
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.stats import claims as judged_by

if TYPE_CHECKING:
    from kdnotes.probes.base import Outcome

COLUMNS = ("chapter", "arm", "seed", "condition", "measure", "value")
ITEM_COLUMNS = ("item", "source", "arm", "seed", "condition", "prediction", "measure", "value")
# What a claim has at least; one of the book has all that `claims.evaluate` says.
CLAIM_KEYS = ("id", "measure", "estimate", "low", "high", "criterion", "verdict", "paper")
SUFFIXES = (".csv", ".items.parquet", ".json")
_CALLED = {"cifar10": "CIFAR-10", "mnist": "MNIST", "pacs": "PACS", "fairface": "FairFace"}
_CALLED |= {"scenes-of-mnist": "scenes of MNIST"}
# Whose version can change a number in the tables.
PACKAGES = (
    "kdnotes",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "foolbox",
    "torchmetrics",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
)


class Saved(BaseModel):
    """The JSON file of one chapter: claims with verdicts, and what they were made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chapter: str
    claims: list[dict[str, Any]]
    parameters: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    # Not in results of earlier versions.
    hardware: str = "hardware that was not noted"
    training_seconds: float | None = None
    answers: dict[str, Any] = {}  # `Findings.answers`
    command: str = ""
    primaries: str = ""  # `claims.digest` of the claims that it was judged by
    files: dict[str, str] = {}  # checksums of the other files, by ending
    seal: str = ""
    _folder: Path = PrivateAttr()  # that it was read from

    @field_validator("claims")
    @classmethod
    def _whole(cls, claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for claim in claims:
            if lacking := [key for key in CLAIM_KEYS if key not in claim]:
                raise ValueError(f"claim {claim.get('id', claim)!r} lacks {', '.join(lacking)}")
            numbers = [claim[key] for key in ("estimate", "low", "high")]
            words = [claim[key] for key in ("id", "measure", "criterion", "verdict")]
            if not all(isinstance(each, Real | None) for each in numbers):
                raise ValueError(f"claim {claim['id']!r} has {numbers} for numbers")
            if not all(isinstance(each, str) for each in words):
                raise ValueError(f"claim {claim['id']!r} has {words} for texts")
        return claims

    @property
    def table(self) -> pd.DataFrame:
        """The tidy table, columns COLUMNS and those of a sweep. Raises RequestError as `load`."""
        with self._proved(".csv") as path:
            read = pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})
            if not {"arm", "condition", "measure"} < set(read.columns):
                raise KeyError("columns")
            return read.astype({"value": float})

    @property
    def items(self) -> pd.DataFrame:
        """Outcomes of single images, columns ITEM_COLUMNS. Raises RequestError as `load`."""
        with self._proved(".items.parquet") as path:
            return pd.read_parquet(path)

    @property
    def outcome(self) -> Outcome:
        """Table and items, as probes gave them; without items where they were not kept."""
        from kdnotes.probes.base import Outcome

        kept = (self._folder / f"{self.chapter}.items.parquet").is_file()
        return Outcome(self.table, self.items if kept else Outcome.of_rows([]).items)

    @contextmanager
    def _proved(self, end: str) -> Iterator[Path]:
        """To read a file that is what this one says it is; what cannot be read is damaged."""
        path = _existing(self.chapter, end, self._folder)
        if self.files and self.files.get(end) != store.checksum(path):
            raise damaged(path)
        try:
            yield path
        except (ValueError, KeyError, OSError) as error:  # what pandas raises of anything else
            raise damaged(path) from error

    def write(self, folder: Path) -> None:
        """Write the file and the others' checksums, without absolute paths; not finite is null."""
        text = to_json(self, inf_nan_mode="null", fallback=lambda value: value.tolist())
        content = paths.without_absolute_paths(json.loads(text))
        others = {end: folder / f"{self.chapter}{end}" for end in SUFFIXES if end != ".json"}
        files = {end: store.checksum(path) for end, path in others.items() if path.is_file()}
        store.write_json(folder / f"{self.chapter}.json", content | {"files": files})


def called(images: str) -> str:
    """What readers know the images of a published folder by, such as "scenes of MNIST"."""
    return _CALLED.get(images, images)


def folder() -> Path:
    """Where chapters write: KDNOTES_OUT, or the folder of what is run by hand."""
    return Path(os.environ.get("KDNOTES_OUT") or paths.by_hand_folder())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def hardware(device: str = "cpu") -> str:
    """The processor with its cores and vector instructions, or the graphics card."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {capability}"


def save(
    chapter: str,
    outcome: Outcome | None,
    claims: Iterable[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    seconds: float,
    where: Path | None = None,
    **about: Any,
) -> None:
    """Write a chapter's table, items and claims into a folder (default: `folder`).

    ``outcome`` None: it measured nothing itself; ``about``: as in `Saved`. Raises ValueError when a
    claim is not whole, and KeyError when a column is missing.
    """
    saved = Saved(
        chapter=chapter,
        claims=[dict(claim) for claim in claims],
        parameters=dict(parameters),
        versions=versions(),
        seconds=round(seconds, 2),
        hardware=hardware(parameters.get("device") or "cpu"),
        primaries=judged_by.digest(),
        **about,
    )
    table, items = pd.DataFrame(columns=list(COLUMNS)), pd.DataFrame(columns=list(ITEM_COLUMNS))
    if outcome is not None:
        table = outcome.table.assign(chapter=chapter)[list(COLUMNS)]
        items = outcome.items[list(ITEM_COLUMNS)]
    target = where or folder()
    target.mkdir(parents=True, exist_ok=True)
    with store.appearing(target / f"{chapter}.items.parquet") as path:
        items.to_parquet(path, index=False, compression="zstd")
    with store.appearing(target / f"{chapter}.csv") as path:
        table.to_csv(path, index=False, float_format="%.8g")
    saved.write(target)  # last, because it says that the others are there


def chapters(where: Path | None = None) -> list[str]:
    """Names of the chapters whose results lie in a folder (default: `folder`)."""
    found = (where or folder()).glob("*.json")
    return sorted(path.stem for path in found if not path.name.startswith("."))


def load(chapter: str, where: Path | None = None) -> Saved:
    """What a chapter saved. Raises RequestError when there is nothing, or it was altered."""
    path = _existing(chapter, ".json", where)
    content = path.read_bytes()
    try:
        saved = Saved.model_validate_json(content)
    except ValidationError as error:
        problem = store.first_problem(error)
        raise RequestError(f"{path} is not the result of a chapter: {problem}") from error
    if saved.chapter != chapter:
        raise RequestError(f"{path} is the result of another chapter, {saved.chapter!r}")
    if "seal" in saved.model_fields_set and not store.is_sealed(content):
        raise damaged(path)
    saved._folder = path.parent
    return saved


def runs(chapter: str, folders: Iterable[Path]) -> dict[Path, Saved]:
    """A chapter's runs in the folders that hold one, as `load` reads them."""
    return {each: load(chapter, each) for each in folders if chapter in chapters(each)}


def table(chapter: str, where: Path | None = None) -> pd.DataFrame:
    """`Saved.table` of a chapter's results. Raises as `load` does."""
    return load(chapter, where).table


def items(chapter: str, where: Path | None = None) -> pd.DataFrame:
    """`Saved.items` of a chapter's results. Raises as `load` does."""
    return load(chapter, where).items


def damaged(path: Path) -> RequestError:
    """What to say of a file of results that is not what was saved."""
    return RequestError(f"{path} is damaged: it is not what was saved; run the chapter again")


def _existing(chapter: str, suffix: str, where: Path | None) -> Path:
    path = (where or folder()) / f"{chapter}{suffix}"
    if not path.is_file():
        raise RequestError(f"no results of chapter {chapter!r}: there is no {path}")
    return path
