"""What a student can know of a linear teacher, and what no lesson can tell it.

Linear models are matrices (classes, features + 1) in float64, the last column being the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, Cast, ImageData, Measure, Member, Outcome, Row
from kdnotes.study.arms import Arm

SIDE = 5  # images are reduced to SIDE x SIDE pixels for linear models
PARTS = "grey", "chroma"
COUNTS = (5, 10, 16, 21, 32, 42)  # points: up to twice as many as a class has weights
LINEAR = (  # students that are no networks of a cast: what each fits, and where it starts
    Arm("distilled", "Logits, start of zero", "Logits", "#0072B2", "s"),
    Arm("distilled-other-start", "Logits, own random start", "Own start", "#7A2E5D", "v", "--"),
    Arm("distilled-same-start", "Logits, teacher's start", "Its start", "#E69F00", "^", ":"),
    Arm("labels-only", "Labels", "Labels", "#999999", "o", "-."),
)
FILTERS = "part=*,against=teacher", ("part=*,against=independent",)
_Off = partial(Measure, unit="share of the teacher's length", high=math.inf, direction="down")
MEASURES = (
    _Off("weight_error", "is off the teacher's weights", "", ("points=*",)),
    _Off("part_error", "is off the teacher's weights", "part=*"),
    _Off("part_moved", "has left its first weights", "part=*", unit="share of their length"),
    Measure("linear_accuracy", "is right"),
    Alike("first_layer_cosine", "filters as its teacher", *FILTERS, unit="cosine", low=-1.0),
)


def with_ones(points: torch.Tensor) -> torch.Tensor:
    """Points (n, m) as float64 (n, m + 1) with a last column of ones, for the bias."""
    return torch.nn.functional.pad(points.double(), (0, 1), value=1.0)


def _draws(seed: int) -> Callable[..., torch.Tensor]:
    """Standard normal tensors of any shape, float64, one after the other from one seed."""
    generator = torch.Generator().manual_seed(seed)
    return partial(torch.randn, generator=generator, dtype=torch.float64)


def distil(start: torch.Tensor, points: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Weights (classes, m + 1) that give the teacher's logits (n, classes) at points (n, m).

    Of all that fit best, those nearest to the start: where gradient descent from there ends.
    """
    inputs = with_ones(points)
    missing = logits - inputs @ start.T
    return start + (torch.linalg.pinv(inputs) @ missing).T


def descend(
    start: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    steps: int = 500,
    rate: float = 1.0,
) -> torch.Tensor:
    """Weights after full-batch gradient descent on the cross-entropy with labels (n,)."""
    inputs, weights = with_ones(points), start.clone()
    targets = torch.nn.functional.one_hot(labels, len(start)).double()
    for _ in range(steps):
        error = (inputs @ weights.T).softmax(1) - targets
        weights -= rate * error.T @ inputs / len(inputs)
    return weights


def weight_error(found: torch.Tensor, true: torch.Tensor, free_scale: bool = False) -> float:
    """Length of the difference of two sets of weights, as a share of the true ones' length.

    What is common to all classes changes no probability and is taken out first. With ``free_scale``
    the found weights are then multiplied by the best number: labels do not tell their length.
    """
    ours, truth = (weights - weights.mean(0, keepdim=True) for weights in (found, true))
    if free_scale:
        ours = ours * ((ours * truth).sum() / (ours**2).sum()).clamp(min=0)
    return float((ours - truth).norm() / truth.norm())


def recovery(seeds: Sequence[int], dimension: int = 20, counts: Sequence[int] = COUNTS) -> Outcome:
    """How far students are from a linear teacher's weights, by the number of points they see.

    Of the arms in `LINEAR`; students of labels see the teacher's answers, and their scale is free.
    ``distilled-few`` and ``distilled-enough`` (no condition) are ``distilled`` at half of dimension
    + 1 points (rounded up) and at dimension + 1.
    """
    needed, rows = dimension + 1, list[Row]()
    for seed in seeds:
        draw = _draws(seed)
        training, pool = draw(20 * needed, dimension), draw(max(*counts, needed), dimension)
        rule, first, own = (draw(3, needed) / math.sqrt(needed) for _ in range(3))
        teacher = descend(first, training, (with_ones(training) @ rule.T).argmax(1))
        zero = torch.zeros_like(teacher)
        starts = {"distilled": zero, "distilled-other-start": own, "distilled-same-start": first}
        asked = [(f"points={count}", count, starts) for count in counts]
        asked += [("", math.ceil(needed / 2), {"distilled-few": zero})]
        asked += [("", needed, {"distilled-enough": zero})]
        for where, count, begun in asked:
            points = pool[:count]
            logits = with_ones(points) @ teacher.T
            students = {arm: distil(start, points, logits) for arm, start in begun.items()}
            errors = {arm: weight_error(found, teacher) for arm, found in students.items()}
            if where:
                student = descend(own, points, logits.argmax(1))
                errors["labels-only"] = weight_error(student, teacher, free_scale=True)
            rows += [(arm, seed, where, "weight_error", value) for arm, value in errors.items()]
    return Outcome.of_rows(rows)


