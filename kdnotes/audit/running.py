"""An audit by the command: checked before work, saved property by property, gone on with later."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import paths, progress, store
from kdnotes.audit import answers, gate, inputs, measuring, members, predictions
from kdnotes.audit.inputs import Listed
from kdnotes.audit.remembering import Answers
from kdnotes.book import results, running
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.probes.base import Cast, Member, Outcome, Property

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes import networks
    from kdnotes.data import ImageData

NAME = "audit"
PARTS = "audit.parts"  # folder of what is finished, so that a stopped audit goes on
ANSWERS = (
    "answers-"  # what files of networks' answers in it begin with; a finished audit needs none
)


@dataclass(frozen=True)
class Request:
    """What is asked of an audit, as it was typed; see ``kdnotes audit --help``."""

    teacher: str | None = None
    students: tuple[str, ...] = ()
    independents: tuple[str, ...] = ()
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
    fail_if: tuple[str, ...] = ()


@dataclass
class Audit:
    """A request with all that it stands for; ``logits`` where there are no networks to ask."""

    request: Request
    cast: Cast
    images: ImageData
    listed: Listed
    wanted: list[Property]
    gates: list[gate.Gate]
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    logits: list[Tensor] | None = None

    @property
    def has_networks(self) -> bool:
        """Whether there are networks, and not only what they predicted."""
        return self.logits is None


@dataclass(frozen=True)
class Done:
    """What came of an audit: a summary for the terminal, and which conditions were met."""

    summary: str
    met: list[str]


def run(request: Request, out: Path) -> Done:
    """Measure what is asked for and write audit.csv, .items.parquet, .json and report.html to out.

    Everything that can be wrong is refused before the folder is made. Raises RequestError, and
    RunFailedError where a property failed: all others are measured and written all the same.
    """
    from kdnotes.audit import report

    started = time.perf_counter()
    audit = prepared(request)
    running.make_folder(out)
    parts, skipped, failed = measured(audit, out)
    if not parts:
        raise RunFailedError("nothing could be measured: " + _listed(skipped | failed))
    found = measuring.Measured(measuring.together(list(parts.values())), skipped | failed)
    compared = found.comparisons()
    judged = [each.is_met(found) for each in audit.gates]
    seconds = time.perf_counter() - started
    given = {key: value for key, value in asdict(request).items() if value not in (None, (), False)}
    marks, said = report.hashes(audit), [text for _, text in judged]
    parameters = given | {
        "measured_images": len(audit.images),
        "measured_size": audit.images.size,
        "not_measured": found.skipped,
        "conditions": said,
        "sha256": marks,
    }
    command = command_of(request, out)
    results.save(NAME, found.outcome, compared, parameters, seconds, out, command=command)
    if "fidelity" in parts:
        changed = report.by_names(audit, found.outcome)
        tables = [table.assign(by=of) for of, table in changed.items()]
        with store.appearing(out / report.CHANGES) as path:
            pd.concat(tables).to_csv(path, index=False, float_format="%.6g")
    page = report.page(audit, found, compared, said, command, marks, seconds)
    with store.appearing(out / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    if failed:
        raise RunFailedError(f"{_listed(failed)}; everything else is in {out / 'report.html'}")
    for left in (out / PARTS).glob(f"{ANSWERS}*"):
        store.remove(left)
    lines = [*report.answers_as_text(compared), "", *said]
    return Done("\n".join(lines).strip(), [text for met, text in judged if met])


def command_of(request: Request, out: Path) -> str:
    """The command that asks for this again, its paths relative to where it was typed."""
    called = {"students": "student", "independents": "independent"}
    words = ["kdnotes", "audit"]
    default = asdict(Request())
    for name, value in asdict(request).items():
        option = f"--{called.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(option)
        elif name in called or name == "fail_if":
            words += [word for each in value for word in (option, each)]
        elif value != default[name]:
            listed = isinstance(value, tuple)
            words += [option, ",".join(map(str, value)) if listed else str(value)]
    return shlex.join(paths.without_absolute_paths([*words, "--out", str(out)]))


def prepared(request: Request) -> Audit:
    """The request checked, its networks and images read. Raises RequestError."""
    wanted = measuring.chosen(request.only or None)
    if request.gradient_images < 1:
        raise RequestError(f"--gradient-images must be 1 or more, not {request.gradient_images}")
    if request.predictions:
        return _from_predictions(request, wanted)
    for name, given in (
        ("teacher", request.teacher),
        ("student", request.students),
        ("data", request.data),
    ):
        if not given:
            raise RequestError(f"name the {name}: --{name}, or give --predictions FILE")
    students, twins = len(request.students), len(request.independents)
    if min(students, twins) > 1 and students != twins:
        raise RequestError(
            f"{students} students and {twins} independent ones: they are compared pair by pair, so "
            "give as many of each, or one of either"
        )
    gates = [gate.parse(text, wanted, bool(twins)) for text in request.fail_if]
    listed = inputs.listed(str(request.data), request.images, request.groups)
    columns = inputs.columns(request.map, listed.classes) if request.map else ()
    cast, size, notes = _cast(request, len(columns) or len(listed.classes), columns, listed)
    images, sound, damaged = inputs.read(listed, size, request.skip_damaged)
    return Audit(
        request, measuring.with_classes(cast, images), images, sound, wanted, gates, damaged, notes
    )


def _from_predictions(request: Request, wanted: list[Property]) -> Audit:
    if request.teacher or request.students or request.independents:
        raise RequestError("give networks (--teacher, --student) or --predictions, not both")
    if request.only and [each.name for each in wanted] != ["fidelity"]:
        raise RequestError(
            "predictions are enough for fidelity only; --only names what needs networks"
        )
    if not request.data and (request.groups or request.images):
        raise RequestError("--groups and --images are for the images of --data; name them as well")
    listed = inputs.listed(request.data, request.images, request.groups) if request.data else None
    cast, images, labelled, logits = predictions.read(str(request.predictions), listed)
    fidelity = [each for each in wanted if each.name == "fidelity"]
    gates = [gate.parse(each, fidelity, "independent" in cast.arms) for each in request.fail_if]
    return Audit(request, cast, images, labelled, fidelity, gates, logits=logits)


def _cast(
    request: Request, classes: int, columns: Sequence[int], listed: Listed
) -> tuple[Cast, int, list[str]]:
    """The networks, the size of the images for all of them, and what was noted in loading."""
    from kdnotes.data import folders

    named = [("teacher", request.teacher or "")]
    named += [("student", text) for text in request.students]
    named += [("independent", text) for text in request.independents]
    loaded = [_load(arm, text, classes, request.size) for arm, text in named]
    sizes = [request.size or opened.size for opened in loaded]
    side = max((size for size in sizes if size), default=0)
    side = side or folders.usual_size(listed.root, sorted(listed.names))
    made: dict[str, list[Any]] = {}
    for (arm, text), opened, size in zip(named, loaded, sizes, strict=True):
        network = opened.network
        for name, values in (("mean", request.mean), ("std", request.std)):
            if values:
                getattr(network, name).copy_(torch.tensor(values).view(1, -1, 1, 1))
        mine = made.setdefault(arm, [])
        called, own = f"--{arm} {text}", size if size != side else None
        mine.append(members.member(called, arm, len(mine), network, side=own, columns=columns))
    taught = (*made["student"], *made.get("independent", ()))
    notes = list(dict.fromkeys(note for opened in loaded for note in opened.notes))
    return Cast(made["teacher"][0], None, taught, ()), side, notes


def _load(arm: str, text: str, classes: int, size: int | None) -> networks.Opened:
    """A named network, with the side in pixels that it wants and what to tell of it.

    The one place where an audit loads a network. Raises RequestError naming the option.
    """
    from kdnotes import networks

    try:
        return networks.open_network(text, classes, size)
    except RequestError as error:
        raise RequestError(f"--{arm}: {error}") from error


# --- property by property -----------------------------------------------------------------------


def measured(audit: Audit, out: Path) -> tuple[dict[str, Outcome], dict[str, str], dict[str, str]]:
    """Outcomes by property; what could not be measured, and what failed, with the reasons.

    What is finished lies in ``out`` under a name that follows from all it depends on, and is read
    from there when the same audit is run again.
    """
    parts: dict[str, Outcome] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    room = members.room(audit.cast, audit.images.size) if audit.has_networks else None
    shared = _shared_digest(audit, room)
    keys = {which.name: _key(which, audit, shared) for which in audit.wanted}
    everyone = list(audit.cast.everyone())
    kept = {f"{name}-{key}" for name, key in keys.items()}
    kept |= _remember(everyone, out / PARTS) if audit.has_networks else set()
    with progress.shown(NAME, sum(_passes(which, audit) for which in audit.wanted)) as shown:
        done = 0.0
        for which in audit.wanted:
            for member in everyone if audit.has_networks else ():
                cast_network: Any = member.network
                cast_network.report = lambda passes: shown.advance(passes / len(everyone))
            shown.advance(done - shown.done, which.title)
            started = time.perf_counter()
            folder = out / PARTS / f"{which.name}-{keys[which.name]}"
            try:
                parts[which.name] = _finished(folder) or _measure(which, audit, room, folder)
            except RequestError as error:
                skipped[which.title] = str(error)
            except Exception as error:  # one property's failure must not cost the others
                failed[which.title] = f"{type(error).__name__}: {error}"[:300]
            done += _passes(which, audit)
            why = skipped.get(which.title) or failed.get(which.title)
            if not sys.stderr.isatty():
                took = f"{time.perf_counter() - started:.0f} s"
                print(f"{NAME}: {which.title}: {why or took}", file=sys.stderr, flush=True)
    for old in (out / PARTS).glob("*"):
        if old.name not in kept:
            store.remove(old)
    return parts, skipped, failed


def _remember(everyone: Sequence[Member], folder: Path) -> set[str]:
    """Have all answers written to files, where a stopped audit finds them; the files' names."""
    folder.mkdir(exist_ok=True)
    names = set()
    for member in everyone:
        network: Any = member.network
        state = members.digest(network) + _code() + repr(results.versions())
        names.add(name := ANSWERS + store.checksum(state.encode())[:16])
        network.answers = Answers(folder / name)
    return names


