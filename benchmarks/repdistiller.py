"""Distillation as it is usually written: in the style of RepDistiller (Tian et al. 2020).

Images are PIL's and go through torchvision's transforms one by one; memory is NCHW; the teacher
answers at every step; losses and accuracies are read off after every step; the learning rate falls
by ten at 62.5, 75 and 87.5% of the epochs. Contrast draws its negatives by index and gathers them
from a memory. Written anew for these benchmarks, after https://github.com/HobbitLong/RepDistiller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.nets import MEAN, STD

RATE, DECAY, BATCH, TAU = 0.05, 5e-4, 64, 4.0
GAMMA, WEIGHT = 0.1, 0.9  # of KL: the labels' share, and the teacher's


class PilImages(Dataset[tuple[Tensor, int, int]]):
    """Images as torchvision's CIFAR-10 holds them: arrays, made into PIL images one at a time."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Any) -> None:
        self.data = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets: list[int] = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index], index


def transform(augment: bool) -> Any:
    """Normalised tensors; with ``augment`` CIFAR's padded crops and mirror images before that."""
    first = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([*(first if augment else []), *last])


def loader(images: Tensor, labels: Tensor, augment: bool, seed: int) -> DataLoader[Any]:
    """Shuffled batches, read in this process."""
    return DataLoader(
        PilImages(images, labels, transform(augment)),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=0,
        generator=torch.Generator().manual_seed(seed),
    )


def kl_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Hinton's: a tenth of cross-entropy, nine tenths of KL at temperature 4, times its square."""
    log_student = F.log_softmax(student / TAU, dim=1)
    soft = F.softmax(teacher / TAU, dim=1)
    # As RepDistiller writes it: a sum (once size_average=False) over the number of images.
    divergence = F.kl_div(log_student, soft, reduction="sum") * TAU**2 / len(student)
    return GAMMA * F.cross_entropy(student, labels) + WEIGHT * divergence


class Meter:
    """A running mean."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.sum += value * count
        self.count += count


def top_k(logits: Tensor, labels: Tensor) -> list[float]:
    """Accuracy among the first, and among the first five answers, in percent."""
    found = logits.topk(min(5, logits.shape[1]), 1).indices.t()
    right = found.eq(labels.view(1, -1).expand_as(found))
    return [float(right[:k].reshape(-1).float().sum() * (100 / len(labels))) for k in (1, 5)]


@dataclass(frozen=True)
class Tap:
    """A network that gives its logits with its stage before the last and its pooled features."""

    body: Any

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = images
        for stage in self.body.stages[:-1]:
            maps = stage(maps)
        features = self.body.stages[-1](maps).mean((2, 3))
        return self.body.head(features), maps, features


class Contrast(nn.Module):
    """Contrastive distillation: two embeddings, two memories, and negatives gathered by index."""

    def __init__(self, student: int, teacher: int, count: int, negatives: int) -> None:
        super().__init__()
        self.embed = nn.ModuleList([nn.Linear(width, 128) for width in (student, teacher)])
        self.count, self.negatives, self.tau, self.momentum = count, negatives, 0.07, 0.5
        bound = 1 / math.sqrt(128 / 3)
        self.memory: list[Tensor] = [
            torch.rand(count, 128).mul_(2 * bound).add_(-bound) for _ in range(2)
        ]
        self.constants = [-1.0, -1.0]

    def forward(self, student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
        chosen = torch.randint(self.count, (len(own), self.negatives + 1), device=own.device)
        chosen[:, 0] = own
        pair = (student, teacher)
        anchors = [
            F.normalize(embed(features), dim=1)
            for embed, features in zip(self.embed, pair, strict=True)
        ]
        loss = student.new_zeros(())
        for side in (0, 1):
            memory = self.memory[1 - side] = self.memory[1 - side].to(own.device)
            others = memory.index_select(0, chosen.view(-1)).view(*chosen.shape, 128).detach()
            scores = torch.exp(torch.bmm(others, anchors[side].unsqueeze(2)) / self.tau)
            if self.constants[side] < 0:
                self.constants[side] = float(scores.detach().mean()) * self.count
            loss = loss + self._nce((scores / self.constants[side]).squeeze(2))
        with torch.no_grad():
            for memory, anchor in zip(self.memory, anchors, strict=True):
                moved = memory.index_select(0, own) * self.momentum + anchor * (1 - self.momentum)
                memory.index_copy_(0, own, F.normalize(moved, dim=1))
        return loss

    def _nce(self, scores: Tensor) -> Tensor:
        noise = self.negatives / self.count
        positive = torch.log(scores[:, 0] / (scores[:, 0] + noise + 1e-7))
        rest = torch.log(noise / (scores[:, 1:] + noise + 1e-7))
        return -(positive.sum() + rest.reshape(-1).sum()) / len(scores)


def rate_at(epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, counted from 0."""
    return RATE * 0.1 ** sum(epoch >= share * epochs for share in (0.625, 0.75, 0.875))