def small_images(data: ImageData) -> torch.Tensor:
    """The middle of each image, reduced: (N, 3 * SIDE * SIDE) float64, channel by channel.

    It is more than a seventh of the side away from the edges: the digits' own box.
    """
    images = base.pictures(data, torch.arange(len(data)))
    edge = images.shape[-1] // 7
    middle = images[..., edge : images.shape[-2] - edge, edge : images.shape[-1] - edge]
    return torch.nn.functional.adaptive_avg_pool2d(middle, SIDE).flatten(1).double()


def grey_lessons(
    seeds: Sequence[int], grey: ImageData, coloured: ImageData, test: ImageData
) -> Outcome:
    """What linear students of grey images know of a teacher that was trained on coloured ones too.

    By part (see `linear_parts`): ``part_error``, length of the difference to the teacher's, as a
    share of its length, and ``part_moved``, the same to the student's own start.
    """
    lessons, tested = small_images(grey), with_ones(small_images(test))
    both, labels = torch.cat([lessons, small_images(coloured)]), [grey.labels, coloured.labels]
    rows: list[Row] = []
    for seed in seeds:
        draw, shape = _draws(seed), (len(grey.classes), both.shape[1] + 1)
        first, own = (draw(*shape) / math.sqrt(shape[1]) for _ in range(2))
        teacher = descend(first, both, torch.cat(labels), rate=0.2)
        networks = {"linear-teacher": teacher}
        for arm, start in (("distilled-other-start", own), ("distilled-same-start", first)):
            networks[arm] = distil(start, lessons, with_ones(lessons) @ teacher.T)
            triple = zip(*map(linear_parts, (networks[arm], teacher, start)), strict=True)
            for part, (found, *others) in zip(PARTS, triple, strict=True):
                for measure, other in zip(("part_error", "part_moved"), others, strict=True):
                    value = float((found - other).norm() / other.norm())
                    rows.append((arm, seed, f"part={part}", measure, value))
        for arm, weights in networks.items():
            right = base.share_alike((tested @ weights.T).argmax(1), test.labels)
            rows.append((arm, seed, "", "linear_accuracy", right))
    return Outcome.of_rows(rows)


def linear_parts(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey part (with the bias) and chroma part of weights (classes, 3 * pixels + 1), flat."""
    by_colour = weights[:, :-1].unflatten(1, (3, -1))
    grey, chroma = parts(by_colour)
    return torch.cat([grey.flatten(), weights[:, -1]]), chroma.flatten()


def parts(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (n, 3, ...) as what the colours have in common, and what tells them apart.

    On images with R = G = B only the first part acts, and only it has a gradient.
    """
    grey = weights.mean(1, keepdim=True).expand_as(weights)
    return grey, weights - grey


def first_layers(cast: Cast, same_start: Mapping[str, str] = MappingProxyType({})) -> Outcome:
    """How alike the first layers of two networks are: mean cosine of their filters, by `parts`.

    With the teacher's, and with those of the independent student that began with the same weights.
    NaN where networks have no such layer, or one of another shape. ``same_start``: arms that begin
    with the teacher's weights, with those that are taught alike (`Plan.same_start`).
    """
    starts = [((each.seed, each.arm in same_start), each) for each in cast.members]
    alone = [each for each in starts if same_start.get(each[1].arm, each[1].arm) == "independent"]
    begun = dict(alone)
    rows: list[Row] = []
    for key, member in starts:
        partners = {"teacher": cast.teacher, "independent": begun.get(key, member)}
        for name, partner in partners.items():
            for part, value in zip(PARTS, _cosines(member, partner), strict=True):
                where = f"part={part},against={name}"
                if partner is not member:
                    rows.append((member.arm, member.seed, where, "first_layer_cosine", value))
    return Outcome.of_rows(rows)


def _first_layer(network: torch.nn.Module) -> torch.Tensor | None:
    """Weights (filters, 3, h, w) of the first convolution that reads colours; None without one."""
    layers = (each for each in network.modules() if isinstance(each, torch.nn.Conv2d))
    weights = (layer.weight.detach().double().cpu() for layer in layers)
    return next((each for each in weights if each.shape[1] == 3), None)


def _cosines(*members: Member) -> tuple[float, ...]:
    one, other = (_first_layer(member.network) for member in members)
    if one is None or other is None or one.shape != other.shape:
        return math.nan, math.nan
    pairs = zip(parts(one), parts(other), strict=True)
    return tuple(
        float(torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()) for a, b in pairs
    )


PROPERTY = base.Property("identifiability", "what can be known", first_layers, MEASURES, rank=13)
