"""Chapters, what is asked of them, the networks that they declare, and what was run before."""

from __future__ import annotations

import hashlib
import json
import linecache
import re
import shlex
import statistics
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import figures, paths, store
from kdnotes.book import parameters, results
from kdnotes.book.parameters import Parameter, did_you_mean
from kdnotes.errors import RequestError, RunFailedError

if TYPE_CHECKING:
    from kdnotes.probes.base import Cast, Outcome
    from kdnotes.stats.claims import Claim
    from kdnotes.study import Plan, Study
    from kdnotes.training.cache import Planned

CAST = "cast"  # tag of the cell that declares networks
_EXCHANGED = ContextVar("exchanged", default=False)  # whether the second teacher comes first


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

    @property
    def defaults(self) -> dict[str, Any]:
        """What the parameters are where nothing is given."""
        return {name: each.default for name, each in self.parameters.items()}


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
        return self.notebook.with_name(f".{self.notebook.stem}.{store.writer()}.ipynb")

    @property
    def partial(self) -> Path:
        """Where the notebook stays if it fails."""
        return self.notebook.with_suffix(".partial.ipynb")

    @property
    def results(self) -> list[Path]:
        """The files that the chapter itself saves."""
        return [self.notebook.with_suffix(end) for end in results.SUFFIXES]


@dataclass(frozen=True)
class Done:
    """A finished run and its seconds, those of its execution when it was ``reused``."""

    run: Run
    seconds: float
    reused: bool


def chapter_paths() -> dict[str, Path]:
    """Notebooks of the book by chapter name, numbered ones first. Raises RequestError."""
    folder = paths.root() / "book"
    found = sorted(folder.glob("*.ipynb"), key=lambda path: (not path.stem[0].isdigit(), path.stem))
    if not found:
        raise RequestError(f"no chapters in {folder}: let KDNOTES_BOOK name a checkout of the book")
    return {re.sub(r"^\d\d-", "", path.stem): path for path in found}


def chapter(name: str) -> Chapter:
    """The chapter of a name. Raises RequestError, naming those there are."""
    known = chapter_paths()
    if not (path := known.get(name)):
        near = did_you_mean(name, known)
        raise RequestError(f"unknown chapter {name!r}{near}; known: {', '.join(known)}")
    text = "\n".join(source for _, source, _ in parameters.cells(path, "markdown"))
    titles = [*re.findall("^# (.+)$", text, re.MULTILINE), path.stem]
    return Chapter(name, path, titles[0].strip(), parameters.read(path))


def chapters(only: Sequence[str] = ()) -> list[Chapter]:
    """All chapters, or those named, in the order of the book. Raises RequestError."""
    chosen = {name: chapter(name) for name in only or chapter_paths()}
    return [chosen[name] for name in chapter_paths() if name in chosen]


def request(which: Chapter, given: Mapping[str, str]) -> Request:
    """A chapter with the texts given for its parameters. Raises RequestError for what is wrong."""
    # Relative before anything else, so that checks and notebook see the same value.
    values = paths.without_absolute_paths(parameters.check(which.name, which.parameters, given))
    _check_claims(which.name)
    defaults = which.defaults
    different = {name: value for name, value in values.items() if value != defaults[name]}
    return Request(which, different, planned(which, different))


def _check_claims(chapter: str) -> None:
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


def planned(which: Chapter, values: Mapping[str, Any]) -> Study:
    """The study of a chapter, with the plans that its cell tagged `cast` makes of its parameters.

    ``values``: those that differ from the defaults. That cell alone is run, and nothing trained.
    Raises RequestError for what cannot be done, naming chapter, cell and line where need be.
    """
    everything = which.defaults | dict(values)

    def declare(exchanged: bool) -> Study:
        study = _study(which, everything, planning=True, exchanged=exchanged)
        if found := parameters.cell(which.path, CAST):
            _declare(which, *found, everything | {"study": study})
        study.settings  # noqa: B018 - what is wrong with them is said now
        return study

    study = declare(exchanged=False)
    if study.settings.teacher_count == 2:
        study.other = declare(exchanged=True)
    return study


def _declare(which: Chapter, number: int, source: str, namespace: dict[str, Any]) -> None:
    """Run a chapter's cell tagged `cast`; what it raises becomes a RequestError that names it."""
    import kdnotes

    file = f"{which.path.name}, cell {number}"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec"), namespace | {"kd": kdnotes})
    except RequestError:
        raise
    except Exception as error:
        lines = [each for each in traceback.extract_tb(error.__traceback__) if each[0] == file]
        where = f" ({lines[-1].line})" if lines else ""
        cell = f"chapter {which.name!r}, cell {number}, which declares its casts"
        raise RequestError(f"{cell}, failed{where}: {type(error).__name__}: {error}") from error


def begin(name: str, namespace: Mapping[str, Any]) -> Study:
    """The study of the chapter whose notebook calls this with its ``globals()``.

    Its parameters are read from there; its own figures get the book's style. Raises RequestError
    naming what is wrong and what would be right.
    """
    figures.style()
    which = chapter(name)
    values = {
        key: each.accept(namespace.get(key, each.default)) for key, each in which.parameters.items()
    }
    return _study(which, values, exchanged=_EXCHANGED.get())


