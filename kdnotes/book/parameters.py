"""A chapter's parameters: read from its parameters cell, and checked before anything runs.

papermill hands unknown names on with a warning, types arrive as text (`1e-3` from YAML is a
string), and its own inspection overlooks annotations such as ``int | None``. So the cell is read
here: every parameter is one line ``name: type = default  # meaning``, where a default of None makes
the parameter optional. A meaning that ends in ``(1 to 255)`` states the range of a number, one that
ends in ``(each 1 to 255)`` that of the numbers in a comma-separated text; both are enforced.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdnotes.errors import RequestError

TAG = "parameters"
REQUIRED = (
    "preset",
    "dataset",
    "data_dir",
    "teacher",
    "student",
    "methods",
    "tau",
    "seeds",
    "first_seed",
    "device",
)
# What decides the networks besides, where a chapter offers it.
SIZES = ("train_count", "epochs")
FOLDERS = ("groups", "unseen")
_RANGE = re.compile(r"\((each )?(-?[\d.]+) to (-?[\d.]+)\)$")
_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
_EXAMPLES = {"str": "text", "int": "5", "float": "0.5", "bool": "true"}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


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

    def parse(self, text: str) -> Any:
        """The value that a text stands for. Raises RequestError naming what would be right."""
        stripped = text.strip()
        if self.optional and stripped.lower() in ("", "none", "null"):
            return None
        try:
            value = _parse(self.kind, stripped)
            self._check_range(value)
            return value
        except ValueError as error:
            what = self._expected + (" (or nothing)" if self.optional else "")
            raise RequestError(
                f"parameter {self.name!r} must be {what}, not {text!r}; for example "
                f"{self.name}={_example(self)}"
            ) from error

    @property
    def _expected(self) -> str:
        """What would be right, in words."""
        stated = _RANGE.search(self.meaning)
        if stated is None:
            return _KINDS[self.kind]
        each, low, high = stated.groups()
        what = "numbers separated by commas, each" if each else _KINDS[self.kind]
        return f"{what} from {low} to {high}"

    def _check_range(self, value: Any) -> None:
        stated = _RANGE.search(self.meaning)
        if stated is None:
            return
        each, low, high = stated.groups()
        numbers = [float(part) for part in value.split(",")] if each else [value]
        if not all(float(low) <= number <= float(high) for number in numbers):
            raise ValueError(value)


def read(path: Path) -> dict[str, Parameter]:
    """Parameters of a notebook, in the order of its parameters cell.

    Raises RequestError when the notebook is unreadable or the cell is missing or not in the form
    that the module's text describes.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path.name} cannot be read as a notebook: {error!r}") from error
    tagged = [cell for cell in cells if TAG in cell.get("metadata", {}).get("tags", ())]
    if len(tagged) != 1:
        raise RequestError(f"{path.name} needs one cell tagged {TAG!r}; it has {len(tagged)}")
    try:
        return {item.name: item for item in _cell_parameters("".join(tagged[0]["source"]))}
    except (ValueError, SyntaxError) as error:
        raise RequestError(f"parameters cell of {path.name}: {error}") from error


def check(
    chapter: str, parameters: Mapping[str, Parameter], given: Mapping[str, str]
) -> dict[str, Any]:
    """Values of the given texts, by name. Raises RequestError for an unknown name or a bad one."""
    for name in given:
        if name not in parameters:
            raise RequestError(
                f"chapter {chapter!r} has no parameter {name!r}{did_you_mean(name, parameters)}; "
                f"it has: {', '.join(parameters)}"
            )
    return {name: parameters[name].parse(text) for name, text in given.items()}


def assignments(texts: Iterable[str], option: str) -> dict[str, str]:
    """Pairs of ``NAME=VALUE`` texts. Raises RequestError when one is no pair or a name repeats."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise RequestError(
                f"{option} {text!r} must be NAME=VALUE, for example {option} seeds=5"
            )
        if name in pairs:
            raise RequestError(f"{option} names {name!r} twice; give one value")
        pairs[name] = value
    return pairs


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where a known name is close, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _cell_parameters(source: str) -> Iterable[Parameter]:
    comments = {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(source).body:
        where = f"line {statement.lineno}"
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise ValueError(f"{where} is not of the form 'name: type = default  # meaning'")
        kind, optional = _annotation(ast.unparse(statement.annotation), where)
        if statement.value is None:
            raise ValueError(f"{where}: {statement.target.id} has no default")
        default = ast.literal_eval(statement.value)
        meaning = comments.get(statement.end_lineno or statement.lineno, "")
        if not meaning:
            raise ValueError(f"{where}: {statement.target.id} has no comment saying what it means")
        yield Parameter(statement.target.id, kind, optional or default is None, default, meaning)


def _annotation(text: str, where: str) -> tuple[str, bool]:
    kind = text.removesuffix("| None").strip()
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f"{where}: type {text!r} is not one of {known}, with or without '| None'")
    return kind, kind != text


def _parse(kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    number = float(text)
    if not math.isfinite(number) or (kind == "int" and not number.is_integer()):
        raise ValueError(text)
    return number if kind == "float" else int(number)  # 1e3 is a whole number too


def _example(parameter: Parameter) -> Any:
    if parameter.default:  # an empty one, 0 included, leaves the choice to the preset
        return parameter.default
    return _EXAMPLES[parameter.kind]
