"""What a student is trained on besides the labels: soft labels, hints, contrast, and controls.

Every objective returns one scalar, the mean over the batch, computed in at least single precision
whatever precision the networks run in, and sends no gradient to the teacher. `combine` adds them:
gamma * cross-entropy + weight * objective (section 3 of Ojha et al. 2023, arXiv 2205.16004).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, LongTensor, Tensor, nn
from torch.nn import functional as F

from kdnotes.training import distributed

# The fields of a specification that each method reads besides `method` and `gamma`.
_READ_BY_METHOD: dict[str, tuple[str, ...]] = {
    "none": (),
    "kl": ("weight", "tau", "labels"),
    "hint": ("weight", "hint_student", "hint_teacher"),
    "crd": ("weight", "crd_negatives", "crd_momentum", "crd_tau"),
}


class ObjectiveSpec(BaseModel):
    """What a student is trained on: gamma * cross-entropy + weight * the method's term.

    ``tau`` is the temperature of KL and ``labels`` says whose soft labels it is given: the
    teacher's, smoothed ones without a teacher, or the teacher's permuted within each class.
    ``hint_student`` and ``hint_teacher`` are the dotted paths of the two layers that Hint matches.
    ``crd_negatives`` are drawn per image, ``crd_tau`` is the temperature of the contrast and
    ``crd_momentum`` the share that a memory keeps of an old entry.

    Fields that the method does not read are put back to their defaults, so that specifications
    that train the same network are equal and get the same cache key.

    Raises ``pydantic.ValidationError`` for a value out of range, for a hint without both layers,
    for soft labels of a method that uses none, and if nothing is left to train on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["none", "kl", "hint", "crd"] = "none"
    gamma: float = Field(default=1.0, ge=0)
    weight: float = Field(default=0.0, ge=0)
    tau: float = Field(default=4.0, gt=0)
    labels: Literal["teacher", "smoothed", "permuted"] = "teacher"
    hint_student: str = ""
    hint_teacher: str = ""
    crd_negatives: int = Field(default=1024, ge=1)
    crd_momentum: float = Field(default=0.5, ge=0, lt=1)
    crd_tau: float = Field(default=0.07, gt=0)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.method == "hint" and not (self.hint_student and self.hint_teacher):
            raise ValueError("method 'hint' needs both hint_student and hint_teacher")
        if self.labels != "teacher" and self.method != "kl":
            raise ValueError(f"labels {self.labels!r} need method 'kl', not {self.method!r}")
        # Straight into the dictionary, because the model is frozen for everybody else.
        read = {"method", "gamma", *_READ_BY_METHOD[self.method]}
        for name, field in type(self).model_fields.items():
            if name not in read:
                self.__dict__[name] = field.default
        if self.gamma == 0 and self.weight == 0:
            raise ValueError("gamma and weight are both 0: nothing is left to train on")
        return self


def combine(terms: Mapping[str, Tensor], spec: ObjectiveSpec) -> Tensor:
    """The total to minimise, gamma * terms["ce"] + weight * terms[spec.method].

    ``terms`` holds the scalar cross-entropy under "ce" and, unless the method is "none", the
    method's scalar under its own name. Returns a scalar.

    Raises ``ValueError`` if the names are not exactly those.
    """
    expected = {"ce"} if spec.method == "none" else {"ce", spec.method}
    if set(terms) != expected:
        raise ValueError(f"terms are {sorted(terms)}, but {sorted(expected)} are expected")
    total = spec.gamma * terms["ce"]
    if spec.method != "none":
        total = total + spec.weight * terms[spec.method]
    return total


