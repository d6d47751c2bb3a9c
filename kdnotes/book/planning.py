"""From a chapter's parameters to the networks that its cell tagged `cast` declares."""

from __future__ import annotations

import linecache
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes import figures, paths
from kdnotes.book import parameters
from kdnotes.book.parameters import Parameter
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.probes.base import Cast
    from kdnotes.study import Plan, Study

CAST = "cast"
_NUMBER = re.compile(r"^\d\d-")


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
    study = _study(name, declared, everything, planning=True)
    if found := parameters.cell(path, CAST):
        number, source = found
        file = f"{path.name}, cell {number}"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        try:
            exec(compile(source, file, "exec"), everything | {"kd": kdnotes, "study": study})
        except RequestError:
            raise
        except Exception as error:
            lines = [each for each in traceback.extract_tb(error.__traceback__) if each[0] == file]
            where = f" ({lines[-1].line})" if lines else ""
            raise RequestError(
                f"chapter {name!r}, cell {number}, which declares its casts, failed{where}: "
                f"{type(error).__name__}: {error}"
            ) from error
    study.settings  # noqa: B018 - what is wrong with them is said now
    return study


def begin(name: str, namespace: Mapping[str, Any]) -> Study:
    """The study of the chapter whose notebook calls this with its ``globals()``.

    Its parameters are read from there by name, and checked as the command line does; its own
    figures get the book's style. Raises RequestError naming what is wrong and what would be right.
    """
    figures.style()
    folder = paths.root() / "book"
    (path,) = (each for each in folder.glob("*.ipynb") if _NUMBER.sub("", each.stem) == name)
    declared = parameters.read(path)
    values = {
        each.name: each.accept(namespace.get(each.name, each.default)) for each in declared.values()
    }
    return _study(name, declared, values)


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
) -> Study:
    from kdnotes.study import Study

    shared = parameters.shared()
    given = {each: shared[each].accept(value) for each, value in values.items() if each in shared}
    own = {each: value for each, value in values.items() if each not in shared}
    own = {each: value for each, value in own.items() if value != declared[each].default}
    return Study(name, given, own, planning)
