"""What a chapter found, as files: a tidy table, per-item outcomes, claims and provenance.

A chapter writes NAME.csv, NAME.items.parquet and NAME.json into one folder. Each file appears
complete or not at all, and none of them holds an absolute path.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

    from kdnotes.probes.outcome import Outcome

COLUMNS = ("chapter", "arm", "seed", "condition", "measure", "value")
ITEM_COLUMNS = ("item", "source", "arm", "seed", "condition", "prediction", "measure", "value")
CLAIM_KEYS = ("id", "measure", "estimate", "low", "high", "criterion", "verdict", "paper")
SUFFIXES = (".csv", ".items.parquet", ".json")
# Whose version can change a number in the tables.
PACKAGES = (
    "kdnotes",
    "torch",
    "torchvision",
    "timm",
    "captum",
    "foolbox",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
)


@dataclass(frozen=True)
class Saved:
    """The JSON file of one chapter: claims with verdicts, and what they were made with."""

    chapter: str
    claims: list[dict[str, Any]]
    parameters: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    # Not in results of earlier versions.
    hardware: str = "hardware that was not noted"
    training_seconds: float | None = None


def folder() -> Path:
    """Where chapters write: KDNOTES_OUT, or the folder of what is run by hand."""
    if given := os.environ.get("KDNOTES_OUT"):
        return Path(given)
    return paths.by_hand_folder()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu") -> str:
    """The processor with its cores and vector instructions, or the graphics card."""
    import platform

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
    claims: Iterable[Any],
    parameters: Any,
    seconds: float,
    where: Path | None = None,
    training_seconds: float | None = None,
) -> None:
    """Write a chapter's table, items and claims into a folder (default: `folder`).

    ``outcome`` None stands for a chapter that measures nothing itself. ``claims`` are mappings,
    dataclasses or the rows of a data frame with at least CLAIM_KEYS; ``parameters`` a mapping or
    a pydantic model; ``seconds`` of measuring, and of one core's training behind it.

    Raises ValueError when a column or a key is missing.
    """
    table, items = _tables(chapter, outcome)
    settings = _plain(_mapping(parameters))
    content = {
        "chapter": chapter,
        "claims": [_claim(row) for row in _rows(claims)],
        "parameters": settings,
        "versions": versions(),
        "seconds": round(float(seconds), 2),
        "hardware": hardware(settings.get("device") or "cpu"),
        "training_seconds": None if training_seconds is None else round(training_seconds, 2),
    }
    target = where or folder()
    target.mkdir(parents=True, exist_ok=True)
    with appearing(target / f"{chapter}.items.parquet") as path:
        items.to_parquet(path, index=False, compression="zstd")
    with appearing(target / f"{chapter}.csv") as path:
        table.to_csv(path, index=False, float_format="%.8g")
    # Last, because it says that the others are there.
    write_json(target / f"{chapter}.json", content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON without NaN and without absolute paths, in one step."""
    text = json.dumps(paths.without_absolute_paths(content), indent=1, allow_nan=False)
    with appearing(path) as scratch:
        scratch.write_text(text + "\n")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file to write to that takes the name ``path`` when the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o644)  # mkstemp's files are for their owner only
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def chapters(where: Path | None = None) -> list[str]:
    """Names of the chapters whose results lie in a folder (default: `folder`)."""
    here = where or folder()
    return sorted(path.stem for path in here.glob("*.json") if not path.name.startswith("."))


def load(chapter: str, where: Path | None = None) -> Saved:
    """Claims, parameters and provenance of a chapter.

    Raises RequestError when there are none or they cannot be read.
    """
    path = (where or folder()) / f"{chapter}.json"
    try:
        content = json.loads(path.read_text())
        known = {each.name: each for each in fields(Saved)}
        needed = {name for name, each in known.items() if each.default is MISSING}
        there = {name for name in known if name in needed or name in content}
        return Saved(**{name: content[name] for name in there})
    except FileNotFoundError as error:
        raise RequestError(f"no results of chapter {chapter!r}: there is no {path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is not the result of a chapter: {error!r}") from error


def table(chapter: str, where: Path | None = None) -> pd.DataFrame:
    """Tidy table of a chapter, columns COLUMNS. Raises RequestError when it is not there."""
    import pandas as pd

    path = _existing((where or folder()) / f"{chapter}.csv")
    return pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})


def items(chapter: str, where: Path | None = None) -> pd.DataFrame:
    """Per-item outcomes of a chapter, columns ITEM_COLUMNS. Raises RequestError if not there."""
    import pandas as pd

    return pd.read_parquet(_existing((where or folder()) / f"{chapter}.items.parquet"))


def claims(where: Path | None = None) -> pd.DataFrame:
    """Claims of all chapters in a folder, one row each, with the chapter's name first."""
    import pandas as pd

    here = where or folder()
    rows = [
        {"chapter": name} | claim for name in chapters(here) for claim in load(name, here).claims
    ]
    return pd.DataFrame(rows, columns=None if rows else ["chapter", *CLAIM_KEYS])


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RequestError(f"there is no {path}; run the chapter first")
    return path


def _tables(chapter: str, outcome: Outcome | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    if outcome is None:
        return pd.DataFrame(columns=list(COLUMNS)), pd.DataFrame(columns=list(ITEM_COLUMNS))
    for frame, wanted, what in (
        (outcome.table, COLUMNS[1:], "table"),
        (outcome.items, ITEM_COLUMNS, "items"),
    ):
        lacking = [name for name in wanted if name not in frame.columns]
        if lacking:
            raise ValueError(f"{what} of chapter {chapter!r} lacks columns {', '.join(lacking)}")
    kept = outcome.table[list(COLUMNS[1:])].copy()
    kept.insert(0, "chapter", chapter)
    return kept, outcome.items[list(ITEM_COLUMNS)]


def _rows(claims: Any) -> Iterable[Any]:
    return claims.to_dict("records") if hasattr(claims, "to_dict") else claims


def _claim(row: Any) -> dict[str, Any]:
    claim = _plain(_mapping(row))
    lacking = [key for key in CLAIM_KEYS if key not in claim]
    if lacking:
        raise ValueError(f"claim {claim.get('id', claim)!r} lacks {', '.join(lacking)}")
    return claim


def _mapping(value: Any) -> Mapping[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return value


def _plain(value: Any) -> Any:
    """The value in JSON's types; what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
