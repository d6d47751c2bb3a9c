"""Measuring one's own networks on one's own images, property by property."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdnotes import probes, stats
from kdnotes.audit.inputs import ARMS
from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Cast, Measure, Outcome, Property

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from kdnotes.audit.judging import Share

CRITERION = "95% interval over images, for these very networks"
CRITERION_OF_SEVERAL = "95% interval over networks and images"
GRADIENT_IMAGES = 100  # images that measures with gradients are taken on, if not told otherwise


@dataclass(frozen=True)
class Comparison:
    """What is said of a measure.

    values: each arm's mean; student: its own, difference: from the reference (an arm, a number, or
    None), way: how far it is on the way to the teacher; criterion: what the intervals are over.
    """

    of: Property
    measure: Measure
    values: dict[str, float]
    student: stats.Interval
    reference: str | float | None
    difference: stats.Interval
    way: Share
    criterion: str

    @property
    def verdict(self) -> str:
        """Which way the difference goes, if that is known."""
        if not math.isfinite(self.difference.low):
            return ""
        above, below = self.difference.low > 0, self.difference.high < 0
        return "more" if above else "less" if below else "no difference shown"

    def entry(self) -> dict[str, Any]:
        """As a claim of `results.save`."""
        name, condition = self.measure.name, self.measure.condition
        return {
            "id": f"audit-{name}" + (f"-{condition}" if condition else ""),
            "property": self.of.name,
            "measure": name,
            "condition": condition,
            "meaning": self.measure.label,
            "values": self.values,
            "student": _ends(self.student),
            "reference": self.reference,
            **_ends(self.difference),
            "share": _ends(self.way.ratio or stats.NOTHING),
            "word": self.way.word,
            "ends": self.way.ends,
            "criterion": self.criterion,
            "verdict": self.verdict,
            "paper": None,
        }


def _ends(interval: stats.Interval) -> dict[str, float]:
    return {name: getattr(interval, name) for name in ("estimate", "low", "high")}


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
        from kdnotes.audit import answers, judging

        named = [each for each in (*probes.measures(), *answers.FLIPS) if each.name == measure]
        if condition is None:
            here = set(self.table.loc[self.table["measure"] == measure, "condition"])
            condition = next((each.condition for each in named if each.condition in here), "")
        declared = replace(named[0] if named else Measure(measure, ""), condition=condition)
        try:
            return judging.difference(self.outcome, declared, arm, reference)
        except stats.NotMeasuredError as error:
            names = ", ".join(sorted(self.table["measure"].unique()))
            raise RequestError(f"{error}; measured: {names}") from error

    def comparisons(self) -> list[dict[str, Any]]:
        """The main measures: each arm's mean, the student's difference and share of the way."""
        return [each.entry() for each in self.compared()]

    def compared(self) -> list[Comparison]:
        """What is said of the properties' main measures that were measured of the student."""
        from kdnotes.audit import judging

        found, listed = self.outcome, []
        networks = found.table.groupby("arm")["seed"].nunique()
        criterion = CRITERION_OF_SEVERAL if networks.drop("teacher").max() > 1 else CRITERION
        for which, shown in [(each, its) for each in probes.properties() for its in each.measures]:
            rows = found.table[found.table["measure"] == shown.name]
            rows = rows[rows["condition"] == shown.condition]
            values = rows.groupby("arm", sort=False)["value"].mean().to_dict()
            if not shown.reported or math.isnan(values.get("student", math.nan)):
                continue
            reference: str | float | None = None
            if "independent" in networks:  # what is relative to the twin is compared with chance
                measured = math.isfinite(values.get("independent", math.nan))
                reference = "independent" if measured else shown.chance
            apart = stats.NOTHING
            if reference is not None:
                apart = judging.difference(found, shown, "student", reference)
            own = judging.difference(found, shown, "student", 0.0)
            way = judging.share(found, shown)
            made = Comparison(which, shown, values, own, reference, apart, way, criterion)
            listed.append(made)
        return listed

    def show(self) -> None:
        """Show the main measures as a table, and what could not be measured."""
        from kdnotes.book import page_tables, report
        from kdnotes.progress import in_notebook

        rows = []
        for each in self.compared():
            means = [each.values.get(arm, math.nan) for arm in ARMS]
            values = [stats.format_number(mean) if math.isfinite(mean) else "" for mean in means]
            known = math.isfinite(each.difference.estimate)
            apart = each.difference.format() if known else ""
            rows.append((each.measure.label, *values, apart, each.verdict))
        table = page_tables.columns_table(("what", *ARMS, "difference [95%]", ""), "::::::", rows)
        skipped = (f"Not measured: {name} ({why})." for name, why in self.skipped.items())
        text = "\n".join([table, "", *skipped])
        report.say(text) if in_notebook() else print(text)


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
    left as they are: copies are measured. Raises RequestError for weights that are not finite, and
    for what is no network.
    """
    from kdnotes.audit.members import member
    from kdnotes.networks import Normalized

    members = []
    for arm, given in (("teacher", [teacher]), ("student", student), ("independent", independent)):
        listed: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
        for seed, module in enumerate(listed):
            if not isinstance(module, torch.nn.Module):
                kind = type(module).__name__
                raise RequestError(f"{arm} is a {kind}, not one network (torch.nn.Module)")
            if not isinstance(module, Normalized):
                module = Normalized(module, (*(mean or (0.0,) * 3),), (*(std or (1.0,) * 3),))
            members.append(member(arm, seed, module))
    return Cast(members[0], None, tuple(members[1:]), ())


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
    if size is not None and size < 1:
        raise RequestError(f"size must be 1 or more, not {size}")
    if folder is None:
        return _from_tensors(pixels, labels)
    listed = inputs.listed(folder, count)
    side = size or folders.usual_size(listed.root, sorted(listed.labels.index))
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
    room = members.room(complete.everyone(), images.size)
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
    which: Property, of: Cast, images: ImageData, gradient_images: int, room: tuple[int, int]
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
        with base.at_most(room["gradients" in which.needs]):
            found = which.measure(of, some, **which.brief)
    except FloatingPointError as error:  # a network whose answers are no numbers
        raise RequestError(str(error)) from error
    items = places.numpy()[found.items["item"]]
    return Outcome(found.table, found.items.assign(item=items.astype("int32")))


def _subset(images: ImageData, places: Tensor) -> ImageData:
    """Some of the images; those that are read as they are asked for stay on the disk."""
    from kdnotes.data.photos import StreamingImages

    if not isinstance(source := images.images, StreamingImages):
        return images.subset(places)
    pixels = replace(source, names=[source.names[place] for place in places.tolist()])
    labels, sources = images.labels[places], images.sources[places]
    return replace(images, images=pixels, labels=labels, sources=sources)


def together(parts: Sequence[Outcome]) -> Outcome:
    """All properties' rows; accuracy, which every probe measures anew, from the first."""
    return Outcome.combine([parts[0], *(part.without_accuracy() for part in parts[1:])])


def with_classes(of: Cast, images: ImageData) -> Cast:
    """The cast with the images' classes, its answers tried on two images. Raises RequestError."""
    from kdnotes.networks.wrapping import logits_once

    few = base.pictures(images, torch.arange(min(2, len(images))))
    widths = {}
    for member in of.everyone():
        try:
            logits = logits_once(member.network, few.to(base.device_of(member.network)))
        except (RequestError, FloatingPointError) as error:  # or answers that are no numbers
            raise RequestError(f"{member.arm}: {error}") from error
        widths[member.arm] = logits.shape[1]
    needed = int(images.labels.max()) + 1
    if len(set(widths.values())) > 1 or min(widths.values()) < needed:
        raise RequestError(f"numbers of classes do not fit: {widths}, and the images have {needed}")
    return replace(of, classes=images.classes if len(images.classes) == widths["teacher"] else ())
