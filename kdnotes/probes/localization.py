"""Does the student look where the teacher looks? Grad-CAM maps, compared image by image.

A map belongs to a network, a layer, an image and a class: each channel of the layer weighted by
the mean gradient of the class's logit, summed, negative parts cut off (Selvaraju et al. 2017).
Maps are never rescaled image by image, so that they can be compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.probes.cast import Cast, Member
from kdnotes.probes.forward import BATCH_SIZE, all_logits, batches, device_of, record_accuracy
from kdnotes.probes.outcome import Outcome, Recorder, mean_of_defined

LAYERS = {"last": -1, "earlier": -2}
CLASSES = ("true", "predicted")
CONFLICT = "conflict"  # the condition of what is measured where two cues name different classes
SMALLEST_MAP = 4  # cells on a side: below that all maps look alike


def measure(
    cast: Cast,
    data: ImageData,
    *,
    layers: Mapping[str, int] = LAYERS,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Grad-CAM of every network, compared with the teacher's and with what is in the image.

    layers: a name for the condition -> which of a network's taps. Conditions are
    ``layer=NAME,class=true`` (the label's map) and ``layer=NAME,class=predicted`` (the map of the
    network's own answer). Measures, per image:

    - ``win_rate``: is the map's cosine with the teacher's larger than an independent student's?
      Mean over all independent students (an independent one is left out of its own comparison),
      ties count half; not given where there is none to compare with. With ``against=SEED`` in the
      condition, one pair of independent students (table only): the spread that chance gives.
    - ``cam_cosine``, ``rank_correlation`` (Spearman), ``top_iou`` (a fifth of the cells): likeness
      to the teacher's map. 0 where a network's map is empty, NaN where the teacher's is.
    - ``energy_MASK`` for each of the data's masks: share of the map inside the mask over the share
      of the image that the mask covers; 1 is chance. NaN where map or mask is empty.
    - ``accuracy`` (no condition). In the table only: ``empty_map``, share of maps without any
      positive cell.

    Raises RequestError when a network lacks a layer, or a layer gives no map of at least 4 x 4
    cells.
    """
    members = list(cast.everyone())
    paths = [_paths(member, layers) for member in members]
    conditions = [f"layer={layer},class={of}" for layer in layers for of in CLASSES]
    answers: list[list[Tensor]] = [[] for _ in members]
    parts: list[dict[tuple[str, str], list[Tensor]]] = [defaultdict(list) for _ in members]
    for indices, images in batches(data, device_of(cast.teacher.network), batch_size):
        masks = {
            name: _MaskedCells(mask[indices].to(images.device)) for name, mask in data.masks.items()
        }
        labels = data.labels[indices].to(images.device)
        teachers: list[Tensor] = []
        for number, member in enumerate(members):
            maps, logits = _maps_of_both_classes(member.network, images, labels, paths[number])
            answers[number].append(logits.argmax(1).cpu())
            teachers = teachers or maps  # the teacher comes first
            for condition, own, reference in zip(conditions, maps, teachers, strict=True):
                found = {f"energy_{name}": mask.energy(own) for name, mask in masks.items()}
                found["empty_map"] = (own.flatten(1).amax(1) == 0).float()
                if member is not cast.teacher:
                    found |= _likeness(reference, own)
                for label, numbers in found.items():
                    parts[number][condition, label].append(numbers.cpu())
    recorder = Recorder(data)
    given = [torch.cat(each) for each in answers]
    values = [{key: torch.cat(each) for key, each in by_key.items()} for by_key in parts]
    for member, its_answers, its_values in zip(members, given, values, strict=True):
        record_accuracy(recorder, member, its_answers)
        for (condition, label), numbers in its_values.items():
            keep = label != "empty_map"
            recorder.add(member, label, numbers, its_answers, condition, keep_items=keep)
    for condition in conditions:
        cosines = [its_values.get((condition, "cam_cosine")) for its_values in values]
        _record_wins(recorder, members, cosines, given, condition)
    return recorder.outcome()


