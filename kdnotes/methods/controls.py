"""Soft labels that are not this teacher's word on this image: the controls of what is handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdnotes.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def smoothed_labels(labels: Tensor, num_classes: int, confidence: float) -> Tensor:
    """Soft labels without a teacher: the true class at a confidence, the rest shared evenly.

    ``labels`` int64 (N,); returns probabilities (N, num_classes). Raises ``ValueError`` for fewer
    than two classes or a confidence outside [0, 1]. Source: label smoothing of Szegedy et al. 2016,
    arXiv 1512.00567, section 7, as a teacher-free control.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but must be at least 2")
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is {confidence}, but must be in [0, 1]")
    rest = (1 - confidence) / (num_classes - 1)
    probabilities = torch.full((len(labels), num_classes), rest, device=labels.device)
    return probabilities.scatter_(1, labels.unsqueeze(1), confidence)


def permute_within_class(labels: Tensor, generator: Generator) -> Tensor:
    """For each item another item of the same class, each used once: a control for KL.

    ``labels`` int64 (N,) and ``generator`` on the CPU; returns int64 (N,), a permutation p with
    ``labels[p] == labels``. Within a class it is a random single cycle, so that no item keeps its
    own place (an item alone in its class has no other, and does).
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    cycle = shuffled[labels[shuffled].argsort(stable=True)]
    ends = labels.unique(return_counts=True)[1].cumsum(0)
    following = cycle.roll(-1)
    following[ends - 1] = cycle[torch.cat([ends.new_zeros(1), ends[:-1]])]
    permutation = torch.empty_like(cycle)
    permutation[cycle] = following
    return permutation
