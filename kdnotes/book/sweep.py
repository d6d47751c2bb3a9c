"""A chapter over a grid of parameters: one run per point, one table of them all."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths
from kdnotes.book import results, running
from kdnotes.book.running import Done, Run, RunFailedError
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.training.cache import Planned

SCHEDULER_TIMEOUT = 10  # seconds


def grid_points(axes: Mapping[str, str]) -> list[dict[str, str]]:
    """All combinations of the values of each axis.

    Values are separated by commas, or by semicolons where there is one (values with commas in
    them). Raises RequestError for an axis without a value or with one twice.
    """
    split = {}
    for name, text in axes.items():
        values = [part.strip() for part in text.split(";" if ";" in text else ",")]
        values = [value for value in values if value]
        if not values:
            raise RequestError(f"--grid {name} has no value; for example --grid {name}=1,2,4")
        if len(set(values)) < len(values):
            raise RequestError(f"--grid {name} names a value twice: {text}")
        split[name] = values
    combinations = itertools.product(*split.values())
    return [dict(zip(split, combination, strict=True)) for combination in combinations]


def point_folder(out: Path, point: Mapping[str, str]) -> Path:
    """Where one point of a grid goes, named by its values."""
    name = ",".join(f"{key}={value}" for key, value in point.items())
    return out / re.sub(r"[^\w.,=+-]+", "-", name)


def combine(name: str, points: Sequence[tuple[Mapping[str, str], Path]], out: Path) -> Path:
    """One table and one JSON of a chapter's runs over a grid; returns the table's path.

    The table has a column for each axis, then those of a chapter; claims carry their ``point``.
    """
    import pandas as pd

    tables, claims, seconds = [], [], 0.0
    for point, folder in points:
        saved = results.load(name, folder)
        part = results.table(name, folder)
        for position, (axis, value) in enumerate(point.items()):
            # An axis may be called as a column is, such as one over the arm's seeds.
            label = f"grid_{axis}" if axis in results.COLUMNS else axis
            part.insert(position, label, value)
        tables.append(part)
        claims += [claim | {"point": dict(point)} for claim in saved.claims]
        seconds += saved.seconds
    with results.appearing(out / f"{name}.csv") as path:
        pd.concat(tables, ignore_index=True).to_csv(path, index=False, float_format="%.8g")
    shared = {
        key: value
        for key, value in saved.parameters.items()
        if all(results.load(name, folder).parameters.get(key) == value for _, folder in points)
    }
    content = {
        "chapter": name,
        "claims": claims,
        "parameters": shared,
        "versions": saved.versions,
        "seconds": round(seconds, 2),
    }
    results.write_json(out / f"{name}.json", content)
    return out / f"{name}.csv"


def runs(
    name: str, given: Mapping[str, str], points: Sequence[Mapping[str, str]], out: Path
) -> list[Run]:
    """The runs of a grid, every point checked. Raises RequestError, also for a clash of names."""
    which = running.chapter(name)
    for axis in points[0]:
        if axis in given:
            raise RequestError(f"{axis!r} is both in --grid and in -p; keep one of them")
    if len({point_folder(out, point) for point in points}) < len(points):
        raise RequestError("two points of the grid would go into one folder; sweep them apart")
    folders = [point_folder(out, point) for point in points]
    return [
        Run(running.request(which, dict(given) | dict(point)), folder, folder.name)
        for point, folder in zip(points, folders, strict=True)
    ]


def here(
    wanted: Sequence[Run],
    jobs: int | None = None,
    report: Callable[[Done], None] = lambda done: None,
) -> list[Done]:
    """Train the union of the networks in one pool, then execute the points that are not there yet.

    Raises RequestError when a folder cannot be written to, and RunFailedError.
    """
    for run in wanted:
        running.make_folder(run.folder)
    running.train([run.request for run in wanted], jobs)
    stamps = {run.notebook: running.key(run) for run in wanted}
    before = [running.finished(run, stamps[run.notebook]) for run in wanted]
    pending = [run for run, found in zip(wanted, before, strict=True) if found is None]
    reused = [found for found in before if found is not None]
    for found in reused:
        report(found)
    return [*reused, *running.execute(pending, jobs, stamps, report)]


def on_scheduler(wanted: Sequence[Run], address: str) -> list[Done]:
    """Train and execute on the workers of a dask scheduler, which share this file system.

    Workers need one thread each: networks are trained in the worker's own process. Raises
    RequestError when dask is missing, nobody answers, the workers do not fit, or a folder cannot
    be written to, and RunFailedError.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise RequestError(
            "--scheduler needs dask: pip install 'dask[distributed]', or leave the option out"
        ) from error
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"no dask scheduler answers at {address!r} ({error}); start one with 'dask scheduler'"
        ) from error
    with client:
        threads = set(client.nthreads().values())
        if threads != {1}:
            found = f"has workers with {max(threads)} threads" if threads else "has no workers"
            raise RequestError(
                f"the scheduler at {address!r} {found}; start them with "
                f"'dask worker {address} --nthreads 1'"
            )
        for run in wanted:
            running.make_folder(run.folder)
        return _distribute(client, wanted)


def _distribute(client: Any, wanted: Sequence[Run]) -> list[Done]:
    from kdnotes.paths import cache_folder

    cache = str(cache_folder().absolute())
    base = str(Path.cwd())
    trained: dict[str, Any] = {}
    for run in wanted:
        study = run.request.study
        for item in running.networks([run.request]):
            teacher = item.spec.teacher
            if item.spec.key not in trained:
                trained[item.spec.key] = client.submit(
                    _train_there,
                    item,
                    study.settings.device,
                    study.data_dir and study.data_dir.absolute(),
                    cache,
                    trained[teacher.key] if teacher else None,
                    key=f"train-{item.spec.key}",
                )
    futures = [
        client.submit(
            _execute_there,
            run.request.chapter.name,
            {key: str(value) for key, value in run.request.given.items()},
            run.folder,
            {"KDNOTES_CACHE": cache, "KDNOTES_BOOK": str(paths.root())},
            base,
            [trained[item.spec.key] for item in running.networks([run.request])],
            pure=False,
        )
        for run in wanted
    ]
    done, failures = [], []
    for run, future in zip(wanted, futures, strict=True):
        try:
            done.append(Done(run, future.result(), reused=False))
        except RunFailedError as error:
            failures.append(str(error))
        except Exception as error:  # training failed, or the worker died
            failures.append(f"{run.folder.name}: {type(error).__name__}: {error}")
    if failures:
        raise RunFailedError("\n".join(failures))
    return done


def _train_there(
    item: Planned, device: str, data_dir: Path | None, cache: str, teacher: Any
) -> None:
    """Runs on a worker; ``teacher`` is there to make dask wait for it."""
    os.environ["KDNOTES_CACHE"] = cache
    import torch

    from kdnotes.training import cache as networks

    torch.set_num_threads(1)
    networks.train_one(item, device, data_dir)


def _execute_there(
    name: str,
    given: dict[str, str],
    folder: Path,
    environment: dict[str, str],
    base: str,
    trained: list[Any],
) -> float:
    """Runs on a worker, in the folder that the command was typed in; returns the seconds."""
    os.environ.update(environment)
    os.chdir(base)
    run = Run(running.request(running.chapter(name), given), running.make_folder(folder))
    return running.execute([run], jobs=1)[0].seconds
