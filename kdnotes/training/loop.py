"""The training loop (Lightning Fabric), its batches, and what a killed run goes on from."""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes import networks
from kdnotes.data import ImageData, colors
from kdnotes.data.views import crop, to_float
from kdnotes.methods import Batch, Outputs, controls
from kdnotes.methods.base import at_least_single
from kdnotes.networks import Normalized, forward_with_features, tapped
from kdnotes.store import appearing, checksum
from kdnotes.training import distributed, teachers
from kdnotes.training.distributed import Together
from kdnotes.training.specification import NetworkSpec, Recipe, derive_seed
from kdnotes.training.teachers import Teacher

# A network of the laptop preset is done before this; one of ImageNet's epochs takes longer.
SECONDS_BETWEEN = 60.0  # that checkpoints are apart
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
    from one process, up to rounding. ``kept``: checkpoints to go on from, and to leave. Raises
    FloatingPointError when the loss is no number, RequestError when a batch cannot be shared.
    """
    recipe, fabric = spec.recipe, distributed.joined(device)
    group = Together(fabric)
    stream = Stream(spec, data, teacher, group)
    network.to(fabric.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    learner = Learner(network, spec, group)
    if teacher is not None:
        learner.prepare(teacher, data)
    module, optimizer = fabric.setup(learner, _optimizer(recipe, learner.to(fabric.device)))
    state = _State(fabric, learner, optimizer, stream)
    # Every process drops other features: they look at other images, too.
    apart = (fabric.global_rank,) if fabric.global_rank else ()
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(derive_seed("dropout", spec.order_seed, *apart))
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
        """Logits, penultimate features and the output of the layer that is asked for, or logits."""
        layer = self._layer or "logits"
        with tapped(self.network, () if layer == "logits" else (layer,)) as outputs:
            logits, features = forward_with_features(self.network, images)
        return Outputs(logits, features, logits if layer == "logits" else outputs[layer])

    def _batch(self, student: Outputs, shown: Shown, answers: Outputs) -> Batch:
        def soft_labels(tau: float) -> Tensor:
            if self.spec.labels == "smoothed":
                classes = student.logits.shape[1]
                return controls.smoothed_labels(shown.labels, classes, self.confidence)
            return torch.softmax(at_least_single(answers.logits) / tau, dim=1)

        own = (self.numbers, self.beside, self.group)
        return Batch(shown.labels, shown.indices, student, answers, soft_labels, *own)


# --- batches ----------------------------------------------------------------------------------


class Shown:
    """A batch: float images (B, 3, H, W), int64 labels and numbers (B,), the teacher's answers."""

    # Neither tuple nor dataclass: on CUDA, Fabric would make what it finds in these bfloat16.
    def __init__(
        self, images: Tensor, labels: Tensor, indices: Tensor, answers: Outputs | None
    ) -> None:
        self.images, self.labels, self.indices, self.answers = images, labels, indices, answers


class Epoch(NamedTuple):
    """What is drawn for one pass over the images, a row for each, on the training's device."""

    order: Tensor  # the images' numbers
    asked: Tensor  # those that the teacher is asked about
    views: Tensor
    rectangles: Any  # of `ResizedCrops`, None without
    parts: tuple[slice, ...]  # the rows of each step


