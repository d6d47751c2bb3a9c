"""Executing chapters on networks that are trained: papermill in threads, kernels as processes."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdnotes import paths, store
from kdnotes.book import kernels, running
from kdnotes.book.running import Done, Run
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.progress import Progress, shown
from kdnotes.training import pool

REQUEST_ERROR = "RequestError: "  # how a chapter says that the request is wrong
LAST_WORDS = 12  # lines of what a dead kernel said that are shown
LONGEST_SOURCE_LINE = 80


@dataclass(frozen=True)
class Order:
    """What is needed to execute a notebook, here or on another machine.

    ``environment`` is what a kernel gets beside what is there; ``base`` the folder it starts in.
    """

    template: Path
    output: Path
    parameters: dict[str, Any]
    environment: dict[str, str]
    base: Path
    key: str
    forked: bool = False


Submit = Callable[[Order], "Future[float]"]


def execute(
    runs: Sequence[Run],
    jobs: int | None = None,
    report: Callable[[Done], None] = lambda done: None,
    forked: bool = False,
    submit: Submit | None = None,
) -> list[Done]:
    """Execute chapters on trained networks, ``jobs`` at a time, each in a kernel of its own.

    ``forked``: few kernels, too, come from `kernels.preload`, which was called before; ``submit``
    has `execute_notebook` called elsewhere than in threads of this process. Runs that can finish
    do; then failures are raised as RunFailedError, naming the partial notebooks, or as RequestError
    where chapters found that they cannot do what was asked for.
    """
    if not runs:
        return []
    forked = submit is None and (kernels.preload(len(runs)) or forked)
    done: list[Done] = []
    failures: list[Exception] = []
    before = {path: _changed(path) for run in runs for path in run.results}
    stopped = list(runs)
    try:
        with nullcontext(submit) if submit else _threads(len(runs), jobs) as submitted:
            futures = {submitted(_order(run, forked)): run for run in runs}
            for future in as_completed(futures):
                stopped.remove(run := futures[future])
                try:
                    done.append(_conclude(run, future, before))
                    report(done[-1])
                except (RunFailedError, RequestError) as error:
                    failures.append(error)
    finally:
        for run in stopped:
            if run.working.exists():  # it had begun
                _clear(run, before)
    if failures:
        wrong_request = all(isinstance(error, RequestError) for error in failures)
        raise (RequestError if wrong_request else RunFailedError)("\n".join(map(str, failures)))
    return done


def _order(run: Run, forked: bool) -> Order:
    environment = {
        "KDNOTES_BASE": str(Path.cwd()),
        "KDNOTES_BOOK": str(paths.root()),
        "KDNOTES_CACHE": str(paths.cache_folder().absolute()),
        "KDNOTES_OUT": str(run.folder.absolute()),
    }
    template, output = run.request.chapter.path.absolute(), run.working.absolute()
    given = run.request.given
    return Order(template, output, given, environment, Path.cwd(), running.key(run), forked)


def _changed(path: Path) -> int:
    """When a file was last written, 0 for one that is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _conclude(run: Run, future: Future[float], before: dict[Path, int]) -> Done:
    """What came of an execution."""
    try:
        seconds = future.result()
        unsaved = [path.name for path in run.results if _changed(path) in (0, before[path])]
        if unsaved:
            raise RunFailedError(
                f"ran to its end without saving {', '.join(unsaved)}: it must call "
                f"kdnotes.book.results.save({run.request.chapter.name!r}, ...)"
            )
        running.finish(run)
    except RequestError:
        run.working.unlink(missing_ok=True)
        _clear(run, before)
        raise
    except Exception as error:  # of the notebook, or of the one who should have executed it
        what = error if isinstance(error, RunFailedError) else f"failed: {error!r}"
        if not run.folder.is_dir():
            what = f"failed: its output folder {run.folder} is not there any more"
        kept = _clear(run, before, failed=True)
        raise RunFailedError(f"{run.title} {what}\n{kept}") from error
    return Done(run, seconds, reused=False)


