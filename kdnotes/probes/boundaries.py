"""Do two networks draw their decision boundaries in the same places?

Three images span a plane in the space of all images; networks are asked for their answers all over
it (Somepalli et al. 2022). Planes and their images are made once for all networks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from kdnotes import stats
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, BeyondChance, Cast, ImageData, Measure, Outcome, Recorder

IN, PAIRS = "domain=*", ("domain=*,against=*",)
PARTS, EVERYWHERE = (*PAIRS, f"{IN},where=triangle"), "all over a plane"
MEASURES = (
    Alike(
        "boundary_agreement", f"gives the teacher's answers {EVERYWHERE}", IN, PARTS, items="planes"
    ),
    BeyondChance(
        "boundary_kappa", f"answers as the teacher {EVERYWHERE}, beyond chance", IN, PAIRS
    ),
    Alike("boundary_iou", "gives the teacher's regions to classes", IN, unit="IoU"),
    Measure("accuracy", "is right about the images that span the planes", IN),
)
MARGIN = 0.1  # the grid extends this share of the triangle's extent beyond it, on every side


@dataclass(frozen=True)
class Plane:
    """The plane through three images, in an orthonormal basis with its origin at the first.

    All float64: base (3, H, W), the first image; basis (2, 3, H, W); corners (3, 2), coordinates.
    """

    base: torch.Tensor
    basis: torch.Tensor
    corners: torch.Tensor

    def images(self, points: torch.Tensor) -> torch.Tensor:
        """The images float32 (n, 3, H, W) at coordinates (n, 2). Values may leave [0, 1]."""
        return (self.base + torch.einsum("np,pchw->nchw", points, self.basis)).float()

    def grid(self, size: int) -> torch.Tensor:
        """Centres (size * size, 2) of equal cells over the triangle's box and a margin, by rows."""
        low, high = self.box
        steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        first, second = (low[i] + steps * (high[i] - low[i]) for i in (0, 1))
        return torch.stack([first.repeat(size), second.repeat_interleave(size)], dim=1)

    @property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest coordinates (2,) of the triangle's bounding box with its margin."""
        low, high = self.corners.amin(0), self.corners.amax(0)
        return low - MARGIN * (high - low), high + MARGIN * (high - low)

    def inside(self, points: torch.Tensor) -> torch.Tensor:
        """Which of the points (n, 2) lie in the triangle, bool (n,): they mix the three images."""
        edges = (self.corners[1:] - self.corners[0]).T
        shares = (torch.linalg.pinv(edges) @ (points - self.corners[0]).T).T
        return (shares >= 0).all(1) & (shares.sum(1) <= 1)


def plane_through(images: torch.Tensor) -> Plane:
    """The plane through three images (3, C, H, W), by Gram and Schmidt's procedure."""
    base, *edges = images.double()
    basis: list[torch.Tensor] = []
    for edge in edges:
        across = edge - base
        for before in basis:
            across = across - (across * before).sum() * before
        basis.append(across / across.norm().clamp(min=1e-12))
    corners = torch.einsum("nchw,pchw->np", images.double() - base, torch.stack(basis))
    return Plane(base, torch.stack(basis), corners)


