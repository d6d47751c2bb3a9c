"""Train many networks at once: one-thread workers, teachers before students, with progress."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kdnotes.training import cache
from kdnotes.training.cache import Planned

# Environment of a process that keeps the memory it frees: asking the system for it anew costs a
# tenth of a training step, and up to half of a forward pass. Read by the C library at its start.
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}

_events: Any = None  # in a worker: the queue on which it reports


def train_all(
    to_train: list[Planned],
    jobs: int | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
    quiet: bool | None = None,
) -> None:
    """Train networks in order of dependency; raises what the first failing one raised.

    ``to_train`` names teachers before their students. On a GPU the networks follow one another in
    this process, on all GPUs in one process for each; on CPU they share ``jobs`` worker processes.
    """
    if device == "cuda:all" and _gpus() > 1:
        in_group(to_train, device, data_dir, _gpus())
        return
    if device.startswith("cuda"):
        with progress(to_train, quiet) as show:
            for item in to_train:
                cache.train_one(
                    item,
                    device,
                    data_dir,
                    lambda epoch, loss, item=item: show((item.spec.key, epoch, loss)),
                )
        return
    workers = min(jobs or cores(), len(to_train))
    for name, value in KEEP_FREED_MEMORY.items():
        os.environ.setdefault(name, value)
    context = get_context("spawn")
    events = context.Queue()
    with progress(to_train, quiet) as show:
        listener = threading.Thread(target=_listen, args=(events, show), daemon=True)
        listener.start()
        executor = ProcessPoolExecutor(workers, context, _start_worker, (events,))
        try:
            _run(executor, to_train, device, data_dir, workers)
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


def in_group(to_train: list[Planned], device: str, data_dir: Path | None, processes: int) -> None:
    """Train each network by several processes of this machine together, started by torchrun.

    Raises RuntimeError when one of them fails; what was finished is kept.
    """
    with tempfile.TemporaryDirectory(prefix="kdnotes-") as folder:
        listed = Path(folder) / "networks.json"
        items = [{"arm": item.arm, "spec": item.spec.model_dump(mode="json")} for item in to_train]
        listed.write_text(json.dumps(items))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", "kdnotes.book.train_networks"]
        command += ["--networks", str(listed), "-p", f"device={device}"]
        if data_dir is not None:
            command += ["-p", f"data_dir={data_dir.absolute()}"]
        status = subprocess.run(command).returncode
    if status:
        raise RuntimeError(f"a training process failed (exit status {status}); see above")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    executor: ProcessPoolExecutor,
    to_train: list[Planned],
    device: str,
    data_dir: Path | None,
    workers: int,
) -> None:
    keys = {item.spec.key for item in to_train}
    waiting = list(to_train)
    done: set[str] = set()
    running: dict[Future[None], str] = {}
    while waiting or running:
        for item in list(waiting):
            ready = all(key not in keys or key in done for key in cache.keys_behind(item.spec))
            # No more than the workers can take: what becomes ready later may be more urgent.
            if ready and len(running) < workers:
                waiting.remove(item)
                running[executor.submit(_work, item, device, data_dir)] = item.spec.key
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()
            done.add(running.pop(future))


def _start_worker(events: Any) -> None:
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _work(item: Planned, device: str, data_dir: Path | None) -> None:
    key = item.spec.key
    cache.train_one(item, device, data_dir, lambda epoch, loss: _events.put((key, epoch, loss)))
    _events.put((key, item.spec.recipe.epochs, None))


def _listen(events: Any, show: Any) -> None:
    while True:
        try:
            event = events.get(timeout=60)
        except queue.Empty:
            continue
        if event is None:
            return
        show(event)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return bool(shell and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell")


@contextmanager
def progress(to_train: list[Planned], quiet: bool | None) -> Iterator[Any]:
    """A display of what is trained now, how far it is, and how long the rest will take."""
    if quiet is None:
        quiet = not (sys.stderr.isatty() or in_notebook())
    if quiet:
        yield lambda event: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    by_key = {item.spec.key: item for item in to_train}
    weight = {item.spec.key: cost(item) for item in to_train}
    console = Console(stderr=True) if not in_notebook() else Console(force_jupyter=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        overall = progress.add_task(f"training {len(by_key)} networks", total=sum(weight.values()))
        lines: dict[str, Any] = {}
        reached: dict[str, int] = {}

        def show(event: tuple[str, int, float | None]) -> None:
            key, epoch, loss = event
            item = by_key[key]
            epochs = item.spec.recipe.epochs
            if key not in lines:
                lines[key] = progress.add_task("", total=epochs)
            described = (
                f"  {item.arm}, {item.spec.model}, seed {item.spec.seed}: epoch {epoch}/{epochs}"
            )
            if loss is not None:
                described += f", loss {loss:.3f}"
            progress.update(lines[key], completed=epoch, description=described)
            progress.advance(overall, weight[key] * (epoch - reached.get(key, 0)) / epochs)
            reached[key] = epoch
            if loss is None:
                progress.remove_task(lines[key])
                count = sum(cache.is_complete(other.spec) for other in to_train)
                progress.update(overall, description=f"trained {count} of {len(by_key)} networks")

        yield show


def cost(item: Planned) -> float:
    """Rough seconds of training on one core, from the multiply-adds of the networks involved."""
    from kdnotes import networks

    spec = item.spec
    if spec.pretrained:
        return 0.0
    size = int(spec.data.options.get("size", 32))
    if spec.recipe.resized is not None:
        size = spec.recipe.resized.size or size
    # A folder of photos says how many it has only when it is read: ImageNet's number is meant.
    many = 1_281_167 if spec.large_images else 50_000
    images = (spec.data.count or many) * spec.recipe.epochs
    work = 6 * networks.multiply_adds(spec.model, size, not spec.large_images)
    live = (
        spec.method is not None and spec.method.layers() is not None
    ) or spec.recipe.resized is not None
    if spec.teacher is not None and live and not spec.teacher.parts:
        work += 2 * networks.multiply_adds(spec.teacher.model, size, not spec.large_images)
    overhead = 2.5 / spec.recipe.batch * 4e-3
    return 2 + images * (work / 40e9 + overhead)
