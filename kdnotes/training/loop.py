"""The training loop: one network, one seed, with or without a teacher (Lightning Fabric).

The same loop serves a CPU, a GPU and several processes with one of either. Images stay on the
device as bytes, views are drawn per image from the order seed, and a teacher's answers come from
its table where there is one; else it is asked about the very view that the student gets.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes import networks
from kdnotes.data import ImageData
from kdnotes.data.views import ColorJitter, crop, to_float
from kdnotes.errors import RequestError
from kdnotes.methods import Batch, Outputs, controls
from kdnotes.methods.base import at_least_single
from kdnotes.networks import (
    Composite,
    Normalized,
    features_at,
    forward_with_features,
    tapped,
)
from kdnotes.training import distributed
from kdnotes.training.checkpoints import Checkpoints
from kdnotes.training.specification import NetworkSpec, Recipe, derive_seed
from kdnotes.training.teacher_table import CHUNK, TeacherTable

EpochReport = Callable[[int, float], None]  # epochs done, mean loss of the last one
# Logits and penultimate features of a network for a batch.
Forward = Callable[[Normalized | Composite, Tensor], tuple[Tensor, Tensor]]
RECHECKED_ROWS = 8
ROWS_AT_ONCE = 16_384  # of a table; with a thousand classes some 200 MB
COMPILE = "KDNOTES_COMPILE"  # in the environment: 1 to compile networks, off by default
CONFIDENCE_IMAGES = 10_000  # enough for one mean; a live teacher would take hours for all


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher and what it answers to every image, if that is there; else it is live.

    ``maps``: the output of the layer that the method looks at, (images, channels, height, width),
    where images have one view each.
    """

    network: Normalized | Composite
    table: TeacherTable | None = None
    maps: Tensor | None = None


class Learner(nn.Module):
    """A student with what its method trains beside it; one call gives the named losses.

    ``confidence``: of the true class in smoothed labels.
    """

    def __init__(self, network: Normalized, spec: NetworkSpec) -> None:
        super().__init__()
        self.network, self.method, self.labels = network, spec.method, spec.labels
        self.beside: nn.Module | None = None
        self.confidence = 1.0
        self._forward: Forward = forward_with_features
        layers = None if spec.method is None else spec.method.layers()
        self._layer = None if layers is None else networks.hint_layer(network, layers[0])

    def prepare(self, images: Tensor, teacher: Outputs, labels: Tensor, seed: int) -> None:
        """Make what is trained beside the student, from a few images and all labels (M,)."""
        assert self.method is not None
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            was_training = self.network.training
            self.network.eval()
            student = self._student(images)
            self.network.train(was_training)
            places = torch.arange(len(images), device=images.device)
            example = self._batch(student, teacher, labels[: len(images)], places, None)
            self.beside = self.method.prepare(example, labels, seed)

    def use_compiled(self) -> None:
        """Have the network's passes compiled when they are first needed."""
        self._forward = _compiled_forward()

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        teacher: Outputs | None,
        indices: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        student = self._student(images)
        assert student.logits is not None
        terms = {"ce": F.cross_entropy(student.logits, labels)}
        if self.method is not None and teacher is not None:
            batch = self._batch(student, teacher, labels, indices, generator)
            terms[self.method.name] = self.method.term(batch)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise: gamma * cross-entropy + weight * the method's term."""
        if self.method is None:
            return terms["ce"]
        return self.method.gamma * terms["ce"] + self.method.weight * terms[self.method.name]

    def _student(self, images: Tensor) -> Outputs:
        if self._layer is None:
            return Outputs(*self._forward(self.network, images))
        # Never compiled: compiled code would pass by the hook that takes the layer's output.
        return _with_layer(self.network, images, self._layer)

    def _batch(
        self, student: Outputs, teacher: Outputs, labels: Tensor, indices: Tensor, generator: Any
    ) -> Batch:
        def soft_labels(tau: float) -> Tensor:
            if self.labels == "smoothed":
                assert student.logits is not None
                return controls.smoothed_labels(labels, student.logits.shape[1], self.confidence)
            assert teacher.logits is not None
            return torch.softmax(at_least_single(teacher.logits) / tau, dim=1)

        return Batch(
            labels, indices, student, teacher, soft_labels, generator, self.beside, distributed
        )


