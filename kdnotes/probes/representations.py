"""Are the layers of a student like those of its teacher? Linear CKA, layer by layer.

Centred kernel alignment (Kornblith et al. 2019), estimated without bias (Song et al. 2012) in each
batch and averaged over batches (Nguyen et al. 2021). Maps are flattened: where a feature was found
is part of what a layer says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial

from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, Cast, ImageData, Measure, Member, Outcome, Recorder, Row

BATCH_SIZE = 125  # products of pairs cost as much as the networks; they grow with the batch
SMALLEST_BATCH = 4  # the unbiased estimate divides by images - 3
LAYERS = "teacher_layer=*,student_layer=*"
LAST, OF = "has a last layer like the teacher's", "of=*,with=*"
_Cka = partial(Alike, unit="CKA", low=-1.0, chance=0.0)
_Relation = partial(Measure, unit="rho", low=-1.0, chance=0.0)
MEASURES = (
    _Cka("cka_last", LAST, reported=True),
    _Cka("cka_logits", "has logits like the teacher's"),
    _Cka("cka_diagonal", "has layers like the teacher's", "layers=all", ("layers=hidden",)),
    _Cka("cka", "has a layer like one of the teacher's", LAYERS, twin=None),
    _Cka("cka_debiased", LAST, "images=*"),
    _Cka("cka_biased", LAST, "images=*", low=0.0, chance=None),
    _Cka("cka_debiased_shuffled", LAST, "images=*", twin=None),
    _Cka("cka_biased_shuffled", LAST, "images=*", low=0.0, chance=None, twin=None),
    _Relation("rank_correlation", "has more of one measure with more of another", OF),
    _Relation("rank_correlation_of_means", "has more of one with more of another, by arm", OF),
    _Relation("rank_correlation_within", "has more of one with more of another, in an arm", OF),
)


def measure(cast: Cast, data: ImageData) -> Outcome:
    """Linear CKA of every network's layers with the teacher's, on the same images.

    Layers are the taps, numbered from 1, the penultimate ``features`` and the ``logits``.
    ``cka_diagonal`` is a mean over a student's layers, each with the teacher's of the same relative
    depth. NaN where a layer says the same of all images. Raises RequestError for fewer than four
    images, or when a network's last linear layer cannot be found.
    """
    _check_count(len(data))
    members = cast.everyone()
    names = [layer_names(member) for member in members]
    shared = [torch.zeros(len(names[0]), len(each), dtype=torch.float64) for each in names]
    own = [torch.zeros(len(each), dtype=torch.float64) for each in names]
    answers: list[list[torch.Tensor]] = [[] for _ in members]
    for _, images in base.batches(data, base.device_of(cast.teacher.network), BATCH_SIZE):
        teachers: torch.Tensor | None = None
        for number, member in enumerate(members):
            layers = layers_of(member, images)
            answers[number].append(layers[-1].argmax(1).cpu())
            if len(images) < SMALLEST_BATCH:  # the rest of the last images
                continue
            grams = torch.stack([u_centred(gram(layer)).flatten() for layer in layers])
            teachers = grams if teachers is None else teachers  # the teacher comes first
            weight = 1 / (len(images) - 3)  # images / (images (images - 3))
            shared[number] += weight * (teachers @ grams.T).cpu()
            own[number] += weight * grams.square().sum(1).cpu()
    recorder = Recorder(data)
    for number, member in enumerate(members):
        recorder.add_accuracy(member, torch.cat(answers[number]))
        values = _ratio(shared[number], torch.outer(own[0], own[number]))
        for row, theirs in zip(values.tolist(), names[0], strict=True):
            for value, ours in zip(row, names[number], strict=True):
                recorder.add_value(member, "cka", value, _of(theirs, ours))
        recorder.add_value(member, "cka_last", float(values[-3, -3]))
        recorder.add_value(member, "cka_logits", float(values[-1, -1]))
        if member is not cast.teacher:
            taps = corresponding(len(member.taps), len(cast.teacher.taps))
            matched = torch.cat([values[taps, range(len(taps))], values[[-2, -1], [-2, -1]]])
            for which, its in (("all", matched), ("hidden", matched[:-1])):
                recorder.add_value(member, "cka_diagonal", float(its.mean()), f"layers={which}")
    return recorder.outcome()


def by_count(
    cast: Cast, data: ImageData, counts: Sequence[int], arms: Collection[str] = ("independent",)
) -> Outcome:
    """CKA of the last taps on few and on more images, by the usual estimate and without its bias.

    counts: numbers of images, the first of the data each time, at most all. Members of ``arms`` are
    compared with the teacher; for ``_shuffled`` it is shown the images in another order. Raises
    RequestError when a count is below four.
    """
    sizes = sorted({min(count, len(data)) for count in counts})
    _check_count(sizes[0])
    first = data.subset(torch.arange(sizes[-1]))
    members = [cast.teacher, *(member for member in cast.members if member.arm in arms)]
    parts: list[list[torch.Tensor]] = [[] for _ in members]
    for _, images in base.batches(first, base.device_of(cast.teacher.network), BATCH_SIZE):
        for member, part in zip(members, parts, strict=True):
            part.append(layers_of(member, images)[len(member.taps) - 1])
    grams = [gram(torch.cat(part)) for part in parts]
    generator, rows = torch.Generator().manual_seed(0), list[Row]()
    for size in sizes:
        order = torch.randperm(size, generator=generator).to(grams[0].device)
        for name, estimate in (("biased", doubly_centred), ("debiased", u_centred)):
            teachers, *rest = (estimate(each[:size, :size]) for each in grams)
            references = {"": teachers, "_shuffled": teachers[order][:, order]}
            for member, students in zip(members[1:], rest, strict=True):
                for ending, reference in references.items():
                    what = f"images={size}", f"cka_{name}{ending}"
                    rows.append((member.arm, member.seed, *what, alignment(reference, students)))
    return Outcome.of_rows(rows)


def relation(
    outcome: Outcome, x: tuple[str, str], y: tuple[str, str], arms: Collection[str]
) -> Outcome:
    """Do networks that have more of one measure have more of another? Spearman's correlation.

    x and y: a measure and its condition each. Rows, at each seed and (as seed 0) over means of arms
    and within arms, have the arm ``all-arms`` and the condition ``of=X,with=Y``. NaN for fewer than
    three networks or where all are alike.
    """
    rows = {name: base.rows_of(outcome.table, *of, arms) for name, of in (("x", x), ("y", y))}
    columns = {name: its.set_index(["arm", "seed"])["value"] for name, its in rows.items()}
    pairs = pd.DataFrame(columns).dropna()
    means = pairs.groupby(level="arm")
    found = [(int(seed), "rank_correlation", at) for seed, at in pairs.groupby(level="seed")]
    found.append((0, "rank_correlation_of_means", means.mean()))
    found.append((0, "rank_correlation_within", pairs - means.transform("mean")))

    def rho(values: pd.DataFrame) -> float:
        # Differences from a mean that are nothing but rounding would get ranks as well.
        ranks = values.round(12).rank()
        return float(ranks["x"].corr(ranks["y"])) if len(ranks) > 2 else math.nan

    where = f"of={x[0]},with={y[0]}"
    return Outcome.of_rows(("all-arms", seed, where, name, rho(at)) for seed, name, at in found)


def by_layer(outcome: Outcome, cast: Cast, arm: str, under: str = "") -> pd.DataFrame:
    """Mean ``cka`` of every layer of a cast's teacher (rows) with every one of an arm (columns).

    ``under``: the condition before those of this cast, where it is one of several.
    """
    member = next(each for each in cast.everyone() if each.arm == arm)
    rows = outcome.table[(outcome.table["measure"] == "cka") & (outcome.table["arm"] == arm)]
    means = rows.groupby("condition")["value"].mean()
    theirs, ours = layer_names(cast.teacher), layer_names(member)
    cells = [[means[base.joined(under, _of(row, column))] for column in ours] for row in theirs]
    return pd.DataFrame(cells, theirs, ours)


def layer_names(member: Member) -> list[str]:
    """Names of a network's layers in conditions: its taps by number, features, logits."""
    return [*map(str, range(1, len(member.taps) + 1)), "features", "logits"]


