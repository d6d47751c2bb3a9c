"""Does the student look where the teacher looks? Grad-CAM maps, compared image by image.

Each channel of a layer is weighted by the mean gradient of a class's logit, summed, negative parts
cut off (Selvaraju et al. 2017). Maps are never rescaled image by image, so they can be compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, Cast, Measure, Member, Outcome, Property, Recorder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnotes.data import ImageData
    from kdnotes.networks.features import Layout

LAYERS = {"last": -1, "earlier": -2}
CLASSES = ("true", "predicted")
SMALLEST_MAP = 4  # cells on a side: below that all maps look alike


def condition(layer: str = "last", of: str = "true") -> str:
    """What is measured on a layer's maps of the "true" or the "predicted" class."""
    return f"layer={layer},class={of}"


LAST, EARLIER, ANY = condition(), condition("earlier"), (condition("*", "*"),)
PAIRS = (*ANY, base.joined(*ANY, "against=*"))
LOOKS = "looks where the teacher looks"
_Energy = partial(Measure, unit="times an even map's share", high=math.inf, chance=1.0)
MEASURES = (
    Alike("win_rate", f"{LOOKS} more than one trained alone", LAST, PAIRS, True, chance=0.5),
    Alike("cam_cosine", LOOKS, LAST, ANY, True, unit="cosine"),
    Alike("cam_cosine", f"{LOOKS}, earlier", EARLIER, (), True, unit="cosine"),
    Alike("rank_correlation", "ranks places as the teacher does", LAST, ANY, unit="rho", low=-1.0),
    Alike("top_iou", "looks most at what the teacher looks at most", LAST, ANY, unit="IoU"),
    _Energy("energy_digit", "looks at the digit", LAST, ANY),
    _Energy("energy_marker", "looks at the marker", LAST, ANY),
    Measure("empty_map", "looks nowhere", LAST, ANY, direction="none"),
)


def measure(cast: Cast, data: ImageData, *, layers: Mapping[str, int] = LAYERS) -> Outcome:
    """Grad-CAM of every network, compared with the teacher's and with what is in the image.

    layers: a name for the condition -> which of a network's taps. ``win_rate``: is the map's cosine
    with the teacher's larger than an independent student's? Mean over the others of these, ties
    count half; with ``against=SEED`` in the condition, one pair of them. ``energy_MASK`` is of each
    of the data's masks, ``empty_map`` the share of maps without any positive cell.

    Raises RequestError when a network lacks a layer, or gives no map of 4 x 4 cells.
    """
    members = list(cast.everyone())
    for member, (name, index) in itertools.product(members, layers.items()):
        if not -len(member.taps) <= index < len(member.taps):
            has = f"the {member.arm} network has {len(member.taps)}: {', '.join(member.taps)}"
            raise RequestError(f"layer {name!r} is tap {index}, but {has}")
    paths = [[member.taps[index] for index in layers.values()] for member in members]
    conditions = [condition(layer, of) for layer in layers for of in CLASSES]
    seen: list[list[dict[tuple[str, str], Tensor]]] = [[] for _ in members]
    for indices, images in base.batches(data, base.device_of(cast.teacher.network)):
        masks = {name: mask[indices].to(images.device) for name, mask in data.masks.items()}
        labels = data.labels[indices].to(images.device)
        teachers: list[Tensor] = []
        for member, taps, batches in zip(members, paths, seen, strict=True):
            maps, logits = _maps_of_both_classes(member.network, images, labels, taps)
            teachers = teachers or maps  # the teacher comes first
            found = {("", "answers"): logits.argmax(1)}
            for where, own, reference in zip(conditions, maps, teachers, strict=True):
                for name, mask in masks.items():
                    found[where, f"energy_{name}"] = energy_ratio(own, mask)
                found[where, "empty_map"] = (own.flatten(1).amax(1) == 0).float()
                if member is not cast.teacher:
                    found |= {(where, name): its for name, its in _likeness(reference, own).items()}
            batches.append({key: numbers.cpu() for key, numbers in found.items()})
    recorder = Recorder(data)
    values = [{key: torch.cat([each[key] for each in its]) for key in its[0]} for its in seen]
    answers = [its.pop(("", "answers")) for its in values]
    for member, its_answers, its_values in zip(members, answers, values, strict=True):
        recorder.add_accuracy(member, its_answers)
        for (where, label), numbers in its_values.items():
            keep = label != "empty_map"
            recorder.add(member, label, numbers, its_answers, where, keep_items=keep)
    students = list(zip(members, answers, values, strict=True))[1:]
    rivals = [(member, its) for member, _, its in students if base.is_independent(member)]
    for where in conditions:
        key = where, "cam_cosine"
        for member, its_answers, mine in students:
            others = {rival.seed: its[key] for rival, its in rivals if rival is not member}
            wins = {seed: _wins(mine[key], its) for seed, its in others.items()}
            if wins:  # none for the only independent student
                mean = torch.stack(list(wins.values())).mean(0)
                recorder.add(member, "win_rate", mean, its_answers, where)
            for seed, won in wins.items() if base.is_independent(member) else ():
                mean_won = base.mean_of_defined(won.numpy())
                recorder.add_value(member, "win_rate", mean_won, f"{where},against={seed}")
    return recorder.outcome()