@lru_cache(maxsize=1)
def _compiled_forward() -> Forward:
    """One for all networks: those of one architecture then share what was compiled."""
    return torch.compile(forward_with_features, dynamic=False)


def wants_compile() -> bool:
    """Whether networks are to be compiled for training, from KDNOTES_COMPILE.

    Raises RequestError for another value than 0 and 1, and where there is nothing to compile with.
    """
    text = os.environ.get(COMPILE, "")
    if text not in ("", "0", "1"):
        raise RequestError(f"{COMPILE} must be 1 (compile) or 0, not {text!r}")
    if text == "1" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RequestError(
            f"{COMPILE}=1 needs a C++ compiler, and there is no "
            f"{os.environ.get('CXX', 'g++')!r}; name one with CXX, or leave {COMPILE} out"
        )
    return text == "1"


def _with_layer(network: Normalized | Composite, images: Tensor, layer: str) -> Outputs:
    """Logits, penultimate features and the output of one layer (``logits`` names the logits)."""
    if layer == "logits":
        logits, features = forward_with_features(network, images)
        return Outputs(logits, features, logits)
    with tapped(network, (layer,)) as outputs:
        logits, features = forward_with_features(network, images)
    return Outputs(logits, features, networks.as_map(network, outputs[layer]))


def train(
    spec: NetworkSpec,
    network: Normalized,
    data: ImageData,
    teacher: Teacher | None,
    device: str = "cpu",
    report: EpochReport | None = None,
    checkpoints: Checkpoints | None = None,
    compiled: bool = False,
) -> list[dict[str, float]]:
    """Train the network in place; returns per epoch the mean of each loss term and the seconds.

    The result depends on the specification, the data and the kind of device alone. In a group of
    processes (`distributed`) each takes its share of every batch; networks without BatchNorm
    and dropout then come out as from one process, up to rounding. BatchNorm sees one process's
    share at a time, and its running statistics are averaged after each epoch. ``checkpoints``:
    where to go on from, and where to leave the state when a checkpoint is due. ``compiled``: the
    network's passes are compiled first (not a student's of Hint), which changes last digits, and
    what dropout drops.

    Raises FloatingPointError when the loss is no number any more, and RequestError when the batch
    cannot be shared evenly.
    """
    recipe = spec.recipe
    fabric = distributed.fabric_for(device)
    place = fabric.device
    images = data.images
    if isinstance(images, Tensor):
        images = images.to(place, memory_format=torch.channels_last)
    labels = data.labels.to(place)
    order = torch.Generator().manual_seed(spec.order_seed)
    negatives = torch.Generator(place).manual_seed(derive_seed("negatives", spec.seed))
    jitters = torch.Generator().manual_seed(derive_seed("jitter", spec.role, spec.seed))
    batch = min(recipe.batch, len(data))
    steps = len(data) // batch
    own = distributed.share(batch)

    network.to(place, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    permutation = None
    if spec.labels == "permuted":
        permutation = controls.permute_within_class(data.labels, order_of_labels(spec))
    learner = Learner(network, spec)
    layer = teacher_layer(spec, teacher)
    if teacher is not None:
        first = _whole(data.batch(torch.arange(2)).to(place), recipe)
        learner.prepare(
            first, _live(teacher.network, first, layer), data.labels, spec.initialisation_seed
        )
    learner = learner.to(place)
    if compiled:
        learner.use_compiled()
    if teacher is not None and spec.labels == "smoothed":
        tau = spec.method.tau  # type: ignore[union-attr]
        learner.confidence = _mean_confidence(teacher, data, recipe, tau, place)
    inner_optimizer = _optimizer(recipe, learner)
    module, optimizer = fabric.setup(learner, inner_optimizer)
    rate = _schedule(recipe, steps * recipe.epochs, steps)
    progress = _Progress(
        learner, inner_optimizer, {"order": order, "negatives": negatives, "jitters": jitters}
    )

    # Dropout draws from the global generator: seed it here and give the old state back after.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        # Every process drops other features: they look at other images, too.
        apart = (distributed.rank(),) if distributed.rank() else ()
        torch.manual_seed(derive_seed("dropout", spec.order_seed, *apart))
        history = [] if checkpoints is None else progress.resume(checkpoints)
        for epoch in range(len(history), recipe.epochs):
            started = time.perf_counter()
            permuted_order = torch.randperm(len(data), generator=order)[: steps * batch]
            views = recipe.views.draw(len(data), order)[permuted_order]
            rectangles = None
            if recipe.resized is not None:
                rectangles = recipe.resized.draw(len(permuted_order), order)
            asked = permuted_order if permutation is None else permutation[permuted_order]
            if teacher is not None and teacher.table is not None:
                teacher.table.fill(asked, views)
                teacher.table.recheck(asked[:RECHECKED_ROWS], views[:RECHECKED_ROWS])
            totals: dict[str, Tensor] = {}
            on_device = permuted_order.to(place)
            views_on_device = views.to(place)
            parts = [
                slice(step * batch + own.start, step * batch + own.stop) for step in range(steps)
            ]
            stored = None
            if teacher is not None and teacher.table is not None:
                stored = _stored(teacher.table, asked, views, parts)
            ahead = None
            if not isinstance(images, Tensor):
                ahead = _read_ahead(images, [permuted_order[part] for part in parts])
            for step, part in enumerate(parts):
                chosen = on_device[part]
                raw = _gathered(images, chosen) if ahead is None else next(ahead)
                view = _view_of(recipe, views_on_device[part], rectangles, part)
                seen = view(raw.to(place))
                answers = None
                if stored is not None:
                    answers = next(stored)
                elif teacher is not None and teacher.maps is not None:
                    answers = Outputs(layer=_gathered(teacher.maps, chosen))
                elif teacher is not None:
                    asked_about = seen
                    if permutation is not None:
                        asked_about = view(data.batch(asked[part]).to(place))
                    answers = _live(teacher.network, asked_about, layer)
                if recipe.crops is not None:
                    seen = crop(seen, recipe.crops.draw(batch, jitters)[own].to(place))
                if recipe.jitter is not None:
                    seen = _jittered(seen, recipe.jitter, jitters, batch, own)
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch * steps + step)
                terms = module(seen, labels[chosen], answers, chosen, negatives)
                loss = learner.total(terms)
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                optimizer.step()
                for name, value in (*terms.items(), ("loss", loss)):
                    totals[name] = totals.get(name, 0) + value.detach()
            distributed.average_statistics(learner)
            means = {name: float(distributed.mean(total)) / steps for name, total in totals.items()}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"loss is {means['loss']} after epoch {epoch + 1}: lower the learning rate"
                )
            history.append(means | {"seconds": time.perf_counter() - started})
            if report is not None:
                report(epoch + 1, means["loss"])
            if checkpoints is not None and epoch + 1 < recipe.epochs:
                progress.keep(checkpoints, history)
    network.eval()
    return history


