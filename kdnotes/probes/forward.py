"""Answers of frozen networks, batch by batch: each batch is read once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes.cast import Member
from kdnotes.probes.outcome import Recorder

BATCH_SIZE = 250  # small nets on a CPU are as fast at 100 to 500 images; smaller needs less memory


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU for a network that has none."""
    first = next(iter((*network.parameters(), *network.buffers())), None)
    return torch.device("cpu") if first is None else first.device


def batches(
    data: ImageData, device: torch.device, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices int64 (n,) on the CPU with their images, float (n, 3, H, W) in [0, 1] on the device.

    Raises RequestError when there are no images.
    """
    if len(data) == 0:
        raise RequestError("the data set holds no images to measure on")
    for indices in torch.arange(len(data)).split(batch_size):
        yield indices, to_float(data.batch(indices).to(device))


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (n, classes) on the CPU in float32, without a graph."""
    with torch.inference_mode():
        return network(images).float().cpu()


def all_logits(
    members: Sequence[Member], data: ImageData, batch_size: int = BATCH_SIZE
) -> list[Tensor]:
    """Logits (N, classes) of every network on every image, on the CPU."""
    parts: list[list[Tensor]] = [[] for _ in members]
    for _, images in batches(data, device_of(members[0].network), batch_size):
        for member, part in zip(members, parts, strict=True):
            part.append(logits_of(member.network, images))
    return [torch.cat(part) for part in parts]


def record_accuracy(recorder: Recorder, member: Member, answers: Tensor) -> None:
    """The measure that stands beside every other: are the answers (N,) right?"""
    recorder.add(member, "accuracy", answers == recorder.data.labels, answers)
