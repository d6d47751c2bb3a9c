"""The training loop: one network, one seed, with or without a teacher (Lightning Fabric).

The same loop serves a CPU, a GPU and several of either. Images stay on the device as bytes, views
are drawn per image from the order seed, and a teacher's answers come from its table where the
objective allows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes import objectives
from kdnotes.data import ImageData
from kdnotes.models import Normalized, features_at, forward_with_features, tapped
from kdnotes.objectives import ObjectiveSpec
from kdnotes.recipe import NetworkSpec, Recipe, derive_seed
from kdnotes.teacher_table import TeacherTable
from kdnotes.transforms import ColorJitter, to_float

EpochReport = Callable[[int, float], None]  # epochs done, mean loss of the last one
RECHECKED_ROWS = 8


@dataclass(frozen=True)
class Answers:
    """What a teacher says about a batch: logits and penultimate features, or a feature map."""

    logits: Tensor | None
    features: Tensor | None
    feature_map: Tensor | None


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher and the table of its answers; without a table it is asked live."""

    network: Normalized
    table: TeacherTable | None


class Learner(nn.Module):
    """A student with whatever its objective trains beside it; one call gives the named losses."""

    def __init__(
        self,
        network: Normalized,
        spec: ObjectiveSpec,
        labels: Tensor,
        example: tuple[Tensor, Answers] | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self.projection: nn.Module | None = None
        self.crd: objectives.CRD | None = None
        self.confidence = 1.0
        if example is None:
            return
        images, answers = example
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            was_training = network.training
            network.eval()
            features, student_map = self._student(images)[1:]
            network.train(was_training)
            if spec.method == "hint":
                assert student_map is not None
                assert answers.feature_map is not None
                self.projection = objectives.HintProjection(
                    student_map.shape[1:], answers.feature_map.shape[1:]
                )
            elif spec.method == "crd":
                assert answers.features is not None
                self.crd = objectives.CRD(
                    features.shape[1],
                    answers.features.shape[1],
                    labels,
                    spec.crd_negatives,
                    spec.crd_tau,
                    spec.crd_momentum,
                    seed,
                )

    def _student(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.spec.method != "hint":
            logits, features = forward_with_features(self.network, images)
            return logits, features, None
        return (*_with_map(self.network, images, self.spec.hint_student),)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        answers: Answers | None,
        indices: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        spec = self.spec
        logits, features, student_map = self._student(images)
        terms = {"ce": F.cross_entropy(logits, labels)}
        if answers is None:
            return terms
        if spec.method == "kl" and spec.labels == "smoothed":
            soft = objectives.smoothed_labels(labels, logits.shape[1], self.confidence)
            terms["kl"] = objectives.kl_to_probabilities(logits, soft, spec.tau)
        elif spec.method == "kl":
            assert answers.logits is not None
            terms["kl"] = objectives.kl(logits, answers.logits, spec.tau)
        elif spec.method == "hint":
            assert self.projection is not None
            assert answers.feature_map is not None
            terms["hint"] = objectives.hint(self.projection(student_map), answers.feature_map)
        elif spec.method == "crd":
            assert self.crd is not None
            assert answers.features is not None
            terms["crd"] = self.crd(features, answers.features, indices, generator)
        return terms


def _with_map(network: Normalized, images: Tensor, tap: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, penultimate features and the output of one layer (``logits`` names the logits)."""
    if tap == "logits":
        logits, features = forward_with_features(network, images)
        return logits, features, logits
    with tapped(network, (tap,)) as outputs:
        logits, features = forward_with_features(network, images)
    return logits, features, outputs[tap]


def fabric_for(device: str) -> Any:
    """A launched-to-be Fabric for ``cpu``, ``cuda`` or ``cuda:all``; bf16 autocast on CUDA."""
    from lightning_fabric import Fabric

    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        count = -1 if device == "cuda:all" else 1
        return Fabric(accelerator="cuda", devices=count, precision="bf16-mixed")
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


def train(
    spec: NetworkSpec,
    network: Normalized,
    data: ImageData,
    teacher: Teacher | None,
    device: str = "cpu",
    report: EpochReport | None = None,
) -> list[dict[str, float]]:
    """Train the network in place; returns per epoch the mean of each loss term and the seconds.

    The result depends on the specification, the data and the kind of device alone.
    """
    recipe, objective = spec.recipe, spec.objective
    fabric = fabric_for(device)
    place = fabric.device
    images = data.images.to(place) if isinstance(data.images, Tensor) else data.images
    labels = data.labels.to(place)
    order = torch.Generator().manual_seed(spec.order_seed)
    negatives = torch.Generator(place).manual_seed(derive_seed("negatives", spec.seed))
    jitters = torch.Generator().manual_seed(derive_seed("jitter", spec.role, spec.seed))
    batch = min(recipe.batch, len(data))
    steps = len(data) // batch

    network.to(place, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    permutation = None
    if objective.labels == "permuted":
        if teacher is None or teacher.table is None:
            raise ValueError(
                "permuted soft labels are other images' rows of a table: none is there"
            )
        permutation = objectives.permute_within_class(data.labels, order_of_labels(spec))
    example = None
    if teacher is not None:
        first = to_float(data.batch(torch.arange(2)).to(place))
        example = (first, _live(teacher.network, first, objective))
    learner = Learner(network, objective, data.labels, example, spec.initialisation_seed).to(place)
    if teacher is not None and objective.labels == "smoothed":
        learner.confidence = _mean_confidence(teacher, data, recipe, objective.tau)
    module, optimizer = fabric.setup(learner, _optimizer(recipe, learner))
    rate = _schedule(recipe, steps * recipe.epochs, steps)

    history: list[dict[str, float]] = []
    # Dropout draws from the global generator: seed it here and give the old state back after.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(derive_seed("dropout", spec.order_seed))
        for epoch in range(recipe.epochs):
            started = time.perf_counter()
            permuted_order = torch.randperm(len(data), generator=order)[: steps * batch]
            views = recipe.views.draw(len(data), order)[permuted_order]
            asked = permuted_order if permutation is None else permutation[permuted_order]
            if teacher is not None and teacher.table is not None:
                teacher.table.fill(asked, views)
                teacher.table.recheck(asked[:RECHECKED_ROWS], views[:RECHECKED_ROWS])
            totals: dict[str, Tensor] = {}
            on_device = permuted_order.to(place)
            views_on_device = views.to(place)
            for step in range(steps):
                part = slice(step * batch, (step + 1) * batch)
                chosen = on_device[part]
                raw = images[chosen] if isinstance(images, Tensor) else images[permuted_order[part]]
                seen = to_float(recipe.views.apply(raw.to(place), views_on_device[part]))
                answers = None
                if teacher is not None and teacher.table is not None:
                    logits, features = teacher.table.rows(asked[part], views[part])
                    # With a table, the only layer that Hint can look at is the logits.
                    answers = Answers(logits, features, logits)
                elif teacher is not None:
                    answers = _live(teacher.network, seen, objective)
                if recipe.jitter is not None:
                    seen = _jittered(seen, recipe.jitter, jitters)
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch * steps + step)
                terms = module(seen, labels[chosen], answers, chosen, negatives)
                loss = objectives.combine(terms, objective)
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                optimizer.step()
                for name, value in (*terms.items(), ("loss", loss)):
                    totals[name] = totals.get(name, 0) + value.detach()
            means = {name: float(total) / steps for name, total in totals.items()}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"loss is {means['loss']} after epoch {epoch + 1}: lower the learning rate"
                )
            history.append(means | {"seconds": time.perf_counter() - started})
            if report is not None:
                report(epoch + 1, means["loss"])
    network.eval()
    return history


def order_of_labels(spec: NetworkSpec) -> torch.Generator:
    """Generator of the permutation of soft labels within classes, by seed."""
    return torch.Generator().manual_seed(derive_seed("permuted", spec.seed))


def needs_map(objective: ObjectiveSpec) -> bool:
    """Whether the objective looks at a feature map, which no table holds: the teacher is live."""
    return objective.method == "hint" and objective.hint_teacher != "logits"


def _live(teacher: Normalized, images: Tensor, objective: ObjectiveSpec) -> Answers:
    with torch.no_grad():
        if needs_map(objective):
            return Answers(None, None, features_at(teacher, images, objective.hint_teacher))
        logits, features = forward_with_features(teacher, images)
        return Answers(logits, features, logits)


def _mean_confidence(teacher: Teacher, data: ImageData, recipe: Recipe, tau: float) -> float:
    """The teacher's mean largest probability at a temperature, over the training images."""
    indices = torch.arange(len(data))
    views = torch.full_like(indices, recipe.views.centre)
    if teacher.table is None:
        raise ValueError("smoothed labels are matched to a teacher's table, and there is none")
    teacher.table.fill(indices, views)
    logits, _ = teacher.table.rows(indices, views)
    return float((logits / tau).softmax(1).amax(1).mean())


def _jittered(images: Tensor, jitter: ColorJitter, generator: torch.Generator) -> Tensor:
    from kdnotes import transforms_color

    factors = transforms_color.draw_jitter(
        len(images),
        jitter.brightness,
        jitter.contrast,
        jitter.saturation,
        jitter.hue,
        generator,
    )
    return transforms_color.jitter(images, factors)


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

    def exponential(step: int) -> float:
        return peak * 0.7 ** (step // per_epoch)

    def cosine(step: int) -> float:
        return peak * 0.5 * (1 + math.cos(math.pi * step / total))

    return {
        "one-cycle": one_cycle,
        "step": steps_down,
        "exponential": exponential,
        "cosine": cosine,
    }[recipe.schedule]
