"""Parameters cells are read as written, and values are checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from asked import BOOK
from tiny_book import code, markdown, write

from kdnotes.book import parameters
from kdnotes.book.parameters import Parameter
from kdnotes.errors import RequestError

CELL = """\
# A line of its own is no parameter.
preset: str = "laptop"  # how large (smoke or laptop)
seeds: int | None = None  # how many = students (1 to 9)
tau: float = 4.0  # temperature # of the labels (0.5 to 20)
flip: bool = False  # mirror the images
count: int = None  # papermill reads this form too (1 to 9)
"""


def notebook(path: Path, source: str, **metadata: Any) -> Path:
    return write(path / "01-a.ipynb", [markdown("# A"), code(source, tags=["parameters"])])


def one(kind: str, optional: bool = False, default: Any = None, meaning: str = "") -> Parameter:
    return Parameter("it", kind, optional, default, meaning)


def test_reads_names_types_defaults_and_meanings(tmp_path: Path) -> None:
    read = parameters.read(notebook(tmp_path, CELL))
    assert [(each.name, each.type, each.default, each.meaning) for each in read.values()] == [
        ("preset", "str", "laptop", "how large (smoke or laptop)"),
        # papermill's own inspection overlooks this line, twice: for the | and for the second =.
        ("seeds", "int | None", None, "how many = students (1 to 9)"),
        ("tau", "float", 4.0, "temperature # of the labels (0.5 to 20)"),
        ("flip", "bool", False, "mirror the images"),
        ("count", "int | None", None, "papermill reads this form too (1 to 9)"),
    ]


def test_agrees_with_papermill_where_papermill_can_read(tmp_path: Path) -> None:
    from papermill import inspect_notebook

    source = 'a: str = "x"  # (a name)\nb: int = 3  # (1 to 9)\nc: float = 1e-3  # (0 to 1)\n'
    path = notebook(tmp_path, source)
    theirs = inspect_notebook(path)
    ours = parameters.read(path)
    assert list(ours) == list(theirs)
    for name, each in ours.items():
        assert each.type == theirs[name]["inferred_type_name"]
        assert each.meaning == theirs[name]["help"]
        assert each.default == eval(theirs[name]["default"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a: int = 1", "line 1 is not of the form 'name: type = default  # meaning'"),
        ("a = 1  # what", "line 1 is not of the form"),
        ("a: int = 1  # (0 to 9)\n\nb: int = a + 1  # (0 to 9)", "line 3 is not of the form"),
        ("a: list = []  # many", "the type str, int, float, bool, with or without '| None'"),
        ("a: int  # what", "line 1 is not of the form"),
        ("a: int = = 1  # what", "line 1 is not of the form"),
        ("a: int = 1  # what", "line 1 does not end in what is allowed, such as (1 to 255)"),
        ("a: float = 1  # what (1 or more)", "line 1 does not end in what is allowed"),
        ("a: str | None = None  # what", "line 1 does not end in what is allowed"),
    ],
)
def test_refuses_a_cell_that_is_not_in_the_agreed_form(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        parameters.read(notebook(tmp_path, source))


def test_needs_exactly_one_parameters_cell(tmp_path: Path) -> None:
    for count in (0, 2):
        cells = [code("a: int = 1  # (0 to 9)", tags=["parameters"]) for _ in range(count)]
        path = write(tmp_path / "02-b.ipynb", cells)
        with pytest.raises(RequestError, match=f"one cell tagged 'parameters'; it has {count}"):
            parameters.read(path)
    (tmp_path / "03-c.ipynb").write_text("{")
    with pytest.raises(RequestError, match=r"03-c\.ipynb cannot be read"):
        parameters.read(tmp_path / "03-c.ipynb")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("float", "1e-3", 0.001),
        ("float", " 4 ", 4.0),
        ("int", "5", 5),
        ("int", "1e3", 1000),
        ("int", "-2", -2),
        ("bool", "True", True),
        ("bool", "no", False),
        ("str", "kl, hint", "kl, hint"),
        ("str", "none", "none"),
        ("str", "", ""),
    ],
)
def test_parses_texts_by_type(kind: str, text: str, value: Any) -> None:
    parsed = one(kind).parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "None", "none", "null", "  "])
@pytest.mark.parametrize("kind", ["str", "int", "float", "bool"])
def test_an_optional_parameter_can_be_left_empty(kind: str, text: str) -> None:
    assert one(kind, optional=True, default=1).parse(text) is None


@pytest.mark.parametrize(
    ("kind", "text", "right"),
    [
        ("int", "abc", "a whole number"),
        ("int", "2.5", "a whole number"),
        ("int", "", "a whole number"),
        ("int", "inf", "a whole number"),
        ("float", "nan", "a number"),
        ("float", "4,0", "a number"),
        ("bool", "2", "true or false"),
    ],
)
def test_a_wrong_type_names_parameter_value_and_what_is_right(
    kind: str, text: str, right: str
) -> None:
    with pytest.raises(RequestError) as caught:
        one(kind).parse(text)
    assert re.match(f"parameter 'it' must be {right}, not {text!r}; ", str(caught.value))


def test_the_example_in_a_message_is_itself_accepted() -> None:
    for kind in ("int", "float", "bool"):
        for default in (None, {"int": 7, "float": 2.5, "bool": False}[kind]):
            each = one(kind, default=default)
            with pytest.raises(RequestError) as caught:
                each.parse("?")
            each.parse(str(caught.value).rsplit("it=", 1)[1])


@pytest.mark.parametrize(
    ("kind", "meaning", "right", "wrong", "message"),
    [
        ("int", "size (1 to 255)", ["1", "255"], ["0", "256"], "a whole number (1 to 255)"),
        (
            "int",
            "many (1 to 1000)",
            ["1", "1e3"],
            ["0", "-1", "1e200"],
            "a whole number (1 to 1000)",
        ),
        ("float", "share (-0.5 to 1)", ["-0.5", "0.2"], ["-0.6", "1.1"], "a number (-0.5 to 1)"),
        (
            "str",
            "sizes (each 1 to 9)",
            ["1", "2, 4,9", "1.5"],
            ["0,4", "4,x", "", "4,", "nan", "inf", "2,2.0"],
            "different numbers with commas between them (each 1 to 9)",
        ),
        (
            "str",
            "sizes (each whole, 1 to 9)",
            ["1", "2, 4,9"],
            ["1.5", "4.0", "10", "3,3"],
            "different numbers with commas between them (each whole, 1 to 9)",
        ),
        ("str", "way (a-b, c or d:e)", ["a-b", "c", "d:e"], ["", "x", "a-b, c"], "a-b, c or d:e"),
    ],
)
def test_what_a_meaning_allows_is_enforced(
    kind: str, meaning: str, right: list[str], wrong: list[str], message: str
) -> None:
    each = one(kind, meaning=meaning)
    for text in right:
        each.parse(text)
    for text in wrong:
        with pytest.raises(RequestError, match=re.escape(f"must be {message}, not {text!r}")):
            each.parse(text)
    assert one(kind, optional=True, meaning=meaning).parse("none") is None


def test_values_of_a_notebook_are_checked_as_texts_are() -> None:
    assert one("float", meaning="heat (0.5 to 9)").accept(4) == 4.0
    assert one("int", optional=True).accept("") is None
    for kind, wrong in (("int", 2.5), ("int", True), ("float", "4"), ("str", 3), ("bool", 1)):
        with pytest.raises(RequestError, match="parameter 'it' must be"):
            one(kind).accept(wrong)


# --- the parameters of every chapter --------------------------------------------------------


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_chapter_has_the_shared_parameters_as_they_are_declared(path: Path) -> None:
    found = parameters.cell(path, parameters.TAG)
    assert found is not None
    assert found[1].startswith(parameters.SHARED.rstrip("\n"))
    own = [each for name, each in parameters.read(path).items() if name not in parameters.shared()]
    for each in own:
        assert each.default is None or each.accept(each.default) == each.default


@pytest.mark.parametrize("text", ["", "None", "none"])
def test_an_empty_shared_parameter_is_what_the_preset_says(text: str) -> None:
    given = dict.fromkeys(("tau", "seeds", "methods", "dataset", "epochs", "device"), text)
    checked = parameters.check("any", parameters.shared(), given)
    assert checked == dict.fromkeys(given)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    read = parameters.read(notebook(tmp_path, CELL))
    assert parameters.check("a", read, {"tau": "2e0"}) == {"tau": 2.0}
    with pytest.raises(RequestError) as caught:
        parameters.check("a", read, {"tua": "4"})
    expected = (
        "chapter 'a' has no parameter 'tua' (did you mean 'tau'?); "
        "it has: preset, seeds, tau, flip, count"
    )
    assert str(caught.value) == expected


def test_assignments() -> None:
    pairs = parameters.assignments(["tau=4", "dataset=imagefolder:a=b", "data_dir="], "-p")
    assert pairs == {"tau": "4", "dataset": "imagefolder:a=b", "data_dir": ""}
    for wrong, message in [
        (["seeds"], "-p 'seeds' must be NAME=VALUE, for example -p seeds=5"),
        (["=5"], "-p '=5' must be NAME=VALUE, for example -p seeds=5"),
        (["a=1", "a=2"], "-p names 'a' twice; give one value"),
    ]:
        with pytest.raises(RequestError) as caught:
            parameters.assignments(wrong, "-p")
        assert str(caught.value) == message
