"""Planes through images and the answers on them, against hand-worked cases and other libraries."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from probe_nets import frozen, in_batches, member, small_cast, some_data, value_of
from sklearn.metrics import cohen_kappa_score, jaccard_score
from torch import Tensor, nn

from kdnotes.errors import RequestError
from kdnotes.probes import boundaries


def three(seed: int = 0, size: int = 4) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_a_plane_goes_through_its_images_in_an_orthonormal_basis() -> None:
    images = three()
    plane = boundaries.plane_through(images)
    assert torch.allclose(plane.images(plane.corners), images, atol=1e-6)
    basis = plane.basis.flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(2, dtype=torch.float64), atol=1e-12)
    # The same plane by a QR decomposition of the edges.
    edges = (images[1:] - images[0]).double().flatten(1).numpy()
    columns, _ = np.linalg.qr(edges.T)
    projector = basis.numpy().T @ basis.numpy()
    assert np.allclose(columns @ columns.T, projector, atol=1e-12)
    # Distances between points of the plane are distances between images.
    apart = (plane.corners[2] - plane.corners[1]).norm().item()
    assert apart == pytest.approx((images[2] - images[1]).double().norm().item())


def test_the_grid_covers_the_triangles_box_and_a_tenth_more() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[1, 0, 0, 0] = 1  # coordinates (0, 0), (1, 0) and (.5, 2)
    images[2, 0, 0, 0], images[2, 1, 1, 1] = 0.5, 2
    plane = boundaries.plane_through(images)
    low, high = plane.box
    assert low.tolist() == pytest.approx([-0.1, -0.2])
    assert high.tolist() == pytest.approx([1.1, 2.2])
    points = plane.grid(5)
    assert points[:6, 0].tolist() == pytest.approx([0.02, 0.26, 0.5, 0.74, 0.98, 0.02])
    assert points[::5, 1].tolist() == pytest.approx([0.04, 0.52, 1.0, 1.48, 1.96])
    fine = plane.grid(50)
    triangle = Path(plane.corners.numpy())
    inside = plane.inside(fine).numpy()
    assert (inside == triangle.contains_points(fine.numpy())).all()
    # The triangle is half of its box, which is 1/1.44 of the grid.
    assert inside.mean() == pytest.approx(0.5 / 1.44, abs=0.01)


def test_triplets_are_of_three_classes_and_use_every_image_before_any_twice() -> None:
    labels = torch.arange(60) % 5
    chosen = boundaries.triplets(labels, 20, seed=0)
    assert chosen.shape == (20, 3)
    assert all(len(set(row)) == 3 for row in labels[chosen].tolist())
    counts = torch.bincount(chosen.flatten(), minlength=60)
    for label in range(5):
        mine = counts[labels == label]
        assert mine.max() - mine.min() <= 1
    assert torch.equal(chosen, boundaries.triplets(labels, 20, seed=0))
    assert not torch.equal(chosen, boundaries.triplets(labels, 20, seed=1))
    for few, count in ((labels % 2, 1), (labels, 0)):
        with pytest.raises(RequestError, match="too few"):
            boundaries.triplets(few, count, seed=0)


def test_class_iou_is_the_mean_jaccard_score() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(4, (6, 40), generator=generator)
    second = torch.where(torch.rand(6, 40, generator=generator) < 0.6, first, (first + 1) % 4)
    second[0] = first[0]
    first[1], second[1] = 0, 3
    found = boundaries.class_iou(first, second)
    for place in range(6):
        expected = jaccard_score(first[place], second[place], average="macro")
        assert found[place].item() == pytest.approx(expected)
    assert found[:2].tolist() == [1, 0]


@pytest.mark.parametrize("grid", [2, 6])
def test_measures_equal_a_direct_recount(grid: int) -> None:
    data, cast = some_data(), small_cast()
    outcome = in_batches(20, boundaries.measure, cast, {"a": data}, triplets=7, grid=grid, seed=3)
    planes, chosen = boundaries.planes_of(data, 7, seed=3)
    assert torch.equal(chosen, boundaries.triplets(data.labels, 7, seed=3))
    answers = {
        (each.arm, each.seed): torch.stack(
            [boundaries.answers_on(each.network, plane, grid).flatten() for plane in planes]
        )
        for each in cast.everyone()
    }
    teachers = answers.pop(("teacher", 0))
    inside = torch.stack([plane.inside(plane.grid(grid)) for plane in planes])
    for (arm, seed), mine in answers.items():
        same = mine == teachers
        expected = {
            "boundary_agreement": same.double().mean().item(),
            "boundary_kappa": cohen_kappa_score(mine.flatten(), teachers.flatten()),
            "boundary_iou": boundaries.class_iou(mine, teachers).mean().item(),
        }
        for measure, value in expected.items():
            found = value_of(outcome.table, arm, seed, measure, "domain=a")
            assert found == pytest.approx(value), measure
        shares = [s[i].double().mean().item() for s, i in zip(same, inside, strict=True) if i.any()]
        found = value_of(outcome.table, arm, seed, "boundary_agreement", "domain=a,where=triangle")
        assert found == pytest.approx(np.mean(shares), nan_ok=True)
        rows = outcome.items.query("arm == @arm and seed == @seed")
        assert rows["value"].tolist() == pytest.approx(same.double().mean(1).tolist())
        assert rows["source"].tolist() == list(range(7))
    pair = answers["independent", 0] == answers["independent", 2]
    found = value_of(outcome.table, "independent", 0, "boundary_agreement", "domain=a,against=2")
    assert found == pytest.approx(pair.double().mean().item())
    corners = data.subset(chosen.flatten())
    right = cast.teacher.network(corners.images / 255).argmax(1) == corners.labels
    found = value_of(outcome.table, "teacher", 0, "accuracy", "domain=a")
    assert found == pytest.approx(right.double().mean().item())


class Halves(nn.Module):
    """Answers 1 where the first pixel's first channel is above a threshold, else 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        above = images[:, 0, 0, 0] - self.threshold
        return torch.stack([-above, above], dim=1)


