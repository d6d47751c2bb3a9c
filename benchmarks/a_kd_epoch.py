"""(a) One epoch of distillation by KL, ResNet-56 to ResNet-20, images of CIFAR's shape.

All loops start from the same two networks and see the same random images in CIFAR's usual views
(padded crops and mirror images), in batches of 64. The tutorial's own Adam stays; its images come
from the same loader as RepDistiller's, or it would do less work. kdnotes is timed as for the second
and every later student of a teacher, whose answers are in the teacher's table by then; as for the
first one, who has to fill it, in a row of its own.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import repdistiller
from benchmarks.nets import cifar_resnet
from benchmarks.setting import Setting
from benchmarks.timing import Contender, Row

TITLE = "one KD epoch, ResNet-56 to ResNet-20"
WORK = "a: KD epoch"
REFERENCE = "RepDistiller-style loop"
TUTORIAL_RATE = 1e-3


def run(setting: Setting) -> list[Row]:
    """Time the loops, after a check that their losses are the same function."""
    count = setting.size(2048, 128)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    teacher = cifar_resnet(56, seed=1)
    _settle(teacher, images)
    student = cifar_resnet(20, seed=2)
    _check_losses(setting)
    folder = Path(tempfile.mkdtemp(prefix="kdnotes-benchmark-"))
    try:
        ours = _Ours(setting, images, labels, teacher, student, folder)
        theirs = _Theirs(setting, images, labels, teacher, student)
        contenders = [
            Contender(REFERENCE, theirs.repdistiller, theirs.prepare),
            *setting.with_peer(
                "torchdistill",
                lambda: Contender("torchdistill", theirs.torchdistill, theirs.prepare_box),
            ),
            Contender("PyTorch tutorial", theirs.tutorial, theirs.prepare),
            Contender("kdnotes", ours.epoch, ours.prepare_filled),
            Contender("kdnotes, filling included", ours.epoch, ours.prepare_empty),
        ]
        ours.prepare_empty()
        ours.epoch()  # fills the table, and imports what training needs
        ours.keep_filled()
        lines, _ = setting.race(WORK, contenders, REFERENCE, rounds=2)
        setting.check(ours.table_agrees(), "a: the table's rows are the teacher's answers to 1e-4")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return lines


def _settle(network: Any, images: Tensor) -> None:
    """Give BatchNorm the statistics of these images: a network that was never run has none."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(images[:64].float() / 255)
    network.eval()


class _Theirs:
    """The loops of others: NCHW, PIL transforms, the teacher asked at every step."""

    def __init__(
        self, setting: Setting, images: Tensor, labels: Tensor, teacher: Any, student: Any
    ) -> None:
        self.device = setting.device
        self.images, self.labels = images, labels
        self.teacher, self.first = teacher.body.to(self.device), student.body

    def prepare(self) -> None:
        self.student = copy.deepcopy(self.first).to(self.device)
        self.batches = repdistiller.loader(self.images, self.labels, augment=True, seed=0)

    def repdistiller(self) -> float:
        optimizer = repdistiller.sgd(self.student)
        return repdistiller.epoch_of_kl(
            self.batches, self.student, self.teacher, optimizer, self.device
        )

    def tutorial(self) -> float:
        """The loop of pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html."""
        optimizer = torch.optim.Adam(self.student.parameters(), lr=TUTORIAL_RATE)
        self.teacher.eval()
        self.student.train()
        running = 0.0
        for inputs, labels, _ in self.batches:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = self.teacher(inputs)
            loss = tutorial_loss(self.student(inputs), teacher_logits, labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
        return running / len(self.batches)

    def prepare_box(self) -> None:
        import logging

        from torch.utils.data import RandomSampler
        from torchdistill.core.distillation import get_distillation_box

        logging.getLogger("torchdistill").setLevel(logging.WARNING)
        self.prepare()
        self_path = {"student_module_path": ".", "teacher_module_path": "."}
        kd = {"temperature": repdistiller.TAU, "alpha": repdistiller.GAMMA} | self_path
        kd |= {"student_module_io": "output", "teacher_module_io": "output"}
        criterion = {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}
        forward = {"forward_proc": "forward_batch_only"}
        rate, decay = repdistiller.RATE, repdistiller.DECAY
        config: dict[str, Any] = {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "requires_supp": False,  # the images' numbers stand in its place
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": {"batch_size": repdistiller.BATCH, "num_workers": 0, "drop_last": True},
            },
            "teacher": {**forward, "requires_grad": False},
            "student": forward,
            "optimizer": {
                "key": "SGD",
                "kwargs": {"lr": rate, "momentum": 0.9, "weight_decay": decay},
            },
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": criterion}},
        }
        self.box = get_distillation_box(
            copy.deepcopy(self.teacher).eval(),
            self.student,
            {"train": self.batches.dataset},
            config,
            torch.device(self.device),
            None,
            False,
            1,
        )

    def torchdistill(self) -> float:
        """The inner loop of torchdistill's examples/torchvision/image_classification.py."""
        self.box.pre_epoch_process(epoch=0)
        total = 0.0
        for images, labels, supplement in self.box.train_data_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            loss = self.box.forward_process(images, labels, supplement)
            self.box.post_forward_process(loss)
            total += loss.item()
        self.box.post_epoch_process()
        return total / len(self.box.train_data_loader)


