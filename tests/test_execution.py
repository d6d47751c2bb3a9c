"""Processes that execute notebooks: one after another, none left behind, none that failed."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from kdnotes.book import running


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "cache"))
    with running.surroundings(1) as environment:
        started = running._Processes(environment)
        yield started
        started.end()


def outcome(processes: Any, folder: Path, source: str) -> dict[str, Any]:
    """What comes of a notebook with one cell, with its text output under ``said``."""
    folder.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, folder / "template.ipynb")
    order = {
        "template": str(folder / "template.ipynb"),
        "output": str(folder / "output.ipynb"),
        "out": str(folder),
        "parameters": {},
        "base": str(folder),
        "stamp": {},
    }
    found, last_words = processes.run(order, lambda cells, total: None)
    cells = json.loads((folder / "output.ipynb").read_text())["cells"]
    said = "".join("".join(output.get("text", "")) for output in cells[-1]["outputs"])
    return found | {"said": said.split(), "last_words": last_words}


SAY = "import os; print(os.getppid(), os.environ['KDNOTES_OUT'], os.getcwd())"


def test_a_process_takes_one_notebook_after_another(processes: Any, tmp_path: Path) -> None:
    first, second = (outcome(processes, tmp_path / name, SAY) for name in ("first", "second"))
    assert first["failed"] is None
    assert first["said"][0] == second["said"][0]  # kernels of the same process
    assert first["said"][1:] == [str(tmp_path / "first")] * 2
    assert second["said"][1:] == [str(tmp_path / "second")] * 2


def test_a_process_in_which_a_notebook_failed_is_not_used_again(
    processes: Any, tmp_path: Path
) -> None:
    before = outcome(processes, tmp_path / "before", SAY)
    failed = outcome(processes, tmp_path / "failed", "1 / 0")
    after = outcome(processes, tmp_path / "after", SAY)
    assert failed["failed"]["error"] == "ZeroDivisionError: division by zero"
    assert before["said"][0] != after["said"][0]
    assert after["failed"] is None
    assert not Path(f"/proc/{before['said'][0]}").exists()


def test_no_process_is_left_behind(processes: Any, tmp_path: Path) -> None:
    process = outcome(processes, tmp_path / "one", SAY)["said"][0]
    processes.end()
    assert not Path(f"/proc/{process}").exists()