def grad_cam(
    network: nn.Module, images: Tensor, classes: Tensor, taps: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Grad-CAM maps (n, h, w) by tap, and logits (n, classes), from one forward and backward pass.

    images: float (n, 3, H, W) in [0, 1]; classes: int64 (n,), whose map is wanted. Parameters may
    be frozen. Equals captum's LayerGradCam with relu_attributions=True, which takes 2.3 times as
    long (results/benchmarks/cpu.txt, d). Raises RequestError when there is no such layer, or its
    output is no map.
    """
    from kdnotes.networks import differentiable

    maps = {}
    with torch.enable_grad(), differentiable(network, tuple(taps)) as outputs:
        logits = network(images)
        for tap in taps:
            _check_map(network, tap, *outputs[tap])  # or it is refused
        wanted = logits.gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(wanted, [outputs[tap][0] for tap in taps])
    for tap, gradient in zip(taps, gradients, strict=True):
        output, layout = outputs[tap]
        weights = layout.map(gradient).mean((2, 3), keepdim=True)
        maps[tap] = (weights * layout.map(output.detach())).sum(1).relu_()
    return maps, logits.detach()


def cosine(reference: Tensor, maps: Tensor) -> Tensor:
    """Cosine between maps (n, h, w): (n,), in [0, 1] for maps without negative cells.

    0 where the map is empty, NaN where the reference is.
    """
    first, second = reference.flatten(1), maps.flatten(1)
    likeness = torch.nn.functional.cosine_similarity(
        first, second, dim=1, eps=torch.finfo(first.dtype).tiny
    )
    return likeness.where(first.amax(1) > 0, torch.nan)


def rank_correlation(reference: Tensor, maps: Tensor) -> Tensor:
    """Spearman's correlation between the cells of maps (n, h, w): (n,), ties at their mean rank.

    0 where the map is the same in all its cells, NaN where the reference is.
    """
    from scipy.stats import rankdata

    cells = (each.flatten(1) for each in (reference, maps))
    first, second = (
        torch.from_numpy(rankdata(each.cpu(), axis=1)).to(each) - (each.shape[1] + 1) / 2
        for each in cells
    )
    lengths = first.norm(dim=1) * second.norm(dim=1)
    correlation = (first * second).sum(1) / lengths.where(lengths > 0, 1)
    return correlation.where(first.norm(dim=1) > 0, torch.nan)


def top_iou(reference: Tensor, maps: Tensor, share: float = 0.2) -> Tensor:
    """Intersection over union of the strongest cells of maps (n, h, w): (n,), in [0, 1].

    The strongest are a share of the cells, rounded up; cells at 0 never belong to them, and cells
    that tie with the last one do. NaN where the reference is empty.
    """

    def strongest(maps: Tensor) -> Tensor:
        cells = maps.flatten(1)
        least = cells.topk(math.ceil(round(share * cells.shape[1], 6)), dim=1).values[:, -1:]
        return (cells >= least) & (cells > 0)

    first, second = strongest(reference), strongest(maps)
    shared, either = (first & second).sum(1), (first | second).sum(1)
    return (shared / either.clamp(min=1)).where(first.any(1), torch.nan)


def energy_ratio(maps: Tensor, mask: Tensor) -> Tensor:
    """How much more of a map (n, h, w) lies inside a mask (n, H, W) than by chance: (n,).

    Of the map at the mask's size (bilinear), the share inside over the mask's share of the image; 1
    is chance, NaN where the map or the mask is empty.
    """
    # Upsampling is linear: bringing the mask down to the cells gives the sums of the large maps.
    mask = mask.float()
    rows, columns = (
        torch.nn.functional.interpolate(torch.eye(cells)[None], pixels, mode="linear")[0].to(mask)
        for cells, pixels in zip(maps.shape[1:], mask.shape[1:], strict=True)
    )
    inside = rows @ mask @ columns.T
    everywhere = torch.outer(rows.sum(1), columns.sum(1))
    share = (maps * inside).sum((1, 2)) / (maps * everywhere).sum((1, 2))
    return share / mask.mean((1, 2))


def upsample(maps: Tensor, size: int) -> Tensor:
    """Maps (n, h, w) at the size of the image, (n, size, size), bilinear: for pictures."""
    return torch.nn.functional.interpolate(maps[:, None], (size, size), mode="bilinear")[:, 0]


def last_map(member: Member, data: ImageData, places: Tensor, classes: Tensor) -> Tensor:
    """The last layer's maps of some classes (n,) of a data set's images at places (n,), on the CPU.

    They are as large as the images, and multiples of an evenly spread map.
    """
    device, last = base.device_of(member.network), member.taps[-1]
    pictures = base.pictures(data, places, device)
    maps = grad_cam(member.network, pictures, classes.to(device), [last])[0][last]
    maps = upsample(maps.cpu(), data.size)
    return maps / maps.mean((1, 2), keepdim=True).clamp(min=1e-12)


def _maps_of_both_classes(
    network: nn.Module, images: Tensor, labels: Tensor, paths: list[str]
) -> tuple[list[Tensor], Tensor]:
    """Maps by layer and, within it, by CLASSES; logits. Only wrong answers need a second pass."""
    true_maps, logits = grad_cam(network, images, labels, paths)
    answers = logits.argmax(1)
    wrong = (answers != labels).nonzero().flatten()
    predicted_maps = {path: maps.clone() for path, maps in true_maps.items()}
    if len(wrong):
        # memory_format: indexing gives up channels_last, and with it most of the speed
        part = images[wrong].contiguous(memory_format=torch.channels_last)
        for path, maps in grad_cam(network, part, answers[wrong], paths)[0].items():
            predicted_maps[path][wrong] = maps
    both = [maps[path] for path in paths for maps in (true_maps, predicted_maps)]
    return both, logits


def _check_map(network: nn.Module, tap: str, tensor: Tensor, layout: Layout) -> None:
    """Raise RequestError unless a layer gives a map that is large enough.

    A transformer's tokens are one where the answer is read from all tokens alike: where it is read
    from a class token, the last layer's other tokens have no say.
    """
    class_tokens = getattr(getattr(network, "body", None), "num_prefix_tokens", layout.prefix)
    output = tensor if layout.axes == "NTC" and class_tokens else layout.map(tensor)
    if output.ndim != 4:
        raise RequestError(
            f"layer {tap!r} gives {tuple(output.shape)}; Grad-CAM needs maps (images, channels, "
            "height, width): name a convolutional layer, or one that reshapes a transformer's "
            "tokens to a map"
        )
    if min(output.shape[2:]) < SMALLEST_MAP:
        raise RequestError(
            f"layer {tap!r} gives maps of {output.shape[2]} x {output.shape[3]} cells; at least "
            f"{SMALLEST_MAP} x {SMALLEST_MAP} are needed: name an earlier layer"
        )


def _wins(cosines: Tensor, rival: Tensor) -> Tensor:
    """1 where a cosine exceeds the rival's, .5 where they tie, NaN where they are undefined."""
    return ((cosines > rival).float() + 0.5 * (cosines == rival)).where(~rival.isnan(), torch.nan)


def _likeness(teachers: Tensor, own: Tensor) -> dict[str, Tensor]:
    if own.shape != teachers.shape:  # architectures differ: bring the map to the teacher's cells
        resize = partial(torch.nn.functional.interpolate, mode="bilinear", antialias=True)
        own = resize(own[:, None], list(teachers.shape[1:]))[:, 0]
    likeness = {"cam_cosine": cosine, "rank_correlation": rank_correlation, "top_iou": top_iou}
    return {name: alike(teachers, own) for name, alike in likeness.items()}


PROPERTY = Property(
    "localization",
    "localization",
    measure,
    MEASURES,
    rank=3,
    needs=("maps", "gradients"),
    audited=True,
    passes=6.0,
)
