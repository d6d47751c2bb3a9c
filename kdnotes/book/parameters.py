"""A chapter's parameters: read from its parameters cell, and checked before anything runs.

Not by papermill, which only warns of unknown names, hands texts on as they are, and overlooks
``int | None``. Every parameter is one line ``name: type = default  # meaning``; a default of None
makes it optional. A meaning ends in what is allowed: of numbers ``(1 to 255)``, of lists of them
``(each 0 to 1)`` or ``(each whole, 1 to 255)``, of texts ``(light, dark or both)`` or in words
``(a folder)``, which the study then checks.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter

from kdnotes.errors import RequestError

TAG = "parameters"
# What every chapter takes, in the form of its cell. None: what the chapter and the preset say.
SHARED = """\
preset: str = "laptop"  # how large and how long (smoke, laptop, published or paper)
dataset: str | None = None  # images, such as scenes or imagefolder:PATH (name of a data set)
data_dir: str | None = None  # where downloaded data sets lie (a folder)
teacher: str | None = None  # architecture of the teachers (name of a network)
student: str | None = None  # architecture of the students (name of a network)
methods: str | None = None  # ways of teaching, such as "kl,hint" (names of methods)
tau: float | None = None  # temperature of the soft labels (0.1 to 1000)
seeds: int | None = None  # students of each kind (1 to 1000)
teacher_count: int | None = None  # teachers over whose students values are averaged (1 to 2)
first_seed: int | None = None  # seeds count from here; 100 to 999 are for trials (0 to 999999)
device: str | None = None  # where to train and measure (cpu, cuda or cuda:all)
train_count: int | None = None  # training images (10 to 2000000)
epochs: int | None = None  # passes over the training images (1 to 10000)
skip_damaged: bool = False  # leave damaged files of an image folder out, counted and named
"""
_LINE = re.compile(r"(\w+): (str|int|float|bool)( \| None)? = (.+?)\s+#\s*(\S.*)")
_LIMITS = re.compile(r"\((?:each (whole, )?)?(-?[\d.]+) to (-?[\d.]+)\)$")
_ALLOWED = re.compile(r"\(([^()]+)\)$")
_CHOICES = re.compile(r"\(([\w:-]+(?:, [\w:-]+)*) or ([\w:-]+)\)$")
_NUMBER: TypeAdapter[float] = TypeAdapter(FiniteFloat)
# What checks a value, what that is called, and an example.
_KINDS: dict[str, tuple[TypeAdapter[Any], str, str]] = {
    "str": (TypeAdapter(str), "text", "text"),
    "int": (TypeAdapter(int), "a whole number", "5"),
    "float": (_NUMBER, "a number", "0.5"),
    "bool": (TypeAdapter(bool), "true or false", "true"),
}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell; ``kind`` is str, int, float or bool."""

    name: str
    kind: str
    optional: bool
    default: Any
    meaning: str

    @property
    def type(self) -> str:
        """The annotation as written in a notebook."""
        return f"{self.kind} | None" if self.optional else self.kind

    @property
    def allowed(self) -> str:
        """What is allowed, in words; empty where the kind says it all."""
        return found[1] if (found := _ALLOWED.search(self.meaning)) else ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that are allowed, none if all are."""
        listed = _CHOICES.search(self.meaning) if self.kind == "str" else None
        return (*listed[1].split(", "), listed[2]) if listed else ()

    def parse(self, text: str) -> Any:
        """The value that a text stands for. Raises RequestError naming what would be right."""
        stripped = text.strip()
        if self.optional and stripped.lower() in ("", "none", "null"):
            return None
        try:  # 1e3 is a whole number too
            number = _NUMBER.validate_python(stripped) if self.kind == "int" else stripped
            return self.accept(_KINDS[self.kind][0].validate_python(number))
        except ValueError as error:
            raise self._wrong(text) from error

    def accept(self, value: Any) -> Any:
        """A notebook's value as its type, if it may stand there. Raises RequestError as `parse`."""
        if self.optional and value in (None, ""):
            return None
        try:
            checked = _KINDS[self.kind][0].validate_python(value, strict=True)
            if self._allows(checked):
                return checked
        except ValueError:
            pass
        raise self._wrong(value)

    def _allows(self, value: Any) -> bool:
        """Raises ValueError for a list with something else than numbers in it."""
        if self.choices:
            return value in self.choices
        if not (limits := _LIMITS.search(self.meaning)):
            return True
        whole, low, high = limits.groups()
        numbers = [value]
        if self.kind == "str":
            numbers = [*map(int if whole else float, value.split(","))]
        within = all(float(low) <= number <= float(high) for number in numbers)
        return within and len(set(numbers)) == len(numbers)

    def _wrong(self, value: Any) -> RequestError:
        _, what, example = _KINDS[self.kind]
        example = self.default or example
        if self.choices:
            what, example = f"{', '.join(self.choices[:-1])} or {self.choices[-1]}", self.choices[0]
        elif limits := _LIMITS.search(self.meaning):
            listed = "different numbers with commas between them"
            what = f"{listed if self.kind == 'str' else what} {limits[0]}"
        near = did_you_mean(str(value), self.choices)
        right = f"must be {what}{', or nothing' if self.optional else ''}, not {value!r}{near}"
        return RequestError(f"parameter {self.name!r} {right}; for example {self.name}={example}")


