"""Shape bias by hand, against another way of counting, and from a folder of photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from probe_nets import (
    CLASSES,
    in_batches,
    lookup_cast,
    numbered_data,
    small_cast,
    some_data,
    value_of,
    values_of,
)

from kdnotes.errors import RequestError
from kdnotes.probes import accuracy, cue_bias, localization
from kdnotes.probes.base import Outcome
from kdnotes.probes.cue_bias import conflict_photos, follows

# Digit and marker of six images (the last has no conflict), and the answers of a student.
DIGIT = torch.tensor([0, 1, 2, 3, 4, 2])
MARKER = torch.tensor([1, 2, 3, 4, 0, 2])
ANSWERS = torch.tensor([0, 1, 2, 4, 1, 2])  # digit three times, marker once, neither once


def logits(answers: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(answers, CLASSES).float()


def hand_made() -> tuple:  # type: ignore[type-arg]
    data = numbered_data(DIGIT, digit=DIGIT, marker=MARKER)
    neither = torch.tensor([3, 3, 0, 0, 1, 2])
    cast = lookup_cast(
        {
            ("teacher", 0): logits(DIGIT),
            ("second-teacher", 1): logits(MARKER),
            ("independent", 0): logits(neither),
            ("kl", 0): logits(ANSWERS),
        }
    )
    return cast, data


def test_shares_of_a_case_counted_by_hand() -> None:
    cast, data = hand_made()
    outcome = cue_bias.measure(cast, data)
    expected = {
        "teacher": (1, 1, 0, 0),
        "second-teacher": (0, 0, 1, 0),
        "kl": (3 / 4, 3 / 5, 1 / 5, 1 / 5),
    }
    for arm, values in expected.items():
        seed = int(arm == "second-teacher")
        for measure, value in zip(("shape_bias", *cue_bias.SHARES), values, strict=True):
            found = value_of(outcome.table, arm, seed, measure, "conflict")
            assert found == pytest.approx(value), (arm, measure)
    assert np.isnan(value_of(outcome.table, "independent", 0, "shape_bias", "conflict"))
    assert value_of(outcome.table, "independent", 0, "other_answers", "conflict") == 1
    values = values_of(outcome.items, "kl", 0, "shape_bias", "conflict")
    assert values.index.tolist() == [0, 1, 2, 3, 4]  # the sixth names one class only
    np.testing.assert_array_equal(values, [1, 1, 1, 0, np.nan])
    assert set(outcome.items["measure"]) == {"shape_bias"}


def test_the_same_numbers_as_the_chapter_on_localization() -> None:
    cast, data = small_cast(), some_data()
    here = in_batches(17, cue_bias.measure, cast, data, condition="conflict,teacher=marker")
    there = cue_bias.follows(cast, data)
    for each in cast.everyone():
        bias = value_of(here.table, each.arm, each.seed, "shape_bias", "conflict,teacher=marker")
        follows = value_of(there.table, each.arm, each.seed, "follows_digit", "conflict")
        assert bias == pytest.approx(follows, nan_ok=True)
        shares = [
            value_of(here.table, each.arm, each.seed, name, "conflict,teacher=marker")
            for name in cue_bias.SHARES
        ]
        assert sum(shares) == pytest.approx(1)
        either = value_of(there.table, each.arm, each.seed, "follows_either", "conflict")
        assert shares[2] == pytest.approx(1 - either)


def shape_bias(answers: np.ndarray, shape: np.ndarray, texture: np.ndarray) -> float:
    """As model-vs-human's ``ShapeBias`` counts."""
    frame = pd.DataFrame({"answer": answers, "shape": shape, "texture": texture})
    conflicts = frame[frame["shape"] != frame["texture"]]
    by_shape = len(conflicts[conflicts["answer"] == conflicts["shape"]]) / len(frame)
    by_texture = len(conflicts[conflicts["answer"] == conflicts["texture"]]) / len(frame)
    return by_shape / (by_shape + by_texture)