class _Progress:
    """What a run needs to go on from the end of an epoch as if it had never stopped."""

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        generators: dict[str, torch.Generator],
    ) -> None:
        self.learner, self.optimizer, self.generators = learner, optimizer, generators
        self.place = next(learner.parameters()).device

    def keep(self, checkpoints: Checkpoints, history: list[dict[str, float]]) -> None:
        """Write a checkpoint if one is due; the first process does."""
        # Of all processes: each drops features of its own.
        dropout = distributed.gathered(self._global_state().to(self.place))
        if distributed.rank() or not checkpoints.due():
            return
        tensors = {f"model.{name}": value for name, value in self.learner.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
        for name, generator in self.generators.items():
            tensors[f"random.{name}"] = generator.get_state()
        tensors["random.dropout"] = dropout.view(distributed.count(), -1)
        checkpoints.write(len(history), tensors, {"history": history})

    def resume(self, checkpoints: Checkpoints) -> list[dict[str, float]]:
        """Take up the last sound checkpoint; returns the history up to it, empty if there is none.

        In another number of processes, dropout goes on with other numbers than it would have had.
        """
        epoch = distributed.told(checkpoints.last() if distributed.rank() == 0 else 0)
        if not epoch:
            return []
        tensors, notes = checkpoints.read(epoch)
        state = {
            name.removeprefix("model."): value
            for name, value in tensors.items()
            if name.startswith("model.")
        }
        self.learner.load_state_dict(state)
        self._resume_optimizer(tensors)
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"random.{name}"])
        dropout = tensors["random.dropout"]
        if len(dropout) == distributed.count():
            self._set_global_state(dropout[distributed.rank()].clone())
        else:
            torch.manual_seed(derive_seed("dropout", torch.initial_seed(), epoch))
        return notes["history"]

    def _resume_optimizer(self, tensors: dict[str, Tensor]) -> None:
        packed = self.optimizer.state_dict()
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, field = rest.partition(".")
                packed["state"].setdefault(int(number), {})[field] = value
        self.optimizer.load_state_dict(packed)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                # Fused optimizers want the parameter's own order in memory (channels last).
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)

    def _global_state(self) -> Tensor:
        if self.place.type == "cuda":
            return torch.cuda.get_rng_state(self.place)
        return torch.get_rng_state()

    def _set_global_state(self, state: Tensor) -> None:
        if self.place.type == "cuda":
            torch.cuda.set_rng_state(state, self.place)
        else:
            torch.set_rng_state(state)


