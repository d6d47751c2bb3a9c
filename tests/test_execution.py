"""Notebooks executed in threads: what their kernels find, what a dead one said, none left."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_book import code, write

from kdnotes.book.execution import Order, _threads, execute_notebook
from kdnotes.errors import RequestError, RunFailedError

SAY = "import os; print(os.getpid(), os.environ['MARK'], os.getcwd())"


def order(folder: Path, *sources: str, forked: bool = False) -> Order:
    """A notebook with these cells."""
    folder.mkdir()
    template = write(folder / "template.ipynb", list(map(code, sources)))
    output = folder / ".output {1}.7.ipynb"  # braces, because papermill formats paths
    return Order(template, output, {}, {"MARK": folder.name}, folder, "a key", forked)


def said(done: Order) -> list[str]:
    """The words that the notebook printed."""
    outputs = json.loads(done.output.read_text())["cells"][0]["outputs"]
    return "".join("".join(output.get("text", "")) for output in outputs).split()


def has_said(done: Order) -> bool:
    """Whether there is output already; a notebook that is just being written is not whole."""
    try:
        return bool(said(done))
    except (OSError, json.JSONDecodeError):
        return False


def test_a_kernel_has_the_surroundings_of_its_order(tmp_path: Path) -> None:
    told: list[Any] = []
    orders = [order(tmp_path / name, SAY) for name in ("first", "second")]
    threads = [
        threading.Thread(target=execute_notebook, args=(each, lambda *cells: told.append(cells)))
        for each in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    processes, marks, folders = zip(*map(said, orders), strict=True)
    assert marks == ("first", "second")
    assert folders == (str(tmp_path / "first"), str(tmp_path / "second"))
    assert told == [(1, 1), (1, 1)]
    assert not any(psutil.pid_exists(int(process)) for process in processes)
    about = json.loads(orders[0].output.read_text())["metadata"]
    assert about["kdnotes"]["key"] == "a key"
    assert str(tmp_path) not in json.dumps(about)


def test_failures_say_what_happened(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"^failed in cell 1 \(1 / 0\): ZeroDivisionError"):
        execute_notebook(order(tmp_path / "failing", "\n1 / 0"))
    wrong = "from kdnotes.errors import RequestError\nraise RequestError('no such thing')"
    with pytest.raises(RequestError, match=r"^no such thing$"):
        execute_notebook(order(tmp_path / "wrong", wrong))
    dying = "import os\nos.write(2, b'out of luck\\n')\nos._exit(3)"
    with pytest.raises(RunFailedError, match=r"DeadKernelError.*\n(.*\n)*out of luck$"):
        execute_notebook(order(tmp_path / "dying", dying))


@pytest.mark.parametrize("sleeping", [True, False])
def test_an_exception_ends_the_kernels_at_once(tmp_path: Path, sleeping: bool) -> None:
    cells = (SAY, f"import time; time.sleep({60 * sleeping})")
    orders = [order(tmp_path / name, *cells) for name in ("first", "second")]
    futures: list[Any] = []
    before = psutil.Process().children()

    def stopped() -> None:
        with _threads(2, 1) as submit:
            futures.extend(submit(each) for each in orders)
            deadline = time.monotonic() + 60
            while sleeping and not has_said(orders[0]):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert all(future.done() for future in futures)
    assert psutil.Process().children() == before
    assert not orders[1].output.exists()
