"""An audit by the command: checked before work, saved property by property, gone on with later."""

from __future__ import annotations

import hashlib
import math
import operator
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths, progress, store
from kdnotes.audit import answers, inputs, measuring, members
from kdnotes.audit.inputs import Listed
from kdnotes.book import results, running
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.probes import accuracy
from kdnotes.probes.base import Cast, Member, Outcome, Property
from kdnotes.stats import format_number

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.audit.measuring import Measured
    from kdnotes.data import ImageData

NAME = "audit"
PARTS = "audit.parts"  # folder of what is finished, so that a stopped audit goes on
ANSWERS = "answers-"  # how files of networks' answers in it begin; a finished audit needs none
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(
    r"\s*(?P<name>\w+)(\[(?P<where>[^\]]*)\])?(?P<diff>:diff)?\s*(?P<sign>[<>]=?)\s*(?P<number>\S+)\s*"
)
FORM = 'write "MEASURE OP NUMBER" or "MEASURE:diff OP NUMBER", OP one of > >= < <='
Gate = Callable[["Measured"], tuple[bool, str]]  # whether it is met, and what is said of that


@dataclass(frozen=True)
class Request:
    """What is asked of an audit, as it was typed; see ``kdnotes audit --help``."""

    teacher: str | None = None
    students: Sequence[str] = ()
    independents: Sequence[str] = ()
    data: str | None = None
    predictions: str | None = None
    map: str | None = None
    groups: str | None = None
    only: tuple[str, ...] = ()
    size: int | None = None
    images: int | None = None
    gradient_images: int = measuring.GRADIENT_IMAGES
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    skip_damaged: bool = False
    fail_if: Sequence[str] = ()

    def networks(self) -> list[tuple[str, str]]:
        """The arm and the text of every network, in the order of a cast."""
        named = [("teacher", self.teacher)] if self.teacher else []
        named += [("student", text) for text in self.students]
        return named + [("independent", text) for text in self.independents]


@dataclass
class Audit:
    """A request with all that it stands for; ``logits`` where there are no networks to ask."""

    request: Request
    cast: Cast
    images: ImageData
    listed: Listed
    wanted: list[Property]
    gates: list[Gate]
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    logits: list[Tensor] | None = None

    @property
    def has_networks(self) -> bool:
        """Whether there are networks, and not only what they predicted."""
        return self.logits is None

    @cached_property
    def pixels(self) -> str:
        """SHA-256 of all images."""
        state = hashlib.sha256()
        for indices in torch.arange(len(self.images)).split(256):
            state.update(self.images.batch(indices).contiguous().numpy().tobytes())
        return state.hexdigest()

    @cached_property
    def marks(self) -> list[str]:
        """What names each network, or else its predictions, in the cast's order."""
        if self.logits is not None:
            return [store.checksum(each.numpy().tobytes()) for each in self.logits]
        return [members.digest(member.network) for member in self.cast.everyone()]

    def count(self, which: Property) -> int:
        """How many of the images a property is measured on."""
        return measuring.count_of(which, len(self.images), self.request.gradient_images)