class Stream:
    """All batches of a training, or this process's share; images stay on the device as bytes."""

    def __init__(
        self, spec: NetworkSpec, data: ImageData, teacher: Teacher | None, group: Together
    ) -> None:
        self.recipe, self.teacher, self.place = spec.recipe, teacher, group.fabric.device
        self.layer = None if teacher is None else teachers.layer_of(spec, teacher.network)
        self.images: Any = data.images
        if isinstance(data.images, Tensor):
            self.images = data.images.to(self.place, memory_format=torch.channels_last)
        self.labels = data.labels.to(self.place)
        self.batch = min(spec.recipe.batch, len(data))
        self.steps = len(data) // self.batch
        self.own = group.share(self.batch)
        self.order = torch.Generator().manual_seed(spec.order_seed)
        self.jitters = torch.Generator().manual_seed(derive_seed("jitter", spec.role, spec.seed))
        self.permutation = None
        if spec.labels == "permuted":
            numbers = torch.Generator().manual_seed(derive_seed("permuted", spec.seed))
            self.permutation = controls.permute_within_class(data.labels, numbers)

    def epoch(self) -> Iterator[Shown]:
        """The batches of the next epoch."""
        drawn = self._draw()
        answer = self._answers(drawn)
        for part, raw in zip(drawn.parts, self._raw_images(drawn), strict=True):
            seen, indices = self._view(raw, drawn, part), drawn.order[part]
            answers = answer(part, seen)
            yield Shown(self._changed(seen), self.labels[indices], indices, answers)

    def _draw(self) -> Epoch:
        recipe, many = self.recipe, len(self.labels)
        order = torch.randperm(many, generator=self.order)[: self.steps * self.batch]
        views = recipe.views.draw(many, self.order)[order]
        rectangles = None
        if (resized := recipe.resized) is not None:
            rectangles = resized.draw(len(order), self.order).to(self.place)
        asked = order if self.permutation is None else self.permutation[order]
        starts = range(0, len(order), self.batch)
        parts = tuple(slice(start + self.own.start, start + self.own.stop) for start in starts)
        order, asked, views = (rows.to(self.place) for rows in (order, asked, views))
        return Epoch(order, asked, views, rectangles, parts)

    def _raw_images(self, drawn: Epoch) -> Iterator[Tensor]:
        """The bytes of each part; of a folder, the next ones are read while these are used."""
        if isinstance(self.images, Tensor):
            yield from (self._at(drawn.order[part]) for part in drawn.parts)
            return
        order = drawn.order.cpu()  # once: later, it would have to wait for the GPU
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.images.__getitem__, order[drawn.parts[0]])
            for following in drawn.parts[1:]:
                raw = coming.result()
                coming = reader.submit(self.images.__getitem__, order[following])
                yield raw.to(self.place)
            yield coming.result().to(self.place)

    def _view(self, raw: Tensor, drawn: Epoch, part: slice) -> Tensor:
        """A part's view of images, uint8 in and float out: the same for student and teacher."""
        seen = to_float(self.recipe.views.apply(raw, drawn.views[part]))
        resized = self.recipe.resized
        return seen if resized is None else resized.apply(seen, drawn.rectangles[part])

    def _answers(self, drawn: Epoch) -> Callable[[slice, Tensor], Outputs | None]:
        """What the teacher says of each part in turn, given the student's view of it."""
        teacher = self.teacher
        if teacher is None:
            return lambda part, seen: None
        if teacher.table is not None:
            # All at once: to copy to a GPU is to wait.
            rows = teacher.table.rows(drawn.asked.cpu(), drawn.views.cpu())
            return lambda part, seen: Outputs(*(v if v is None else v[part] for v in rows))

        def live(part: slice, seen: Tensor) -> Outputs:
            if self.permutation is not None:  # it is asked about other images, in the same views
                seen = self._view(self._at(drawn.asked[part]), drawn, part)
            return teachers.live(teacher.network, seen, self.layer)

        return live

    def _at(self, places: Tensor) -> Tensor:
        """Images (n, 3, H, W) at some places (n,)."""
        if not isinstance(self.images, Tensor):
            return self.images[places.cpu()].to(self.place)
        rows = self.images.permute(0, 2, 3, 1)
        chosen = rows.flatten(1).index_select(0, places)  # not pixel by pixel
        return chosen.unflatten(1, rows.shape[1:]).permute(0, 3, 1, 2)

    def _changed(self, images: Tensor) -> Tensor:
        """With crops and changes of colour, drawn for the whole batch that these are a share of."""
        if (crops := self.recipe.crops) is not None:
            images = crop(images, crops.draw(self.batch, self.jitters)[self.own].to(self.place))
        if (jitter := self.recipe.jitter) is not None:
            drawn = colors.draw_jitter(self.batch, **dict(jitter), generator=self.jitters)
            images = colors.jitter(images, drawn[self.own])
        return images


# --- checkpoints ------------------------------------------------------------------------------


@dataclass
class Checkpoints:
    """The checkpoints of one network, at most one of which is kept: epoch-NUMBER-CHECKSUM.

    The checksum is of the network's name, too: what lies in another one's folder is damaged.
    """

    folder: Path
    _written: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether enough time has passed for another one."""
        return time.monotonic() - self._written >= SECONDS_BETWEEN

    def write(self, epoch: int, state: dict[str, Any]) -> None:
        """Keep the state after an epoch (counted from 1) in place of the one before."""
        content = io.BytesIO()
        torch.save(state, content)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"epoch-{epoch:05}-{checksum(content.getvalue(), of=self.folder.name)}"
        with appearing(path) as scratch:
            scratch.write_bytes(content.getvalue())
        for other in set(self.folder.iterdir()) - {path}:
            other.unlink(missing_ok=True)
        self._written = time.monotonic()

    def last(self) -> Path | None:
        """The last sound checkpoint: a damaged one is passed over, never used."""
        for path in sorted(self.folder.glob("epoch-*"), reverse=True):
            if path.is_file() and path.name.endswith(checksum(path, of=self.folder.name)):
                return path
        return None

    def remove(self) -> None:
        """Delete them: the network is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
        numbers = [generator.get_state() for generator in self.generators]
        state = {"generators": numbers, "dropout": dropout.cpu(), "history": history}
        state |= {"learner": self.learner.state_dict(), "optimizer": self.optimizer.state_dict()}
        kept.write(len(history), state)

    def resume(self, kept: Checkpoints) -> list[dict[str, float]]:
        """Take up the last sound checkpoint; returns the history up to it, or an empty one."""
        last = self.fabric.broadcast(kept.last() if self.fabric.is_global_zero else None)
        if last is None:
            return []
        state = torch.load(last, map_location="cpu", weights_only=True)
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
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, **options)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, fused=True, **options)
