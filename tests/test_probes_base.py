"""Tidy tables of the probes, and answers batch by batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from probe_nets import (
    SmallNet,
    frozen,
    member,
    net,
    numbered_data,
    small_cast,
    some_data,
    value_of,
    values_of,
)
from torch import Tensor, nn

from kdnotes import probes
from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import representations
from kdnotes.probes.base import (
    ITEM_COLUMNS,
    TABLE_COLUMNS,
    Member,
    Outcome,
    Recorder,
    all_logits,
    batches,
)

STUDENT = member("kl", 3, net(0))


def recorded() -> Outcome:
    recorder = Recorder(some_data(4))
    recorder.add(STUDENT, "share", [1, 0, math.nan, 1], [2, 0, 1, 4])
    recorder.add(STUDENT, "part", [0.5, 0.25], [1, 1], "eps=2", items=[3, 1])
    recorder.add(STUDENT, "mean only", [1, 2, 3, 6], [0, 0, 0, 0], keep_items=False)
    recorder.add_value(STUDENT, "kappa", 0.75)
    return recorder.outcome()


def test_values_are_means_over_defined_items() -> None:
    outcome = recorded()
    assert tuple(outcome.table.columns) == TABLE_COLUMNS
    assert value_of(outcome.table, "kl", 3, "share") == pytest.approx(2 / 3)
    assert value_of(outcome.table, "kl", 3, "part", "eps=2") == 0.375
    assert value_of(outcome.table, "kl", 3, "mean only") == 3
    assert value_of(outcome.table, "kl", 3, "kappa") == 0.75


def test_items_hold_sources_answers_and_undefined_values() -> None:
    items = recorded().items
    assert tuple(items.columns) == ITEM_COLUMNS
    assert items["prediction"].dtype == np.int16
    assert items["value"].dtype == np.float32
    assert items["item"].tolist() == [0, 1, 2, 3, 3, 1]
    assert items["source"].tolist() == [1000, 1000, 1001, 1001, 1001, 1000]
    assert items["prediction"].tolist() == [2, 0, 1, 4, 1, 1]
    assert items["measure"].tolist() == ["share"] * 4 + ["part"] * 2
    assert items["condition"].tolist() == [""] * 4 + ["eps=2"] * 2
    assert items["value"].isna().tolist() == [False, False, True, False, False, False]


def test_no_defined_item_gives_no_number() -> None:
    recorder = Recorder(some_data(4))
    recorder.add(STUDENT, "never", [], [], items=[])
    assert math.isnan(value_of(recorder.outcome().table, "kl", 3, "never"))


def test_combined_outcomes_keep_every_row() -> None:
    recorder = Recorder(some_data(4))
    recorder.add(member("hint", 0, net(0)), "other", [1, 1, 1, 0], [0, 0, 0, 0], "layer=last")
    first, second = recorded(), recorder.outcome()
    both = Outcome.combine([first, second])
    assert len(both.table) == len(first.table) + 1
    assert len(both.items) == len(first.items) + 4
    expected = pd.concat([first.items.astype(object), second.items.astype(object)])
    assert both.items.astype(object).to_numpy()[:, :-1].tolist() == (
        expected.to_numpy()[:, :-1].tolist()
    )
    assert values_of(both.items, "hint", 0, "other", "layer=last").tolist() == [1, 1, 1, 0]
    assert both.items["source"].dtype == np.int64
    assert both.items["value"].dtype == np.float32


def test_outcomes_without_items_combine_with_others() -> None:
    values = Outcome.of_rows([("kl", 3, "part=grey", "cosine", 0.5)])
    for order in ([recorded(), values], [values, recorded()]):
        both = Outcome.combine(order)
        assert len(both.items) == len(recorded().items)
        assert len(both.table) == len(recorded().table) + 1
    alone = Outcome.combine([values])
    assert tuple(alone.items.columns) == ITEM_COLUMNS
    assert len(alone.items) == 0


def test_a_condition_put_before_all_others_names_rows_and_items_alike() -> None:
    named = recorded().under("cast=x")
    assert set(named.table["condition"]) == {"cast=x", "cast=x,eps=2"}
    assert set(named.items["condition"]) == {"cast=x", "cast=x,eps=2"}
    assert named.items["condition"].dtype == "category"
    assert set(named.under("run=1").items["condition"]) == {"run=1,cast=x", "run=1,cast=x,eps=2"}
    assert set(recorded().table["condition"]) == {"", "eps=2"}


def test_kept_rows_leave_no_names_behind() -> None:
    kept = recorded().keep(lambda rows: rows["condition"] == "eps=2")
    assert kept.table["measure"].tolist() == ["part"]
    assert kept.items["measure"].cat.categories.tolist() == ["part"]
    assert kept.items.index.tolist() == [0, 1]
    table_only = recorded().keep_items(lambda items: items["measure"] == "part")
    assert len(table_only.table) == len(recorded().table)
    assert len(table_only.items) == 2


def test_two_values_of_one_thing_are_refused() -> None:
    with pytest.raises(ValueError, match="two values of 'share' for arm 'kl', seed 3"):
        Outcome.combine([recorded(), recorded()])
    with pytest.raises(ValueError, match="no outcomes"):
        Outcome.combine([])


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="share: 2 values, 4 predictions, 4 items"):
        Recorder(some_data(4)).add(STUDENT, "share", [1, 0], [0, 0, 0, 0])


@pytest.mark.parametrize("batch_size", [1, 7, 60, 500])
def test_logits_do_not_depend_on_batches(batch_size: int) -> None:
    data, cast = some_data(60), small_cast()
    members = list(cast.everyone())
    for each, logits in zip(members, all_logits(members, data, batch_size=batch_size), strict=True):
        expected = each.network(to_float(data.images))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert not logits.requires_grad


def test_batches_cover_a_streaming_source_once() -> None:
    data = some_data(23)

    class Stream:
        """Images that are only read by index."""

        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 23

        def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
            self.read += indices.tolist()
            return data.images[indices]

    stream = Stream()
    all_logits(list(small_cast().everyone()), replace(data, images=stream), batch_size=10)
    assert stream.read == list(range(23))


def test_no_images_is_a_wrong_request() -> None:
    empty = numbered_data(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(RequestError, match="no images"):
        next(batches(empty, torch.device("cpu")))


def test_a_slope_over_arms_is_the_least_squares_line_of_each_seed() -> None:
    rng = np.random.default_rng(0)
    data = ImageData(
        torch.zeros(6, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(6, dtype=torch.long),
        ("a", "b"),
        torch.tensor([0, 0, 1, 1, 2, 2]),
    )
    recorder = Recorder(data)
    values = rng.random((4, 3, 6)).astype(np.float32)  # arms, seeds, images
    for arm in range(4):
        for seed in range(3 if arm else 2):  # one arm lacks a seed
            who = Member(f"hint-{arm}", seed, torch.nn.Identity(), ())
            recorder.add(who, "m", values[arm, seed], np.zeros(6), "c")
    found = recorder.outcome().slope("m", "c", [f"hint-{arm}" for arm in range(4)], "line", "s")
    for seed in (0, 1):
        lines = np.polyfit(range(4), values[:, seed], 1)[0]
        rows = found.items[found.items["seed"] == seed].sort_values("item")
        assert rows["value"].to_numpy() == pytest.approx(lines, abs=1e-6)
        assert rows["source"].tolist() == [0, 0, 1, 1, 2, 2]
        (whole,) = found.table[found.table["seed"] == seed]["value"]
        assert whole == pytest.approx(lines.mean(), abs=1e-6)
    assert found.table["seed"].tolist() == [0, 1]
    assert set(found.table["arm"]) == {"line"}
    assert set(found.items["measure"]) == {"s"}


def test_students_of_two_teachers_are_averaged_seed_by_seed_and_image_by_image() -> None:
    def of_teacher(seed: int, students: dict[int, list[float]]) -> Outcome:
        recorder = Recorder(some_data(4))
        teacher = member("teacher", seed, net(0))
        recorder.add(teacher, "share", [1, 1, 1, 1], [0, 0, 0, 0])
        recorder.add(teacher, "part", [1, 0], [0, 0], "eps=2", items=[2, seed % 2])
        for number, values in students.items():
            which = member("kl", number, net(0))
            recorder.add(which, "share", values, [number] * 4)
            recorder.add(which, "part", values[:2], [0, 0], "eps=2", items=[3, seed % 2])
        return recorder.outcome()

    one = of_teacher(100, {100: [1, 0, 0, 0], 101: [1, 1, 1, 1]})
    two = of_teacher(101, {101: [1, 1, 0, 0], 100: [1, 1, 0, math.nan]})
    both = Outcome.averaged(one, two)
    assert value_of(both.table, "kl", 100, "share") == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert value_of(both.table, "kl", 101, "share") == pytest.approx((1 + 1 / 2) / 2)
    assert set(both.table[both.table["arm"] == "teacher"]["seed"]) == {100}
    items = both.items.set_index(["arm", "seed", "measure", "item"])["value"]
    assert items["kl", 100, "share"].tolist() == [1, 0.5, 0, 0]
    assert items["kl", 101, "part"].to_dict() == {3: 1, 0: 1, 1: 1}
    # What only the second teacher answered counts as the one teacher's as well.
    assert items["teacher", 100, "part"].to_dict() == {2: 1, 0: 0, 1: 0}
    assert set(both.items[both.items["arm"] == "teacher"]["seed"]) == {100}
    with pytest.raises(ValueError, match="one of the two teachers only"):
        Outcome.averaged(one, two.keep(lambda rows: rows["seed"] != 100))


def test_probabilities_are_those_of_the_true_class_and_of_the_teachers_answer() -> None:
    data = numbered_data(torch.tensor([3, 0]))
    recorder, sure = Recorder(data), torch.eye(10)[[3, 4]] * 0.5 + 0.05
    teachers = torch.eye(10)[[7, 4]]
    recorder.add_probabilities(STUDENT, sure, teachers)
    values = recorder.outcome().items.pivot(index="item", columns="measure", values="value")
    assert values["probability_true"].tolist() == pytest.approx([0.55, 0.05])
    assert values["probability_teacher"].tolist() == pytest.approx([0.05, 0.55])


# --- networks of no numbers -----------------------------------------------------------------


def spoilt(seed: int) -> nn.Module:
    """A network with one weight of its head NaN, as by a flipped bit."""
    network = SmallNet(seed)
    network.head.weight.data[2, 0] = math.nan
    return frozen(network)


@pytest.mark.parametrize("name", ["accuracy", "fidelity", "localization", "adversarial"])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_network(name: str) -> None:
    """NaN is equal to nothing and above nothing: unchecked it passes for an answer."""
    cast, measure = small_cast(), getattr(probes, name).measure
    student = replace(cast, members=(*cast.members, member("hint", 4, spoilt(1))))
    with pytest.raises(FloatingPointError, match="the logits of hint, seed 4 are not all finite"):
        measure(student, some_data())
    teacher = replace(cast, teacher=member("teacher", 0, spoilt(2)))
    with pytest.raises(FloatingPointError, match="the logits of teacher, seed 0 are not all"):
        measure(teacher, some_data())


def test_every_probe_of_layers_checks_logits_and_features() -> None:
    cast = small_cast()
    with pytest.raises(FloatingPointError, match="the logits of teacher, seed 0"):
        representations.measure(replace(cast, teacher=member("teacher", 0, spoilt(2))), some_data())

    class Deaf(SmallNet):
        """Answers as if nothing were wrong with what its second stage makes."""

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body((images - 0.5) / 0.25).nan_to_num(0).mean((2, 3)))

    network = Deaf(3)
    network.body[1][0].weight.data[0] = math.inf
    members = (*cast.members, member("kl", 8, frozen(network)))
    assert bool(all_logits(members[-1:], some_data())[0].isfinite().all())
    with pytest.raises(FloatingPointError, match="the features of layer 2 of kl, seed 8"):
        representations.measure(replace(cast, members=members), some_data())


def test_a_network_keeps_the_name_it_was_first_given() -> None:
    """An arm may be called otherwise in another table; its network is the same."""
    first = member("kl", 4, spoilt(1))
    again = replace(first, arm="mixture")
    with pytest.raises(FloatingPointError, match="kl, seed 4"):
        all_logits([again], some_data())
    assert len(first.network._forward_hooks) == 1
