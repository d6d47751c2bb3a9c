"""Chapters, what is asked of them, and the networks that they need."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths, store
from kdnotes.book import parameters, planning, results
from kdnotes.book.parameters import Parameter, did_you_mean
from kdnotes.errors import RequestError, RunFailedError

if TYPE_CHECKING:
    from kdnotes.stats.claims import Claim
    from kdnotes.study import Study
    from kdnotes.training.cache import Planned

_NUMBER = re.compile(r"\d\d-")


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book; its name is that of the file without the number."""

    name: str
    path: Path
    title: str
    parameters: dict[str, Parameter]

    @property
    def reads_results(self) -> bool:
        """Whether a cell tagged so reads the results of other chapters: it comes after them."""
        return parameters.cell(self.path, "reads-results") is not None


@dataclass(frozen=True)
class Request:
    """A chapter with checked parameters: those that differ from its defaults, and its study."""

    chapter: Chapter
    given: dict[str, Any]
    study: Study


@dataclass(frozen=True)
class Run:
    """A request, the folder for what comes out of it, and in a sweep its ``point``."""

    request: Request
    folder: Path
    point: str = ""

    @property
    def title(self) -> str:
        """What the run is called in messages."""
        return f"{self.request.chapter.name} {self.point}".strip()

    @property
    def notebook(self) -> Path:
        """Where the executed notebook goes."""
        return self.folder / f"{self.request.chapter.name}.ipynb"

    @property
    def working(self) -> Path:
        """Where the notebook is while it is executed."""
        return self.folder / f".{self.request.chapter.name}.{store.writer()}.ipynb"

    @property
    def partial(self) -> Path:
        """Where the notebook stays if it fails."""
        return self.folder / f"{self.request.chapter.name}.partial.ipynb"

    @property
    def results(self) -> list[Path]:
        """The files that the chapter itself saves."""
        return [self.folder / f"{self.request.chapter.name}{end}" for end in results.SUFFIXES]


@dataclass(frozen=True)
class Done:
    """A finished run and its seconds, those of its execution when it was ``reused``."""

    run: Run
    seconds: float
    reused: bool


# --- chapters and their parameters ----------------------------------------------------------


def chapter_paths() -> dict[str, Path]:
    """Notebooks of the book by chapter name, numbered ones first. Raises RequestError."""
    folder = paths.root() / "book"
    found = sorted(folder.glob("*.ipynb"), key=lambda path: (not path.stem[0].isdigit(), path.stem))
    if not found:
        raise RequestError(
            f"no chapters in {folder}; install from a checkout of the book with "
            "'pip install -e .', or let KDNOTES_BOOK name one"
        )
    return {_NUMBER.sub("", path.stem, count=1): path for path in found}


