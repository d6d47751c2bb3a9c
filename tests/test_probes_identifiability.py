"""Linear students, against gradient descent by autograd and against theory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from probe_nets import SmallNet, frozen, member, small_cast, some_data, value_of
from torch.nn import functional as F

from kdnotes.probes import identifiability


def draws(seed: int = 0):  # type: ignore[no-untyped-def]
    """Points (4, 6) and three sets of weights (3, 7), float64."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return torch.randn(4, 6, **options), *torch.randn(3, 3, 7, **options)


def test_distilling_is_where_gradient_descent_on_the_squared_error_ends() -> None:
    points, teacher, start, _ = draws()
    inputs = identifiability.with_ones(points)
    logits = inputs @ teacher.T
    found = identifiability.distil(start, points, logits)
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.05)
    for _ in range(6_000):
        optimizer.zero_grad()
        ((inputs @ weights.T - logits) ** 2).sum().backward()
        optimizer.step()
    assert torch.allclose(found, weights.detach(), atol=1e-8)
    # From zero it is the projection of the teacher on the span of the points, as in NumPy.
    from_zero = identifiability.distil(torch.zeros_like(start), points, logits)
    expected = np.linalg.lstsq(inputs.numpy(), logits.numpy(), rcond=None)[0].T
    assert np.allclose(from_zero, expected, atol=1e-12)
    columns, _ = np.linalg.qr(inputs.numpy().T)
    assert np.allclose(from_zero, teacher.numpy() @ columns @ columns.T, atol=1e-12)


def test_descent_on_labels_equals_autograd() -> None:
    points, _, start, _ = draws(1)
    labels = torch.tensor([0, 1, 2, 1])
    found = identifiability.descend(start, points, labels, steps=50, rate=0.3)
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        logits = identifiability.with_ones(points) @ weights.T
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    assert torch.allclose(found, weights.detach(), atol=1e-12)


def test_weight_error_ignores_what_changes_no_probability() -> None:
    _, weights, other, _ = draws(2)
    assert identifiability.weight_error(weights + other[:1], weights) == pytest.approx(0, abs=1e-12)
    assert identifiability.weight_error(3 * weights, weights) == pytest.approx(2)
    scaled = identifiability.weight_error(3 * weights, weights, free_scale=True)
    assert scaled == pytest.approx(0, abs=1e-12)
    assert identifiability.weight_error(-weights, weights, free_scale=True) == pytest.approx(1)


def test_enough_points_recover_the_teacher_and_fewer_do_not() -> None:
    table = identifiability.recovery(range(12), dimension=30, counts=[8, 31, 40]).table
    by = table.groupby(["arm", "condition"])["value"]
    largest, mean = by.max(), by.mean()
    for arm in ("distilled", "distilled-other-start", "distilled-same-start"):
        assert largest[arm, "points=31"] < 1e-10
        assert largest[arm, "points=40"] < 1e-10
    assert largest["distilled-enough", ""] < 1e-10
    # Random points span a random subspace: of the squared length, n / (m + 1) lies in it.
    assert mean["distilled", "points=8"] == pytest.approx(math.sqrt(1 - 8 / 31), abs=0.03)
    assert mean["distilled-few", ""] == pytest.approx(math.sqrt(1 - 16 / 31), abs=0.05)
    assert by.min()["labels-only", "points=40"] > 0.1
    again = identifiability.recovery([3], dimension=30, counts=[8, 31, 40]).table
    same = table[table["seed"] == 3].reset_index(drop=True)
    assert again.equals(same)


def test_boundaries_of_a_plane_are_known_from_three_points_and_not_from_two() -> None:
    generator = torch.Generator().manual_seed(1)
    points, first, *starts = torch.randn(7, 3, 3, generator=generator, dtype=torch.float64)
    points = points[:, :2]
    teacher = identifiability.descend(first, points, torch.tensor([0, 1, 2]))
    logits = identifiability.with_ones(points) @ teacher.T
    by_three = [identifiability.distil(start, points, logits) for start in starts]
    by_two = [identifiability.distil(start, points[1:], logits[1:]) for start in starts]
    assert all(torch.allclose(weights, teacher, atol=1e-9) for weights in by_three)
    assert torch.stack(by_two).std(0).min() > 0.01


def test_grey_lessons_leave_the_chroma_weights_where_they_were() -> None:
    coloured, test = some_data(300, seed=1), some_data(100, seed=2)
    grey = replace(coloured, images=coloured.images[:, :1].expand(-1, 3, -1, -1))
    table = identifiability.grey_lessons([0, 1], grey, coloured, test).table
    for seed in (0, 1):
        for arm in ("distilled-other-start", "distilled-same-start"):
            assert value_of(table, arm, seed, "part_moved", "part=chroma") < 1e-10
            assert value_of(table, arm, seed, "part_error", "part=grey") < 1e-10
            assert value_of(table, arm, seed, "part_error", "part=chroma") > 0.1


def test_parts_add_up_and_are_orthogonal() -> None:
    weights = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    grey, chroma = identifiability.parts(weights)
    assert torch.allclose(grey + chroma, weights)
    assert (grey * chroma).sum().item() == pytest.approx(0, abs=1e-5)
    assert chroma.sum(1).abs().max() < 1e-6
    flat = identifiability.linear_parts(torch.cat([weights.flatten(1), torch.ones(5, 1)], 1))
    assert torch.equal(flat[1], chroma.flatten())
    assert flat[0][-5:].tolist() == [1] * 5


def test_networks_trained_on_grey_images_share_their_chroma_weights_to_the_end() -> None:
    data = some_data(40, seed=5)
    images = (data.images[:, :1].float() / 255).expand(-1, 3, -1, -1)
    networks = []
    for labels in (data.labels, data.labels.flip(0)):
        network = SmallNet(3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        networks.append(frozen(network))
    cast = small_cast()
    cast = replace(
        cast,
        teacher=member("teacher", 0, frozen(SmallNet(100))),
        members=(member("independent", 0, networks[0]), member("kl", 0, networks[1])),
    )
    table = identifiability.first_layers(cast).table
    chroma = value_of(table, "kl", 0, "first_layer_cosine", "part=chroma,against=independent")
    grey = value_of(table, "kl", 0, "first_layer_cosine", "part=grey,against=independent")
    assert chroma == pytest.approx(1, abs=1e-5)
    assert grey < 0.999
    # Students that start where their teacher did are compared with each other.
    alike = [replace(each, arm=f"its-start-{each.arm}") for each in cast.members]
    taught = {each.arm: of.arm for each, of in zip(alike, cast.members, strict=True)}
    both = replace(cast, members=(*cast.members[::-1], *alike))
    table = identifiability.first_layers(both, taught).table
    where = "first_layer_cosine", "part=chroma,against=independent"
    assert value_of(table, "its-start-kl", 0, *where) == chroma
    assert value_of(table, "kl", 0, *where) == chroma
    assert "its-start-independent" not in set(table[table["condition"] == where[1]]["arm"])
    against = value_of(table, "kl", 0, "first_layer_cosine", "part=chroma,against=teacher")
    assert abs(against) < 0.9
    conditions = set(table.loc[table["arm"] == "independent", "condition"])
    assert conditions == {"part=grey,against=teacher", "part=chroma,against=teacher"}
