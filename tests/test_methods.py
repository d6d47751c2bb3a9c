"""Methods declare themselves: found in their folder and at entry points, read without torch."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import markers
from pydantic import ValidationError

from kdnotes import methods
from kdnotes.data import DataSpec
from kdnotes.errors import RequestError
from kdnotes.methods import Method
from kdnotes.methods.crd import CRD
from kdnotes.methods.hint import Hint
from kdnotes.methods.kl import KL
from kdnotes.training.specification import NetworkSpec, Recipe

OTHER = '''
from kdnotes.methods import Method


class Squared(Method):
    """Squared distance of the logits."""

    name = "squared"
    label = "Squared logits"
    short = "Squared"
    colour = "#123456"
    marker = "h"
    source = "a test"

    def term(self, batch):
        return ((batch.student.logits - batch.teacher.logits.detach()) ** 2).mean()
'''
KEYS = """
from kdnotes import methods
from kdnotes.data import DataSpec
from kdnotes.training.specification import NetworkSpec, Recipe
common = {"model": "vgg-small", "num_classes": 10, "recipe": Recipe(epochs=1),
          "data": DataSpec(name="scenes", split="train", count=64)}
teacher = NetworkSpec(role="teacher", **common)
print(teacher.key)
for name in ("kl", "squared"):
    method = methods.from_settings({"name": name})
    print(NetworkSpec(role="student", method=method, teacher=teacher, **common).key)
"""
TRAIN = """
from kdnotes import methods
from kdnotes.training import cache
if __name__ == "__main__":
    spec = NetworkSpec(role="student", method=method, teacher=teacher, **common)
    assert cache.ensure([cache.Planned("squared", spec)], jobs=2) == 2
    print(sorted(cache.history(spec)[0]))
"""


def python(script: Path | str, *paths: Path) -> str:
    """What a fresh process prints, with folders beside those it finds modules in."""
    search = os.pathsep.join([*map(str, paths), str(Path(methods.__file__).parents[2])])
    command = [sys.executable, *(["-c", script] if isinstance(script, str) else [str(script)])]
    environment = os.environ | {"PYTHONPATH": search}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_declares_what_figures_and_tables_need() -> None:
    known = methods.known()
    assert list(known)[:3] == ["kl", "hint", "crd"] == list(methods.by_default())
    assert {"sp", "dkd"} <= known.keys()
    for name, method in known.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert methods.get(name) is method
        assert re.fullmatch(r"#[0-9A-F]{6}", method.colour)
        assert method.marker in markers.MarkerStyle.markers
        assert all((method.label, method.short, method.source, method.__doc__))
        assert method.short in method().describe("more")
        assert "more" in method().describe("more")
        assert ("tau" in method.model_fields) or not method.from_logits
    looks = [(method.colour, method.marker, method.short) for method in known.values()]
    assert all(len(set(column)) == len(known) for column in zip(*looks, strict=True))


def test_declarations_are_read_without_torch() -> None:
    printed = python(
        "import sys\nfrom kdnotes import methods\n"
        "print(methods.get('crd')().describe(), 'torch' in sys.modules)"
    )
    assert printed == "1 labels + 0.8 CRD (512 negatives) False\n"


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"unknown method 'hnt' \(did you mean 'hint'\?\); kno"):
        methods.get("hnt")
    with pytest.raises(RequestError, match="unknown method 'at'; known: kl, hint, crd"):
        methods.from_settings({"name": "at"})


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "kl", "tau": 0.0},
        {"name": "kl", "tau": math.inf},
        {"name": "kl", "weight": -0.1},
        {"name": "kl", "gamma": -1.0},
        {"name": "kl", "temperature": 4.0},
        {"name": "crd", "tau": 4.0},
        {"name": "crd", "negatives": 0},
        {"name": "hint", "student_layer": ""},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=list(settings)[1]):
        methods.from_settings(settings)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        KL().tau = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "method",
    [KL(tau=8), Hint(student_layer="a", teacher_layer="1/3"), CRD(momentum=0.9, normalizer=2)],
    ids=lambda method: method.name,
)
def test_settings_survive_json(method: Method) -> None:
    assert methods.from_settings(method.model_dump(mode="json")) == method
    assert method.model_dump()["name"] == method.name


def test_a_class_of_a_notebook_is_refused_with_the_reason() -> None:
    class Mine(KL):
        name = "mine"

    common = {"model": "vgg-small", "num_classes": 10, "recipe": Recipe()}
    data = DataSpec(name="scenes", split="train")
    teacher = NetworkSpec(role="teacher", data=data, **common)
    spec = NetworkSpec(role="student", data=data, method=Mine(), teacher=teacher, **common)
    with pytest.raises(RequestError, match=r"'mine' .* see no notebook.* kdnotes/methods, or into"):
        _ = spec.key


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """An installed package with one method, as pip would leave it."""
    (tmp_path / "other_package.py").write_text(OTHER)
    about = tmp_path / "other_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[kdnotes.methods]\nsquared = other_package:Squared\n")
    return tmp_path


def test_another_package_adds_a_method_that_trains(distribution: Path) -> None:
    listed = python("from kdnotes import methods\nprint(*methods.known())", distribution)
    assert listed.split()[:3] == ["kl", "hint", "crd"]
    assert "squared" in listed.split()
    script = distribution / "train.py"
    script.write_text(KEYS + TRAIN)
    assert (
        python(script, distribution).splitlines()[-1]
        == "['ce', 'loss', 'seconds', 'squared', 'start']"
    )


def test_editing_a_method_renames_its_students_only(distribution: Path) -> None:
    before = python(KEYS, distribution).split()
    assert python(KEYS, distribution).split() == before
    (distribution / "other_package.py").write_text(OTHER + "# edited\n")
    after = python(KEYS, distribution).split()
    assert len(set(before)) == 3
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("other_package:__name__", "other_package:__name__.* is no class of a method"),
        ("other_package:KL", "two methods are called 'kl': in kdnotes.methods.kl and other_packag"),
    ],
)
def test_unusable_entry_points_are_refused(entry: str, reason: str, distribution: Path) -> None:
    (distribution / "other_package.py").write_text(
        OTHER.replace("Squared(", "KL(").replace('"squared"', '"kl"')
    )
    about = distribution / "other_package-1.0.dist-info"
    (about / "entry_points.txt").write_text(f"[kdnotes.methods]\nsquared = {entry}\n")
    script = (
        "from kdnotes import errors, methods\n"
        "try:\n    methods.known()\nexcept errors.RequestError as error:\n    print(error)"
    )
    assert re.search(reason, python(script, distribution))
