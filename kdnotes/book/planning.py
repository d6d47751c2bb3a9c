"""From a chapter's parameters to the networks that its cell tagged `cast` declares."""

from __future__ import annotations

import linecache
import re
import shlex
import time
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import figures, paths
from kdnotes.book import parameters
from kdnotes.book.parameters import Parameter
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.probes.base import Cast, Outcome
    from kdnotes.study import Plan, Study

CAST = "cast"
_NUMBER = re.compile(r"^\d\d-")
_EXCHANGED = ContextVar("exchanged", default=False)  # whether the second teacher comes first


def planned(
    name: str, path: Path, declared: Mapping[str, Parameter], values: Mapping[str, Any]
) -> Study:
    """The study of a chapter, with the plans that its cell tagged `cast` makes of its parameters.

    ``path`` is its notebook and ``declared`` its parameters, of which ``values`` differ from the
    defaults. That cell alone is run, in a namespace of its own; nothing can be trained there.
    Raises RequestError for what cannot be done; what else the cell raises becomes one that names
    chapter, cell and line.
    """
    import kdnotes

    everything = {each.name: each.default for each in declared.values()} | dict(values)

    def declare(exchanged: bool) -> Study:
        study = _study(name, declared, everything, planning=True, exchanged=exchanged)
        if found := parameters.cell(path, CAST):
            _declare(name, path, *found, everything | {"kd": kdnotes, "study": study})
        study.settings  # noqa: B018 - what is wrong with them is said now
        return study

    study = declare(exchanged=False)
    if study.settings.teacher_count == 2:
        study.other = declare(exchanged=True)
    return study


def _declare(name: str, path: Path, number: int, source: str, namespace: dict[str, Any]) -> None:
    """Run a chapter's cell tagged `cast`; what it raises becomes a RequestError that names it."""
    file = f"{path.name}, cell {number}"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec"), namespace)
    except RequestError:
        raise
    except Exception as error:
        lines = [each for each in traceback.extract_tb(error.__traceback__) if each[0] == file]
        where = f" ({lines[-1].line})" if lines else ""
        raise RequestError(
            f"chapter {name!r}, cell {number}, which declares its casts, failed{where}: "
            f"{type(error).__name__}: {error}"
        ) from error


def begin(name: str, namespace: Mapping[str, Any]) -> Study:
    """The study of the chapter whose notebook calls this with its ``globals()``.

    Its parameters are read from there by name, and checked as the command line does; its own
    figures get the book's style. Raises RequestError naming what is wrong and what would be right.
    """
    figures.style()
    declared = parameters.read(_path(name))
    values = {
        each.name: each.accept(namespace.get(each.name, each.default)) for each in declared.values()
    }
    return _study(name, declared, values, exchanged=_EXCHANGED.get())


def with_teachers_exchanged(study: Study) -> Outcome:
    """What a chapter measures with the second teacher in the place of the first.

    The cells of its notebook are run once more, up to the one that comes to a conclusion, in a
    namespace of their own; cells that only show something are left out.
    """
    from IPython.utils.capture import capture_output
    from matplotlib import pyplot

    path, shown = _path(study.chapter), set(pyplot.get_fignums())
    namespace = {"__name__": "__main__"} | study.asked
    token = _EXCHANGED.set(True)
    try:
        with capture_output(stderr=False):
            for source in parameters.cells_after(path, parameters.TAG, without="remove-input"):
                exec(compile(source, path.name, "exec"), namespace)
    except Measured as measured:
        return measured.outcome
    finally:
        _EXCHANGED.reset(token)
        for number in set(pyplot.get_fignums()) - shown:
            pyplot.close(number)
    raise RuntimeError(f"{path.name} never calls kd.conclude")


class Measured(BaseException):
    """Ends the second pass over a chapter's cells, with what it measured."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def _path(name: str) -> Path:
    folder = paths.root() / "book"
    (path,) = (each for each in folder.glob("*.ipynb") if _NUMBER.sub("", each.stem) == name)
    return path


def trained(plan: Plan) -> Cast:
    """The networks of a plan, trained if they are not there yet, with progress shown."""
    from kdnotes import networks
    from kdnotes.probes.base import Cast, Member
    from kdnotes.training import cache

    plan.study.train()
    plan.study.started = plan.study.started or time.perf_counter()
    members = []
    for item in plan.planned:
        network = networks.freeze(cache.load(item.spec))
        if plan.study.device.startswith("cuda"):
            network = network.to("cuda")
        members.append(Member(item.arm, item.spec.seed, network, networks.taps(network)))
    teachers = {each.arm: each for each in members if each.arm in ("teacher", "second-teacher")}
    return Cast(
        teacher=teachers["teacher"],
        second_teacher=teachers.get("second-teacher"),
        members=tuple(each for each in members if each.arm not in teachers),
        classes=plan.classes,
    )


def _study(
    name: str,
    declared: Mapping[str, Parameter],
    values: Mapping[str, Any],
    planning: bool = False,
    exchanged: bool = False,
) -> Study:
    from kdnotes.study import Study

    shared = parameters.shared()
    given = {each: shared[each].accept(value) for each, value in values.items() if each in shared}
    own = {each: value for each, value in values.items() if each not in shared}
    own = {each: value for each, value in own.items() if value != declared[each].default}
    study = Study(name, given, own, planning, exchanged)
    study.asked = dict(values)
    study.command = " ".join([f"kdnotes run {name}", *_options(declared, values)])
    return study


def _options(declared: Mapping[str, Parameter], values: Mapping[str, Any]) -> Iterator[str]:
    """What a command line says of the parameters that differ from a chapter's own."""
    for name, each in declared.items():
        if (value := values.get(name, each.default)) != each.default:
            yield f"{'--preset ' if name == 'preset' else f'-p {name}='}{shlex.quote(str(value))}"
