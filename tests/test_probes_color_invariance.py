"""Answers before and after a change of colour, recounted directly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from probe_nets import CLASSES, frozen, in_batches, member, net, small_cast, some_data, value_of
from torch import Tensor, nn

from kdnotes.data.colors import jitter, rotate_hue
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import color_invariance
from kdnotes.probes.color_invariance import jitter_factors


class ValueOnly(nn.Module):
    """Sees each pixel's HSV value, and with it everything but hue and saturation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.amax(1, keepdim=True).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("condition", ["strength=0.3", "strength=0.6", "hue=90"])
def test_measures_equal_a_direct_recount(condition: str) -> None:
    data, cast = some_data(), small_cast()
    outcome = in_batches(13, color_invariance.measure, cast, data, seed=3)
    images = to_float(data.images)
    kind, number = condition.split("=")
    if kind == "hue":
        changed = rotate_hue(images, float(number) / 360)
    else:
        changed = jitter(images, jitter_factors(len(data), float(number), 3))
    for each in (cast.teacher, cast.second_teacher, *cast.members):
        before, after = (each.network(x).softmax(1).numpy() for x in (images, changed))
        first, second = before.argmax(1), after.argmax(1)
        ordered = np.sort(after, axis=1)
        expected = {
            "same_answer": (first == second).mean(),
            "accuracy_after": (second == data.labels.numpy()).mean(),
            "margin_after": (ordered[:, -1] - ordered[:, -2]).mean(),
            "softmax_distance": np.sqrt(((after - before) ** 2).sum(1)).mean(),
        }
        for measure, value in expected.items():
            found = value_of(outcome.table, each.arm, each.seed, measure, condition)
            assert found == pytest.approx(value, abs=1e-4), measure
        accuracy = value_of(outcome.table, each.arm, each.seed, "accuracy")
        assert accuracy == pytest.approx((first == data.labels.numpy()).mean())
        rows = outcome.items[
            (outcome.items["arm"] == each.arm)
            & (outcome.items["seed"] == each.seed)
            & (outcome.items["condition"] == condition)
            & (outcome.items["measure"] == "same_answer")
        ]
        assert rows["prediction"].tolist() == second.tolist()


def test_a_network_that_sees_value_only_does_not_mind_hue() -> None:
    cast = small_cast()
    blind = member("kl", 9, frozen(ValueOnly()))
    cast = replace(cast, members=(*cast.members, blind))
    table = color_invariance.measure(cast, some_data(), hue_angles=(45, 120, 270)).table
    for angle in (45, 120, 270):
        assert value_of(table, "kl", 9, "same_answer", f"hue={angle}") == 1
        assert value_of(table, "kl", 9, "softmax_distance", f"hue={angle}") < 1e-4
        assert value_of(table, "independent", 0, "same_answer", f"hue={angle}") < 1
    assert value_of(table, "kl", 9, "same_answer", "strength=0.6") < 1  # brightness it does see


def test_a_constant_network_is_stable_and_a_full_turn_changes_nothing() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([3.0, 1, 0, 0, 0]).expand(len(images), CLASSES)

    cast = small_cast()
    cast = replace(cast, members=(*cast.members, member("kl", 9, Constant().eval())))
    table = color_invariance.measure(cast, some_data(), hue_angles=(360,)).table
    same = table[(table["measure"] == "same_answer")]
    assert (same.loc[same["condition"] == "hue=360", "value"] == 1).all()
    assert value_of(table, "kl", 9, "same_answer", "strength=0.6") == 1
    e = np.exp([3, 1, 0, 0, 0]) / np.exp([3, 1, 0, 0, 0]).sum()
    margin = value_of(table, "kl", 9, "margin_after", "strength=0.6")
    assert margin == pytest.approx(e[0] - e[1], abs=1e-6)


def test_all_networks_see_the_same_changes_whatever_the_batches() -> None:
    cast, data = small_cast(), some_data()
    twin = member("kl", 9, cast.teacher.network)
    cast = replace(cast, members=(*cast.members, twin))
    first, second = (
        in_batches(size, color_invariance.measure, cast, data, hue_angles=()) for size in (60, 7)
    )
    assert first.items["prediction"].tolist() == second.items["prediction"].tolist()
    teachers, twins = (
        first.items.loc[(first.items["arm"] == arm) & (first.items["seed"] == seed), "prediction"]
        for arm, seed in (("teacher", 0), ("kl", 9))
    )
    assert teachers.tolist() == twins.tolist()
    other = color_invariance.measure(cast, data, hue_angles=(), seed=1)
    assert other.items["prediction"].tolist() != first.items["prediction"].tolist()


def test_strengths_follow_the_papers_ratio() -> None:
    factors = jitter_factors(5000, 0.4, 0)
    assert (factors.saturation - 1).abs().max() == pytest.approx(0.4, abs=1e-3)
    assert factors.hue.abs().max() == pytest.approx(0.2, abs=1e-3)
    for strength in (0.0, 1.2):
        with pytest.raises(RequestError, match="lies between 0 and 1"):
            color_invariance.measure(small_cast(), some_data(), strengths=(strength,))


def test_some_arms_can_be_shown_the_primary_strength_only() -> None:
    data, cast = some_data(), small_cast()
    conditions = {"strengths": (0.2, 0.6), "hue_angles": (90,), "primary": 0.4}
    every = color_invariance.measure(cast, data, **conditions).table
    fewer = color_invariance.measure(cast, data, **conditions, primary_only=("kl",)).table
    mine = fewer["arm"] == "kl"
    assert set(fewer.loc[mine, "condition"]) == {"", "strength=0.4", "strength=primary"}
    both = every.merge(fewer, on=["arm", "seed", "condition", "measure"])
    assert len(both) == len(fewer)
    assert (both["value_x"] == both["value_y"]).all()
    assert (every["arm"] != "kl").sum() == (~mine).sum()
