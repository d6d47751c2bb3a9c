"""Accuracy by group against hand-worked cases, pandas, scikit-learn and a brute-force bootstrap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from probe_nets import (
    in_batches,
    lookup_cast,
    numbered_data,
    small_cast,
    some_data,
    value_of,
    values_of,
)
from sklearn.metrics import cohen_kappa_score

from kdnotes import stats
from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.probes import group_accuracy
from kdnotes.probes.base import Cast

NAMES = ("bright", "dark", "faint")


def answering(*classes: int) -> torch.Tensor:
    return 4 * torch.nn.functional.one_hot(torch.tensor(classes), 5).float()


def grouped_data(count: int = 60, seed: int = 0) -> ImageData:
    data = some_data(count)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([0.5, 0.3, 0.2])
    groups = torch.multinomial(weights, count, replacement=True, generator=generator)
    return replace(data, factors=data.factors | {"group": groups})


def worked_case() -> tuple[Cast, ImageData]:
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    cast = lookup_cast(
        {
            ("teacher", 0): answering(0, 1, 2, 3, 0, 2, 4, 4),  # 1, 1/2, 0
            ("independent", 0): answering(0, 1, 0, 0, 0, 1, 2, 0),  # 1/2, 1, 1/2
            ("kl", 0): answering(0, 1, 2, 0, 0, 0, 4, 3),  # 3/4, 1/2, 1/2
        }
    )
    return cast, numbered_data(labels, group=groups)


def test_hand_worked_case() -> None:
    cast, data = worked_case()
    table = group_accuracy.measure(cast, data, unseen=2, names=NAMES).table
    expected = {
        ("teacher", "accuracy", ""): 5 / 8,
        ("teacher", "accuracy", "group=bright"): 1,
        ("teacher", "accuracy", "group=dark"): 0.5,
        ("teacher", "accuracy", "group=faint"): 0,
        ("teacher", "accuracy", "side=unseen"): 0,
        ("teacher", "accuracy", "side=others"): 0.75,
        ("teacher", "deficit", ""): 0.75,
        ("teacher", "mean_accuracy", ""): 0.5,
        ("teacher", "worst_group", ""): 0,
        ("teacher", "spread", ""): 1,
        ("independent", "deficit", ""): 0.25,
        ("independent", "worst_group", ""): 0.5,
        ("independent", "spread", ""): 0.5,
        ("kl", "deficit", ""): 0.125,
        ("kl", "agreement", "group=bright"): 0.75,
        ("kl", "agreement", "side=unseen"): 0.5,
        ("kl", "agreement", "side=others"): (0.75 + 0.5) / 2,
        ("kl", "agreement_on_teacher_errors", "side=unseen"): 0.5,
        ("kl", "agreement_on_teacher_errors", "group=dark"): 0,
        ("independent", "agreement_on_teacher_errors", "side=unseen"): 0,
    }
    for (arm, measure, condition), value in expected.items():
        assert value_of(table, arm, 0, measure, condition) == pytest.approx(value), (arm, measure)
    assert math.isnan(value_of(table, "kl", 0, "agreement_on_teacher_errors", "group=bright"))
    assert not ((table["arm"] == "teacher") & (table["measure"] == "agreement")).any()


def test_equals_a_recount_with_pandas_and_scikit_learn() -> None:
    data, cast = grouped_data(), small_cast()
    outcome = in_batches(13, group_accuracy.measure, cast, data, unseen=1, names=NAMES)
    table = outcome.table
    teachers = values_of_answers(outcome.items, "teacher", 0)
    for arm, seed in (("second-teacher", 1), ("independent", 2), ("kl", 1)):
        answers = values_of_answers(outcome.items, arm, seed)
        frame = pd.DataFrame(
            {"answer": answers, "teacher": teachers, "label": data.labels, "group": groups(data)}
        )
        frame["right"] = frame["answer"] == frame["label"]
        frame["same"] = frame["answer"] == frame["teacher"]
        accuracy = frame.groupby("group")["right"].mean()
        others = accuracy.drop(1).mean()
        assert value_of(table, arm, seed, "deficit") == pytest.approx(others - accuracy[1])
        assert value_of(table, arm, seed, "mean_accuracy") == pytest.approx(accuracy.mean())
        for number, name in enumerate(NAMES):
            part = frame[frame["group"] == number]
            found = {
                measure: value_of(table, arm, seed, measure, f"group={name}")
                for measure in ("accuracy", "agreement", "kappa")
            }
            assert found["accuracy"] == pytest.approx(part["right"].mean())
            assert found["agreement"] == pytest.approx(part["same"].mean())
            kappa = cohen_kappa_score(part["answer"], part["teacher"])
            assert found["kappa"] == pytest.approx(kappa)


def groups(data: ImageData) -> np.ndarray:
    return data.factors["group"].numpy()


def values_of_answers(items: pd.DataFrame, arm: str, seed: int) -> np.ndarray:
    rows = items[
        (items["arm"] == arm)
        & (items["seed"] == seed)
        & (items["measure"] == "accuracy")
        & (items["condition"] == "")
    ]
    return rows.sort_values("item")["prediction"].to_numpy()


@pytest.mark.parametrize("measure", ["deficit", "mean_accuracy"])
def test_items_of_a_deficit_have_its_mean_and_its_variance(measure: str) -> None:
    data, cast = grouped_data(600), small_cast()
    outcome = group_accuracy.measure(cast, data, unseen=2, names=NAMES)
    values = values_of(outcome.items, "kl", 0, measure).sort_index()
    assert len(values) == len(data)
    found = value_of(outcome.table, "kl", 0, measure)
    assert values.mean() == pytest.approx(found, abs=1e-6)
    right = values_of(outcome.items, "kl", 0, "accuracy").sort_index().to_numpy()
    sources, rng = data.sources.numpy(), np.random.default_rng(0)
    frame = pd.DataFrame({"right": right, "group": groups(data), "source": sources})
    by_source = {
        name: part[["right", "group"]].to_numpy() for name, part in frame.groupby("source")
    }
    names, draws = list(by_source), []
    for _ in range(600):
        rows = np.concatenate([by_source[name] for name in rng.choice(names, len(names))])
        means = [rows[rows[:, 1] == group, 0].mean() for group in range(3)]
        draws.append(
            np.mean(means[:2]) - means[2] if measure == "deficit" else float(np.mean(means))
        )
    table, items = (each[each["seed"] == 0] for each in (outcome.table, outcome.items))
    error = stats.contrast(table, items, measure, "", "kl", 0.0).item_standard_error
    assert error == pytest.approx(np.std(draws, ddof=1), rel=0.1)


def test_the_neglected_group_is_the_one_the_teacher_is_furthest_behind_in() -> None:
    cast, data = worked_case()
    # teacher less independent: 1/2, -1/2, -1/2; the first of equals
    assert group_accuracy.neglected_group(cast, data) == 1
    alone = replace(cast, members=cast.arm("kl"))
    assert group_accuracy.neglected_group(alone, data) == 2  # its lowest accuracy


def test_images_without_a_group_count_for_accuracy_only() -> None:
    cast, data = worked_case()
    partly = replace(data, factors={"group": torch.tensor([0, 0, -1, -1, 1, 1, 2, 2])})
    table = group_accuracy.measure(cast, partly, unseen=2, names=NAMES).table
    assert value_of(table, "kl", 0, "accuracy") == 5 / 8
    assert value_of(table, "kl", 0, "accuracy", "group=bright") == 1
    assert value_of(table, "kl", 0, "deficit") == pytest.approx((1 + 0.5) / 2 - 0.5)


def test_what_cannot_be_compared_is_refused() -> None:
    cast, data = worked_case()
    assert group_accuracy.groups_in(data) == [0, 1, 2]
    assert group_accuracy.groups_in(numbered_data(data.labels)) == []
    single = replace(data, factors={"group": torch.zeros(8, dtype=torch.int64)})
    for images in (numbered_data(data.labels), single):
        with pytest.raises(RequestError, match="no two groups"):
            group_accuracy.measure(cast, images, unseen=0, names=NAMES)
    with pytest.raises(RequestError, match="group 7 has no images; groups with images: 0, 1, 2"):
        group_accuracy.measure(cast, data, unseen=7, names=NAMES)
    with pytest.raises(RequestError, match="2 names of groups, but there is a group 2"):
        group_accuracy.measure(cast, data, unseen=0, names=("a", "b"))
    table = group_accuracy.measure(cast, data, unseen=2, names=("a=1", "b,c", "d")).table
    assert {"group=a 1", "group=b c", "group=d"} <= set(table["condition"])