def test_shape_bias_equals_model_vs_humans_way_of_counting() -> None:
    rng = np.random.default_rng(0)
    for count in (40, 250):
        answers, shape, texture = rng.integers(0, CLASSES, (3, count))
        cast = lookup_cast({("teacher", 0): logits(torch.tensor(answers))})
        cues = {"digit": torch.tensor(shape), "marker": torch.tensor(texture)}
        found = cue_bias.measure(cast, numbered_data(cues["digit"], **cues)).table
        expected = shape_bias(answers, shape, texture)
        assert value_of(found, "teacher", 0, "shape_bias", "conflict") == pytest.approx(expected)


def test_accuracy_on_ordinary_images() -> None:
    cast, data = hand_made()
    plain = accuracy.measure(cast, data)
    assert value_of(plain.table, "kl", 0, "accuracy") == pytest.approx(4 / 6)
    assert len(plain.items) == 4 * 6 * 3
    other = accuracy.measure(cast, data).under("teacher=marker")
    assert value_of(other.table, "kl", 0, "accuracy", "teacher=marker") == pytest.approx(4 / 6)
    joined = Outcome.combine([plain, other, cue_bias.measure(cast, data)])
    assert list(joined.items["measure"].cat.categories) == [
        "accuracy",
        "probability_true",
        "probability_teacher",
        "shape_bias",
    ]
    assert len(joined.items) == 4 * (3 * 6 + 3 * 6 + 5)


def test_a_missing_cue_or_conflict_is_named() -> None:
    cast, data = hand_made()
    with pytest.raises(RequestError, match="no factor 'texture'"):
        cue_bias.measure(cast, data, cues=("digit", "texture"))
    same = replace(data, factors={"digit": DIGIT, "marker": DIGIT})
    with pytest.raises(RequestError, match="never name different classes"):
        cue_bias.measure(cast, same)


def photos(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 10, 50, 100)).save(path)
    return folder


def test_photographs_are_read_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "dnn/session-1/cat/cat1-dog2.png",
        "dnn/session-1/cat/cat1-cat7.png",
        "dnn/session-1/cat/cat12-truck1.png",
        "dnn/session-1/dog/001_dog3-cat10.png",
        "dnn/session-1/bear/bear1-cat2.png",
    ]
    folder = photos(tmp_path, names)
    (tmp_path / "README.md").write_text("not an image")
    data, left_out = conflict_photos(folder, ("Cat", "Dog", "Truck"), 16)
    monkeypatch.setenv("KDNOTES_BASE", str(tmp_path.parent))  # where the command was typed
    assert len(conflict_photos(tmp_path.name, ("Cat", "Dog", "Truck"), 16)[0]) == 4
    assert left_out == 1  # the networks know no bear
    assert len(data) == 4
    order = [name.partition("session-1/")[2] for name in data.images.names]
    expected = {
        "cat/cat1-dog2.png": (0, 1),
        "cat/cat1-cat7.png": (0, 0),
        "cat/cat12-truck1.png": (0, 2),
        "dog/001_dog3-cat10.png": (1, 0),
    }
    found = zip(data.factors["shape"].tolist(), data.factors["texture"].tolist(), strict=True)
    assert dict(zip(order, found, strict=True)) == expected
    assert data.labels.tolist() == data.factors["shape"].tolist()
    source = dict(zip(order, data.sources.tolist(), strict=True))
    assert source["cat/cat1-dog2.png"] == source["cat/cat1-cat7.png"]
    assert len(set(source.values())) == 3
    pixels = data.batch(torch.tensor([order.index("cat/cat1-dog2.png")]))
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels[0, :, 8, 8].tolist() == [0, 50, 100]


def test_class_names_may_hold_digits_and_hyphens(tmp_path: Path) -> None:
    classes = ("shirt", "t-shirt", "car2", "car")
    names = ["car2/car21-t-shirt3.png", "t-shirt/t-shirt1-car25.png", "shirt/shirt1-car.png"]
    data, left_out = conflict_photos(photos(tmp_path, names), classes, 8)
    assert left_out == 0
    found = {
        name: (shape, texture)
        for name, shape, texture in zip(
            data.images.names,
            data.factors["shape"].tolist(),
            data.factors["texture"].tolist(),
            strict=True,
        )
    }
    assert found == dict(zip(names, [(2, 1), (1, 2), (0, 3)], strict=True))


