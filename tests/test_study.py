"""Plans of casts: who is in them, who taught whom, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from asked import NOTEBOOKS, by_arm, main_plan, study_of

import kdnotes
from kdnotes import methods
from kdnotes.book import parameters, running
from kdnotes.errors import RequestError
from kdnotes.study import Plan, Study, arms
from kdnotes.study.study import resolve
from kdnotes.training import cache

CHAPTERS = ("distillation", "fidelity", "localization", "adversarial", "color-invariance")


def plan(name: str, **values: object) -> list[cache.Planned]:
    return study_of(name, **values).networks


# --- who is in a cast -----------------------------------------------------------------------


def test_a_cast_has_all_arms_and_their_seeds() -> None:
    assert Counter(item.arm for item in plan("localization")) == {
        "teacher": 1,
        "second-teacher": 1,
        "independent": 5,
        "kl": 5,
        "hint": 5,
        "crd": 5,
        "control-second-teacher": 5,
        "control-smoothed": 2,
        "control-permuted": 5,
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
    specs = by_arm(plan("localization"))
    assert specs["control-second-teacher"].teacher == specs["second-teacher"]
    assert specs["kl"].teacher == specs["teacher"]
    assert specs["control-permuted"].labels == "permuted"
    assert specs["control-smoothed"].labels == "smoothed"
    assert specs["independent"].teacher is None
    controls = {spec.method for arm, spec in specs.items() if arm.startswith("control")}
    assert controls == {specs["kl"].method}


def test_with_two_teachers_the_second_takes_the_place_of_the_first() -> None:
    study = study_of("fidelity", preset="smoke", teacher_count=2)
    assert study.other is not None
    one, other = main_plan(study), main_plan(study.other)

    def keys(plan: Plan, arm: str) -> list[str]:
        return [item.spec.key for item in plan.planned if item.arm == arm]

    assert keys(one, "teacher") == keys(other, "second-teacher") != keys(other, "teacher")
    assert keys(one, "second-teacher") == keys(other, "teacher")
    assert keys(one, "kl") == keys(other, "control-second-teacher")
    assert keys(one, "independent") == keys(other, "independent")
    assert set(keys(other, "hint")).isdisjoint(keys(one, "hint"))
    trained = {item.spec.key for item in study.networks}
    assert {item.spec.key for plan in (one, other) for item in plan.planned} <= trained


def test_only_the_teacher_sees_jitter_and_only_its_marker_is_random() -> None:
    for item in plan("color-invariance"):
        jittered = item.spec.recipe.jitter is not None
        assert jittered == (item.arm in ("teacher", "second-teacher")), item.arm
    for item in plan("localization"):
        random = item.spec.data.options.get("marker_agreement", 1) == 0
        assert random == (item.spec.role == "teacher"), item.arm


def test_hint_depths_look_at_deeper_and_deeper_layers() -> None:
    # Not `networks`: there, hint-2 is the same network as hint and appears once.
    specs = by_arm(main_plan(study_of("color-invariance")).planned)
    layers = {arm: spec.method.layers() for arm, spec in specs.items() if arm.startswith("hint-")}
    assert {arm: both for arm, both in layers.items() if arm != "hint-plain"} == {
        "hint-1": ("1/3", "1/3"),
        "hint-2": ("2/3", "2/3"),
        "hint-3": ("3/3", "3/3"),
        "hint-logits": ("logits", "logits"),
    }
    assert specs["hint"].method.layers() == ("2/3", "2/3")


def test_chapters_share_their_networks() -> None:
    everything = [item for name in CHAPTERS for item in plan(name)]
    shared = cache.with_teachers(everything)
    assert len(shared) <= 115  # the laptop budget: about 12 teachers and 100 students
    assert len([i for i in shared if i.spec.role == "teacher"]) == 6
    assert {i.spec.key for i in plan("fidelity")} == {i.spec.key for i in plan("distillation")}


def test_the_whole_book_has_165_networks_at_smoke() -> None:
    planned = [item for name in NOTEBOOKS for item in plan(name, preset="smoke")]
    assert len(cache.with_teachers(planned)) == 165


def test_development_seeds_have_teachers_and_renderings_of_their_own() -> None:
    published = plan("fidelity")
    development = plan("fidelity", first_seed=100)
    assert not {i.spec.key for i in published} & {i.spec.key for i in development}
    assert published[0].spec.data.seed != development[0].spec.data.seed


def test_parameters_reach_the_networks() -> None:
    networks = plan("fidelity", methods="KL", tau=2.0, seeds=1, student="resnet-small", epochs=3)
    assert {item.arm for item in networks} & {"kl", "hint", "crd"} == {"kl"}
    student = by_arm(networks)["kl"]
    assert student.method.tau == 2
    assert student.model == "resnet-small"
    assert student.recipe.epochs == 3


# --- methods --------------------------------------------------------------------------------


ABOUT_KL = ("architectures", "dose")


class Answers(methods.Method):
    """A method that nobody has written chapters for."""

    name = "answers"
    label, short, colour, marker = "Answers", "Answers", "#123456", "x"
    source = "made up"
    tau: float = 1.0
    width: int = 3


@pytest.fixture
def with_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(methods.known()) | {"answers": Answers}
    monkeypatch.setattr(methods, "known", lambda: known)


@pytest.mark.usefixtures("with_answers")
@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_any_method_can_be_planned_in_any_chapter(chapter: str) -> None:
    study = study_of(chapter, methods="kl,answers", tau=5.0, preset="smoke")
    found = [item.spec.method for item in study.networks if item.arm == "answers"]
    assert set(found) == ({Answers(tau=5.0)} if chapter not in ABOUT_KL else set())
    looks = [plan.arms["answers"] for plan in study.plans.values() if "answers" in plan.arms]
    assert {look.label for look in looks} <= {"Answers"}


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"preset": "laptob"},
            r"'preset' must be smoke, laptop, published or paper, not 'laptob' \(did",
        ),
        ({"dataset": "minst"}, r"unknown data set 'minst'; known: .*scenes"),
        ({"dataset": "imagefolder:/none/here"}, r"no folder '/none/here'"),
        ({"data_dir": "/none/here"}, r"no folder '/none/here' \(data_dir\)"),
        ({"teacher": "resnett"}, r"unknown model 'resnett'"),
        ({"methods": "kl,hnt"}, r"unknown method 'hnt' \(did you mean 'hint'\?\); known: kl, hint"),
        ({"tau": -1.0}, r"'tau' must be a number \(0.1 to 1000\), or nothing, not -1"),
        ({"seeds": 0}, r"'seeds' must be a whole number \(1 to 1000\), or nothing, not 0"),
        (
            {"first_seed": -1},
            r"'first_seed' must be a whole number \(0 to 999999\), or nothing, not -1",
        ),
        ({"device": "tpu"}, r"'device' must be cpu, cuda or cuda:all, or nothing, not 'tpu'"),
        ({"train_count": 0}, r"'train_count' must be a whole number \(10 to 2000000\)"),
        ({"skip_damaged": True}, r"skip_damaged is for folders of images .* not 'scenes'"),
    ],
)
def test_wrong_requests_are_answered_with_right_ones(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        study_of("fidelity", **values)


def test_missing_files_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="MNIST"):
        study_of("fidelity", dataset="mnist", data_dir=str(tmp_path))


def test_a_chapter_about_digits_refuses_other_images() -> None:
    with pytest.raises(RequestError, match="dataset must be digits or mnist, not 'scenes'"):
        study_of("domain-adaptation", dataset="scenes")


def test_two_arms_of_one_name_are_refused() -> None:
    study = Study("any", {})
    plan = study.plan("one", study.world())
    first = plan.teacher()
    plan.students(plan.method("kl"), of=first)
    with pytest.raises(RequestError, match="two different arms called 'kl'"):
        plan.students(arms.taught_by(methods.get("kl")(tau=2)), of=first)
    with pytest.raises(RequestError, match="unknown world 'moon'; known: one-cue, fixed"):
        study.world("moon")


# --- the cell that declares casts -----------------------------------------------------------


def notebook(path: Path, source: str) -> Path:
    cells = [
        {"cell_type": "code", "metadata": {"tags": [tag]}, "source": text}
        for tag, text in (
            ("parameters", parameters.SHARED + 'word: str = "a"  # own (a or b)\n'),
            ("cast", source),
        )
    ]
    path = path / "03-mine.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


def planned(path: Path, **values: object) -> Study:
    return running.planned(running.Chapter("mine", path, "", parameters.read(path)), values)


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_every_chapter_declares_its_casts_in_a_cell_that_runs_alone(chapter: str) -> None:
    study = study_of(chapter, preset="smoke")
    assert study.plans
    for plan in study.plans.values():
        assert plan.planned[0].arm == "teacher"
    _, source = parameters.cell(NOTEBOOKS[chapter], running.CAST) or (0, "")
    assert "import" not in source


def test_the_cell_sees_parameters_and_nothing_else(tmp_path: Path) -> None:
    source = """\
