"""What a chapter found, as files: a tidy table, per-item outcomes, claims and provenance.

A chapter writes NAME.csv, NAME.items.parquet and NAME.json into one folder. Each file appears
complete or not at all, and none of them holds an absolute path.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import to_json

from kdnotes import paths, store
from kdnotes.errors import RequestError
from kdnotes.stats import claims as judged_by

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.probes.base import Outcome

COLUMNS = ("chapter", "arm", "seed", "condition", "measure", "value")
ITEM_COLUMNS = ("item", "source", "arm", "seed", "condition", "prediction", "measure", "value")
# What a claim has at least; one of the book has all that `claims.evaluate` says.
CLAIM_KEYS = ("id", "measure", "estimate", "low", "high", "criterion", "verdict", "paper")
SUFFIXES = (".csv", ".items.parquet", ".json")
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
    """The JSON file of one chapter: claims with verdicts, and what they were made with.

    ``seconds`` of measuring, ``training_seconds`` of one core behind it.
    """

    model_config = ConfigDict(frozen=True)

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

    @field_validator("claims")
    @classmethod
    def _whole(cls, claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for claim in claims:
            if lacking := [key for key in CLAIM_KEYS if key not in claim]:
                raise ValueError(f"claim {claim.get('id', claim)!r} lacks {', '.join(lacking)}")
        return claims

    def write(self, folder: Path) -> None:
        """Write the file into a folder, without absolute paths; not finite numbers become null."""
        text = to_json(self, inf_nan_mode="null", fallback=lambda value: value.tolist())
        content = paths.without_absolute_paths(json.loads(text))
        store.write_json(folder / f"{self.chapter}.json", content)


def folder() -> Path:
    """Where chapters write: KDNOTES_OUT, or the folder of what is run by hand."""
    return Path(os.environ.get("KDNOTES_OUT") or paths.by_hand_folder())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def hardware(device: str = "cpu") -> str:
    """The processor with its cores and vector instructions, or the graphics card."""
    import torch

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
    training_seconds: float | None = None,
    **about: Any,
) -> None:
    """Write a chapter's table, items and claims into a folder (default: `folder`).

    ``outcome`` None stands for a chapter that measures nothing itself. ``seconds``, and what else
    is told ``about`` the run, as in `Saved`.
    Raises ValueError when a claim is not whole, and KeyError when a column is missing.
    """
    import pandas as pd

    saved = Saved(
        chapter=chapter,
        claims=[dict(claim) for claim in claims],
        parameters=dict(parameters),
        versions=versions(),
        seconds=round(seconds, 2),
        hardware=hardware(parameters.get("device") or "cpu"),
        training_seconds=None if training_seconds is None else round(training_seconds, 2),
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
    """Claims, parameters and provenance of a chapter.

    Raises RequestError when there are none or they cannot be read.
    """
    path = _existing(chapter, ".json", where)
    try:
        return Saved.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        what = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".lstrip(": ")
        raise RequestError(f"{path} is not the result of a chapter: {what}") from error


def table(chapter: str, where: Path | None = None) -> pd.DataFrame:
    """Tidy table of a chapter, columns COLUMNS. Raises RequestError when it is not there."""
    import pandas as pd

    path = _existing(chapter, ".csv", where)
    return pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})


def items(chapter: str, where: Path | None = None) -> pd.DataFrame:
    """Per-item outcomes of a chapter, columns ITEM_COLUMNS. Raises RequestError if not there."""
    import pandas as pd

    return pd.read_parquet(_existing(chapter, ".items.parquet", where))


def outcome(chapter: str, where: Path | None = None) -> Outcome:
    """Table and items of a chapter, as its probes gave them. Raises RequestError if not there."""
    from kdnotes.probes.base import Outcome

    return Outcome(table(chapter, where), items(chapter, where))


def _existing(chapter: str, suffix: str, where: Path | None) -> Path:
    path = (where or folder()) / f"{chapter}{suffix}"
    if not path.is_file():
        raise RequestError(f"no results of chapter {chapter!r}: there is no {path}")
    return path