def run(request: Request, out: Path) -> tuple[str, list[str]]:
    """Measure what is asked for and write audit.csv, .items.parquet, .json and report.html to out.

    Returns a summary for the terminal, and the conditions that are met. Everything that can be
    wrong is refused before the folder is made. Raises RequestError, and RunFailedError where a
    property failed: all others are measured and written all the same.
    """
    from kdnotes.audit import report

    started = time.perf_counter()
    audit = prepared(request)
    running.make_folder(out)
    parts, lost, failed = measured(audit, out)
    if not parts:
        raise RunFailedError("nothing could be measured: " + _enumerated(lost))
    found = measuring.Measured(measuring.together(list(parts.values())), lost)
    compared = found.compared()
    judged = [each(found) for each in audit.gates]
    seconds = time.perf_counter() - started
    given = {key: value for key, value in asdict(request).items() if value not in (None, (), False)}
    said = [text for _, text in judged]
    parameters = given | {
        "measured_images": len(audit.images),
        "measured_size": audit.images.size,
        "not_measured": lost,
        "conditions": said,
        "sha256": report.hashes(audit),
    }
    command, claims = command_of(request, out), [each.entry() for each in compared]
    results.save(NAME, found.outcome, claims, parameters, seconds, out, command=command)
    changes = report.by_names(audit, found.outcome) if "fidelity" in parts else {}
    if changes:
        tables = [table.assign(by=of) for of, table in changes.items()]
        with store.appearing(out / report.CHANGES) as path:
            pd.concat(tables).to_csv(path, index=False, float_format="%.6g")
    page = report.page(audit, found, compared, changes, parameters, command, seconds)
    with store.appearing(out / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    if failed:
        why = _enumerated({name: lost[name] for name in failed})
        raise RunFailedError(f"{why}; everything else is in {out / 'report.html'}")
    for left in (out / PARTS).glob(f"{ANSWERS}*"):
        store.remove(left)
    lines = [*report.answers_as_text(compared), "", *said]
    return "\n".join(lines).strip(), [text for met, text in judged if met]


def command_of(request: Request, out: Path) -> str:
    """The command that asks for this again, its paths relative to where it was typed."""
    called = {"students": "student", "independents": "independent", "fail_if": "fail-if"}
    words = ["kdnotes", "audit"]
    default = asdict(Request())
    for name, value in asdict(request).items():
        option = f"--{called.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(option)
        elif name in called:
            words += [word for each in value for word in (option, each)]
        elif value != default[name]:
            listed = isinstance(value, tuple)
            words += [option, ",".join(map(str, value)) if listed else str(value)]
    return shlex.join(paths.without_absolute_paths([*words, "--out", str(out)]))


# --- what is asked for --------------------------------------------------------------------------


def prepared(request: Request) -> Audit:
    """The request checked, its networks and images read. Raises RequestError."""
    wanted = measuring.chosen(request.only or None)
    if request.gradient_images < 1:
        raise RequestError(f"--gradient-images must be 1 or more, not {request.gradient_images}")
    if request.predictions:
        return _from_predictions(request, request.predictions, wanted)
    asked = {"teacher": request.teacher, "student": request.students, "data": request.data}
    for name, given in asked.items():
        if not given:
            raise RequestError(f"name the {name}: --{name}, or give --predictions FILE")
    students, twins = len(request.students), len(request.independents)
    if min(students, twins) > 1 and students != twins:
        raise RequestError(
            f"{students} students and {twins} independent ones: they are compared pair by pair, so "
            "give as many of each, or one of either"
        )
    gates = [gate(text, wanted, bool(twins)) for text in request.fail_if]
    listed = inputs.listed(str(request.data), request.images, request.groups)
    columns = inputs.columns(request.map, listed.classes) if request.map else ()
    cast, size, notes = _cast(request, len(columns) or len(listed.classes), columns, listed)
    images, sound = inputs.read(listed, size, request.skip_damaged)
    damaged = sorted(listed.labels.index.difference(sound.labels.index))
    cast = measuring.with_classes(cast, images)
    return Audit(request, cast, images, sound, wanted, gates, damaged, notes)


def _from_predictions(request: Request, file: str, wanted: list[Property]) -> Audit:
    if request.networks():
        raise RequestError("give networks (--teacher, --student) or --predictions, not both")
    if request.only and [each.name for each in wanted] != ["fidelity"]:
        raise RequestError(
            "predictions are enough for fidelity only; --only names what needs networks"
        )
    if not request.data and (request.groups or request.images):
        raise RequestError("--groups and --images are for the images of --data; name them as well")
    listed = inputs.listed(request.data, request.images, request.groups) if request.data else None
    cast, images, labelled, logits = inputs.predicted(file, listed)
    fidelity = [each for each in wanted if each.name == "fidelity"]
    gates = [gate(each, fidelity, "independent" in cast.arms) for each in request.fail_if]
    return Audit(request, cast, images, labelled, fidelity, gates, logits=logits)


def _cast(
    request: Request, classes: int, columns: Sequence[int], listed: Listed
) -> tuple[Cast, int, list[str]]:
    """The networks, the size of the images for all of them, and what was noted in loading."""
    from kdnotes import networks
    from kdnotes.data import folders

    named, loaded = request.networks(), []
    for arm, text in named:
        try:
            loaded.append(networks.open_network(text, classes, request.size))
        except RequestError as error:
            raise RequestError(f"--{arm}: {error}") from error
    sizes = [request.size or opened.size for opened in loaded]
    side = max((size for size in sizes if size), default=0)
    side = side or folders.usual_size(listed.root, sorted(listed.labels.index))
    made: dict[str, list[Member]] = {}
    for (arm, _), opened, size in zip(named, loaded, sizes, strict=True):
        network = opened.network
        for name, values in (("mean", request.mean), ("std", request.std)):
            if values:
                getattr(network, name).copy_(torch.tensor(values).view(1, -1, 1, 1))
        mine = made.setdefault(arm, [])
        own_side = None if size == side else size
        mine.append(members.member(arm, len(mine), network, own_side, columns))
    teacher, *taught = (member for mine in made.values() for member in mine)
    notes = list(dict.fromkeys(note for opened in loaded for note in opened.notes))
    return Cast(teacher, None, tuple(taught), ()), side, notes


# --- conditions for scripts ---------------------------------------------------------------------


def gate(text: str, wanted: Sequence[Property], has_twin: bool) -> Gate:
    """A condition on the student's value of a measure, or on student minus twin, as it was typed.

    Raises RequestError for one that an audit cannot decide.
    """
    option = f"--fail-if {text!r}"
    if not (parts := _CONDITION.fullmatch(text)):
        raise RequestError(f"{option} is no condition: {FORM}")
    number = math.nan
    with suppress(ValueError):
        number = float(parts["number"])
    if not math.isfinite(number):
        raise RequestError(f"{option}: {parts['number']!r} is no number; {FORM}")
    name, where, of_twin = parts["name"], parts["where"], parts["diff"] is not None
    declared = [each for which in wanted for each in which.measures if each.reported]
    declared += accuracy.MEASURES[:1]
    if any(which.name == "fidelity" for which in wanted):
        declared += answers.FLIPS
    named = [each for each in declared if each.name == name]
    if not named:
        known = ", ".join(dict.fromkeys(each.name for each in declared))
        raise RequestError(f"{option}: no measure {name!r} in this audit; it has: {known}")
    fitting = [each for each in named if where in (None, each.condition)]
    if len(fitting) != 1:
        options = ", ".join(f'"{name}[{each.condition}]"' for each in named)
        raise RequestError(f"{option}: say which {name}: {options}")
    relative = name == "win_rate" or fitting[0] in answers.FLIPS[:-1]
    if (of_twin or relative) and not has_twin:
        raise RequestError(f"{option}: that needs an --independent student")
    if of_twin and (relative or fitting[0] in answers.FLIPS):
        raise RequestError(f"{option}: {name} is of the student beside another: leave :diff out")
    what = name, "student", "independent" if of_twin else 0.0, fitting[0].condition
    return partial(_is_met, text, what, parts["sign"], number)


def _is_met(text: str, what: Any, sign: str, number: float, found: Measured) -> tuple[bool, str]:
    """Whether the whole interval lies beyond the number, and what is said of it."""
    try:
        value = found.contrast(*what)
    except RequestError as error:
        return False, f"{text}: not decided, {error}"
    if not math.isfinite(value.low):
        return False, f"{text}: not decided, {format_number(value.estimate, 3)} has no interval"
    met = bool(OPERATORS[sign](value.low if sign.startswith(">") else value.high, number))
    return met, f"{text}: {'met' if met else 'not met'} by {value.format(3)}"


# --- property by property -----------------------------------------------------------------------


def measured(audit: Audit, out: Path) -> tuple[dict[str, Outcome], dict[str, str], list[str]]:
    """Outcomes by property; why others could not be measured, by title; which of them failed.

    What is finished lies in ``out`` under a name that follows from all it depends on, and is read
    from there when the same audit is run again; so do the networks' answers until it is finished.
    """
    parts: dict[str, Outcome] = {}
    lost: dict[str, str] = {}
    failed = []
    everyone = audit.cast.everyone() if audit.has_networks else []
    room = members.room(everyone, audit.images.size) if everyone else (1, 1)
    folders = _folders(audit, room, out / PARTS)
    kept = {folder.name for folder in folders.values()}
    passes = {which.name: which.passes * audit.count(which) for which in audit.wanted}
    (out / PARTS).mkdir(exist_ok=True)
    with progress.shown(NAME, sum(passes.values())) as shown:
        for member, mark in zip(everyone, audit.marks, strict=False):
            network: Any = member.network
            network.report = lambda count: shown.advance(count / len(everyone))
            state = mark + _code() + repr(results.versions())
            kept.add(name := ANSWERS + store.checksum(state.encode())[:16])
            network.answers = members.Answers(out / PARTS / name)
        done = 0.0
        for which in audit.wanted:
            shown.advance(done - shown.done, which.title)
            started = time.perf_counter()
            folder = folders[which.name]
            try:
                parts[which.name] = _finished(folder) or _measure(which, audit, room, folder)
            except RequestError as error:
                lost[which.title] = str(error)
            except Exception as error:  # one property's failure must not cost the others
                lost[which.title] = f"{type(error).__name__}: {error}"[:300]
                failed.append(which.title)
            done += passes[which.name]
            if not sys.stderr.isatty():
                why = lost.get(which.title, f"{time.perf_counter() - started:.0f} s")
                print(f"{NAME}: {which.title}: {why}", file=sys.stderr, flush=True)
    for old in (out / PARTS).glob("*"):
        if old.name not in kept:
            store.remove(old)
    return parts, lost, failed


def _measure(which: Property, audit: Audit, room: tuple[int, int], folder: Path) -> Outcome:
    if which.name == "fidelity":
        found = answers.measure(audit.cast, audit.images, audit.logits)
    else:
        count = audit.request.gradient_images
        found = measuring.measure_one(which, audit.cast, audit.images, count, room)
    with store.appearing_folder(folder) as scratch:
        found.table.to_parquet(scratch / "table.parquet", index=False)
        found.items.to_parquet(scratch / "items.parquet", index=False)
    return found


def _finished(folder: Path) -> Outcome | None:
    files = [folder / f"{name}.parquet" for name in ("table", "items")]
    with suppress(Exception):  # what is not whole is measured again
        return Outcome(*map(pd.read_parquet, files))
    return None


def _folders(audit: Audit, room: tuple[int, int], parts: Path) -> dict[str, Path]:
    """Where each property's outcome lies, by all that it depends on: networks, images and code."""
    state = hashlib.sha256(repr((room, _code(), results.versions(), audit.cast.classes)).encode())
    for member, mark in zip(audit.cast.everyone(), audit.marks, strict=True):
        state.update(f"{member.arm} {member.seed} {mark} ".encode())
    state.update(audit.pixels.encode() + audit.images.labels.numpy().tobytes())
    found = {}
    for which in audit.wanted:
        own = repr((which.name, which.brief, audit.count(which), state.hexdigest()))
        found[which.name] = parts / f"{which.name}-{store.checksum(own.encode())[:16]}"
    return found


@cache
def _code() -> str:
    """Of the package's files that decide a measured number."""
    package = Path(__file__).resolve().parents[1]
    parts = ("audit/answers.py", "audit/members.py", "probes/*.py", "data/*.py", "networks/*.py")
    files = sorted(path for part in parts for path in package.glob(part))
    return store.checksum("".join(store.checksum(path) for path in files).encode())


def _enumerated(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in reasons.items())
