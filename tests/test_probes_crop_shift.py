"""Answers to crops, shifts and mirror images, recounted directly; the views against torchvision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from probe_nets import frozen, in_batches, member, net, small_cast, some_data, value_of, values_of
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import crop_shift
from kdnotes.probes.base import Cast, Outcome
from kdnotes.probes.crop_shift import crop, draw_places, mirror, shift


class MirrorMean(nn.Module):
    """A network averaged over an image and its mirror image: exactly invariant."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = net(seed)

    def forward(self, images: Tensor) -> Tensor:
        return (self.inner(images) + self.inner(images.flip(3))) / 2


class Colours(nn.Module):
    """Sees an image's mean colour only."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((2, 3))
        return torch.cat([mean, -mean[:, :2]], 1)


def crops(  # type: ignore[no-untyped-def]
    cast: Cast, data: ImageData, sizes=crop_shift.SCALES, primary: float = 0.5, **more
) -> Outcome:
    return crop_shift.measure_views(cast, data, "crop", sizes, primary, **more)


def shifts(  # type: ignore[no-untyped-def]
    cast: Cast, data: ImageData, sizes=crop_shift.SHIFTS, primary: int = 4, **more
) -> Outcome:
    return crop_shift.measure_views(cast, data, "shift", sizes, primary, **more)


def expected(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All measures of two lists of probabilities (n, classes) by NumPy."""
    one, other = first.argmax(1), second.argmax(1)
    ordered = np.sort(np.concatenate([first, second]), axis=1)
    return {
        "same_answer": (one == other).mean(),
        "accuracy_after": ((one == labels).mean() + (other == labels).mean()) / 2,
        "margin_after": (ordered[:, -1] - ordered[:, -2]).mean(),
        "softmax_distance": np.sqrt(((first - second) ** 2).sum(1)).mean(),
    }


def test_crops_equal_a_direct_recount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_shift, "CURVE_COUNT", 20)
    data, cast = some_data(), small_cast()
    outcome = in_batches(13, crops, cast, data, seed=3)
    images, corners = to_float(data.images), draw_places(60, 3)
    for scale, names, shown in (
        (0.3, ("scale=0.3",), np.arange(20) * 3),
        (0.5, ("scale=0.5", "scale=primary"), np.arange(60)),
    ):
        views = [crop(images, corners[:, view], scale) for view in (0, 1)]
        for each in cast.everyone():
            first, second = (each.network(view).softmax(1).numpy()[shown] for view in views)
            wanted = expected(first, second, data.labels.numpy()[shown])
            for name in names:
                for measure, value in wanted.items():
                    found = value_of(
                        outcome.table, each.arm, each.seed, measure, f"kind=crop,{name}"
                    )
                    assert found == pytest.approx(value, abs=1e-4), measure
            answers = each.network(images).argmax(1)
            accuracy = value_of(outcome.table, each.arm, each.seed, "accuracy")
            assert accuracy == pytest.approx(float((answers == data.labels).float().mean()))
    assert set(outcome.items["condition"]) == {"", "kind=crop,scale=primary"}
    assert len(values_of(outcome.items, "kl", 0, "same_answer", "kind=crop,scale=primary")) == 60


def test_shifts_equal_a_direct_recount() -> None:
    data, cast = some_data(), small_cast()
    outcome = in_batches(17, shifts, cast, data, seed=5, primary=3, sizes=(3,))
    images = to_float(data.images)
    enlarged = torch.from_numpy(
        np.pad(images.numpy(), ((0, 0), (0, 0), (1, 2), (1, 2)), mode="reflect")
    )
    offsets = np.floor(draw_places(60, 5).numpy() * 4).astype(int)
    views = []
    for view in (0, 1):
        windows = [
            enlarged[item, :, down : down + 16, right : right + 16]
            for item, (down, right) in enumerate(offsets[:, view])
        ]
        views.append(torch.stack(windows))
    assert {0, 3} <= set(offsets.ravel()) <= {0, 1, 2, 3}
    for each in cast.everyone():
        first, second = (each.network(view).softmax(1).numpy() for view in views)
        for measure, value in expected(first, second, data.labels.numpy()).items():
            for name in ("max=3", "max=primary"):
                found = value_of(outcome.table, each.arm, each.seed, measure, f"kind=shift,{name}")
                assert found == pytest.approx(value, abs=1e-4), measure


