"""Which networks a chapter compares, and how each was trained: from parameters to a cast."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes.data import FOLDER_PREFIX, DataSpec, ImageData, load, source, with_fingerprint
from kdnotes.errors import RequestError
from kdnotes.paths import base_folder
from kdnotes.probes.base import Cast, Member
from kdnotes.study import casting, paper, presets
from kdnotes.study.casting import HINT_DEPTHS, UNSEEN_GROUP, Casting
from kdnotes.study.presets import Settings
from kdnotes.training import cache
from kdnotes.training.cache import Planned

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HINT_DEPTHS", "UNSEEN_GROUP", "Study", "chapter", "known_chapters"]


@dataclass(frozen=True)
class Study:
    """A chapter's settings, the networks they ask for, and the way to get them."""

    chapter: str
    settings: Settings
    data_dir: Path | None

    @cached_property
    def cast_names(self) -> tuple[str, ...]:
        """Names of the casts this chapter has, the first being its main one."""
        return _CASTS[self.chapter](self.settings)

    @property
    def networks(self) -> list[Planned]:
        """All networks of all casts of the chapter, teachers included, each once."""
        planned = [item for name in self.cast_names for item in self._plan(name)]
        return cache.with_teachers(planned)

    def cast(self, name: str | None = None) -> Cast:
        """The networks of one cast, trained if they are not there yet (with progress shown)."""
        cache.ensure(self.networks, device=self.settings.device, data_dir=self.data_dir)
        planned = self._plan(self._known(name))
        members = tuple(self._member(item) for item in planned)
        teachers = {m.arm: m for m in members if m.arm in ("teacher", "second-teacher")}
        return Cast(
            teacher=teachers["teacher"],
            second_teacher=teachers.get("second-teacher"),
            members=tuple(m for m in members if m.arm not in teachers),
            classes=self.classes,
        )

    def train(self, name: str | None = None) -> ImageData:
        """The images that the students of one cast are trained on."""
        return self._load(self.casting.data(self._known(name), "student"))

    def test(self, name: str | None = None, **options: Any) -> ImageData:
        """Test images like the students' training images; ``options`` change the scenes drawn."""
        spec = self.casting.data(self._known(name), "student")
        count = self.settings.test_count
        return self._load(
            with_fingerprint(
                spec.model_copy(
                    update={
                        "split": "test",
                        "count": count,
                        "seed": self.casting.rendering_seed,
                        "options": spec.options | self.casting.test_options | options,
                    }
                ),
                self.data_dir,
            )
        )

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        if (known := source(self.settings.dataset).classes) is not None:
            return known
        files = Casting(self.chapter, self.settings, self.data_dir)
        return self._load(files.data(self.cast_names[0], "student")).classes

    def table(self, name: str | None = None) -> pd.DataFrame:
        """How each arm of a cast was trained: one row per arm."""
        import pandas as pd

        rows: dict[str, dict[str, Any]] = {}
        for item in self._plan(self._known(name)):
            spec = item.spec
            row = rows.setdefault(
                item.arm,
                {
                    "arm": item.arm,
                    "network": spec.model,
                    "images": spec.data.count or "all",
                    "epochs": spec.recipe.epochs,
                    "objective": casting.describe(spec),
                    "networks trained": 0,
                },
            )
            if spec.parts:
                row |= {"images": "-", "epochs": "-", "objective": "mean of others' logits"}
            else:
                row["networks trained"] += 1
        return pd.DataFrame(rows.values())

    def parameters(self) -> dict[str, Any]:
        """The settings as they go into a chapter's results, lists shortened to their bounds."""
        values = self.settings.model_dump()
        seeds = self.settings.seeds
        values["methods"] = ",".join(self.settings.methods)
        values["seeds"] = len(seeds)
        values["control_seeds"] = len(self.settings.control_seeds)
        if values["independent_epochs"] is None:
            del values["independent_epochs"]
        for name in ("groups", "unseen"):
            if not values[name]:
                del values[name]
        return values | {"first_seed": seeds[0]}

    def history(self, name: str | None = None) -> pd.DataFrame:
        """Loss terms by arm, seed and epoch of the networks of one cast."""
        import pandas as pd

        rows = []
        for item in self._plan(self._known(name)):
            if item.spec.parts:
                continue
            for epoch, means in enumerate(cache.history(item.spec), start=1):
                rows.append({"arm": item.arm, "seed": item.spec.seed, "epoch": epoch} | means)
        return pd.DataFrame(rows)

    def _known(self, name: str | None) -> str:
        chosen = name or self.cast_names[0]
        if chosen not in self.cast_names:
            raise RequestError(f"no cast {chosen!r} here; this chapter has {self.cast_names}")
        return chosen

    def _load(self, spec: DataSpec) -> ImageData:
        return _loaded(spec.model_dump_json(), self.data_dir)

    def _member(self, item: Planned) -> Member:
        from kdnotes import networks

        network = networks.freeze(cache.load(item.spec))
        if self.settings.device.startswith("cuda"):
            network = network.to("cuda")
        return Member(item.arm, item.spec.seed, network, networks.taps(network))

    @cached_property
    def casting(self) -> Casting:
        """Which networks the casts are made of."""
        made = Casting(self.chapter, self.settings, self.data_dir)
        return replace(made, num_classes=len(self.classes))

    def _plan(self, cast: str) -> list[Planned]:
        return self.casting.plan(cast)


