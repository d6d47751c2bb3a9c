"""Grad-CAM against captum and by hand; comparisons against SciPy and plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from probe_nets import (
    CLASSES,
    TAPS,
    SmallNet,
    frozen,
    in_batches,
    member,
    net,
    small_cast,
    some_data,
    value_of,
    values_of,
)
from scipy.stats import spearmanr
from torch import Tensor, nn

from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import localization
from kdnotes.probes.base import Cast
from kdnotes.probes.localization import (
    cosine,
    energy_ratio,
    grad_cam,
    rank_correlation,
    top_iou,
    upsample,
)

LAST = "layer=last,class=true"


def captum_map(network: nn.Module, layer: nn.Module, data: ImageData, classes: Tensor) -> Tensor:
    images = to_float(data.images).requires_grad_()
    attributor = LayerGradCam(network, layer)
    return attributor.attribute(images, classes, relu_attributions=True).detach()[:, 0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maps_of_all_layers_equal_captums(seed: int) -> None:
    data, network = some_data(), net(seed)
    maps, logits = grad_cam(network, to_float(data.images), data.labels, TAPS)
    assert (maps["body.0"].shape, maps["body.1"].shape) == ((60, 8, 8), (60, 4, 4))
    for tap in TAPS:
        expected = captum_map(network, network.get_submodule(tap), data, data.labels)
        assert (expected > 0).any()
        torch.testing.assert_close(maps[tap], expected, atol=0, rtol=1e-5)
    torch.testing.assert_close(logits, network(to_float(data.images)))


def test_what_follows_may_work_in_place() -> None:
    # the tap is the convolution, before an in-place ReLU: its own output counts, as in captum
    data, network = some_data(), net(0)
    maps, _ = grad_cam(network, to_float(data.images), data.labels, ("body.0.0",))
    expected = captum_map(network, network.get_submodule("body.0.0"), data, data.labels)
    torch.testing.assert_close(maps["body.0.0"], expected, atol=0, rtol=1e-5)


def test_map_known_by_hand() -> None:
    # The layer is the image itself; logit c is the mean of channel c, so its gradient is
    # 1 / cells there and 0 elsewhere: the map is the channel over the number of cells.
    network = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(6, 3, 5, 4)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    maps, _ = grad_cam(frozen(network), images, classes, ("0",))
    torch.testing.assert_close(maps["0"], images[torch.arange(6), classes] / 20)


def test_negative_evidence_is_cut_off_and_nothing_is_left_behind() -> None:
    class Negative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return -self.layer(images).mean((2, 3))

    network = Negative().eval()
    images = torch.rand(3, 3, 4, 4)
    maps, _ = grad_cam(network, images, torch.zeros(3, dtype=torch.int64), ("layer",))
    assert (maps["layer"] == 0).all()
    assert not network.layer._forward_hooks
    assert not images.requires_grad


def test_cosine_by_hand_and_of_empty_maps() -> None:
    maps = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
    others = torch.tensor([[[4.0, 3.0]], [[0.0, 2.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    found = cosine(maps, others)
    torch.testing.assert_close(found[:2], torch.tensor([0.96, 0.0]))
    assert math.isnan(found[2])  # the reference is empty: no comparison
    assert found[3] == 0  # the other is: it looks nowhere
    torch.testing.assert_close(cosine(maps * 1e-12, others)[:2], found[:2])  # scale-free


def test_rank_correlation_equals_scipys_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = (torch.rand(30, 4, 5, generator=generator) - 0.5).relu()  # half of the cells tie at 0
    others = torch.randint(0, 4, (30, 4, 5), generator=generator).float()
    expected = [
        spearmanr(one.flatten(), two.flatten()).statistic
        for one, two in zip(maps, others, strict=True)
    ]
    np.testing.assert_allclose(rank_correlation(maps, others), expected, atol=1e-6)
    constant = torch.ones(30, 4, 5)
    assert rank_correlation(constant, maps).isnan().all()
    assert (rank_correlation(maps, constant) == 0).all()


def test_overlap_of_strongest_cells_by_hand() -> None:
    reference = torch.zeros(4, 2, 5)
    others = torch.zeros(4, 2, 5)
    reference[:, 0, 0], reference[:, 1, 3], reference[:, 0, 4] = 3, 2, 1  # the top two of ten
    others[0, 0, 0], others[0, 1, 3] = 5, 9  # the same two
    others[1, 0, 0], others[1, 1, 1] = 5, 9  # one of them: 1 / 3
    others[2, 0, 0] = 1  # only one cell at all: 1 / 2
    reference[3] = 0
    found = top_iou(reference, others)
    torch.testing.assert_close(found[:3], torch.tensor([1, 1 / 3, 1 / 2]))
    assert math.isnan(found[3])
    assert top_iou(reference[:1], others[3:]) == 0


@pytest.mark.parametrize(("cells", "pixels"), [(4, 16), (7, 16), (5, 32), (16, 16)])
def test_energy_equals_that_of_upsampled_maps(cells: int, pixels: int) -> None:
    data = some_data(20, pixels)
    maps = torch.rand(20, cells, cells, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(20, pixels, pixels, generator=torch.Generator().manual_seed(2)) < 0.3
    assert len(data) == 20
    large = upsample(maps, pixels)
    share = (large * mask).sum((1, 2)) / large.sum((1, 2))
    expected = share / mask.float().mean((1, 2))
    torch.testing.assert_close(energy_ratio(maps, mask), expected, atol=1e-5, rtol=1e-5)


def test_energy_of_even_and_of_empty_maps() -> None:
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[:2, 3:9, 2:5] = True
    maps = torch.ones(3, 4, 4)
    maps[1] = 0
    found = energy_ratio(maps, mask)
    assert found[0] == pytest.approx(1)  # no more inside than by chance
    assert found[1:].isnan().all()  # empty map, empty mask


def test_win_rates_equal_a_plain_loop_over_captums_maps() -> None:
    data, cast = some_data(), small_cast()
    outcome = in_batches(17, localization.measure, cast, data)
    members = list(cast.everyone())
    for layer, index in (("last", -1), ("earlier", -2)):
        for of in ("true", "predicted"):
            condition = f"layer={layer},class={of}"
            maps, cosines = {}, {}
            for each in members:
                network = each.network
                answers = network(to_float(data.images)).argmax(1)
                classes = data.labels if of == "true" else answers
                tap = network.get_submodule(each.taps[index])
                maps[each.arm, each.seed] = captum_map(network, tap, data, classes).flatten(1)
            reference = maps.pop(("teacher", 0)).numpy()
            for key, own in maps.items():
                lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(reference, axis=1)
                dots = (own.numpy() * reference).sum(1)
                cosines[key] = np.divide(dots, lengths, np.zeros(60), where=lengths > 0)
            used = (reference > 0).any(1)
            for key in cosines:
                wins = np.zeros(60)
                rivals = [("independent", seed) for seed in range(3)]
                rivals = [rival for rival in rivals if rival != key]
                for item in range(60):
                    for rival in rivals:
                        difference = cosines[key][item] - cosines[rival][item]
                        wins[item] += 0.5 if abs(difference) < 1e-6 else difference > 0
                expected = (wins / len(rivals))[used].mean()
                found = value_of(outcome.table, *key, "win_rate", condition)
                assert found == pytest.approx(expected, abs=1e-6), (key, condition)
                likeness = value_of(outcome.table, *key, "cam_cosine", condition)
                assert likeness == pytest.approx(cosines[key][used].mean(), abs=1e-5)


def test_twins_of_independent_students_win_half_of_the_time() -> None:
    cast = small_cast()
    network = net(0)
    members = (
        member("independent", 0, network),
        member("independent", 1, network),
        member("kl", 0, network),
    )
    table = localization.measure(Cast(cast.teacher, None, members, cast.classes), some_data()).table
    for arm in ("kl", "independent"):
        assert value_of(table, arm, 0, "win_rate", LAST) == 0.5


def test_without_rivals_there_is_no_win_rate() -> None:
    cast = small_cast()
    table = localization.measure(replace(cast, members=cast.arm("kl")), some_data()).table
    assert "cam_cosine" in set(table["measure"])
    assert "win_rate" not in set(table["measure"])
    one = replace(cast, members=(*cast.arm("kl"), cast.arm("independent")[0]))
    wins = localization.measure(one, some_data()).table.query("measure == 'win_rate'")
    assert set(wins["arm"]) == {"kl", "second-teacher"}  # the only independent one has no rival


def test_a_twin_of_the_teacher_looks_where_it_looks() -> None:
    cast = small_cast()
    twin = member("kl", 9, cast.teacher.network)
    with_twin = replace(cast, members=(*cast.members, twin))
    table = localization.measure(with_twin, some_data()).table
    assert value_of(table, "kl", 9, "win_rate", LAST) == 1
    for measure in ("cam_cosine", "rank_correlation", "top_iou"):
        assert value_of(table, "kl", 9, measure, LAST) == pytest.approx(1, abs=1e-6)
    for measure in ("energy_digit", "energy_marker"):
        teachers = value_of(table, "teacher", 0, measure, LAST)
        assert value_of(table, "kl", 9, measure, LAST) == pytest.approx(teachers)


def test_pairs_of_independent_students_mirror_each_other() -> None:
    outcome = localization.measure(small_cast(), some_data())
    for first, second in ((0, 1), (0, 2), (1, 2)):
        there = value_of(
            outcome.table, "independent", first, "win_rate", f"{LAST},against={second}"
        )
        back = value_of(outcome.table, "independent", second, "win_rate", f"{LAST},against={first}")
        assert there + back == pytest.approx(1)
    seeds = [
        value_of(outcome.table, "independent", 0, "win_rate", f"{LAST},against={seed}")
        for seed in (1, 2)
    ]
    assert value_of(outcome.table, "independent", 0, "win_rate", LAST) == pytest.approx(
        np.mean(seeds)
    )
    assert not outcome.items["condition"].str.contains("against").any()


def test_empty_maps_are_counted_and_left_out() -> None:
    cast, data = small_cast(), some_data()
    outcome = localization.measure(cast, data)
    maps = captum_map(
        cast.teacher.network, cast.teacher.network.get_submodule("body.1"), data, data.labels
    )
    empty = (maps == 0).flatten(1).all(1).numpy()
    network = SmallNet(0)
    network.head.weight.data[2] = -network.head.weight.data[2].abs()  # nothing speaks for class 2
    blind = replace(cast, members=(*cast.members, member("kl", 5, frozen(network))))
    table = localization.measure(blind, data)
    share = float((data.labels == 2).float().mean())
    assert share > 0
    assert value_of(table.table, "kl", 5, "empty_map", LAST) >= share - 1e-6
    of_class = np.flatnonzero(data.labels.numpy() == 2)
    assert values_of(table.items, "kl", 5, "energy_digit", LAST)[of_class].isna().all()
    defined = of_class[~empty[of_class]]
    assert (values_of(table.items, "kl", 5, "cam_cosine", LAST)[defined] == 0).all()
    assert value_of(outcome.table, "teacher", 0, "empty_map", LAST) == pytest.approx(empty.mean())
    for measure in ("cam_cosine", "win_rate", "rank_correlation", "top_iou"):
        values = values_of(outcome.items, "kl", 0, measure, LAST)
        assert (values.isna().to_numpy() == empty).all(), measure


def test_maps_of_other_sizes_are_brought_to_the_teachers() -> None:
    cast, data = small_cast(), some_data()
    fine = member("kl", 6, net(6, strides=(2, 1)))  # last maps of 8 x 8
    outcome = localization.measure(replace(cast, members=(*cast.members, fine)), data)
    own = grad_cam(fine.network, to_float(data.images), data.labels, ("body.1",))[0]["body.1"]
    teachers = grad_cam(cast.teacher.network, to_float(data.images), data.labels, ("body.1",))[0]
    small = nn.functional.interpolate(own[:, None], (4, 4), mode="bilinear", antialias=True)[:, 0]
    expected = cosine(teachers["body.1"], small)
    found = values_of(outcome.items, "kl", 6, "cam_cosine", LAST)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_items_do_not_depend_on_the_batch_size() -> None:
    first, second = (
        in_batches(size, localization.measure, small_cast(), some_data()) for size in (60, 11)
    )
    keys = ["item", "arm", "seed", "condition", "measure"]
    merged = first.items.merge(second.items, on=keys, validate="one_to_one")
    assert len(merged) == len(first.items) == len(second.items)
    np.testing.assert_allclose(merged["value_x"], merged["value_y"], atol=1e-4)


class Tokens(nn.Module):
    """A layer's output without rows and columns, as a transformer gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Flatten(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images).mean(2).repeat(1, 2)[:, :CLASSES]


