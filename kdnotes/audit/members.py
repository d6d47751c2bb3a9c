"""Networks as an audit uses them: each at its own size, what they answered remembered."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from kdnotes import networks
from kdnotes.audit.remembering import Answers
from kdnotes.errors import RequestError
from kdnotes.probes.base import BATCH_SIZE, Member, check_finite, device_of
from kdnotes.study.study import resolve_device

if TYPE_CHECKING:
    from kdnotes.probes.base import Cast

CHUNK = 6 * 224**2  # pixels of a pass on one core: their maps stay near the processor
ROOM = 1e9  # bytes for what a batch needs at once


class Audited(networks.Normalized):
    """A network for images of any size in [0, 1], which it scales to its own.

    side: in pixels, what the body is shown, None for images as they are; columns: for each of the
    body's classes the class of the images that it counts for, -1 for none (probabilities add up).
    Without gradients and hooks, images are shown on all cores, and no image is shown twice.
    """

    def __init__(
        self, network: networks.Normalized, side: int | None, columns: Sequence[int] = ()
    ) -> None:
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
        marks = list(_cores().map(_mark, images))
        answers = self.answers.known(marks)
        new = [at for at in range(len(images)) if at not in answers]
        side = self.side or images.shape[-1]
        # As many for each core, and of equal sizes: a pass on a few small images rounds otherwise
        # than one on many.
        count = _core_count() * math.ceil(len(new) * side**2 / CHUNK / _core_count())
        chunks = [each.tolist() for each in torch.tensor(new).tensor_split(count or 1) if len(each)]

        def show(places: list[int]) -> Tensor:
            with torch.inference_mode():
                return self._answer(images[places]).float()  # as all answers are kept

        for places, logits in zip(chunks, _cores().map(show, chunks), strict=True):
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
    called: str,
    arm: str,
    seed: int,
    module: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    side: int | None = None,
    columns: Sequence[int] = (),
) -> Member:
    """A copy of a network as a member of a cast, frozen, on the graphics card where there is one.

    Raises RequestError for weights that are not finite.
    """
    for name, values in module.state_dict().items():
        if not bool(values.isfinite().all()):
            raise RequestError(f"{called} has weights that are not finite numbers ({name})")
    if not isinstance(module, networks.Normalized):
        module = networks.Normalized(module, (*(mean or (0.0,) * 3),), (*(std or (1.0,) * 3),))
    frozen = networks.freeze(module)  # what remembers answers could not be tried before and after
    network = Audited(frozen, side, columns).eval().to(resolve_device(""))
    try:
        taps = networks.taps(network)
    except RequestError:  # only some properties need them, and say so
        taps = ()
    return Member(arm, seed, network, taps)


def digest(network: nn.Module) -> str:
    """Name of what a network computes: its weights, its layers, and how images reach it."""
    state = hashlib.sha256(repr(network).encode())
    for name in ("side", "columns"):
        state.update(repr(getattr(network, name, None)).encode())
    for name, values in network.state_dict().items():
        state.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        state.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


class Room(NamedTuple):
    """How many images at a time a cast leaves room for, without gradients and with them."""

    plain: int
    gradients: int


def room(of: Cast, size: int) -> Room:
    """What each layer of the largest network gives for one image of a size is measured."""
    image = 12 * size**2
    needs = [_bytes_of_layers(each.network, size) for each in of.everyone()]
    largest, everything = (max(each) for each in zip(*needs, strict=True))
    plain, gradients = 8 * image + 4 * largest, 8 * image + 3 * everything
    return Room(*(max(1, min(BATCH_SIZE, int(ROOM / each))) for each in (plain, gradients)))


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
    hooks = [
        hook
        for each in network.modules()
        for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())
    ]
    return any(hook is not check_finite for hook in hooks)


def _mark(image: Tensor) -> bytes:
    pixels = image.permute(1, 2, 0).contiguous().numpy().data
    return hashlib.sha256(pixels).digest() + bytes(str(image.shape), "ascii")


@lru_cache(maxsize=1)
def _core_count() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(torch.get_num_threads(), available)


@lru_cache(maxsize=1)
def _cores() -> ThreadPoolExecutor:
    """A thread per core that computes by itself: networks on few images do not share well."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(_core_count(), initializer=torch.set_num_threads, initargs=(1,))
    pool.submit(int).result()
    torch.set_num_threads(before)
    return pool