class _Ours:
    """kdnotes: the teacher's answers from its table, bytes in memory, channels last."""

    def __init__(
        self,
        setting: Setting,
        images: Tensor,
        labels: Tensor,
        teacher: Any,
        student: Any,
        folder: Path,
    ) -> None:
        from kdnotes import networks
        from kdnotes.data import DataSpec, ImageData
        from kdnotes.data.views import Views
        from kdnotes.methods.kl import KL
        from kdnotes.training.specification import NetworkSpec, Recipe

        self.device = setting.device
        names = tuple(map(str, range(10)))
        self.data = ImageData(images, labels, names, torch.arange(len(labels)))
        self.teacher = networks.freeze(teacher).to(self.device)
        self.first = student
        self.folder, self.number = folder, 0
        self.filled = folder / "filled"
        taught_by = NetworkSpec(
            role="teacher",
            model="resnet-56",
            num_classes=10,
            data=DataSpec(name="random", split="train"),
            recipe=Recipe(epochs=1, batch=64, views=Views(pad=4, step=1, flip=True)),
        )
        weights = {"gamma": repdistiller.GAMMA, "weight": repdistiller.WEIGHT}
        method = KL(**weights, tau=repdistiller.TAU)
        changes = {"role": "student", "model": "resnet-20", "method": method, "teacher": taught_by}
        self.spec = taught_by.model_copy(update=changes)

    def prepare_empty(self) -> None:
        self.number += 1
        self.table = self.folder / f"empty-{self.number}"
        self.student = copy.deepcopy(self.first)

    def prepare_filled(self) -> None:
        self.table = self.filled
        self.student = copy.deepcopy(self.first)

    def keep_filled(self) -> None:
        self.table.rename(self.filled)

    def epoch(self) -> float:
        from kdnotes.training import loop

        table = self._table(self.table)
        teacher = loop.Teacher(self.teacher, table)
        return loop.train(self.spec, self.student, self.data, teacher, self.device)[0]["loss"]

    def table_agrees(self) -> bool:
        """Whether rows that the timed epochs made and read are the teacher's answers."""
        table = self._table(self.filled)
        order = torch.Generator().manual_seed(self.spec.order_seed)
        chosen = torch.randperm(len(self.data), generator=order)
        views = self.spec.recipe.views.draw(len(self.data), order)[chosen]
        return table.agrees(chosen[:200], views[:200])

    def _table(self, folder: Path) -> Any:
        from kdnotes.training.teachers import TeacherTable

        views, place = self.spec.recipe.views, torch.device(self.device)
        return TeacherTable(folder, self.teacher, self.data, views, place)


def tutorial_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The tutorial's loss, with the weights and the temperature of the others."""
    tau = repdistiller.TAU
    soft_targets = F.softmax(teacher / tau, dim=-1)
    soft_prob = F.log_softmax(student / tau, dim=-1)
    divergence = torch.sum(soft_targets * (soft_targets.log() - soft_prob)) / len(soft_prob)
    label_loss = F.cross_entropy(student, labels)
    return repdistiller.WEIGHT * divergence * tau**2 + repdistiller.GAMMA * label_loss


def _check_losses(setting: Setting) -> None:
    """The four losses on one set of logits."""
    from kdnotes.methods.kl import divergence

    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(64, 10, generator=generator) for _ in range(2))
    labels = torch.randint(10, (64,), generator=generator)
    tau = repdistiller.TAU
    ours = repdistiller.GAMMA * F.cross_entropy(student, labels)
    ours += repdistiller.WEIGHT * divergence(student, torch.softmax(teacher / tau, 1), tau)
    losses = [
        repdistiller.kl_loss(student, teacher, labels),
        tutorial_loss(student, teacher, labels),
        ours,
    ]
    if setting.with_peer("torchdistill", lambda: Contender("torchdistill", lambda: None)):
        from torchdistill.losses.mid_level import KDLoss

        kd = KDLoss(".", "output", ".", "output", tau, alpha=repdistiller.GAMMA)
        losses.append(kd({".": {"output": student}}, {".": {"output": teacher}}, labels))
    values = torch.stack(losses)
    spread = float(values.max() - values.min())
    setting.check(spread < 1e-5, f"a: the losses of all loops agree to {spread:.1e}")