def triplets(labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Places int64 (count, 3) of images of three classes, drawn at random.

    None occurs again before all of its class did. Raises RequestError for fewer than three classes
    or a count below 1.
    """
    present = labels.unique()
    if len(present) < 3 or count < 1:
        classes = f"{count} planes, {len(present)} classes are too few"
        raise RequestError(f"a plane goes through images of three classes: {classes}")
    generator = torch.Generator().manual_seed(seed)

    def endless(label: int) -> Iterator[int]:
        places = (labels == label).nonzero()[:, 0]
        while True:
            yield from places[torch.randperm(len(places), generator=generator)].tolist()

    queues = {label: endless(label) for label in present.tolist()}
    orders = (present[torch.randperm(len(present), generator=generator)] for _ in range(count))
    return torch.tensor([[next(queues[label]) for label in each[:3].tolist()] for each in orders])


def planes_of(data: ImageData, count: int, seed: int) -> tuple[list[Plane], torch.Tensor]:
    """Planes through test images, and the places (count, 3) of the images they go through."""
    chosen = triplets(data.labels, count, seed)
    return [plane_through(base.pictures(data, three)) for three in chosen], chosen


def answers_on(network: torch.nn.Module, plane: Plane, size: int) -> torch.Tensor:
    """A network's answers (size, size) on the grid of one plane, lowest row first."""
    points = plane.images(plane.grid(size)).split(base.BATCH_SIZE)
    where = base.device_of(network)
    return torch.cat([base.answers_of(network, part.to(where)) for part in points]).view(size, size)


def measure(
    cast: Cast,
    domains: Mapping[str, ImageData],
    *,
    triplets: int = 50,
    grid: int = 32,
    only: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
) -> Outcome:
    """Share of a plane on which a network gives the teacher's answer, over many planes.

    ``triplets`` planes, seen on ``grid`` x ``grid`` points; an arm in ``only`` is measured in the
    domains named there. ``boundary_agreement`` is the "IoU" of the paper and of the program by
    Somepalli et al. 2022; of its items, one per plane, ``source`` is the plane's number and
    ``prediction`` the answer at its first point. Raises RequestError when a domain has fewer than
    three classes or the grid fewer than 2 x 2 points.
    """
    if grid < 2:
        raise RequestError(f"a grid needs 2 points on each side or more, not {grid}")
    device, per_batch = base.device_of(cast.teacher.network), max(1, base.BATCH_SIZE // grid**2)
    likeness = {"boundary_agreement": base.share_alike, "boundary_kappa": stats.cohen_kappa}
    parts = []
    for name, data in domains.items():
        members = [each for each in cast.everyone() if name in (only or {}).get(each.arm, domains)]
        planes, corners = planes_of(data, triplets, seed)
        inside = torch.stack([plane.inside(plane.grid(grid)) for plane in planes])
        # Written where all will stand, and not kept in parts between what networks use and free.
        answers = torch.empty(len(members), len(planes) * grid**2, dtype=torch.int64)
        done = 0
        for start in range(0, len(planes), per_batch):
            some = planes[start : start + per_batch]
            images = torch.cat([plane.images(plane.grid(grid)) for plane in some])
            for part in images.split(base.BATCH_SIZE):  # each image is made once for all networks
                shown = part.to(device).contiguous(memory_format=torch.channels_last)
                for member, its in zip(members, answers, strict=True):
                    its[done : done + len(part)] = base.answers_of(member.network, shown)
                done += len(part)
        spanning, where = data.subset(corners.flatten()), f"domain={name}"
        recorder = Recorder(replace(data.subset(corners[:, 0]), sources=torch.arange(len(planes))))
        for member, its in zip(members, base.all_answers(members, spanning), strict=True):
            recorder.add_value(member, "accuracy", base.share_alike(its, spanning.labels), where)
        for member, its in zip(members[1:], answers[1:], strict=True):
            by_plane, teachers = (each.view(len(planes), -1) for each in (its, answers[0]))
            same = (by_plane == teachers).double()
            recorder.add(member, "boundary_agreement", same.mean(1), by_plane[:, 0], where)
            within = float(((same * inside).sum(1) / inside.sum(1)).nanmean())
            recorder.add_value(member, "boundary_agreement", within, f"{where},where=triangle")
            kappa = stats.cohen_kappa(its, answers[0])
            recorder.add_value(member, "boundary_kappa", kappa, where)
            overlap = float(class_iou(by_plane, teachers).mean())
            recorder.add_value(member, "boundary_iou", overlap, where)
        recorder.add_pairs(members, list(answers), likeness, where)
        parts.append(recorder.outcome())
    return Outcome.combine(parts)


def class_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean intersection over union (planes,) of class regions, from answers (planes, points)."""
    labels = torch.cat([first, second]).unique()[:, None, None]
    one, other = first == labels, second == labels  # (classes, planes, points)
    intersections, unions = ((one & other).sum(2).double(), (one | other).sum(2).double())
    ratios = torch.where(unions > 0, intersections / unions.clamp(min=1), 0.0)
    return ratios.sum(0) / (unions > 0).sum(0)


PROPERTY = base.Property(
    "boundaries", "decision boundaries", measure, MEASURES, rank=10, needs=("domains",)
)
