"""Train many networks at once: one-thread workers, teachers before students, with progress."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from typing import Any

from kdnotes import data, networks, progress
from kdnotes.data import FOLDER_PREFIX, folders
from kdnotes.errors import RequestError
from kdnotes.training.specification import NetworkSpec, Planned

# Environment of a process that keeps the memory it frees: to ask the system for it anew costs a
# tenth of a training step, and up to half of a forward pass. Read by the C library at its start.
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}

# Trains a network, its teacher first, reporting epochs done and mean loss: `cache.train_one`.
Train = Callable[..., None]
Show = Callable[[Planned, int, float | None], None]  # epochs done, mean loss; None: finished

_events: Any = None  # in a worker: the queue on which it reports


def train_all(
    to_train: list[Planned], train: Train, jobs: int | None = None, device: str = "cpu"
) -> None:
    """Train networks, teachers first, on CPU by ``jobs`` workers; raises what one of them does."""
    if not device.startswith("cuda"):
        with display(to_train) as show:
            _in_workers(to_train, train, min(jobs or cores(), len(to_train)), show)
        return
    import torch

    if device == "cuda:all" and (gpus := torch.cuda.device_count()) > 1:
        _in_group(gpus, to_train, train)
    else:
        in_turn(to_train, train)


def in_turn(to_train: list[Planned], train: Train, quiet: bool = False) -> None:
    """Train networks one after the other, in this process or by its whole group."""
    with display(to_train, quiet) as show:
        for item in to_train:
            _train_shown(item, train, show)


def _train_shown(item: Planned, train: Train, show: Show) -> None:
    train(item, report=partial(show, item))
    show(item, item.spec.recipe.epochs, None)


def _in_group(processes: int, to_train: list[Planned], train: Train) -> None:
    """Train each network by several processes of this machine together; raises what one raised."""
    from lightning_fabric.plugins.environments.lightning import find_free_network_port
    from torch import multiprocessing

    port = find_free_network_port()
    multiprocessing.spawn(_member, (processes, port, to_train, train), processes)


def _member(rank: int, processes: int, port: int, to_train: list[Planned], train: Train) -> None:
    # As torchrun would say it to each.
    variables = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in variables.items()}
    in_turn(to_train, train, quiet=rank > 0)


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_workers(to_train: list[Planned], train: Train, workers: int, show: Show) -> None:
    for name, value in KEEP_FREED_MEMORY.items():
        os.environ.setdefault(name, value)
    context = get_context("spawn")
    events = context.Queue()
    listener = threading.Thread(target=_listen, args=(events, show), daemon=True)
    listener.start()
    executor = ProcessPoolExecutor(workers, context, _start_worker, (events,))
    # All teachers first, so that no student has to wait for its own.
    ordered = sorted(to_train, key=lambda item: item.spec.role != "teacher")
    try:
        futures = [executor.submit(_work, item, train) for item in ordered]
        for future in as_completed(futures):
            future.result()
    except BaseException:
        # Ctrl-C or a failure: what is finished is saved; do not wait for the rest.
        for process in list(executor._processes.values()):
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        events.put(None)
        listener.join(timeout=5)
    executor.shutdown()


def _start_worker(events: Any) -> None:
    global _events
    _events = events
    for name in ("SIGINT", "SIGHUP"):  # the parent answers Ctrl-C and a terminal that is closed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def end_with_parent() -> None:
    """End this process when its parent has ended, even by a kill that nobody can answer."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _work(item: Planned, train: Train) -> None:
    _train_shown(item, train, lambda *event: _events.put(event))


def _listen(events: Any, show: Show) -> None:
    for event in iter(events.get, None):
        show(*event)


@contextmanager
def display(to_train: list[Planned], quiet: bool = False) -> Iterator[Show]:
    """What is trained now, how far it is, how long the rest will take; or ``quiet``."""
    many = f"{len(to_train)} networks"
    work = {item.spec.key: cost(item) for item in to_train}
    reached, finished = dict.fromkeys(work, 0), 0
    with progress.shown(f"training {many}", sum(work.values()), quiet) as shown:

        def show(item: Planned, epoch: int, loss: float | None) -> None:
            nonlocal finished
            key, epochs = item.spec.key, item.spec.recipe.epochs
            if loss is None:
                shown.remove(key)
                finished += 1
            else:
                shown.line(key, f"{item}: epoch {epoch}/{epochs}, loss {loss:.3f}", epoch, epochs)
            title = f"trained {finished} of {many}" if loss is None else None
            shown.advance(work[key] * (epoch - reached[key]) / epochs, title)
            reached[key] = epoch

        yield show


def pixels(spec: NetworkSpec) -> int:
    """Side in pixels of the images that a network is shown, 32 where nothing tells it."""
    size = int(spec.data.options.get("size", 32))
    if spec.data.name.startswith(FOLDER_PREFIX):
        size = _size_in_folder(spec.data.name, json.dumps(spec.data.options, sort_keys=True))
    return size if spec.recipe.resized is None else spec.recipe.resized.size or size


@lru_cache(maxsize=64)
def _size_in_folder(name: str, options: str) -> int:
    try:
        return folders.image_size(name, json.loads(options))
    except RequestError:  # it is gone; that is said where the images are read
        return 32


def cost(item: Planned) -> float:
    """Rough seconds of training on one core: together, the laptop edition's took as many."""
    spec, recipe = item.spec, item.spec.recipe
    if spec.pretrained:
        return 0.0
    size = pixels(spec)
    # A folder of photos says how many it has only when it is read: ImageNet's number is meant.
    many = 1_281_167 if spec.large_images else data.source(spec.data.name).about
    many = spec.data.count or many
    counts = folders.counts_of(str(spec.data.options.get("counts", "")))
    # Groups without a number are left out of account.
    images = (min(many, sum(counts.values())) if counts else many) * recipe.epochs
    work = 6 * networks.multiply_adds(spec.model, size, not spec.large_images)
    live = spec.needs_layer or recipe.resized is not None
    if spec.teacher is not None and live and not spec.teacher.parts:
        work += 2 * networks.multiply_adds(spec.teacher.model, size, not spec.large_images)
    # Maps have to be moved as well as computed: that grows with their area, too.
    return 0.73 + images * (work / 109e9 + 3.66e-3 / recipe.batch * (size / 32) ** 2)
