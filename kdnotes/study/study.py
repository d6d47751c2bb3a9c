"""What a chapter asks for: its parameters, the worlds and plans that it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdnotes import methods as ways
from kdnotes import networks
from kdnotes.data import FOLDER_PREFIX, DataSpec, Strict, folders, source, with_fingerprint
from kdnotes.data.views import Views
from kdnotes.errors import RequestError
from kdnotes.paths import base_folder
from kdnotes.study import paper
from kdnotes.study.plans import Plan
from kdnotes.study.presets import PAPER, PRESETS, Preset, Range, range_of
from kdnotes.training import cache
from kdnotes.training.cache import Planned
from kdnotes.training.specification import Recipe

_IN_PLACE = {"hue_agreement": 0.5, "placement": 0.0, "digit_side": (0.57, 0.57)}
# The drawn scenes: what they are called, epochs of teachers and of students, options.
#
# one-cue: a digit near the middle whose hue tells the class half of the time, so that colour is
# worth using. fixed: the same, but always in the middle and of one size, so that there is something
# to learn about crops and shifts. groups: so that three styles of drawing are learned to the end
# (elsewhere students alone were right in .74 of the cases after 12 epochs, and still gaining).
# two-cues: a digit and a marker, each of which tells the class. The marker's contrast is the
# smallest of .35, .4, .5 and .7 at which teacher and student both learned the marker alone on a
# development seed: a student with only the marker to go by was right in .99 of the cases, with only
# the digit in .68 (at .4: .32 and .70).
#
# Of 3, 6, 9, 12, 20 epochs for students and 4, 8, 16 for teachers, the smallest at which doubling
# adds less than two points to the accuracy of students without a teacher, and of every teacher, on
# development seeds (results/trained-out.csv, by `benchmarks/trained_out.py`); of two cues, which
# students alone know after 3, twice that, so that every way of teaching is learned as well.
SCENES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "one-cue": ("scenes with one cue", 8, 9, {"hue_agreement": 0.5, "placement": 0.3}),
    "fixed": ("scenes with one cue, always in the middle and of one size", 8, 6, _IN_PLACE),
    "groups": (
        "scenes in three styles of drawing, always in the middle and of one size",
        8,
        12,
        _IN_PLACE,
    ),
    "two-cues": ("scenes with two cues", 8, 6, {"marker": True, "marker_contrast": 0.5}),
}
DIGITS = "digits"
ALL_SCENES = 8000  # what a set of scenes holds unless a number is asked for


class Settings(Preset):
    """A preset, with what was asked for in place of its values; ``device``: empty for any CUDA."""

    preset: str
    dataset: str
    methods: tuple[str, ...]
    device: str = ""
    skip_damaged: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the students."""
        return tuple(range(self.first_seed, self.first_seed + self.students))

    @property
    def control_seeds(self) -> tuple[int, ...]:
        """Those of them that secondary arms have."""
        return self.seeds[: self.controls]

    @property
    def is_imagenet(self) -> bool:
        """Whether pairs, recipes and weights are those of the paper's ImageNet experiments."""
        return self.preset == PAPER and self.is_folder

    @property
    def is_folder(self) -> bool:
        """Whether the images are those of a folder."""
        return self.dataset.startswith(FOLDER_PREFIX)

    @property
    def is_scenes(self) -> bool:
        """Whether the images are drawn here, with their factors known."""
        return self.dataset in ("scenes", "scenes-of-mnist")

    @property
    def images(self) -> str:
        """What the images are called in verdicts: a folder's own name, else the data set's."""
        name, _, path = self.dataset.partition(":")
        return Path(path).name if self.is_folder else name

    @property
    def views(self) -> Views:
        """The training views that suit the data: mirrored for natural images only."""
        mirrored = source(self.dataset).mirrored
        return Views(pad=4, step=1, flip=True) if mirrored else Views(pad=0)


