"""What the book's notebooks hold: the subject, not plumbing, in the cells as committed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import symtable
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_book import REPOSITORY

from kdnotes.book import parameters, running, site

NOTEBOOKS = sorted((REPOSITORY / "book").glob("*.ipynb"))
MOST_LINES = 2300  # of code, in all notebooks together
# The page on one's own networks trains a pair in full view: that code is its subject.
OWN, MOST_LINES_OF_OWN = "your-own-network", 100
LONGEST_FUNCTION = 12
# Solutions are executed with their chapter, but folded and left out of an edition: they do not
# count among the code that a reader meets, and each has a limit of its own.
LONGEST_SOLUTION = 25
SOLUTION = "solution"
LONGEST_HIDDEN = 3  # lines of code of a cell that the page does not show at all

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """The name, the tags and the source of every cell of code."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield cell["id"], cell["metadata"].get("tags", []), "".join(cell["source"])


def tagged(path: Path, tag: str) -> list[str]:
    """Names of the cells of code with a tag."""
    return [name for name, tags, _ in code_cells(path) if tag in tags]


def lines_of_code(source: str) -> int:
    """Lines that are neither blank nor a comment."""
    lines = map(str.strip, source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The name of every function of a notebook, and over how many lines it goes."""
    for _, _, source in code_cells(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def bound(source: str) -> set[str]:
    """Names that a cell binds for those after it, by assignment, loop, import or definition."""
    table = symtable.symtable(source, "cell", "exec")
    names = {
        name.get_name() for name in table.get_symbols() if name.is_assigned() or name.is_imported()
    }
    inside: list[Any] = list(table.get_children())
    for scope in inside:
        inside.extend(scope.get_children())
        names |= {
            name.get_name()
            for name in scope.get_symbols()
            if name.is_declared_global() and name.is_assigned()
        }
    return names


def test_what_is_counted_as_code_and_as_bound() -> None:
    assert lines_of_code("# no\n\nfirst = 1  # yes\n    # no\nsecond = (\n    2\n)\n") == 4
    source = """\
import a.b, c as d
from e import f
for g, (h, *i) in j: k += 1
with l as m: n: int = 1
def o(p):
    global q
    q = r = [s for s in p if (t := s)]
if (u := [v for v in w]): x.y = z[0] = 1
"""
    assert bound(source) == {*"adfghikmnoqu"}


def test_no_function_is_defined_in_two_notebooks() -> None:
    where = defaultdict(set)
    for path in NOTEBOOKS:
        for name, _ in functions(path):
            where[name].add(path.stem)
    assert {name: sorted(stems) for name, stems in where.items() if len(stems) > 1} == {}


@each_notebook
def test_no_function_is_long(path: Path) -> None:
    assert {name: length for name, length in functions(path) if length > LONGEST_FUNCTION} == {}


def test_the_notebooks_together_hold_little_code() -> None:
    lines = {
        path.stem: sum(
            lines_of_code(source) for _, tags, source in code_cells(path) if SOLUTION not in tags
        )
        for path in NOTEBOOKS
    }
    assert sum(lines.values()) - lines[OWN] <= MOST_LINES, lines


def test_the_page_on_ones_own_networks_is_short() -> None:
    (path,) = (path for path in NOTEBOOKS if path.stem == OWN)
    cells = [source for _, tags, source in code_cells(path) if SOLUTION not in tags]
    assert sum(map(lines_of_code, cells)) <= MOST_LINES_OF_OWN


@each_notebook
def test_what_the_page_hides_is_short(path: Path) -> None:
    hidden = {
        name: lines_of_code(source)
        for name, tags, source in code_cells(path)
        if "remove-input" in tags or "remove-cell" in tags
    }
    assert {name: lines for name, lines in hidden.items() if lines > LONGEST_HIDDEN} == {}


@each_notebook
def test_no_cell_binds_a_parameter_again(path: Path) -> None:
    names = set(parameters.read(path))
    again = {
        name: sorted(bound(source) & names)
        for name, tags, source in code_cells(path)
        if "parameters" not in tags
    }
    assert {name: found for name, found in again.items() if found} == {}


@each_notebook
def test_chapters_have_one_cell_of_parameters_and_one_that_declares_the_cast(path: Path) -> None:
    assert len(tagged(path, "parameters")) == 1
    assert len(tagged(path, "cast")) == int(path.stem[:2].isdigit())


def title(path: Path) -> str:
    """What the heading of a page says, with its number."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")


TITLES = {path.name: title(path) for path in NOTEBOOKS}
LINK = re.compile(r"\[([^\[\]]*)\]\((?:book/)?([\w-]+\.ipynb)\)")