def test_shifted_boundaries_disagree_on_the_strip_between_them() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[1, 0, 0, 0] = 1
    images[2, 1, 1, 1] = 1
    data = replace(
        some_data(3, 4),
        images=(images * 255).to(torch.uint8),
        labels=torch.arange(3),
        sources=torch.arange(3),
    )
    cast = small_cast()
    cast = replace(
        cast,
        teacher=member("teacher", 0, frozen(Halves(0.5))),
        second_teacher=None,
        members=(
            member("independent", 0, frozen(Halves(0.2))),
            member("kl", 0, frozen(Halves(0.5))),
        ),
    )
    table = boundaries.measure(cast, {"a": data}, triplets=1, grid=60).table
    # The box reaches from -.1 to 1.1 in both directions: .3 of 1.2 is between the boundaries.
    found = value_of(table, "independent", 0, "boundary_agreement", "domain=a")
    assert found == pytest.approx(1 - 0.3 / 1.2, abs=0.02)
    for measure in ("boundary_agreement", "boundary_kappa", "boundary_iou"):
        assert value_of(table, "kl", 0, measure, "domain=a") == 1
    # In the triangle, the strip is 1/2 * (.8^2 - .5^2) of an area of 1/2.
    inside = value_of(table, "independent", 0, "boundary_agreement", "domain=a,where=triangle")
    assert inside == pytest.approx(1 - (0.64 - 0.25), abs=0.02)


def test_arms_can_be_kept_to_some_domains_and_batches_do_not_matter() -> None:
    cast, domains = small_cast(), {"a": some_data(), "b": some_data(seed=1)}
    first, second = (
        in_batches(size, boundaries.measure, cast, domains, triplets=5, grid=4).table
        for size in (16, 250)
    )
    assert np.allclose(first["value"], second["value"])
    fewer = boundaries.measure(cast, domains, triplets=5, grid=4, only={"kl": ["b"]}).table
    mine = fewer["arm"] == "kl"
    assert set(fewer.loc[mine, "condition"]) == {"domain=b", "domain=b,where=triangle"}
    assert len(fewer[~mine]) == (first["arm"] != "kl").sum()
    assert math.isfinite(fewer["value"].sum())
    with pytest.raises(RequestError, match="2 points"):
        boundaries.measure(cast, domains, grid=1)
