"""Measuring one's own networks on one's own images, property by property."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdnotes import probes, stats
from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Cast, Measure, Member, Outcome, Property

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

CRITERION = "95% interval over images, for these very networks"
CRITERION_OF_SEVERAL = "95% interval over networks and images"
GRADIENT_IMAGES = 100  # images that measures with gradients are taken on, if not told otherwise


@dataclass(frozen=True)
class Measured:
    """What was measured of one's own networks, and what could not be (why)."""

    outcome: Outcome
    skipped: dict[str, str]

    @property
    def table(self) -> pd.DataFrame:
        """A row per network, measure and condition: arm, seed, condition, measure, value."""
        return self.outcome.table

    def contrast(
        self, measure: str, arm: str, reference: str | float, condition: str | None = None
    ) -> stats.Interval:
        """An arm minus another, or minus a number, with its 95% interval where one can be given.

        Over seeds and images where there are several networks of an arm, else over images; on
        fewer than ten images there is none. ``condition`` None: the measure's main one. Raises
        RequestError for what was not measured.
        """
        from kdnotes.audit import judging

        try:
            return judging.difference(
                self.outcome, self._declared(measure, condition), arm, reference
            )
        except stats.NotMeasuredError as error:
            names = ", ".join(sorted(self.table["measure"].unique()))
            raise RequestError(f"{error}; measured: {names}") from error

    def reported(self) -> list[tuple[Property, Measure]]:
        """What a report shows: the properties' main measures that were measured of the student."""
        mine = self.table[self.table["arm"] == "student"].dropna(subset=["value"])
        here = set(zip(mine["measure"], mine["condition"], strict=True))
        return [
            (which, each)
            for which in probes.properties()
            for each in which.measures
            if each.reported and (each.name, each.condition) in here
        ]

    def comparisons(self) -> list[dict[str, Any]]:
        """The main measures: each arm's mean, the student's difference and share of the way."""
        from kdnotes.audit import judging

        listed = []
        networks = self.table.groupby("arm")["seed"].nunique()
        criterion = CRITERION_OF_SEVERAL if networks.drop("teacher").max() > 1 else CRITERION
        for which, shown in self.reported():
            name, condition = shown.name, shown.condition
            rows = self.table.query("measure == @name and condition == @condition")
            values = rows.groupby("arm", sort=False)["value"].mean().to_dict()
            reference: str | float | None = None
            if "independent" in networks:  # what is relative to the twin is compared with chance
                measured = math.isfinite(values.get("independent", math.nan))
                reference = "independent" if measured else shown.chance
            own = judging.difference(self.outcome, shown, "student", 0.0)
            found = stats.NOTHING
            if reference is not None:
                found = judging.difference(self.outcome, shown, "student", reference)
            way = judging.share(self.outcome, shown)
            share = way.ratio or stats.NOTHING
            listed.append(
                {
                    "id": f"audit-{name}" + (f"-{condition}" if condition else ""),
                    "property": which.name,
                    "measure": name,
                    "condition": condition,
                    "meaning": shown.label,
                    "values": values,
                    "student": {"estimate": own.estimate, "low": own.low, "high": own.high},
                    "reference": reference,
                    "estimate": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "share": {"estimate": share.estimate, "low": share.low, "high": share.high},
                    "word": way.word,
                    "ends": [way.low_end, way.high_end],
                    "criterion": criterion,
                    "verdict": judging.word_for(found.low, found.high),
                    "paper": None,
                }
            )
        return listed

    def show(self) -> None:
        """Show the main measures as a table: a page's in a notebook, plain text elsewhere."""
        from kdnotes.progress import in_notebook

        text = "\n".join(self.lines(self.comparisons()))
        if not in_notebook():
            print(text)
            return
        from IPython.display import Markdown, display

        display(Markdown(text))

    def lines(self, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
        """The main measures as a table in Markdown, and what could not be measured."""
        lines = [
            "| what | teacher | student | independent | difference [95%] | |",
            "|---|---|---|---|---|---|",
        ]
        for claim in comparisons:
            arms = (
                claim["values"].get(arm, math.nan) for arm in ("teacher", "student", "independent")
            )
            values = (stats.format_number(value) if math.isfinite(value) else "" for value in arms)
            ends = claim["estimate"], claim["low"], claim["high"]
            difference = stats.Interval(*ends, 1, 0, math.nan)
            compared = claim["reference"] is not None and math.isfinite(claim["estimate"])
            cells = [claim["meaning"], *values, difference.format() if compared else ""]
            lines.append("| " + " | ".join([*cells, claim["verdict"]]) + " |")
        skipped = (f"Not measured: {name} ({why})." for name, why in self.skipped.items())
        return [*lines, "", *skipped]

    def _declared(self, measure: str, condition: str | None) -> Measure:
        from kdnotes.audit.answers import FLIPS

        named = [each for each in (*probes.measures(), *FLIPS) if each.name == measure]
        here = set(self.table.loc[self.table["measure"] == measure, "condition"])
        if condition is None:
            condition = next((each.condition for each in named if each.condition in here), "")
        near = [each for each in named if each.is_measured_under(condition)] or named
        exact = [each for each in near if each.condition == condition] or near
        return replace(exact[0], condition=condition) if exact else Measure(measure, "", condition)


def cast(
    teacher: nn.Module,
    student: nn.Module | Sequence[nn.Module],
    independent: nn.Module | Sequence[nn.Module] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Cast:
    """One's own networks as a cast: a teacher, its student, and the student's twin without it.

    Each maps images (N, 3, H, W) to logits (N, classes); several students or twins are seeds 0, 1,
    ... and are compared pair by pair. ``mean`` and ``std``: what the networks' inputs were
    normalised with; without them they get images in [0, 1] as they are. The networks themselves are
    left as they are: copies are measured. Raises RequestError for weights that are not finite.
    """
    from kdnotes.audit.members import member

    def members(arm: str, given: nn.Module | Sequence[nn.Module]) -> list[Member]:
        listed: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
        return [
            member(f"{arm} {seed}", arm, seed, module, mean, std)
            for seed, module in enumerate(listed)
        ]

    taught = [*members("student", student), *members("independent", independent)]
    return Cast(members("teacher", teacher)[0], None, tuple(taught), ())


def images(
    folder: str | None = None,
    *,
    size: int | None = None,
    count: int | None = None,
    skip_damaged: bool = False,
    pixels: Tensor | None = None,
    labels: Tensor | None = None,
) -> ImageData:
    """Images of a folder that has a folder for each class, of a CSV ``file,label``, or tensors.

    ``size``: the side in pixels; ``count``: how many at most. ``pixels``: (N, 3, H, W), uint8 or in
    [0, 1], with ``labels`` int64 (N,). Raises RequestError.
    """
    from kdnotes.audit import inputs
    from kdnotes.data import folders

    if (folder is None) == (pixels is None) or (pixels is None) != (labels is None):
        raise RequestError("name a folder of images, or give both pixels and labels")
    for name, value in (("size", size), ("images", count)):
        if value is not None and value < 1:
            raise RequestError(f"{name} must be 1 or more, not {value}")
    if folder is None:
        return _from_tensors(pixels, labels)
    listed = inputs.listed(folder, count)
    side = size or folders.usual_size(listed.root, sorted(listed.names))
    return inputs.read(listed, side, skip_damaged)[0]


def _from_tensors(pixels: Any, labels: Any) -> ImageData:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) != len(labels):
        raise RequestError(
            f"pixels {tuple(pixels.shape)} and labels {tuple(labels.shape)} must be (N, 3, H, W) "
            "and (N,)"
        )
    if pixels.dtype != torch.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:
            raise RequestError(f"pixels lie between {low:g} and {high:g}; give them in [0, 1]")
        pixels = (pixels * 255).round().to(torch.uint8)
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return ImageData(pixels.cpu(), labels.long().cpu(), classes, torch.arange(len(labels)))


def measure(
    of: Cast,
    images: ImageData,
    properties: Sequence[str] | None = None,
    gradient_images: int = GRADIENT_IMAGES,
) -> Measured:
    """Measure properties of a cast on images: all that are declared for it, or those named.

    Measures with gradients are taken on so many images, chosen at random but always the same ones.
    Raises RequestError for an unknown property, for networks whose answers do not fit, and where
    nothing can be measured.
    """
    from kdnotes.audit import members

    wanted = chosen(properties)
    complete = with_classes(of, images)
    room = members.room(complete, images.size)
    parts: list[Outcome] = []
    skipped = {}
    for which in wanted:
        try:
            parts.append(measure_one(which, complete, images, gradient_images, room))
        except RequestError as error:  # such as a network without feature maps
            skipped[which.title] = str(error)
    if not parts:
        raise RequestError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    return Measured(together(parts), skipped)


def chosen(names: Sequence[str] | None) -> list[Property]:
    """The properties of an audit, all or those named, cheap ones first. Raises RequestError."""
    offered = {each.name: each for each in probes.properties() if each.audited}
    for name in names or ():
        if name not in offered:
            raise RequestError(f"unknown property {name!r}; known: {', '.join(offered)}")
    named = [offered[name] for name in dict.fromkeys(names or offered)]
    return sorted(named, key=lambda each: ("gradients" in each.needs, each.passes))


def count_of(which: Property, images: int, gradient_images: int) -> int:
    """How many of the images a property is measured on."""
    if "gradients" in which.needs:
        return min(images, gradient_images)
    return min(images, max(round(which.share * images), GRADIENT_IMAGES))


def measure_one(
    which: Property, of: Cast, images: ImageData, gradient_images: int, room: Any
) -> Outcome:
    """One property, on its share of the images, whose numbers stay those of all images."""
    if "maps" in which.needs and not all(member.taps for member in of.everyone()):
        raise RequestError("no stages with feature maps can be found in one of the networks")
    count = count_of(which, len(images), gradient_images)
    some, places = images, torch.arange(len(images))
    if count < len(images):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        places = order[:count].sort().values
        some = _subset(images, places)
    try:
        with base.at_most(room.gradients if "gradients" in which.needs else room.plain):
            found = which.measure(of, some, **which.brief)
    except FloatingPointError as error:  # a network whose answers are no numbers
        raise RequestError(str(error)) from error
    items = places.numpy()[found.items["item"]]
    return Outcome(found.table, found.items.assign(item=items.astype("int32")))


def _subset(images: ImageData, places: Tensor) -> ImageData:
    """Some of the images; those that are read as they are asked for stay on the disk."""
    from kdnotes.data.photos import StreamingImages

    if not isinstance(images.images, StreamingImages):
        return images.subset(places)
    names = [images.images.names[place] for place in places.tolist()]
    pixels = replace(images.images, names=names)
    return replace(
        images, images=pixels, labels=images.labels[places], sources=images.sources[places]
    )


def together(parts: Sequence[Outcome]) -> Outcome:
    """All properties' rows; accuracy, which every probe measures anew, from the first."""
    return Outcome.combine([parts[0], *(part.without_accuracy() for part in parts[1:])])


def with_classes(of: Cast, images: ImageData) -> Cast:
    """The cast with the images' classes, its answers tried on two images. Raises RequestError."""
    from kdnotes.data.views import to_float

    few = to_float(images.batch(torch.arange(min(2, len(images)))))
    widths = {}
    for member in of.everyone():
        try:
            logits = base.logits_of(member.network, few.to(base.device_of(member.network)))
        except FloatingPointError as error:  # a network whose answers are no numbers
            raise RequestError(str(error)) from error
        if logits.ndim != 2:
            raise RequestError(
                f"the {member.arm} answers with {tuple(logits.shape)} numbers, not with logits "
                "(N, classes)"
            )
        widths[member.arm] = logits.shape[1]
    needed = int(images.labels.max()) + 1
    if len(set(widths.values())) > 1 or min(widths.values()) < needed:
        raise RequestError(f"numbers of classes do not fit: {widths}, and the images have {needed}")
    return replace(of, classes=images.classes if len(images.classes) == widths["teacher"] else ())