def shared() -> dict[str, Parameter]:
    """The parameters of every chapter, by name."""
    return {item.name: item for item in _cell_parameters(SHARED)}


def cell(path: Path, tag: str) -> tuple[int, str] | None:
    """Number, from 1, and source of the one code cell with a tag, if any. Raises RequestError."""
    tagged = [(number, source) for number, source, tags in cells(path) if tag in tags]
    if len(tagged) > 1:
        raise RequestError(f"{path.name} needs one cell tagged {tag!r}; it has {len(tagged)}")
    return tagged[0] if tagged else None


def cells(path: Path, kind: str = "code") -> list[tuple[int, str, Sequence[str]]]:
    """Number among all, source and tags of the cells of a kind. Raises RequestError."""
    try:
        return [
            (number, "".join(each["source"]), each.get("metadata", {}).get("tags", ()))
            for number, each in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], 1)
            if each["cell_type"] == kind
        ]
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path.name} cannot be read as a notebook: {error!r}") from error


def read(path: Path) -> dict[str, Parameter]:
    """Parameters of a notebook, in the order of its parameters cell. Raises RequestError."""
    found = cell(path, TAG)
    if found is None:
        raise RequestError(f"{path.name} needs one cell tagged {TAG!r}; it has 0")
    try:
        return {item.name: item for item in _cell_parameters(found[1])}
    except ValueError as error:
        raise RequestError(f"parameters cell of {path.name}: {error}") from error


def check(
    chapter: str, parameters: Mapping[str, Parameter], given: Mapping[str, str]
) -> dict[str, Any]:
    """Values of the given texts, by name. Raises RequestError for an unknown name or a bad one."""
    for name in given:
        if name not in parameters:
            wrong = f"chapter {chapter!r} has no parameter {name!r}"
            near = did_you_mean(name, parameters)
            raise RequestError(f"{wrong}{near}; it has: {', '.join(parameters)}")
    return {name: parameters[name].parse(text) for name, text in given.items()}


def assignments(texts: Iterable[str], option: str) -> dict[str, str]:
    """Pairs of ``NAME=VALUE`` texts. Raises RequestError when one is no pair or a name repeats."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.strip() or "=" not in text:
            example = f"for example {option} seeds=5"
            raise RequestError(f"{option} {text!r} must be NAME=VALUE, {example}")
        if name.strip() in pairs:
            raise RequestError(f"{option} names {name.strip()!r} twice; give one value")
        pairs[name.strip()] = value
    return pairs


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where a known name is close, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _cell_parameters(source: str) -> Iterable[Parameter]:
    for number, line in enumerate(source.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.rstrip())
        try:
            name, kind, optional, text, meaning = found.groups() if found else ()
            default = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"line {number} is not of the form 'name: type = default  # meaning', the type "
                f"{', '.join(_KINDS)}, with or without '| None'"
            ) from error
        each = Parameter(name, kind, bool(optional) or default is None, default, meaning)
        stated = _LIMITS.search(meaning) if kind in ("int", "float") else each.allowed
        if kind != "bool" and not stated:
            such = "such as (1 to 255), (each 0 to 1), (light or dark) or (a folder)"
            raise ValueError(f"line {number} does not end in what is allowed, {such}")
        yield each