def _clear(run: Run, before: Mapping[Path, int], failed: bool = False) -> str:
    """Delete what could pass for the result of a run that did not finish; says what is kept.

    Where it ``failed`` this is everything, and else, if it saved anything, the mixture.
    """
    if failed or any(_changed(path) != before[path] for path in run.results):
        for path in (run.notebook, *run.results):
            path.unlink(missing_ok=True)
    try:
        json.loads(run.working.read_bytes())
        run.working.replace(run.partial)
    except (OSError, ValueError):  # never begun, or cut off by a full disk
        run.working.unlink(missing_ok=True)
        return "nothing of what it did until then could be kept"
    return f"what it did until then is in {run.partial}"


@contextmanager
def _threads(count: int, jobs: int | None) -> Iterator[Submit]:
    """Execute notebooks in threads of this process; an exception ends their kernels at once."""
    executor = ThreadPoolExecutor(min(jobs or pool.cores(), count))
    futures: list[Future[float]] = []
    processes: list[Any] = []
    with shown(f"executing {count} chapters", count) as progress:

        def submit(order: Order) -> Future[float]:
            told = partial(_tell, progress, order.template.stem)
            futures.append(executor.submit(execute_notebook, order, told, processes.append))
            return futures[-1]

        try:
            yield submit
        except BaseException:  # Ctrl-C: stop what runs, start nothing more
            executor.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                for process in list(processes):
                    process.kill()
                time.sleep(0.1)
            raise
        executor.shutdown()


def _tell(progress: Progress, name: str, cells: int, total: int) -> None:
    progress.line(name, f"{name}: cell {cells} of {total}", cells, total)
    progress.advance(1 / total)
    if cells == total:
        progress.remove(name)


def execute_notebook(
    order: Order,
    told: Callable[[int, int], None] = lambda cells, total: None,
    started: Callable[[Any], None] = lambda process: None,
) -> float:
    """Run a notebook with papermill; returns the seconds it took.

    ``told`` hears how many code cells are done, of how many; ``started`` gets the kernel's process.
    Raises RunFailedError with the failing cell or a dead kernel's last words, and RequestError
    where a cell does.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # errors are raised as well
    begun = time.perf_counter()
    template = nbformat.read(order.template, as_version=4)
    total = sum(cell.cell_type == "code" for cell in template.cells) + bool(order.parameters)
    cells = iter(range(1, total + 1))
    environment = kernels.environment() | order.environment
    with tempfile.NamedTemporaryFile("a+", errors="replace") as said:
        try:
            notebook = papermill.execute_notebook(
                template,
                # papermill formats paths as templates.
                str(order.output).replace("{", "{{").replace("}", "}}"),
                parameters=order.parameters,
                progress_bar=False,
                kernel_manager_class=kernels.manager(
                    environment, order.base, said, order.forked, started
                ),
                on_cell_complete=lambda cell, cell_index: told(next(cells, total), total),
            )
        except PapermillExecutionError as error:
            message = f"{error.ename}: {error.evalue}".strip().removesuffix(":")
            if message.startswith(REQUEST_ERROR):
                raise RequestError(message.removeprefix(REQUEST_ERROR)) from error
            first = next(filter(str.strip, error.source.splitlines()), "")[:LONGEST_SOURCE_LINE]
            where = f"cell {error.cell_index + 1} ({first})"
            raise RunFailedError(f"failed in {where}: {message}") from error
        except OSError as error:  # such as a full disk
            what = f"failed: {error.filename or order.output}: {error.strerror or error}"
            raise RunFailedError(what) from error
        except Exception as error:  # the kernel died, or there is none
            said.seek(0)
            message = f"failed: {error!r}\n" + "".join(said.readlines()[-LAST_WORDS:])
            raise RunFailedError(message.rstrip()) from error
    seconds = round(time.perf_counter() - begun, 2)
    for name in ("input_path", "output_path"):
        notebook.metadata["papermill"].pop(name, None)
    notebook.metadata["kdnotes"] = {"key": order.key, "seconds": seconds}
    with store.naming(order.output):
        nbformat.write(notebook, order.output)
    return seconds