plan = study.plan(word, study.world("one-cue"))
first = plan.teacher()
plan.students(kd.independent, seeds="all" if tau is None else "few")
"""
    study = planned(notebook(tmp_path, source), word="mine", seeds=4)
    assert list(study.plans) == ["mine"]
    assert [item.arm for item in study.networks] == ["teacher", *["independent"] * 4]
    assert study.parameters()["word"] == "mine"
    assert "word" not in planned(notebook(tmp_path, source)).parameters()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "x = 1\nplan = stdy.plan('a')",
            r"chapter 'mine', cell 2, .* failed \(plan = stdy.plan\('a'\)\): NameError: .*'stdy'",
        ),
        ("1 +", r"chapter 'mine', cell 2, .* failed.*: SyntaxError"),
        ("study.needs(word == 'b', 'word must be b')", "^word must be b$"),
        ("study.train()", "declares networks; it cannot train"),
        ("study.plan('a', study.world()).training_images()", "it cannot train or load"),
        ("study.plan('a', study.world()).test_images()", "it cannot train or load"),
    ],
)
def test_what_goes_wrong_in_the_cell_is_a_wrong_request(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        planned(notebook(tmp_path, source))


def test_planning_the_whole_book_is_quick_and_needs_no_torch() -> None:
    """In a process of its own; 3 s are for an idle machine, so only the modules are checked."""
    script = """