def grad_cam(
    network: nn.Module, images: Tensor, classes: Tensor, taps: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Grad-CAM maps (n, h, w) by tap, and logits (n, classes), from one forward and backward pass.

    images: float (n, 3, H, W) in [0, 1]; classes: int64 (n,), whose map is wanted. Equals captum's
    LayerGradCam with relu_attributions=True, which needs a pass for each layer. Parameters may be
    frozen. Raises RequestError when there is no such layer, or its output is no map.
    """
    with torch.enable_grad(), _differentiable(network, taps) as outputs:
        logits = network(images)
        wanted = logits.gather(1, classes[:, None]).sum()
        layers = [outputs[tap] for tap in taps]
        gradients = torch.autograd.grad(wanted, layers)
    maps = {}
    for tap, layer, gradient in zip(taps, layers, gradients, strict=True):
        weights = gradient.mean((2, 3), keepdim=True)
        maps[tap] = (weights * layer.detach()).sum(1).relu_()
    return maps, logits.detach()


def cosine(reference: Tensor, maps: Tensor) -> Tensor:
    """Cosine between maps (n, h, w): (n,), in [0, 1] for maps without negative cells.

    0 where the map is empty, NaN where the reference is.
    """
    first, second = reference.flatten(1), maps.flatten(1)
    likeness = F.cosine_similarity(first, second, dim=1, eps=torch.finfo(first.dtype).tiny)
    return likeness.where(first.amax(1) > 0, torch.nan)


def rank_correlation(reference: Tensor, maps: Tensor) -> Tensor:
    """Spearman's correlation between the cells of maps (n, h, w): (n,), ties at their mean rank.

    0 where the map is the same in all its cells, NaN where the reference is.
    """
    first, second = (_centred(_ranks(each.flatten(1))) for each in (reference, maps))
    lengths = first.norm(dim=1) * second.norm(dim=1)
    correlation = (first * second).sum(1) / lengths.where(lengths > 0, 1)
    return correlation.where(first.norm(dim=1) > 0, torch.nan)


def top_iou(reference: Tensor, maps: Tensor, share: float = 0.2) -> Tensor:
    """Intersection over union of the strongest cells of maps (n, h, w): (n,), in [0, 1].

    The strongest are a share of the cells, rounded up; cells at 0 never belong to them, and cells
    that tie with the last one do. NaN where the reference is empty.
    """
    first, second = (_strongest(each.flatten(1), share) for each in (reference, maps))
    shared, either = (first & second).sum(1), (first | second).sum(1)
    return (shared / either.clamp(min=1)).where(first.any(1), torch.nan)


def energy_ratio(maps: Tensor, mask: Tensor) -> Tensor:
    """How much more of a map (n, h, w) lies inside a mask (n, H, W) than by chance: (n,).

    The map is upsampled bilinearly to the mask's size; its share inside the mask is divided by the
    mask's share of the image. NaN where the map or the mask is empty.
    """
    return _MaskedCells(mask).energy(maps)


def upsample(maps: Tensor, size: int) -> Tensor:
    """Maps (n, h, w) at the size of the image, (n, size, size), bilinear: for pictures."""
    return F.interpolate(maps[:, None], (size, size), mode="bilinear")[:, 0]


def follows(
    cast: Cast,
    data: ImageData,
    *,
    cues: tuple[str, str] = ("digit", "marker"),
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Which of two cues do answers follow on images where the cues name different classes?

    cues: two of the data's factors, each the class that this cue names. Only images whose factors
    differ count; the condition is ``conflict``. Measures: ``follows_CUE`` for each cue, 1 where the
    answer is its class, 0 where it is the other cue's, NaN where it is neither (shape bias of
    Geirhos et al. 2019 is their mean); ``follows_either``, 1 where the answer follows a cue at all.

    Raises RequestError when a factor is missing or no image has a conflict.
    """
    missing = [cue for cue in cues if cue not in data.factors]
    if missing:
        known = ", ".join(data.factors) or "none"
        raise RequestError(f"the data has no factor {missing[0]!r}; it has {known}")
    named = [data.factors[cue] for cue in cues]
    conflicts = (named[0] != named[1]).nonzero().flatten()
    if len(conflicts) == 0:
        raise RequestError(f"{cues[0]} and {cues[1]} never name different classes in this data")
    first, second = (values[conflicts] for values in named)
    members = list(cast.everyone())
    recorder = Recorder(data)
    for member, logits in zip(
        members, all_logits(members, data.subset(conflicts), batch_size), strict=True
    ):
        answers = logits.argmax(1)
        either = (answers == first) | (answers == second)
        for cue, its_class in zip(cues, (first, second), strict=True):
            follow = (answers == its_class).float().where(either, torch.nan)
            recorder.add(member, f"follows_{cue}", follow, answers, CONFLICT, conflicts)
        recorder.add(member, "follows_either", either, answers, CONFLICT, conflicts)
    return recorder.outcome()


def _paths(member: Member, layers: Mapping[str, int]) -> list[str]:
    count = len(member.taps)
    for name, index in layers.items():
        if not -count <= index < count:
            raise RequestError(
                f"layer {name!r} is tap {index}, but the {member.arm} network has {count}: "
                f"{', '.join(member.taps)}"
            )
    return [member.taps[index] for index in layers.values()]


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


@contextmanager
def _differentiable(network: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the layers on each forward pass, with a graph that starts at the shallowest."""
    known = dict(network.named_modules())
    outputs: dict[str, Tensor] = {}

    def catch(tap: str, output: Tensor) -> Tensor:
        _check_map(tap, output)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs[tap] = output
        return output.clone()  # what follows may work in place

    handles = []
    try:
        for tap in taps:
            if tap not in known:
                near = ", ".join(name for name in known if name and name.count(".") <= 2)
                raise RequestError(f"no layer {tap!r} in the network; it has {near}")
            handles.append(
                known[tap].register_forward_hook(
                    lambda module, inputs, output, tap=tap: catch(tap, output)
                )
            )
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _check_map(tap: str, output: object) -> None:
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise RequestError(
            f"layer {tap!r} gives {shape}; Grad-CAM needs maps (images, channels, height, width): "
            "name a convolutional layer, or one that reshapes a transformer's tokens to a map"
        )
    if min(output.shape[2:]) < SMALLEST_MAP:
        raise RequestError(
            f"layer {tap!r} gives maps of {output.shape[2]} x {output.shape[3]} cells; at least "
            f"{SMALLEST_MAP} x {SMALLEST_MAP} are needed: name an earlier layer"
        )


def _likeness(teachers: Tensor, own: Tensor) -> dict[str, Tensor]:
    if own.shape != teachers.shape:  # architectures differ: bring the map to the teacher's cells
        size = list(teachers.shape[1:])
        own = F.interpolate(own[:, None], size, mode="bilinear", antialias=True)[:, 0]
    return {
        "cam_cosine": cosine(teachers, own),
        "rank_correlation": rank_correlation(teachers, own),
        "top_iou": top_iou(teachers, own),
    }


def _wins(cosines: Tensor, rival: Tensor) -> Tensor:
    """1 where a cosine exceeds the rival's, .5 where they tie, NaN where they are undefined."""
    return ((cosines > rival).float() + 0.5 * (cosines == rival)).where(~rival.isnan(), torch.nan)


def _record_wins(
    recorder: Recorder,
    members: list[Member],
    cosines: list[Tensor | None],
    answers: list[Tensor],
    condition: str,
) -> None:
    rivals = [
        (member, cosine)
        for member, cosine in zip(members, cosines, strict=True)
        if member.arm == "independent" and cosine is not None
    ]
    for member, own, its_answers in zip(members, cosines, answers, strict=True):
        if own is None:  # the teacher
            continue
        wins = {rival.seed: _wins(own, its) for rival, its in rivals if rival is not member}
        if wins:  # none for the only independent student
            mean = torch.stack(list(wins.values())).mean(0)
            recorder.add(member, "win_rate", mean, its_answers, condition)
        if member.arm == "independent":
            for seed, won in wins.items():
                pair = f"{condition},against={seed}"
                value = mean_of_defined(won.numpy())
                recorder.add_summary(member.arm, member.seed, "win_rate", value, pair)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def _ranks(values: Tensor) -> Tensor:
    """Ranks 0 .. m-1 within rows (n, m); equal values share their mean rank."""
    ordered, order = values.sort(1)
    place = torch.arange(values.shape[1], device=values.device).expand_as(values)
    last = values.shape[1] - 1
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = place.where(new, 0).cummax(1).values
    ends_here = torch.ones_like(new)
    ends_here[:, :-1] = new[:, 1:]
    ends = place.where(ends_here, last).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(values).scatter_(1, order, (starts + ends).to(values.dtype) / 2)


def _strongest(cells: Tensor, share: float) -> Tensor:
    count = math.ceil(round(share * cells.shape[1], 6))
    least = cells.topk(count, dim=1).values[:, -1:]
    return (cells >= least) & (cells > 0)


class _MaskedCells:
    """What a mask (n, H, W) weighs on the cells of maps that are upsampled to its size.

    Upsampling is linear: moving the mask down to the cells once, by the transposed operation, gives
    the same sums for the maps of all networks without ever making the large maps.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.float()
        self.area = self.mask.mean((1, 2))
        self.weights: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def energy(self, maps: Tensor) -> Tensor:
        """See `energy_ratio`."""
        cells = tuple(maps.shape[1:])
        if cells not in self.weights:
            rows, columns = (
                _upsampling(count, pixels).to(self.mask)
                for count, pixels in zip(cells, self.mask.shape[1:], strict=True)
            )
            inside = rows @ self.mask @ columns.T
            self.weights[cells] = inside, torch.outer(rows.sum(1), columns.sum(1))
        inside, everywhere = self.weights[cells]
        # an empty map or mask gives 0 / 0, which is NaN
        return (maps * inside).sum((1, 2)) / (maps * everywhere).sum((1, 2)) / self.area


def _upsampling(cells: int, pixels: int) -> Tensor:
    """Bilinear upsampling of one axis as a matrix (cells, pixels)."""
    return F.interpolate(torch.eye(cells)[None], pixels, mode="linear")[0]
