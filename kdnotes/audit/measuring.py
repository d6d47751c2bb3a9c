"""Measuring one's own networks on one's own images, property by property."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdnotes.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast, Member, Outcome, Property
    from kdnotes.stats import Interval

CRITERION = "95% interval over images, for these very networks"


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
    ) -> Interval:
        """An arm minus another, or minus a number, with its 95% interval.

        Over seeds and images where there are several networks of an arm, else over images.
        ``condition`` None: the measure's main one. Raises RequestError for what was not measured.
        """
        from kdnotes import probes, stats

        if condition is None:
            known = [each for each in probes.measures() if each.name == measure]
            here = set(self.table.loc[self.table["measure"] == measure, "condition"])
            condition = next((each.condition for each in known if each.condition in here), "")
        try:
            return stats.contrast(
                self.table, self.outcome.items, measure, condition, arm, reference
            )
        except stats.NotMeasuredError as error:
            names = ", ".join(sorted(self.table["measure"].unique()))
            raise RequestError(f"{error}; measured: {names}") from error

    def comparisons(self) -> list[dict[str, Any]]:
        """The main measures: each arm's mean, and student minus independent with its interval."""
        from kdnotes import probes, stats

        listed = []
        table = self.table
        has_independent = "independent" in set(table["arm"])
        for shown in probes.measures():
            if not shown.reported:
                continue
            name, condition = shown.name, shown.condition
            rows = table[(table["measure"] == name) & (table["condition"] == condition)]
            values = rows.groupby("arm", sort=False)["value"].mean().to_dict()
            if "student" not in values:  # a property that could not be measured
                continue
            reference: str | float | None = None
            if has_independent:  # what is relative to the twin itself is compared with chance
                reference = "independent" if "independent" in values else shown.chance
            tables = (table, self.outcome.items, name, condition)
            found = stats.contrast(*tables, "student", reference or 0.0)
            listed.append(
                {
                    "id": f"audit-{name}" + (f"-{condition}" if condition else ""),
                    "measure": name,
                    "condition": condition,
                    "meaning": shown.label,
                    "values": values,
                    "reference": reference,
                    "estimate": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "criterion": CRITERION,
                    "verdict": _verdict(found.low, found.high) if reference else "",
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
        from kdnotes.stats import Interval, format_number

        lines = [
            "| what | teacher | student | independent | difference [95%] | |",
            "|---|---|---|---|---|---|",
        ]
        for claim in comparisons:
            arms = (
                claim["values"].get(arm, math.nan) for arm in ("teacher", "student", "independent")
            )
            values = (format_number(value) if math.isfinite(value) else "" for value in arms)
            difference = Interval(claim["estimate"], claim["low"], claim["high"], 1, 0, math.nan)
            compared = claim["reference"] is not None and math.isfinite(claim["estimate"])
            cells = [claim["meaning"], *values, difference.format() if compared else ""]
            lines.append("| " + " | ".join([*cells, claim["verdict"]]) + " |")
        skipped = (f"Not measured: {name} ({why})." for name, why in self.skipped.items())
        return [*lines, "", *skipped]


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
    from kdnotes.probes.base import Cast

    def members(arm: str, given: nn.Module | Sequence[nn.Module]) -> list[Member]:
        listed: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
        return [
            _member(f"{arm} {seed}", arm, seed, module, mean, std)
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
    """Test images of a folder that has a folder for each class, or tensors.

    ``size``: the side in pixels; ``count``: how many at most. ``pixels``: (N, 3, H, W), uint8 or in
    [0, 1], with ``labels`` int64 (N,). Raises RequestError.
    """
    from kdnotes import data

    if (folder is None) == (pixels is None) or (pixels is None) != (labels is None):
        raise RequestError("name a folder of images, or give both pixels and labels")
    for name, value in (("size", size), ("images", count)):
        if value is not None and value < 1:
            raise RequestError(f"{name} must be 1 or more, not {value}")
    if folder is not None:
        asked = {"size": size, "skip_damaged": skip_damaged}
        options = {name: value for name, value in asked.items() if value}
        source = f"{data.FOLDER_PREFIX}{folder}"
        return data.load(data.DataSpec(name=source, split="test", count=count, options=options))
    return _from_tensors(pixels, labels)


def _from_tensors(pixels: Any, labels: Any) -> ImageData:
    import torch

    from kdnotes.data import ImageData

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
    report: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure properties of a cast on images: all that are declared for it, or those named.

    Raises RequestError for an unknown property, for networks whose answers do not fit, and where
    nothing can be measured.
    """
    from kdnotes import probes

    offered = {each.name: each for each in probes.properties() if each.audited}
    for name in properties or ():
        if name not in offered:
            raise RequestError(f"unknown property {name!r}; known: {', '.join(offered)}")
    try:
        return _measured(of, images, [offered[name] for name in properties or offered], report)
    except FloatingPointError as error:  # a network whose answers are no numbers
        raise RequestError(str(error)) from error


def _measured(
    of: Cast, images: ImageData, wanted: Sequence[Property], report: Callable[[str], None]
) -> Measured:
    from kdnotes.probes.base import Outcome

    classes = _checked_answers(of, images)
    complete = replace(of, classes=images.classes if len(images.classes) == classes else ())
    parts: list[Outcome] = []
    skipped = {}
    for which in wanted:
        report(f"measuring {which.title} on {len(images)} images")
        try:
            if "maps" in which.needs and not all(member.taps for member in of.everyone()):
                raise RequestError(
                    "no stages with feature maps can be found in one of the networks"
                )
            found = which.measure(complete, images)
        except RequestError as error:  # such as a network without feature maps
            skipped[which.title] = str(error)
        else:  # every probe measures the accuracy on the images as they are anew
            parts.append(found.without_accuracy() if parts else found)
    if not parts:
        raise RequestError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    return Measured(Outcome.combine(parts), skipped)


def _checked_answers(of: Cast, images: ImageData) -> int:
    """The number of classes that all networks answer with, tried on two images."""
    import torch

    from kdnotes.data.views import to_float
    from kdnotes.probes.base import device_of, logits_of

    few = to_float(images.batch(torch.arange(min(2, len(images)))))
    widths = {}
    for member in of.everyone():
        logits = logits_of(member.network, few.to(device_of(member.network)))
        if logits.ndim != 2:
            raise RequestError(
                f"the {member.arm} answers with {tuple(logits.shape)} numbers, not with logits "
                "(N, classes)"
            )
        widths[member.arm] = logits.shape[1]
    needed = int(images.labels.max()) + 1
    if len(set(widths.values())) > 1 or min(widths.values()) < needed:
        raise RequestError(f"numbers of classes do not fit: {widths}, and the images have {needed}")
    return widths["teacher"]


def _member(
    called: str,
    arm: str,
    seed: int,
    module: nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Member:
    from kdnotes import networks
    from kdnotes.probes.base import Member
    from kdnotes.study.resolving import resolve_device

    own = copy.deepcopy(module)
    if not all(bool(each.isfinite().all()) for each in own.state_dict().values()):
        raise RequestError(f"{called} has weights that are not finite numbers")
    if not isinstance(own, networks.Normalized):
        centre, spread = tuple(mean or (0.0, 0.0, 0.0)), tuple(std or (1.0, 1.0, 1.0))
        own = networks.Normalized(own, centre, spread)
    network = networks.freeze(own.eval()).to(resolve_device(""))
    try:
        taps = networks.taps(network)
    except RequestError:  # only some properties need them, and say so
        taps = ()
    return Member(arm, seed, network, taps)


def _verdict(low: float, high: float) -> str:
    if not math.isfinite(low):
        return ""
    if low > 0:
        return "more"
    return "less" if high < 0 else "no difference shown"