import sys
from kdnotes.book import running
for chapter in running.chapters():
    running.needed_networks([running.request(chapter, {})])
print([name for name in ("torch", "torchvision", "timm", "pandas") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_notebook_begins_with_what_its_parameters_say() -> None:
    namespace = {"preset": "smoke", "tau": 8, "seeds": None, "strength": 0.5, "unrelated": object()}
    study = running.begin("color-invariance", namespace)
    assert study.settings.tau == 8
    assert study.settings.seeds == (100, 101)
    assert study.parameters()["strength"] == 0.5
    with pytest.raises(RequestError, match=r"'strength' must be a number \(0 to 1\), not 2"):
        running.begin("color-invariance", namespace | {"strength": 2})
    with pytest.raises(RequestError, match="'tau' must be a number"):
        running.begin("bias", {"tau": "hot"})


def test_a_study_knows_the_command_that_makes_it() -> None:
    assert study_of("fidelity", device=None).command == "kdnotes run fidelity"
    asked = study_of("fidelity", preset="smoke", tau=2.0, methods="kl,hint", device=None)
    assert asked.command == "kdnotes run fidelity --preset smoke -p methods=kl,hint -p tau=2.0"


def test_a_cell_can_be_run_once_more() -> None:
    study = running.begin("domain-adaptation", {"preset": "smoke"})
    _, source = parameters.cell(NOTEBOOKS["domain-adaptation"], running.CAST) or (0, "")
    declared = parameters.read(NOTEBOOKS["domain-adaptation"])
    given = {name: each.default for name, each in declared.items()}
    for _ in range(2):
        exec(source, given | {"preset": "smoke", "kd": kdnotes, "study": study})
    assert list(study.plans) == ["domains"]
    assert study.networks == plan("domain-adaptation", preset="smoke")


def test_smoke_cast_is_trained_and_measured_end_to_end() -> None:
    study = Study("mine", {"preset": "smoke", "methods": "kl", "seeds": 1, "device": "cpu"})
    plan = study.plan("plain", study.world("one-cue"))
    first = plan.teacher()
    plan.second_teacher(first)
    plan.students(arms.INDEPENDENT)
    for method in plan.methods:
        plan.students(method, of=first)
    cast = running.trained(plan)
    assert cast.second_teacher is not None
    assert [len(cast.arm(arm)) for arm in ("independent", "kl")] == [1, 1]
    assert len(plan.test_images()) == 240
    assert set(plan.history()["arm"]) >= {"teacher", "kl"}
    assert "temperature 4" in plan.table().set_index("arm").loc["kl", "objective"]


@pytest.mark.parametrize("given", ["cifar10", "./photos/cifar10", "photos/cifar10/"])
def test_images_are_called_by_the_folders_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Verdicts name them, and a primary is decided by the images of its name."""
    (tmp_path / given).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDNOTES_BASE", raising=False)
    assert resolve(dataset=f"imagefolder:{given}").images == "cifar10"
    assert resolve(dataset="cifar10:list.csv").images == "cifar10"
    assert resolve().images == "scenes"
