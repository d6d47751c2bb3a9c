"""The training loop: a network on a CPU, on a GPU or by several processes (Lightning Fabric)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes import networks
from kdnotes.data import ImageData
from kdnotes.methods import Batch, Outputs, controls
from kdnotes.methods.base import at_least_single
from kdnotes.networks import Normalized, forward_with_features, tapped
from kdnotes.training import checkpoints, distributed, teachers
from kdnotes.training.checkpoints import Checkpoints
from kdnotes.training.distributed import Together
from kdnotes.training.specification import NetworkSpec, Recipe, derive_seed
from kdnotes.training.stream import Shown, Stream
from kdnotes.training.teachers import Teacher

EpochReport = Callable[[int, float], None]  # epochs done, mean loss of the last one


def train(
    spec: NetworkSpec,
    network: Normalized,
    data: ImageData,
    teacher: Teacher | None,
    device: str = "cpu",
    report: EpochReport | None = None,
    kept: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Train the network in place; returns per epoch the mean of each loss term and the seconds.

    The result depends on the specification, the data and the kind of device alone. Processes of a
    group (`distributed`) share every batch; networks without BatchNorm and dropout then come out as
    from one process, up to rounding. ``kept``: where to go on from, and to leave checkpoints.

    Raises FloatingPointError when the loss is no number any more, and RequestError when the batch
    cannot be shared evenly.
    """
    recipe, fabric = spec.recipe, distributed.joined(device)
    group = Together(fabric)
    stream = Stream(spec, data, teacher, group, fabric.device)
    network.to(fabric.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    learner = Learner(network, spec, group)
    if teacher is not None:
        learner.prepare(teacher, data)
    module, optimizer = fabric.setup(learner, _optimizer(recipe, learner.to(fabric.device)))
    state = _State(fabric, learner, optimizer, stream)
    with _seeded_dropout(spec, fabric):
        history = [] if kept is None else state.resume(kept)
        for epoch in range(len(history), recipe.epochs):
            started, totals = time.perf_counter(), dict[str, Tensor]()
            for step, shown in enumerate(stream.epoch(), start=epoch * stream.steps):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = recipe.rate(step, stream.steps)
                terms = module(shown)
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(terms["loss"])
                optimizer.step()
                if step == 0 and spec.method is not None:
                    totals["start"] = stream.steps * terms[spec.method.name].detach()
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0) + value.detach()
            distributed.average_statistics(fabric, learner)
            fabric.all_reduce(totals)  # in place
            means = {name: float(total) / stream.steps for name, total in totals.items()}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"loss is {means['loss']} after epoch {epoch + 1}: lower the learning rate"
                )
            history.append(means | {"seconds": time.perf_counter() - started})
            if report is not None:
                report(epoch + 1, means["loss"])
            if kept is not None and epoch + 1 < recipe.epochs:
                state.keep(kept, history)
    network.eval()
    return history