def test_mirrors_equal_a_direct_recount_and_an_exact_teacher_cannot_tell() -> None:
    data, learned = some_data(), small_cast()
    students = (*learned.arm("independent"), member("kl", 0, net(20)), member("kl", 1, net(11)))
    exact = replace(
        learned,
        teacher=member("teacher", 0, frozen(MirrorMean(100))),
        second_teacher=None,
        members=students,
    )
    table, items = (
        getattr(crop_shift.measure_mirrors(learned, exact, data), name)
        for name in ("table", "items")
    )
    images = to_float(data.images)
    same = {}
    for name, cast in (("learned", learned), ("exact", exact)):
        condition = f"kind=flip,teacher={name}"
        for each in cast.everyone():
            first, second = (
                each.network(x).softmax(1).numpy() for x in (images, images[..., range(15, -1, -1)])
            )
            one, other = first.argmax(1), second.argmax(1)
            same[name, each.arm, each.seed] = one == other
            wanted = expected(first, second, data.labels.numpy())
            wanted["accuracy_after"] = (other == data.labels.numpy()).mean()
            wanted["accuracy"] = (one == data.labels.numpy()).mean()
            ordered = np.sort(second, axis=1)
            wanted["margin_after"] = (ordered[:, -1] - ordered[:, -2]).mean()
            for measure, value in wanted.items():
                found = value_of(table, each.arm, each.seed, measure, condition)
                assert found == pytest.approx(value, abs=1e-4), measure
    exactly = "kind=flip,teacher=exact"
    assert value_of(table, "teacher", 0, "same_answer", exactly) == 1
    assert value_of(table, "teacher", 0, "softmax_distance", exactly) < 1e-6
    for arm, seed in (("independent", 0), ("independent", 2), ("kl", 0), ("kl", 1)):
        gain = same["learned", arm, seed].astype(float) - same["exact", arm, seed]
        assert value_of(table, arm, seed, "learned_minus_exact", "kind=flip") == pytest.approx(
            gain.mean()
        )
        found = values_of(items, arm, seed, "learned_minus_exact", "kind=flip")
        assert found.tolist() == gain.tolist()
    assert value_of(table, "kl", 1, "learned_minus_exact", "kind=flip") == 0  # the same network
    assert "teacher" not in set(table.query("measure == 'learned_minus_exact'")["arm"])


def test_all_kinds_of_views_fit_in_one_table() -> None:
    data, cast = some_data(), small_cast()
    parts = [crops(cast, data), shifts(cast, data), crop_shift.measure_mirrors(cast, cast, data)]
    whole = parts[0].combine(parts)
    assert len(whole.table) == sum(len(part.table) for part in parts)


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 8), (8, 4, 8), (3, 12, 4), (0, 0, 16)])
def test_a_crop_at_whole_pixels_is_torchvisions(top: int, left: int, side: int) -> None:
    images = to_float(some_data(4).images)
    room = max(16 - side, 1)
    corners = torch.tensor([[top / room, left / room]]).expand(4, 2)
    wanted = tv.resized_crop(images, top, left, side, side, [16, 16], antialias=False)
    found = crop(images, corners, (side / 16) ** 2)
    edge = 16 // side  # there a crop of the whole image sees one more pixel, torchvision's does not
    inner = slice(edge, -edge)
    assert torch.allclose(found[..., inner, inner], wanted[..., inner, inner], atol=1e-5)
    if side == 16:
        assert torch.allclose(found, images, atol=1e-5)


