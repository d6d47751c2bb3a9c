"""The presets: how large, how long and how often, from a test run to a cluster."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kdnotes import data as data_sets
from kdnotes.data.views import Views
from kdnotes.errors import RequestError
from kdnotes.paths import base_folder
from kdnotes.study import paper

METHODS = ("kl", "hint", "crd")
DEVICES = ("cpu", "cuda", "cuda:all")


class Preset(BaseModel):
    """Sizes and schedules that a preset stands for.

    Counts are images, None meaning all there are; batches and epochs are those of the recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str = "vgg-medium"
    student: str = "vgg-small"
    seeds: int = 5
    control_seeds: int = 3
    train_count: int | None = 4000
    test_count: int | None = 2000
    teacher_epochs: int = 4
    student_epochs: int = 3
    digit_epochs: int = 6  # of the study's MNIST networks, on a few digits
    # Half the batch and twice the rate: on development seeds, with 5000 images, students were right
    # in .81 of the cases after 3 epochs, and in .77 after 5 of batches of 128 at .1.
    batch: int = 64
    teacher_rate: float = 0.1
    student_rate: float = 0.2
    tau: float = 4.0
    independent_epochs: int | None = None  # of students without a teacher, where they differ


PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        seeds=2,
        control_seeds=1,
        train_count=600,
        test_count=240,
        teacher_epochs=2,
        student_epochs=2,
        digit_epochs=2,
    ),
    "laptop": Preset(),
    "full": Preset(
        teacher="vgg-large",
        train_count=None,
        test_count=5000,
        teacher_epochs=30,
        student_epochs=30,
        digit_epochs=14,
        batch=128,
        student_rate=0.1,
    ),
}


# Its sizes are in a file of their own (`paper`), and depend on the pair that is picked.
PAPER = "paper"


def names() -> tuple[str, ...]:
    """The names of all presets."""
    return (*PRESETS, PAPER)


class Settings(BaseModel):
    """Everything a chapter's networks depend on, resolved from its preset and its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    dataset: str
    teacher: str
    student: str
    methods: tuple[Literal["kl", "hint", "crd"], ...]
    tau: float
    seeds: tuple[int, ...]
    control_seeds: tuple[int, ...]
    device: str
    train_count: int | None
    test_count: int | None
    teacher_epochs: int
    student_epochs: int
    digit_epochs: int
    batch: int
    teacher_rate: float
    student_rate: float
    independent_epochs: int | None = None
    groups: str = ""  # of a folder of images: its table of groups
    unseen: str = ""  # the group that the teacher never sees, or the domain that only it sees

    @property
    def is_imagenet(self) -> bool:
        """Whether pairs, recipes and weights are those of the paper's ImageNet experiments."""
        return self.preset == PAPER and self.is_folder

    @property
    def is_folder(self) -> bool:
        """Whether the images are those of a folder."""
        return self.dataset.startswith(data_sets.FOLDER_PREFIX)

    @property
    def is_scenes(self) -> bool:
        """Whether the images are drawn here, with their factors known."""
        return self.dataset == "scenes"

    @property
    def views(self) -> Views:
        """The training views that suit the data: mirrored for natural images only."""
        if data_sets.source(self.dataset).mirrored:
            return Views(pad=4, step=1, flip=True)
        return Views(pad=0)