def _view_of(
    recipe: Recipe, views: Tensor, rectangles: Tensor | None, part: slice
) -> Callable[[Tensor], Tensor]:
    """The view of a batch's images, uint8 in and float out: the same for student and teacher."""

    def view(raw: Tensor) -> Tensor:
        seen = to_float(recipe.views.apply(raw, views))
        if recipe.resized is None or rectangles is None:
            return seen
        return recipe.resized.apply(seen, rectangles[part].to(seen.device))

    return view


def _gathered(images: Tensor, places: Tensor) -> Tensor:
    """Images or maps at some places (n,) of those that lie one after the other, channels last."""
    rows = images.permute(0, 2, 3, 1)
    # Whole rows are copied as such, not pixel by pixel.
    chosen = rows.flatten(1).index_select(0, places)
    return chosen.unflatten(1, rows.shape[1:]).permute(0, 3, 1, 2)


def _whole(raw: Tensor, recipe: Recipe) -> Tensor:
    """uint8 images as they are, as floats of the size that a recipe trains on."""
    images = to_float(raw)
    return images if recipe.resized is None else recipe.resized.whole(images)


def _stored(
    table: TeacherTable, asked: Tensor, views: Tensor, parts: list[slice]
) -> Iterator[Outputs]:
    """A table's answers to each part of the images asked about and their views, on the device.

    Read for many steps at once: to copy rows to a GPU is to wait for it.
    """
    together = max(1, ROWS_AT_ONCE // (parts[0].stop - parts[0].start)) if parts else 1
    for first in range(0, len(parts), together):
        group = parts[first : first + together]
        start, stop = group[0].start, group[-1].stop
        logits, features = table.rows(asked[start:stop], views[start:stop])
        for part in group:
            here = slice(part.start - start, part.stop - start)
            # With a table, the only layer that a method can look at is the logits.
            yield Outputs(logits[here], features[here], logits[here])


def _read_ahead(source: Any, parts: list[Tensor]) -> Iterator[Tensor]:
    """Images at each part of the indices (n,), the next ones read while these are used."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(source.__getitem__, parts[0])
        for following in (*parts[1:], None):
            raw = coming.result()
            if following is not None:
                coming = reader.submit(source.__getitem__, following)
            yield raw


def order_of_labels(spec: NetworkSpec) -> torch.Generator:
    """Generator of the permutation of soft labels within classes, by seed."""
    return torch.Generator().manual_seed(derive_seed("permuted", spec.seed))


def teacher_layer(spec: NetworkSpec, teacher: Teacher | None) -> str | None:
    """Path of the layer that the method looks at in the teacher, None where it needs no layer."""
    layers = None if spec.method is None else spec.method.layers()
    if layers is None or teacher is None:
        return None
    return networks.hint_layer(teacher.network, layers[1])


def needs_layer(spec: NetworkSpec) -> bool:
    """Whether the method looks at a layer that no table holds: the teacher is live, then."""
    layers = None if spec.method is None else spec.method.layers()
    return layers is not None and layers[1] != "logits"


def _live(teacher: Normalized | Composite, images: Tensor, layer: str | None) -> Outputs:
    with torch.no_grad():
        if layer is not None and layer != "logits":
            found = features_at(teacher, images, layer)
            return Outputs(layer=networks.as_map(teacher, found))
        logits, features = forward_with_features(teacher, images)
        return Outputs(logits, features, logits)


def feature_maps(teacher: Normalized, data: ImageData, layer: str, device: torch.device) -> Tensor:
    """One layer's output for every image of a set as it is, (images, channels, height, width).

    Channels last in memory.
    """
    maps = []
    with torch.no_grad():
        for indices in torch.arange(len(data)).split(CHUNK):
            images = to_float(data.batch(indices).to(device))
            maps.append(networks.as_map(teacher, features_at(teacher, images, layer)))
    return torch.cat(maps).contiguous(memory_format=torch.channels_last)


def _mean_confidence(
    teacher: Teacher, data: ImageData, recipe: Recipe, tau: float, device: torch.device
) -> float:
    """The teacher's mean largest probability at a temperature, over the training images.

    A live teacher is asked about `CONFIDENCE_IMAGES` of them at most, evenly spaced.
    """
    indices = torch.arange(len(data))
    if teacher.table is not None:
        views = torch.full_like(indices, recipe.views.centre)
        teacher.table.fill(indices, views)
        logits, _ = teacher.table.rows(indices, views)
    else:
        sample = indices[:: math.ceil(len(data) / CONFIDENCE_IMAGES)]
        with torch.inference_mode():
            logits = torch.cat(
                [
                    teacher.network(_whole(data.batch(part).to(device), recipe))
                    for part in sample.split(CHUNK)
                ]
            )
    return float((logits / tau).softmax(1).amax(1).mean())


def _jittered(
    images: Tensor, jitter: ColorJitter, generator: torch.Generator, batch: int, own: slice
) -> Tensor:
    """Images (n, ...) with changed colours, the factors drawn for the batch they are a part of."""
    from kdnotes.data import colors

    factors = colors.draw_jitter(
        batch,
        jitter.brightness,
        jitter.contrast,
        jitter.saturation,
        jitter.hue,
        generator,
    )
    return colors.jitter(images, factors[own])


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


def _schedule(recipe: Recipe, total: int, per_epoch: int) -> Callable[[int], float]:
    """Learning rate by step."""
    peak = recipe.learning_rate

    def one_cycle(step: int) -> float:
        warm = max(1, round(0.15 * total))
        if step < warm:
            return peak * (step + 1) / warm
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def steps_down(step: int) -> float:
        return peak * 0.1 ** sum(step >= share * total for share in (0.625, 0.75, 0.875))

    def every_30_epochs(step: int) -> float:
        return peak * 0.1 ** (step // per_epoch // 30)

    def exponential(step: int) -> float:
        return peak * 0.7 ** (step // per_epoch)

    def cosine(step: int) -> float:
        return peak * 0.5 * (1 + math.cos(math.pi * step / total))

    return {
        "one-cycle": one_cycle,
        "step": steps_down,
        "step-30": every_30_epochs,
        "exponential": exponential,
        "cosine": cosine,
    }[recipe.schedule]
