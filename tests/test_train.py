"""Training: paired, repeatable, and with a table that says exactly what the live teacher says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from kdnotes.methods.objectives import ObjectiveSpec

from kdnotes import networks
from kdnotes.data import DataSpec, ImageData
from kdnotes.data.views import ColorJitter, Views, to_float
from kdnotes.errors import RequestError
from kdnotes.training import loop
from kdnotes.training.specification import NetworkSpec, Recipe
from kdnotes.training.teacher_table import CHUNK, TableError, TeacherTable

KL = ObjectiveSpec(method="kl", gamma=0.1, weight=0.9, tau=4)


def specification(**changes: object) -> NetworkSpec:
    fields: dict[str, object] = {
        "role": "student",
        "model": "vgg-small",
        "num_classes": 10,
        "data": DataSpec(name="scenes", split="train", count=256),
        "recipe": Recipe(epochs=2, batch=64),
    }
    return NetworkSpec(**(fields | changes))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(DataSpec(name="scenes", split="train", count=256))


@pytest.fixture(scope="module")
def teacher(data: ImageData) -> networks.Normalized:
    spec = specification(role="teacher")
    return networks.freeze(trained(spec, data)[0])


def trained(
    spec: NetworkSpec, data: ImageData, teacher: loop.Teacher | None = None
) -> tuple[networks.Normalized, list[dict[str, float]]]:
    network = networks.build(spec.model, spec.num_classes, spec.initialisation_seed)
    history = loop.train(spec, network, data, teacher)
    return network, history


def weights(network: networks.Normalized) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def table_for(
    folder: Path, teacher: networks.Normalized, data: ImageData, views: Views
) -> TeacherTable:
    return TeacherTable(folder, teacher, data, views, torch.device("cpu"))


def test_same_seed_same_weights_another_seed_others(data: ImageData) -> None:
    first, history = trained(specification(seed=1), data)
    again, _ = trained(specification(seed=1), data)
    other, _ = trained(specification(seed=2), data)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert history[-1]["ce"] < history[0]["ce"]


@pytest.mark.parametrize(
    "views", [Views(pad=2, step=2), Views(pad=4, step=1, flip=True)], ids=["9 views", "162 views"]
)
def test_table_says_what_the_live_teacher_says(
    views: Views, tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    """Under shuffling, random crops and any batch size, row by row."""
    table = table_for(tmp_path, teacher, data, views)
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 37, 128):
        indices = torch.randperm(len(data), generator=generator)[:batch]
        numbers = views.draw(batch, generator)
        table.fill(indices, numbers)
        logits, features = table.rows(indices, numbers)
        seen = to_float(views.apply(data.batch(indices), numbers))
        with torch.inference_mode():
            live_logits, live_features = networks.forward_with_features(teacher, seen)
        assert torch.allclose(logits, live_logits, atol=1e-5)
        assert torch.allclose(features, live_features, atol=1e-5)


def test_table_rows_do_not_depend_on_their_company(
    tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    """Filled one by one or all at once, the bits are the same, so runs repeat exactly."""
    views = Views(pad=2, step=2)
    alone, together = (table_for(tmp_path / n, teacher, data, views) for n in ("a", "b"))
    indices = torch.arange(30)
    numbers = indices % 9
    for index, number in zip(indices, numbers, strict=True):
        alone.fill(index[None], number[None])
    assert together.fill(indices, numbers) == 30
    assert torch.equal(alone.rows(indices, numbers)[0], together.rows(indices, numbers)[0])


def test_table_is_filled_once_and_shared(
    tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    views = Views(pad=2, step=2)
    indices = torch.arange(CHUNK)
    numbers = torch.zeros_like(indices)
    assert table_for(tmp_path, teacher, data, views).fill(indices, numbers) == CHUNK
    assert table_for(tmp_path, teacher, data, views).fill(indices, numbers) == 0


def test_altered_table_is_noticed(
    tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    table = table_for(tmp_path, teacher, data, Views(pad=2, step=2))
    indices, numbers = torch.arange(8), torch.zeros(8, dtype=torch.long)
    table.fill(indices, numbers)
    table.recheck(indices, numbers)
    table._rows[3] += 1
    with pytest.raises(TableError, match="off by 1"):
        table.recheck(indices, numbers)


def test_student_of_a_table_equals_student_of_the_live_teacher(
    tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    spec = specification(objective=KL, teacher=specification(role="teacher"))
    table = table_for(tmp_path, teacher, data, spec.recipe.views)
    from_table, _ = trained(spec, data, loop.Teacher(teacher, table))
    from_live, _ = trained(spec, data, loop.Teacher(teacher, None))
    assert torch.allclose(weights(from_table), weights(from_live), atol=1e-3)


def test_students_of_one_seed_share_start_and_views(data: ImageData) -> None:
    """With weight zero on the teacher, a distilled student is the independent one."""
    alone, _ = trained(specification(), data)
    teacher_net = networks.freeze(networks.build("vgg-small", 10, seed=9))
    no_weight = ObjectiveSpec(method="kl", gamma=1, weight=1e-12)
    spec = specification(objective=no_weight, teacher=specification(role="teacher"))
    taught, _ = trained(spec, data, loop.Teacher(teacher_net, None))
    assert torch.allclose(weights(alone), weights(taught), atol=1e-5)


def test_teacher_and_student_of_one_architecture_start_apart() -> None:
    student, teacher = specification(), specification(role="teacher")
    assert student.initialisation_seed != teacher.initialisation_seed
    assert specification(objective=KL).initialisation_seed == student.initialisation_seed
    assert specification(objective=KL).order_seed == student.order_seed


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveSpec(
            method="hint", weight=10, hint_student="body.stages.1", hint_teacher="body.stages.1"
        ),
        ObjectiveSpec(method="hint", weight=1, hint_student="logits", hint_teacher="logits"),
        ObjectiveSpec(method="crd", weight=0.8, crd_negatives=64),
        KL.model_copy(update={"labels": "permuted"}),
        KL.model_copy(update={"labels": "smoothed"}),
    ],
    ids=["hint", "hint at the logits", "crd", "permuted", "smoothed"],
)
def test_every_objective_lowers_its_own_term(
    objective: ObjectiveSpec, tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    spec = specification(
        objective=objective,
        teacher=specification(role="teacher"),
        # CRD's loss rises while the banks are still those of their birth: give it time.
        recipe=Recipe(epochs=20 if objective.method == "crd" else 4, batch=64),
    )
    live = loop.needs_map(objective)
    table = None if live else table_for(tmp_path, teacher, data, spec.recipe.views)
    _, history = trained(spec, data, loop.Teacher(teacher, table))
    assert history[-1][objective.method] < history[0][objective.method]


def test_permuted_labels_come_from_other_images_of_the_class(
    tmp_path: Path, data: ImageData, teacher: networks.Normalized
) -> None:
    """Permuting within the class changes the student, though labels and images are the same."""
    students = []
    for labels in ("teacher", "permuted"):
        objective = KL.model_copy(update={"labels": labels})
        spec = specification(objective=objective, teacher=specification(role="teacher"))
        table = table_for(tmp_path, teacher, data, spec.recipe.views)
        students.append(weights(trained(spec, data, loop.Teacher(teacher, table))[0]))
    assert not torch.allclose(students[0], students[1], atol=1e-3)


def test_jitter_is_drawn_from_the_seed(data: ImageData) -> None:
    recipe = Recipe(epochs=1, batch=64, jitter=ColorJitter())
    first, _ = trained(specification(role="teacher", recipe=recipe), data)
    torch.rand(10)  # the global generator has moved on
    again, _ = trained(specification(role="teacher", recipe=recipe), data)
    plain, _ = trained(specification(role="teacher", recipe=Recipe(epochs=1, batch=64)), data)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(plain))


def test_schedules_worked_by_hand() -> None:
    def rates(schedule: str) -> list[float]:
        rate = loop._schedule(Recipe(schedule=schedule, learning_rate=1.0), 80, 10)
        return [rate(step) for step in (0, 11, 12, 49, 50, 60, 70, 79)]

    assert rates("step") == pytest.approx([1, 1, 1, 1, 0.1, 0.01, 0.001, 0.001])
    assert rates("exponential") == pytest.approx(
        [1, 0.7, 0.7, 0.7**4, 0.7**5, 0.7**6, 0.7**7, 0.7**7]
    )
    one_cycle = rates("one-cycle")
    assert one_cycle[:3] == pytest.approx([1 / 12, 1, 1])
    assert one_cycle[-1] < 0.002


@pytest.mark.parametrize("at_once", [1, 100, 150, 1000])
def test_stored_answers_come_step_by_step(
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: ImageData,
    teacher: networks.Normalized,
) -> None:
    monkeypatch.setattr(loop, "ROWS_AT_ONCE", at_once)
    views = Views(pad=2, step=2)
    table = table_for(tmp_path, teacher, data, views)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    drawn = views.draw(256, torch.Generator().manual_seed(1))
    table.fill(order, drawn)
    parts = [slice(start, start + 50) for start in range(0, 250, 50)]
    answers = list(loop._stored(table, order, drawn, parts))
    assert len(answers) == len(parts)
    for part, each in zip(parts, answers, strict=True):
        logits, features = table.rows(order[part], drawn[part])
        assert torch.equal(each.logits, logits)
        assert torch.equal(each.features, features)
        assert torch.equal(each.feature_map, logits)


def test_diverging_training_is_told(data: ImageData) -> None:
    spec = specification(recipe=Recipe(epochs=2, batch=64, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        trained(spec, data)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no compiler")
def test_compiled_networks_learn_the_same_and_share_their_code(data: ImageData) -> None:
    from torch._dynamo.utils import counters

    plain, compiled = [], []
    counters.clear()
    for seed in (0, 1, 2):
        spec = specification(recipe=Recipe(epochs=1, batch=64), seed=seed)
        plain.append(trained(spec, data)[1][0]["loss"])
        assert seed or not counters["stats"]
        network = networks.build(spec.model, 10, spec.initialisation_seed)
        compiled.append(loop.train(spec, network, data, None, compiled=True)[0]["loss"])
        if seed == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert 0 < graphs == counters["stats"]["unique_graphs"]


def test_compiling_is_asked_for_by_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDNOTES_COMPILE", raising=False)
    assert not loop.wants_compile()
    monkeypatch.setenv("KDNOTES_COMPILE", "yes")
    with pytest.raises(RequestError, match="must be 1"):
        loop.wants_compile()
    monkeypatch.setenv("KDNOTES_COMPILE", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RequestError, match="no 'no-such-compiler'"):
        loop.wants_compile()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_reaches_the_cpu_loss(data: ImageData) -> None:
    spec = specification(recipe=Recipe(epochs=3, batch=64))
    on_cpu = trained(spec, data)[1][-1]["loss"]
    network = networks.build(spec.model, 10, spec.initialisation_seed)
    on_cuda = loop.train(spec, network, data, None, device="cuda")[-1]["loss"]
    assert on_cuda == pytest.approx(on_cpu, rel=0.1)