def epoch_of_kl(
    batches: DataLoader[Any],
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: str = "cpu",
) -> float:
    """One epoch of KL; returns the mean loss."""
    student.train()
    teacher.eval()
    losses, first, fifth = Meter(), Meter(), Meter()
    for images, labels, _ in batches:
        images, labels = images.to(device), labels.to(device)
        logits = student(images)
        with torch.no_grad():
            soft = teacher(images)
        loss = kl_loss(logits, soft, labels)
        _step(loss, optimizer)
        _note(loss, logits, labels, losses, first, fifth)
    return losses.sum / max(1, losses.count)


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    """RepDistiller's optimiser for all that is trained."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=DECAY)


def train(
    body: nn.Module,
    batches: DataLoader[Any],
    epochs: int,
    method: str = "none",
    teacher: nn.Module | None = None,
    weights: dict[str, float] | None = None,
    negatives: int = 512,
    device: str = "cpu",
) -> None:
    """Train a `architectures.SmallVGG` in place: from labels, or by KL, Hint or CRD as well."""
    weights = weights or {}
    body.to(device)
    extra = list(_extra(body, batches, method, teacher, negatives, device))
    optimizer = sgd(body, *extra)
    student = Tap(body)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(epoch, epochs)
        if method == "kl":
            assert teacher is not None
            epoch_of_kl(batches, body, teacher, optimizer, device)
            continue
        body.train()
        losses, first, fifth = Meter(), Meter(), Meter()
        for images, labels, indices in batches:
            images, labels, indices = images.to(device), labels.to(device), indices.to(device)
            logits, maps, features = student(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                teacher.eval()
                with torch.no_grad():
                    _, teacher_maps, teacher_features = Tap(teacher)(images)
                if method == "hint":
                    loss = loss + weights["hint"] * F.mse_loss(extra[0](maps), teacher_maps)
                else:
                    contrast = extra[0](features, teacher_features, indices)
                    loss = loss + weights["crd"] * contrast
            _step(loss, optimizer)
            _note(loss, logits, labels, losses, first, fifth)
    body.eval()


def _extra(
    body: nn.Module,
    batches: DataLoader[Any],
    method: str,
    teacher: nn.Module | None,
    negatives: int,
    device: str,
) -> Iterator[nn.Module]:
    """What is trained beside the student."""
    if method not in ("hint", "crd"):
        return
    assert teacher is not None
    images = next(iter(batches))[0][:2].to(device)
    with torch.no_grad():
        own, its = (Tap(net.eval())(images) for net in (body, teacher))
    if method == "hint":  # maps of one size: RepDistiller's regressor is a 1x1 convolution then
        yield nn.Sequential(
            nn.Conv2d(own[1].shape[1], its[1].shape[1], 1),
            nn.BatchNorm2d(its[1].shape[1]),
            nn.ReLU(inplace=True),
        ).to(device)
    else:
        count = len(batches.dataset)  # type: ignore[arg-type]
        yield Contrast(own[2].shape[1], its[2].shape[1], count, negatives).to(device)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _note(
    loss: Tensor, logits: Tensor, labels: Tensor, losses: Meter, first: Meter, fifth: Meter
) -> None:
    accuracies = top_k(logits, labels)
    losses.update(loss.item(), len(labels))
    first.update(accuracies[0], len(labels))
    fifth.update(accuracies[1], len(labels))


def accuracy(body: nn.Module, images: Tensor, labels: Tensor, device: str = "cpu") -> float:
    """Share of right answers, over normalised images as the transforms make them."""
    batches = DataLoader(PilImages(images, labels, transform(False)), batch_size=250)
    right = 0
    body.eval()
    with torch.no_grad():
        for seen, truth, _ in batches:
            right += int((body(seen.to(device)).argmax(1).cpu() == truth).sum())
    return right / len(labels)
