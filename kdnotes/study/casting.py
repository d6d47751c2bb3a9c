"""Which networks a cast is made of: the worlds they are trained in, their arms and objectives."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from kdnotes.data import DataSpec, folders, with_fingerprint
from kdnotes.data.views import ColorJitter, Crops, Views
from kdnotes.errors import RequestError
from kdnotes.methods import Method
from kdnotes.methods.crd import CRD
from kdnotes.methods.hint import Hint
from kdnotes.methods.kl import KL
from kdnotes.networks import TRAINED_HERE
from kdnotes.study import paper, presets
from kdnotes.study.presets import Settings
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec, Recipe

# The worlds in which the drawn scenes come. ONE_CUE: one digit near the middle whose hue tells the
# class half of the time, so that colour is worth using. FIXED: the same, but always in the middle
# and of one size, so that there is something to learn about crops and shifts.
ONE_CUE = {"hue_agreement": 0.5, "placement": 0.3}
FIXED = {"hue_agreement": 0.5, "placement": 0.0, "digit_side": (0.57, 0.57)}
# Two cues, a digit and a marker: a teacher's marker or digit is random, the students' marker tells
# the class as well as the digit does. The marker's contrast is the smallest of .35, .4, .5 and .7
# at which teacher and student both learned the marker alone on a development seed: a student with
# only the marker to go by was right in .99 of the cases, with only the digit in .68 (at .4: .32 and
# .70).
TWO_CUES = {"marker": True, "marker_contrast": 0.5}
READS_DIGIT = TWO_CUES | {"marker_agreement": 0.0}
READS_MARKER = TWO_CUES | {"shape_agreement": 0.0}
# Three drawing styles (`sources.scenes.STYLES`), one of which the teacher of the bias chapter never
# saw. On a development seed a larger teacher missed outlined digits most (39 points, bright ones
# 16) among those at which it stayed above chance; without dark ones it fell below. The laptop's own
# teacher misses outlined ones by 36 points.
UNSEEN_GROUP = 2
ALL_GROUPS = (1.0, 1.0, 1.0, 0.0)
# What the students of a fair teacher see: few dark digits. On a development seed that gave students
# alone a deficit of 38 points; with few outlined digits there was hardly any.
RARE_GROUP = 1
FEW_OF_GROUP = (1.0, 0.1, 1.0, 0.0)
SEEN_GROUPS = tuple(0.0 if group == UNSEEN_GROUP else w for group, w in enumerate(ALL_GROUPS))

FOREIGN_SEED = 9_000  # a seed that no student of a cast ever has
SECOND_TEACHER_SEED = 1
HINT_DEPTHS = {"hint-1": "1/3", "hint-2": "2/3", "hint-3": "3/3", "hint-logits": "logits"}
MIXTURES = (0.25, 0.5, 0.75)  # share of the teacher that reads the marker
FEW_IMAGES = 4  # the dose chapter's small training set is this many times smaller
FEW_EPOCHS = 1
ALL_SCENES = 8000  # what a set of scenes holds unless a number is asked for

# Weights of the objectives, fixed before the published seeds were run. KL's are RepDistiller's.
# Hint's is that of early trials. CRD's is the largest of .05, .1, .2, .8 that did not cost a point
# of accuracy on one development seed of the two-cue scenes.
KL_GAMMA, KL_WEIGHT = 0.1, 0.9
HINT_WEIGHT = 10.0
# Logits are not normalised as maps are: at 10 their squared differences make training diverge; .3
# is the largest of .03, .1, .3 tried.
HINT_LOGITS_WEIGHT = 0.3
CRD_WEIGHT = 0.2
CRD_NEGATIVES = 512
# The study's own weights for its MNIST experiment (section 1.2 of its appendix).
DOMAINS_HINT_WEIGHT = 2.0
DOMAINS_CRD: dict[str, Any] = {"weight": 0.1, "contrast_temperature": 0.1, "negatives": 32}
# Networks that learn more slowly, or are smaller, get so many times the epochs.
SLOW_TEACHERS = {"shifts": 2, "vit-cnn": 3, "same": 3}
SLOW_STUDENTS = {"vgg-small-blur": 2}
# Students that stop early, so as to be no better than the independent ones: share of the epochs.
MATCHED = {"kl": 0.5, "hint": 0.5}

_CUES_CASTS = (
    "cues",
    "marker",
    "weights",
    "mixture",
    "cnn-cnn",
    "vit-cnn",
    "cnn-vit",
    "same",
    "dose",
)
_FIXED_CASTS = ("crops", "shifts", "flips", "exact-flips")
_GROUPS_CASTS = ("groups", "fair", "temperature")


Labels = Literal["teacher", "smoothed", "permuted"]
_LABELS: dict[str, Labels] = {"control-smoothed": "smoothed", "control-permuted": "permuted"}


@dataclass(frozen=True)
class Teaching:
    """How a student is taught: by which method (None: labels alone), on whose soft labels."""

    method: Method | None
    labels: Labels = "teacher"


@dataclass(frozen=True)
class Casting:
    """The networks that a chapter's casts ask for, from its settings."""

    chapter: str
    settings: Settings
    data_dir: Path | None
    num_classes: int = 10

    def data(self, cast: str, role: str, count: int | None = None, **options: Any) -> DataSpec:
        """What the students or the teacher of a cast are trained on; ``options`` change it."""
        settings = self.settings
        name = settings.dataset
        chosen: dict[str, Any] = {}
        count = count or settings.train_count
        if cast == "domains":
            name = "digits"
            chosen = {"domain": "all" if role == "teacher" else "orig"}
            if settings.dataset == "mnist":
                chosen["glyphs"] = "mnist"
            elif settings.preset != "smoke":
                count = None  # all there are: a few more than a thousand
        elif settings.is_scenes:
            chosen = self._scenes(cast, role)
        elif settings.is_folder:
            chosen = self._folder(cast, role)
        spec = DataSpec(
            name=name,
            split="train",
            count=count,
            seed=self.rendering_seed,
            options=chosen | options,
        )
        if not settings.is_folder:
            return with_fingerprint(spec, self.data_dir)
        # A large folder takes seconds to survey: once is enough for all networks of a chapter.
        text = spec.model_dump_json()
        if text not in self._surveyed:
            self._surveyed[text] = with_fingerprint(spec, self.data_dir)
        return self._surveyed[text]

    @cached_property
    def _surveyed(self) -> dict[str, DataSpec]:
        return {}

    def _folder(self, cast: str, role: str) -> dict[str, Any]:
        """How a folder of images is read: its groups, or its domains."""
        settings = self.settings
        chosen: dict[str, Any] = {}
        if settings.is_imagenet:
            chosen["size"] = paper.settings().imagenet.stored_size
        if settings.groups:
            chosen["groups"] = settings.groups
            if settings.unseen and role == "teacher":
                chosen["leave_out"] = (settings.unseen,)
        if cast == "folder-domains":
            # Of all domains: teacher and students have to see images of one size.
            chosen = {"size": self._domain_size} | chosen
            chosen["domains"] = self.domains if role == "teacher" else self.domains[1:]
        return chosen

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """Domain folders of the data set, the one that only the teacher sees first; mostly none.

        Raises RequestError when that one is not there, or no other.
        """
        settings = self.settings
        if self.chapter != "unseen-domains" or not settings.unseen:
            return ()
        there = folders.domain_names(settings.dataset)
        others = tuple(name for name in there if name != settings.unseen)
        if settings.unseen not in there or not others:
            raise RequestError(
                f"unseen={settings.unseen!r} must be one of two or more domain folders of "
                f"{settings.dataset!r}, each with class folders; it has: "
                f"{', '.join(there) or 'none'}"
            )
        return (settings.unseen, *others)

    @cached_property
    def _domain_size(self) -> int:
        return folders.image_size(self.settings.dataset, {"domains": self.domains})

    @property
    def test_options(self) -> dict[str, Any]:
        """How test images are read otherwise than training images."""
        if self.settings.is_imagenet:
            return {"size": paper.settings().imagenet.image_size}
        return {}

    def pair(self, cast: str) -> paper.Pair | None:
        """The paper's pair that a cast compares, if its ImageNet settings were asked for."""
        if not self.settings.is_imagenet:
            return None
        return paper.settings().imagenet.pair(self.settings.teacher, self.settings.student, cast)

    def _scenes(self, cast: str, role: str) -> dict[str, Any]:
        if cast in _CUES_CASTS:
            if role == "student":
                return TWO_CUES
            return READS_MARKER if cast == "marker" else READS_DIGIT
        if cast in _FIXED_CASTS:
            return FIXED
        if cast in _GROUPS_CASTS:
            seen: tuple[float, ...] = ALL_GROUPS
            if cast == "fair" and role == "student":
                seen = FEW_OF_GROUP
            elif cast != "fair" and role == "teacher":
                seen = SEEN_GROUPS
            return ONE_CUE | {"group_weights": seen}
        return ONE_CUE

    @property
    def rendering_seed(self) -> int:
        """Development seeds see other renderings than the published ones."""
        return 1 if self.settings.seeds[0] >= 100 else 0

    @property
    def first_teacher(self) -> int:
        """Seed of the teacher; development seeds have another one."""
        return 100 if self.settings.seeds[0] >= 100 else 0

    def views(self, cast: str) -> Views:
        """Training views; none where shifts and mirror images are what is asked about."""
        return Views(pad=0) if cast in _FIXED_CASTS else self.settings.views

    def recipe(self, cast: str, role: str, model: str, epochs: int | None = None) -> Recipe:
        """How the networks of a cast are trained."""
        settings = self.settings
        if cast == "domains":  # as the study's MNIST networks
            own = settings.preset == presets.PAPER
            return Recipe(
                epochs=epochs or settings.digit_epochs,
                batch=min(64, settings.batch),
                optimizer="adadelta",
                learning_rate=paper.settings().mnist.learning_rate if own else 1.0,
                weight_decay=0,
                schedule="exponential",
                views=Views(pad=0),
            )
        taught = role == "student"
        epochs = epochs or (settings.student_epochs if taught else settings.teacher_epochs)
        if settings.is_imagenet:
            imagenet = paper.settings().imagenet
            return imagenet.recipe(cast, role, model, epochs, settings.batch)
        slow = SLOW_STUDENTS.get(model, 1) if taught else SLOW_TEACHERS.get(cast, 1)
        recipe = Recipe(
            epochs=slow * epochs,
            batch=settings.batch,
            learning_rate=settings.student_rate if taught else settings.teacher_rate,
            views=self.views(cast),
        )
        if model.startswith("vit"):
            return recipe.model_copy(
                update={"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05}
            )
        if role == "teacher" and cast == "jitter":
            return recipe.model_copy(update={"jitter": ColorJitter()})
        if role == "teacher" and cast == "crops":
            return recipe.model_copy(update={"crops": Crops()})
        if role == "teacher" and cast == "flips":
            return recipe.model_copy(update={"views": Views(pad=0, flip=True)})
        return recipe

    def teacher_model(self, cast: str) -> str:
        """The teacher's architecture in a cast."""
        if pair := self.pair(cast):
            return pair.teacher
        small, large = self.settings.student, self.settings.teacher
        return {"shifts": "vgg-large-blur", "vit-cnn": "vit-tiny", "same": small}.get(cast, large)

    def student_model(self, cast: str) -> str:
        """The students' architecture in a cast."""
        if pair := self.pair(cast):
            return pair.student
        return "vit-tiny" if cast == "cnn-vit" else self.settings.student

    def teacher(self, cast: str, number: int = 0) -> NetworkSpec:
        """The first or second teacher of a cast."""
        # Casts that differ in their students alone have one teacher.
        cast = {
            "weights": "cues",
            "dose": "cues",
            "cnn-cnn": "cues",
            "cnn-vit": "cues",
            "temperature": "groups",
        }.get(cast, cast)
        model = self.teacher_model(cast)
        return NetworkSpec(
            role="teacher",
            model=model,
            num_classes=self.num_classes,
            data=self.data(cast, "teacher"),
            recipe=self.recipe(cast, "teacher", model),
            seed=self.first_teacher + number * SECOND_TEACHER_SEED,
            pretrained=self._published(cast, number),
            large_images=self.settings.is_imagenet,
        )

    def _published(self, cast: str, number: int) -> str:
        """Name of a teacher's published weights, empty where it is trained here.

        There is one published network of a kind: a second teacher is trained, and so is one that
        has to see other views than usual.
        """
        pair = self.pair(cast)
        if pair is None or number or cast not in ("plain", "crops", "shifts"):
            return ""
        fits = self.num_classes == paper.settings().imagenet.published_classes
        return pair.published if fits and os.environ.get("KDNOTES_WEIGHTS") != TRAINED_HERE else ""

    def plain_fixed_teacher(self) -> NetworkSpec:
        """The teacher of the fixed world that saw neither crops nor mirror images."""
        return self.teacher("crops").model_copy(
            update={
                "recipe": self.recipe("exact-flips", "teacher", self.teacher_model("crops")),
                "pretrained": "",
            }
        )

    def mixture(self, share: float) -> NetworkSpec:
        """The mean of the digit's and the marker's teachers, with the marker's share."""
        return self._composite("mixture", ("cues", "marker"), shares=(1 - share, share))

    def _composite(
        self, cast: str, parts: tuple[str, ...] = (), shares: tuple[float, ...] = ()
    ) -> NetworkSpec:
        made = tuple(self.teacher(name) for name in parts) or (self.plain_fixed_teacher(),)
        return NetworkSpec(
            role="teacher",
            model="composite",
            num_classes=self.num_classes,
            data=self.data(cast, "student"),
            recipe=Recipe(epochs=1),
            parts=made,
            shares=shares,
            mirrored=not parts,
        )

    def exactly_mirrored_teacher(self) -> NetworkSpec:
        """The plain teacher of the fixed world, averaged over each image and its mirror image."""
        return self._composite("exact-flips")

    def student(
        self,
        cast: str,
        seed: int,
        teaching: Teaching,
        taught_by: NetworkSpec | None,
        *,
        model: str | None = None,
        epochs: int | None = None,
        count: int | None = None,
        start_seed: int | None = None,
    ) -> NetworkSpec:
        """A student of a cast; all students of one seed share first weights and data order."""
        model = model or self.student_model(cast)
        if taught_by is None:
            epochs = epochs or self.settings.independent_epochs
        return NetworkSpec(
            role="student",
            model=model,
            num_classes=self.num_classes,
            data=self.data(cast, "student", count),
            recipe=self.recipe(cast, "student", model, epochs),
            method=teaching.method,
            labels=teaching.labels,
            seed=seed,
            teacher=taught_by,
            start_seed=start_seed,
            large_images=self.settings.is_imagenet,
        )

    def teaching(self, arm: str, cast: str = "") -> Teaching:
        """How an arm is taught, from its name."""
        settings = self.settings
        method, _, rest = arm.partition("-")
        if method in ("independent", "foreign"):
            return Teaching(None)
        labels = _LABELS.get(arm, "teacher")
        if settings.preset == presets.PAPER:
            return self._paper_teaching(arm, cast, labels)
        if method in ("kl", "control", "mixture"):
            weight = float(rest[7:]) if rest.startswith("weight-") else KL_WEIGHT
            tau = float(rest[4:]) if rest.startswith("tau-") else settings.tau
            gamma = KL_GAMMA if weight == KL_WEIGHT else 1 - weight
            return Teaching(KL(gamma=gamma, weight=weight, tau=tau), labels)
        if method == "crd":
            if cast == "domains":
                return Teaching(CRD(**DOMAINS_CRD))
            return Teaching(CRD(weight=CRD_WEIGHT, negatives=CRD_NEGATIVES))
        weight = HINT_LOGITS_WEIGHT if arm == "hint-logits" else HINT_WEIGHT
        depth = HINT_DEPTHS.get(arm, "2/3")
        if cast == "domains":
            weight, depth = DOMAINS_HINT_WEIGHT, "3/3"  # the second convolution, of two
        return Teaching(Hint(weight=weight, student_layer=depth, teacher_layer=depth))

    def _paper_teaching(self, arm: str, cast: str, labels: Labels) -> Teaching:
        both = paper.settings()
        method = "kl" if arm.startswith("control-") else arm.partition("-")[0]
        changes: dict[str, Any] = {}
        pair = self.pair(cast)
        if pair is None:
            made = paper.method(method, both.mnist, self.settings.tau, both.mnist)
            return Teaching(made, labels)
        if arm in HINT_DEPTHS:
            changes = {"student_layer": HINT_DEPTHS[arm], "teacher_layer": HINT_DEPTHS[arm]}
        if arm == "hint-logits":
            changes["weight"] = HINT_LOGITS_WEIGHT
        made = paper.method(method, pair, self.settings.tau, both.imagenet, **changes)
        return Teaching(made, labels)

    def blurred_student(self, cast: str) -> str:
        """The students' architecture with blur in front of its strides; empty if there is none."""
        pair = self.pair(cast)
        return pair.antialiased_student if pair else "vgg-small-blur"

    @lru_cache(maxsize=32)  # noqa: B019 - as long-lived as its chapter, and small
    def plan(self, cast: str) -> list[Planned]:
        """All networks of one cast by arm, teachers first."""
        plan = _Plan(self, cast)
        _PLANS.get(cast, _plain)(plan)
        return plan.planned

    @cached_property
    def matched_epochs(self) -> dict[str, int]:
        """Epochs of the students that stop early."""
        epochs = self.settings.student_epochs
        return {method: max(1, round(share * epochs)) for method, share in MATCHED.items()}


class _Plan:
    """A list of planned networks that grows arm by arm."""

    def __init__(self, casting: Casting, cast: str) -> None:
        self.casting, self.cast = casting, cast
        self.settings = casting.settings
        self.seeds, self.few = self.settings.seeds, self.settings.control_seeds
        self.methods = self.settings.methods
        self.planned: list[Planned] = []

    def teachers(self, second: bool = True) -> tuple[NetworkSpec, NetworkSpec]:
        """Add the teacher, and the second one."""
        both = self.casting.teacher(self.cast), self.casting.teacher(self.cast, 1)
        self.planned.append(Planned("teacher", both[0]))
        if second:
            self.planned.append(Planned("second-teacher", both[1]))
        return both

    def other(self, arm: str, spec: NetworkSpec) -> NetworkSpec:
        """Add a network of another kind, a further teacher for example."""
        self.planned.append(Planned(arm, spec))
        return spec

    def add(
        self, arm: str, taught_by: NetworkSpec | None, few: bool = False, **changes: Any
    ) -> None:
        """Add an arm with all seeds, or with those of the controls."""
        teaching = self.casting.teaching(arm, self.cast)
        for seed in self.few if few else self.seeds:
            spec = self.casting.student(self.cast, seed, teaching, taught_by, **changes)
            self.planned.append(Planned(arm, spec))

    def taught(self, teacher: NetworkSpec) -> None:
        """Add the independent students and those of every method."""
        self.add("independent", None)
        for method in self.methods:
            self.add(method, teacher)

    def controls(self, teacher: NetworkSpec, second: NetworkSpec | None, every: bool) -> None:
        """Add the controls; ``every``: a claim rests on the smoothed labels, so all seeds."""
        if second is not None:
            self.add("control-second-teacher", second, few=True)
        self.add("control-smoothed", teacher, few=not every)
        self.add("control-permuted", teacher, few=True)


def _plain(plan: _Plan) -> None:
    teacher, second = plan.teachers()
    plan.taught(teacher)
    plan.controls(teacher, second, every=False)
    casting = plan.casting
    if casting.chapter == "adversarial":
        seed = FOREIGN_SEED + casting.first_teacher
        plan.other("foreign", casting.student(plan.cast, seed, Teaching(None), None))
    if casting.chapter == "no-accuracy-gain" and plan.cast == "plain":
        for method in plan.methods:
            if method in MATCHED:
                plan.add(f"{method}-matched", teacher, epochs=casting.matched_epochs[method])


def _jitter(plan: _Plan) -> None:
    teacher, second = plan.teachers()
    plan.taught(teacher)
    plain = plan.other("plain-teacher", plan.casting.teacher("plain"))
    for method in plan.methods:
        plan.add(f"{method}-plain", plain)
    if "hint" in plan.methods and plan.casting.chapter in ("color-invariance", "representations"):
        for arm in HINT_DEPTHS:
            plan.add(arm, teacher, few=arm == "hint-3")
    plan.controls(teacher, second, every=True)


def _crops(plan: _Plan) -> None:
    teacher, _ = plan.teachers(second=False)
    plan.taught(teacher)
    plain = plan.other("plain-teacher", plan.casting.plain_fixed_teacher())
    if "kl" in plan.methods:
        plan.add("kl-plain", plain)
    plan.controls(teacher, None, every=False)


def _shifts(plan: _Plan) -> None:
    teacher, _ = plan.teachers(second=False)
    plan.taught(teacher)
    if blurred := plan.casting.blurred_student(plan.cast):
        plan.add("independent-blur", None, few=True, model=blurred)


def _flips(plan: _Plan) -> None:
    if plan.cast == "exact-flips":
        teacher = plan.other("teacher", plan.casting.exactly_mirrored_teacher())
    else:
        teacher, _ = plan.teachers(second=False)
    plan.add("independent", None)
    plan.add("kl", teacher)


def _one_way(plan: _Plan) -> None:
    """A cast that asks about KL only: a pair of architectures, or a fairer teacher."""
    teacher, _ = plan.teachers(second=False)
    few = plan.cast == "cnn-vit"
    plan.add("independent", None, few=few)
    plan.add("kl", teacher, few=few)


def _marker(plan: _Plan) -> None:
    teacher, _ = plan.teachers(second=False)
    plan.add("independent", None)
    for method in plan.methods:
        plan.add(method, teacher, few=method != "kl")


def _weights(plan: _Plan) -> None:
    teacher, _ = plan.teachers(second=False)
    plan.add("independent", None)
    plan.add("kl", teacher)
    # A claim rests on the smallest weight: it needs all seeds.
    plan.add("kl-weight-0.1", teacher)
    plan.add("kl-weight-0.5", teacher, few=True)


def _mixture(plan: _Plan) -> None:
    plan.teachers(second=False)
    _add_mixtures(plan)


def _add_mixtures(plan: _Plan) -> None:
    for share in MIXTURES:
        mixed = plan.other(f"teacher-{share}", plan.casting.mixture(share))
        plan.add(f"mixture-{share}", mixed, few=f"mixture-{share}" not in _CLAIMED)


# Arms of the dose chapter that claims rest on: they need all seeds.
_CLAIMED = ("kl-weight-0.1", "kl-tau-1", "hint-1", "hint-logits", "mixture-0.75")


def _dose(plan: _Plan) -> None:
    casting, settings = plan.casting, plan.settings
    teacher, _ = plan.teachers(second=False)
    plan.add("independent", None)
    plan.add("kl", teacher)
    for arm in ("kl-weight-0.1", "kl-weight-0.5", "kl-tau-1", "kl-tau-16"):
        plan.add(arm, teacher, few=arm not in _CLAIMED)
    images = settings.train_count or ALL_SCENES
    fewer = {"count": images // FEW_IMAGES, "epochs": settings.student_epochs * FEW_IMAGES}
    for arm, changes in (("images", fewer), ("epochs", {"epochs": FEW_EPOCHS})):
        plan.add(f"kl-{arm}-few", teacher, few=True, **changes)
        plan.add(f"independent-{arm}-few", None, few=True, **changes)
    if "hint" in settings.methods:
        plan.add("hint", teacher)
        for arm in HINT_DEPTHS:
            if casting.teaching(arm, plan.cast) != casting.teaching("hint", plan.cast):
                plan.add(arm, teacher, few=arm not in _CLAIMED)
    _add_mixtures(plan)


def _domains(plan: _Plan) -> None:
    teacher, second = plan.teachers()
    plan.taught(teacher)
    plan.controls(teacher, second, every=False)
    if plan.casting.student_model(plan.cast) == plan.casting.teacher_model(plan.cast):
        start = teacher.initialisation_seed
        plan.add("kl-same-start", teacher, few=True, start_seed=start)
        plan.add("independent-same-start", None, few=True, start_seed=start)


def _groups(plan: _Plan) -> None:
    teacher, second = plan.teachers()
    plan.taught(teacher)
    plan.controls(teacher, second, every=False)


def _temperature(plan: _Plan) -> None:
    teacher, _ = plan.teachers(second=False)
    plan.add("independent", None)
    plan.add("kl", teacher)
    for tau in (1, 16):
        plan.add(f"kl-tau-{tau}", teacher, few=True)


_PLANS: dict[str, Callable[[_Plan], None]] = {
    "jitter": _jitter,
    "crops": _crops,
    "shifts": _shifts,
    "flips": _flips,
    "exact-flips": _flips,
    "cues": _plain,
    "marker": _marker,
    "weights": _weights,
    "mixture": _mixture,
    "dose": _dose,
    "cnn-cnn": _one_way,
    "vit-cnn": _one_way,
    "cnn-vit": _one_way,
    "same": _one_way,
    "domains": _domains,
    "groups": _groups,
    "folder-domains": _groups,
    "fair": _one_way,
    "temperature": _temperature,
}


def describe(spec: NetworkSpec) -> str:
    """What a network is trained on in a line, for tables."""
    if spec.method is None:
        return "labels only"
    kind = {"teacher": "", "smoothed": ", no teacher", "permuted": ", permuted in class"}
    return spec.method.describe().removesuffix(")") + kind[spec.labels] + ")"
