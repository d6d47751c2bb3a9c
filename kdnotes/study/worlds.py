"""Worlds: what the teachers and the students of a cast are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kdnotes.data import folders
from kdnotes.data.views import Views
from kdnotes.errors import RequestError
from kdnotes.study import paper, presets
from kdnotes.training.specification import Recipe

if TYPE_CHECKING:
    from kdnotes.study.resolving import Settings

# The drawn scenes. one-cue: a digit near the middle whose hue tells the class half of the time, so
# that colour is worth using. fixed: the same, but always in the middle and of one size, so that
# there is something to learn about crops and shifts. groups: so that three styles of drawing are
# learned to the end (elsewhere students alone were right in .74 of the cases after 12 epochs, and
# still gaining). two-cues: a digit and a marker, each of which
# tells the class. The marker's contrast is the smallest of .35, .4, .5 and .7 at which teacher and
# student both learned the marker alone on a development seed: a student with only the marker to go
# by was right in .99 of the cases, with only the digit in .68 (at .4: .32 and .70).
SCENES: dict[str, tuple[str, dict[str, Any]]] = {
    "one-cue": ("scenes with one cue", {"hue_agreement": 0.5, "placement": 0.3}),
    "fixed": (
        "scenes with one cue, always in the middle and of one size",
        {"hue_agreement": 0.5, "placement": 0.0, "digit_side": (0.57, 0.57)},
    ),
    "groups": (
        "scenes in three styles of drawing, always in the middle and of one size",
        {"hue_agreement": 0.5, "placement": 0.0, "digit_side": (0.57, 0.57)},
    ),
    "two-cues": ("scenes with two cues", {"marker": True, "marker_contrast": 0.5}),
}
DIGITS = "digits"


class Lengths(NamedTuple):
    """Epochs of the networks of a world."""

    teacher: int
    students: int


# Of 3, 6, 9, 12, 20 epochs for students and 4, 8, 16 for teachers, the smallest at which doubling
# adds less than two points to the accuracy of students without a teacher, and of every teacher, on
# development seeds (results/trained-out.csv, by `benchmarks/trained_out.py`); of two cues, which
# students alone know after 3, twice that, so that every way of teaching is learned as well.
LENGTHS: dict[str, Lengths] = {
    "one-cue": Lengths(8, 9),
    "fixed": Lengths(8, 6),
    "groups": Lengths(8, 12),
    "two-cues": Lengths(8, 6),
    DIGITS: Lengths(20, 20),
}
OTHERWISE = Lengths(12, 12)  # images of other data sets
ALL_SCENES = 8000  # what a set of scenes holds unless a number is asked for


@dataclass(frozen=True)
class World:
    """Images for a cast: a data set, how many, and how teachers and students are shown it.

    ``teacher`` and ``students``: the data set's options for the images of either. ``still``: images
    are shown as they are, neither shifted nor cropped; ``mirrored``: but mirrored to students.
    ``lengths``: of training, unless a number of epochs is asked for.
    ``recipe``: how all networks are trained here, None: as the preset says. ``methods``: settings
    of methods by their names, in place of their defaults.
    """

    name: str
    label: str
    dataset: str
    count: int | None
    teacher: Mapping[str, Any]
    students: Mapping[str, Any]
    views: Views
    still: bool = False
    mirrored: bool = False
    lengths: Lengths = OTHERWISE
    recipe: Recipe | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options(self, role: str) -> dict[str, Any]:
        """The data set's options for the images of teachers, or of students."""
        return dict(self.teacher if role == "teacher" else self.students)


def make(
    settings: Settings,
    name: str,
    teacher: Mapping[str, Any],
    students: Mapping[str, Any],
    both: Mapping[str, Any],
    mirrored: bool = False,
) -> World:
    """The world of a name: a kind of `SCENES` (of other data sets, their images), or digits.

    ``teacher``, ``students`` and ``both``: further options of the images that they see. Raises
    RequestError for an unknown name, and where the paper's preset has no such images.
    """
    if name == DIGITS:
        return _digits(settings, teacher, students)
    if name not in SCENES:
        raise RequestError(f"unknown world {name!r}; known: {', '.join((*SCENES, DIGITS))}")
    if settings.preset == presets.PAPER and not settings.is_imagenet:
        raise RequestError(paper.NEEDS_FOLDER)
    label, common = settings.dataset, dict(both)
    if settings.is_scenes:
        label, drawn = SCENES[name]
        common = drawn | common
    if settings.skip_damaged:
        common["skip_damaged"] = True
    if settings.is_imagenet:
        common["size"] = paper.settings().imagenet.stored_size
    elif domains := teacher.get("domains"):  # teachers and students see images of one size
        common["size"] = folders.image_size(settings.dataset, common | {"domains": domains})
    still = name == "fixed"
    return World(
        name=name if settings.is_scenes else settings.dataset,
        label=label,
        dataset=settings.dataset,
        count=settings.train_count,
        teacher=common | dict(teacher),
        students=common | dict(students),
        views=Views(pad=0) if still else settings.views,
        still=still,
        mirrored=mirrored,
        lengths=LENGTHS[name] if settings.is_scenes else OTHERWISE,
    )


def _digits(settings: Settings, teacher: Mapping[str, Any], students: Mapping[str, Any]) -> World:
    """Digits in three domains, trained on as the study did; its teachers see all domains.

    Unless the options of what ``teacher`` or ``students`` see say otherwise.
    """
    mnist = paper.settings().mnist
    glyphs = {"glyphs": "mnist"} if settings.dataset == "mnist" else {}
    every = settings.dataset == "digits" and settings.preset != "smoke"
    return World(
        name=DIGITS,
        label="digits, which the teacher sees in three domains and the students in one",
        dataset="digits",
        count=None if every else settings.train_count,  # a few more than a thousand in all
        teacher={"domain": "all"} | glyphs | dict(teacher),
        students={"domain": "orig"} | glyphs | dict(students),
        views=Views(pad=0),
        recipe=Recipe(
            epochs=settings.student_epochs or LENGTHS[DIGITS].students,
            batch=min(mnist.preset.batch, settings.batch),
            optimizer="adadelta",
            learning_rate=mnist.learning_rate,
            weight_decay=0,
            schedule="exponential" if settings.preset == presets.PAPER else "cosine",
            views=Views(pad=0),
        ),
        methods=mnist.methods,
    )
