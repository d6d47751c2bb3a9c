"""Who takes part in a cast: how each arm is taught, what it is called and how it is drawn."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdnotes.figures.looks import Look, declare
from kdnotes.methods import Method

# At each depth, of several weights, the one with which students were right most often on
# development seeds (results/hint-weights.csv, by `benchmarks/hint_weights.py`).
DEPTH_WEIGHTS = {"1/3": 1.0, "2/3": 3.0, "3/3": 3.0, "logits": 0.1}
_MARKERS = "vp<>hdX8H"  # of arms that are variants of others, by a checksum of what they vary
_OTHER_TEACHER = "#C85F6E"  # what the second of two mixed teachers adds to the colour

Labels = Literal["teacher", "smoothed", "permuted"]
Control = Literal["second-teacher", "smoothed", "permuted"]


@dataclass(frozen=True)
class Arm(Look):
    """A kind of network in a cast: its look, its name in tables, and how it is taught.

    ``method`` None: from labels alone. ``labels``: whose soft labels the method gets: the
    teacher's, smoothed ones without a teacher, or the teacher's permuted within a class.
    """

    method: Method | None = None
    labels: Labels = "teacher"

    def __post_init__(self) -> None:
        declare(self)

    def variant(
        self,
        name: str,
        label: str,
        short: str = "",
        settings: Mapping[str, Any] | None = None,
        *,
        tint: float = 0.35,
        marker: str = "",
        line: Any = "--",
        hollow: bool = True,
    ) -> Arm:
        """This arm in another way, called NAME-``name``; ``settings`` replace its method's.

        ``label`` and ``short`` are added to its short label. ``tint``: how much lighter it is
        drawn, 0 to 1, or darker, 0 to -1. Raises pydantic's ValidationError for settings that do
        not exist.
        """
        method = self.method
        if method is not None and settings:
            method = type(method).model_validate(dict(method) | dict(settings))
        return replace(
            self,
            name=f"{self.name}-{name}",
            label=f"{self.short}, {label}",
            short=f"{self.short} {short or label}",
            colour=_mixed(self.colour, "#FFFFFF" if tint > 0 else "#000000", abs(tint)),
            marker=marker or _MARKERS[zlib.crc32(name.encode()) % len(_MARKERS)],
            line=line,
            hollow=hollow,
            method=method,
        )


TEACHER = Arm("teacher", "Teacher", "Teacher", "#000000", "*")
SECOND_TEACHER = Arm("second-teacher", "Second teacher", "Second teacher", "#B05A8C", "P", "--")
PLAIN_TEACHER = Arm("plain-teacher", "Plain teacher", "Plain teacher", "#4D4D4D", "*", ":", True)
INDEPENDENT = Arm("independent", "Independent (no teacher)", "Independent", "#999999", "o", "--")
FOREIGN = Arm("foreign", "Foreign network", "Foreign", "#6B4E16", "X", (0, (5, 5)))
_CONTROLS: dict[Control, tuple[str, str, str, str, Any]] = {
    "second-teacher": ("KL, other teacher", "Other teacher", "#7A2E5D", "v", (0, (3, 1))),
    "smoothed": ("Soft labels, no teacher", "Smoothed", "#56B4E9", "<", (0, (1, 1))),
    "permuted": ("Soft labels, permuted", "Permuted", "#D55E00", ">", (0, (3, 1, 1))),
}

CONTROLS = tuple(f"control-{kind}" for kind in _CONTROLS)


def taught_by(method: Method) -> Arm:
    """The students of a method, called and drawn as it says."""
    look = (method.label, method.short, method.colour, method.marker, method.line)
    return Arm(method.name, *look, method=method)


def every_control(soft: Arm) -> tuple[Arm, ...]:
    """One control of each kind, as `control` gives it."""
    return tuple(control(kind, soft) for kind in _CONTROLS)


def control(kind: Control, soft: Arm) -> Arm:
    """Students of other soft labels than their teacher's, by the method of ``soft``."""
    labels: Labels = "teacher" if kind == "second-teacher" else kind
    return Arm(f"control-{kind}", *_CONTROLS[kind], method=soft.method, labels=labels)


def plain(arm: Arm) -> Arm:
    """The same students with a plain teacher: one that was not given the property."""
    return arm.variant("plain", "plain teacher", "plain", marker=arm.marker, line=":")


def depths(hint: Arm) -> dict[str, Arm]:
    """Hint after each third of the stages, then at the logits, with the weights that suit these."""
    found: dict[str, Arm] = {}
    for place, tint in zip(DEPTH_WEIGHTS, (0.5, -0.1, -0.35, -0.65), strict=True):
        marker = f"{len(found) + 1}"
        settings = {"student_layer": place, "teacher_layer": place, "weight": DEPTH_WEIGHTS[place]}
        names = ("logits",) * 3 if place == "logits" else (marker, f"layer {marker}", marker)
        found[place] = hint.variant(*names, settings, tint=tint, marker=marker, hollow=False)
    return found


def weighted(soft: Arm, weight: float) -> Arm:
    """The same students with another weight on the soft labels, the rest on the labels."""
    names = (f"weight-{weight:g}", f"weight {weight:g}", f"{weight:g}")
    settings = {"weight": weight, "gamma": 1 - weight}
    return soft.variant(*names, settings, tint=0.6 - 0.6 * weight, marker=soft.marker, hollow=False)


def at_temperature(soft: Arm, tau: float) -> Arm:
    """The same students with soft labels at another temperature."""
    names = (f"tau-{tau:g}", f"temperature {tau:g}", f"tau {tau:g}")
    tint = min(max(0.6 - math.log2(tau) / 4, -0.8), 0.8)  # the hotter, the darker
    return soft.variant(*names, {"tau": tau}, tint=tint)


def mixed_teacher(share: float) -> Arm:
    """The mean of two teachers, with this share of the second."""
    names = (f"teacher-{share:g}", f"Teacher with {share:g} of another", f"Teacher mix {share:g}")
    colour = _mixed(TEACHER.colour, _OTHER_TEACHER, share)
    return Arm(*names, colour, "*", "--", hollow=True)


def mixture(soft: Arm, share: float) -> Arm:
    """Students of the mean of two teachers, with this share of the second."""
    labels = (f"{soft.short} with {share:g} of another teacher", f"{soft.short} mix {share:g}")
    colour = _mixed(soft.colour, _OTHER_TEACHER, share)
    return Arm(f"mixture-{share:g}", *labels, colour, "d", "--", method=soft.method)


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour #RRGGBB with a share of another one."""
    pairs = [(int(colour[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(own * (1 - share) + its * share):02X}" for own, its in pairs)
