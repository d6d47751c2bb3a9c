"""A small book that really runs, for the tests of the command line and of the site."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner

from kdnotes.book.parameters import SHARED
from kdnotes.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]
PARAMETERS = (
    SHARED.replace('"laptop"', '"smoke"', 1)
    .replace("methods: str | None = None", 'methods: str | None = "kl"')
    .replace("tau: float | None = None", "tau: float | None = 4.0")
    .replace("device: str | None = None", 'device: str | None = "cpu"')
    + "size: int = 3  # the chapter's own (1 to 9)\n"
)
CAST = """\
plan = study.plan("plain", study.world())
first = plan.teacher()
plan.students(kd.independent)
for method in plan.methods:
    plan.students(method, of=first)
"""
SAVE_NOTHING = """\
import kdnotes as kd
kd.results.save("{name}", None, [], dict(preset=preset, seeds=seeds, data_dir=data_dir), 1.0)
"""
SAVE_TAU = """\
import os
from types import SimpleNamespace
import pandas as pd
import kdnotes as kd
table = pd.DataFrame([dict(arm="kl", seed=0, condition="", measure="tau", value=tau)])
items = pd.DataFrame(columns=kd.results.ITEM_COLUMNS)
claim = dict(id="warm", measure="tau", estimate=tau, low=0.0, high=9.0, criterion="above 0",
             verdict="agrees", paper=None)
kd.results.save("{name}", SimpleNamespace(table=table, items=items), [claim],
                dict(preset=preset, tau=tau), 1.5)
print(os.environ["OMP_NUM_THREADS"], "agg" in os.environ.get("MPLBACKEND", ""))
"""
PICTURE = """\
import matplotlib.pyplot as plt
plt.plot([0, 1])
plt.show()
"""
TOC = """\
format: jb-book
root: book/intro
chapters:
"""


def markdown(source: str, **metadata: Any) -> Any:
    """A markdown cell."""
    return nbformat.v4.new_markdown_cell(source, metadata=metadata)


def code(source: str, **metadata: Any) -> Any:
    """A code cell."""
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def write(path: Path, cells: list[Any]) -> Path:
    """A notebook for the python3 kernel."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "language": "python",
        "display_name": "Python 3",
    }
    nbformat.write(notebook, path)
    return path


def chapter(name: str, *more: Any, save: str = SAVE_NOTHING) -> list[Any]:
    """Cells of a chapter: title, parameters, whatever is asked for, results."""
    return [
        markdown(f"# Does the student {name}?\n\nText about a {{term}}`teacher`."),
        code(PARAMETERS, tags=["parameters"]),
        *more,
        code(save.format(name=name)),
    ]


def figure(name: str) -> Any:
    """A code cell with a figure as the book wants it."""
    about = {"figure": {"caption": "A line.", "name": f"fig-{name}"}, "image": {"alt": "A line"}}
    return code(PICTURE, mystnb=about)


def exercise(name: str) -> list[Any]:
    """An exercise and its solution."""
    return [
        markdown(f"```{{exercise}}\n:label: exercise-{name}\nWhat is this?\n```"),
        markdown(
            f"```{{solution}} exercise-{name}\n:class: dropdown\nIt is the answer.\n```",
            tags=["solution"],
        ),
    ]


def make(root: Path, chapters: dict[str, list[Any]]) -> Path:
    """A book with the real configuration, in ``root``; ``chapters`` by file name."""
    (root / "book" / "_static").mkdir(parents=True)
    (root / "results").mkdir()
    shutil.copy(REPOSITORY / "_config.yml", root)
    pages = ["glossary", "references", *chapters]
    (root / "_toc.yml").write_text(TOC + "".join(f"  - file: book/{page}\n" for page in pages))
    (root / "book" / "_static" / "custom.css").write_text("")
    (root / "book" / "intro.md").write_text("# The book\n\nSee {doc}`glossary`.\n")
    (root / "book" / "glossary.md").write_text(
        "# Glossary\n\n```{glossary}\nteacher\n  The network that is imitated.\n```\n"
    )
    (root / "book" / "references.md").write_text("# References\n\n```{bibliography}\n:all:\n```\n")
    (root / "book" / "references.bib").write_text(
        "@article{one, title={One}, author={Author, A.}, journal={J}, year={2020}}\n"
    )
    for name, cells in chapters.items():
        write(root / "book" / f"{name}.ipynb", cells)
    return root


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, *cells: Any, save: str = SAVE_TAU) -> Path:
    """Make a book of one chapter that needs no networks, and work beside it."""
    # Braces, because papermill formats paths.
    root = make(folder / "book {1}", {"scorecard": chapter("scorecard", *cells, save=save)})
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    monkeypatch.chdir(folder)
    return root


def kdnotes(*arguments: str | Path) -> Any:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files_under(folder: Path) -> list[str]:
    """Everything in a folder, by relative name."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
