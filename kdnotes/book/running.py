"""Chapters, the networks that they need, and running them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths
from kdnotes.book import kernels, parameters, results
from kdnotes.book.parameters import Parameter, did_you_mean
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.study import Study
    from kdnotes.training.cache import Planned

_NUMBERED = re.compile(r"(\d\d)-(.+)")
FOLDER_PREFIX = "imagefolder:"  # as in kdnotes.data, which would import torch
REQUEST_ERROR = "RequestError: "  # how a chapter says that the request is wrong
WORTH_A_SERVER = 3  # chapters from which on loading the libraries once and for all saves time
LAST_WORDS = 12  # lines of a dead process's stderr that are shown


class RunFailedError(RuntimeError):
    """The request was right, but running it failed; the message names what was kept."""


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book; its name is that of the file without the number."""

    name: str
    path: Path
    title: str
    parameters: dict[str, Parameter]

    @property
    def numbered(self) -> bool:
        """Whether it is one of the properties; the others (the scorecard) read their results."""
        return _NUMBERED.fullmatch(self.path.stem) is not None


@dataclass(frozen=True)
class Request:
    """A chapter with checked parameters: those that differ from its defaults, and its study."""

    chapter: Chapter
    given: dict[str, Any]
    study: Study


@dataclass(frozen=True)
class Run:
    """One execution that is wanted: a request, the folder for what comes out, and in a sweep its
    ``point``."""

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
    def partial(self) -> Path:
        """Where the notebook stays if it fails."""
        return self.folder / f"{self.request.chapter.name}.partial.ipynb"


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
    named = {}
    for path in found:
        match = _NUMBERED.fullmatch(path.stem)
        named[match[2] if match else path.stem] = path
    return named


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

    Raises RequestError for an unknown name, a wrong type, or what the study cannot do.
    """
    from kdnotes import study

    # Relative before anything else, so that checks and notebook see the same value.
    values = paths.without_absolute_paths(parameters.check(which.name, which.parameters, given))
    defaults = {name: item.default for name, item in which.parameters.items()}
    # Empty defaults leave the choice to the preset; an empty value that was given is checked.
    chosen = {name: value for name, value in defaults.items() if value} | values
    about = {
        name: value
        for name, value in chosen.items()
        if name in parameters.REQUIRED + parameters.SIZES + parameters.FOLDERS
    }
    different = {name: value for name, value in values.items() if value != defaults[name]}
    return Request(which, different, study.chapter(which.name, **about))


def with_preset(given: Mapping[str, str], preset: str | None) -> dict[str, str]:
    """The texts with the preset among them. Raises RequestError when there are two of them."""
    if preset is None:
        return dict(given)
    if given.get("preset", preset) != preset:
        raise RequestError(f"two presets: --preset {preset} and -p preset={given['preset']}")
    return dict(given) | {"preset": preset}


def _title(path: Path) -> str:
    """The first heading of a notebook."""
    for cell in json.loads(path.read_text(encoding="utf-8")).get("cells", ()):
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line.removeprefix("# ").strip()
    return path.stem


# --- networks -------------------------------------------------------------------------------


def networks(requests: Iterable[Request]) -> list[Planned]:
    """Every network that the requests need, each once, teachers first."""
    from kdnotes.training import cache

    return cache.with_teachers(item for each in requests for item in each.study.networks)


def estimated_minutes(planned: Sequence[Planned], jobs: int | None = None) -> float:
    """Rough minutes to train these networks on the cores there are (or on ``jobs`` of them)."""
    from kdnotes.training import pool

    workers = max(1, min(jobs or pool.cores(), len(planned)))
    return sum(pool.cost(item) for item in planned) / workers / 60


def train(requests: Sequence[Request], jobs: int | None = None) -> int:
    """Train what the requests lack, in one pool for all that share device and data folder.

    Returns the number of networks trained. Raises RunFailedError when one cannot be trained.
    """
    from kdnotes.training import cache

    groups: dict[tuple[str, Path | None], list[Request]] = {}
    for each in requests:
        groups.setdefault((each.study.settings.device, each.study.data_dir), []).append(each)
    trained = 0
    for (device, data_dir), members in groups.items():
        try:
            trained += cache.ensure(networks(members), jobs, device, data_dir)
        except RequestError:
            raise
        except Exception as error:
            raise RunFailedError(
                f"training failed: {type(error).__name__}: {error}. Networks that were finished "
                "are kept; the same command goes on from there"
            ) from error
    return trained


# --- running notebooks ----------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    """The output folder, made if need be. Raises RequestError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with results.appearing(folder / "writable") as probe:
            pass
        probe.parent.joinpath("writable").unlink()
    except OSError as error:
        raise RequestError(
            f"cannot write to output folder {str(folder)!r}: {error.strerror or error}; "
            "name one with --out"
        ) from error
    return folder.absolute()


