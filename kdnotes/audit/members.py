"""Networks as an audit uses them: each at its own size, and none is asked the same twice."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdnotes import networks
from kdnotes.errors import RequestError
from kdnotes.networks import Normalized
from kdnotes.probes.base import BATCH_SIZE, Member, check_finite, device_of

CHUNK = 6 * 224**2  # pixels of a pass on one core: their maps stay near the processor
ROOM = 1e9  # bytes for what a batch needs at once
MOST = 256e6  # bytes of logits that are kept of one network
_SEAL = 8  # bytes behind the logits, by which damage is seen


class Answers:
    """Logits of one network, by the mark of the image that they answer.

    In a file they outlive the process, however that ends; one that is no such table is begun anew,
    and one that cannot be written to is given up: only a kill would lose anything then.
    """

    def __init__(self, path: Path | str = ":memory:") -> None:
        try:
            self._open(path)
        except sqlite3.DatabaseError:
            Path(path).unlink()
            self._open(path)

    def _open(self, path: Path | str) -> None:
        self._table = sqlite3.connect(path, isolation_level=None)
        # Not waited for until it is on the disk: what a failing machine loses is asked again.
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE IF NOT EXISTS answers (mark BLOB PRIMARY KEY, said BLOB)")
        if self._table.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        (self._bytes,) = self._table.execute("SELECT TOTAL(LENGTH(said)) FROM answers").fetchone()

    def known(self, marks: Sequence[bytes]) -> dict[int, Tensor]:
        """Place -> logits (classes,) of those marks whose image was answered before."""
        found = {}
        for place, mark in enumerate(marks):
            row = self._table.execute("SELECT said FROM answers WHERE mark = ?", (mark,)).fetchone()
            if row and row[0] == _sealed(mark, row[0][:-_SEAL]):
                found[place] = torch.frombuffer(bytearray(row[0][:-_SEAL]), dtype=torch.float32)
        return found

    def add(self, marks: Sequence[bytes], logits: Tensor) -> None:
        """Keep logits float32 (N, classes) of so many marks, as long as there is room."""
        both = zip(marks, logits.numpy(), strict=True)
        rows = [(mark, _sealed(mark, its.tobytes())) for mark, its in both]
        size = sum(len(said) for _, said in rows)
        if self._bytes + size > MOST:
            return
        try:
            self._table.execute("BEGIN")
            self._table.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            self._table.execute("COMMIT")
            self._bytes += size
        except sqlite3.Error:  # no room, or an audit beside this one has finished and deleted it
            self._open(":memory:")


def _sealed(mark: bytes, said: bytes) -> bytes:
    return said + hashlib.sha256(mark + said).digest()[:_SEAL]


class Audited(Normalized):
    """A network for images of any size in [0, 1], which it scales to its own.

    side: in pixels, what the body is shown, None for images as they are; columns: for each of the
    body's classes the class of the images that it counts for, -1 for none (probabilities add up).
    Without gradients and hooks, images are shown on all cores, and no image is shown twice.
    """

    def __init__(self, network: Normalized, side: int | None, columns: Sequence[int]) -> None:
        super().__init__(network.body, (0.0,) * 3, (1.0,) * 3, network.size)
        self.mean, self.std = network.mean, network.std
        self.side, self.columns = side, tuple(columns)
        self.report: Callable[[float], None] = lambda passes: None
        self.answers = Answers()

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] as the body wants them."""
        if self.side and images.shape[-1] != self.side:
            sides = (self.side, self.side)
            images = nn.functional.interpolate(images, sides, mode="bilinear", antialias=True)
        return super().normalize(images)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_cuda or torch.is_grad_enabled() or _is_watched(self):
            self.report(len(images) * (3.0 if torch.is_grad_enabled() else 1.0))
            return self._answer(images)
        pool, cores = _cores()
        marks = list(pool.map(_mark, images))
        answers = self.answers.known(marks)
        new = [at for at in range(len(images)) if at not in answers]
        side = self.side or images.shape[-1]
        # As many for each core, and of equal sizes: a pass on a few small images rounds otherwise
        # than one on many.
        count = cores * math.ceil(len(new) * side**2 / CHUNK / cores)
        chunks = [each.tolist() for each in torch.tensor(new).tensor_split(count or 1) if len(each)]

        def show(places: list[int]) -> Tensor:
            with torch.inference_mode():
                return self._answer(images[places]).float()  # as all answers are kept

        for places, logits in zip(chunks, pool.map(show, chunks), strict=True):
            self.report(len(places))
            answers |= dict(zip(places, logits, strict=True))
        if new:
            self.answers.add([marks[at] for at in new], torch.stack([answers[at] for at in new]))
        return torch.stack([answers[place] for place in range(len(images))])

    def _answer(self, images: Tensor) -> Tensor:
        logits = self.body(self.normalize(images))
        if not self.columns:
            return logits
        columns = torch.tensor(self.columns, device=logits.device)
        named = range(max(self.columns) + 1)
        return torch.stack([logits[:, columns == name].logsumexp(1) for name in named], 1)