def test_wrong_requests_name_what_is_wrong() -> None:
    cast, data = small_cast(), some_data()
    with pytest.raises(RequestError, match=r"'deep' is tap 2, but the teacher network has 2: body"):
        localization.measure(cast, data, layers={"deep": 2})
    tokens = replace(cast, teacher=member("teacher", 0, frozen(Tokens()), ("tokens",)))
    with pytest.raises(RequestError, match=r"'tokens' gives \(60, 3, 256\); Grad-CAM needs maps"):
        localization.measure(tokens, data, layers={"last": -1})
    unknown = replace(cast, teacher=member("teacher", 0, net(0), ("nowhere",)))
    with pytest.raises(RequestError, match=r"no layer 'nowhere' in the network; it has body"):
        localization.measure(unknown, data, layers={"last": -1})
    tiny = some_data(8, size=8)
    with pytest.raises(RequestError, match=r"'body.1' gives maps of 2 x 2 cells"):
        localization.measure(cast, tiny)


def test_the_last_map_is_that_of_grad_cam_over_its_mean() -> None:
    teacher, data, places = small_cast().teacher, some_data(), torch.tensor([3, 1])
    found = localization.last_map(teacher, data, places, data.labels[places])
    pictures, last = to_float(data.images[places]), teacher.taps[-1]
    maps, _ = localization.grad_cam(teacher.network, pictures, data.labels[places], [last])
    large = upsample(maps[last], data.size)
    torch.testing.assert_close(found * large.mean((1, 2), keepdim=True), large)
