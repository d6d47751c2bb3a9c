"""Plans: which networks a chapter compares, declared arm by arm before any is trained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdnotes import methods, networks
from kdnotes.data import DataSpec, ImageData, load, with_fingerprint
from kdnotes.data.views import ColorJitter, Crops
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas
from kdnotes.study import arms, paper
from kdnotes.study.arms import Arm
from kdnotes.training import cache
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdnotes.study.study import Study, World

Seeds = Literal["all", "few"] | Sequence[int]
Role = Literal["teacher", "student"]
SLOW = {"vgg-small-blur": 2}  # networks that learn more slowly get so many times the epochs
FOREIGN_SEED = 9_000  # a seed that no student of a cast ever has


class Plan:
    """The networks of one cast, in a world: it grows by what is declared, teachers first.

    What declares a teacher returns its network, what declares students their arm. Nothing is
    trained before `Study.train` is called.
    """

    def __init__(self, study: Study, name: str, world: World, teacher: str, student: str) -> None:
        self.study, self.name, self.world = study, name, world
        self.settings = settings = study.settings
        self.pair: paper.Pair | None = None
        self.teacher_model = teacher or settings.teacher
        self.student_model = student or settings.student
        if settings.is_imagenet:  # the paper's pairs say which networks are compared
            self.pair = paper.settings().imagenet.pair(settings.teacher, settings.student, name)
            self.teacher_model, self.student_model = self.pair.teacher, self.pair.student
        self.planned: list[Planned] = []
        self.arms: dict[str, Arm] = {}

    def teacher(
        self,
        arm: Arm = arms.TEACHER,
        *,
        jitter: ColorJitter | None = None,
        crops: Crops | None = None,
        flip: bool = False,
        longer: int = 1,
        model: str = "",
        world: World | None = None,
    ) -> NetworkSpec:
        """A teacher; ``jitter``, ``crops`` or ``flip``: it saw every image changed in this way.

        ``longer``: so many times the usual epochs. ``model`` and ``world``: others than the plan's.
        """
        model = model or self.teacher_model
        data = self.study.data(world or self.world, "teacher")
        recipe = self._recipe("teacher", model, None, longer, flip, jitter=jitter, crops=crops)
        spec = self._network("teacher", model, data, recipe, seed=self.study.teacher_seeds[0])
        return self._enrol(arm, spec.model_copy(update={"pretrained": self._published(spec)}))

    def second_teacher(self, first: NetworkSpec) -> NetworkSpec:
        """A teacher like the first, from another seed; it is always trained here."""
        other = {"seed": self.study.teacher_seeds[1], "pretrained": ""}
        return self._enrol(arms.SECOND_TEACHER, first.model_copy(update=other))

    def plain_teacher(self, **seen: Any) -> NetworkSpec:
        """A teacher that was not given the property; ``seen`` as in `teacher`."""
        return self.teacher(arms.PLAIN_TEACHER, **seen)

    def mixed_teacher(self, first: NetworkSpec, second: NetworkSpec, share: float) -> NetworkSpec:
        """The mean of the logits of two teachers, with this share of the second."""
        how = {"parts": (first, second), "shares": (1 - share, share)}
        return self._composite(arms.mixed_teacher(share), **how)

    def mirrored_teacher(self, plain: NetworkSpec) -> NetworkSpec:
        """A teacher averaged over each image and its mirror image: exactly invariant."""
        return self._composite(arms.TEACHER, parts=(plain,), mirrored=True)

    def _composite(self, arm: Arm, **how: Any) -> NetworkSpec:
        data = self.study.data(self.world, "student")
        spec = self._network("teacher", "composite", data, Recipe(epochs=1), **how)
        return self._enrol(arm, spec)

    def students(
        self, arm: Arm, of: NetworkSpec | None = None, *, seeds: Seeds = "all", **how: Any
    ) -> Arm:
        """Students of a teacher, or of none; those of one seed share first weights and data order.

        ``seeds``: all, the few of secondary arms, or these; ``how``: as in `student`.
        """
        named = {"all": self.settings.seeds, "few": self.settings.control_seeds}
        spec = self.student(arm, of, **how)
        for seed in named[seeds] if isinstance(seeds, str) else seeds:
            self._enrol(arm, spec.model_copy(update={"seed": seed}))
        return arm

    def student(
        self,
        arm: Arm,
        of: NetworkSpec | None = None,
        *,
        model: str | None = None,
        epochs: int | None = None,
        count: int | None = None,
        start_seed: int | None = None,
    ) -> NetworkSpec:
        """What the first student of an arm would be, undeclared.

        ``count``: training images. ``start_seed``: of first weights in place of its own.
        """
        model = model or self.student_model
        if of is None:
            epochs = epochs or self.settings.independent_epochs
        data = self.study.data(self.world, "student", count)
        recipe = self._recipe("student", model, epochs, SLOW.get(model, 1))
        how: dict[str, Any] = {"method": arm.method, "labels": arm.labels, "teacher": of}
        how |= {"seed": self.settings.seeds[0], "start_seed": start_seed}
        return self._network("student", model, data, recipe, **how)

    def distilled(self, of: NetworkSpec) -> None:
        """Students of a teacher by each method that was asked for."""
        for arm in self.methods:
            self.students(arm, of)

    def usual(self, **controls: Any) -> NetworkSpec:
        """Declare what most chapters have, `compared` and `controls`, and return its teacher."""
        first = self.teacher()
        self.controls(first, self.compared(first), **controls)
        return first

    def compared(self, first: NetworkSpec) -> NetworkSpec:
        """Declare a second teacher, which is returned, students alone, and those by each method."""
        second = self.second_teacher(first)
        self.students(arms.INDEPENDENT)
        self.distilled(first)
        return second

    def of_plain(self, plain: NetworkSpec, methods: Sequence[str] = ("kl",)) -> None:
        """Students of a plain teacher by these of the methods that were asked for."""
        for method in self.methods:
            if method.name in methods:
                self.students(arms.plain(method), of=plain)

    def same_start(self, first: NetworkSpec) -> dict[str, str]:
        """Few students, by KL and alone, that start where their teacher did, if they can.

        Returns their arms, with those of the students that start elsewhere.
        """
        found = {}
        if self.student_model == self.teacher_model and not self._must_be_short:
            for arm, of in ((self.method("kl"), first), (arms.INDEPENDENT, None)):
                same = arm.variant("same-start", "the teacher's start", "same start")
                self.students(same, of, seeds="few", start_seed=first.initialisation_seed)
                found[same.name] = arm.name
        return found

    def needs_maps(self, stages: int, cells: int) -> None:
        """Raise RequestError unless each of the last stages has maps of so many cells on a side."""
        side = self.image_side
        for model in (self.teacher_model, self.student_model) if self.pair is None else ():
            last = networks.map_sides(model, side)[-stages:]
            self.study.needs(
                len(last) == stages and min(last) >= cells,
                f"this chapter needs maps of {cells} x {cells} cells in a network's last {stages} "
                f"stages; those of {model} have {' and '.join(map(str, last))} on a side where "
                f"images have {side} pixels: name another network",
            )

    def stopped_early(self, arm: Arm, of: NetworkSpec | None = None) -> str:
        """Students of an arm that have only half of the epochs; returns what they are called."""
        stopped = arm.variant("matched", "stopped early", "early", marker=arm.marker)
        return self.students(stopped, of, epochs=self.epochs(0.5)).name

    def depths(self, of: NetworkSpec) -> list[str]:
        """Students of Hint at rising depth: their arms; none without Hint, or on photographs."""
        if "hint" not in self.settings.methods or self._must_be_short:
            return []
        return [self.students(arm, of).name for arm in arms.depths(self.method("hint")).values()]

    def controls(
        self,
        teacher: NetworkSpec,
        second: NetworkSpec | None = None,
        *,
        others: Seeds = "all",
        smoothed: Seeds = "few",
        permuted: Seeds = "few",
    ) -> None:
        """Students of a second teacher, of labels smoothed as the teacher's are, and permuted.

        By the seeds of each kind: all where a claim rests on them, but few of the last two on
        photographs. Without all arms, no few permuted ones.
        """
        kl = self.method("kl")
        if self._must_be_short:
            smoothed = permuted = "few"
        if second is not None:
            self.students(arms.control("second-teacher", kl), second, seeds=others)
        self.students(arms.control("smoothed", kl), teacher, seeds=smoothed)
        if permuted == "all" or self.settings.all_arms:
            self.students(arms.control("permuted", kl), teacher, seeds=permuted)

    def foreign(self) -> None:
        """An independent network of a seed that nobody else has."""
        self.students(arms.FOREIGN, seeds=[FOREIGN_SEED + self.study.seed_range.teacher])

    def epochs(self, share: float) -> int:
        """A share of the epochs of this plan's students, at least one."""
        return max(1, round(share * self._recipe("student", self.student_model, None, 1).epochs))

    @property
    def _must_be_short(self) -> bool:
        settings = self.settings
        return not (settings.is_scenes or settings.is_imagenet or settings.dataset == "digits")

    def method(self, name: str) -> Arm:
        """The students of a method, with the settings that it has here. Raises RequestError."""
        kind = methods.get(name)
        if self.pair is not None:
            values = paper.settings().imagenet.settings_of(name, self.pair)
        else:
            values = dict(self.world.methods.get(name, {}))
        if "tau" in kind.model_fields:
            values["tau"] = self.settings.tau
        return arms.taught_by(kind.model_validate(values))

    @property
    def methods(self) -> tuple[Arm, ...]:
        """The students of each method that was asked for."""
        return tuple(self.method(name) for name in self.settings.methods)

    @property
    def blurred_student(self) -> str:
        """The student's architecture with blur before its strides; empty where there is none."""
        return self.pair.antialiased_student if self.pair else "vgg-small-blur"

    def training_images(self) -> ImageData:
        """The images that the students are trained on."""
        self.study.check_not_planning()
        spec = self.study.data(self.world, "student")
        return _loaded(spec.model_dump_json(), self.study.data_dir)

    def test_images(self, **options: Any) -> ImageData:
        """Test images like the students' training images; ``options`` change how they are made."""
        self.study.check_not_planning()
        return _loaded(self.test_spec(**options).model_dump_json(), self.study.data_dir)

    def test_spec(self, **options: Any) -> DataSpec:
        """What the test images are; ``options`` as in `test_images`."""
        spec = self.study.data(self.world, "student")
        if self.settings.is_imagenet:
            options = {"size": paper.settings().imagenet.image_size} | options
        asked = {
            "split": "test",
            "count": self.settings.test_count,
            "seed": self.study.seed_range.drawings,
            "options": spec.options | options,
        }
        return with_fingerprint(spec.model_copy(update=asked), self.study.data_dir)

    def show(self) -> Figure:
        """A picture of who teaches whom, on which images; nothing is trained for it."""
        from kdnotes.study import showing  # late: planning draws nothing

        return showing.picture(self)

    def table(self) -> pandas.DataFrame:
        """How each arm was trained: one row per arm."""
        from kdnotes.study import showing

        trained = Counter(item.arm for item in self.planned if not item.spec.parts)
        rows = [
            {
                "arm": arm,
                "network": spec.model,
                "images": "-" if spec.parts else spec.data.count or "all",
                "epochs": "-" if spec.parts else spec.recipe.epochs,
                "objective": "mean of others' logits" if spec.parts else showing.describe(spec),
                "networks trained": trained[arm],
            }
            for arm, spec in self.firsts.items()
        ]
        return pandas.DataFrame(rows)

    @property
    def firsts(self) -> dict[str, NetworkSpec]:
        """The first network of each arm, in the order of their declaration."""
        found = {item.arm: item.spec for item in reversed(self.planned)}
        return {arm: found[arm] for arm in self.arms}

    def history(self) -> pandas.DataFrame:
        """Loss terms by arm, seed and epoch."""
        rows = [
            {"arm": item.arm, "seed": item.spec.seed, "epoch": epoch} | means
            for item in self.planned
            if not item.spec.parts
            for epoch, means in enumerate(cache.history(item.spec), start=1)
        ]
        return pandas.DataFrame(rows)

    def not_trained_out(self) -> dict[str, float]:
        """Arms whose own loss is more than half of what it was at the first step, with that share.

        Of the method's term alone, the mean over the seeds; at the end it is that of the training
        images in the last epoch. Its floor counts as 0, which no method here can go below.
        """
        left: dict[str, list[float]] = {}
        for item in self.planned:
            method = item.spec.method
            if method is not None and (past := cache.history(item.spec)) and "start" in past[0]:
                left.setdefault(item.arm, []).append(past[-1][method.name] / past[0]["start"])
        shares = {arm: sum(each) / len(each) for arm, each in left.items()}
        return {arm: share for arm, share in shares.items() if share > 0.5}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.study.classes(self.world)

    @property
    def image_side(self) -> int:
        """Side in pixels of the images that the networks are shown."""
        return self.study.image_side(self.world)

    def _enrol(self, arm: Arm, spec: NetworkSpec) -> NetworkSpec:
        if self.arms.setdefault(arm.name, arm) != arm:
            raise RequestError(f"plan {self.name!r} has two different arms called {arm.name!r}")
        self.planned.append(Planned(arm.name, spec))
        return spec

    def _network(
        self, role: Role, model: str, data: DataSpec, recipe: Recipe, **how: Any
    ) -> NetworkSpec:
        if self.pair is None and model != "composite":
            networks.map_sides(model, self.image_side)  # or it is refused
        return NetworkSpec(
            role=role,
            model=model,
            num_classes=len(self.classes),
            data=data,
            recipe=recipe,
            large_images=self.settings.is_imagenet and model != "composite",
            **how,
        )

    def _recipe(
        self,
        role: Role,
        model: str,
        epochs: int | None,
        longer: int,
        flip: bool = False,
        **seen: Any,
    ) -> Recipe:
        """How a network is trained, for ``epochs``, or else as long as the preset says."""
        settings, world = self.settings, self.world
        if (fixed := world.recipe) is not None:
            return fixed.model_copy(update={"epochs": epochs or fixed.epochs})
        if role == "student":
            rate, flip = settings.student_rate, flip or world.mirrored
            epochs = epochs or settings.student_epochs or world.student_epochs
        else:
            rate, epochs = settings.teacher_rate, settings.teacher_epochs or world.teacher_epochs
        if settings.is_imagenet:
            how = {"epochs": epochs, "batch": settings.batch, "jitter": seen.get("jitter")}
            whole = world.still and not seen.get("crops")
            return paper.settings().imagenet.recipe(model, whole, flip, **how)
        recipe = Recipe(
            epochs=longer * epochs,
            batch=settings.batch,
            learning_rate=rate,
            views=world.views.model_copy(update={"flip": True}) if flip else world.views,
            **seen,
        )
        slower = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05}
        return recipe.model_copy(update=slower) if model.startswith("vit") else recipe

    def _published(self, spec: NetworkSpec) -> str:
        """Name of a teacher's published weights, empty where it is trained here."""
        if self.pair is None or os.environ.get("KDNOTES_WEIGHTS") == networks.TRAINED_HERE:
            return ""
        imagenet, recipe = paper.settings().imagenet, spec.recipe
        usual = imagenet.recipe(spec.model, epochs=recipe.epochs, batch=recipe.batch)
        is_usual = recipe == usual and spec.data.options.keys() <= {"size", "skip_damaged"}
        its_classes = spec.num_classes == imagenet.published_classes
        return self.pair.published if is_usual and its_classes else ""


@lru_cache(maxsize=6)
def _loaded(text: str, data_dir: Path | None) -> ImageData:
    return load(DataSpec.model_validate_json(text), data_dir)