def test_crops_stay_inside_and_scale_about_their_place() -> None:
    ramp = torch.linspace(0, 1, 64)
    images = torch.stack([ramp[:, None].expand(64, 64), ramp[None].expand(64, 64)] * 2, 0)[:3]
    images = images[None].repeat(50, 1, 1, 1)
    corners = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    cut = crop(images, corners, 0.25)
    middles = cut[:, :2].mean((2, 3))  # mean row and column of each crop
    assert torch.allclose(middles, 0.25 + 0.5 * corners, atol=1e-2)
    spread = cut[:, 0].amax((1, 2)) - cut[:, 0].amin((1, 2))
    assert torch.allclose(spread, torch.full((50,), 0.5), atol=0.02)


def test_a_shift_by_half_of_the_largest_and_a_double_mirror_change_nothing() -> None:
    images = to_float(some_data(5).images)
    for largest in (1, 4, 7):
        middle = torch.full((5, 2), (largest // 2 + 0.5) / (largest + 1))
        assert torch.equal(shift(images, middle, largest), images)
    down = torch.tensor([[0, 2.5 / 5]]).expand(5, 2)
    assert torch.equal(shift(images, down, 4)[:, :, 2:], images[:, :, :-2])
    assert torch.equal(mirror(mirror(images)), images)
    assert torch.equal(mirror(images), tv.horizontal_flip(images))


def test_networks_that_cannot_see_the_change_keep_their_answer() -> None:
    cast = small_cast()
    blind = member("kl", 9, Colours().eval(), ())
    cast = replace(cast, members=(*cast.members, blind))
    table = crop_shift.measure_mirrors(cast, cast, some_data()).table
    assert value_of(table, "kl", 9, "same_answer", "kind=flip,teacher=learned") == 1
    found = crops(cast, some_data(), primary=1.0, sizes=(1.0,)).table
    same = found[found["measure"] == "same_answer"]
    assert len(same)
    assert (same["value"] == 1).all()  # two crops of everything are the same crop


def test_all_networks_see_the_same_views_whatever_the_batches() -> None:
    cast, data = small_cast(), some_data()
    cast = replace(cast, members=(*cast.members, member("kl", 9, cast.teacher.network)))
    for measure in (crops, shifts):
        first, second = (in_batches(size, measure, cast, data) for size in (60, 7))
        assert first.items["prediction"].tolist() == second.items["prediction"].tolist()
        teachers, twins = (
            first.items.loc[(first.items["arm"] == arm) & (first.items["seed"] == seed), "value"]
            for arm, seed in (("teacher", 0), ("kl", 9))
        )
        assert teachers.tolist() == twins.tolist()
        other = measure(cast, data, seed=1)
        assert other.items["prediction"].tolist() != first.items["prediction"].tolist()


def test_some_arms_can_be_shown_the_primary_change_only() -> None:
    data, cast = some_data(), small_cast()
    fewer = shifts(cast, data, sizes=(1, 2), primary=2, primary_only=("kl",)).table
    mine = set(fewer.loc[fewer["arm"] == "kl", "condition"])
    assert mine == {"kind=shift", "kind=shift,max=2", "kind=shift,max=primary"}
    assert "kind=shift,max=1" in set(fewer.loc[fewer["arm"] == "teacher", "condition"])


def test_impossible_crops_and_shifts_are_refused() -> None:
    cast, data = small_cast(), some_data()
    for scale in (0.0, 1.5):
        with pytest.raises(RequestError, match="lies between 0 and 1"):
            crops(cast, data, sizes=(scale,))
    for largest in (0, 31):
        with pytest.raises(RequestError, match="between 1 and 30 pixels"):
            shifts(cast, data, sizes=(largest,))
    shifts(cast, data, sizes=(30,), primary=30)  # as far as the mirror reaches