def key(run: Run) -> str:
    """Content hash of everything that an executed chapter is made from: same key, same outputs.

    Template, parameters, networks, the sources of this package, the book's claims and published
    tables, the versions of the packages, and for a chapter that reads the results of others,
    those. Empty, which equals no other key, where images come from files that could change.
    """
    which = run.request
    settings = which.study.settings
    if which.study.data_dir is not None or settings.dataset.startswith(FOLDER_PREFIX):
        return ""
    state = hashlib.sha256()
    root = paths.root()
    sources = [
        *sorted(Path(__file__).parents[1].rglob("*.py")),
        *sorted((root / "book").glob("*.yml")),
        *sorted(path for path in (root / "results").rglob("*") if path.is_file()),
        which.chapter.path,
    ]
    if not which.chapter.numbered:
        own = f"{which.chapter.name}.json"
        sources += sorted(path for path in run.folder.glob("*.json") if path.name != own)
    for path in sources:
        state.update(f"{path.name}\0".encode() + path.read_bytes())
    described = {
        "given": which.given,
        "networks": [item.spec.key for item in which.study.networks],
        "versions": results.versions(),
    }
    state.update(json.dumps(described, sort_keys=True, default=str).encode())
    return state.hexdigest()[:20]


def finished(run: Run, stamp: str) -> Done | None:
    """The run as it was done before under the same key, with all its files; else None."""
    try:
        about = json.loads(run.notebook.read_text(encoding="utf-8"))["metadata"]["kdnotes"]
    except (OSError, ValueError, KeyError):
        return None
    files = [run.folder / f"{run.request.chapter.name}{suffix}" for suffix in results.SUFFIXES]
    if not stamp or about.get("key") != stamp or not all(file.is_file() for file in files):
        return None
    return Done(run, about["seconds"], reused=True)


def execute(
    runs: Sequence[Run],
    jobs: int | None = None,
    stamps: Mapping[Path, str] | None = None,
    report: Callable[[Done], None] = lambda done: None,
    environment: Mapping[str, str] | None = None,
) -> list[Done]:
    """Execute chapters on trained networks, ``jobs`` at a time, each in a kernel of its own.

    ``stamps`` are the keys noted in the executed notebooks, by notebook; ``environment`` is that
    of the kernels, from `surroundings`. Runs that can finish do; then failures are raised as
    RunFailedError, naming the partial notebooks, or as RequestError where chapters found that they
    cannot do what was asked for.
    """
    from kdnotes.training import pool

    if not runs:
        return []
    done: list[Done] = []
    failures: list[RunFailedError | RequestError] = []
    with (
        _progress([run.title for run in runs]) as show,
        surroundings(len(runs)) if environment is None else nullcontext(environment) as given,
    ):
        processes = _Processes(given)
        executor = ThreadPoolExecutor(min(jobs or pool.cores(), len(runs)))
        try:
            futures = [
                executor.submit(
                    _execute_one,
                    run,
                    (stamps or {}).get(run.notebook, ""),
                    processes,
                    partial(show, line),
                )
                for line, run in enumerate(runs)
            ]
            for future in as_completed(futures):
                try:
                    done.append(future.result())
                    report(done[-1])
                except (RunFailedError, RequestError) as error:
                    failures.append(error)
        except BaseException:  # Ctrl-C: stop what runs, start nothing more
            executor.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
        executor.shutdown()
        processes.end()
    if failures:
        wrong_request = all(isinstance(error, RequestError) for error in failures)
        kind = RequestError if wrong_request else RunFailedError
        raise kind("\n".join(str(error) for error in failures))
    return done


