"""CRD: student and teacher embed the same image alike, and images of other classes apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdnotes.lazy import torch
from kdnotes.methods.base import Batch, Method

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


class CRD(Method):
    """Contrastive representation distillation with memory banks, negatives of other classes only.

    With s and t the embeddings of the two networks (a linear layer to ``embedding`` numbers, then
    unit length), the loss of an image x with N = ``negatives`` images y_j of other classes is

        -log h(s(x), t(x)) - sum_j log(1 - h(s(x), t(y_j))),
        h(a, b) = (e^{a.b/T} / Z) / (e^{a.b/T} / Z + N/M),    M = number of training images,

    plus the same with the roles of s and t exchanged; the second argument of h always comes from
    a memory bank that keeps one entry per training image. T is ``contrast_temperature``. Z is 1 in
    the paper; by default there is one Z per role, the mean of e^{a.b/T} over the first batch times
    M, as in Tian's released code; ``normalizer`` fixes it. After each batch in training mode the
    images' entries become momentum * old + (1 - momentum) * new, at unit length. Both linear
    layers are trained; the banks are buffers and never receive a gradient.
    """

    name = "crd"
    label = "CRD (contrastive)"
    short = "CRD"
    colour = "#007F5C"
    marker = "D"
    line = (0, (5, 1))
    source = (
        "Tian, Krishnan and Isola 2020, arXiv 1910.10699, equations 9-19; the RepDistiller code "
        "for what the paper leaves open (mode exact, both roles, Z, momentum), except that "
        "negatives are drawn with replacement"
    )
    by_default = True
    rank = 3
    details = "{negatives} negatives"

    weight: float = Field(default=0.8, ge=0, description="weight of the contrast")
    negatives: int = Field(default=512, ge=1, description="images of other classes per image")
    contrast_temperature: float = Field(default=0.07, gt=0)
    momentum: float = Field(default=0.5, ge=0, lt=1, description="share kept of an old entry")
    embedding: int = Field(default=128, ge=1, description="numbers per embedding")
    normalizer: float | None = Field(default=None, gt=0)

    def prepare(self, example: Batch, labels: Tensor, seed: int) -> nn.Module:
        """Two linear layers and two memory banks (M, embedding) for the labels (M,).

        Raises ``ValueError`` for labels of a single class.
        """
        _, classes, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError("labels name a single class, but negatives come from other classes")
        beside: Any = torch.nn.Module()
        generator = torch.Generator().manual_seed(seed)
        for name, network in (("student", example.student), ("teacher", example.teacher)):
            layer = _seeded_linear(network.features[0].numel(), self.embedding, generator)
            beside.add_module(f"{name}_embedding", layer)
        # Entries of about unit length, as in RepDistiller: a uniform number has variance a^2 / 3.
        bound = math.sqrt(3 / self.embedding)
        for name in ("student_bank", "teacher_bank"):
            start = torch.empty(len(labels), self.embedding)
            beside.register_buffer(name, start.uniform_(-bound, bound, generator=generator))
        log_normalizer = math.log(self.normalizer) if self.normalizer else math.nan
        beside.register_buffer("log_normalizers", torch.full((2,), log_normalizer))
        beside.normalizers_known = self.normalizer is not None
        # Items grouped by class and written twice: those of all other classes then follow, without
        # a break, the items of any class.
        items = classes.argsort(stable=True)
        beside.register_buffer("items_twice", items.repeat(2), persistent=False)
        beside.register_buffer("first_other", counts.cumsum(0)[classes], persistent=False)
        beside.register_buffer("others", len(labels) - counts[classes], persistent=False)
        return beside

    def term(self, batch: Batch) -> Tensor:
        """The contrast, both roles, and in training mode the update of the memory banks.

        Where several processes share a batch, each gives its rows; negatives, Z and banks are
        those of the whole batch, the same in all processes.
        """
        beside = batch.beside
        everybody = batch.group.gathered(batch.indices)
        chosen = draw(beside, everybody, self.negatives, batch.generator)
        chosen = chosen[batch.group.share(len(everybody))]
        with torch.autocast(batch.indices.device.type, enabled=False):
            student = _embed(beside.student_embedding, batch.student.features)
            teacher = _embed(beside.teacher_embedding, batch.teacher.features.detach())
            loss = self._one_role(batch, student, beside.teacher_bank, chosen, role=0)
            loss = loss + self._one_role(batch, teacher, beside.student_bank, chosen, role=1)
        beside.normalizers_known = True
        if beside.training:
            for bank, own in ((beside.student_bank, student), (beside.teacher_bank, teacher)):
                new = batch.group.gathered(own.detach())
                mixed = bank.index_select(0, everybody).lerp_(new, 1 - self.momentum)
                bank.index_copy_(0, everybody, torch.nn.functional.normalize(mixed, dim=1))
        return loss

    def _one_role(
        self, batch: Batch, anchors: Tensor, bank: Tensor, chosen: Tensor, role: int
    ) -> Tensor:
        """Mean loss of the anchors (B, D) against a bank (M, D); column 0 of chosen is positive.

        The gradient is formed here together with the value: the bank is overwritten before
        anything runs backwards, and this way no copy of it, nor any (B, M) matrix, is kept.
        """
        beside, temperature = batch.beside, self.contrast_temperature
        functional = torch.nn.functional
        rows, drawn = chosen.shape
        with torch.no_grad():
            scores = _scores(anchors, bank, chosen).div_(temperature)
            if not beside.normalizers_known:
                estimate = scores.logsumexp((0, 1)) + math.log(len(bank) / scores.numel())
                every = batch.group.gathered(estimate.unsqueeze(0))  # one of each process
                estimate = every.logsumexp(0) - math.log(len(every))
                known = beside.log_normalizers[role]
                # A restored state brings its own constant; asking the device would wait for it.
                known.copy_(torch.where(known.isnan(), estimate, known))
            # h = sigmoid(score - log Z - log(N/M)), so both logarithms are log-sigmoids.
            offset = beside.log_normalizers[role] + math.log((drawn - 1) / len(bank))
            margins = offset - scores
            margins[:, 0].neg_()
            value = functional.logsigmoid(margins).sum() / -rows
            if not anchors.requires_grad:
                return value
            slopes = margins.neg_().sigmoid_().div_(temperature * rows)
            slopes[:, 0].neg_()
            gradient = functional.embedding_bag(chosen, bank, per_sample_weights=slopes, mode="sum")
        # A term that is zero, to the last digit, and has that gradient.
        slope = (anchors * gradient).sum()
        return value + (slope - slope.detach())


def draw(beside: Any, indices: Tensor, negatives: int, generator: Generator) -> Tensor:
    """Each image itself, its positive, then images of other classes, its negatives.

    ``indices``: int64 (B,) on the generator's device. Returns int64 (B, 1 + negatives), the
    negatives drawn uniformly and with replacement.
    """
    size = (len(indices), 1 + negatives)
    draws = torch.randint(2**31, size, generator=generator, device=indices.device)
    # Multiply and shift instead of a remainder: cheaper, and as uniform (to one part in 2^31).
    draws = draws.mul_(beside.others[indices].unsqueeze(1)).bitwise_right_shift_(31)
    chosen = beside.items_twice.take(draws.add_(beside.first_other[indices].unsqueeze(1)))
    chosen[:, 0] = indices
    return chosen


def _scores(anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """Dot products of each anchor (B, D) with its chosen rows of the bank (M, D): (B, K).

    One product with the whole bank and a gather, as long as that takes less memory than the chosen
    rows would: fetching rows is about a hundred times slower per row than multiplying them.
    """
    if len(bank) <= bank.shape[1] * chosen.shape[1]:
        return (anchors @ bank.T).gather(1, chosen)
    rows = torch.nn.functional.embedding(chosen, bank)
    return torch.bmm(rows, anchors.unsqueeze(2)).squeeze(2)


def _embed(layer: Any, features: Tensor) -> Tensor:
    """Features (B, ...) on the unit sphere of the embedding (B, D), in the layer's precision."""
    mapped = layer(features.flatten(1).to(layer.weight.dtype))
    return torch.nn.functional.normalize(mapped, dim=1)


def _seeded_linear(inputs: int, outputs: int, generator: Generator) -> Any:
    """A linear layer with torch's usual initial distribution, drawn from the generator."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