def test_chapters_are_numbered_in_the_order_of_the_table_of_contents() -> None:
    pages = [page.removeprefix("book/") for page in site.toc_pages(REPOSITORY / "_toc.yml")]
    chapters = [path.stem for path in running.chapter_paths().values()]
    assert [page for page in pages if page in chapters] == chapters
    assert pages.index("scorecard") == pages.index("15-dose") + 1
    numbered = [path for path in NOTEBOOKS if path.stem[0].isdigit()]
    for number, path in enumerate(numbered, start=1):
        assert path.stem.startswith(f"{number:02d}-")
        assert re.fullmatch(rf"{number}\. \S.*\?", TITLES[path.name])


def test_the_table_of_contents_numbers_what_the_notebooks_number() -> None:
    """The site takes a notebook's own number off: titles and figures have it from there."""
    parts = yaml.safe_load((REPOSITORY / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    for part in parts:
        stems = [page["file"].removeprefix("book/") for page in part["chapters"]]
        assert {stem[0].isdigit() for stem in stems} == {part.get("numbered") == 1}


def test_every_chapter_leads_to_the_next_one() -> None:
    for path, following in pairwise([path for path in NOTEBOOKS if path.stem != OWN]):
        text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        after = text.partition("**Next:**")[2].partition("\n\n")[0]
        assert LINK.search(after)[2] == following.name, path.name


def test_links_call_chapters_by_their_titles() -> None:
    """Those that begin with a number, and all of the list on the first page."""
    for path in (*NOTEBOOKS, *(REPOSITORY / "book").glob("*.md"), REPOSITORY / "README.md"):
        text = path.read_text(encoding="utf-8").replace("\\n", " ")
        for called, name in LINK.findall(text):
            if re.match(r"\d+\. ", called):
                assert called == TITLES[name], path.name
    intro = (REPOSITORY / "book" / "intro.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\d+\.) \[(.*)\]\((\d\d-[\w-]+\.ipynb)\)$", intro, re.MULTILINE)
    assert {name: f"{number} {called}" for number, called, name in listed} == {
        name: called for name, called in TITLES.items() if name[0].isdigit()
    }


@each_notebook
def test_a_cell_that_declares_shows_no_value(path: Path) -> None:
    """What `plan.usual()` and `plan.students()` return would be printed below the cell."""
    for _, tags, source in code_cells(path):
        last = ast.parse(source).body[-1]
        if "cast" in tags and isinstance(last, ast.Expr) and not source.endswith(";"):
            assert isinstance(last.value, ast.Call)
            assert isinstance(last.value.func, ast.Attribute)
            assert last.value.func.attr in ("controls", "distilled", "foreign")  # return nothing


@each_notebook
def test_solutions_in_code_are_short_cells_between_their_gates(path: Path) -> None:
    """So that a run of the chapter executes them, and a page folds them with what they print."""
    inside = ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        solution = SOLUTION in cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code":
            assert solution == bool(inside), cell["id"]
            if solution:
                assert cell["metadata"]["tags"] == [SOLUTION], cell["id"]
                assert lines_of_code(source) <= LONGEST_SOLUTION, cell["id"]
            continue
        for start, name in re.findall(r"^`{3}\{solution-(?:(start)\} (\S+)|end\})$", source, re.M):
            assert bool(start) != bool(inside), (cell["id"], name, inside)
            inside = name
        assert solution or not inside
        assert not (solution and "```python" in source), cell["id"]
    assert not inside


@each_notebook
def test_commands_in_solutions_could_be_run(path: Path) -> None:
    made = set()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if SOLUTION not in cell["metadata"].get("tags", []):
            continue
        for block in re.findall(r"^```bash\n(.*?)^```", "".join(cell["source"]), re.M | re.S):
            for line in block.splitlines():
                made |= checked(shlex.split(line), made)


def checked(words: list[str], made: set[str]) -> set[str]:
    """The folder that a command would write; its chapter and its parameters are tried."""
    program, command, subject, *options = words
    assert program == "kdnotes"
    if command == "show":
        assert subject in made
        return set()
    assert command in ("run", "sweep")
    each = list(zip(options[::2], options[1::2], strict=True))
    given = dict(each)
    pairs = [value for name, value in each if name in ("-p", "--grid")]
    assert set(given) <= {"-p", "--grid", "--out"}
    assert ("--grid" in given) == (command == "sweep")
    found = running.chapter(subject)
    grid = parameters.assignments(pairs, "-p")
    for values in product(*(texts.split(",") for texts in grid.values())):
        parameters.check(subject, found.parameters, dict(zip(grid, values, strict=True)))
    return {given["--out"]}