def _execute_one(
    run: Run, stamp: str, processes: _Processes, show: Callable[[int, int], None]
) -> Done:
    name = run.request.chapter.name
    working = run.folder / f".{name}.{os.getpid()}.ipynb"
    before = _changed(run)
    order = {
        "template": str(run.request.chapter.path.absolute()),
        "output": str(working.absolute()),
        "out": str(run.folder.absolute()),
        "parameters": run.request.given,
        "base": str(Path.cwd()),
        "stamp": {"key": stamp},
    }
    try:
        outcome, last_words = processes.run(order, show)
        failed = outcome["failed"]
        if failed is not None and failed["error"].startswith(REQUEST_ERROR):
            working.unlink()
            raise RequestError(failed["error"].removeprefix(REQUEST_ERROR))
        if failed is not None:
            where = f" in cell {failed['cell']} ({failed['source']})" if failed["cell"] else ""
            raise RunFailedError(
                f"{run.title} failed{where}: {failed['error']}{last_words}\n"
                f"what it did until then is in {run.partial}"
            )
        unsaved = [path.name for path, time in _changed(run).items() if time == before[path]]
        if unsaved:
            raise RunFailedError(
                f"{run.title} ran to its end without saving {', '.join(unsaved)}: it must "
                f"call kdnotes.book.results.save({name!r}, ...)\nthe notebook is in {run.partial}"
            )
        working.replace(run.notebook)
        run.partial.unlink(missing_ok=True)
        return Done(run, outcome["seconds"], reused=False)
    finally:
        with suppress(FileNotFoundError):
            working.replace(run.partial)


def _changed(run: Run) -> dict[Path, int]:
    """When each result file was last written, 0 for one that is not there."""
    files = [run.folder / f"{run.request.chapter.name}{suffix}" for suffix in results.SUFFIXES]
    return {path: path.stat().st_mtime_ns if path.exists() else 0 for path in files}


@contextmanager
def surroundings(count: int) -> Iterator[Mapping[str, str]]:
    """The environment of processes that execute ``count`` notebooks, with a server if it pays."""
    environment = _environment()
    if count < WORTH_A_SERVER:
        yield environment
        return
    with kernels.server(environment) as served:
        yield served


def _environment() -> dict[str, str]:
    from kdnotes.paths import cache_folder
    from kdnotes.training.pool import KEEP_FREED_MEMORY

    changed = {
        "KDNOTES_BASE": str(Path.cwd()),
        "KDNOTES_CACHE": str(cache_folder().absolute()),
        "OMP_NUM_THREADS": "1",  # several multi-threaded kernels at once would slow each other
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    # A backend chosen for scripts would leave the notebooks without figures.
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return KEEP_FREED_MEMORY | inherited | changed


class _Process:
    """One process that executes notebooks, and what it says."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "kdnotes.book.execute"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops all
        )
        self.heard: list[str] = []
        assert self.popen.stderr is not None
        self._listener = threading.Thread(
            target=self.heard.extend, args=(self.popen.stderr,), daemon=True
        )
        self._listener.start()

    def run(self, order: dict[str, Any], show: Callable[[int, int], None]) -> dict[str, Any]:
        """Run one notebook; returns the outcome."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        with suppress(BrokenPipeError):  # it died before: there is nothing to read, then
            self.popen.stdin.write(json.dumps(order) + "\n")
            self.popen.stdin.flush()
        for line in self.popen.stdout:
            event = json.loads(line)
            if "done" not in event:
                return event
            show(event["done"], event["total"])
        return {"failed": {"cell": None, "source": "", "error": "its process died"}}

    def end(self) -> None:
        """End it when it is idle; all that it said is then in ``heard``."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.close()
        self.popen.wait()
        self._listener.join(timeout=5)


class _Processes:
    """The processes that execute notebooks, one after another, all with the same environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(
        self, order: dict[str, Any], show: Callable[[int, int], None]
    ) -> tuple[dict[str, Any], str]:
        """Run one notebook; returns the outcome and, if it died, the end of what it said."""
        with self._lock:
            if self._stopped:
                raise RunFailedError("stopped")
            process = self._idle.pop() if self._idle else _Process(self._environment)
            self._all.add(process)
        outcome = process.run(order, show)
        if outcome["failed"] is None:
            with self._lock:
                self._idle.append(process)
            return outcome, ""
        # The next notebook gets a process that nothing has gone wrong in.
        process.end()
        with self._lock:
            self._all.discard(process)
        dead = outcome["failed"]["cell"] is None and process.heard
        return outcome, "\n" + "".join(process.heard[-LAST_WORDS:]).rstrip() if dead else ""

    def end(self) -> None:
        """End the processes, when none of them has anything left to do."""
        with self._lock:
            for process in self._all:
                process.end()

    def stop(self) -> None:
        """End all processes at once; their kernels end with them."""
        with self._lock:
            self._stopped = True
            for process in self._all:
                process.popen.terminate()
            for process in self._all:
                process.popen.wait()


@contextmanager
def _progress(names: Sequence[str]) -> Iterator[Callable[[int, int, int], None]]:
    """Bars of cells done, one per run, with the time left; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda line, cells, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "cells, left",
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        lines = [progress.add_task(name, total=None) for name in names]
        yield lambda line, cells, total: progress.update(lines[line], completed=cells, total=total)
