"""Soft labels that are not this teacher's word on this image: the controls of what is handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdnotes.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def smoothed_labels(labels: Tensor, num_classes: int, confidence: float) -> Tensor:
    """Soft labels without a teacher: the true class at a confidence, the rest shared evenly.

    ``labels`` int64 (N,), of two classes or more; returns probabilities (N, num_classes). Source:
    label smoothing of Szegedy et al. 2016, arXiv 1512.00567, section 7, without a teacher.
    """
    rest = (1 - confidence) / (num_classes - 1)
    probabilities = torch.full((len(labels), num_classes), rest, device=labels.device)
    return probabilities.scatter_(1, labels.unsqueeze(1), confidence)


def permute_within_class(labels: Tensor, generator: Generator) -> Tensor:
    """For each item another item of the same class, each used once: a control for KL.

    ``labels`` int64 (N,) and ``generator`` on the CPU; returns int64 (N,), a permutation p with
    ``labels[p] == labels``: within a class a random single cycle, so that no item keeps its place
    unless it is alone.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    cycle = shuffled[labels[shuffled].argsort(stable=True)]
    ends = labels.unique(return_counts=True)[1].cumsum(0)
    following = cycle.roll(-1)
    following[ends - 1] = cycle[torch.cat([ends.new_zeros(1), ends[:-1]])]
    permutation = torch.empty_like(cycle)
    permutation[cycle] = following
    return permutation