def corresponding(students: int, teachers: int) -> list[int]:
    """For each tap of a student, the teacher's tap of the same relative depth; all from 0."""
    return [math.floor((tap + 1) * teachers / students + 0.5) - 1 for tap in range(students)]


def layers_of(member: Member, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs (n, ...) of a network's taps, its penultimate features (n, D), its logits (n, C).

    Raises RequestError when the last layer cannot be found.
    """
    from kdnotes.networks import features_of, tapped

    with features_of(member.network) as features, torch.inference_mode():
        with tapped(member.network, member.taps) as outputs:
            logits = member.network(images)
        layers = [*(outputs[tap] for tap in member.taps), features[-1]]
    for name, layer in zip(layer_names(member), layers, strict=False):
        base.refuse_not_finite(member.network, f"features of layer {name}", layer)
    return [*layers, logits.float()]


def gram(layer: torch.Tensor) -> torch.Tensor:
    """Inner products (n, n) of a layer's outputs (n, ...), as precise as these, as float64."""
    layer = layer.to(torch.promote_types(layer.dtype, torch.float32))
    # Products do not depend on the order of a map's cells: in this one nothing has to be copied.
    flat = (layer.permute(0, 2, 3, 1) if layer.ndim == 4 else layer).flatten(1)
    flat = flat - flat.mean(0)  # the estimates do not depend on it, but rounding does
    if flat.device.type != "cpu" or flat.dtype != torch.float32:
        return (flat @ flat.T).double()
    from scipy.linalg.blas import ssyrk  # computes once what is the same twice

    upper = torch.from_numpy(ssyrk(1.0, flat.T.numpy(), trans=1)).triu()
    return (upper + upper.triu(1).T).double()


def u_centred(inner: torch.Tensor) -> torch.Tensor:
    """A matrix (n, n) of inner products, centred so that products of two such are unbiased.

    Over n (n - 3), their sum is the estimate of Song et al. (2012), in Székely and Rizzo's form.
    """
    count = len(inner)
    inner = inner - torch.diag(inner.diagonal())
    rows = inner.sum(1) / (count - 2)
    everything = rows.sum() / (count - 1)
    return (inner - rows[:, None] - rows + everything).fill_diagonal_(0)


def doubly_centred(inner: torch.Tensor) -> torch.Tensor:
    """A matrix (n, n) of inner products with the means of its rows and columns taken out."""
    rows = inner.mean(1)
    return inner - rows[:, None] - rows + rows.mean()


def alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    """Linear CKA of two layers from their centred inner products (n, n) in float64, maybe NaN."""
    shared = (first * second).sum()
    return float(_ratio(shared, first.square().sum() * second.square().sum()))


def _ratio(shared: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """Shared over the root of the product; NaN where that is nothing but rounding."""
    return (shared / product.sqrt()).where(product > torch.finfo(product.dtype).tiny, torch.nan)


def _of(teachers: str, students: str) -> str:
    return f"teacher_layer={teachers},student_layer={students}"


def _check_count(count: int) -> None:
    if count < SMALLEST_BATCH:
        raise RequestError(f"CKA needs at least {SMALLEST_BATCH} images, not {count}")


PROPERTY = base.Audited(
    "representations", "representations", measure, MEASURES, 11, ("maps",), share=0.5
)
