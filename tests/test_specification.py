"""What determines a network: refused where it does not fit together, and planned without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from kdnotes.data import DataSpec
from kdnotes.methods.crd import CRD
from kdnotes.methods.hint import Hint
from kdnotes.methods.kl import KL
from kdnotes.training import pool
from kdnotes.training.specification import NetworkSpec, Planned, Recipe

COMMON = {
    "model": "vgg-small",
    "num_classes": 10,
    "data": DataSpec(name="scenes", split="train", count=64),
    "recipe": Recipe(epochs=2),
}
TEACHER = NetworkSpec(role="teacher", **COMMON)


def student(**changes: object) -> NetworkSpec:
    return NetworkSpec(
        **({"role": "student", "method": KL(), "teacher": TEACHER} | COMMON | changes)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher": None}, "a method and a teacher go together"),
        ({"method": None}, "a method and a teacher go together"),
        ({"labels": "noise"}, "labels"),
        ({"method": CRD(), "labels": "permuted"}, "need a method whose targets are soft labels"),
        ({"method": None, "teacher": None, "labels": "smoothed"}, "targets are soft labels"),
        ({"method": KL(gamma=0, weight=0)}, "nothing is left to train on"),
        ({"method": {"name": "at"}}, "unknown method 'at'"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        student(**changes)


@pytest.mark.parametrize(
    "spec",
    [TEACHER, student(), student(method=Hint(weight=3)), student(labels="permuted", seed=4)],
    ids=lambda spec: str(Planned("arm", spec)),
)
def test_specification_and_key_survive_json(spec: NetworkSpec) -> None:
    read = NetworkSpec.model_validate_json(spec.model_dump_json())
    assert read == spec
    assert read.key == spec.key


def test_what_has_to_be_trained_before() -> None:
    mixed = NetworkSpec(role="teacher", parts=(TEACHER, student()), **COMMON)
    assert TEACHER.trained_before == ()
    assert student().trained_before == (TEACHER,)
    assert student(teacher=mixed).trained_before == mixed.trained_before == mixed.parts


@pytest.mark.parametrize(
    ("method", "needs"),
    [(KL(), False), (Hint(), True), (Hint(student_layer="logits", teacher_layer="logits"), False)],
)
def test_a_layer_is_needed_unless_a_table_of_logits_holds_it(method: Hint, needs: bool) -> None:
    assert student(method=method).needs_layer == needs


def test_photos_cost_by_the_size_they_have(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / label / "0.png")
    asked = DataSpec(name=f"imagefolder:{tmp_path}", split="train", count=500)
    assert pool.pixels(student(data=asked)) == 64
    gone = asked.model_copy(update={"name": "imagefolder:gone"})
    assert pool.pixels(student(data=gone)) == 32


def test_few_images_of_each_group_cost_little() -> None:
    whole = student(data=DataSpec(name="imagefolder:faces", split="train", count=20_000))
    some = student(data=whole.data.model_copy(update={"options": {"counts": "a=600,b=50, c=350"}}))
    thousand = student(data=whole.data.model_copy(update={"count": 1000}))
    costs = [pool.cost(Planned("kl", each)) for each in (whole, some, thousand)]
    assert costs[1] == costs[2] < costs[0] / 3


def test_planning_does_not_import_torch() -> None:
    script = f"""
import sys
from kdnotes.training import cache, pool
from kdnotes.training.specification import NetworkSpec
spec = NetworkSpec.model_validate_json({student(method=Hint()).model_dump_json()!r})
wanted = cache.with_teachers([cache.Planned("hint", spec)])
assert len(cache.missing(wanted)) == 2 and not cache.is_complete(spec)
assert sum(pool.cost(item) for item in wanted) > 0
print(sorted({{"torch", "timm", "pandas", "lightning_fabric", "torchvision"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