@lru_cache(maxsize=6)
def _loaded(text: str, data_dir: Path | None) -> ImageData:
    return load(DataSpec.model_validate_json(text), data_dir)


def _everywhere(*names: str) -> Callable[[Settings], tuple[str, ...]]:
    """Casts that can be made from any images."""
    return lambda settings: names


def _scenes_only(*names: str) -> Callable[[Settings], tuple[str, ...]]:
    """Casts that need the drawn scenes; other images get a plain one."""
    return lambda settings: names if settings.is_scenes else ("plain",)


def _no_accuracy_gain(settings: Settings) -> tuple[str, ...]:
    return ("plain", "cues", "jitter") if settings.is_scenes else ("plain", "jitter")


def _representations(settings: Settings) -> tuple[str, ...]:
    return ("jitter", "vit-cnn") if settings.is_scenes else ("jitter",)


def _unseen_domains(settings: Settings) -> tuple[str, ...]:
    return ("folder-domains",) if settings.unseen else ("plain",)


def _bias(settings: Settings) -> tuple[str, ...]:
    if settings.is_scenes:
        return ("groups", "fair", "temperature")
    if not settings.groups:
        return ("plain",)
    # The paper has one temperature per pair.
    return ("groups",) if settings.is_imagenet else ("groups", "temperature")


# The first cast of a chapter is its main one.
_CASTS: dict[str, Callable[[Settings], tuple[str, ...]]] = {
    "distillation": _everywhere("plain"),
    "fidelity": _everywhere("plain"),
    "localization": _scenes_only("cues"),
    "adversarial": _everywhere("plain"),
    "color-invariance": _everywhere("jitter"),
    "crop-and-shift-invariance": _everywhere("crops", "shifts", "flips", "exact-flips"),
    "unseen-domains": _unseen_domains,
    "shape-and-cue-bias": _scenes_only("cues", "marker", "weights", "mixture"),
    "domain-adaptation": _everywhere("domains"),
    "decision-boundaries": _everywhere("domains"),
    "representations": _representations,
    "bias": _bias,
    "no-accuracy-gain": _no_accuracy_gain,
    "architectures": _scenes_only("cnn-cnn", "vit-cnn", "cnn-vit", "same"),
    "dose": _scenes_only("dose"),
    "scorecard": _everywhere(),  # it reads what the other chapters found
}

# Where a chapter's own defaults differ from its preset's: the study's MNIST experiment.
_MNIST_CHAPTERS = ("domain-adaptation", "decision-boundaries")


def _mnist_defaults(parameters: dict[str, Any]) -> dict[str, Any]:
    """The study's MNIST experiment; its network at half the width for quick runs on few digits."""
    if parameters.get("preset") == presets.PAPER:
        return {"dataset": "mnist"}
    dataset = parameters.get("dataset") or "digits"
    quick = dataset == "digits" and parameters.get("preset", "laptop") in ("smoke", "laptop")
    network = "paper-mnist-half" if quick else "paper-mnist"
    return {"dataset": dataset, "teacher": network, "student": network, "tau": 8.0}


def known_chapters() -> tuple[str, ...]:
    """Names of the chapters that a study can be made for."""
    return tuple(_CASTS)


def chapter(name: str, data_dir: str | None = None, **parameters: Any) -> Study:
    """The study behind a chapter, its parameters checked; empty ones are the preset's.

    Raises RequestError naming what is wrong and what would be right.
    """
    if name not in _CASTS:
        near = difflib.get_close_matches(name, _CASTS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RequestError(f"unknown chapter {name!r}{hint}; known: {', '.join(_CASTS)}")
    if name in _MNIST_CHAPTERS:
        for parameter, value in _mnist_defaults(parameters).items():
            parameters[parameter] = parameters.get(parameter) or value
    dataset = parameters.get("dataset") or ""
    if dataset.startswith(FOLDER_PREFIX):
        text = dataset.removeprefix(FOLDER_PREFIX)
        if not (base_folder() / Path(text).expanduser()).is_dir():
            raise RequestError(f"no folder {text!r} (dataset); name an existing folder of images")
    _check_folder_parameters(name, parameters)
    settings = presets.resolve(**parameters)
    of_the_paper = settings.preset == presets.PAPER
    if of_the_paper and not settings.is_imagenet and name not in _MNIST_CHAPTERS:
        raise RequestError(paper.NEEDS_FOLDER)
    if name in _MNIST_CHAPTERS and dataset not in ("digits", "mnist"):
        raise RequestError(
            f"chapter {name!r} is about digits in three domains: dataset must be digits or mnist, "
            f"not {dataset!r}"
        )
    study = Study(name, settings, presets.resolve_data_dir(data_dir))
    if study.cast_names and not settings.is_scenes:
        # Raises if the files are missing.
        files = Casting(name, settings, study.data_dir)
        files.data(study.cast_names[0], "student")
        if settings.unseen:  # the teacher sees other images
            files.data(study.cast_names[0], "teacher")
    return study


def _check_folder_parameters(name: str, parameters: dict[str, Any]) -> None:
    for parameter, chapters in (("groups", ("bias",)), ("unseen", ("bias", "unseen-domains"))):
        if parameters.get(parameter) and name not in chapters:
            raise RequestError(
                f"chapter {name!r} has no use for {parameter!r}; it is for: {', '.join(chapters)}"
            )
    if name == "bias" and parameters.get("unseen") and not parameters.get("groups"):
        raise RequestError("unseen names a group: name the CSV that has it as groups, too")
