"""A chapter over a grid of parameters: one run per point, one table of them all."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths, store
from kdnotes.book import execution, results, running
from kdnotes.book.running import Done, Run
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd

if TYPE_CHECKING:
    from kdnotes.training.cache import Planned

SCHEDULER_TIMEOUT = 10  # seconds


def grid_points(axes: Mapping[str, str]) -> list[dict[str, str]]:
    """All combinations of the values of each axis, separated by semicolons, else by commas.

    Raises RequestError for an axis without a value or with one twice.
    """
    split = {}
    for name, text in axes.items():
        values = [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]
        if not values:
            raise RequestError(f"--grid {name} has no value; for example --grid {name}=1,2,4")
        if len(set(values)) < len(values):
            raise RequestError(f"--grid {name} names a value twice: {text}")
        split[name] = values
    return [dict(zip(split, values, strict=True)) for values in itertools.product(*split.values())]


def point_folder(out: Path, point: Mapping[str, str]) -> Path:
    """Where one point of a grid goes, named by its values."""
    name = ",".join(f"{key}={value}" for key, value in point.items())
    return out / re.sub(r"[^\w.,=+-]+", "-", name)


def combine(name: str, points: Sequence[Mapping[str, str]], runs: Sequence[Run], out: Path) -> Path:
    """One table, with a column per axis, and one JSON of a grid's runs; the table's path."""
    saved = [results.load(name, run.folder) for run in runs]
    tables, claims = [], []
    for point, each in zip(points, saved, strict=True):
        # An axis may be called as a column is, such as one over the arm's seeds.
        axes = {f"grid_{axis}" if axis in results.COLUMNS else axis: point[axis] for axis in point}
        tables.append(each.table.assign(**axes)[[*axes, *results.COLUMNS]])
        claims += [claim | {"point": dict(point)} for claim in each.claims]
    with store.appearing(out / f"{name}.csv") as path:
        pd.concat(tables, ignore_index=True).to_csv(path, index=False, float_format="%.8g")
    shared = {
        key: value
        for key, value in saved[0].parameters.items()
        if all(each.parameters.get(key) == value for each in saved)
    }
    seconds = round(sum(each.seconds for each in saved), 2)
    combined = {"claims": claims, "parameters": shared, "seconds": seconds}
    saved[0].model_copy(update=combined).write(out)
    return out / f"{name}.csv"


def runs(
    name: str, given: Mapping[str, str], points: Sequence[Mapping[str, str]], out: Path
) -> list[Run]:
    """The runs of a grid, every point checked. Raises RequestError, also for a clash of names."""
    which = running.chapter(name)
    if both := points[0].keys() & given:
        raise RequestError(f"{min(both)!r} is both in --grid and in -p; keep one of them")
    folders = [point_folder(out, point) for point in points]
    if len(set(folders)) < len(points):
        raise RequestError("two points of the grid would go into one folder; sweep them apart")
    return [
        Run(running.request(which, dict(given) | dict(point)), folder, folder.name)
        for point, folder in zip(points, folders, strict=True)
    ]


def execute(
    wanted: Sequence[Run],
    jobs: int | None = None,
    report: Callable[[Done], None] = lambda done: None,
    scheduler: str | None = None,
) -> list[Done]:
    """Train the union of the networks, then execute the points that are not there yet.

    Here, or on the workers of the dask ``scheduler`` at an address, which share this file system.
    Raises RequestError when that or a folder cannot be used, and RunFailedError.
    """
    with _client(scheduler) if scheduler else nullcontext() as client:
        for folder in (wanted[0].folder.parent, *(run.folder for run in wanted)):
            running.make_folder(folder)
        submit = None
        if client is None:
            running.train([run.request for run in wanted], jobs)
        else:
            _train_there(client, wanted)
            submit = partial(client.get_executor(pure=False).submit, execution.execute_notebook)
        reused, pending = running.split(wanted)
        for done in reused:
            report(done)
        return [*reused, *execution.execute(pending, jobs, report, submit=submit)]


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A client of a dask scheduler whose workers have one thread each."""
    try:
        from distributed import Client

        client = Client(address, timeout=SCHEDULER_TIMEOUT)
    except ImportError as error:
        raise RequestError("--scheduler needs dask: pip install 'dask[distributed]'") from error
    except (OSError, ValueError) as error:
        wrong = f"no dask scheduler answers at {address!r} ({error})"
        raise RequestError(f"{wrong}; start one with 'dask scheduler'") from error
    with client:
        threads = set(client.nthreads().values())
        if threads != {1}:
            found = f"workers with {max(threads)} threads" if threads else "no workers"
            right = f"start them with 'dask worker {address} --nthreads 1'"
            raise RequestError(f"the scheduler at {address!r} has {found}; {right}")
        yield client


def _train_there(client: Any, wanted: Sequence[Run]) -> None:
    """Train networks on a scheduler's workers, students when their teachers are there."""
    folder, futures = str(paths.cache_folder().absolute()), dict[str, Any]()
    for run in wanted:
        study = run.request.study
        where = (study.device, study.data_dir and study.data_dir.absolute(), folder)
        for item in running.needed_networks([run.request]):
            if item.spec.key not in futures:
                behind = [futures[spec.key] for spec in item.spec.trained_before]
                futures[item.spec.key] = client.submit(_train_one, item, *where, behind)
    try:
        client.gather(list(futures.values()))
    except Exception as error:
        raise running.training_failed(error) from error


def _train_one(
    item: Planned, device: str, data_dir: Path | None, folder: str, behind: list[Any]
) -> None:
    """Runs on a worker, in its own process; dask waits for the networks ``behind`` it."""
    os.environ["KDNOTES_CACHE"] = folder
    import torch

    from kdnotes.training import cache

    torch.set_num_threads(1)
    cache.train_one(item, device, data_dir)
