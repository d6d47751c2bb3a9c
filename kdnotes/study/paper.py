"""The paper's own settings, read from paper.yml: pairs of networks, weights, layers, schedules."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from kdnotes import methods
from kdnotes.data import FOLDER_PREFIX, Strict
from kdnotes.data.views import ResizedCrops, Views
from kdnotes.errors import RequestError
from kdnotes.study.presets import Preset
from kdnotes.training.specification import Recipe

NEEDS_FOLDER = (
    "the preset 'paper' needs a folder in ImageNet's layout (train/CLASS/..., val/CLASS/...): set "
    "dataset=imagefolder:PATH, or KDNOTES_IMAGENET=PATH for all chapters"
)


def _checked(ways: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for name, values in ways.items():
        methods.get(name).model_validate(values)
    return ways


# Settings of methods by their names.
Ways = Annotated[dict[str, dict[str, Any]], AfterValidator(_checked), Field(default_factory=dict)]


class Pair(Strict):
    """A teacher, a student, and how the one teaches the other; names are timm's.

    ``published``: the teacher's weights, empty: it is trained. ``for_cast``: a pair that this cast
    uses instead of the picked one, or of the one named ``in_place_of``.
    """

    teacher: str
    student: str
    published: str = ""
    antialiased_student: str = ""
    for_cast: str = ""
    in_place_of: str = ""
    methods: Ways


class Optimisation(Strict):
    """What a family of networks is trained with."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    schedule: Literal["step-30", "cosine"]


class ImageNet(Strict):
    """The experiments on ImageNet; sizes in pixels, counts of images or networks."""

    image_size: int = Field(ge=8)
    stored_size: int = Field(ge=8)
    crops: ResizedCrops
    preset: Preset
    published_classes: int = Field(ge=2)
    methods: Ways
    recipes: dict[str, Optimisation]
    pairs: dict[str, Pair]

    def pick(self, teacher: str, student: str) -> tuple[str, Pair]:
        """The first pair of these names, empty ones fitting all. Raises RequestError."""
        named = {name: pair for name, pair in self.pairs.items() if not pair.for_cast}
        for name, pair in named.items():
            if teacher in ("", name, pair.teacher) and student in ("", pair.student):
                return name, pair
        listed = "; ".join(
            f"{name} (teacher={pair.teacher}, student={pair.student})"
            for name, pair in named.items()
        )
        asked = {"teacher": teacher, "student": student}
        wanted = " and ".join(f"{role} {name!r}" for role, name in asked.items() if name)
        raise RequestError(
            f"the preset 'paper' has no pair with {wanted}; it has {listed}. For another one, set "
            "KDNOTES_PAPER to an edited copy of kdnotes/study/paper.yml"
        )

    def pair(self, teacher: str, student: str, cast: str) -> Pair:
        """The pair that a cast compares, where this teacher and student were picked."""
        name, picked = self.pick(teacher, student)
        fitting = (pair for pair in self.pairs.values() if pair.in_place_of in ("", name))
        return next((pair for pair in fitting if pair.for_cast == cast), picked)

    def recipe(self, model: str, whole: bool = False, flip: bool = False, **how: Any) -> Recipe:
        """How a network is trained: on crops, or on the ``whole`` image, mirrored if ``flip``."""
        family = next((name for name in self.recipes if model.startswith(name)), None)
        if family is None:
            raise RequestError(f"paper settings have no recipe for {model!r} (imagenet.recipes)")
        seen = {"size": self.image_size}
        if whole:
            seen |= {"smallest": 1, "largest": 1, "aspect": 1, "flip": flip}
        resized = self.crops.model_copy(update=seen)
        how |= self.recipes[family].model_dump()
        return Recipe(views=Views(pad=0), resized=resized, **how)

    def settings_of(self, method: str, pair: Pair) -> dict[str, Any]:
        """The paper's settings of a method for a pair; those it leaves open are not there."""
        return self.methods.get(method, {}) | pair.methods.get(method, {})


class MNIST(Strict):
    """The experiment on digits in three domains."""

    preset: Preset
    learning_rate: float = Field(gt=0)
    methods: Ways


class Paper(Strict):
    """All settings of the file."""

    imagenet: ImageNet
    mnist: MNIST


def settings() -> Paper:
    """The settings of KDNOTES_PAPER, or the package's. Raises RequestError for what is wrong."""
    given = os.environ.get("KDNOTES_PAPER", "")
    path = Path(given).expanduser() if given else Path(__file__).with_name("paper.yml")
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = f"cannot read {str(path)!r} (KDNOTES_PAPER): {error.strerror}"
        raise RequestError(why) from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path.name}: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise RequestError(f"{path.name}: {'; '.join(wrong)}") from error


@lru_cache(maxsize=4)
def _parsed(text: str) -> Paper:
    return Paper.model_validate(yaml.safe_load(text))


def preset(dataset: str, teacher: str, student: str) -> Preset:
    """The paper's sizes for a data set and a pair, or its first. Raises RequestError otherwise."""
    both = settings()
    if dataset in ("mnist", "digits"):
        network = both.mnist.preset.teacher
        if unlike := {teacher, student} - {"", network}:
            raise RequestError(
                f"the preset 'paper' has {network!r} for digits, not {unlike.pop()!r}; use the "
                "preset 'published' for other networks"
            )
        return both.mnist.preset
    if not dataset.startswith(FOLDER_PREFIX):
        raise RequestError(NEEDS_FOLDER)
    name, pair = both.imagenet.pick(teacher, student)
    chosen = {"teacher": name if teacher == name else pair.teacher, "student": pair.student}
    return both.imagenet.preset.model_copy(update=chosen)


def default_dataset() -> str:
    """The data set of the environment (KDNOTES_IMAGENET); raises RequestError if there is none."""
    if folder := os.environ.get("KDNOTES_IMAGENET"):
        return f"{FOLDER_PREFIX}{folder}"
    raise RequestError(NEEDS_FOLDER)