def _study(
    which: Chapter, values: Mapping[str, Any], planning: bool = False, exchanged: bool = False
) -> Study:
    from kdnotes.study import Study

    shared = parameters.shared()
    given = {key: shared[key].accept(value) for key, value in values.items() if key in shared}
    changed = {key: values[key] for key, usual in which.defaults.items() if values[key] != usual}
    own = {key: value for key, value in changed.items() if key not in shared}
    study = Study(which.name, given, own, planning, exchanged)
    study.asked = dict(values)
    options = (
        f" {'--preset ' if key == 'preset' else f'-p {key}='}{shlex.quote(str(value))}"
        for key, value in changed.items()
    )
    study.command = f"kdnotes run {which.name}{''.join(options)}"
    return study


class Measured(BaseException):
    """Ends the second pass over a chapter's cells; its argument is what it measured."""


def with_teachers_exchanged(study: Study) -> Outcome:
    """What a chapter measures with the second teacher in the place of the first.

    Its cells are run once more, up to the conclusion, but for those that only show something.
    """
    from IPython.utils.capture import capture_output
    from matplotlib import pyplot

    path, shown = chapter_paths()[study.chapter], set(pyplot.get_fignums())
    cells = parameters.cells(path)
    first = next(number for number, _, tags in cells if parameters.TAG in tags)
    namespace = {"__name__": "__main__"} | study.asked
    token = _EXCHANGED.set(True)
    try:
        with capture_output(stderr=False):
            for number, source, tags in cells:
                if number > first and "remove-input" not in tags:
                    exec(compile(source, path.name, "exec"), namespace)
    except Measured as measured:
        return measured.args[0]
    finally:
        _EXCHANGED.reset(token)
        for number in set(pyplot.get_fignums()) - shown:
            pyplot.close(number)
    raise RuntimeError(f"{path.name} never calls kd.conclude")


def trained(plan: Plan) -> Cast:
    """The networks of a plan, trained if they are not there yet, with progress shown."""
    from kdnotes import networks
    from kdnotes.probes.base import Cast, Member
    from kdnotes.training import cache

    plan.study.train()
    plan.study.started = plan.study.started or time.perf_counter()
    members = []
    for item in plan.planned:
        network = networks.freeze(cache.load(item.spec))
        if plan.study.device.startswith("cuda"):
            network = network.to("cuda")
        members.append(Member(item.arm, item.spec.seed, network, networks.taps(network)))
    teachers = {each.arm: each for each in members if each.arm in ("teacher", "second-teacher")}
    return Cast(
        teacher=teachers["teacher"],
        second_teacher=teachers.get("second-teacher"),
        members=tuple(each for each in members if each.arm not in teachers),
        classes=plan.classes,
    )


def needed_networks(requests: Iterable[Request]) -> list[Planned]:
    """Every network that the requests need, each once, teachers first."""
    from kdnotes.training import cache

    return cache.with_teachers(item for each in requests for item in each.study.networks)


def estimate(requests: Sequence[Request], jobs: int | None = None) -> str:
    """How long the requests will train, by how fast this machine was before, in a line."""
    from kdnotes.training import cache, pool

    wanted = needed_networks(requests)
    lacking = cache.missing(wanted)
    there = [item for item in wanted if cache.is_complete(item.spec) and pool.cost(item)]
    speed = [cache.seconds(item.spec) / pool.cost(item) for item in there]
    slower = statistics.median(speed or [1.0])
    cores = jobs or pool.cores()
    minutes = slower * sum(map(pool.cost, lacking)) / max(1, min(cores, len(lacking))) / 60
    return f"about {minutes:.1f} minutes of training on {cores} cores"


def train(requests: Sequence[Request], jobs: int | None = None) -> None:
    """Train what requests lack, in one pool for each device and folder. Raises RunFailedError."""
    from kdnotes.training import cache

    wheres = [(each.study.device, each.study.data_dir) for each in requests]
    for where in dict.fromkeys(wheres):
        members = [each for each, its in zip(requests, wheres, strict=True) if its == where]
        try:
            cache.ensure(needed_networks(members), jobs, *where)
        except RequestError:
            raise
        except Exception as error:
            raise training_failed(error) from error


def training_failed(error: Exception) -> RunFailedError:
    """What to say when a network could not be trained."""
    kept = "Networks that were finished are kept; the same command goes on from there"
    return RunFailedError(f"training failed: {type(error).__name__}: {error}. {kept}")


def make_folder(folder: Path) -> Path:
    """The output folder, made if need be. Raises RequestError when it cannot be written to."""
    made = store.make_folder(folder, "output folder", "name one with --out")
    for left in (".*.ipynb", f"{store.UNFINISHED}*"):
        store.clear_unfinished(made, left)
    return made.absolute()


def key(run: Run) -> str:
    """Content hash of everything that an executed chapter is made from: same key, same outputs.

    Other chapters' results too where it reads them. Empty, which equals no other key, where images
    come from files that could change.
    """
    which = run.request
    given = [which.chapter.parameters[name].allowed for name, value in which.given.items() if value]
    if "a file" in given or "a folder" in given or ":" in which.study.settings.dataset:
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
    described = {
        "given": which.given,
        "networks": [item.spec.key for item in which.study.networks],
        "versions": results.versions(),
    }
    state = hashlib.sha256()
    for path in sources:
        state.update(f"{path.name}\0".encode() + path.read_bytes())
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
    """Key, seconds and checksums of an executed notebook. Raises RequestError for damage."""
    try:
        content = notebook.read_bytes()
        about = json.loads(content)["metadata"]["kdnotes"] if store.is_sealed(content) else {}
        files = {notebook.with_name(name): known for name, known in about["files"].items()}
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
