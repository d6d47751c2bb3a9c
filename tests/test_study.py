"""Plans of casts: who is in them, who taught whom, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kdnotes import study
from kdnotes.errors import RequestError
from kdnotes.training import cache

CHAPTERS = ("distillation", "fidelity", "localization", "adversarial", "color-invariance")


def plan(name: str, **parameters: object) -> list[cache.Planned]:
    return study.chapter(name, device="cpu", **parameters).networks


def test_a_cast_has_all_arms_and_their_seeds() -> None:
    arms = Counter(item.arm for item in plan("localization"))
    assert arms == {
        "teacher": 1,
        "second-teacher": 1,
        "independent": 5,
        "kl": 5,
        "hint": 5,
        "crd": 5,
        "control-second-teacher": 3,
        "control-smoothed": 3,
        "control-permuted": 3,
    }


def test_students_are_paired_by_seed() -> None:
    """Same initialisation, order and images in every arm of a seed, other ones in another."""
    students = [item.spec for item in plan("color-invariance") if item.spec.role == "student"]
    by_seed: dict[int, set[tuple[object, ...]]] = {}
    for spec in students:
        paired = (spec.initialisation_seed, spec.order_seed, spec.data.key(), spec.recipe)
        by_seed.setdefault(spec.seed, set()).add(paired)
    assert all(len(kinds) == 1 for kinds in by_seed.values())
    assert len({next(iter(kinds)) for kinds in by_seed.values()}) == 5


def test_controls_are_taught_by_whom_they_say() -> None:
    by_arm: dict[str, cache.Planned] = {}
    for item in plan("localization"):
        by_arm.setdefault(item.arm, item)
    second = by_arm["second-teacher"].spec
    assert by_arm["control-second-teacher"].spec.teacher == second
    assert by_arm["kl"].spec.teacher == by_arm["teacher"].spec
    assert by_arm["control-permuted"].spec.objective.labels == "permuted"
    assert by_arm["control-smoothed"].spec.objective.labels == "smoothed"
    assert by_arm["independent"].spec.teacher is None
    tau = {by_arm[arm].spec.objective.tau for arm in by_arm if arm.startswith("control")}
    assert tau == {by_arm["kl"].spec.objective.tau}


def test_only_the_teacher_sees_jitter_and_only_its_marker_is_random() -> None:
    for item in plan("color-invariance"):
        jittered = item.spec.recipe.jitter is not None
        assert jittered == (item.arm in ("teacher", "second-teacher")), item.arm
    for item in plan("localization"):
        random = item.spec.data.options.get("marker_agreement", 1) == 0
        assert random == (item.spec.role == "teacher"), item.arm


def test_hint_depths_look_at_deeper_and_deeper_layers() -> None:
    # Not `networks`: there, hint-2 is the same network as hint and appears once.
    planned = study.chapter("color-invariance", device="cpu")._plan("jitter")
    layers = {item.arm: item.spec.objective.hint_teacher for item in planned}
    assert [layers[arm] for arm in study.HINT_DEPTHS] == [
        "body.stages.0",
        "body.stages.1",
        "body.stages.2",
        "logits",
    ]
    assert layers["hint"] == "body.stages.1"


def test_chapters_share_their_networks() -> None:
    everything = [item for name in CHAPTERS for item in plan(name)]
    shared = cache.with_teachers(everything)
    assert len(shared) <= 110  # the laptop budget: about 12 teachers and 100 students
    assert len([i for i in shared if i.spec.role == "teacher"]) == 6
    assert {i.spec.key for i in plan("fidelity")} == {i.spec.key for i in plan("distillation")}


def test_development_seeds_have_teachers_and_renderings_of_their_own() -> None:
    published = plan("fidelity")
    development = plan("fidelity", first_seed=100)
    assert not {i.spec.key for i in published} & {i.spec.key for i in development}
    assert published[0].spec.data.seed != development[0].spec.data.seed


def test_parameters_reach_the_networks() -> None:
    networks = plan("fidelity", methods="KL", tau=2.0, seeds=1, student="resnet-small", epochs=3)
    assert {item.arm for item in networks} & {"kl", "hint", "crd"} == {"kl"}
    student = next(item.spec for item in networks if item.arm == "kl")
    assert student.objective.tau == 2
    assert student.model == "resnet-small"
    assert student.recipe.epochs == 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "laptob"}, r"unknown preset 'laptob'; known: smoke, laptop, full"),
        ({"dataset": "minst"}, r"unknown data set 'minst'; known: digits, .*mnist"),
        ({"dataset": "imagefolder:/none/here"}, r"no folder '/none/here'"),
        ({"data_dir": "/none/here"}, r"no folder '/none/here' \(data_dir\)"),
        ({"teacher": "resnett"}, r"unknown model 'resnett'"),
        ({"methods": "kl,hnt"}, r"unknown method 'hnt' \(did you mean 'hint'\?\); known: kl, hint"),
        ({"tau": -1.0}, r"tau must be above 0, not -1"),
        ({"seeds": 0}, r"seeds must be from 1 to 1000, not 0"),
        ({"first_seed": -1}, r"first_seed must be 0 or more"),
        ({"device": "tpu"}, r"unknown device 'tpu'; known: cpu, cuda"),
        ({"train_count": 0}, r"train_count must be 1 or more"),
    ],
)
def test_wrong_requests_are_answered_with_right_ones(
    parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        study.chapter("fidelity", **parameters)


def test_unknown_chapter_names_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"'fidelty' \(did you mean 'fidelity'\?\)"):
        study.chapter("fidelty")


def test_missing_files_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="MNIST"):
        study.chapter("fidelity", dataset="mnist", data_dir=str(tmp_path))


def test_smoke_cast_is_trained_and_measured_end_to_end() -> None:
    chosen = study.chapter("fidelity", preset="smoke", methods="kl", seeds=1, device="cpu")
    cast = chosen.cast()
    assert cast.second_teacher is not None
    assert [len(cast.arm(arm)) for arm in ("independent", "kl")] == [1, 1]
    assert len(chosen.test()) == 240
    assert set(chosen.history()["arm"]) >= {"teacher", "kl"}
    assert "temperature 4" in chosen.table().set_index("arm").loc["kl", "objective"]