def test_photographs_are_measured_like_scenes(tmp_path: Path) -> None:
    names = [f"{shape}/{shape}1-{texture}2.png" for shape in "abcde" for texture in "abcde"]
    data, _ = conflict_photos(photos(tmp_path, names), tuple("abcde"), 16)
    outcome = cue_bias.measure(small_cast(), data, cues=cue_bias.PHOTO_CUES)
    rows = outcome.items[(outcome.items["arm"] == "kl") & (outcome.items["seed"] == 0)]
    answers = np.zeros(len(data), int)
    answers[rows["item"]] = rows["prediction"]
    expected = shape_bias(answers, data.factors["shape"], data.factors["texture"])
    found = value_of(outcome.table, "kl", 0, "shape_bias", "conflict")
    assert found == pytest.approx(expected, nan_ok=True)
    assert len(rows) == 20  # five of the 25 name one class only


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        conflict_photos(tmp_path / "nowhere", ("cat", "dog"), 16)
    with pytest.raises(RequestError, match="none of 0 images"):
        conflict_photos(tmp_path, ("cat", "dog"), 16)
    folder = photos(tmp_path, ["cat/cat1-dog2.png", "cat/holiday.jpg"])
    with pytest.raises(RequestError, match=r"classes \(0, 1\); the first is cat/cat1-dog2.png"):
        conflict_photos(folder, ("0", "1"), 16)


def test_following_cues_by_hand() -> None:
    digits, markers = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 0, 3, 2])
    answers = torch.tensor([0, 1, 0, 4, 4, 2])  # digit, no conflict, marker, neither, digit, marker
    cast = lookup_cast(
        {
            ("teacher", 0): torch.nn.functional.one_hot(digits, 5).float(),
            ("kl", 0): torch.nn.functional.one_hot(answers, 5).float(),
        }
    )
    data = numbered_data(digits, digit=digits, marker=markers)
    outcome = follows(cast, data)
    assert value_of(outcome.table, "teacher", 0, "follows_digit", "conflict") == 1
    assert value_of(outcome.table, "kl", 0, "follows_digit", "conflict") == 0.5
    assert value_of(outcome.table, "kl", 0, "follows_marker", "conflict") == 0.5
    assert value_of(outcome.table, "kl", 0, "follows_either", "conflict") == 0.8
    values = values_of(outcome.items, "kl", 0, "follows_digit", "conflict")
    assert values.index.tolist() == [0, 2, 3, 4, 5]
    assert values.drop(3).to_dict() == {0: 1, 2: 0, 4: 1, 5: 0}
    assert np.isnan(values[3])


def test_maps_and_followed_cues_go_into_one_table() -> None:
    # the same networks on other images: the condition keeps the two sets of images apart
    cast, data = small_cast(), some_data()
    factors = {"digit": data.labels, "marker": data.labels.roll(1)}
    parts = [localization.measure(cast, data), follows(cast, replace(data, factors=factors))]
    joined = Outcome.combine(parts)
    assert len(joined.table) == sum(len(part.table) for part in parts)
    share = joined.items.query("condition == 'conflict' and measure == 'follows_digit'")
    assert (data.labels.numpy()[share["item"]] != data.labels.roll(1).numpy()[share["item"]]).all()
    assert {*share["arm"]} == {each.arm for each in cast.everyone()}


def test_following_cues_needs_factors_in_conflict() -> None:
    labels = torch.tensor([0, 1])
    cast = lookup_cast({("teacher", 0): torch.eye(5)[:2]})
    with pytest.raises(RequestError, match="no factor 'marker'; it has digit"):
        follows(cast, numbered_data(labels, digit=labels))
    with pytest.raises(RequestError, match="never name different classes"):
        follows(cast, numbered_data(labels, digit=labels, marker=labels))


def test_scenes_whose_cues_differ_are_named_by_both() -> None:
    data = some_data(3)
    cues = {"digit": torch.tensor([1, 2, 3]), "marker": torch.tensor([1, 4, 0])}
    places, named = cue_bias.disagreeing(replace(data, factors=cues))
    assert places.tolist() == [1, 2]
    assert named == ["digit 2, marker 4", "digit 3, marker 0"]
