"""Executing chapters on networks that are trained: papermill in threads, kernels as processes.

Kernels start at once where they are forked from a process that has loaded the heavy libraries,
which takes each chapter seconds. On Linux only: elsewhere forking after loading is not safe.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from kdnotes import paths, store
from kdnotes.book import running
from kdnotes.book.running import Done, Run
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.progress import Progress, shown
from kdnotes.training import pool

# What chapters load, libraries that only a few of them use included.
LIBRARIES = (
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "torch",
    "timm.layers",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.datasets",
    "seaborn",
    "foolbox",
    "torchmetrics",
)
WORTH_LOADING = 3  # chapters from which on loading the libraries ahead saves time
REQUEST_ERROR = "RequestError: "  # how a chapter says that the request is wrong
LAST_WORDS = 12  # lines of what a dead kernel said that are shown
LONGEST_SOURCE_LINE = 80


@dataclass(frozen=True)
class Order:
    """What is needed to execute a notebook, here or on another machine."""

    template: Path
    output: Path
    parameters: dict[str, Any]
    environment: dict[str, str]  # beside what is there
    base: Path  # where the kernel starts
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

    ``forked``: few kernels, too, come from `preload`; ``submit`` calls `execute_notebook`
    elsewhere. After all have ended, raises RunFailedError, naming the partial notebooks, or
    RequestError where chapters only found that they cannot do what was asked for.
    """
    if not runs:
        return []
    forked = submit is None and (preload(len(runs)) or forked)
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
    try:
        seconds = future.result()
        if unsaved := [path.name for path in run.results if _changed(path) in (0, before[path])]:
            call = f"it must call kdnotes.book.results.save({run.request.chapter.name!r}, ...)"
            raise RunFailedError(f"ran to its end without saving {', '.join(unsaved)}: {call}")
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
    """Delete what could pass for the result of a run that failed or stopped; says what is kept."""
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

    ``told`` hears how many code cells are done, of how many; ``started`` gets the process. Raises
    RequestError where a cell does, else RunFailedError with the cell or a kernel's last words.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # errors are raised as well
    begun = time.perf_counter()
    template = nbformat.read(order.template, as_version=4)
    total = sum(cell.cell_type == "code" for cell in template.cells) + bool(order.parameters)
    cells = iter(range(1, total + 1))
    with tempfile.NamedTemporaryFile("a+", errors="replace") as said:
        manager = _manager(order, said, started)
        try:
            notebook = papermill.execute_notebook(
                template,
                str(order.output).replace("{", "{{").replace("}", "}}"),  # papermill formats it
                parameters=order.parameters,
                progress_bar=False,
                kernel_manager_class=manager,
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


def _environment() -> dict[str, str]:
    """The environment of a kernel: this process's, for one thread and figures in the notebook."""
    # A backend chosen for scripts would leave the notebooks without figures.
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    # Several multi-threaded kernels at once would slow each other.
    changed = {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return pool.KEEP_FREED_MEMORY | inherited | changed


def preload(count: int) -> bool:
    """Begin to load the libraries if that pays for so many kernels; whether they can be forked."""
    if sys.platform != "linux" or count < WORTH_LOADING:
        return False
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(list(LIBRARIES))
    # What draws into notebooks must be loaded in the notebook: it looks for its kernel then.
    drawing = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    own = dict(os.environ)
    try:
        _become(_environment() | drawing)
        forkserver.ensure_running()
    finally:
        _become(own)
    return True


def _manager(order: Order, said: IO[str], started: Callable[[Any], None]) -> type[Any]:
    """What starts an order's kernel for nbclient; ``said``: the file that gets what it writes."""
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    surroundings = _environment() | order.environment

    class Forking(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
            arguments = (cmd[cmd.index("-f") :], options["env"], str(order.base), said.name)
            process = get_context("forkserver").Process(target=_be_kernel, args=arguments)
            process.start()
            self.process = _Forked(process)  # type: ignore[assignment]
            self.pid = self.pgid = process.pid  # it leads a group of its own
            return self.connection_info

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            if order.forked:
                about = {"kernel_id": self.kernel_id, "kernel_spec": self.kernel_spec}
                self.provisioner = Forking(**about, parent=self)
            options |= {"env": surroundings, "cwd": str(order.base), "stdout": said, "stderr": said}
            await super().start_kernel(**options)
            started(self.provisioner.process)  # type: ignore[union-attr]

    return Manager


class _Forked:
    """A forked process with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: Any) -> None:
        self._process = process
        self.kill = process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)


def _be_kernel(
    arguments: list[str], surroundings: Mapping[str, str], folder: str, said: str
) -> None:
    """Runs in the fork."""
    os.setsid()  # Ctrl-C reaches the one who asked for the kernel, who then ends it
    with open(said, "ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    os.chdir(folder)
    _become(surroundings)
    from ipykernel.kernelapp import IPKernelApp

    # Not with the server, but with the one who asked for the kernel.
    threading.Thread(target=pool.end_with_parent, daemon=True).start()
    IPKernelApp.launch_instance(argv=arguments)


def _become(surroundings: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(surroundings)