def chapter(name: str) -> Chapter:
    """The chapter of a name. Raises RequestError, naming those there are."""
    known = chapter_paths()
    if name not in known:
        raise RequestError(
            f"unknown chapter {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    path = known[name]
    return Chapter(name, path, _title(path), parameters.read(path))


def chapters(only: Sequence[str] = ()) -> list[Chapter]:
    """All chapters, or those named, in the order of the book. Raises RequestError."""
    chosen = {name: chapter(name) for name in only or chapter_paths()}
    return [chosen[name] for name in chapter_paths() if name in chosen]


def request(which: Chapter, given: Mapping[str, str]) -> Request:
    """A chapter with the texts given for its parameters, everything about them checked.

    Raises RequestError for an unknown name, a wrong type, what the study cannot do, or a claim of
    the chapter that no probe could decide.
    """
    # Relative before anything else, so that checks and notebook see the same value.
    values = paths.without_absolute_paths(parameters.check(which.name, which.parameters, given))
    check_claims(which.name)
    defaults = {name: each.default for name, each in which.parameters.items()}
    different = {name: value for name, value in values.items() if value != defaults[name]}
    study = planning.planned(which.name, which.path, which.parameters, different)
    return Request(which, different, study)


def check_claims(chapter: str) -> None:
    """Raise RequestError for a claim of the chapter on a measure that no probe declares."""
    from kdnotes import probes

    path = paths.root() / "book" / "claims.yml"
    for claim in _claims(path, path.stat().st_mtime_ns) if path.is_file() else ():
        try:
            if claim.chapter == chapter:
                probes.check_measure(claim.measure, claim.condition)
        except RequestError as error:
            raise RequestError(f"{path.name}, claim {claim.id!r}: {error}") from error


@lru_cache(maxsize=1)
def _claims(path: Path, changed: int) -> tuple[Claim, ...]:
    """All claims of a file, read once for all chapters while it does not change."""
    from kdnotes.stats import claims

    return claims.load(path=path)


def _title(path: Path) -> str:
    """The first heading of a notebook."""
    for cell in json.loads(path.read_text(encoding="utf-8")).get("cells", ()):
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line.removeprefix("# ").strip()
    return path.stem


# --- networks -------------------------------------------------------------------------------


def needed_networks(requests: Iterable[Request]) -> list[Planned]:
    """Every network that the requests need, each once, teachers first."""
    from kdnotes.training import cache

    return cache.with_teachers(item for each in requests for item in each.study.networks)


def train(requests: Sequence[Request], jobs: int | None = None) -> int:
    """Train what the requests lack, in one pool for all that share device and data folder.

    Returns the number of networks trained. Raises RunFailedError when one cannot be trained.
    """
    from kdnotes.training import cache

    groups: dict[tuple[str, Path | None], list[Request]] = {}
    for each in requests:
        groups.setdefault((each.study.device, each.study.data_dir), []).append(each)
    trained = 0
    for (device, data_dir), members in groups.items():
        try:
            trained += cache.ensure(needed_networks(members), jobs, device, data_dir)
        except RequestError:
            raise
        except Exception as error:
            raise training_failed(error) from error
    return trained


def training_failed(error: Exception) -> RunFailedError:
    """What to say when a network could not be trained."""
    return RunFailedError(
        f"training failed: {type(error).__name__}: {error}. Networks that were finished are kept; "
        "the same command goes on from there"
    )


# --- what was run before ----------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    """The output folder, made if need be. Raises RequestError when it cannot be written to."""
    made = store.make_folder(folder, "output folder", "name one with --out")
    for left in (".*.ipynb", f"{store.UNFINISHED}*"):
        store.clear_unfinished(made, left)
    return made.absolute()


def key(run: Run) -> str:
    """Content hash of everything that an executed chapter is made from: same key, same outputs.

    Template, parameters, networks, this package's sources, claims, published tables, versions of
    the packages, and other chapters' results where it reads them. Empty, which equals no other key,
    where images come from files that could change.
    """
    which = run.request
    of_files = {"a file", "a folder"} & {
        which.chapter.parameters[name].allowed for name, value in which.given.items() if value
    }
    if of_files or ":" in which.study.settings.dataset:
        return ""
    root = paths.root()
    sources = [
        *sorted(Path(__file__).parents[1].rglob("*.py")),
        *sorted((root / "book").glob("*.yml")),
        *sorted(path for path in (root / "results").rglob("*") if path.is_file()),
        which.chapter.path,
    ]
    if which.chapter.reads_results:
        beside = {run.folder / f"{each.name}.json" for each in chapters() if each.reads_results}
        sources += sorted(set(run.folder.glob("*.json")) - beside)
    state = hashlib.sha256()
    for path in sources:
        state.update(f"{path.name}\0".encode() + path.read_bytes())
    described = {
        "given": which.given,
        "networks": [item.spec.key for item in which.study.networks],
        "versions": results.versions(),
    }
    state.update(json.dumps(described, sort_keys=True, default=str).encode())
    return state.hexdigest()[:20]


def split(runs: Iterable[Run]) -> tuple[list[Done], list[Run]]:
    """Runs that were done before from the same inputs, with all their files; and the others."""
    finished, pending = [], []
    for run in runs:
        try:
            about = stamp(run.notebook)
        except RequestError:
            about = {"key": ""}
        if about["key"] and about["key"] == key(run):
            finished.append(Done(run, about["seconds"], reused=True))
        else:
            pending.append(run)
    return finished, pending


def stamp(notebook: Path) -> dict[str, Any]:
    """What an executed notebook says of its run: key, seconds and checksums of all files.

    Raises RequestError, naming the file, where the notebook or one of them is not what it was.
    """
    try:
        content = notebook.read_bytes()
        about = json.loads(content)["metadata"]["kdnotes"] if store.is_sealed(content) else {}
        names = [f"{notebook.stem}{end}" for end in results.SUFFIXES]
        files = {notebook.with_name(name): about["files"][name] for name in names}
    except (OSError, KeyError) as error:
        raise results.damaged(notebook) from error
    for path, known in files.items():
        if not path.is_file() or store.checksum(path) != known:
            raise results.damaged(path)
    return about


def finish(run: Run) -> None:
    """Put a run's executed notebook into its place, with the checksums of the other files."""
    notebook = json.loads(run.working.read_text(encoding="utf-8"))
    files = {path.name: store.checksum(path) for path in run.results}
    notebook["metadata"]["kdnotes"] |= {"files": files, "seal": ""}
    with store.appearing(run.notebook) as scratch:
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        scratch.write_text(store.sealed(text), encoding="utf-8")
    run.working.unlink()
    run.partial.unlink(missing_ok=True)