def resolve(
    preset: str = "laptop",
    dataset: str | None = None,
    methods: str | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    **others: Any,
) -> Settings:
    """Settings from parameters, those that are None taken from the preset.

    ``methods``: names with commas between, None for the usual. ``others``: more fields of
    `Settings`. Raises RequestError naming what is wrong and what would be right.
    """
    if preset not in (*PRESETS, PAPER):
        raise RequestError(f"unknown preset {preset!r}; known: {', '.join((*PRESETS, PAPER))}")
    changes = {name: value for name, value in others.items() if value is not None}
    dataset = dataset or (paper.default_dataset() if preset == PAPER else "scenes")
    source(dataset)
    if dataset.startswith(FOLDER_PREFIX):
        _existing_folder(dataset.removeprefix(FOLDER_PREFIX), "dataset")
    elif changes.get("skip_damaged"):
        raise RequestError(
            f"skip_damaged is for folders of images (dataset=imagefolder:PATH), not {dataset!r}"
        )
    pair = {role: changes.pop(role, "") for role in ("teacher", "student")}
    if preset == PAPER:
        chosen = paper.preset(dataset, **pair)
    else:
        chosen = PRESETS[preset]
        changes |= {role: name for role, name in pair.items() if name}
        for name in filter(None, pair.values()):
            networks.check_name(name)
    resolve_device(changes.get("device", "cpu"))
    if seeds:
        changes["students"] = seeds
    range_of(changes.get("first_seed", chosen.first_seed), seeds or chosen.students)
    if epochs:
        changes |= {"teacher_epochs": epochs, "student_epochs": epochs, "independent_epochs": None}
    named = [ways.get(part.strip().lower()).name for part in methods.split(",")] if methods else []
    asked = tuple(dict.fromkeys(named)) or ways.by_default()
    where = {"preset": preset, "dataset": dataset, "methods": asked}
    return Settings.model_validate(chosen.model_dump() | changes | where)


def resolve_device(device: str) -> str:
    """The device to train on; empty means CUDA if there is one. Raises RequestError."""
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if device and not available:
        raise RequestError(
            f"device {device!r} was asked for, but there is no CUDA device here; use cpu"
        )
    return device or ("cuda" if available else "cpu")


def resolve_data_dir(text: str | None) -> Path | None:
    """A data folder as given, relative to KDNOTES_BASE if that is set. Raises RequestError."""
    return _existing_folder(text, "data_dir", " or leave it empty") if text else None


def _existing_folder(text: str, parameter: str, otherwise: str = "") -> Path:
    path = base_folder() / Path(text).expanduser()
    if not path.is_dir():
        message = f"no folder {text!r} ({parameter}); name an existing one{otherwise}"
        raise RequestError(message)
    return path


@dataclass(frozen=True)
class World:
    """Images for a cast: a data set, how many, and how teachers and students are shown it.

    ``teacher`` and ``students``: the data set's options for either. ``still``: neither shifted nor
    cropped; ``mirrored``: but mirrored to students. Epochs are the usual ones, unless a number is
    asked for. ``recipe``: of all networks, None: the preset's. ``methods``: settings by name.
    """

    label: str
    dataset: str
    count: int | None
    teacher: Mapping[str, Any]
    students: Mapping[str, Any]
    views: Views
    still: bool = False
    mirrored: bool = False
    teacher_epochs: int = 12
    student_epochs: int = 12
    recipe: Recipe | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options(self, role: str) -> dict[str, Any]:
        """The data set's options for the images of teachers, or of students."""
        return dict(self.teacher if role == "teacher" else self.students)


