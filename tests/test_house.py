"""The house: wings import upwards only, no circle, no module deeper than ten, no long function."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "kdnotes"
# In order of data flow: a wing imports only wings above it in this list.
WINGS = (
    ("errors", "lazy", "paths", "store", "progress"),
    ("data",),
    ("methods",),
    ("networks",),
    ("stats",),
    ("figures",),
    ("training",),
    ("study",),
    ("probes",),
    ("book",),
    ("audit",),
    ("cli", "train_networks"),
)
DEEPEST = 10
MOST_LINES = 10_800
LINES_NOW = 17_975
LONGEST_FUNCTION = 60


@cache
def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a package's own file by the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str, top_level_only: bool) -> frozenset[str]:
    """Modules of the package that a module imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    found = set()
    for node in nodes(tree, top_level_only):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "kdnotes":
                found.add(nearest(name))
    return frozenset(found - {module, ""})


def nodes(tree: ast.AST, top_level_only: bool) -> list[ast.AST]:
    reached, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        reached.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        waiting += list(ast.iter_child_nodes(node))
    return reached


def nearest(name: str) -> str:
    """The module that a dotted name lies in: the longest prefix that is one."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in modules():
        parts.pop()
    return ".".join(parts)


def wing(module: str) -> int:
    top = module.split(".")[0]
    return next(place for place, names in enumerate(WINGS) if top in names)


def test_every_module_has_its_wing() -> None:
    for module in modules():
        assert module == "" or wing(module) >= 0


@pytest.mark.parametrize("module", sorted(set(modules()) - {""}))
def test_a_wing_imports_only_wings_above_it(module: str) -> None:
    below = {other for other in imports(module, False) if wing(other) > wing(module)}
    assert not below


def test_no_circle_of_modules() -> None:
    """Imports inside functions count as well: they hide a circle, they do not open it."""
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, f"circle: {' -> '.join((*path, module))}"
        state[module] = 1
        for other in imports(module, False):
            visit(other, (*path, module))
        state[module] = 2

    for module in modules():
        visit(module, ())


def test_no_module_lies_deeper_than_ten_imports() -> None:
    """Of what is imported when a module is: functions import late, to start quickly."""

    @cache
    def depth(module: str) -> int:
        return 1 + max((depth(other) for other in imports(module, True)), default=0)

    deepest = max(modules(), key=depth)
    assert depth(deepest) <= DEEPEST, chain(deepest, depth)


def chain(module: str, depth: object) -> list[str]:
    """The longest chain of imports below a module, for the message."""
    found = [module]
    while further := imports(found[-1], True):
        found.append(max(further, key=depth))  # type: ignore[call-overload]
    return found


def lines_in_all() -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values())


@pytest.mark.xfail(strict=True, reason="the package is larger than it is meant to be")
def test_the_package_is_small() -> None:
    assert lines_in_all() <= MOST_LINES


def test_the_package_does_not_grow() -> None:
    assert lines_in_all() <= LINES_NOW


def test_no_function_is_long() -> None:
    """Lines of code: without blank lines, comments and the docstring."""
    long = {}
    for module, path in modules().items():
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = range(node.lineno - 1, node.end_lineno or node.lineno)
                text = {
                    n for n in body if lines[n].strip() and not lines[n].strip().startswith("#")
                }
                first = node.body[0]
                if ast.get_docstring(node) is not None:
                    text -= set(range(first.lineno - 1, first.end_lineno or first.lineno))
                if len(text) > LONGEST_FUNCTION:
                    long[f"{module}.{node.name}"] = len(text)
    assert not long


def test_no_name_of_an_arm_is_parsed() -> None:
    """An arm knows what it is; what its name begins or ends with is nobody's business."""
    parsed = re.compile(r"\barm\.((starts|ends)with|remove(suf|pre)fix|r?partition|split)\(")
    sources = [*modules().values(), *(REPOSITORY / "book").glob("*.ipynb")]
    assert [path.name for path in sources if parsed.search(path.read_text(encoding="utf-8"))] == []


def test_no_public_callable_has_the_name_of_a_module() -> None:
    names = {part for module in modules() for part in module.split(".")} - {""}
    shared = set()
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                shared.add(f"{module}.{node.name}")
    assert not shared