def kl(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Temperature-scaled divergence of the student from the teacher, tau^2 * KL(teacher||student).

    Both logits (N, classes); returns the scalar batch mean, in nats times tau^2. Its gradient is
    that of the tau^2-scaled cross-entropy with the teacher's soft labels, the form in which the
    paper writes it: the two differ by the teacher's entropy.

    Raises ``ValueError`` as `kl_to_probabilities` does. Source: Hinton, Vinyals and Dean 2015,
    arXiv 1503.02531, section 2.
    """
    probabilities = torch.softmax(_at_least_single(teacher_logits) / tau, dim=1)
    return kl_to_probabilities(student_logits, probabilities, tau)


def kl_to_probabilities(student_logits: Tensor, probabilities: Tensor, tau: float) -> Tensor:
    """As `kl`, with the targets given as probabilities (already at temperature ``tau``).

    ``student_logits`` and ``probabilities`` (N, classes), each row of the latter a distribution;
    a probability of 0 counts 0. Returns the scalar batch mean of tau^2 * KL.

    Raises ``ValueError`` for different shapes or a tau that is not positive. Source: Hinton,
    Vinyals and Dean 2015, arXiv 1503.02531, section 2.
    """
    if student_logits.shape != probabilities.shape:
        raise ValueError(
            f"student {tuple(student_logits.shape)} and target {tuple(probabilities.shape)} "
            "must have the same shape"
        )
    if tau <= 0:
        raise ValueError(f"tau is {tau}, but must be positive")
    log_student = torch.log_softmax(_at_least_single(student_logits) / tau, dim=1)
    target = _at_least_single(probabilities.detach())
    return tau**2 * F.kl_div(log_student, target, reduction="batchmean")


def hint(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean-squared error between the student's projected features and the teacher's.

    Both of the same shape, (N, C, H, W) or (N, D), the student's after `HintProjection`; returns
    the mean over all elements, without the factor 1/2 of the paper's formula, as in RepDistiller:
    the weights in use (such as 100 on CIFAR) mean this normalisation.

    Raises ``ValueError`` for different shapes. Source: Romero et al. 2015 (FitNets), arXiv
    1412.6550, equation 3.
    """
    if student_map.shape != teacher_map.shape:
        raise ValueError(
            f"student {tuple(student_map.shape)} and teacher {tuple(teacher_map.shape)} "
            "must have the same shape: project the student's features first"
        )
    if student_map.ndim == 4:
        # Channels last as they lie: the gradient is laid out like the plain order of dimensions,
        # and in another order than the maps' it makes every layer behind it slower.
        student_map, teacher_map = student_map.permute(0, 2, 3, 1), teacher_map.permute(0, 2, 3, 1)
    return F.mse_loss(_at_least_single(student_map), _at_least_single(teacher_map.detach()))


class HintProjection(nn.Module):
    """Learned map from the student's features to the shape of the teacher's.

    Shapes without the batch: (C, H, W) to (C', H', W'), or (D,) to (D',). Maps get a convolution,
    BatchNorm and ReLU: with a teacher's map r times smaller a kernel of 2r - 1 at stride r (1x1
    for equal sizes, 3x3 for half), r times larger its transpose (4x4 for double), otherwise
    smaller a kernel of 1 + size - size', and for all the rest a 1x1 kernel and bilinear resizing.
    Vectors get a linear layer alone, since logits have both signs. ``signed``: no ReLU, for a map
    whose values may be negative (before an activation, or of a transformer).

    Weights are drawn from torch's global generator. Input (N, *student_shape), output
    (N, *teacher_shape). Raises ``ValueError`` unless both shapes are maps or both are vectors.
    Source: Romero et al. 2015 (FitNets), arXiv 1412.6550; sizes follow ConvReg of Tian's
    RepDistiller, which stops at a factor of two.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        signed: bool = False,
    ) -> None:
        super().__init__()
        if len(student_shape) != len(teacher_shape) or len(student_shape) not in (1, 3):
            raise ValueError(
                f"student {tuple(student_shape)} and teacher {tuple(teacher_shape)} must both be "
                "maps (C, H, W) or both vectors (D,)"
            )
        if len(student_shape) == 1:
            self.project: nn.Module = nn.Linear(student_shape[0], teacher_shape[0])
        else:
            width = teacher_shape[0]
            self.project = nn.Sequential(
                *_resizing(student_shape[0], width, student_shape[1:], teacher_shape[1:]),
                nn.BatchNorm2d(width),
                nn.Identity() if signed else nn.ReLU(inplace=True),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, *student_shape) brought to (N, *teacher_shape)."""
        return self.project(features)


def _resizing(
    channels: int, width: int, size: tuple[int, ...], target: tuple[int, ...]
) -> tuple[nn.Module, ...]:
    """Layers that take (N, channels, *size) to (N, width, *target)."""
    height, breadth = size
    if (ratio := height // target[0]) and size == (ratio * target[0], ratio * target[1]):
        kernel = 2 * ratio - 1
        return (nn.Conv2d(channels, width, kernel, stride=ratio, padding=ratio - 1),)
    if (ratio := target[0] // height) and target == (ratio * height, ratio * breadth):
        padding = ratio // 2
        kernel = ratio + 2 * padding
        return (nn.ConvTranspose2d(channels, width, kernel, stride=ratio, padding=padding),)
    if height >= target[0] and breadth >= target[1]:
        return (nn.Conv2d(channels, width, (1 + height - target[0], 1 + breadth - target[1])),)
    return (
        nn.Conv2d(channels, width, 1),
        nn.Upsample(size=(target[0], target[1]), mode="bilinear", align_corners=False),
    )


class CRD(nn.Module):
    """Contrastive representation distillation with memory banks, negatives of other classes only.

    With s and t the embeddings of the two networks (a linear layer to ``embed_dim``, then unit
    length), the loss of an image x with N = ``n_negatives`` images y_j of other classes is

        -log h(s(x), t(x)) - sum_j log(1 - h(s(x), t(y_j))),
        h(a, b) = (e^{a.b/tau} / Z) / (e^{a.b/tau} / Z + N/M),    M = number of training images,

    plus the same with the roles of s and t exchanged; the second argument of h always comes from
    a memory bank that keeps one entry per training image. Z is 1 in the paper; by default there is
    one Z per role, the mean of e^{a.b/tau} over the first batch times M, as in Tian's released
    code. After each batch in training mode the images' entries become
    momentum * old + (1 - momentum) * new, at unit length. Both linear layers are trained; the
    banks are buffers and never receive a gradient.

    ``labels``: int64 (M,) of the training set; ``tau``: temperature; ``seed``: of the linear layers
    and of the banks' random start; ``normalizer``: a fixed Z instead of the estimated one.

    Raises ``ValueError`` for labels of a single class or a number out of range. Sources: Tian,
    Krishnan and Isola 2020, arXiv 1910.10699, equations 9-19; the RepDistiller code for the
    choices the paper leaves open (mode "exact", both roles, Z, momentum), except that negatives
    are drawn with replacement.
    """

    teacher_bank: Tensor
    student_bank: Tensor
    log_normalizers: Tensor
    _items_twice: Tensor
    _first_other: Tensor
    _others: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        labels: Tensor,
        n_negatives: int,
        tau: float,
        momentum: float,
        seed: int,
        embed_dim: int = 128,
        normalizer: float | None = None,
    ) -> None:
        super().__init__()
        if n_negatives < 1:
            raise ValueError(f"n_negatives is {n_negatives}, but must be at least 1")
        if tau <= 0:
            raise ValueError(f"tau is {tau}, but must be positive")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must be in [0, 1)")
        if normalizer is not None and normalizer <= 0:
            raise ValueError(f"normalizer is {normalizer}, but must be positive")
        labels = labels.detach().cpu()
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError("labels name a single class, but negatives come from other classes")
        self.n_negatives = n_negatives
        self.tau = tau
        self.momentum = momentum
        self._normalizers_known = normalizer is not None

        generator = torch.Generator().manual_seed(seed)
        self.student_embedding = _seeded_linear(student_dim, embed_dim, generator)
        self.teacher_embedding = _seeded_linear(teacher_dim, embed_dim, generator)
        # Entries of about unit length, as in RepDistiller: a uniform number has variance a^2 / 3.
        bound = math.sqrt(3 / embed_dim)
        for name in ("student_bank", "teacher_bank"):
            start = torch.empty(len(labels), embed_dim).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, start)
        log_normalizer = math.nan if normalizer is None else math.log(normalizer)
        self.register_buffer("log_normalizers", torch.full((2,), log_normalizer))

        # Items grouped by class and written twice: those of all other classes then follow, without
        # a break, the items of any class.
        items = classes.argsort(stable=True)
        self.register_buffer("_items_twice", items.repeat(2), persistent=False)
        self.register_buffer("_first_other", counts.cumsum(0)[classes], persistent=False)
        self.register_buffer("_others", len(labels) - counts[classes], persistent=False)

    def forward(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        indices: Tensor,
        generator: Generator,
    ) -> Tensor:
        """Loss of a batch, and in training mode the update of the memory banks.

        ``student_features`` (B, ...) and ``teacher_features`` (B, ...), flattened to the two
        dimensions given at the start; ``indices``: int64 (B,), the images' places in the training
        set, each at most once; ``generator``: draws the negatives and lives on the features'
        device, so that nothing is copied or waited for. Returns the scalar batch mean.

        Where several processes share a batch, each gives its rows; negatives, Z and banks are
        those of the whole batch, the same in all processes.
        """
        everybody = distributed.gathered(indices)
        chosen = self.draw(everybody, generator)[distributed.share(len(everybody))]
        with torch.autocast(student_features.device.type, enabled=False):
            student = _embed(self.student_embedding, student_features)
            teacher = _embed(self.teacher_embedding, teacher_features.detach())
            loss = self._one_role(student, self.teacher_bank, chosen, role=0)
            loss = loss + self._one_role(teacher, self.student_bank, chosen, role=1)
        self._normalizers_known = True
        if self.training:
            for bank, embeddings in ((self.student_bank, student), (self.teacher_bank, teacher)):
                self._remember(bank, everybody, distributed.gathered(embeddings.detach()))
        return loss

    def draw(self, indices: Tensor, generator: Generator) -> Tensor:
        """Each image itself, its positive, then images of other classes, its negatives.

        ``indices``: int64 (B,) on the generator's device. Returns int64 (B, 1 + n_negatives), the
        negatives drawn uniformly and with replacement.
        """
        size = (len(indices), 1 + self.n_negatives)
        draws = torch.randint(2**31, size, generator=generator, device=indices.device)
        # Multiply and shift instead of a remainder: cheaper, and as uniform (to one part in 2^31).
        draws = draws.mul_(self._others[indices].unsqueeze(1)).bitwise_right_shift_(31)
        chosen = self._items_twice.take(draws.add_(self._first_other[indices].unsqueeze(1)))
        chosen[:, 0] = indices
        return chosen

    def _one_role(self, anchors: Tensor, bank: Tensor, chosen: Tensor, role: int) -> Tensor:
        """Mean loss of the anchors (B, D) against a bank (M, D); column 0 of chosen is positive.

        The gradient is formed here together with the value: the bank is overwritten before
        anything runs backwards, and this way no copy of it, nor any (B, M) matrix, is kept.
        """
        batch, drawn = chosen.shape
        with torch.no_grad():
            scores = _scores(anchors, bank, chosen).div_(self.tau)
            if not self._normalizers_known:
                estimate = scores.logsumexp((0, 1)) + math.log(len(bank) / scores.numel())
                if distributed.count() > 1:
                    estimate = distributed.mean(estimate.exp()).log()
                known = self.log_normalizers[role]
                # A restored state brings its own constant; asking the device would wait for it.
                known.copy_(torch.where(known.isnan(), estimate, known))
            # h = sigmoid(score - log Z - log(N/M)), so both logarithms are log-sigmoids.
            offset = self.log_normalizers[role] + math.log((drawn - 1) / len(bank))
            margins = offset - scores
            margins[:, 0].neg_()
            value = F.logsigmoid(margins).sum() / -batch
            if not anchors.requires_grad:
                return value
            slopes = margins.neg_().sigmoid_().div_(self.tau * batch)
            slopes[:, 0].neg_()
            gradient = F.embedding_bag(chosen, bank, per_sample_weights=slopes, mode="sum")
        return _WithGradient.apply(anchors, value, gradient)

    @torch.no_grad()
    def _remember(self, bank: Tensor, indices: Tensor, embeddings: Tensor) -> None:
        """Move the images' entries of a bank (M, D) towards their embeddings (B, D)."""
        mixed = bank.index_select(0, indices).lerp_(embeddings, 1 - self.momentum)
        bank.index_copy_(0, indices, F.normalize(mixed, dim=1))


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradient by the first argument is already known."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def _scores(anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """Dot products of each anchor (B, D) with its chosen rows of the bank (M, D): (B, K).

    One product with the whole bank and a gather, as long as that takes less memory than the chosen
    rows would: fetching rows is about a hundred times slower per row than multiplying them.
    """
    if len(bank) <= bank.shape[1] * chosen.shape[1]:
        return (anchors @ bank.T).gather(1, chosen)
    return torch.bmm(F.embedding(chosen, bank), anchors.unsqueeze(2)).squeeze(2)


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    """Features (B, ...) on the unit sphere of the embedding (B, D), in the layer's precision."""
    return F.normalize(layer(features.flatten(1).to(layer.weight.dtype)), dim=1)


def _seeded_linear(inputs: int, outputs: int, generator: Generator) -> nn.Linear:
    """A linear layer with torch's usual initial distribution, drawn from the generator."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def smoothed_labels(labels: Tensor, num_classes: int, confidence: float) -> Tensor:
    """Soft labels without a teacher: the true class at a confidence, the rest shared evenly.

    ``labels`` int64 (N,); returns probabilities (N, num_classes), to be given to
    `kl_to_probabilities` at the temperature at which the confidence was measured.

    Raises ``ValueError`` for fewer than two classes or a confidence outside [0, 1]. Source: label
    smoothing of Szegedy et al. 2016, arXiv 1512.00567, section 7, as a teacher-free control.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but must be at least 2")
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is {confidence}, but must be in [0, 1]")
    rest = (1 - confidence) / (num_classes - 1)
    probabilities = torch.full((len(labels), num_classes), rest, device=labels.device)
    return probabilities.scatter_(1, labels.unsqueeze(1), confidence)


def permute_within_class(labels: Tensor, generator: Generator) -> LongTensor:
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
    return permutation  # type: ignore[return-value]


def _at_least_single(values: Tensor) -> Tensor:
    """The values in single precision, or double if they are."""
    return values if values.dtype == torch.float64 else values.float()
