"""What CONTRIBUTING.md tells to write and to type does work, taken from the page as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTEBOOK = "book/16-confidence.ipynb"


def section(title: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks under a heading."""
    return FENCED.findall(PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the package and its book are read from."""
    for name in ("kdnotes", "book"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    (tmp_path / "results").mkdir()
    return tmp_path


def write(checkout: Path, title: str) -> None:
    """The files that a section gives, by the comment in their first line."""
    for _, text in section(title):
        head, _, body = text.partition("\n")
        if re.fullmatch(r"# kdnotes/\S+\.py", head):
            (checkout / head.removeprefix("# ")).write_text(body, encoding="utf-8")
        elif head == "# added to book/claims.yml":
            with (checkout / "book/claims.yml").open("a", encoding="utf-8") as file:
                file.write("\n" + body)


def type_in(checkout: Path, title: str) -> str:
    """The commands of a section, one after the other; returns what they print."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "KDNOTES_BOOK": str(checkout),
        "KDNOTES_CACHE": str(checkout / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    said = ""
    for language, text in section(title):
        for line in text.splitlines() if language == "bash" else ():
            program, *words = shlex.split(line, comments=True)
            assert program == "kdnotes"
            done = subprocess.run(
                [sys.executable, "-m", "kdnotes.cli", *words],
                cwd=checkout,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            said += done.stdout
    return said


def arms(checkout: Path, name: str, chapter: str) -> set[str]:
    lines = (checkout / "_build" / name / f"{chapter}.csv").read_text().splitlines()[1:]
    return {line.split(",")[1] for line in lines}


def test_a_method_is_one_file(checkout: Path) -> None:
    write(checkout, "A way of teaching")
    type_in(checkout, "A way of teaching")
    assert {"kl", "matching", "independent"} <= arms(checkout, "matching", "distillation")
    assert "hint" not in arms(checkout, "matching", "distillation")


def test_a_data_set_is_one_file(checkout: Path) -> None:
    write(checkout, "A data set")
    type_in(checkout, "A data set")
    saved = json.loads((checkout / "_build/stripes/fidelity.json").read_text())
    assert saved["parameters"]["dataset"] == "stripes"


def test_an_arm_is_declared_in_its_chapter(checkout: Path) -> None:
    (added,) = (text for language, text in section("An arm") if language == "python")
    path = checkout / "book/02-fidelity.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = (one for one in notebook["cells"] if "cast" in one["metadata"].get("tags", ()))
    cell["source"] = "".join(cell["source"]) + "\n" + added
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert re.search(r"^kl-hot +1 +1", type_in(checkout, "An arm"), re.MULTILINE)


def test_a_property_is_a_probe_a_chapter_and_its_claims(checkout: Path) -> None:
    write(checkout, "A property")
    notebook = json.loads((checkout / "book/02-fidelity.ipynb").read_text(encoding="utf-8"))
    cells = notebook["cells"][:2]
    assert "parameters" in cells[1]["metadata"]["tags"]
    for _, text in section("A property"):
        head, _, body = text.partition("\n")
        if tag := re.fullmatch(rf"# cell of {re.escape(NOTEBOOK)}, tagged (\S+)", head):
            made = {"cell_type": "code", "metadata": {"tags": [tag[1]]}, "outputs": []}
            cells.append(
                made | {"execution_count": None, "id": f"cell-{len(cells)}", "source": body}
            )
    (checkout / NOTEBOOK).write_text(json.dumps(notebook | {"cells": cells}), encoding="utf-8")
    said = type_in(checkout, "A property")
    assert "confidence-kl" in said  # judged, and shown with its verdict
    assert {"teacher", "kl", "independent"} <= arms(checkout, "confidence", "confidence")
    executed = json.loads((checkout / "_build/confidence/confidence.ipynb").read_text())
    assert "A student is sure of its answers" in json.dumps(executed)