def resolve(
    preset: str = "laptop",
    dataset: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    methods: str | None = None,
    tau: float | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    device: str | None = None,
    train_count: int | None = None,
    epochs: int | None = None,
    groups: str | None = None,
    unseen: str | None = None,
) -> Settings:
    """Settings from parameters, empty ones taken from the preset.

    Raises RequestError naming what is wrong and what would be right.
    """
    if preset not in names():
        raise RequestError(f"unknown preset {preset!r}; known: {', '.join(names())}")
    from kdnotes import networks

    dataset = dataset or (paper.default_dataset() if preset == PAPER else "scenes")
    data_sets.check_name(dataset)
    for parameter, given in (("groups", groups), ("unseen", unseen)):
        if given and not dataset.startswith(data_sets.FOLDER_PREFIX):
            raise RequestError(
                f"{parameter} is for a folder of images (dataset=imagefolder:PATH), not for "
                f"{dataset!r}"
            )
    if preset == PAPER:
        chosen = _of_the_paper(dataset, teacher, student)
        teacher = student = None
    else:
        chosen = PRESETS[preset]
    for name in (teacher, student):
        if name:
            networks.check_name(name)
    temperature = chosen.tau if tau is None else tau
    if not temperature > 0:
        raise RequestError(f"tau must be above 0, not {temperature}")
    count = chosen.seeds if seeds is None else seeds
    if not 1 <= count <= 1000:
        raise RequestError(f"seeds must be from 1 to 1000, not {count}")
    if first_seed < 0:
        raise RequestError(f"first_seed must be 0 or more, not {first_seed}")
    for name, value in (("train_count", train_count), ("epochs", epochs)):
        if value is not None and value < 1:
            raise RequestError(f"{name} must be 1 or more, not {value}")
    numbers = tuple(range(first_seed, first_seed + count))
    return Settings(
        preset=preset,
        dataset=dataset,
        teacher=teacher or chosen.teacher,
        student=student or chosen.student,
        methods=parse_methods(methods),
        tau=temperature,
        seeds=numbers,
        control_seeds=numbers[: chosen.control_seeds],
        device=check_device(device),
        train_count=train_count or chosen.train_count,
        test_count=chosen.test_count,
        teacher_epochs=epochs or chosen.teacher_epochs,
        student_epochs=epochs or chosen.student_epochs,
        digit_epochs=epochs or chosen.digit_epochs,
        batch=chosen.batch,
        teacher_rate=chosen.teacher_rate,
        student_rate=chosen.student_rate,
        independent_epochs=None if epochs else chosen.independent_epochs,
        groups=groups or "",
        unseen=unseen or "",
    )


def _of_the_paper(dataset: str, teacher: str | None, student: str | None) -> Preset:
    """The paper's sizes for a data set and a pair, its first if none is named."""
    both = paper.settings()
    if dataset in ("mnist", "digits"):
        mnist = both.mnist
        for name in (teacher, student):
            if name not in (None, "", mnist.network):
                raise RequestError(
                    f"the preset 'paper' has {mnist.network!r} for digits, not {name!r}; use the "
                    "preset 'full' for other networks"
                )
        return Preset(
            teacher=mnist.network,
            student=mnist.network,
            seeds=mnist.students_per_method,
            control_seeds=mnist.control_students,
            train_count=None,
            test_count=None,
            digit_epochs=mnist.epochs,
            batch=mnist.batch,
            tau=mnist.tau,
        )
    if not dataset.startswith(data_sets.FOLDER_PREFIX):
        raise RequestError(paper.NEEDS_FOLDER)
    imagenet = both.imagenet
    name, pair = imagenet.pick(teacher or "", student or "")
    return Preset(
        teacher=name if teacher == name else pair.teacher,
        student=pair.student,
        seeds=imagenet.students_per_method,
        control_seeds=imagenet.control_students,
        train_count=None,
        test_count=imagenet.test_images,
        teacher_epochs=imagenet.teacher_epochs,
        student_epochs=imagenet.distilled_epochs,
        independent_epochs=imagenet.independent_epochs,
        batch=imagenet.batch,
        tau=imagenet.tau,
    )


def parse_methods(text: str | None) -> tuple[Any, ...]:
    """Method names from a comma-separated list; empty means all. Raises RequestError."""
    if not text:
        return METHODS
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise RequestError(f"unknown method {name!r}{hint}; known: {', '.join(METHODS)}")
    return names


def check_device(device: str | None) -> str:
    """The device to train on; empty means CUDA if there is one. Raises RequestError."""
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if not device:
        return "cuda" if available else "cpu"
    if device not in DEVICES:
        raise RequestError(f"unknown device {device!r}; known: {', '.join(DEVICES)}")
    if not available:
        raise RequestError(
            f"device {device!r} was asked for, but there is no CUDA device here; use cpu"
        )
    return device


def resolve_data_dir(text: str | None) -> Path | None:
    """A data folder as given, relative to KDNOTES_BASE if that is set. Raises RequestError."""
    if not text:
        return None
    path = base_folder() / Path(text).expanduser()
    if not path.is_dir():
        raise RequestError(f"no folder {text!r} (data_dir); name an existing one or leave it empty")
    return path
