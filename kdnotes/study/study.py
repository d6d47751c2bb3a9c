"""What a chapter asks for: its parameters, the worlds and plans that it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from kdnotes.data import DataSpec, folders, source, with_fingerprint
from kdnotes.errors import RequestError
from kdnotes.study import paper, presets, worlds
from kdnotes.study.plans import Plan
from kdnotes.study.resolving import Settings, resolve, resolve_data_dir, resolve_device
from kdnotes.study.seeds import Range, range_of
from kdnotes.study.worlds import World
from kdnotes.training import cache
from kdnotes.training.cache import Planned


class Study:
    """A chapter's parameters, resolved, and the plans of casts that its cell declares.

    ``given``: the shared parameters, None meaning what chapter and preset say; ``own``: those of
    the chapter alone that are noted with its results. While it is ``planning``, nothing is trained
    and no image is read. ``exchanged``: the second teacher takes the place of the first.
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
        self._given = {name: value for name, value in given.items() if name != "data_dir"}
        self._own = dict(own or {})
        self._planning = planning
        self.command = ""  # that makes this run
        self.asked: dict[str, Any] = {}  # all parameters, as the notebook has them
        self.started: float | None = None  # when measuring began, by time.perf_counter
        self._preferred: dict[str, Any] = {}
        self._made: dict[str, Any] = {}

    # --- for the cell that declares casts ---------------------------------------------------

    def prefer(self, **parameters: Any) -> None:
        """Say what parameters are in this chapter where they were not given; before all else."""
        self._preferred = parameters
        for known in ("settings", "device"):  # of a cell that is run once more
            vars(self).pop(known, None)

    def prefer_digits(self) -> None:
        """Digits in three domains, with the networks and temperature of the study's experiment.

        Its network is half as wide where digits are few. Raises RequestError for other images.
        """
        preset, dataset = self._given.get("preset"), self._given.get("dataset")
        if preset == presets.PAPER:
            self.prefer(dataset="mnist")
        else:
            few = dataset in (None, "digits")
            network = "paper-mnist-half" if few else "paper-mnist"
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
        """Images to train on: drawn scenes of this kind, or the images that were asked for.

        ``teacher``, ``students`` and ``both``: options of the images that they see. ``mirrored``:
        where nothing moves, students see images mirrored at random. Raises RequestError for what
        the data set does not have.
        """
        return worlds.make(self.settings, name, teacher or {}, students or {}, both, mirrored)

    def plan(self, name: str, world: World, *, teacher: str = "", student: str = "") -> Plan:
        """A cast to be filled, in place of one of that name.

        ``teacher`` and ``student``: architectures other than those that were asked for.
        """
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

    # --- what follows from it ---------------------------------------------------------------

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
        if self._planning:
            raise RequestError("a cell tagged 'cast' declares networks; it cannot train or load")

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
        """The images that teachers or students are trained on.

        Raises RequestError, also where there would be fewer than classes.
        """
        asked, classes = count or world.count, len(self.classes(world))
        self.needs(
            asked is None or asked >= classes,
            f"{asked} training images cannot show {classes} classes: train_count must be larger",
        )
        spec = DataSpec(
            name=world.dataset,
            split="train",
            count=count or world.count,
            seed=self.seed_range.drawings,
            options=world.options(role),
        )
        # A large folder takes seconds to survey: once is enough for all networks of a chapter.
        make = partial(with_fingerprint, spec, self.data_dir)
        return self._once(spec.model_dump_json(), make)

    def classes(self, world: World) -> tuple[str, ...]:
        """Names of the classes of a world, as its students know them. Raises RequestError."""
        if (known := source(world.dataset).classes) is not None:
            return known
        return self._survey(world, "student").classes

    def image_side(self, world: World) -> int:
        """Side in pixels of the images that networks are shown. Raises RequestError."""
        if self.settings.is_imagenet:
            return paper.settings().imagenet.image_size
        return (
            self._survey(world, "student").size
            if self.settings.is_folder
            else source(world.dataset).size
        )

    def _survey(self, world: World, role: str) -> folders.Folder:
        options = folders.FolderOptions(**world.options(role))
        make = partial(folders.survey, world.dataset, options)
        return self._once(options.model_dump_json(), make)

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
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