def member(
    arm: str, seed: int, network: Normalized, side: int | None = None, columns: Sequence[int] = ()
) -> Member:
    """A copy of a network as a member of a cast, frozen, on the graphics card where there is one.

    Raises RequestError for weights that are not finite.
    """
    from kdnotes.study.study import resolve_device

    for name, values in network.state_dict().items():
        if not bool(values.isfinite().all()):
            raise RequestError(f"{arm} {seed} has weights that are not finite numbers ({name})")
    # Frozen first: with what remembers answers, layers could not be tried before and after.
    audited = Audited(networks.freeze(network), side, columns).eval().to(resolve_device(""))
    taps: tuple[str, ...] = ()
    with suppress(RequestError):  # only some properties need them, and say so
        taps = networks.taps(audited)
    return Member(arm, seed, audited, taps)


def digest(network: nn.Module) -> str:
    """Name of what a network computes: its weights, its layers, and how images reach it."""
    state = hashlib.sha256(repr(network).encode())
    for name in ("side", "columns"):
        state.update(repr(getattr(network, name, None)).encode())
    for name, values in network.state_dict().items():
        state.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        state.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def room(everyone: Sequence[Member], size: int) -> tuple[int, int]:
    """How many images at a time there is room for, without gradients and with them.

    What each layer of the largest network gives for one image of a size is measured.
    """
    needs = [_bytes_of_layers(each.network, size) for each in everyone]
    largest, everything = (max(each) for each in zip(*needs, strict=True))
    image = 12 * size**2
    plain, gradients = (
        max(1, min(BATCH_SIZE, int(ROOM / (8 * image + layers))))
        for layers in (4 * largest, 3 * everything)
    )
    return plain, gradients


def _bytes_of_layers(network: nn.Module, size: int) -> tuple[int, int]:
    """Bytes of the largest output of a layer, and of all, for one image."""
    found = [1]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append(output.numel() * output.element_size())

    with ExitStack() as hooks, torch.inference_mode():
        for layer in network.modules():
            if not list(layer.children()):
                hooks.enter_context(layer.register_forward_hook(note))
        network(torch.zeros(1, 3, size, size, device=device_of(network)))
    return max(found), sum(found)


def _is_watched(network: nn.Module) -> bool:
    """Whether somebody wants to see what a layer gives: then it has to give it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    hooks = (getattr(each, kind).values() for each in network.modules() for kind in kinds)
    return any(hook is not check_finite for hook in itertools.chain.from_iterable(hooks))


def _mark(image: Tensor) -> bytes:
    pixels = image.permute(1, 2, 0).contiguous().numpy().data
    return hashlib.sha256(pixels).digest() + bytes(str(image.shape), "ascii")


@cache
def _cores() -> tuple[ThreadPoolExecutor, int]:
    """A thread per core that computes by itself (networks on few images share badly); how many."""
    before = torch.get_num_threads()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    count = min(before, available)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    pool.submit(int).result()
    torch.set_num_threads(before)
    return pool, count