class Learner(nn.Module):
    """A student with what its method trains beside it; one call gives the named losses."""

    def __init__(self, network: Normalized, spec: NetworkSpec, group: Together) -> None:
        super().__init__()
        self.network, self.spec, self.group = network, spec, group
        self.beside: nn.Module | None = None
        self.confidence = 1.0  # of the true class in smoothed labels
        self.numbers = torch.Generator(group.fabric.device)
        self.numbers.manual_seed(derive_seed("negatives", spec.seed))
        self._layer = spec.layers and networks.hint_layer(network, spec.layers[0])

    def prepare(self, teacher: Teacher, data: ImageData) -> None:
        """Make what is trained beside the student, from two images and all labels."""
        spec, method, place = self.spec, self.spec.method, self.group.fabric.device
        assert method is not None
        if spec.labels == "smoothed":
            tau = method.tau  # type: ignore[attr-defined]
            self.confidence = teacher.confidence(data, spec.recipe, tau, place)
        images = teachers.whole(data.batch(torch.arange(2)).to(place), spec.recipe)
        answers = teachers.live(teacher.network, images, teachers.layer_of(spec, teacher.network))
        shown = Shown(images, data.labels[:2], torch.arange(2, device=place), answers)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(spec.initialisation_seed)
            self.network.eval()
            example = self._batch(self._student(images), shown, answers)
            self.network.train()
            self.beside = method.prepare(example, data.labels, spec.initialisation_seed)

    def forward(self, shown: Shown) -> dict[str, Tensor]:
        """The cross-entropy, the method's term, and their weighted sum: the ``loss``."""
        student, method = self._student(shown.images), self.spec.method
        cross_entropy = F.cross_entropy(student.logits, shown.labels)
        if method is None or shown.answers is None:
            return {"ce": cross_entropy, "loss": cross_entropy}
        term = method.term(self._batch(student, shown, shown.answers))
        loss = method.gamma * cross_entropy + method.weight * term
        return {"ce": cross_entropy, method.name: term, "loss": loss}

    def _student(self, images: Tensor) -> Outputs:
        """Logits, penultimate features and, where one is asked for, the output of a layer."""
        if self._layer is None:
            return Outputs(*forward_with_features(self.network, images))
        paths = () if self._layer == "logits" else (self._layer,)
        with tapped(self.network, paths) as outputs:
            logits, features = forward_with_features(self.network, images)
        return Outputs(logits, features, outputs[paths[0]] if paths else logits)

    def _batch(self, student: Outputs, shown: Shown, answers: Outputs) -> Batch:
        def soft_labels(tau: float) -> Tensor:
            if self.spec.labels == "smoothed":
                classes = student.logits.shape[1]
                return controls.smoothed_labels(shown.labels, classes, self.confidence)
            return torch.softmax(at_least_single(answers.logits) / tau, dim=1)

        return Batch(
            labels=shown.labels,
            indices=shown.indices,
            student=student,
            teacher=answers,
            soft_labels=soft_labels,
            generator=self.numbers,
            beside=self.beside,
            group=self.group,
        )


@contextmanager
def _seeded_dropout(spec: NetworkSpec, fabric: Fabric) -> Iterator[None]:
    """Seed the global generator, which dropout draws from, and give the old state back after."""
    place = fabric.device
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        # Every process drops other features: they look at other images, too.
        apart = (fabric.global_rank,) if fabric.global_rank else ()
        torch.manual_seed(derive_seed("dropout", spec.order_seed, *apart))
        yield


class _State:
    """What a run needs to go on from the end of an epoch as if it had never stopped."""

    def __init__(self, fabric: Fabric, learner: Learner, optimizer: Any, stream: Stream) -> None:
        self.fabric, self.learner, self.optimizer = fabric, learner, optimizer
        self.generators = (stream.order, stream.jitters, learner.numbers)
        self.globally = torch.cuda if fabric.device.type == "cuda" else torch  # as dropout draws

    def keep(self, kept: Checkpoints, history: list[dict[str, float]]) -> None:
        """Write a checkpoint if one is due; the first process does."""
        # Of all processes: each drops features of its own.
        own = self.globally.get_rng_state().to(self.fabric.device)
        dropout = self.learner.group.gathered(own.unsqueeze(0))
        if not self.fabric.is_global_zero or not kept.due():
            return
        state = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "dropout": dropout.cpu(),
            "history": history,
        }
        kept.write(len(history), state)

    def resume(self, kept: Checkpoints) -> list[dict[str, float]]:
        """Take up the last sound checkpoint; returns the history up to it, or an empty one."""
        last = self.fabric.broadcast(kept.last() if self.fabric.is_global_zero else None)
        if last is None:
            return []
        state = checkpoints.read(last)
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, numbers in zip(self.generators, state["generators"], strict=True):
            generator.set_state(numbers)
        if len(state["dropout"]) == self.fabric.world_size:
            self.globally.set_rng_state(state["dropout"][self.fabric.global_rank].clone())
        else:  # in another number of processes, dropout goes on with other numbers
            torch.manual_seed(derive_seed("dropout", torch.initial_seed(), len(state["history"])))
        return state["history"]


def _optimizer(recipe: Recipe, learner: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in learner.parameters() if p.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, lr=rate, weight_decay=decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
    )
