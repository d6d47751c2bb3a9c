"""The paper's own settings, read from paper.yml: pairs of networks, weights, layers, schedules."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdnotes import methods
from kdnotes.data import FOLDER_PREFIX
from kdnotes.data.views import ColorJitter, ResizedCrops, Views
from kdnotes.errors import RequestError
from kdnotes.methods import Method
from kdnotes.training.specification import Recipe

NEEDS_FOLDER = (
    "the preset 'paper' needs a folder in ImageNet's layout (train/CLASS/..., val/CLASS/...): set "
    "dataset=imagefolder:PATH, or KDNOTES_IMAGENET=PATH for all chapters"
)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Strict):
    """Factors of the cross-entropy and of a method's own term."""

    gamma: float = Field(ge=0)
    weight: float = Field(gt=0)


class HintWeights(Weights):
    """Hint's factors, and the dotted paths of the layers it matches."""

    teacher: str
    student: str


class Pair(_Strict):
    """A teacher, a student, and how the one teaches the other; names are timm's.

    ``published``: the teacher's weights, empty meaning that it is trained. ``for_cast``: a pair
    that a chapter's cast uses instead of the picked one, or of the one named ``in_place_of``.
    """

    teacher: str
    student: str
    published: str = ""
    antialiased_student: str = ""
    for_cast: str = ""
    in_place_of: str = ""
    kl: Weights
    hint: HintWeights
    crd: Weights


class Optimisation(_Strict):
    """What a family of networks is trained with."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    schedule: Literal["step-30", "cosine"]


class ImageNet(_Strict):
    """The experiments on ImageNet; sizes in pixels, counts of images or networks."""

    image_size: int = Field(ge=8)
    stored_size: int = Field(ge=8)
    crops: ResizedCrops
    batch: int = Field(ge=1)
    independent_epochs: int = Field(ge=1)
    distilled_epochs: int = Field(ge=1)
    teacher_epochs: int = Field(ge=1)
    tau: float = Field(gt=0)
    crd_tau: float = Field(gt=0)
    crd_negatives: int = Field(ge=1)
    crd_momentum: float = Field(ge=0, lt=1)
    students_per_method: int = Field(ge=1)
    control_students: int = Field(ge=1)
    test_images: int = Field(ge=1)
    published_classes: int = Field(ge=2)
    recipes: dict[str, Optimisation]
    pairs: dict[str, Pair]

    def pick(self, teacher: str, student: str) -> tuple[str, Pair]:
        """The first pair of these names, empty ones fitting all, and what it is called.

        Raises RequestError naming the pairs there are.
        """
        named = {name: pair for name, pair in self.pairs.items() if not pair.for_cast}
        for name, pair in named.items():
            if teacher in ("", name, pair.teacher) and student in ("", pair.student):
                return name, pair
        listed = "; ".join(
            f"{name} (teacher={pair.teacher}, student={pair.student})"
            for name, pair in named.items()
        )
        wanted = " and ".join(
            f"{role} {name!r}"
            for role, name in (("teacher", teacher), ("student", student))
            if name
        )
        raise RequestError(
            f"the preset 'paper' has no pair with {wanted}; it has {listed}. For another one, set "
            "KDNOTES_PAPER to an edited copy of kdnotes/study/paper.yml"
        )

    def pair(self, teacher: str, student: str, cast: str) -> Pair:
        """The pair that a cast compares, where this teacher and student were picked."""
        name, picked = self.pick(teacher, student)
        for pair in self.pairs.values():
            if pair.for_cast == cast and pair.in_place_of in ("", name):
                return pair
        return picked

    def recipe(self, cast: str, role: str, model: str, epochs: int, batch: int) -> Recipe:
        """How a network of a cast is trained.

        Cropped at random except where crops, shifts or mirror images are what is asked about: there
        the whole image is seen, mirrored where mirroring is not the question.
        """
        family = next((name for name in self.recipes if model.startswith(name)), None)
        if family is None:
            raise RequestError(f"paper settings have no recipe for {model!r} (imagenet.recipes)")
        views = self.crops.model_copy(update={"size": self.image_size})
        mirrored_only = cast == "crops" and role == "student"
        if mirrored_only or cast in ("flips", "exact-flips"):
            flip = mirrored_only or (cast == "flips" and role == "teacher")
            views = ResizedCrops(smallest=1, largest=1, aspect=1, flip=flip, size=self.image_size)
        return Recipe(
            epochs=epochs,
            batch=batch,
            views=Views(pad=0),
            resized=views,
            jitter=ColorJitter() if cast == "jitter" and role == "teacher" else None,
            **self.recipes[family].model_dump(),
        )


class MNIST(_Strict):
    """The experiment on digits in three domains."""

    network: str
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    tau: float = Field(gt=0)
    crd_tau: float = Field(gt=0)
    crd_negatives: int = Field(ge=1)
    students_per_method: int = Field(ge=1)
    control_students: int = Field(ge=1)
    kl: Weights
    hint: HintWeights
    crd: Weights


class Paper(_Strict):
    """All settings of the file."""

    imagenet: ImageNet
    mnist: MNIST


def settings() -> Paper:
    """The settings of KDNOTES_PAPER, or else those that come with the package.

    Raises RequestError when the file is missing or something in it is wrong.
    """
    given = os.environ.get("KDNOTES_PAPER", "")
    path = Path(given).expanduser() if given else Path(__file__).with_name("paper.yml")
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"cannot read {str(path)!r} (KDNOTES_PAPER): {error.strerror}"
        ) from error
    except ValueError as error:  # pydantic's and yaml's, in one line
        raise RequestError(f"{path.name}: {_reason(error)}") from error


def default_dataset() -> str:
    """The data set of the environment (KDNOTES_IMAGENET); raises RequestError if there is none."""
    folder = os.environ.get("KDNOTES_IMAGENET", "")
    if not folder:
        raise RequestError(NEEDS_FOLDER)
    return f"{FOLDER_PREFIX}{folder}"


@lru_cache(maxsize=4)
def _parsed(text: str) -> Paper:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return Paper.model_validate(content)


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())


def method(
    name: str,
    of: Pair | MNIST,
    tau: float,
    crd: ImageNet | MNIST,
    **changes: Any,
) -> Method:
    """How a student of a pair is taught; ``changes`` replace settings."""
    weights = {"kl": of.kl, "hint": of.hint, "crd": of.crd}[name]
    values: dict[str, Any] = {"gamma": weights.gamma, "weight": weights.weight}
    if name == "kl":
        values["tau"] = tau
    elif name == "hint":
        values |= {"student_layer": of.hint.student, "teacher_layer": of.hint.teacher}
    else:
        values |= {"contrast_temperature": crd.crd_tau, "negatives": crd.crd_negatives}
        if isinstance(crd, ImageNet):
            values["momentum"] = crd.crd_momentum
    return methods.get(name)(**(values | changes))
