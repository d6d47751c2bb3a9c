"""From parameters to settings: a preset, and what was asked for in place of its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdnotes import data, methods, networks
from kdnotes.data.views import Views
from kdnotes.errors import RequestError
from kdnotes.paths import base_folder
from kdnotes.study import paper, presets
from kdnotes.study.presets import Preset
from kdnotes.study.seeds import range_of


class Settings(Preset):
    """A preset, with what was asked for in place of its own values.

    ``methods``: their names. ``device``: empty for CUDA where there is one.
    """

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
        return self.preset == presets.PAPER and self.is_folder

    @property
    def is_folder(self) -> bool:
        """Whether the images are those of a folder."""
        return self.dataset.startswith(data.FOLDER_PREFIX)

    @property
    def is_scenes(self) -> bool:
        """Whether the images are drawn here, with their factors known."""
        return self.dataset in ("scenes", "scenes-of-mnist")

    @property
    def images(self) -> str:
        """What the images are called in verdicts: a folder's own name, else the data set's."""
        if self.is_folder:
            return Path(self.dataset.removeprefix(data.FOLDER_PREFIX)).name
        return self.dataset.partition(":")[0]

    @property
    def views(self) -> Views:
        """The training views that suit the data: mirrored for natural images only."""
        mirrored = data.source(self.dataset).mirrored
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

    ``others``: the remaining fields of `Settings`, by name. Raises RequestError naming what is
    wrong and what would be right.
    """
    if preset not in presets.names():
        raise RequestError(f"unknown preset {preset!r}; known: {', '.join(presets.names())}")
    changes = {name: value for name, value in others.items() if value is not None}
    dataset = dataset or (paper.default_dataset() if preset == presets.PAPER else "scenes")
    _check_data(dataset, changes.get("skip_damaged", False))
    pair = [changes.pop(role, "") for role in ("teacher", "student")]
    if preset == presets.PAPER:
        chosen = paper.preset(dataset, *pair)
    else:
        chosen = presets.PRESETS[preset]
        for role, name in zip(("teacher", "student"), pair, strict=True):
            if name:
                networks.check_name(name)
                changes[role] = name
    if changes.get("device", "cpu") != "cpu":
        resolve_device(changes["device"])
    if seeds:
        changes["students"] = seeds
    range_of(changes.get("first_seed", chosen.first_seed), seeds or chosen.students)
    if epochs:
        changes |= dict.fromkeys(("teacher_epochs", "student_epochs"), epochs)
        changes["independent_epochs"] = None
    where = {"preset": preset, "dataset": dataset, "methods": parse_methods(methods)}
    return Settings.model_validate(chosen.model_dump() | changes | where)


def _check_data(dataset: str, skip_damaged: bool) -> None:
    data.source(dataset)
    text = dataset.removeprefix(data.FOLDER_PREFIX)
    if text != dataset:
        if not (base_folder() / Path(text).expanduser()).is_dir():
            raise RequestError(f"no folder {text!r} (dataset); name an existing folder of images")
    elif skip_damaged:
        raise RequestError(
            f"skip_damaged is for folders of images (dataset=imagefolder:PATH), not {dataset!r}"
        )


def parse_methods(text: str | None) -> tuple[str, ...]:
    """Method names from a comma-separated list; without one the usual. Raises RequestError."""
    if not text:
        return methods.by_default()
    named = [part.strip().lower() for part in text.split(",")]
    return tuple(methods.get(name).name for name in dict.fromkeys(named))


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
    if not text:
        return None
    path = base_folder() / Path(text).expanduser()
    if not path.is_dir():
        raise RequestError(f"no folder {text!r} (data_dir); name an existing one or leave it empty")
    return path