def _measure(which: Property, audit: Audit, room: Any, folder: Path) -> Outcome:
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
    with suppress(Exception):  # what is not whole is measured again
        return Outcome(
            *(pd.read_parquet(folder / f"{name}.parquet") for name in ("table", "items"))
        )
    return None


def _passes(which: Property, audit: Audit) -> float:
    count = measuring.count_of(which, len(audit.images), audit.request.gradient_images)
    return which.passes * count


def _key(which: Property, audit: Audit, shared: str) -> str:
    count = measuring.count_of(which, len(audit.images), audit.request.gradient_images)
    own = [which.name, {name: str(value) for name, value in which.brief.items()}, count, shared]
    return store.checksum(json.dumps(own).encode())[:16]


def _shared_digest(audit: Audit, room: Any) -> str:
    """Of all that every property depends on: networks, images, labels, and the code."""
    state = hashlib.sha256(repr((room, _code(), results.versions(), audit.cast.classes)).encode())
    for place, member in enumerate(audit.cast.everyone()):
        mark = members.digest(member.network)
        if audit.logits is not None:
            mark = store.checksum(audit.logits[place].numpy().tobytes())
        state.update(f"{member.arm} {member.seed} {mark} ".encode())
    for indices in torch.arange(len(audit.images)).split(256):
        state.update(audit.images.batch(indices).contiguous().numpy().tobytes())
    state.update(audit.images.labels.numpy().tobytes())
    return state.hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Of the package's files that decide a measured number."""
    package = Path(__file__).resolve().parents[1]
    parts = ("audit/answers.py", "audit/members.py", "probes/*.py", "data/*.py", "networks/*.py")
    files = sorted(path for part in parts for path in package.glob(part))
    return store.checksum("".join(store.checksum(path) for path in files).encode())


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in reasons.items())