class Study:
    """A chapter's parameters, resolved, and the plans of casts that its cell declares.

    ``given``: the shared parameters, None meaning what chapter and preset say; ``own``: those of
    the chapter alone. While it is ``planning``, nothing is trained and no image is read.
    ``exchanged``: the second teacher takes the place of the first.
    """

    def __init__(
        self,
        chapter: str,
        given: Mapping[str, Any],
        own: Mapping[str, Any] | None = None,
        planning: bool = False,
        exchanged: bool = False,
    ) -> None:
        self.chapter = chapter
        self.data_dir = resolve_data_dir(given.get("data_dir"))
        self.plans: dict[str, Plan] = {}
        self.is_exchanged = exchanged
        self.other: Study | None = None  # the same with the teachers exchanged, once planned
        self.command = ""  # that makes this run
        self.asked: dict[str, Any] = {}  # all parameters, as the notebook has them
        self.started: float | None = None  # when measuring began, by time.perf_counter
        self._given = {name: value for name, value in given.items() if name != "data_dir"}
        self._own = dict(own or {})
        self._planning = planning
        self._preferred: dict[str, Any] = {}
        self._made: dict[str, Any] = {}

    def prefer(self, **parameters: Any) -> None:
        """Say what parameters are in this chapter where they were not given; before all else."""
        self._preferred = parameters
        for known in ("settings", "device"):  # of a cell that is run once more
            vars(self).pop(known, None)

    def prefer_digits(self) -> None:
        """Digits in three domains, as in the study, with half the width where they are few.

        Raises RequestError for other images.
        """
        dataset = self._given.get("dataset")
        if self._given.get("preset") == PAPER:
            self.prefer(dataset="mnist")
        else:
            network = "paper-mnist-half" if dataset in (None, "digits") else "paper-mnist"
            self.prefer(dataset="digits", teacher=network, student=network, tau=8.0)
        self.needs(
            self.settings.dataset in ("digits", "mnist"),
            "this chapter is about digits in three domains: dataset must be digits or mnist, "
            f"not {dataset!r}",
        )

    def needs(self, fulfilled: object, what: str) -> None:
        """Refuse the request with a message unless it fulfils a condition. Raises RequestError."""
        if not fulfilled:
            raise RequestError(what)

    def world(
        self,
        name: str = "one-cue",
        *,
        teacher: Mapping[str, Any] | None = None,
        students: Mapping[str, Any] | None = None,
        mirrored: bool = False,
        **both: Any,
    ) -> World:
        """Images to train on: a kind of `SCENES` (of other data sets, their images), or digits.

        ``teacher``, ``students`` and ``both``: options of the images that they see. ``mirrored``:
        where nothing moves, students see them mirrored at random. Raises RequestError for what is
        not there.
        """
        settings, teacher, students = self.settings, dict(teacher or {}), dict(students or {})
        if name == DIGITS:
            return self._digits(teacher, students)
        known = ", ".join((*SCENES, DIGITS))
        self.needs(name in SCENES, f"unknown world {name!r}; known: {known}")
        self.needs(settings.preset != PAPER or settings.is_imagenet, paper.NEEDS_FOLDER)
        label, teacher_epochs, student_epochs = settings.dataset, 12, 12
        if settings.is_scenes:
            label, teacher_epochs, student_epochs, drawn = SCENES[name]
            both = drawn | both
        if settings.skip_damaged:
            both["skip_damaged"] = True
        if settings.is_imagenet:
            both["size"] = paper.settings().imagenet.stored_size
        elif domains := teacher.get("domains"):  # teachers and students see images of one size
            both["size"] = folders.image_size(settings.dataset, both | {"domains": domains})
        still = name == "fixed"
        return World(
            label=label,
            dataset=settings.dataset,
            count=settings.train_count,
            teacher=both | teacher,
            students=both | students,
            views=Views(pad=0) if still else settings.views,
            still=still,
            mirrored=mirrored,
            teacher_epochs=teacher_epochs,
            student_epochs=student_epochs,
        )

    def _digits(self, teacher: dict[str, Any], students: dict[str, Any]) -> World:
        """Digits, trained on as the study did; unless said otherwise, teachers see all domains."""
        settings, mnist = self.settings, paper.settings().mnist
        glyphs = {"glyphs": "mnist"} if settings.dataset == "mnist" else {}
        every = settings.dataset == "digits" and settings.preset != "smoke"
        return World(
            label="digits, which the teacher sees in three domains and the students in one",
            dataset="digits",
            count=None if every else settings.train_count,  # a few more than a thousand in all
            teacher={"domain": "all"} | glyphs | teacher,
            students={"domain": "orig"} | glyphs | students,
            views=Views(pad=0),
            recipe=Recipe(
                epochs=settings.student_epochs or 20,  # found as those of the scenes
                batch=min(mnist.preset.batch, settings.batch),
                optimizer="adadelta",
                learning_rate=mnist.learning_rate,
                weight_decay=0,
                schedule="exponential" if settings.preset == PAPER else "cosine",
                views=Views(pad=0),
            ),
            methods=mnist.methods,
        )

    def plan(self, name: str, world: World, *, teacher: str = "", student: str = "") -> Plan:
        """A cast to be filled, in place of one of that name; by other architectures, if named."""
        if self.settings.is_folder:  # test images are asked for when all is trained
            for role in ("teacher", "student"):
                self._survey(world, role).split("test")
        self.plans[name] = Plan(self, name, world, teacher, student)
        return self.plans[name]

    def domains(self, first: str) -> tuple[str, ...]:
        """Domain folders of the data set, this one first. Raises RequestError where it is none."""
        dataset = self.settings.dataset
        self.needs(
            self.settings.is_folder,
            f"unseen is for a folder of images (dataset=imagefolder:PATH), not for {dataset!r}",
        )
        there = folders.domain_names(dataset)
        self.needs(
            first in there and len(there) > 1,
            f"unseen={first!r} must be one of two or more domain folders of {dataset!r}, each with "
            f"class folders; it has: {', '.join(there) or 'none'}",
        )
        return (first, *(name for name in there if name != first))

    @cached_property
    def settings(self) -> Settings:
        """Everything that the networks depend on. Raises RequestError for what is not known."""
        given = {name: value for name, value in self._given.items() if value is not None}
        return resolve(**(self._preferred | given))

    @cached_property
    def device(self) -> str:
        """Where networks are trained and run."""
        return resolve_device(self.settings.device)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the main students: those without a teacher, and those of each method."""
        return ("independent", *self.settings.methods)

    @property
    def networks(self) -> list[Planned]:
        """All networks of all plans, teachers included, each once."""
        plans = [*self.plans.values(), *(self.other.plans.values() if self.other else ())]
        return cache.with_teachers(item for plan in plans for item in plan.planned)

    def train(self) -> None:
        """Train all networks that are not there yet, with progress shown."""
        self.check_not_planning()
        cache.ensure(self.networks, device=self.device, data_dir=self.data_dir)

    def check_not_planning(self) -> None:
        """Raise RequestError where networks are only being declared."""
        declared = "a cell tagged 'cast' declares networks; it cannot train or load"
        self.needs(not self._planning, declared)

    @property
    def seed_range(self) -> Range:
        """What the seeds of the students are for, with the teacher and the drawings they have."""
        return range_of(self.settings.first_seed, self.settings.students)

    @property
    def teacher_seeds(self) -> tuple[int, int]:
        """Seeds of the first and of the second teacher."""
        one, two = self.seed_range.teacher, self.seed_range.teacher + 1
        return (two, one) if self.is_exchanged else (one, two)

    def data(self, world: World, role: str, count: int | None = None) -> DataSpec:
        """The images that teachers or students are trained on. Raises RequestError."""
        asked, classes = count or world.count, len(self.classes(world))
        self.needs(
            asked is None or asked >= classes,
            f"{asked} training images cannot show {classes} classes: train_count must be larger",
        )
        spec = DataSpec(
            name=world.dataset,
            split="train",
            count=asked,
            seed=self.seed_range.drawings,
            options=world.options(role),
        )
        return self._once(spec, lambda: with_fingerprint(spec, self.data_dir))

    def classes(self, world: World) -> tuple[str, ...]:
        """Names of the classes of a world, as its students know them. Raises RequestError."""
        return source(world.dataset).classes or self._survey(world, "student").classes

    def image_side(self, world: World) -> int:
        """Side in pixels of the images that networks are shown. Raises RequestError."""
        if self.settings.is_imagenet:
            return paper.settings().imagenet.image_size
        if self.settings.is_folder:
            return self._survey(world, "student").size
        return source(world.dataset).size

    def _survey(self, world: World, role: str) -> folders.Folder:
        options = folders.FolderOptions(**world.options(role))
        return self._once(options, lambda: folders.survey(world.dataset, options))

    def _once(self, asked: Strict, make: Callable[[], Any]) -> Any:
        """What was made for this; a large folder takes seconds to survey, which once is enough."""
        key = asked.model_dump_json()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def parameters(self) -> dict[str, Any]:
        """What goes into a chapter's results: settings, and what was changed of its own."""
        settings = self.settings
        values = settings.model_dump(exclude={"students", "controls"})
        values |= {"seeds": settings.students, "control_seeds": len(settings.control_seeds)}
        values |= {"methods": ",".join(settings.methods), "device": self.device}
        for name in ("independent_epochs", "skip_damaged"):
            if not values[name]:
                del values[name]
        return values | self._own
